//! Between whom a series is: the ends of an edge, from Istio's labels.

use crate::text::Sample;
use serde::Serialize;
use std::sync::Arc;

/// Longest value of a label that is kept, in bytes; names of Kubernetes have 253. A longer one is cut.
const MAX_VALUE: usize = 300;

/// What a node of the graph is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A Deployment, or another that pods belong to.
    #[default]
    Workload,
    /// A service of which no endpoint was reached or is known.
    Service,
    /// A gateway at the mesh's border.
    Gateway,
    /// A waypoint.
    Waypoint,
    /// Not in the mesh: an external host, or nobody that is known.
    Outside,
}

/// One end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct End {
    /// Workload; Service, or Outside, as far as the labels tell.
    pub(crate) kind: Kind,
    /// Empty outside.
    pub(crate) namespace: Arc<str>,
    /// Of the workload, or host of the service; empty: not known.
    pub(crate) name: Arc<str>,
}

/// Who has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reporter {
    /// The destination's proxy.
    Destination,
    /// A waypoint between both.
    Waypoint,
    /// The source's proxy.
    Source,
}

/// Two ends, and what was called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Between {
    pub(crate) source: End,
    pub(crate) destination: End,
    /// Host of the service; empty: none.
    pub(crate) service: Arc<str>,
}

/// All that the labels of one series say.
pub(crate) struct Labels {
    pub(crate) reporter: Reporter,
    pub(crate) between: Between,
    pub(crate) source_principal: Arc<str>,
    pub(crate) destination_principal: Arc<str>,
    pub(crate) protocol: Protocol,
    /// Of the answer; 0: there was none.
    pub(crate) code: u16,
    /// Of a gRPC call.
    pub(crate) grpc: Option<u16>,
    /// Why, of an answer that is not the application's; empty: none.
    pub(crate) flags: Arc<str>,
    /// None: it is not told (a source does not know whether its peer asks for it).
    pub(crate) mtls: Option<bool>,
    /// Upper bound of a bucket.
    pub(crate) le: Option<f64>,
}

/// What is spoken, in the order of how much of it is understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Protocol {
    #[default]
    Tcp,
    Http,
    Grpc,
}

/// `unknown`, `-` and nothing are the same: not known.
pub(crate) fn known(value: &str) -> Option<&str> {
    let cut = value.get(..value.floor_char_boundary(MAX_VALUE.min(value.len()))).unwrap_or_default();
    (!matches!(cut, "" | "unknown" | "-")).then_some(cut)
}

/// Has it only what names, hosts and identities have? The page shows commands with them, to be pasted into a shell, and a proxy may
/// be somebody else's by now.
pub(crate) fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:/*@".contains(&byte))
}

/// What is known, and goes into commands.
fn plain(value: &str) -> Option<&str> {
    known(value).filter(|value| is_plain(value))
}

/// Namespace and service account of `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
pub(crate) fn account(principal: &str) -> Option<(&str, &str)> {
    let (_, rest) = principal.strip_prefix("spiffe://")?.split_once("/ns/")?;
    let (namespace, account) = rest.split_once("/sa/")?;
    (!account.contains('/') && !namespace.contains('/')).then_some((namespace, account))
}

impl End {
    pub(crate) fn workload(namespace: &str, name: &str) -> Self {
        Self { kind: Kind::Workload, namespace: namespace.into(), name: name.into() }
    }

    pub(crate) fn outside() -> Self {
        Self { kind: Kind::Outside, namespace: "".into(), name: "".into() }
    }

    /// A service by its host. What is no service of Kubernetes is outside.
    pub(crate) fn service(host: &str, namespace: &str) -> Self {
        let mut parts = host.split('.').skip(1);
        match (parts.next(), parts.next()) {
            (Some(own), Some("svc")) => Self { kind: Kind::Service, namespace: own.into(), name: host.into() },
            _ if host.contains('.') => Self { kind: Kind::Outside, namespace: "".into(), name: host.into() },
            _ => Self { kind: Kind::Service, namespace: namespace.into(), name: host.into() },
        }
    }

    /// As the graph names it.
    pub(crate) fn id(&self) -> String {
        match self.kind {
            Kind::Outside if self.name.is_empty() => "outside".into(),
            Kind::Outside => format!("outside:{}", self.name),
            Kind::Service => format!("service:{}", self.name),
            Kind::Workload | Kind::Gateway | Kind::Waypoint => format!("{}/{}", self.namespace, self.name),
        }
    }
}

impl Labels {
    /// None: a reporter that nobody knows.
    pub(crate) fn read(sample: &Sample<'_>) -> Option<Self> {
        let mut raw = Raw::default();
        for (name, value) in sample.labels() {
            raw.take(name, &value);
        }
        let reporter = match raw.reporter.as_str() {
            "destination" => Reporter::Destination,
            "waypoint" => Reporter::Waypoint,
            "source" => Reporter::Source,
            _ => return None,
        };
        let source = raw.source.end().unwrap_or_else(End::outside);
        let service = plain(&raw.service);
        let of_service = || service.map(|host| End::service(host, known(&raw.service_namespace).unwrap_or_default()));
        let destination = raw.destination.end().or_else(of_service).unwrap_or_else(End::outside);
        let grpc = raw.grpc.parse::<u16>().ok();
        let protocol = match raw.protocol.as_str() {
            "grpc" => Protocol::Grpc,
            "http" | "http2" | "https" => Protocol::Http,
            _ => Protocol::Tcp,
        };
        Some(Self {
            reporter,
            between: Between { source, destination, service: service.unwrap_or_default().into() },
            source_principal: plain(&raw.source.principal).unwrap_or_default().into(),
            destination_principal: plain(&raw.destination.principal).unwrap_or_default().into(),
            protocol,
            code: raw.code.parse::<u16>().ok().filter(|code| *code < 1000).unwrap_or_default(),
            grpc,
            flags: known(&raw.flags).unwrap_or_default().into(),
            mtls: match raw.security.as_str() {
                "mutual_tls" => Some(true),
                "none" => Some(false),
                _ if reporter == Reporter::Destination => Some(false),
                _ => None,
            },
            le: raw.le.parse::<f64>().ok(),
        })
    }
}

#[derive(Default)]
struct Raw {
    reporter: String,
    source: Side,
    destination: Side,
    service: String,
    service_namespace: String,
    protocol: String,
    code: String,
    grpc: String,
    flags: String,
    security: String,
    le: String,
}

#[derive(Default)]
struct Side {
    workload: String,
    namespace: String,
    principal: String,
}

impl Side {
    /// By the workload; where that is not known by the identity, which has the service account's name.
    fn end(&self) -> Option<End> {
        match (known(&self.workload), account(&self.principal)) {
            (Some(name), _) => Some(End::workload(known(&self.namespace).unwrap_or_default(), name)),
            (None, Some((namespace, account))) => Some(End::workload(namespace, account)),
            (None, None) => None,
        }
    }
}

impl Raw {
    fn take(&mut self, name: &str, value: &str) {
        let place = match name {
            "reporter" => &mut self.reporter,
            "source_workload" => &mut self.source.workload,
            "source_workload_namespace" => &mut self.source.namespace,
            "source_principal" => &mut self.source.principal,
            "destination_workload" => &mut self.destination.workload,
            "destination_workload_namespace" => &mut self.destination.namespace,
            "destination_principal" => &mut self.destination.principal,
            "destination_service" => &mut self.service,
            "destination_service_namespace" => &mut self.service_namespace,
            "request_protocol" => &mut self.protocol,
            "response_code" => &mut self.code,
            "grpc_response_status" => &mut self.grpc,
            "response_flags" => &mut self.flags,
            "connection_security_policy" => &mut self.security,
            "le" => &mut self.le,
            _ => return,
        };
        value.clone_into(place);
    }
}
