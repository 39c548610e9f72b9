//! Who may read debug pages: over HTTP whoever is on loopback (a port-forward, a program in the pod) or whom RBAC allows the
//! path; over xDS the accounts of the root namespace, as istioctl's token is one.

use crate::token_review::{Account, TokenError, Tokens};
use karst_api::TOKEN_AUDIENCE;
use karst_rt::admin::{self, AdminRequest, Answer};

/// Why somebody may not read.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It has shown nothing.
    #[error("no bearer token")]
    NoToken,
    /// What it has shown is not valid.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It is known, and not entitled.
    #[error("account {namespace}/{name} is not in the root namespace {root}")]
    OtherNamespace {
        /// The account's namespace.
        namespace: String,
        /// The account.
        name: String,
        /// Whose accounts may read.
        root: String,
    },
    /// RBAC does not allow it.
    #[error("RBAC does not allow get on the nonResourceURL {0}")]
    Forbidden(String),
}

/// May the bearer read debug types over xDS?
///
/// # Errors
/// Why not, for our log: the caller is told nothing that it could use.
pub async fn over_xds(tokens: &Tokens, token: Option<String>, root_namespace: &str) -> Result<Account, AccessError> {
    let token = token.ok_or(AccessError::NoToken)?;
    in_root(tokens.account(&token, TOKEN_AUDIENCE).await?, root_namespace)
}

fn in_root(account: Account, root_namespace: &str) -> Result<Account, AccessError> {
    if account.namespace == root_namespace {
        return Ok(account);
    }
    let Account { namespace, name } = account;
    Err(AccessError::OtherNamespace { namespace, name, root: root_namespace.into() })
}

/// May the page be read over HTTP?
///
/// # Errors
/// Why not, for our log.
pub async fn over_http(tokens: &Tokens, asked: &AdminRequest, root_namespace: &str) -> Result<(), AccessError> {
    if asked.from.is_loopback() {
        return Ok(());
    }
    let token = asked.bearer.as_deref().ok_or(AccessError::NoToken)?;
    match tokens.may_get(token, TOKEN_AUDIENCE, &asked.path, root_namespace).await? {
        true => Ok(()),
        false => Err(AccessError::Forbidden(asked.path.clone())),
    }
}

/// What the refused is told.
pub fn refusal(why: &AccessError) -> Answer {
    match why {
        AccessError::NoToken | AccessError::Token(_) => admin::text(
            401,
            "debug pages are for loopback (kubectl port-forward), or for a bearer token of the audience istio-ca whose user may get this path\n",
        ),
        AccessError::OtherNamespace { .. } | AccessError::Forbidden(_) => admin::text(
            403,
            "this user may not get the page; allow it by a ClusterRole with nonResourceURLs and the verb get\n",
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::local_tokens::{Bound, Claims, Keys, Named};
    use bytes::Bytes;
    use std::time::SystemTime;

    fn asked(from: &str, bearer: Option<&str>) -> AdminRequest {
        AdminRequest {
            from: from.parse().unwrap(),
            method: "GET".into(),
            path: "/debug/syncz".into(),
            query: String::new(),
            bearer: bearer.map(String::from),
            body: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn only_loopback_reads_without_a_token() {
        let dir = std::env::temp_dir().join(format!("karst-debug-access-{}", std::process::id()));
        let tokens = Tokens::Local(Keys::open(&dir).unwrap());
        for from in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(over_http(&tokens, &asked(from, None), "istio-system").await.is_ok(), "{from}");
        }
        for (from, bearer) in [("10.0.0.1", None), ("fd00::1", None), ("10.0.0.1", Some("forged"))] {
            let why = over_http(&tokens, &asked(from, bearer), "istio-system").await.unwrap_err();
            assert_eq!(refusal(&why).status(), 401, "{from}: {why}");
        }
        assert!(over_xds(&tokens, None, "istio-system").await.is_err());
        assert!(over_xds(&tokens, Some("forged".into()), "istio-system").await.is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    /// istioctl's token: valid, of the root namespace, and bound to no pod.
    #[tokio::test]
    async fn a_token_that_is_bound_to_no_pod_reads_debug_types_only() {
        let dir = std::env::temp_dir().join(format!("karst-debug-unbound-{}", std::process::id()));
        let keys = Keys::open(&dir).unwrap();
        let now = karst_rt::clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = |namespace: &str| {
            let named = |name: &str| Named { name: name.into(), uid: String::new() };
            let (pod, node, serviceaccount) = (named(""), named(""), named("default"));
            Claims {
                iss: "karst-directory-mode".into(),
                sub: format!("system:serviceaccount:{namespace}:default"),
                aud: vec![TOKEN_AUDIENCE.into()],
                exp: now + 60,
                nbf: now,
                bound: Bound { namespace: namespace.into(), serviceaccount, pod, node },
            }
        };
        let token = |namespace: &str| keys.sign(&claims(namespace)).unwrap();
        let tokens = Tokens::Local(Keys::open(&dir).unwrap());
        let (own, other) = (token("istio-system"), token("shop"));
        let account = over_xds(&tokens, Some(own.clone()), "istio-system").await.unwrap();
        assert_eq!(account, Account { namespace: "istio-system".into(), name: "default".into() });
        assert!(over_http(&tokens, &asked("10.0.0.1", Some(&own)), "istio-system").await.is_ok());
        let why = over_xds(&tokens, Some(other.clone()), "istio-system").await.unwrap_err();
        assert!(matches!(why, AccessError::OtherNamespace { .. }), "{why}");
        let why = over_http(&tokens, &asked("10.0.0.1", Some(&other)), "istio-system").await.unwrap_err();
        assert_eq!(refusal(&why).status(), 403);
        // Resources and certificates ask who the caller is, and it is nobody.
        let model = crate::model::Model::default();
        let claims = tokens.verify(&own, TOKEN_AUDIENCE, &model).await.unwrap();
        assert!(crate::authn::caller(&claims, &model).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn other_namespaces_accounts_read_nothing() {
        let account = |namespace: &str| Account { namespace: namespace.into(), name: "default".into() };
        assert!(in_root(account("istio-system"), "istio-system").is_ok());
        let why = in_root(account("shop"), "istio-system").unwrap_err();
        assert_eq!(why.to_string(), "account shop/default is not in the root namespace istio-system");
        assert_eq!(refusal(&why).status(), 403);
    }
}
