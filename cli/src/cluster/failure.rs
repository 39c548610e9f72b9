//! What the API server's refusals mean for who typed the command.

use crate::problem::Problem;
use kube::Error;

/// A failed call as a problem: what was attempted, why it failed, the next step.
pub fn failed(what: impl Into<String>, error: &Error) -> Problem {
    let (why, next) = match error {
        Error::Api(status) if status.code == 401 => {
            ("the API server does not accept these credentials".to_owned(), "log in again, or pass another --context")
        }
        Error::Api(status) if status.code == 403 => {
            (status.message.clone(), "ask the cluster's administrator for this right, or pass another --context")
        }
        Error::Api(status) if status.code == 404 => {
            (status.message.clone(), "check the name and the namespace (-n), and that the mesh is installed")
        }
        Error::Api(status) => (status.message.clone(), "read the message: the API server has refused the request"),
        Error::Service(_) | Error::HyperError(_) => (
            format!("the API server cannot be reached ({})", last(error)),
            "check that the cluster is running and that the context is the right one: `kubectl cluster-info`",
        ),
        Error::UpgradeConnection(_) => (
            last(error),
            "the right to create pods/portforward and pods/exec is needed: `kubectl auth can-i create pods/portforward`",
        ),
        other => (last(other), "check the Kubernetes configuration: `kubectl cluster-info`"),
    };
    Problem::new(what).because(why).next(next)
}

/// The innermost cause: the outer ones only say that there was a request.
fn last(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
