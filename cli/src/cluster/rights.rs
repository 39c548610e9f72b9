//! What this user may do, as the API server says it.

use super::{connect::Cluster, failure::failed};
use crate::problem::Problem;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, api::PostParams};

impl Cluster {
    /// May this user forward a port of the pods of a namespace (`create` on `pods/portforward`)? The API server asks itself the same
    /// when it is done; asked before, there is one clear answer for all pods.
    ///
    /// # Errors
    /// If the API server cannot be asked.
    pub async fn may_forward(&self, namespace: &str) -> Result<bool, Problem> {
        let attributes = ResourceAttributes {
            resource: Some("pods".into()),
            subresource: Some("portforward".into()),
            namespace: Some(namespace.into()),
            verb: Some("create".into()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let ask = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &ask).await;
        let answer = answer.map_err(|e| failed("cannot ask for this user's rights", &e))?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}
