//! The API server as the one who says whose a token is (TokenReview), and whose pods its user may list (SubjectAccessReview). Asked by
//! the right of this process's own account.

use crate::{
    cluster::{Cluster, failed},
    page::judge::{Judge, JudgeError, Judged, User},
};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus},
};
use kube::{Api, api::PostParams};

/// A connection to it.
pub(super) struct ApiServer(Cluster);

impl ApiServer {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self(cluster)
    }
}

impl Judge for ApiServer {
    fn user<'a>(&'a self, token: &'a str) -> Judged<'a, User> {
        Box::pin(async move {
            // Without an audience: a token for the API server itself, as kubectl has one. Those of other servers are no logins.
            let spec = TokenReviewSpec { token: Some(token.into()), audiences: None };
            let api: Api<TokenReview> = Api::all(self.0.client());
            let ask = TokenReview { spec, ..TokenReview::default() };
            let answer = api.create(&PostParams::default(), &ask).await;
            owner(answer.map_err(|e| failed("cannot ask whose a token is", &e))?.status)
        })
    }

    fn may_list_pods<'a>(&'a self, user: &'a User, namespace: Option<&'a str>) -> Judged<'a, bool> {
        Box::pin(async move {
            let api: Api<SubjectAccessReview> = Api::all(self.0.client());
            let ask = SubjectAccessReview { spec: question(user, namespace), ..SubjectAccessReview::default() };
            let answer = api.create(&PostParams::default(), &ask).await;
            let answer = answer.map_err(|e| failed("cannot ask what a user may read", &e))?;
            Ok(answer.status.is_some_and(|status| is_allowed(&status)))
        })
    }
}

/// Whom the API server names.
fn owner(status: Option<TokenReviewStatus>) -> Result<User, JudgeError> {
    let status = status.filter(|status| status.authenticated == Some(true)).ok_or(JudgeError::Refused)?;
    let user = status.user.unwrap_or_default();
    let name = user.username.filter(|name| !name.is_empty()).ok_or(JudgeError::Refused)?;
    Ok(User {
        name,
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    })
}

/// All that is known of the user goes to the authorizers.
fn question(user: &User, namespace: Option<&str>) -> SubjectAccessReviewSpec {
    let attributes = ResourceAttributes {
        resource: Some("pods".into()),
        verb: Some("list".into()),
        // None is all of them.
        namespace: namespace.map(String::from),
        ..ResourceAttributes::default()
    };
    SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        uid: Some(user.uid.clone()),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    }
}

fn is_allowed(status: &SubjectAccessReviewStatus) -> bool {
    status.allowed && status.denied != Some(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use serde_json::{Value, json};

    fn told(status: Value) -> Result<User, JudgeError> {
        owner(Some(serde_json::from_value(status).unwrap()))
    }

    #[test]
    fn only_whom_the_api_server_names_is_somebody() {
        let viewer = json!({ "username": "system:serviceaccount:shop:viewer", "uid": "1", "groups": ["system:serviceaccounts"],
            "extra": { "authentication.kubernetes.io/credential-id": ["JTI=1"] } });
        let user = told(json!({ "authenticated": true, "user": viewer.clone() })).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:shop:viewer", "1"));
        assert!(user.groups == ["system:serviceaccounts"] && user.extra.len() == 1, "{user:?}");
        for status in [
            json!({}),
            json!({ "authenticated": false, "user": viewer.clone() }),
            json!({ "user": viewer }),
            json!({ "authenticated": true }),
            json!({ "authenticated": true, "user": { "groups": ["system:masters"] } }),
            json!({ "error": "[invalid bearer token, token audiences [\"istio-ca\"] is invalid for the target audiences]" }),
        ] {
            assert!(matches!(told(status.clone()), Err(JudgeError::Refused)), "{status}");
        }
        assert!(matches!(owner(None), Err(JudgeError::Refused)));
    }

    #[test]
    fn rights_are_asked_for_with_all_that_is_known_of_the_user() {
        let user = User {
            name: "jane".into(),
            uid: "7".into(),
            groups: vec!["dev".into()],
            extra: [("scopes".to_owned(), vec!["view".to_owned()])].into(),
        };
        let asked = serde_json::to_value(question(&user, Some("shop"))).unwrap();
        let wanted = json!({ "user": "jane", "uid": "7", "groups": ["dev"], "extra": { "scopes": ["view"] },
            "resourceAttributes": { "namespace": "shop", "resource": "pods", "verb": "list" } });
        assert_eq!(asked, wanted);
        assert!(question(&user, None).resource_attributes.unwrap().namespace.is_none(), "all namespaces");
        let status =
            |allowed, denied| SubjectAccessReviewStatus { allowed, denied, ..SubjectAccessReviewStatus::default() };
        assert!(is_allowed(&status(true, None)) && is_allowed(&status(true, Some(false))));
        assert!(!is_allowed(&status(false, None)) && !is_allowed(&status(true, Some(true))));
    }
}
