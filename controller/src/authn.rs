//! Who calls, and for whom a certificate may be signed. Pure decisions over the model; everything unknown is refused.

use crate::{local_tokens::Claims, model::Model};
use karst_core::{Identity, identity::IdentityError};

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

/// Why nobody is behind verified claims.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum CallerError {
    /// The subject is a user.
    #[error("subject {0:?} is not a service account")]
    NoServiceAccount(String),
    /// Two accounts are named.
    #[error("subject and bound account differ")]
    AccountsDiffer,
    /// There is no such pod.
    #[error("pod {0} of the token does not exist")]
    NoPod(String),
    /// The uid is another.
    #[error("pod {0} of the token has been replaced by another of the same name")]
    Replaced(String),
    /// The pod is there, and runs no more.
    #[error("pod {0} of the token has ended")]
    Ended(String),
    /// The pod's account is another.
    #[error("pod {0} runs as another account")]
    OtherAccount(String),
    /// The pod's node is another, or it has none.
    #[error("pod {pod} is not on node {node:?}")]
    OtherNode {
        /// Namespace and name.
        pod: String,
        /// The node of the token.
        node: String,
    },
}

/// Why a caller gets no certificate for somebody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubjectError {
    /// Its own identity is none.
    #[error("{0}")]
    Own(IdentityError),
    /// It speaks for itself only.
    #[error("account {namespace}/{account} may not request certificates for other identities")]
    NotTrusted {
        /// The caller's namespace.
        namespace: String,
        /// The caller's account.
        account: String,
    },
    /// What it asks for is no identity.
    #[error("{wanted:?}: {why}")]
    Invalid {
        /// What it asks for.
        wanted: String,
        /// What is wrong with it.
        why: IdentityError,
    },
    /// It is of another mesh.
    #[error("{id} is not in the trust domain {trust_domain}")]
    OtherTrustDomain {
        /// What it asks for.
        id: Identity,
        /// Ours.
        trust_domain: String,
    },
    /// Nothing there runs as that.
    #[error("no pod with the identity {id} runs on node {node}")]
    NotThere {
        /// What it asks for.
        id: Identity,
        /// The caller's node.
        node: String,
    },
}

/// The caller behind verified claims: the pod that the token is bound to must exist, under the same uid, with the same
/// account, on the same node, and must not have ended.
pub fn caller(claims: &Claims, model: &Model) -> Result<Caller, CallerError> {
    let parts: Vec<&str> = claims.sub.split(':').collect();
    let ["system", "serviceaccount", ns, account] = parts[..] else {
        return Err(CallerError::NoServiceAccount(claims.sub.clone()));
    };
    if claims.bound.namespace != ns || claims.bound.serviceaccount.name != account {
        return Err(CallerError::AccountsDiffer);
    }
    let pod = &claims.bound.pod;
    let name = format!("{ns}/{}", pod.name);
    let Some(info) = model.pods.get(&name) else {
        return Err(CallerError::NoPod(name));
    };
    if pod.uid.is_empty() || info.uid != pod.uid {
        return Err(CallerError::Replaced(name));
    }
    if !info.live {
        return Err(CallerError::Ended(name));
    }
    if info.service_account != account {
        return Err(CallerError::OtherAccount(name));
    }
    if info.node != claims.bound.node.name || info.node.is_empty() {
        return Err(CallerError::OtherNode { pod: name, node: claims.bound.node.name.clone() });
    }
    Ok(Caller { namespace: ns.into(), account: account.into(), pod: pod.name.clone(), node: info.node.clone() })
}

/// Whose certificate the caller gets: its own, or, for the trusted node account, that of a pod which runs on the same
/// node now.
pub fn subject(
    caller: &Caller,
    impersonated: Option<&str>,
    model: &Model,
    trust_domain: &str,
    trusted: &[String],
) -> Result<Identity, SubjectError> {
    let Some(wanted) = impersonated else {
        return Identity::new(trust_domain, &caller.namespace, &caller.account).map_err(SubjectError::Own);
    };
    if !trusted.iter().any(|t| *t == format!("{}/{}", caller.namespace, caller.account)) {
        let (namespace, account) = (caller.namespace.clone(), caller.account.clone());
        return Err(SubjectError::NotTrusted { namespace, account });
    }
    let id: Identity = wanted.parse().map_err(|why| SubjectError::Invalid { wanted: wanted.into(), why })?;
    if id.trust_domain() != trust_domain {
        return Err(SubjectError::OtherTrustDomain { id, trust_domain: trust_domain.into() });
    }
    let runs = model.pods.values().any(|p| {
        p.live && p.node == caller.node && p.namespace == id.namespace() && p.service_account == id.service_account()
    });
    if runs { Ok(id) } else { Err(SubjectError::NotThere { id, node: caller.node.clone() }) }
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
    fn certificates_are_for_live_pods_of_the_callers_node() {
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
                            .ok()
                            .and_then(|c| subject(&c, Some(&wanted), &m, "cluster.local", &trusted).ok());
                        match r {
                            Some(id) => issued.push((p, uid, node, id.to_string())),
                            None => refused += 1,
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
