//! A destination as this process sees it: its endpoints with their load and health, and its limits. Shared by all workers;
//! only counters are touched for a request.

use crate::{
    clock,
    cluster::{
        endpoint::{EndpointStats, LbEndpoint},
        key::ClusterKey,
        locality::{self, LocalityGroup},
        retry_rate::RetryRate,
        ring, tls,
    },
    session::rules::SessionRules,
    snapshot::Snapshot,
    telemetry::stream_info::Chosen,
};
use http::HeaderValue;
use karst_api::route as ir;
use karst_proxy::{
    endpoints::{self, candidates_of, udp_candidates, waypoints},
    state::{Announced, Mode, ObjectKind, Service, Workload},
};
use std::{
    cell::OnceCell,
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// An endpoint that is ejected again and again stays out at most this long (Envoy: 300 s).
const MAX_EJECTION: u64 = 300_000;
/// So many destinations are kept before those that are gone are looked for.
const SWEEP: usize = 256;

/// Of services without rules, which most are: each worker has a set for each of those that are called.
static NO_RULES: LazyLock<Arc<ir::Policy>> = LazyLock::new(Arc::default);

/// All destinations of the process.
#[derive(Default)]
pub struct Clusters {
    /// Do waypoints of services stand behind us, for those who ask for it?
    gateway: bool,
    all: Mutex<Known>,
}

/// What is known of them.
#[derive(Default)]
struct Known {
    clusters: HashMap<ClusterKey, Arc<Cluster>>,
    /// By service: what is for all its ports and subsets together.
    retry_rates: HashMap<Arc<str>, Arc<RetryRate>>,
}

/// What all workers share of a destination.
pub struct Cluster {
    pub requests: AtomicU32,
    pub pending: AtomicU32,
    pub retries: AtomicU32,
    pub round_robin: AtomicUsize,
    /// Until when one of the endpoints may be overloaded: before, nobody looks.
    overloaded: AtomicU64,
    /// Requests on HTTP/1.1 connections at a time, if there is a limit.
    connections: Mutex<(u32, Arc<Semaphore>)>,
    endpoints: Mutex<HashMap<Arc<str>, Arc<EndpointStats>>>,
}

/// A destination whose endpoints are not told but follow from what is called (ServiceEntries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynamicEndpoint {
    /// The host of the request, or the name in the TLS hello: resolution DYNAMIC_DNS.
    Name,
    /// The address that was called: resolution NONE.
    Address,
}

/// The endpoints that may be used, as one snapshot has them.
pub struct EndpointSet {
    pub key: ClusterKey,
    pub service: Arc<Service>,
    /// What is told of it, with a count of this worker's: see [`super::key`].
    pub chosen: Rc<Chosen>,
    pub cluster: Arc<Cluster>,
    pub members: Vec<LbEndpoint>,
    /// How many of them, from the first on, are for everybody: see [`EndpointSet::live`].
    live: usize,
    pub policy: Arc<ir::Policy>,
    /// What bounds retries, if the policy has no budget of its own; all destinations of the service have the same one.
    pub retry_rate: Option<Arc<RetryRate>>,
    /// The members follow from what is called, see [`EndpointSet::with_endpoint`]; until then there are none.
    pub dynamic_endpoint: Option<DynamicEndpoint>,
    /// The members are pods of the service's waypoint, which is asked for this authority.
    pub via_waypoint: Option<String>,
    /// The name of whom the endpoints stand for.
    pub host: Arc<str>,
    /// Near ones first.
    pub groups: Vec<LocalityGroup>,
    /// Points of a hash ring, or a Maglev table: member by place.
    pub ring: Vec<(u64, u32)>,
    /// What tells connections to the same endpoint apart: all that decides about TLS, and whom a waypoint is asked for.
    pub pool_partition: Option<Arc<[u8]>>,
    /// What tunnels to the endpoints say of us.
    pub baggage: Option<HeaderValue>,
    /// TLS to the endpoints, made when it is first wanted.
    pub tls: OnceLock<Result<tls::Config, Arc<tls::RulesError>>>,
    /// How clients come back to the same endpoint, if they do and no rule says otherwise.
    pub session: Option<Arc<SessionRules>>,
    /// Members by what they are called in sessions, made when it is first wanted.
    session_ids: OnceCell<HashMap<u64, usize>>,
}

impl Clusters {
    /// Of a gateway, or of a waypoint.
    pub fn new(gateway: bool) -> Self {
        Self { gateway, all: Mutex::default() }
    }

    fn get(&self, s: &Snapshot, key: &ClusterKey) -> Arc<Cluster> {
        let all = &mut self.all.lock().unwrap_or_else(PoisonError::into_inner).clusters;
        if all.len() >= SWEEP.max(2 * s.mesh.services.len()) && !all.contains_key(key) {
            // Those of services and subsets that are gone.
            all.retain(|k, c| Arc::strong_count(c) > 1 || s.mesh.services.contains_key(&k.service));
        }
        all.entry(key.clone())
            .or_insert_with(|| {
                Arc::new(Cluster {
                    requests: AtomicU32::new(0),
                    pending: AtomicU32::new(0),
                    retries: AtomicU32::new(0),
                    round_robin: AtomicUsize::new(0),
                    overloaded: AtomicU64::new(0),
                    connections: Mutex::new((0, Arc::new(Semaphore::new(0)))),
                    endpoints: Mutex::default(),
                })
            })
            .clone()
    }

    /// What bounds a service's retries by these rules. Where they are other ones than before, what was counted is forgotten.
    fn retry_rate(&self, s: &Snapshot, service: &Arc<str>, rules: &ir::RetryRate) -> Arc<RetryRate> {
        let all = &mut self.all.lock().unwrap_or_else(PoisonError::into_inner).retry_rates;
        if let Some(known) = all.get(service).filter(|known| known.is_by(rules)) {
            return known.clone();
        }
        if all.len() >= SWEEP.max(2 * s.mesh.services.len()) {
            // Those of services that are gone, or have none any more.
            all.retain(|_, rate| Arc::strong_count(rate) > 1);
        }
        let new = Arc::new(RetryRate::new(rules));
        all.insert(service.clone(), new.clone());
        new
    }

    /// The endpoints of a destination; None: there is no such service, port or subset. `preferred_family`: the address family that is preferred.
    pub fn set(
        &self,
        snapshot: &Snapshot,
        own: &Workload,
        key: &ClusterKey,
        preferred_family: IpAddr,
    ) -> Option<EndpointSet> {
        let service = snapshot.mesh.services.get(&key.service)?.clone();
        if !has_port(&service, key) {
            return None;
        }
        let backend = snapshot.backends.get(&key.service);
        // Waypoints take no datagrams.
        let asks_waypoint = self.gateway && !key.udp && service.ingress_waypoint && !service.waypoints.is_empty();
        let via_waypoint = asks_waypoint.then(|| asked_as(&service, key.port, preferred_family));
        let by_name = backend.is_some_and(|b| b.by_name) && via_waypoint.is_none() && !key.udp;
        let rules = backend.filter(|_| via_waypoint.is_none()).map(|b| b.rules(&key.client));
        let subset = match &*key.subset {
            "" => None,
            // The waypoint decides about subsets.
            _ if via_waypoint.is_some() => None,
            name => Some(rules?.subsets.iter().find(|x| x.name == name)?),
        };
        let port = u32::from(key.port);
        let policy = match subset {
            Some(x) => x.ports.get(&port).or(x.policy.as_ref()),
            None => rules.and_then(|r| r.ports.get(&port).or(r.policy)),
        };
        let policy = policy.map_or_else(|| NO_RULES.clone(), |policy| Arc::new(policy.clone()));
        // It bounds what we send again ourselves, so it holds towards the service's waypoint, too.
        let rate = backend.and_then(|b| b.retry_rate.as_ref()).filter(|_| policy.retries.is_none() && !key.udp);
        let retry_rate = rate.map(|rules| self.retry_rate(snapshot, &key.service, rules));
        let cluster = self.get(snapshot, key);
        let to = SocketAddr::new(preferred_family, key.port);
        let found = match (asks_waypoint, key.udp) {
            (true, _) => pods_of_waypoints(snapshot, own, &service, preferred_family),
            (false, true) => udp_endpoints(snapshot, own, &service, to),
            (false, false) => endpoints(snapshot, own, &service, to, subset),
        };
        let mut members = cluster.members(found);
        let live = members.len();
        let ring = ring::ring(&policy, &members);
        let locality = policy.balance.as_ref().and_then(|b| b.locality.as_ref());
        let groups = locality::groups(locality, own, &members);
        for (number, group) in groups.iter().enumerate() {
            for member in &group.members {
                members[*member as usize].group = Some(number);
            }
        }
        if !asks_waypoint && snapshot.has_sessions() {
            // Nobody else is sent there: they are in no group.
            let known: HashSet<_> = members.iter().map(|m| m.workload.uid.clone()).collect();
            let mut ending = ending(snapshot, own, &service, to, subset);
            ending.retain(|(workload, _)| !known.contains(&workload.uid));
            members.extend(cluster.members(ending));
        }
        let dynamic_endpoint = match (by_name, service.mode) {
            (true, _) => Some(DynamicEndpoint::Name),
            (false, Mode::Passthrough) if !key.udp => Some(DynamicEndpoint::Address),
            (false, _) => None,
        };
        let host = service.hostname.clone();
        let asked = via_waypoint.as_ref().map(|t| t.as_bytes().into());
        let pool_partition = asked.or_else(|| policy.tls.as_ref().map(|t| tls::rules(snapshot, t, &host)));
        let tls = OnceLock::new();
        let key = key.clone();
        let baggage = own.baggage().cloned();
        let chosen = Rc::new(Chosen::new(&key, &service, dynamic_endpoint));
        let session = SessionRules::of_backend(backend.map(|b| &**b));
        Some(EndpointSet {
            key,
            service,
            chosen,
            cluster,
            members,
            live,
            policy,
            retry_rate,
            dynamic_endpoint,
            via_waypoint,
            host,
            groups,
            ring,
            pool_partition,
            baggage,
            tls,
            session,
            session_ids: OnceCell::new(),
        })
    }
}

/// A port that a service does not have leads nowhere, whatever listens at that number.
fn has_port(service: &Service, key: &ClusterKey) -> bool {
    match key.udp {
        true => service.udp_ports.contains(&key.port),
        false => service.is_workload_service() || service.ports.iter().any(|(p, _)| *p == key.port),
    }
}

/// Whom a service's waypoint is asked for, as ztunnels ask: by the address that is called.
fn asked_as(service: &Service, port: u16, preferred_family: IpAddr) -> String {
    let vip = service.vips.iter().find(|v| v.is_ipv4() == preferred_family.is_ipv4()).or(service.vips.first());
    vip.map_or_else(|| format!("{}:{port}", service.hostname), |v| SocketAddr::new(*v, port).to_string())
}

/// The endpoints of a service that may be used. Of a subset: those that are about to end serve where it has no others,
/// whatever others the service has.
fn endpoints(
    snapshot: &Snapshot,
    own: &Workload,
    service: &Service,
    to: SocketAddr,
    subset: Option<&ir::Subset>,
) -> Vec<(Arc<Workload>, SocketAddr)> {
    let all = candidates_of(&snapshot.mesh, own, service, to, &[], |w| fits(w, subset));
    all.into_iter().map(|(workload, address, _)| (workload, address)).collect()
}

/// The pods of a service's waypoints.
fn pods_of_waypoints(
    snapshot: &Snapshot,
    own: &Workload,
    service: &Service,
    preferred_family: IpAddr,
) -> Vec<(Arc<Workload>, SocketAddr)> {
    let all = service.waypoints.iter();
    all.flat_map(|(gateway, _)| waypoints(&snapshot.mesh, own, gateway, preferred_family)).collect()
}

/// The same as [`endpoints()`] for datagrams. A member of another namespace than the service's is not called, as it is not by connections
/// (`lent` in `upstream/open.rs`); and who calls is no endpoint: it would call itself without end.
fn udp_endpoints(
    snapshot: &Snapshot,
    own: &Workload,
    service: &Service,
    to: SocketAddr,
) -> Vec<(Arc<Workload>, SocketAddr)> {
    let all = udp_candidates(&snapshot.mesh, own, service, to).into_iter();
    let may = |w: &Workload, to: SocketAddr| (!w.hbone || w.namespace == service.namespace) && !own.has(to.ip());
    all.filter(|(workload, to, _)| may(workload, *to)).map(|(workload, address, _)| (workload, address)).collect()
}

/// Those that are about to end.
fn ending(
    snapshot: &Snapshot,
    own: &Workload,
    service: &Service,
    to: SocketAddr,
    subset: Option<&ir::Subset>,
) -> Vec<(Arc<Workload>, SocketAddr)> {
    let all = endpoints::ending(&snapshot.mesh, own, service, to, |w| fits(w, subset));
    all.into_iter().map(|(workload, address, _)| (workload, address)).collect()
}

/// Is it of a subset? None: that of all.
fn fits(workload: &Workload, subset: Option<&ir::Subset>) -> bool {
    subset.is_none_or(|x| x.labels.iter().all(|(k, v)| workload.labels.get(k) == Some(v)))
}

impl Cluster {
    /// Members with what is known of each. Those that have left are forgotten once nobody uses them.
    fn members(&self, found: Vec<(Arc<Workload>, SocketAddr)>) -> Vec<LbEndpoint> {
        let mut states = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let mut member = |(workload, address): (Arc<Workload>, SocketAddr)| {
            let state = states.entry(workload.uid.clone()).or_insert_with(|| Arc::new(EndpointStats::new())).clone();
            LbEndpoint { workload, address, state, group: None }
        };
        let members = found.into_iter().map(&mut member).collect();
        states.retain(|_, e| Arc::strong_count(e) > 1);
        members
    }

    /// The places of requests on HTTP/1.1 connections, `limit` of them.
    pub fn connection_permits(&self, limit: u32) -> Arc<Semaphore> {
        let mut permits = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if permits.0 != limit {
            // Those who hold a place of the old number give it back there.
            *permits = (limit, Arc::new(Semaphore::new(limit as usize)));
        }
        permits.1.clone()
    }
}

impl EndpointSet {
    /// The destination with what was called as its one endpoint: a name (`address` is then unspecified), or an address.
    pub fn with_endpoint(&self, snapshot: &Snapshot, own: &Workload, host: &str, address: IpAddr) -> Self {
        let known = if address.is_unspecified() { None } else { snapshot.mesh.workload(address).cloned() };
        let workload = known.unwrap_or_else(|| {
            let hostname: Arc<str> = if address.is_unspecified() { host.into() } else { "".into() };
            let uid = format!("{}/{host}", self.key.service);
            // Nobody of the mesh, and of no place.
            let nobody = Workload::unannounced(Announced {
                namespace: &self.service.namespace,
                name: &self.service.name,
                identity: own.identity.clone(),
                node: "",
                cluster: &own.cluster,
                network: &own.network,
            });
            Arc::new(Workload { kind: ObjectKind::of(&uid), uid: uid.into(), hostname, hbone: false, ..nobody })
        });
        let target = self.service.ports.iter().find(|(p, _)| *p == self.key.port).map(|(_, t)| *t);
        let port =
            target.filter(|t| *t > 0 && self.dynamic_endpoint == Some(DynamicEndpoint::Name)).unwrap_or(self.key.port);
        let mut states = self.cluster.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        states.retain(|_, e| Arc::strong_count(e) > 1);
        let state = states.entry(workload.uid.clone()).or_insert_with(|| Arc::new(EndpointStats::new())).clone();
        drop(states);
        let members = vec![LbEndpoint { workload, address: SocketAddr::new(address, port), state, group: Some(0) }];
        Self {
            key: self.key.clone(),
            service: self.service.clone(),
            chosen: self.chosen.clone(),
            cluster: self.cluster.clone(),
            ring: ring::ring(&self.policy, &members),
            groups: locality::groups(None, own, &members),
            live: members.len(),
            members,
            policy: self.policy.clone(),
            retry_rate: self.retry_rate.clone(),
            dynamic_endpoint: self.dynamic_endpoint,
            via_waypoint: None,
            pool_partition: self.policy.tls.as_ref().map(|t| tls::rules(snapshot, t, host)),
            host: host.into(),
            baggage: self.baggage.clone(),
            tls: OnceLock::new(),
            session: None,
            session_ids: OnceCell::new(),
        }
    }

    /// The members that are not about to end. Of the others, which serve those who are bound to them, none is part of what is left
    /// when some are ejected or overloaded.
    pub fn live(&self) -> &[LbEndpoint] {
        self.members.get(..self.live).unwrap_or(&self.members)
    }

    /// The member that is called so in sessions.
    pub fn place_of(&self, session_id: u64) -> Option<usize> {
        let all = || self.members.iter().enumerate().map(|(index, m)| (m.session_id(), index)).collect();
        self.session_ids.get_or_init(all).get(&session_id).copied()
    }

    /// Notes how long an answer of a member took that came at this time, where that decides about the next one.
    pub fn record_latency(&self, member: &LbEndpoint, took: Duration, now: u64) {
        if self.policy.balance.as_ref().is_some_and(|b| b.method() == ir::Method::PeakEwma) {
            member.state.record_latency(took, now);
        }
    }

    /// Notes that a member has too much to do for so long from now on. Its last word counts.
    pub fn record_overload(&self, member: &LbEndpoint, pause: Duration, now: u64) {
        let until = now + pause.as_millis() as u64;
        member.state.overloaded.store(until, Relaxed);
        self.cluster.overloaded.fetch_max(until, Relaxed);
    }

    /// Do overloaded members get less? Not where more than half of them are: the others would get what is too much for all.
    pub fn overload_active(&self, now: u64) -> bool {
        if self.cluster.overloaded.load(Relaxed) <= now {
            return false;
        }
        let live = self.live();
        let overloaded = live.iter().filter(|m| m.state.is_overloaded(now)).count();
        overloaded > 0 && 2 * overloaded <= live.len()
    }

    /// Notes how a request to a member ended: a status of its own, or None if there was none.
    pub fn record_outcome(&self, member: &LbEndpoint, status: Option<u16>) {
        let Some(outlier) = &self.policy.outlier else { return };
        let stats = &member.state;
        let over = |n: u32, limit: u32| limit > 0 && n >= limit;
        match status {
            Some(_) => stats.local_errors.store(0, Relaxed),
            // Somebody's on the way, and not the application's.
            None if outlier.consecutive_local > 0 => {
                if over(stats.local_errors.fetch_add(1, Relaxed) + 1, outlier.consecutive_local) {
                    self.eject(stats, outlier);
                }
                return;
            }
            None => {}
        }
        let gateway = status.is_none_or(|s| (502..=504).contains(&s));
        if status.is_some_and(|s| s < 500) {
            stats.errors.store(0, Relaxed);
            stats.gateway_errors.store(0, Relaxed);
            return;
        }
        let errors = stats.errors.fetch_add(1, Relaxed) + 1;
        let gateways = if gateway { stats.gateway_errors.fetch_add(1, Relaxed) + 1 } else { 0 };
        if over(errors, outlier.consecutive_5xx) || over(gateways, outlier.consecutive_gateway) {
            self.eject(stats, outlier);
        }
    }

    fn eject(&self, stats: &EndpointStats, outlier: &ir::Outlier) {
        let now = clock::now();
        let live = self.live();
        let out = live.iter().filter(|m| m.state.is_ejected(now)).count();
        // At least one may be out, whatever the percentage (Envoy).
        let allowed = (live.len() * outlier.max_ejection_percent as usize / 100).max(1);
        if stats.is_ejected(now) || out >= allowed {
            return;
        }
        // Who has behaved for long begins anew.
        if now.saturating_sub(stats.ejected.load(Relaxed)) > 10 * outlier.ejection_ms {
            stats.ejections.store(0, Relaxed);
        }
        let times = u64::from(stats.ejections.fetch_add(1, Relaxed)) + 1;
        stats.ejected.store(now + (outlier.ejection_ms * times).min(MAX_EJECTION.max(outlier.ejection_ms)), Relaxed);
        for count in [&stats.errors, &stats.gateway_errors, &stats.local_errors] {
            count.store(0, Relaxed);
        }
    }

    /// Are ejections in force? Not where too few would be left.
    pub fn ejection_active(&self, now: u64) -> bool {
        let Some(outlier) = &self.policy.outlier else { return false };
        let live = self.live();
        let out = live.iter().filter(|m| m.state.is_ejected(now)).count();
        out > 0 && (live.len() - out) * 100 >= live.len() * outlier.min_health_percent as usize
    }
}

impl Chosen {
    fn new(key: &ClusterKey, service: &Arc<Service>, dynamic_endpoint: Option<DynamicEndpoint>) -> Self {
        let (port, subset) = (key.port, key.subset.clone());
        Self { service: service.clone(), port, subset, is_told: dynamic_endpoint.is_none() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{downstream::gateway::Gateway, session::keys::tests::keys};
    use karst_proxy::testing::{pod, service, snapshot};

    pub(crate) const KEY: &str = "ns/s.ns.svc.cluster.local";

    /// So many endpoints.
    pub(crate) fn members(n: usize) -> Vec<LbEndpoint> {
        set(n, ir::Policy::default()).members
    }

    /// A service `s` with so many endpoints.
    pub(crate) fn set(n: usize, policy: ir::Policy) -> EndpointSet {
        let own = pod("own", "10.0.1.1", &[]);
        let pods = (0..n).map(|i| pod(&format!("p{i}"), &format!("10.0.0.{i}"), &[(KEY, &[(80, 8080)])])).chain([own]);
        let mut s = Snapshot::new("");
        s.mesh = snapshot(pods.collect(), vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        let backend = ir::Backend { policy: Some(policy), ..Default::default() };
        s.backends.insert(KEY.into(), Arc::new(backend));
        let own = s.mesh.workload("10.0.1.1".parse().unwrap()).unwrap().clone();
        let key = ClusterKey { service: KEY.into(), port: 80, subset: "".into(), client: Arc::default(), udp: false };
        Clusters::default().set(&s, &own, &key, "10.96.0.1".parse().unwrap()).unwrap()
    }

    #[test]
    fn errors_in_a_row_eject_up_to_the_cap() {
        let outlier =
            ir::Outlier { consecutive_5xx: 3, ejection_ms: 60_000, max_ejection_percent: 50, ..Default::default() };
        let s = set(4, ir::Policy { outlier: Some(outlier), ..Default::default() });
        let out = || s.members.iter().filter(|m| m.state.is_ejected(clock::now())).count();
        for m in &s.members {
            s.record_outcome(m, Some(500));
            s.record_outcome(m, Some(500));
            s.record_outcome(m, Some(200));
            s.record_outcome(m, Some(500));
            s.record_outcome(m, None);
        }
        assert_eq!(out(), 0, "not in a row");
        for m in &s.members {
            s.record_outcome(m, Some(503));
        }
        assert_eq!(out(), 2, "half of them at most");
        assert!(s.ejection_active(clock::now()));
    }

    /// Those that are about to end, and are there for who is bound to them, are no part of what may be ejected, nor of what is left.
    #[test]
    fn endpoints_that_are_about_to_end_save_no_others() {
        let one = |i: usize| {
            let mut w = pod(&format!("p{i}"), &format!("10.0.0.{i}"), &[(KEY, &[(80, 8080)])]);
            let is_ending = i >= 2;
            w.status = i32::from(is_ending);
            w.extensions.extend(is_ending.then(karst_api::draining));
            w
        };
        let mut s = Snapshot::new("");
        let pods = (0..6).map(one).chain([pod("own", "10.0.1.1", &[])]).collect();
        s.mesh = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        s.gateway = Some(Arc::new(Gateway { session_keys: keys(&[1]), ..Default::default() }));
        let outlier =
            ir::Outlier { consecutive_5xx: 1, ejection_ms: 60_000, max_ejection_percent: 50, ..Default::default() };
        let policy = Some(ir::Policy { outlier: Some(outlier), ..Default::default() });
        s.backends.insert(KEY.into(), Arc::new(ir::Backend { policy, ..Default::default() }));
        let own = s.mesh.workload("10.0.1.1".parse().unwrap()).unwrap().clone();
        let key = ClusterKey { service: KEY.into(), port: 80, subset: "".into(), client: Arc::default(), udp: false };
        let set = Clusters::default().set(&s, &own, &key, "10.96.0.1".parse().unwrap()).unwrap();
        assert_eq!((set.members.len(), set.live().len()), (6, 2));
        set.live().iter().for_each(|m| set.record_outcome(m, Some(500)));
        let now = clock::now();
        assert_eq!(set.live().iter().filter(|m| m.state.is_ejected(now)).count(), 1, "half of those that serve");
        set.live().iter().for_each(|m| set.record_overload(m, Duration::from_secs(60), now));
        assert!(!set.overload_active(now), "both of them");
    }

    #[test]
    fn services_without_rules_have_the_same_ones() {
        let mut s = Snapshot::new("");
        let services = ["s", "t"].map(|name| service(name, "10.96.0.1", &[(80, 8080)]));
        s.mesh = snapshot(vec![pod("own", "10.0.1.1", &[])], services.into());
        let own = s.mesh.workload("10.0.1.1".parse().unwrap()).unwrap().clone();
        let [one, other] = ["s", "t"].map(|name| {
            let service = format!("ns/{name}.ns.svc.cluster.local").into();
            let key = ClusterKey { service, port: 80, subset: "".into(), client: Arc::default(), udp: false };
            Clusters::default().set(&s, &own, &key, "10.96.0.1".parse().unwrap()).unwrap()
        });
        assert!(Arc::ptr_eq(&one.policy, &other.policy) && *one.policy == ir::Policy::default());
    }

    #[test]
    fn what_gets_no_answer_counts_apart_where_that_is_asked_for() {
        let out = |consecutive_local: u32, outcomes: &[Option<u16>]| {
            let ejection_ms = 60_000;
            let outlier = ir::Outlier { consecutive_5xx: 3, consecutive_local, ejection_ms, ..Default::default() };
            let s = set(2, ir::Policy { outlier: Some(outlier), ..Default::default() });
            outcomes.iter().for_each(|o| s.record_outcome(&s.members[0], *o));
            s.members[0].state.is_ejected(clock::now())
        };
        let mixed = [Some(500), None, Some(500)];
        assert!(out(0, &mixed) && !out(2, &mixed));
        assert!(out(2, &[None, None]) && !out(0, &[None, None]));
        // An answer is one, whatever it says.
        assert!(!out(2, &[None, Some(500), None]));
        assert!(out(2, &[Some(500), None, Some(500), Some(500)]), "what got none says nothing of the application");
    }

    #[test]
    fn a_port_that_the_service_lacks_is_no_destination() {
        let mut s = Snapshot::new("");
        let pods = vec![pod("own", "10.0.1.1", &[]), pod("a", "10.0.0.1", &[(KEY, &[(80, 8080)])])];
        s.mesh = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        let own = s.mesh.workload("10.0.1.1".parse().unwrap()).unwrap().clone();
        let at = |port: u16| {
            let key = ClusterKey { service: KEY.into(), port, subset: "".into(), client: Arc::default(), udp: false };
            Clusters::default().set(&s, &own, &key, "10.96.0.1".parse().unwrap()).map(|set| set.members.len())
        };
        assert_eq!([at(80), at(8080), at(81)], [Some(1), None, None]);
    }

    /// GEP-3388: one budget for all that is sent to a service, and none beside a DestinationRule's own.
    #[test]
    fn destinations_of_a_service_share_its_retry_rate() {
        let clusters = Clusters::default();
        let set = |per_million: u32, port: u16, client: &str| {
            let mut s = Snapshot::new("");
            let ports = [(80, 8080), (81, 8081), (82, 8082)];
            s.mesh = snapshot(vec![pod("own", "10.0.1.1", &[])], vec![service("s", "10.96.0.1", &ports)]);
            let own_budget = ir::Policy { retries: Some(ir::RetryBudget::default()), ..Default::default() };
            let backend = ir::Backend {
                ports: [(82, own_budget)].into(),
                clients: vec![ir::ClientRules { namespace: "shop".into(), ..Default::default() }],
                retry_rate: Some(ir::RetryRate { per_million, interval_ms: 10_000, at_least: 1, at_least_ms: 1000 }),
                ..Default::default()
            };
            s.backends.insert(KEY.into(), Arc::new(backend));
            let own = s.mesh.workload("10.0.1.1".parse().unwrap()).unwrap().clone();
            let key = ClusterKey { service: KEY.into(), port, subset: "".into(), client: client.into(), udp: false };
            clusters.set(&s, &own, &key, "10.96.0.1".parse().unwrap()).unwrap().retry_rate
        };
        let first = set(0, 80, "").unwrap();
        assert!(first.retry(0) && !first.retry(0));
        for (port, client) in [(80, ""), (81, ""), (80, "shop")] {
            assert!(Arc::ptr_eq(&first, &set(0, port, client).unwrap()), "{port} {client}");
        }
        assert!(set(0, 82, "").is_none(), "the port has a budget of its own");
        assert!(!Arc::ptr_eq(&first, &set(200_000, 80, "").unwrap()), "other rules count anew");
    }

    /// Subsets and policies may be a client's own (Istio: DestinationRules of its namespace come first).
    #[test]
    fn a_client_may_have_rules_of_its_own() {
        let mut s = Snapshot::new("");
        let pods = vec![pod("own", "10.0.1.1", &[]), pod("a", "10.0.0.1", &[(KEY, &[(80, 8080)])])];
        s.mesh = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        let subsets = vec![ir::Subset { name: "mine".into(), ..Default::default() }];
        let clients = vec![ir::ClientRules { namespace: "shop".into(), subsets, ..Default::default() }];
        s.backends.insert(KEY.into(), Arc::new(ir::Backend { clients, ..Default::default() }));
        let own = s.mesh.workload("10.0.1.1".parse().unwrap()).unwrap().clone();
        let of = |client: &str| {
            let key =
                ClusterKey { service: KEY.into(), port: 80, subset: "mine".into(), client: client.into(), udp: false };
            Clusters::default().set(&s, &own, &key, "10.96.0.1".parse().unwrap()).map(|set| set.members.len())
        };
        assert_eq!([of("shop"), of("other"), of("")], [Some(1), None, None]);
    }

    #[test]
    fn a_subset_whose_pods_are_all_about_to_end_is_served_by_them() {
        let end = |name: &str, ip: &str, version: &str, draining: bool| {
            let mut w = pod(name, ip, &[(KEY, &[(80, 8080)])]);
            let value = prost::Message::encode_to_vec(&ir::Labels { labels: [("v".into(), version.into())].into() });
            let config = prost_types::Any { type_url: karst_api::LABELS_TYPE.into(), value };
            w.extensions.push(karst_api::workload::Extension { name: "x".into(), config: Some(config) });
            w.extensions.extend(draining.then(karst_api::draining));
            w.status = i32::from(draining);
            w
        };
        let pods = vec![
            pod("own", "10.0.1.1", &[]),
            end("a", "10.0.0.1", "1", true),
            end("b", "10.0.0.2", "2", false),
            end("c", "10.0.0.3", "2", true),
        ];
        let mut s = Snapshot::new("");
        s.mesh = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        let subset =
            |v: &str| ir::Subset { name: v.into(), labels: [("v".into(), v.into())].into(), ..Default::default() };
        let backend = ir::Backend { subsets: vec![subset("1"), subset("2")], ..Default::default() };
        s.backends.insert(KEY.into(), Arc::new(backend));
        let own = s.mesh.workload("10.0.1.1".parse().unwrap()).unwrap().clone();
        let of = |subset: &str| -> Vec<String> {
            let key =
                ClusterKey { service: KEY.into(), port: 80, subset: subset.into(), client: Arc::default(), udp: false };
            let set = Clusters::default().set(&s, &own, &key, "10.96.0.1".parse().unwrap()).unwrap();
            set.members.iter().map(|m| m.workload.name.to_string()).collect()
        };
        assert_eq!([of(""), of("1"), of("2")], [vec!["b"], vec!["a"], vec!["b"]]);
    }
}
