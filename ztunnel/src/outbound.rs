//! Connections of the node's pods: plan, then do what the plan says. If the connect fails before anything was sent, other
//! endpoints are tried.

use crate::{
    client::{Caller, Client},
    conns::{Conn, Guard},
    dns::{self, Preamble},
    inbound::{self, InboundRequest},
    inpod::{LocalPod, LocalPods},
    metrics::Reporter,
    outcome::Outcome,
    plan::{Balance, Plan, Refusal, Tunnel, binds, bound, plan, resolved},
    state::Workload,
    worker::{ByLoad, Direction, Served, Worker},
};
use bytes::Bytes;
use karst_core::limits;
use karst_hbone::{
    copy::{self, Counts},
    pool::Lease,
};
use karst_proxy::{
    dial::{self, Candidate, Target},
    unreachable::Unreachable,
    untold::Told,
};
use karst_rt::socket;
use std::{net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Instant};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Endpoints tried for one connection: a lost node may have had most of a service's.
const TRIES: usize = 4;

/// A captured connection of a pod.
pub async fn serve(worker: Rc<Worker>, served: Rc<Served>, mut tcp: TcpStream, (from, caller): (SocketAddr, Caller)) {
    let Some((to, _place)) = worker.admit(&served, &tcp, Direction::Outbound) else { return };
    // What the client has said already; the destination gets it first.
    let mut first = Bytes::new();
    if worker.shared.config.dns && served.pod.dns_capture && to.port() == 53 {
        // Rare: not in the task of every connection.
        match Box::pin(dns::preamble(&worker.shared, &served.pod, &mut tcp)).await {
            Preamble::Answered => return,
            Preamble::Forward(said) => first = said,
        }
    }
    let Some((mut snapshot, mut source)) = worker.workload(&served.pod).await else {
        socket::reset_on_close(&tcp);
        return record(&worker, from, to, None, None).end(&Outcome::NoWorkload);
    };
    let own = if served.pod.ips.is_empty() { &source.ips } else { &served.pod.ips };
    let client = match Client::new(own, from, caller, |ip| served.pod.connector.is_local(ip)) {
        Ok(c) => c,
        Err(r) => {
            socket::reset_on_close(&tcp);
            return record(&worker, from, to, Some(source), None).end(&Outcome::Refused(r));
        }
    };
    let from = client.seen_by(to.ip());
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut held_until = None;
    loop {
        let mut planned = choose(&mut ByLoad(&worker), &worker.unreachable, &snapshot, &source, to, &tried);
        if let Plan::Resolve(name) = &planned {
            worker.shared.metrics.on_demand_dns(&source, &name.workload.hostname);
            // Rare, and large: not in the task of every connection.
            planned = match Box::pin(worker.dialer.lookup(&name.workload.hostname, name.ipv4)).await {
                Ok(ips) => {
                    let ip = ips[ByLoad(&worker).random(ips.len() as u64) as usize];
                    resolved(&snapshot, &source, name, ip, &tried, &mut ByLoad(&worker))
                }
                Err(e) => {
                    socket::reset_on_close(&tcp);
                    return record(&worker, from, to, Some(source), Some(&planned)).end(&e.into());
                }
            };
        }
        let untold = if let Plan::Untold { to, .. } = &planned { Some(to.ip()) } else { None };
        if let Some(ip) = untold {
            let until = *held_until.get_or_insert_with(|| tokio::time::Instant::now() + limits::HOLD_TIMEOUT);
            // As rare, and as large.
            planned = match Box::pin(worker.told(&served, ip, until)).await {
                Told::Known => {
                    let Some(newer) = worker.workload(&served.pod).await else {
                        socket::reset_on_close(&tcp);
                        return record(&worker, from, to, Some(source), Some(&planned)).end(&Outcome::NoWorkload);
                    };
                    (snapshot, source) = newer;
                    continue;
                }
                Told::Nobody => planned.nobody(),
                Told::Nothing => Plan::Refuse(Refusal::Untold),
            };
        }
        let guard = record(&worker, from, to, Some(source.clone()), Some(&planned));
        let again = tried.len() + 1 < TRIES;
        let chosen = endpoint(&planned);
        let has_other = || {
            again
                && has_other(&mut ByLoad(&worker), &worker.unreachable, &snapshot, &source, to, &tried, chosen.as_ref())
        };
        let learnt = chosen.as_ref().map(|uid| {
            // A waypoint's pod is itself at fault, whatever is called by it.
            let by_waypoint = matches!(&planned, Plan::Tunnel(t) if t.waypoint);
            worker.unreachable.endpoint(uid, (!by_waypoint).then_some(to.port()))
        });
        let candidate = learnt.as_ref().map(|x| Candidate { endpoint: x, has_other: &has_other });
        let ready = attempt(&worker, &served, &planned, &source, &client, candidate).await;
        if let (Ok(_), Some((service, chosen))) = (&ready, binds(&planned)) {
            let port = (service.key.clone(), to.port());
            worker.shared.affinity.put(&source.uid, port, &chosen.uid, tokio::time::Instant::now());
        }
        let ready = match ready {
            Ok(r) if !first.is_empty() => Box::pin(r.after(&first, &guard.conn().counts)).await,
            r => r,
        };
        let outcome = match ready {
            Ok(Ready::Tunnel(lease, send, recv)) => {
                guard.established();
                let o =
                    inbound::relay(&worker, &guard, pin!(copy::tunnel(tcp, send, recv, &guard.conn().counts, true)))
                        .await;
                drop(lease);
                return guard.end(&o);
            }
            Ok(Ready::Socket(other)) => {
                guard.established();
                let o = inbound::relay(&worker, &guard, pin!(copy::plain(tcp, other, &guard.conn().counts))).await;
                return guard.end(&o);
            }
            Ok(Ready::Local(inner, app)) => {
                guard.established();
                inner.established();
                let o = inbound::relay(&worker, &inner, pin!(copy::plain(tcp, app, &guard.conn().counts))).await;
                let (c, mine) = (inner.conn().clone(), guard.conn().clone());
                c.counts.from_client.set(mine.counts.from_client.get());
                c.counts.to_client.set(mine.counts.to_client.get());
                inner.end(&o);
                return guard.end(&o);
            }
            Err(o) => o,
        };
        let retriable = outcome.may_retry();
        guard.end(&outcome);
        match chosen.filter(|_| retriable) {
            Some(uid) if again => {
                tried.push(uid);
                if let Some((s, x)) = worker.workload(&served.pod).await {
                    (snapshot, source) = (s, x);
                }
            }
            Some(_) | None => {
                socket::reset_on_close(&tcp);
                return;
            }
        }
    }
}

/// The plan, with those left out that could not be reached a moment ago, if there are others.
fn choose(
    balance: &mut impl Balance,
    avoided: &Unreachable,
    snapshot: &crate::state::Snapshot,
    source: &Workload,
    to: SocketAddr,
    tried: &[Arc<str>],
) -> Plan {
    let first = plan(snapshot, source, to, tried, balance);
    // Mostly what is chosen is not avoided: nothing is copied then, however many others are.
    let Some(uid) = leads_to(&first).filter(|uid| avoided.avoids(uid, to.port())) else { return first };
    // Who is to stay with an endpoint goes elsewhere only when it has failed to reach it itself.
    if bound(snapshot, source, to, balance).as_ref() == Some(uid) {
        return first;
    }
    let mut besides = avoided.besides(tried, to.port());
    besides.extend_from_slice(tried);
    match plan(snapshot, source, to, &besides, balance) {
        Plan::Refuse(Refusal::NoEndpoint) => first,
        other => other,
    }
}

/// The endpoint that a plan leads to, or will once it is known who is there.
fn leads_to(plan: &Plan) -> Option<&Arc<str>> {
    match plan {
        Plan::Tunnel(t) if t.service.is_some() || t.waypoint => Some(&t.peer.uid),
        Plan::Plain { workload: Some(x), service: Some(_), .. }
        | Plan::Untold { workload: Some(x), service: Some(_), .. } => Some(&x.uid),
        Plan::Resolve(name) => Some(&name.workload.uid),
        Plan::Tunnel(_) | Plan::Plain { .. } | Plan::Untold { .. } | Plan::Refuse(_) => None,
    }
}

/// Is there another endpoint than the chosen one that has not been tried? One that is avoided is no reason to give up this one.
fn has_other(
    balance: &mut impl Balance,
    avoided: &Unreachable,
    snapshot: &crate::state::Snapshot,
    source: &Workload,
    to: SocketAddr,
    tried: &[Arc<str>],
    chosen: Option<&Arc<str>>,
) -> bool {
    let mut besides: Vec<_> = tried.iter().chain(chosen).cloned().collect();
    besides.extend(avoided.besides(&besides, to.port()));
    match plan(snapshot, source, to, &besides, balance) {
        Plan::Refuse(_) => false,
        other => endpoint(&other).is_none_or(|uid| !besides.contains(&uid)),
    }
}

/// The endpoint of a service, or pod of a waypoint, that was chosen.
fn endpoint(plan: &Plan) -> Option<Arc<str>> {
    match plan {
        Plan::Tunnel(t) if t.service.is_some() || t.waypoint => Some(t.peer.uid.clone()),
        Plan::Plain { workload: Some(x), service: Some(_), .. } => Some(x.uid.clone()),
        Plan::Tunnel(_) | Plan::Plain { .. } | Plan::Untold { .. } | Plan::Resolve(_) | Plan::Refuse(_) => None,
    }
}

enum Ready {
    Tunnel(Lease, h2::SendStream<Bytes>, h2::RecvStream),
    Socket(TcpStream),
    Local(Guard, TcpStream),
}

impl Ready {
    /// The same, once the destination has been sent these bytes (a few kilobytes) of the client. Nothing can be tried again
    /// after that.
    async fn after(mut self, first: &Bytes, counts: &Counts) -> Result<Self, Outcome> {
        let sent = match &mut self {
            Ready::Tunnel(_, send, _) => send.send_data(first.clone(), false).map_err(|e| e.to_string()),
            Ready::Socket(s) | Ready::Local(_, s) => s.write_all(first).await.map_err(|e| e.to_string()),
        };
        match sent {
            Ok(()) => {
                counts.from_client.set(counts.from_client.get() + first.len() as u64);
                Ok(self)
            }
            Err(e) => {
                let outcome = Outcome::Broken(e);
                if let Ready::Local(inner, _) = self {
                    inner.end(&outcome);
                }
                Err(outcome)
            }
        }
    }
}

async fn attempt(
    worker: &Rc<Worker>,
    served: &Rc<Served>,
    planned: &Plan,
    source: &Arc<Workload>,
    client: &Client,
    candidate: Option<Candidate<'_>>,
) -> Result<Ready, Outcome> {
    match planned {
        Plan::Refuse(r) => Err(Outcome::Refused(*r)),
        // Resolved before, and waited for.
        Plan::Resolve(_) => Err(Outcome::Refused(Refusal::NoEndpoint)),
        Plan::Untold { .. } => Err(Outcome::Refused(Refusal::Untold)),
        Plan::Plain { to, .. } => {
            Ok(Ready::Socket(worker.dialer.connect(&served.pod.connector, client.chosen(), *to, candidate).await?))
        }
        Plan::Tunnel(t) => {
            if let Some(local) = same_node(worker, t) {
                // Both ends are this process: the caller's identity is the namespace that it came from.
                let ask = InboundRequest {
                    from: client.seen_by(t.target.ip()),
                    to: t.target,
                    hbone: None,
                    identity: Some(source.identity.clone()),
                    service: t.service.clone(),
                };
                let (guard, app) = inbound::open(worker, &local, ask).await;
                return match app {
                    Ok(app) => Ok(Ready::Local(guard, app)),
                    Err(o) => {
                        guard.end(&o);
                        if let Some(c) = candidate.filter(|_| o.may_retry()) {
                            c.endpoint.avoid();
                        }
                        Err(o)
                    }
                };
            }
            let host = t.service.as_ref().map(|s| &*s.hostname);
            let target = Target {
                connector: &served.pod.connector,
                pod: &served.pod.uid,
                own: &source.identity,
                peer: &t.peer,
                address: t.address,
                expected: &t.expected,
                authority: &t.target.to_string(),
                headers: dial::headers(source.baggage.as_ref(), client.seen_by(t.target.ip()), host),
            };
            let opened = worker.dialer.tunnel(&target, candidate).await?;
            Ok(Ready::Tunnel(opened.lease, opened.send, opened.recv))
        }
    }
}

/// The destination's pod, if it hangs on this ztunnel and tunnels within the node are not asked for.
fn same_node(worker: &Worker, tunnel: &Tunnel) -> Option<Arc<LocalPod>> {
    if !worker.shared.config.same_node_direct || tunnel.waypoint || tunnel.peer.native_tunnel {
        return None;
    }
    local(&worker.shared.pods.load(), &tunnel.peer)
}

/// The pod of this node that a workload is. Another one that has its name is not: that must show itself by its certificate.
fn local(pods: &LocalPods, peer: &Workload) -> Option<Arc<LocalPod>> {
    let found = match &*peer.pod_uid {
        "" => pods.values().find(|p| p.own().is(peer)),
        uid => pods.get(uid),
    };
    found.filter(|p| p.own().is(peer)).cloned()
}

fn record(
    worker: &Worker,
    from: SocketAddr,
    to: SocketAddr,
    source: Option<Arc<Workload>>,
    planned: Option<&Plan>,
) -> Guard {
    let (destination, service, hbone, mtls, actual) = match planned {
        Some(Plan::Tunnel(t)) => (Some(t.peer.clone()), t.service.clone(), Some(t.target), true, t.address),
        Some(Plan::Plain { to, workload, service } | Plan::Untold { to, workload, service }) => {
            (workload.clone(), service.clone(), None, false, *to)
        }
        Some(Plan::Resolve(n)) => (Some(n.workload.clone()), Some(n.service.clone()), None, false, to),
        Some(Plan::Refuse(_)) | None => (None, None, None, false, to),
    };
    worker.conns.add(Conn {
        reporter: Reporter::Source,
        source_addr: from,
        destination_addr: actual,
        hbone_addr: hbone,
        source_identity: source.as_ref().filter(|_| mtls).map(|s| s.identity.clone()),
        source,
        destination,
        service,
        mtls,
        check: None,
        pod: None,
        counts: Counts::default(),
        started: Instant::now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::{route, workload as pb};
    use karst_proxy::testing::{pod, service, snapshot};
    use prost::Message;
    use std::{cell::Cell, time::Duration};

    /// The workload of a pod, as a controller tells of it; `uid` empty: as istiod does.
    fn told(name: &str, uid: &str) -> Arc<Workload> {
        let mut w = pod(name, "10.0.0.1", &[]);
        if !uid.is_empty() {
            let value = route::Pod { uid: uid.into() }.encode_to_vec();
            let config = Some(prost_types::Any { type_url: karst_api::POD_TYPE.into(), value });
            w.extensions.push(pb::Extension { name: "karst.pod".into(), config });
        }
        snapshot(vec![w], vec![]).workload([10, 0, 0, 1].into()).unwrap().clone()
    }

    #[test]
    fn a_connections_task_stays_small() {
        fn size<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let n = size(serve);
        assert!(n < 2700, "{n} bytes, which every open connection has");
    }

    struct First;
    impl Balance for First {
        fn random(&mut self, _: u64) -> u64 {
            0
        }
        fn load(&self, _: &str) -> u64 {
            0
        }
        fn bound(&self, _: &str, _: &Arc<str>, _: u16, _: Duration) -> Option<Arc<str>> {
            None
        }
    }

    #[test]
    fn one_is_given_up_only_for_one_that_is_not_avoided() {
        let key = "ns/s.ns.svc.cluster.local";
        let end = |name: &str, ip: &str| pod(name, ip, &[(key, &[(80, 8080)])]);
        let pods = vec![pod("c", "10.0.0.9", &[]), end("a", "10.0.0.1"), end("b", "10.0.0.2")];
        let s = snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])]);
        let at = |ip: &str| s.workload(ip.parse().unwrap()).unwrap();
        let (c, a, b) = (at("10.0.0.9"), &at("10.0.0.1").uid, &at("10.0.0.2").uid);
        let u = Unreachable::new(limits::AVOID);
        let to = "10.96.0.1:80".parse().unwrap();
        let other = |tried: &[Arc<str>]| has_other(&mut First, &u, &s, c, to, tried, Some(a));
        assert!(other(&[]) && !other(std::slice::from_ref(b)));
        // It was lost a moment ago: it comes after this one, not in its place.
        u.add(b, Some(80));
        assert!(!other(&[]));
    }

    /// Picks the first endpoint, and counts who holds a name while it is asked.
    struct Holders {
        name: Arc<str>,
        most: Cell<usize>,
        bound: Option<Arc<str>>,
    }
    impl Balance for Holders {
        fn random(&mut self, _: u64) -> u64 {
            self.most.set(self.most.get().max(Arc::strong_count(&self.name)));
            0
        }
        fn load(&self, _: &str) -> u64 {
            0
        }
        fn bound(&self, _: &str, _: &Arc<str>, _: u16, _: Duration) -> Option<Arc<str>> {
            self.bound.clone()
        }
    }

    #[test]
    fn what_is_avoided_elsewhere_costs_nothing() {
        let key = "ns/s.ns.svc.cluster.local";
        let end = |name: &str, ip: &str| pod(name, ip, &[(key, &[(80, 8080)])]);
        let state = |affinity: u32| {
            let pods = vec![pod("c", "10.0.0.9", &[]), end("a", "10.0.0.1"), end("b", "10.0.0.2")];
            let mut svc = service("s", "10.96.0.1", &[(80, 8080)]);
            svc.karst_session_affinity_seconds = affinity;
            snapshot(pods, vec![svc])
        };
        let chosen = |s: &crate::state::Snapshot, u: &Unreachable, b: &mut Holders| {
            let c = s.workload("10.0.0.9".parse().unwrap()).unwrap();
            let p = choose(b, u, s, c, "10.96.0.1:80".parse().unwrap(), &[]);
            leads_to(&p).unwrap().clone()
        };
        let s = state(0);
        let elsewhere: Arc<str> = "elsewhere".into();
        let mut by = Holders { name: elsewhere.clone(), most: Cell::default(), bound: None };
        let u = Unreachable::new(limits::AVOID);
        let first = chosen(&s, &u, &mut by);
        u.add(&elsewhere, None);
        u.add(&first, Some(81));
        let before = Arc::strong_count(&elsewhere);
        by.most.set(0);
        assert_eq!((chosen(&s, &u, &mut by), by.most.get()), (first.clone(), before), "no name is copied");
        u.add(&first, Some(80));
        let second = chosen(&s, &u, &mut by);
        assert_ne!(second, first);
        u.add(&second, None);
        assert_eq!(chosen(&s, &u, &mut by), first, "all are avoided");
        // Who is to stay with it stays, though others could not reach it.
        by.bound = Some(second.clone());
        assert_eq!(chosen(&state(10), &u, &mut by), second);
    }

    #[test]
    fn on_the_same_node_only_the_very_pod_is_the_destination() {
        let pods = |all: &[Arc<LocalPod>]| all.iter().map(|p| (p.uid.clone(), p.clone())).collect::<LocalPods>();
        let found = |pods: &LocalPods, w: &Workload| local(pods, w).map(|p| p.uid.clone());
        let first = pods(&[LocalPod::test("a", "a", "1"), LocalPod::test("b", "b", "2")]);
        assert_eq!(found(&first, &told("a", "1")), Some("1".into()));
        assert_eq!(found(&first, &told("a", "")), Some("1".into()), "istiod tells no uid");
        assert_eq!(found(&first, &told("c", "")), None);
        assert_eq!(found(&first, &told("a", "2")), None, "a uid of another name");
        // Made anew, while the control plane knows of the one before.
        for account in ["a", "other"] {
            let anew = pods(&[LocalPod::test("a", account, "9")]);
            assert_eq!(found(&anew, &told("a", "1")), None, "{account}");
        }
        assert_eq!(found(&pods(&[LocalPod::test("a", "other", "1")]), &told("a", "1")), None);
        assert_eq!(found(&pods(&[LocalPod::test("a", "other", "9")]), &told("a", "")), None);
        // While one goes and the other comes, each is itself.
        let both = pods(&[LocalPod::test("a", "a", "1"), LocalPod::test("a", "a", "9")]);
        assert_eq!(found(&both, &told("a", "9")), Some("9".into()));
        assert_eq!(found(&both, &told("a", "1")), Some("1".into()));
    }
}
