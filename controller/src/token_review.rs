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

/// Why a token says nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Our own key does not vouch for it.
    #[error("{0}")]
    Local(#[from] jsonwebtoken::errors::Error),
    /// The API server does not.
    #[error("{0}")]
    Review(String),
    /// It is a user's.
    #[error("{0:?} is not a service account")]
    NoServiceAccount(String),
    /// It is good for whoever has it.
    #[error("the token of {namespace}/{account} is not bound to a pod")]
    Unbound {
        /// Of the service account.
        namespace: String,
        /// Its name.
        account: String,
    },
}

/// A service account whose token is valid. It proves nothing of where the token is used: whoever has it can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Account {
    fn of(username: &str) -> Result<Self, TokenError> {
        match username.split(':').collect::<Vec<_>>()[..] {
            ["system", "serviceaccount", namespace, name] => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(TokenError::NoServiceAccount(username.into())),
        }
    }
}

impl Tokens {
    /// The account of a valid token, bound to a pod or not. For reading what is known about proxies, never for the mesh's resources
    /// or certificates: those need [`Self::verify`].
    pub async fn account(&self, token: &str, audience: &str) -> Result<Account, TokenError> {
        match self {
            Tokens::Local(keys) => Account::of(&keys.verify(token, audience)?.sub),
            Tokens::Kubernetes(kube) => {
                let review = kube.review(token, audience).await.map_err(|e| TokenError::Review(e.to_string()))?;
                Account::of(&review.username)
            }
        }
    }

    /// May the bearer read a page? Kubernetes' RBAC decides; in directory mode, where there is none, accounts of `root_namespace`
    /// may.
    pub async fn may_get(
        &self,
        token: &str,
        audience: &str,
        path: &str,
        root_namespace: &str,
    ) -> Result<bool, TokenError> {
        match self {
            Tokens::Local(_) => Ok(self.account(token, audience).await?.namespace == root_namespace),
            Tokens::Kubernetes(kube) => {
                let review = kube.review(token, audience).await.map_err(|e| TokenError::Review(e.to_string()))?;
                kube.may_get(&review, path).await.map_err(|e| TokenError::Review(e.to_string()))
            }
        }
    }

    /// The claims of a token that is valid for the audience.
    pub async fn verify(&self, token: &str, audience: &str, model: &Model) -> Result<Claims, TokenError> {
        let kube = match self {
            Tokens::Local(k) => return Ok(k.verify(token, audience)?),
            Tokens::Kubernetes(k) => k,
        };
        let review = kube.review(token, audience).await.map_err(|e| TokenError::Review(e.to_string()))?;
        let parts: Vec<&str> = review.username.split(':').collect();
        let ["system", "serviceaccount", namespace, account] = parts[..] else {
            return Err(TokenError::NoServiceAccount(review.username));
        };
        if review.pod.is_empty() {
            return Err(TokenError::Unbound { namespace: namespace.into(), account: account.into() });
        }
        let node = if review.node.is_empty() {
            model.pods.get(&format!("{namespace}/{}", review.pod)).map(|p| p.node.clone()).unwrap_or_default()
        } else {
            review.node
        };
        let named = |name: &str, uid: String| Named { name: name.into(), uid };
        Ok(Claims {
            iss: String::new(),
            sub: review.username.clone(),
            aud: vec![audience.into()],
            exp: 0,
            nbf: 0,
            bound: Bound {
                namespace: namespace.into(),
                serviceaccount: named(account, String::new()),
                pod: named(&review.pod, review.pod_uid),
                node: named(&node, String::new()),
            },
        })
    }
}
