//! What the API server's refusals mean for who typed the command.

use crate::problem::Problem;
use kube::{Error, client::UpgradeConnectionError, core::Status};

/// A failed call as a problem: what was attempted, why it failed, the next step.
pub fn failed(what: impl Into<String>, error: &Error) -> Problem {
    let (why, next) = match error {
        Error::Api(status) => refused(status),
        Error::Service(_) | Error::HyperError(_) => unreachable(error),
        Error::UpgradeConnection(refusal) => no_stream(refusal),
        Error::Auth(_) => (
            format!("the kubeconfig's login failed ({})", last(error)),
            "log in again, or check the command (users[].user.exec) or token file that the kubeconfig names".into(),
        ),
        Error::ProxyProtocolUnsupported { proxy_url } | Error::ProxyProtocolDisabled { proxy_url, .. } => (
            format!("the proxy {proxy_url} cannot be used"),
            "set HTTPS_PROXY (or proxy-url in the kubeconfig) to an http:// or https:// address, or unset it".into(),
        ),
        Error::RustlsTls(_) => (
            last(error),
            "check the certificates in the kubeconfig: certificate-authority, client-certificate, client-key".into(),
        ),
        Error::SerdeError(_) => (
            format!("its answer is not Kubernetes' ({})", last(error)),
            "check the address in the kubeconfig: something else answers there".into(),
        ),
        other => (last(other), "check the Kubernetes configuration: `kubectl cluster-info`".into()),
    };
    Problem::new(what).because(why).next(next)
}

/// The API server has answered, and not with what was wanted.
fn refused(status: &Status) -> (String, String) {
    let message = status.message.clone();
    let next = match status.code {
        401 => {
            let why = "the API server does not accept these credentials (the token may have expired)";
            return (why.into(), "log in again, or pass another --context".into());
        }
        403 if message.contains("exceeded quota") => {
            "raise the namespace's ResourceQuota, or ask for less (--set values.pilot.resources...)".into()
        }
        403 => match attempted(&message) {
            Some((verb, resource)) => format!(
                "ask the cluster's administrator for this right (`kubectl auth can-i {verb} {resource}` tries it), or \
                 pass another --context"
            ),
            None => "ask the cluster's administrator, or pass another --context".into(),
        },
        404 => match message.strip_prefix("namespaces \"").and_then(|rest| rest.split_once("\" not found")) {
            Some((name, _)) => format!("create it: `kubectl create namespace {name}`, or name another with -n"),
            None => "check the name and the namespace (-n), and that the mesh is installed".into(),
        },
        409 => "somebody else has changed it meanwhile: run the same command again".into(),
        413 | 422 => "correct the object: the message names the field".into(),
        429 => "the API server is overloaded: run the same command again later".into(),
        _ => match webhook(&message) {
            Some(name) => format!(
                "the service behind webhook {name} must answer: look at its pods; if it is a leftover, delete its \
                 configuration (`kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations`)"
            ),
            None if status.code >= 500 => {
                "the API server is in trouble: `kubectl get --raw /readyz?verbose` says where; try again later".into()
            }
            None => "read the message: the API server has refused the request".into(),
        },
    };
    let why = if message.is_empty() { format!("the API server answers {}", status.code) } else { message };
    (why, next)
}

/// Verb and resource of `User "x" cannot list resource "pods" in API group ...`.
fn attempted(message: &str) -> Option<(&str, String)> {
    let (_, rest) = message.split_once(" cannot ")?;
    let (verb, rest) = rest.split_once(" resource \"")?;
    let (resource, rest) = rest.split_once('"')?;
    let group = rest.strip_prefix(" in API group \"").and_then(|rest| rest.split_once('"'));
    let group = group.map_or("", |(group, _)| group);
    let resource = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let place = rest.split_once("in the namespace \"").and_then(|(_, rest)| rest.split_once('"'));
    Some((verb, place.map_or(resource.clone(), |(namespace, _)| format!("{resource} -n {namespace}"))))
}

/// Name of `failed calling webhook "x": ...`.
fn webhook(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("failed calling webhook \"")?;
    rest.split_once('"').map(|(name, _)| name)
}

/// Nothing has answered.
fn unreachable(error: &Error) -> (String, String) {
    let (whole, inner) = (chain(error), last(error));
    if whole.contains("certificate") {
        let why = format!("the API server's certificate is not trusted ({inner})");
        let next = "certificate-authority-data of the kubeconfig is another cluster's, or something sits in between: \
                    fetch the kubeconfig anew";
        return (why, next.into());
    }
    let proxy = ["HTTPS_PROXY", "https_proxy"].into_iter().find_map(|name| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
        Some((name, value))
    });
    if let Some((name, value)) = proxy {
        let why = format!("the API server cannot be reached through the proxy {value} ({inner})");
        return (why, format!("check the proxy, or set NO_PROXY to the API server's host; {name} is set"));
    }
    if whole.contains("timed out") || whole.contains("deadline") {
        let why = "the API server does not answer in time".to_owned();
        return (why, "check the way there (VPN, firewall) and the load of the API server, then try again".into());
    }
    if whole.contains("lookup") || whole.contains("dns") {
        let why = format!("the API server's name cannot be resolved ({inner})");
        return (
            why,
            "check the address in the kubeconfig (clusters[].cluster.server) and the DNS, VPN included".into(),
        );
    }
    let why = format!("the API server cannot be reached ({inner})");
    (why, "check that the cluster is running and that the context is the right one: `kubectl cluster-info`".into())
}

/// A connection to a pod that the API server has not made.
fn no_stream(refusal: &UpgradeConnectionError) -> (String, String) {
    match refusal {
        UpgradeConnectionError::ProtocolSwitch(status) => match status.as_u16() {
            401 => ("the API server does not accept these credentials".into(), "log in again".into()),
            403 => (
                "this user may not open connections to pods (pods/portforward, pods/exec)".into(),
                "ask the cluster's administrator for the right: `kubectl auth can-i create pods/portforward`".into(),
            ),
            404 => ("the pod is not there any more".into(), "run the same command again".into()),
            code => (
                format!("the API server answers {code}"),
                "the pod's node may not answer: `kubectl get nodes` and `kubectl describe pod` say more".into(),
            ),
        },
        other => (
            last(other),
            "something between here and the API server does not pass WebSockets on: a proxy or a gateway".into(),
        ),
    }
}

/// The innermost cause: the outer ones only say that there was a request.
fn last(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// All causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error;
    while let Some(source) = at.source() {
        text = format!("{text}: {source}");
        at = source;
    }
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: u16, message: &str) -> String {
        let status = Status { code, message: message.into(), ..Status::default() };
        failed("cannot do it", &Error::Api(Box::new(status))).to_string()
    }

    #[test]
    fn a_right_that_is_missing_is_named_with_how_to_try_it() {
        let message = "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API group \
                       \"apps\" in the namespace \"istio-system\"";
        assert!(told(403, message).contains("`kubectl auth can-i list deployments.apps -n istio-system`"));
        let message =
            "nodes is forbidden: User \"jane\" cannot list resource \"nodes\" in API group \"\" at the cluster scope";
        assert!(told(403, message).contains("`kubectl auth can-i list nodes`"));
    }

    #[test]
    fn a_webhook_that_does_not_answer_is_named() {
        let message = "Internal error occurred: failed calling webhook \"x.istio.io\": connection refused";
        assert!(told(500, message).contains("webhook x.istio.io"));
        assert!(told(500, "etcdserver: request timed out").contains("/readyz"));
        assert!(told(503, "").contains("the API server answers 503"));
    }

    #[test]
    fn a_namespace_that_is_not_there_is_created() {
        assert!(told(404, "namespaces \"shop\" not found").contains("kubectl create namespace shop"));
        assert!(told(404, "pods \"a\" not found").contains("check the name"));
    }
}
