//! Who calls, and what: all that is known of a connection before its first request.

use crate::{
    authz::access::{self, Access, Denial},
    cluster::key::ClusterKeyRef,
    downstream::client_cert,
    route::input::TcpRouteInput,
    snapshot::Snapshot,
    telemetry::{carried::Carried, flag::ResponseFlag, request_log::RequestLog, sink::Sink, stream_info::StreamInfo},
};
use http::{HeaderMap, HeaderValue, Method};
use karst_core::Identity;
use karst_proxy::{
    dry_run::DryRuns,
    state::{Service, Workload},
    trace::{self, SpanContext},
};
use karst_rt::{admission::Permit, clock};
use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Instant,
};
use tokio::sync::Notify;

/// Who calls, and what.
pub struct Downstream {
    /// None: it has shown no certificate of the mesh.
    pub peer: Option<Identity>,
    /// The client, as far as the connection tells: by the header of the PROXY protocol where one is asked for.
    pub from: SocketAddr,
    /// The caller's pod, if it is known.
    pub source: Option<Arc<Workload>>,
    pub target: DownstreamTarget,
    pub port: u16,
    /// The address that was called; decides about the family of endpoints.
    pub to: IpAddr,
    /// Of a connection to a service: the TLS hello that it begins with, if it does.
    pub hello: Option<ClientHello>,
    /// That of the client's connection, if it has come from outside.
    pub permit: Option<Rc<Permit>>,
    pub entered: Entered,
    pub written: Written,
}

/// What a connection from outside has shown on its way in.
#[derive(Default)]
pub struct Entered {
    /// Where its packets come from, where a header of the PROXY protocol names another client.
    pub direct: Option<IpAddr>,
    /// Its certificate, as `x-forwarded-client-cert` tells of it. None: it has shown none.
    pub certificate: Option<HeaderValue>,
    /// Of TLS that ends here: there is none, or anybody may have signed it.
    pub unproven: bool,
    /// Told when its listener asks for more than was shown: the connection is to end.
    pub outdated: Notify,
}

/// What logs and headers say of a caller: written for the first of a connection's requests, and used by all.
#[derive(Default)]
pub struct Written {
    address: OnceCell<HeaderValue>,
    principal: OnceCell<Option<Arc<str>>>,
    certificate: OnceCell<Option<HeaderValue>>,
    /// The trace that the caller's CONNECT names.
    trace: Option<Rc<SpanContext>>,
}

impl Written {
    /// Of a tunnel's stream.
    pub fn of_connect(headers: &HeaderMap) -> Self {
        Self { trace: trace::of_connect(headers).map(Rc::new), ..Self::default() }
    }
}

/// A hello of TLS that ends elsewhere.
pub struct ClientHello {
    pub name: Option<String>,
}

/// What is called.
#[derive(Clone)]
pub enum DownstreamTarget {
    Service(Arc<Service>),
    /// This gateway; by TLS, with the name in its hello (empty if there was none).
    Gateway(Option<Rc<str>>),
}

impl Downstream {
    /// The caller's namespace, as proven; empty: there is none.
    pub fn namespace(&self) -> &str {
        self.peer.as_ref().map_or("", Identity::namespace)
    }

    /// The caller's SPIFFE id, if it has shown one.
    fn principal(&self) -> Option<Arc<str>> {
        let write = || self.peer.as_ref().map(|p| p.to_string().into());
        self.written.principal.get_or_init(write).clone()
    }

    /// The client's address as a header's value.
    pub fn address(&self) -> &HeaderValue {
        self.written.address.get_or_init(|| {
            // An address has no character that a header could not have.
            HeaderValue::try_from(self.from.ip().to_string()).unwrap_or(HeaderValue::from_static("-"))
        })
    }

    /// Where its packets come from.
    pub fn direct(&self) -> IpAddr {
        self.entered.direct.unwrap_or(self.from.ip())
    }

    /// What was called: address and port.
    pub fn called(&self) -> SocketAddr {
        SocketAddr::new(self.to, self.port)
    }

    /// Has the caller shown a certificate that counts?
    pub fn has_certificate(&self) -> bool {
        self.peer.is_some() || (self.entered.certificate.is_some() && !self.entered.unproven)
    }

    /// What `x-forwarded-client-cert` says of the caller, by a proxy of this identity. None: it has shown no certificate.
    pub fn certificate(&self, own: &Identity) -> Option<HeaderValue> {
        let Some(peer) = &self.peer else { return self.entered.certificate.clone() };
        self.written.certificate.get_or_init(|| client_cert::of_identity(own, peer)).clone()
    }

    /// The caller, for logs.
    pub fn caller(&self) -> String {
        self.peer.as_ref().map_or_else(|| "-".into(), ToString::to_string)
    }

    /// The service that is called, if it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match &self.target {
            DownstreamTarget::Service(s) => Some(s),
            DownstreamTarget::Gateway(_) => None,
        }
    }

    /// Has it come to a gateway?
    pub fn is_at_gateway(&self) -> bool {
        matches!(self.target, DownstreamTarget::Gateway(_))
    }

    /// How it has come, as URIs call it.
    pub fn scheme(&self) -> &'static str {
        if matches!(self.target, DownstreamTarget::Gateway(Some(_))) { "https" } else { "http" }
    }

    /// The key of a destination. Where no port is named it is the one that was called; at a gateway, that of the service if
    /// it has only one. `own`: the namespace of this proxy.
    pub fn key<'a>(
        &'a self,
        own: &'a str,
        snapshot: &Snapshot,
        service: &'a Arc<str>,
        port: u16,
        subset: &'a Arc<str>,
    ) -> ClusterKeyRef<'a> {
        let only = || {
            let ports = &snapshot.mesh.services.get(service).filter(|_| self.is_at_gateway())?.ports;
            ports.first().filter(|_| ports.len() == 1).map(|(p, _)| *p)
        };
        let port = if port == 0 { only().unwrap_or(self.port) } else { port };
        // The caller's namespace; else that of this proxy, which Istio takes for the client.
        let backend = snapshot.backend_by_client(service);
        let client = backend.and_then(|b| [self.namespace(), own].into_iter().find(|n| b.has_client(n)));
        ClusterKeyRef { service, port, subset, client: client.unwrap_or_default(), udp: false }
    }

    /// The name in the hello that was read; empty if it has none. None: no hello was read.
    pub fn sni(&self) -> Option<&str> {
        match &self.target {
            DownstreamTarget::Gateway(name) => name.as_deref(),
            DownstreamTarget::Service(_) => self.hello.as_ref().map(|h| h.name.as_deref().unwrap_or_default()),
        }
    }

    /// What of a connection decides about its route.
    pub fn tcp(&self) -> TcpRouteInput<'_> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let sni = match &self.target {
            DownstreamTarget::Gateway(name) => name.as_deref(),
            DownstreamTarget::Service(_) => self.hello.as_ref().and_then(|h| h.name.as_deref()),
        };
        let labels = self.source.as_ref().map_or(&NONE, |x| &x.labels);
        TcpRouteInput { port: self.port, namespace: self.namespace(), labels, sni }
    }

    /// What policies look at. `client`: who that is, as trusted proxies tell.
    pub fn asked<'a>(&'a self, client: IpAddr, request: Option<access::Request<'a>>) -> access::AuthzContext<'a> {
        access::AuthzContext {
            peer: self.peer.as_ref(),
            source: self.direct(),
            remote: client,
            destination: self.to,
            port: self.port,
            sni: self.sni(),
            request,
        }
    }

    /// Why the call is not allowed, if it is not. Policies that only tell are told of in the log. `client`: who that is, as trusted
    /// proxies tell.
    pub fn authorize(
        &self,
        dry_runs: &DryRuns,
        policies: &Access,
        client: IpAddr,
        request: Option<access::Request<'_>>,
    ) -> Option<Denial> {
        let asked = self.asked(client, request);
        for (policy, told) in policies.audit(&asked) {
            let text = match told {
                access::AuditEvent::Matches => "matches",
                access::AuditEvent::DryRun { would, deny } => {
                    dry_runs.count(policy, deny, would);
                    would.text()
                }
            };
            let service = self.service().map_or("-", |s| &s.hostname);
            tracing::info!(target: "audit", policy, peer = self.caller(), service, port = self.port, "{text}");
        }
        policies.evaluate(&asked).denial()
    }

    /// What is to be told of a request or a connection of this caller's.
    pub fn record(&self, sink: &Rc<Sink>, snapshot: &Snapshot) -> Box<RequestLog> {
        let sni = match &self.target {
            DownstreamTarget::Gateway(name) => name.clone().filter(|n| !n.is_empty()),
            DownstreamTarget::Service(_) => self.hello.as_ref().and_then(|h| h.name.as_deref()).map(Rc::from),
        };
        let info = StreamInfo {
            started: Instant::now(),
            time: clock::wall(),
            method: Method::GET,
            path: None,
            authority: None,
            protocol: "-",
            is_grpc: false,
            user_agent: None,
            request_id: None,
            forwarded_for: None,
            from: self.from,
            to: self.called(),
            sni,
            source: self.source.clone(),
            principal: self.principal(),
            called: self.service().cloned(),
            at_gateway: self.is_at_gateway(),
            destination: None,
            workload: None,
            route: String::new(),
            answered: 0,
            grpc: None,
            flag: ResponseFlag::None,
            details: Cow::Borrowed(""),
            error: String::new(),
            upstream_ms: None,
            received: Rc::default(),
            request_head: 0,
            response_head: 0,
            headers: None,
            carried: None,
            trace: None,
        };
        RequestLog::new(info, sink.clone(), snapshot)
    }

    /// What is to be told of a connection that is carried as it is.
    pub fn connection(&self, sink: &Rc<Sink>, snapshot: &Snapshot) -> Box<RequestLog> {
        let mut record = self.record(sink, snapshot);
        record.method = no_method();
        record.trace.clone_from(&self.written.trace);
        record.carried = Some(Rc::new(Carried { received: record.received.clone(), ..Carried::default() }));
        record
    }
}

/// That of what is no request, as Envoy's log has it.
pub fn no_method() -> Method {
    Method::from_bytes(b"-").unwrap_or_default()
}
