//! What a waypoint would do with one call, without doing it: for `karst explain`. The decisions are those of the request path
//! (`http::handle`) and of byte streams (`downstream::tcp`), asked in their order; what must always hold is that
//! both say the same, which tests/differential/tests/truth.rs proves on random worlds, with requests in memory.
//!
//! What depends on other calls (rate limits, circuit breaking, ejected endpoints, delays) is named in a [`Setting`], not decided.

mod answer;
mod entrance;
mod noted;
mod settings;

pub use answer::{
    Branch, BranchEnd, Call, ConnectRefused, Decision, End, Endpoint, Entering, Entrance, Judged, Listening, Refused,
    Route, Setting, SettingKind, Spoken,
};
pub use noted::Noted;

use crate::{
    authz::{
        access::{Access, Request, Verdict},
        jwt::{Cache, Token},
    },
    cluster::{
        balance,
        endpoint_set::{Clusters, EndpointSet},
    },
    control::{GATEWAY, PutError, WAYPOINT},
    downstream::{
        context::{ClientHello, Downstream},
        tunnel,
    },
    http::{entry, forwarded},
    route::{
        destination::{Destination, status},
        input::RouteInput,
        rule::Rule,
        table::{RouteMatch, Routes},
        tcp::TcpRule,
    },
    snapshot::Snapshot,
};
use answer::Deciding;
use http::{StatusCode, request::Parts};
use karst_api::{GATEWAY_TYPE, workload::AppProtocol};
use karst_core::Identity;
use karst_policy::Path;
use karst_proxy::{
    state::{OwnPod, Workload},
    xds::ApplyResource,
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// A waypoint's pod, and what the control plane has told it.
pub struct Waypoint {
    namespace: String,
    pod: String,
    account: String,
    snapshot: Snapshot,
    clusters: Clusters,
    types: &'static [&'static str],
}

impl Waypoint {
    /// A waypoint's pod that has been told nothing yet.
    pub fn new(namespace: &str, pod: &str, account: &str) -> Self {
        Self::of([namespace, pod, account], false)
    }

    /// A gateway's pod that has been told nothing yet.
    pub fn gateway(namespace: &str, pod: &str, account: &str) -> Self {
        Self::of([namespace, pod, account], true)
    }

    fn of([namespace, pod, account]: [&str; 3], is_gateway: bool) -> Self {
        let types = if is_gateway { GATEWAY } else { WAYPOINT };
        let (snapshot, clusters) = (Snapshot::new(""), Clusters::new(is_gateway));
        Self { namespace: namespace.into(), pod: pod.into(), account: account.into(), snapshot, clusters, types }
    }

    /// Takes in a resource, if it is one that this pod would be sent.
    ///
    /// # Errors
    /// It is refused, as the pod would refuse it.
    pub fn put(&mut self, type_url: &str, name: &str, bytes: &[u8]) -> Result<(), Refused> {
        let own = || name == format!("{}/{}", self.namespace, self.pod);
        if !self.types.contains(&type_url) || (type_url == GATEWAY_TYPE && !own()) {
            return Ok(());
        }
        let refused = |e: PutError| Refused { type_url: type_url.into(), name: name.into(), text: e.to_string() };
        self.snapshot.put(type_url, name, bytes).map_err(refused)
    }

    /// The same of a running pod's page, which has no keys: TLS of its listeners is taken as good.
    ///
    /// # Errors
    /// As [`Waypoint::put`].
    pub fn put_outline(&mut self, type_url: &str, name: &str, bytes: &[u8]) -> Result<(), Refused> {
        if type_url != GATEWAY_TYPE {
            return self.put(type_url, name, bytes);
        }
        let refused = |e: PutError| Refused { type_url: type_url.into(), name: name.into(), text: e.to_string() };
        self.snapshot.put_outline(bytes).map_err(refused)
    }

    /// It knows this of the mesh.
    #[must_use]
    pub fn with_mesh(mut self, mesh: karst_proxy::state::Snapshot) -> Self {
        let uids: Vec<Arc<str>> = mesh.workloads.keys().cloned().collect();
        self.snapshot.mesh = mesh;
        uids.iter().for_each(|uid| self.snapshot.mesh.add_workload_service(uid));
        self
    }

    /// The pod itself, if the control plane has told of it.
    pub fn own(&self) -> Option<&Arc<Workload>> {
        let (namespace, name, account) = (&*self.namespace, &*self.pod, &*self.account);
        self.snapshot.mesh.own_pod(&OwnPod { namespace, name, account, uid: None })
    }

    /// May a CONNECT for this authority come here?
    ///
    /// # Errors
    /// With which status it is refused, and why.
    pub fn connect(&self, authority: &str, peer: Identity, from: SocketAddr) -> Result<Call, ConnectRefused> {
        let bad = ConnectRefused { status: 400, why: "the authority is not HOST:PORT" };
        let uri = http::Uri::builder().authority(authority).build().map_err(|_| bad)?;
        let request = http::Request::connect(uri).body(()).map_err(|_| bad)?;
        let called = tunnel::target(&self.snapshot, self.own().map(|own| &**own), &request, peer, from);
        called.map(Call).map_err(|(status, why)| ConnectRefused { status: status.as_u16(), why })
    }

    /// What is spoken at the port that is called.
    pub fn spoken(&self, call: &Call) -> Spoken {
        let service = call.0.service();
        let known = service.and_then(|s| s.protocols.iter().find(|(port, _)| *port == call.0.port)).map(|(_, a)| *a);
        match known.unwrap_or(AppProtocol::Unknown) {
            AppProtocol::Tcp | AppProtocol::Tls => Spoken::Bytes,
            AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc => Spoken::Http,
            AppProtocol::Unknown => Spoken::Undeclared,
        }
    }

    /// What becomes of a stream of bytes. `server_name`: that of the TLS hello that it begins with.
    pub fn bytes(&self, mut call: Call, server_name: Option<&str>) -> Decision {
        call.0.hello = server_name.map(|name| ClientHello { name: Some(name.into()) });
        let downstream = &call.0;
        let Some(service) = downstream.service() else {
            return Decision::answered(StatusCode::NOT_FOUND, "no service");
        };
        let access = self.judge(self.snapshot.access_to(service), downstream, downstream.from.ip(), None);
        if matches!(access, Judged::DeniedBy(..) | Judged::NotAllowed) {
            return Decision { access: Some(access), route: None, end: End::Reset("RBAC: access denied".into()) };
        }
        let input = downstream.tcp();
        let table = self.snapshot.routes.get(&service.key).map(|r| r.table(downstream.namespace()));
        let rule = table.and_then(|t| t.find_tcp(&input));
        let passed_over = table.map(|t| t.passed_over_tcp(&input)).unwrap_or_default();
        let route = Route { origin: rule.map(|r| r.origin.clone()).unwrap_or_default(), passed_over, settings: vec![] };
        let branches = match rule {
            None => vec![self.branch(downstream, &Destination::same(&service.key), 1, NO_DESTINATION)],
            Some(rule) => self.by_tcp_rule(downstream, rule),
        };
        let end = match branches.is_empty() {
            true => End::Reset("the rule has no destination".into()),
            false => End::Sent(branches),
        };
        Decision { access: Some(access), route: Some(route), end }
    }

    fn by_tcp_rule(&self, downstream: &Downstream, rule: &TcpRule) -> Vec<Branch> {
        let weighted = rule.destinations.iter().filter(|d| d.weight > 0);
        weighted
            .map(|d| {
                let mut to = Destination::same(&d.service.as_str().into());
                (to.port, to.subset) = (d.port as u16, d.subset.as_str().into());
                to.refuse = (d.refuse_status != 0).then_some(StatusCode::INTERNAL_SERVER_ERROR);
                self.branch(downstream, &to, u64::from(d.weight), NO_DESTINATION)
            })
            .collect()
    }

    /// What becomes of a request, whose head is as a client sends it. `claims`: those of a token that its issuer has signed.
    pub fn request(&self, call: &Call, mut head: Parts, claims: Option<&Map<String, Value>>) -> Decision {
        let downstream = &call.0;
        let topology = self.snapshot.topology();
        let client = forwarded::client(downstream, topology, &head.headers);
        let entry = match entry::canonical(&mut head) {
            Ok(entry) => entry,
            Err(why) => return Decision::answered(why.status(), why.details()),
        };
        let authority = entry.authority.as_str();
        let is_https = forwarded::is_https(topology, &head.headers);
        let found = match self.routes_of(downstream, entry.authority.host(), is_https) {
            Ok(found) => found,
            Err(answered) => return *answered,
        };
        let Deciding { filters, access: policies, routes } = found;
        if let Some(access) = policies {
            access.headers().drop_alike(&mut head.headers);
        }
        let asked =
            policies.map(|access| asked(access, (downstream, client.ip()), &head, authority)).unwrap_or_default();
        let token = match policies.map(|access| access.tokens.verify(&mut head, &mut Cache::default())) {
            None => None,
            Some(Ok(token)) => token,
            Some(Err(why)) => return Decision::answered(StatusCode::UNAUTHORIZED, why.to_string()),
        };
        let assumed = claims.and_then(|claims| policies?.tokens.assume(claims));
        let path = Path::new(head.uri.path());
        let request = Request {
            method: head.method.as_str(),
            authority,
            path: &path,
            headers: &head.headers,
            known: None,
            token: token.as_deref().or(assumed.as_ref()),
        };
        let access = self.judge(policies, downstream, client.ip(), Some(request));
        if matches!(access, Judged::DeniedBy(..) | Judged::NotAllowed) {
            let refused = Decision::answered(StatusCode::FORBIDDEN, "RBAC: access denied");
            return Decision { access: Some(access), ..refused };
        }
        let token = token.as_deref().or(assumed.as_ref());
        let (mut route, end) = self.routed(downstream, routes, (&head, authority), token);
        let first = settings::of_filters(filters).into_iter().chain(asked);
        route.settings = first.chain(std::mem::take(&mut route.settings)).collect();
        Decision { access: Some(access), route: Some(route), end }
    }

    fn routed(
        &self,
        downstream: &Downstream,
        routes: Option<&Routes>,
        (head, authority): (&Parts, &str),
        token: Option<&Token>,
    ) -> (Route, End) {
        let none = BTreeMap::new();
        let labels = downstream.source.as_ref().map_or(&none, |source| &source.labels);
        let input = RouteInput::new(
            head.uri.path(),
            head.uri.query(),
            head.method.as_str(),
            head.uri.scheme_str().unwrap_or(downstream.scheme()),
            authority,
            &head.headers,
            downstream.namespace(),
            labels,
        )
        .with_token(token);
        let table = routes.map(|r| r.table(downstream.namespace()));
        let passed_over = table.map(|t| t.passed_over(downstream.port, &input)).unwrap_or_default();
        let found = table.map_or(RouteMatch::Default, |t| t.find(downstream.port, &input));
        let whole = routes.and_then(|routes| routes.fault.as_ref()).map(|fault| &fault.ir);
        let rule = match found {
            RouteMatch::Rule(rule) => rule,
            RouteMatch::Nothing => {
                let route = Route { passed_over, settings: settings::of_routes(routes), ..Route::default() };
                return (route, End::Answered(404, "no rule matches".into()));
            }
            RouteMatch::Default => {
                let end = match (aborted(whole), downstream.service()) {
                    (Some(end), _) => end,
                    (None, Some(service)) => {
                        End::Sent(vec![self.branch(downstream, &Destination::same(&service.key), 1, NO_CLUSTER)])
                    }
                    (None, None) => End::Answered(404, NO_HOST.into()),
                };
                let settings = settings::of_routes(routes);
                return (Route { passed_over, settings, ..Route::default() }, end);
            }
        };
        let mut settings = settings::of_routes(routes);
        settings.extend(settings::of_rule(rule));
        let route = Route { origin: rule.origin.clone(), passed_over, settings };
        let fault = rule.fault.as_ref().map(|fault| &fault.ir).or(whole);
        (route, self.by_rule(downstream, rule, fault))
    }

    fn by_rule(&self, downstream: &Downstream, rule: &Rule, fault: Option<&karst_api::route::Fault>) -> End {
        let code = |n: u32, default: StatusCode| status(n).unwrap_or(default).as_u16();
        if let Some(redirect) = &rule.redirect {
            let number = if redirect.code == 0 { 301 } else { redirect.code };
            return End::Answered(code(number, StatusCode::MOVED_PERMANENTLY), "the rule redirects".into());
        }
        if let Some(direct) = &rule.response {
            let answer = code(direct.status, StatusCode::INTERNAL_SERVER_ERROR);
            return End::Answered(answer, "the rule answers itself".into());
        }
        if let Some(end) = aborted(fault) {
            return end;
        }
        if rule.total_weight == 0 {
            return End::Answered(500, "the rule has no destination".into());
        }
        let weighted = rule.destinations.iter().filter(|d| d.weight > 0);
        End::Sent(weighted.map(|d| self.branch(downstream, d, u64::from(d.weight), NO_CLUSTER)).collect())
    }

    fn branch(&self, downstream: &Downstream, to: &Destination, weight: u64, missing: &'static str) -> Branch {
        let key = downstream.key(&self.namespace, &self.snapshot, &to.service, to.port, &to.subset).to_key();
        let set = self.own().and_then(|own| self.clusters.set(&self.snapshot, own, &key, downstream.to));
        let settings = set.as_ref().map(|set| settings::of_policy(&set.policy)).unwrap_or_default();
        let ended = |end| {
            let (service, port, subset) = (key.service.clone(), key.port, key.subset.clone());
            let via_waypoint = set.as_ref().and_then(|set| set.via_waypoint.clone());
            Branch { weight, service, port, subset, settings, via_waypoint, end }
        };
        if let Some(refused) = to.refuse {
            return ended(BranchEnd::Status(refused.as_u16(), "the reference of the rule cannot be used"));
        }
        let Some(set) = &set else { return ended(BranchEnd::Status(503, missing)) };
        if set.dynamic_endpoint.is_some() {
            return ended(BranchEnd::Called);
        }
        // As the balancer, which has seen nothing of these endpoints yet.
        match balance::choose(set, None, &[], |_| 0) {
            None => ended(BranchEnd::Status(503, NO_HEALTHY)),
            Some(_) => ended(BranchEnd::Endpoints(eligible(set))),
        }
    }

    fn judge(
        &self,
        access: Option<&Access>,
        downstream: &Downstream,
        client: IpAddr,
        request: Option<Request<'_>>,
    ) -> Judged {
        let Some(access) = access else { return Judged::NoPolicies };
        let context = downstream.asked(client, request);
        match access.evaluate(&context) {
            Verdict::Allow => Judged::Allowed(access.allowing(&context).map(|(policy, rule)| (policy.into(), rule))),
            Verdict::DeniedBy(policy, rule) => Judged::DeniedBy(policy.into(), rule),
            Verdict::NotAllowed => Judged::NotAllowed,
        }
    }
}

/// Who is asked about a request before anything else is decided. What they say is not known.
fn asked(access: &Access, (downstream, client): (&Downstream, IpAddr), head: &Parts, authority: &str) -> Vec<Setting> {
    let path = Path::new(head.uri.path());
    let (method, headers) = (head.method.as_str(), &head.headers);
    let request = Request { method, authority, path: &path, headers, known: None, token: None };
    let context = downstream.asked(client, Some(request));
    let all = access.providers().iter().filter_map(|provider| access.asks(provider, &context));
    all.map(|asks| settings::of_provider(&asks)).collect()
}

/// No listener of the gateway has a virtual host for the name.
pub const NO_HOST: &str = "no listener of the gateway has routes for this host";
/// The answer is a fault that is injected into all requests.
pub const FAULT: &str = "a fault is injected";
/// Nothing that bytes could be sent to.
const NO_DESTINATION: &str = "no such destination";
/// There is no such service, port or subset.
const NO_CLUSTER: &str = "there is no such service, port or subset";
/// All endpoints are missing or unhealthy.
pub const NO_HEALTHY: &str = "no healthy endpoint";

/// What a fault for every request makes of this one.
fn aborted(fault: Option<&karst_api::route::Fault>) -> Option<End> {
    let fault = fault.filter(|f| f.abort_per_million >= 1_000_000)?;
    let answer = match fault.abort_grpc {
        Some(_) => 200,
        None => status(fault.abort_status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).as_u16(),
    };
    Some(End::Answered(answer, FAULT.into()))
}

/// The endpoints of the best place that has any.
fn eligible(set: &EndpointSet) -> Vec<Endpoint> {
    let best = set.groups.iter().filter(|g| !g.members.is_empty() && g.weight > 0).map(|g| g.priority).min();
    let groups = set.groups.iter().filter(|g| Some(g.priority) == best && g.weight > 0);
    let members = groups.flat_map(|g| &g.members).filter_map(|i| set.members.get(*i as usize));
    members.map(|m| Endpoint { workload: m.workload.clone(), address: m.address }).collect()
}
