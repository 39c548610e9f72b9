//! Connections of the node's pods: plan, then do what the plan says. If the connect fails before anything was sent, other
//! endpoints are tried.

use crate::{
    choose::{choose, has_other},
    client::{Caller, Client},
    conn::Conn,
    connect::{self, Ready, attempt},
    conns::Guard,
    dns::{self, Preamble},
    handover::end::{describe, offer},
    inpod::LocalPod,
    mesh_config::admit,
    metrics::Reporter,
    needs::needs,
    outcome::Outcome,
    parking::Parked,
    plan::{Balance, ByName, Plan, Refusal, binds, resolved},
    relay, signals,
    state::Workload,
    worker::{ByLoad, Direction, Served, Worker},
};
use bytes::Bytes;
use karst_api::handover::Offer;
use karst_core::{addr::is_host, limits};
use karst_hbone::{
    continuation::Token,
    copy::{Counts, Pair, Tunnel},
    pool::{Lease, Opened},
};
use karst_proxy::{dial::Candidate, untold::Told};
use karst_rt::socket;
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio::net::TcpStream;

/// Endpoints tried for one connection: a lost node may have had most of a service's.
const TRIES: usize = 4;

/// A captured connection of a pod.
pub async fn serve(worker: Rc<Worker>, served: Rc<Served>, mut tcp: TcpStream, (from, caller): (SocketAddr, Caller)) {
    let Some((to, _place)) = worker.admit(&served, &tcp, Direction::Outbound) else { return };
    // What the client has said already; the destination gets it first.
    let mut first = Bytes::new();
    if served.pod.redirection.is_dns(&tcp, to, worker.shared.config.dns && served.pod.dns_capture) {
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
    if served.pod.redirection.is_direct(&tcp, to) {
        // Nobody has redirected it: whoever it is, it is ztunnel that is called.
        socket::reset_on_close(&tcp);
        return record(&worker, from, to, Some(source), None).end(&Outcome::Refused(Refusal::OwnPort));
    }
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
        let needed = needs(&snapshot, &source, to, &planned);
        if !needed.is_empty() {
            let until = *held_until.get_or_insert_with(|| tokio::time::Instant::now() + limits::HOLD_TIMEOUT);
            // As below: rare, and large.
            if !Box::pin(worker.shared.ask(&served.pod, needed, until)).await {
                socket::reset_on_close(&tcp);
                return record(&worker, from, to, Some(source), None).end(&Outcome::Refused(Refusal::NotTold));
            }
            let Some(newer) = worker.workload(&served.pod).await else {
                socket::reset_on_close(&tcp);
                return record(&worker, from, to, Some(source), None).end(&Outcome::NoWorkload);
            };
            (snapshot, source) = newer;
            continue;
        }
        if let Plan::Resolve(name) = &planned {
            let until = *held_until.get_or_insert_with(|| tokio::time::Instant::now() + limits::HOLD_TIMEOUT);
            // Rare, and large: not in the task of every connection.
            planned = match Box::pin(look_up(&worker, &served.pod, &source, name, &tried, until)).await {
                Ok(plan) => plan,
                Err(outcome) => {
                    socket::reset_on_close(&tcp);
                    return record(&worker, from, to, Some(source), Some(&planned)).end(&outcome);
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
        if let Err(refusal) = admit(&planned, worker.shared.outbound.mode()) {
            planned = Plan::Refuse(refusal);
        }
        let guard = record(&worker, from, to, Some(source.clone()), Some(&planned));
        let again = tried.len() + 1 < TRIES;
        let chosen = planned.endpoint();
        let has_other = || {
            again
                && has_other(&mut ByLoad(&worker), &worker.unreachable, &snapshot, &source, to, &tried, chosen.as_ref())
        };
        let learnt = chosen.as_ref().map(|uid| {
            // A waypoint's pod is itself at fault, whatever is called by it.
            worker.unreachable.endpoint(uid, (!planned.is_by_waypoint()).then_some(to.port()))
        });
        let candidate = learnt.as_ref().map(|x| Candidate { endpoint: x, has_other: &has_other });
        // It is over once the connection is established: not in the task of every open one.
        let ready = Box::pin(attempt(&worker, &served, &planned, &source, &client, candidate)).await;
        if let (Ok(_), Some((service, chosen))) = (&ready, binds(&planned)) {
            let port = (service.key.clone(), to.port());
            worker.shared.affinity.put(&source.uid, port, &chosen.uid, tokio::time::Instant::now());
        }
        let ready = match ready {
            Ok(r) if !first.is_empty() => Box::pin(r.after(&first, &guard.conn().counts)).await,
            r => r,
        };
        // Here, not in a function: what is given to one is in the connection's task twice.
        let outcome = match ready {
            Ok(Ready::Tunnel(lease, stream, continues, joint)) => {
                // It may last for days: what was in force at its beginning is not kept for it.
                drop(snapshot);
                guard.established();
                if first.is_empty() && !planned.is_by_waypoint() {
                    signals::outbound(worker.shared.requests(), &guard, None, to.port());
                }
                let mut tunnel = Tunnel::new(tcp, stream, true, continues);
                if let Some(joint) = joint
                    && let Err(e) = tunnel.outlive(*joint, first.len() as u64)
                {
                    drop((lease, tunnel));
                    return guard.end(&Outcome::Broken(e.to_string()));
                }
                let offer = || offer(guard.conn(), &served.pod.uid, true);
                let outcome = match relay::stream(&worker, &guard, &guard.conn().counts, &mut tunnel, &offer).await {
                    Ok(token) => Box::pin(follow(&worker, &served.pod, &guard, (lease, tunnel, token))).await,
                    Err(outcome) => {
                        drop((lease, tunnel));
                        outcome
                    }
                };
                return guard.end(&outcome);
            }
            Ok(Ready::Socket(other)) => {
                drop(snapshot);
                guard.established();
                if first.is_empty() {
                    signals::outbound(worker.shared.requests(), &guard, None, to.port());
                }
                let mut pair = Pair::new(tcp, other);
                let offer = || offer(guard.conn(), &served.pod.uid, false);
                let o = relay::plain(&worker, &guard, &guard.conn().counts, &mut pair, &offer).await;
                drop(pair);
                return guard.end(&o);
            }
            Ok(Ready::Local(inner, app)) => {
                drop(snapshot);
                let mut pair = Pair::new(tcp, app);
                guard.established();
                inner.established();
                if first.is_empty() {
                    signals::outbound(worker.shared.requests(), &guard, Some(&inner), to.port());
                }
                let destination = || inner.conn().pod.as_ref().map(|pod| describe(inner.conn(), &pod.uid));
                let offer = || Offer { destination: destination(), ..offer(guard.conn(), &served.pod.uid, false) };
                let outcome = relay::plain(&worker, &inner, &guard.conn().counts, &mut pair, &offer).await;
                drop(pair);
                let (theirs, mine) = (inner.conn().clone(), guard.conn().clone());
                theirs.counts.from_client.set(mine.counts.from_client.get());
                theirs.counts.to_client.set(mine.counts.to_client.get());
                inner.end(&outcome);
                return guard.end(&outcome);
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

/// A connection whose peer has left, and that goes on in another stream; as often as that happens.
pub async fn follow(
    worker: &Worker,
    pod: &LocalPod,
    guard: &Guard,
    (mut lease, mut tunnel, mut token): (Lease, Tunnel, Token),
) -> Outcome {
    let offer = || offer(guard.conn(), &pod.uid, true);
    loop {
        let cut = match tunnel.interrupted() {
            Ok(cut) => Parked::new(cut),
            Err(e) => return Outcome::Broken(e.to_string()),
        };
        tunnel.release();
        let reached = cut.reached();
        if reached.is_some() {
            // It may be the stream of acknowledgements alone that has ended.
            lease.discard();
        }
        drop(lease);
        let opened = match connect::again(worker, pod, guard.conn(), (&token, reached)).await {
            Ok(opened) => opened,
            Err(outcome) => return Outcome::Broken(outcome.text().unwrap_or_default()),
        };
        let Opened { lease: next, send, recv, continues, joint } = opened;
        lease = next;
        let Some(cut) = cut.take() else { return Outcome::Done };
        tunnel = match Tunnel::next(cut, (send, recv), joint, continues) {
            Ok(tunnel) => tunnel,
            Err(e) => return Outcome::Broken(e.to_string()),
        };
        if reached.is_none() {
            worker.shared.metrics.handed_over.followed.fetch_add(1, Relaxed);
        }
        token = match relay::stream(worker, guard, &guard.conn().counts, &mut tunnel, &offer).await {
            Ok(token) => token,
            Err(outcome) => {
                drop((lease, tunnel));
                return outcome;
            }
        };
    }
}

/// The plan once an address of its destination's name is known, and what is there.
async fn look_up(
    worker: &Worker,
    pod: &LocalPod,
    source: &Workload,
    name: &ByName,
    tried: &[Arc<str>],
    until: tokio::time::Instant,
) -> Result<Plan, Outcome> {
    worker.shared.metrics.on_demand_dns(source, &name.workload.hostname);
    let ips = worker.dialer.lookup(&name.workload.hostname, name.ipv4).await?;
    let ip = ips[ByLoad(worker).random(ips.len() as u64) as usize].to_canonical();
    loop {
        let snapshot = worker.snapshot();
        let plan = resolved(&snapshot, source, name, ip, tried, &mut ByLoad(worker));
        let needed = needs(&snapshot, source, SocketAddr::new(ip, name.port), &plan);
        // An address that cannot be anybody's need not be asked for.
        if needed.is_empty() || !is_host(ip) {
            return Ok(plan);
        }
        if !worker.shared.ask(pod, needed, until).await {
            return Err(Outcome::Refused(Refusal::NotTold));
        }
    }
}

/// The record of a connection that goes, or was to go, by a plan.
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
        trace: Default::default(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        affinity::Affinity,
        config::Config,
        conns::Conns,
        gate::Gate,
        handover::desk::Desk,
        inpod::LocalPod,
        state::Snapshot,
        worker::{Budget, Shared},
    };
    use arc_swap::ArcSwap;
    use clap::Parser;
    use karst_proxy::{
        dial::Dialer,
        secrets::Secrets,
        testing::{pod, service, snapshot},
        unreachable::Unreachable,
        untold::Question,
        workers::WorkerPool,
    };
    use karst_rt::drain::{self, Drain};
    use std::cell::{Cell, RefCell};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::{mpsc, watch},
        task::{LocalSet, spawn_local},
    };

    const VIP: &str = "127.0.0.9";
    const CLIENT: &str = "10.0.0.9:4000";

    #[test]
    fn a_connections_task_stays_small() {
        fn size<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let n = size(serve);
        assert!(n < 2700, "{n} bytes, which every open connection has");
    }

    /// A worker that knows this of the mesh. It drains when the second is gone.
    pub(crate) fn worker(snapshot: Snapshot) -> (Rc<Worker>, Drain) {
        worker_with(snapshot, &[])
    }

    /// The same, with these options.
    pub(crate) fn worker_with(snapshot: Snapshot, options: &[&str]) -> (Rc<Worker>, Drain) {
        let state = watch::channel(Arc::new(snapshot)).1;
        worker_of((state, watch::channel(true).1, mpsc::channel(1).0), options)
    }

    /// One that is told, and may ask.
    pub(crate) fn worker_of(
        (state, stream, questions): (watch::Receiver<Arc<Snapshot>>, watch::Receiver<bool>, mpsc::Sender<Question>),
        options: &[&str],
    ) -> (Rc<Worker>, Drain) {
        let config = Config::parse_from([&["ztunnel", "--access-log", "false"][..], options].concat());
        let (settings, keepalive) = (config.hbone(), config.keepalive_settings());
        let (decides, drain) = drain::new();
        let (secrets, metrics) = (Secrets::fixed([]), Arc::<crate::metrics::Metrics>::default());
        let worker = Worker {
            number: 0,
            conns: Conns::new(metrics.clone(), karst_proxy::tap::Taps::new(""), config.access_log),
            dialer: Dialer::new(secrets.clone(), settings.clone(), keepalive, config.resolv_conf.clone()),
            unreachable: Unreachable::new(limits::AVOID),
            settings,
            keepalive,
            drain,
            seed: Cell::new(rand::random()),
            pods: RefCell::default(),
            flows: karst_proxy::flows::Recorder::default(),
            region: None,
            shared: Arc::new(Shared {
                config,
                state,
                configured: watch::channel(true).1,
                stream,
                questions,
                pods: ArcSwap::default(),
                budget: Budget::of(100_000),
                secrets,
                metrics,
                gate: Gate::of_node(100_000),
                affinity: Affinity::default(),
                outbound: crate::mesh_config::Outbound::default(),
                workers: WorkerPool::new(1).0,
                desk: Desk::default(),
                parking: crate::parking::new().0,
                table: None,
                flows: karst_proxy::flows::Books::new(1, false),
                taps: karst_proxy::tap::Taps::new(""),
            }),
        };
        (Rc::new(worker), decides)
    }

    /// An application: how many connections it has had, and what they said.
    #[derive(Default)]
    pub(crate) struct App {
        pub(crate) connections: Cell<usize>,
        heard: RefCell<Vec<u8>>,
    }

    /// One that answers, or breaks when it has heard something.
    pub(crate) async fn app(ip: &str, answers: bool) -> (Rc<App>, u32) {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let (app, port) = (Rc::new(App::default()), listener.local_addr().unwrap().port());
        let own = app.clone();
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                own.connections.set(own.connections.get() + 1);
                let mut heard = [0; 4];
                stream.read_exact(&mut heard).await.unwrap();
                own.heard.borrow_mut().extend(heard);
                match answers {
                    true => stream.write_all(b"pong").await.unwrap(),
                    false => socket::reset_on_close(&stream),
                }
            }
        });
        (app, port.into())
    }

    /// A port of this address at which nobody listens.
    async fn nobody(ip: &str) -> u32 {
        TcpListener::bind((ip, 0)).await.unwrap().local_addr().unwrap().port().into()
    }

    /// Says something to a service with these endpoints, by address and port; what comes back, and which could not be reached.
    async fn call(endpoints: &[(&str, u32)]) -> (std::io::Result<Vec<u8>>, usize) {
        let listener = TcpListener::bind((VIP, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let port = u32::from(at.port());
        let mut pods = vec![pod("client", "10.0.0.9", &[])];
        pods.extend(endpoints.iter().map(|(ip, target)| {
            let mut workload = pod(ip, ip, &[("ns/s.ns.svc.cluster.local", &[(port, *target)])]);
            workload.tunnel_protocol = 0;
            workload
        }));
        let (worker, _open) = worker(snapshot(pods, vec![service("s", VIP, &[(port, 1)])]));
        let answer = ping(&worker, &listener).await;
        (answer, worker.unreachable.besides(&[], at.port()).len())
    }

    /// Calls where somebody listens, and what is captured is served; gives what comes back.
    pub(crate) async fn ping(worker: &Rc<Worker>, listener: &TcpListener) -> std::io::Result<Vec<u8>> {
        let served = Served::new(LocalPod::test("client", "client", "uid"));
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (captured, _) = listener.accept().await.unwrap();
        let from = (CLIENT.parse().unwrap(), Caller::Pod);
        let served = spawn_local(serve(worker.clone(), served, captured, from));
        client.write_all(b"ping").await.unwrap();
        let mut answer = vec![];
        let read = client.read_to_end(&mut answer).await;
        drop(client);
        served.await.unwrap();
        read.map(|_| answer)
    }

    #[tokio::test]
    async fn another_endpoint_is_tried_before_anything_was_sent() {
        let run = async {
            let (app, port) = app("127.0.0.5", true).await;
            let mut endpoints = vec![("127.0.0.5", port)];
            for ip in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
                endpoints.push((ip, nobody(ip).await));
            }
            let mut lost = 0;
            for n in 1..=16 {
                let (answer, avoided) = call(&endpoints).await;
                assert_eq!((answer.unwrap(), app.connections.get()), (b"pong".to_vec(), n));
                lost += avoided;
            }
            assert_eq!(*app.heard.borrow(), b"ping".repeat(16), "each was heard once, and whole");
            assert!(lost > 0, "three of four endpoints are nobody: some were tried first");
            // With nobody at all the client is reset.
            let (answer, avoided) = call(&endpoints[1..]).await;
            assert!(answer.is_err() && avoided == 3, "{answer:?} {avoided}");
        };
        LocalSet::new().run_until(run).await;
    }

    /// A thousand that stay, while pods come and go, would be a thousand states of the mesh.
    #[tokio::test]
    async fn an_open_connection_keeps_no_snapshot() {
        let run = async {
            let app = TcpListener::bind(("127.0.0.5", 0)).await.unwrap();
            let listener = TcpListener::bind((VIP, 0)).await.unwrap();
            let at = listener.local_addr().unwrap();
            let (port, target) = (u32::from(at.port()), u32::from(app.local_addr().unwrap().port()));
            let mut workload = pod("app", "127.0.0.5", &[("ns/s.ns.svc.cluster.local", &[(port, target)])]);
            workload.tunnel_protocol = 0;
            let pods = vec![pod("client", "10.0.0.9", &[]), workload];
            let (worker, _open) = worker(snapshot(pods, vec![service("s", VIP, &[(port, 1)])]));
            let before = Arc::strong_count(&worker.snapshot());
            let served = Served::new(LocalPod::test("client", "client", "uid"));
            let mut client = TcpStream::connect(at).await.unwrap();
            let (captured, _) = listener.accept().await.unwrap();
            spawn_local(serve(worker.clone(), served, captured, (CLIENT.parse().unwrap(), Caller::Pod)));
            let (mut accepted, _) = app.accept().await.unwrap();
            client.write_all(b"ping").await.unwrap();
            accepted.read_exact(&mut [0; 4]).await.unwrap();
            assert_eq!(Arc::strong_count(&worker.snapshot()), before);
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn nothing_is_said_twice() {
        let run = async {
            let ((one, at), (other, besides)) = (app("127.0.0.5", false).await, app("127.0.0.6", false).await);
            for n in 1..=4 {
                let (answer, avoided) = call(&[("127.0.0.5", at), ("127.0.0.6", besides)]).await;
                assert!(answer.is_err() && avoided == 0, "{answer:?} {avoided}");
                assert_eq!(one.connections.get() + other.connections.get(), n);
            }
        };
        LocalSet::new().run_until(run).await;
    }
}
