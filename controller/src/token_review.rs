//! Who vouches for callers: Kubernetes, or a key of our own.

use crate::{
    local_tokens::{Bound, Claims, Keys, Named},
    model::Model,
};
use karst_kube::Kube;

/// Who says whose a token is.
pub enum Tokens {
    /// The key of directory mode.
    Local(Keys),
    /// The API server.
    Kubernetes(Kube),
}

impl Tokens {
    /// The claims of a token that is valid for the audience.
    pub async fn verify(&self, token: &str, audience: &str, m: &Model) -> Result<Claims, String> {
        let kube = match self {
            Tokens::Local(k) => return k.verify(token, audience),
            Tokens::Kubernetes(k) => k,
        };
        let r = kube.review(token, audience).await.map_err(|e| e.to_string())?;
        let parts: Vec<&str> = r.username.split(':').collect();
        let ["system", "serviceaccount", namespace, account] = parts[..] else {
            return Err(format!("{:?} is not a service account", r.username));
        };
        if r.pod.is_empty() {
            return Err(format!("the token of {namespace}/{account} is not bound to a pod"));
        }
        let node = if r.node.is_empty() {
            m.pods.get(&format!("{namespace}/{}", r.pod)).map(|p| p.node.clone()).unwrap_or_default()
        } else {
            r.node
        };
        let named = |name: &str, uid: String| Named { name: name.into(), uid };
        Ok(Claims {
            iss: String::new(),
            sub: r.username.clone(),
            aud: vec![audience.into()],
            exp: 0,
            nbf: 0,
            bound: Bound {
                namespace: namespace.into(),
                serviceaccount: named(account, String::new()),
                pod: named(&r.pod, r.pod_uid),
                node: named(&node, String::new()),
            },
        })
    }
}
