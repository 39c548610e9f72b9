//! Who calls, and for whom a certificate may be signed. Pure decisions over the model; everything unknown is refused.

use crate::{local_tokens::Claims, model::Model};
use karst_core::Identity;

/// An authenticated caller: a live pod and its account.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    /// Namespace.
    pub namespace: String,
    /// Service account.
    pub account: String,
    /// Pod.
    pub pod: String,
    /// Node.
    pub node: String,
}

impl Caller {
    /// For logs.
    pub fn name(&self) -> String {
        format!("{}/{} (account {}, node {})", self.namespace, self.pod, self.account, self.node)
    }
}

/// The caller behind verified claims: the pod that the token is bound to must exist, under the same uid, with the same
/// account, on the same node, and must not have ended.
pub fn caller(c: &Claims, m: &Model) -> Result<Caller, String> {
    let parts: Vec<&str> = c.sub.split(':').collect();
    let ["system", "serviceaccount", ns, account] = parts[..] else {
        return Err(format!("subject {:?} is not a service account", c.sub));
    };
    if c.bound.namespace != ns || c.bound.serviceaccount.name != account {
        return Err("subject and bound account differ".into());
    }
    let pod = &c.bound.pod;
    let Some(f) = m.pods.get(&format!("{ns}/{}", pod.name)) else {
        return Err(format!("pod {ns}/{} of the token does not exist", pod.name));
    };
    if pod.uid.is_empty() || f.uid != pod.uid {
        return Err(format!("pod {ns}/{} of the token has been replaced by another of the same name", pod.name));
    }
    if !f.live {
        return Err(format!("pod {ns}/{} of the token has ended", pod.name));
    }
    if f.service_account != account {
        return Err(format!("pod {ns}/{} runs as another account", pod.name));
    }
    if f.node != c.bound.node.name || f.node.is_empty() {
        return Err(format!("pod {ns}/{} is not on node {:?}", pod.name, c.bound.node.name));
    }
    Ok(Caller { namespace: ns.into(), account: account.into(), pod: pod.name.clone(), node: f.node.clone() })
}

/// Whose certificate the caller gets: its own, or, for the trusted node account, that of a pod which runs on the same
/// node now.
pub fn subject(
    caller: &Caller,
    impersonated: Option<&str>,
    m: &Model,
    trust_domain: &str,
    trusted: &[String],
) -> Result<Identity, String> {
    let Some(wanted) = impersonated else {
        return Identity::new(trust_domain, &caller.namespace, &caller.account).map_err(|e| e.to_string());
    };
    if !trusted.iter().any(|t| *t == format!("{}/{}", caller.namespace, caller.account)) {
        return Err(format!(
            "account {}/{} may not request certificates for other identities",
            caller.namespace, caller.account
        ));
    }
    let id: Identity = wanted.parse().map_err(|e| format!("{wanted:?}: {e}"))?;
    if id.trust_domain() != trust_domain {
        return Err(format!("{id} is not in the trust domain {trust_domain}"));
    }
    let runs = m.pods.values().any(|p| {
        p.live && p.node == caller.node && p.namespace == id.namespace() && p.service_account == id.service_account()
    });
    if runs { Ok(id) } else { Err(format!("no pod with the identity {id} runs on node {}", caller.node)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        local_tokens::{Bound, Named},
        model::PodInfo,
    };

    fn pod(ns: &str, sa: &str, node: &str, uid: &str, live: bool) -> PodInfo {
        PodInfo {
            uid: uid.into(),
            namespace: ns.into(),
            service_account: sa.into(),
            node: node.into(),
            live,
            ips: vec![],
        }
    }
    fn model() -> Model {
        let mut m = Model::default();
        for (name, p) in [
            ("istio-system/zt-a", pod("istio-system", "ztunnel", "a", "zt-a-1", true)),
            ("istio-system/zt-dead", pod("istio-system", "ztunnel", "a", "zt-d", false)),
            ("istio-system/other", pod("istio-system", "other", "a", "o", true)),
            ("app/on-a", pod("app", "web", "a", "1", true)),
            ("app/on-b", pod("app", "db", "b", "2", true)),
            ("app/done", pod("app", "job", "a", "3", false)),
        ] {
            m.pods.insert(name.into(), p.into());
        }
        m
    }
    fn claims(sa: &str, pod: &str, uid: &str, node: &str) -> Claims {
        let named = |n: &str, u: &str| Named { name: n.into(), uid: u.into() };
        Claims {
            iss: String::new(),
            sub: format!("system:serviceaccount:istio-system:{sa}"),
            aud: vec![],
            exp: 0,
            nbf: 0,
            bound: Bound {
                namespace: "istio-system".into(),
                serviceaccount: named(sa, ""),
                pod: named(pod, uid),
                node: named(node, ""),
            },
        }
    }

    /// T20: every cell but one is refused.
    #[test]
    fn minting_matrix() {
        let m = model();
        let trusted = ["istio-system/ztunnel".to_string()];
        let (mut issued, mut refused) = (vec![], 0);
        for (sa, p, uid) in [
            ("ztunnel", "zt-a", "zt-a-1"),
            ("other", "other", "o"),
            ("ztunnel", "zt-dead", "zt-d"),
            ("ztunnel", "zt-gone", "x"),
            ("ztunnel", "zt-a", "reused"),
            ("ztunnel", "zt-a", ""),
            ("ztunnel", "other", "o"),
        ] {
            for node in ["a", "b", ""] {
                for td in ["cluster.local", "evil", "cluster.local."] {
                    for path in [
                        "ns/app/sa/web",
                        "ns/app/sa/db",
                        "ns/app/sa/job",
                        "ns/app/sa/none",
                        "ns/other/sa/web",
                        "ns/app/sa/web/x",
                        "ns/app/sa/",
                    ] {
                        let wanted = format!("spiffe://{td}/{path}");
                        let r = caller(&claims(sa, p, uid, node), &m)
                            .and_then(|c| subject(&c, Some(&wanted), &m, "cluster.local", &trusted));
                        match r {
                            Ok(id) => issued.push((p, uid, node, id.to_string())),
                            Err(_) => refused += 1,
                        }
                    }
                }
            }
        }
        println!("T20 cells={} issued={} refused={refused}", issued.len() + refused, issued.len());
        assert_eq!(issued, [("zt-a", "zt-a-1", "a", "spiffe://cluster.local/ns/app/sa/web".to_string())]);
    }

    #[test]
    fn without_impersonation_the_caller_gets_its_own() {
        let m = model();
        let c = caller(&claims("other", "other", "o", "a"), &m).unwrap();
        assert_eq!(subject(&c, None, &m, "td", &[]).unwrap().to_string(), "spiffe://td/ns/istio-system/sa/other");
    }
}
