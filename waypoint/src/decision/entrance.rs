//! What a gateway would do with a connection from anywhere (`downstream::edge`): the listener that takes it, by port and by the
//! name in the TLS hello. Requests go on in [`Waypoint::request`], bytes by the routes of the listener.

use super::{
    Branch, Call, Decision, End, Entering, Entrance, Judged, Listening, NO_HOST, Route, Waypoint, answer::Deciding,
};
use crate::{
    downstream::{
        context::{Downstream, DownstreamTarget},
        gateway::{Filter, Listener},
    },
    http::virtual_host::{Arrival, VirtualHost, WrongListener, at_gateway},
};
use http::StatusCode;
use karst_api::route::ListenerProtocol;
use serde_json::{Map, Value};

impl Waypoint {
    /// What it listens on, in order.
    pub fn listening(&self) -> Vec<Listening> {
        let ports = self.snapshot.gateway.iter().flat_map(|gateway| &gateway.ports);
        ports.flat_map(|(port, all)| all.listeners().iter().map(move |listener| outline(*port, listener))).collect()
    }

    /// Does anybody here verify tokens of this issuer, for what is called?
    pub fn verifies(&self, call: &Call, claims: &Map<String, Value>) -> bool {
        let access = match call.0.service() {
            Some(service) => self.snapshot.access_to(service),
            None => self.snapshot.gateway.as_ref().and_then(|gateway| gateway.access.as_ref()),
        };
        access.is_some_and(|access| access.tokens.assume(claims).is_some())
    }

    /// Who takes a connection. What a client's certificate must say is not looked at.
    pub fn enter(&self, entering: Entering<'_>) -> Entrance {
        let Some(port) = self.snapshot.gateway.as_ref().and_then(|gateway| gateway.ports.get(&entering.port)) else {
            return Entrance::Closed;
        };
        let call = |tls: Option<&str>| {
            let target = DownstreamTarget::Gateway(tls.map(Into::into));
            let (from, to, port) = (entering.from, entering.to, entering.port);
            let (entered, written) = Default::default();
            let (peer, source, hello, permit) = (None, None, None, None);
            Call(Downstream { peer, from, source, target, port, to, hello, permit, entered, written })
        };
        let name = entering.server_name.filter(|name| !name.is_empty());
        match port.protocol() {
            ListenerProtocol::Http => Entrance::Requests(call(None)),
            ListenerProtocol::Tcp => match port.find(None).next() {
                Some(listener) => self.carried(&call(None), listener, "*"),
                None => Entrance::NoListener,
            },
            ListenerProtocol::Https | ListenerProtocol::Tls => match port.find(name).next() {
                None => Entrance::NoListener,
                Some(listener) if listener.terminates_tls && listener.protocol != ListenerProtocol::Tls => {
                    Entrance::Requests(call(Some(name.unwrap_or_default())))
                }
                Some(listener) => self.carried(&call(name), listener, name.unwrap_or_default()),
            },
        }
    }

    /// What decides about what is called; `is_https`: a trusted proxy has ended TLS. Err: how a gateway answers where no listener or
    /// host fits, or where a filter refuses all.
    pub(super) fn routes_of(
        &self,
        downstream: &Downstream,
        host: &str,
        is_https: bool,
    ) -> Result<Deciding<'_>, Box<Decision>> {
        let answered = |status, why: &str| Box::new(Decision::answered(status, why));
        let tls = match &downstream.target {
            DownstreamTarget::Service(service) => {
                let routes = self.snapshot.routes.get(&service.key).map(|r| &**r);
                return Ok(Deciding { filters: &[], access: self.snapshot.access_to(service), routes });
            }
            DownstreamTarget::Gateway(tls) => tls.as_deref(),
        };
        let arrival = Arrival { port: downstream.port, tls, has_proof: !downstream.entered.unproven, is_https };
        match at_gateway(&self.snapshot, arrival, host) {
            // Before the routes, whether there are some or not.
            Ok(VirtualHost { filters, .. }) if filters.iter().any(|f| matches!(f, Filter::Refuse)) => {
                Err(answered(StatusCode::INTERNAL_SERVER_ERROR, "a filter of the listener cannot be executed"))
            }
            Ok(VirtualHost { filters, routes: routes @ Some(_) }) => {
                let access = self.snapshot.gateway.as_ref().and_then(|g| g.access.as_ref());
                Ok(Deciding { filters, access, routes })
            }
            Ok(VirtualHost { routes: None, .. }) => Err(answered(StatusCode::NOT_FOUND, NO_HOST)),
            Err(WrongListener::Scheme) => {
                Err(answered(StatusCode::MOVED_PERMANENTLY, "the listener sends requests to https"))
            }
            Err(WrongListener::Name) => Err(answered(
                StatusCode::MISDIRECTED_REQUEST,
                "the name in the TLS hello has chosen another listener than the host of the request",
            )),
            Err(WrongListener::Certificate) => Err(answered(
                StatusCode::MISDIRECTED_REQUEST,
                "the listener asks for a certificate, and the connection has been made without one",
            )),
        }
    }

    /// Bytes, by the routes of a listener.
    fn carried(&self, call: &Call, listener: &Listener, name: &str) -> Entrance {
        let downstream = &call.0;
        let access = self.judge(
            self.snapshot.gateway.as_ref().and_then(|g| g.access.as_ref()),
            downstream,
            downstream.from.ip(),
            None,
        );
        let origin = listener.origin.clone();
        if matches!(access, Judged::DeniedBy(..) | Judged::NotAllowed) {
            let end = End::Reset("RBAC: access denied".into());
            return Entrance::Bytes(Decision { access: Some(access), route: None, end }, origin);
        }
        let rule = listener.routes(&self.snapshot.hosts, name).and_then(|r| r.table("").find_tcp(&downstream.tcp()));
        let Some(rule) = rule else {
            let end = End::Reset("the listener has no route".into());
            return Entrance::Bytes(Decision { access: Some(access), route: None, end }, origin);
        };
        let route = Route { origin: rule.origin.clone(), ..Route::default() };
        let branches: Vec<Branch> = self.by_tcp_rule(downstream, rule);
        let end = match branches.is_empty() {
            true => End::Reset("the rule has no destination".into()),
            false => End::Sent(branches),
        };
        Entrance::Bytes(Decision { access: Some(access), route: Some(route), end }, origin)
    }
}

fn outline(port: u16, listener: &Listener) -> Listening {
    Listening {
        origin: listener.origin.clone(),
        port,
        called: listener.called(),
        has_tls: matches!(listener.protocol, ListenerProtocol::Https | ListenerProtocol::Tls),
        is_http: matches!(listener.protocol, ListenerProtocol::Http | ListenerProtocol::Https),
        hosts: listener.hosts().to_vec(),
    }
}
