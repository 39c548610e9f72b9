//! What can go wrong with the cluster.

/// Why something was not done there.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server refuses, or cannot be reached.
    #[error("{what}: {}{}", reason(.error), hint(.error))]
    Request {
        /// What was attempted, on which object.
        what: String,
        /// What it says.
        error: Box<kube::Error>,
    },
    /// Something is not ready in time.
    #[error(
        "not ready after {seconds} s: {waiting}; look at the pods (kubectl -n {namespace} get pods), or wait longer with --readiness-timeout"
    )]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// Objects, and why each is not ready.
        waiting: String,
        /// Where they are.
        namespace: String,
    },
    /// Something does not go away.
    #[error(
        "still there after {seconds} s: {waiting}; finalizers or a node that does not answer keep it (kubectl describe says which)"
    )]
    NotGone {
        /// How long was waited.
        seconds: u64,
        /// What is still there.
        waiting: String,
    },
    /// Somebody else's object has the name of one that is to be installed.
    #[error(
        "{object} {whose}: remove it, or install under another --revision or namespace, or take it over with --force"
    )]
    Foreign {
        /// Which object.
        object: String,
        /// Whose it is, as a verb with its object.
        whose: String,
    },
    /// Somebody else's CRD cannot be used as it is.
    #[error(
        "{object} {whose}, and cannot be used as it is: it lacks {needed}; upgrade it there, or take it over with --force"
    )]
    Lacking {
        /// Which CRD.
        object: String,
        /// Whose it is, as a verb with its object.
        whose: String,
        /// Versions and fields.
        needed: String,
    },
    /// Helm has installed it.
    #[error(
        "{objects} belong to helm's release {release}: upgrade it by helm, or remove it (helm uninstall), or take them over with --force"
    )]
    Helm {
        /// Which objects, some of them.
        objects: String,
        /// As NAMESPACE/NAME.
        release: String,
    },
}

impl ClusterError {
    pub(super) fn request(what: impl Into<String>, error: kube::Error) -> Self {
        Self::Request { what: what.into(), error: Box::new(error) }
    }
}

fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => {
            let mut text = other.to_string();
            let mut source = std::error::Error::source(other);
            while let Some(inner) = source {
                text = format!("{text}: {inner}");
                source = inner.source();
            }
            text
        }
    }
}

fn hint(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 403 => "; installing needs the rights of cluster-admin",
        kube::Error::Api(status) if status.code == 401 => "; the kubeconfig's credentials are not accepted",
        kube::Error::Api(_) => "",
        _ => "; is the cluster running, and is it the kubeconfig's current context?",
    }
}
