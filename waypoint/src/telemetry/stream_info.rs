//! What is known of a request, or of a connection that is carried as it is: what logs, metrics and header values are made from.

use crate::telemetry::{carried::Carried, flag::ResponseFlag};
use http::{HeaderMap, HeaderValue, uri::PathAndQuery};
use karst_proxy::{
    state::{Service, Workload},
    trace::SpanContext,
};
use std::{
    borrow::Cow,
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// The protocol of a session of datagrams, as the log has it.
pub const DATAGRAMS: &str = "UDP";

/// The destination that was chosen. (Not its endpoints: a connection that lasts would keep them, of however old a state.)
pub struct Chosen {
    pub service: Arc<Service>,
    pub port: u16,
    pub subset: Arc<str>,
    /// Its endpoints are known to the control plane, not thought of by clients.
    pub is_told: bool,
}

/// What is known of a request or a connection.
pub struct StreamInfo {
    pub started: Instant,
    pub time: SystemTime,
    pub method: http::Method,
    /// With its query.
    pub path: Option<PathAndQuery>,
    /// In its canonical form; as it was sent, if it has none.
    pub authority: Option<HeaderValue>,
    pub protocol: &'static str,
    pub is_grpc: bool,
    pub user_agent: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    /// X-Forwarded-For, as the endpoint gets it.
    pub forwarded_for: Option<HeaderValue>,
    pub from: SocketAddr,
    /// What was called: an address of the service, or the gateway's own.
    pub to: SocketAddr,
    /// The name in the TLS hello that it began with.
    pub sni: Option<Rc<str>>,
    pub source: Option<Arc<Workload>>,
    /// The caller's SPIFFE id, if it has shown one.
    pub principal: Option<Arc<str>>,
    pub called: Option<Arc<Service>>,
    /// It has come to a gateway.
    pub at_gateway: bool,
    pub destination: Option<Rc<Chosen>>,
    pub workload: Option<(Arc<Workload>, SocketAddr)>,
    pub route: String,
    /// 0: there was no answer.
    pub answered: u16,
    pub grpc: Option<u16>,
    pub flag: ResponseFlag,
    /// Envoy's response code details, of a connection its termination details; without white space. Empty: there are none (yet).
    pub details: Cow<'static, str>,
    pub error: String,
    /// Milliseconds until the endpoint's answer began.
    pub upstream_ms: Option<u64>,
    /// Bytes of the request's body so far; of a connection, all that has come.
    pub received: Rc<Cell<u64>>,
    /// Sizes of both heads ([`crate::telemetry::wire`]), for metrics only: logs, traces and taps have bodies. 0: there is none.
    pub request_head: u64,
    pub response_head: u64,
    /// Of the request, where telemetry asks for them.
    pub headers: Option<HeaderMap>,
    /// Of a connection that is carried as it is.
    pub carried: Option<Rc<Carried>>,
    /// Of such a connection: the trace that its CONNECT names, for the log only.
    pub trace: Option<Rc<SpanContext>>,
}

impl StreamInfo {
    /// The path with its query; empty: there is none.
    pub fn path(&self) -> &str {
        self.path.as_ref().map_or("", PathAndQuery::as_str)
    }

    /// The caller's SPIFFE id; empty: it has shown none.
    pub fn principal(&self) -> &str {
        self.principal.as_deref().unwrap_or_default()
    }

    /// The service that it counts for: the one that was chosen, else the one that was called.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.destination.as_ref().map(|d| &d.service).or(self.called.as_ref())
    }

    /// What tells its endpoint from others in metrics. (Names that clients think of are no series: what they have called is.)
    pub fn endpoint(&self) -> Option<&Arc<str>> {
        let (workload, _) = self.workload.as_ref()?;
        match &self.destination {
            Some(chosen) if !chosen.is_told => Some(&chosen.service.key),
            Some(_) | None => Some(&workload.uid),
        }
    }

    /// What Envoy would call the cluster.
    pub fn cluster(&self) -> String {
        let (host, port, subset) = match (&self.destination, &self.called) {
            (Some(d), _) => (&d.service.hostname, d.port, &*d.subset),
            (None, Some(s)) => (&s.hostname, self.to.port(), ""),
            (None, None) => return "-".into(),
        };
        if self.at_gateway {
            return format!("outbound|{port}|{subset}|{host}");
        }
        let kind = if self.carried.is_some() { "tcp" } else { "http" };
        let slash = if subset.is_empty() { "" } else { "/" };
        format!("inbound-vip|{port}|{kind}{slash}{subset}|{host}")
    }
}
