//! What was looked at, and what for.

use crate::cluster::Resource;
use serde::Serialize;

pub(super) const CRD: Resource =
    Resource::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions");
pub(super) const DAEMON_SET: Resource = Resource::new("apps", "v1", "DaemonSet", "daemonsets");

/// What was looked at, and how it is.
#[derive(Debug, Serialize)]
pub(super) struct Looked {
    pub(super) what: String,
    pub(super) status: Status,
    pub(super) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Status {
    Ok,
    Warning,
    Error,
}

impl Looked {
    pub(super) fn new(what: impl Into<String>, status: Status, message: impl Into<String>) -> Self {
        Self { what: what.into(), status, message: message.into() }
    }
}
