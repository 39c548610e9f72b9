//! Kubernetes, as far as Karst's parts need it: watching objects, reviewing tokens, and the few writes.
//!
//! No type of Kubernetes' client goes past this crate: what is watched comes out as [`karst_manifest::State`], the same
//! that the directory source gives.

mod counts;
mod events;
pub mod lease;
mod source;
mod watched;
pub mod write;

pub use counts::{Happened, WatchCounts};
pub use events::{Events, Notice};
pub use source::{ObjectSource, Source};
pub use watched::{ChangedObject, ChangedObjects, Watch, Watched};
pub use write::{Ref, WebhookState};

use anyhow::Context;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};

/// A connection to the API server.
#[derive(Clone)]
pub struct Kube {
    pub(crate) client: kube::Client,
}

/// Who presented a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reviewed {
    /// The groups that it is in, as RBAC binds them.
    pub groups: Vec<String>,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub username: String,
    /// The pod that the token is bound to; empty for a token without one.
    pub pod: String,
    /// Its uid.
    pub pod_uid: String,
    /// Its node; empty before Kubernetes 1.32.
    pub node: String,
}

/// Why a token tells of nobody.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server cannot be asked.
    #[error("TokenReview: {0}")]
    Request(Box<dyn std::error::Error + Send + Sync>),
    /// The API server cannot be asked what a user may do.
    #[error("SubjectAccessReview: {0}")]
    Access(Box<dyn std::error::Error + Send + Sync>),
    /// It has given no answer.
    #[error("TokenReview: no answer")]
    NoAnswer,
    /// It does not accept the token.
    #[error("{0}")]
    Refused(String),
    /// The token is for others.
    #[error("the token is not for the audience {0}")]
    Audience(String),
    /// It accepts the token and does not say whose it is.
    #[error("TokenReview: no user")]
    NoUser,
    /// It says more than one thing of the pod.
    #[error("TokenReview: several values of {0}")]
    Ambiguous(&'static str),
}

impl Kube {
    /// Connects: in a cluster with the pod's account, else as kubectl does (KUBECONFIG).
    ///
    /// # Errors
    /// If there is neither, or the configuration cannot be read.
    pub async fn connect() -> anyhow::Result<Self> {
        let config = kube::Config::infer()
            .await
            .context("no Kubernetes API server is configured: run in a cluster, or set KUBECONFIG")?;
        Ok(Self { client: kube::Client::try_from(config).context("the Kubernetes configuration cannot be used")? })
    }

    /// Asks the API server whose token this is.
    ///
    /// # Errors
    /// Why the token is refused, or that the API server cannot be asked.
    pub async fn review(&self, token: &str, audience: &str) -> Result<Reviewed, ReviewError> {
        let ask = TokenReview {
            spec: TokenReviewSpec { token: Some(token.into()), audiences: Some(vec![audience.into()]) },
            ..Default::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &ask).await;
        let status = answer.map_err(|e| ReviewError::Request(e.into()))?.status.ok_or(ReviewError::NoAnswer)?;
        if status.authenticated != Some(true) {
            let why = status.error.unwrap_or_else(|| "the API server does not accept the token".into());
            return Err(ReviewError::Refused(why));
        }
        // An API server that knows nothing of audiences would leave them out; then the token proves nothing.
        if !status.audiences.unwrap_or_default().iter().any(|a| a == audience) {
            return Err(ReviewError::Audience(audience.into()));
        }
        let user = status.user.ok_or(ReviewError::NoUser)?;
        let mut extra = user.extra.unwrap_or_default();
        let mut single = |key: &'static str| -> Result<String, ReviewError> {
            match extra.remove(&format!("authentication.kubernetes.io/{key}")).unwrap_or_default().as_mut_slice() {
                [] => Ok(String::new()),
                [value] => Ok(std::mem::take(value)),
                _ => Err(ReviewError::Ambiguous(key)),
            }
        };
        Ok(Reviewed {
            groups: user.groups.unwrap_or_default(),
            username: user.username.unwrap_or_default(),
            pod: single("pod-name")?,
            pod_uid: single("pod-uid")?,
            node: single("node-name")?,
        })
    }

    /// May the user read this path (RBAC: `nonResourceURLs`, verb `get`)?
    ///
    /// # Errors
    /// That the API server cannot be asked.
    pub async fn may_get(&self, user: &Reviewed, path: &str) -> Result<bool, ReviewError> {
        let attributes = NonResourceAttributes { path: Some(path.into()), verb: Some("get".into()) };
        let ask = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.username.clone()),
                groups: Some(user.groups.clone()),
                non_resource_attributes: Some(attributes),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &ask).await.map_err(|e| ReviewError::Access(e.into()))?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}
