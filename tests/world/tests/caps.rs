//! Caps are no weapons: twice as many connections as there are places, from a stranger with several addresses who says
//! nothing and comes again, while everybody else is served without one failure.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{
    Load, Options, Pod, PodSpec, World, app, net,
    web::{TlsClient, TlsSession},
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Twice what the old caps let in: 512 for each of two workers.
const SILENT: usize = 2 * 1024;
/// After the first ones, so many come again in each turn of 100 ms.
const AGAIN: usize = 100;

/// Connections that say nothing. What is closed is opened again.
struct Silent {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Silent {
    /// Starts, and waits until all have been tried once.
    fn start(from: &Pod, addresses: Vec<IpAddr>, to: SocketAddr) -> Self {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (st, op, netns) = (stop.clone(), opened.clone(), from.netns().clone());
        let thread = std::thread::spawn(move || {
            let mut held: Vec<TcpStream> = vec![];
            let mut most = SILENT;
            while !st.load(Relaxed) {
                held.retain_mut(|s| match s.read(&mut [0; 16]) {
                    Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
                    Ok(n) => n > 0,
                });
                let new = (SILENT - held.len()).min(most);
                most = AGAIN;
                netns
                    .run(|| {
                        for _ in 0..new {
                            let n = op.fetch_add(1, Relaxed);
                            held.extend(silent(addresses[n % addresses.len()], to));
                        }
                    })
                    .unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let end = Instant::now() + Duration::from_secs(20);
        while opened.load(Relaxed) < SILENT {
            assert!(Instant::now() < end && !thread.is_finished(), "the attack does not begin");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { stop, opened, thread }
    }

    /// Ends; how many connections were opened.
    fn end(self) -> usize {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap();
        self.opened.load(Relaxed)
    }
}

/// Begins to connect, and does not wait.
fn silent(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let s = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
    s.set_nonblocking(true).ok()?;
    s.bind(&SockAddr::from(SocketAddr::new(from, 0))).ok()?;
    match s.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(_) => return None,
    }
    Some(s.into())
}

/// A pod outside the mesh, on node 0, and its addresses: its own and seven more.
fn stranger(w: &mut World) -> (Pod, Vec<IpAddr>) {
    karst_rt::process::raise_descriptor_limit().unwrap();
    w.namespace("out", false);
    let p = w.pod(PodSpec::new("out", "stranger", 0));
    let more = (200..207).map(|n| {
        net::ip_in(&p.ns, &format!("addr add 10.77.0.{n}/24 dev eth0")).unwrap();
        IpAddr::from([10, 77, 0, n])
    });
    let all = std::iter::once(p.ip).chain(more).collect();
    w.settle();
    (p, all)
}

#[test]
fn silent_strangers_stop_no_tunnel() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    // Each of these needs a tunnel of its own, and has none yet.
    let fresh: Vec<Pod> = (0..6).map(|n| w.mesh_pod(PodSpec::new("app", &format!("fresh{n}"), 0))).collect();
    let _echo = app::Echo::start(&b, 8080, "");
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"warm").unwrap();
    let (out, addresses) = stranger(&mut w);
    let attack = Silent::start(&out, addresses, b.at(15008));
    let load = Load::start(a.netns(), b.at(8080), 100, b"bystander");
    let mut failed = vec![];
    for p in &fresh {
        if let Err(e) = p.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, b"fresh")) {
            failed.push(format!("{}: {e}", p.spec.name));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let served = load.end();
    let opened = attack.end();
    let ended =
        |reason: &str| w.metric(1, "karst_connections_ended_by_limit_total", &["\"hbone\"", "\"handshake\"", reason]);
    let (evicted, refused) = (ended("evicted"), ended("refused"));
    println!(
        "silent={opened} evicted={evicted} refused={refused} served={} slowest_ms={} failed={:?} fresh_failed={failed:?}",
        served.ok, served.slowest_ms, served.failed
    );
    assert!(failed.is_empty() && served.failed.is_empty() && served.ok > 100, "{failed:?} {served:?}");
    assert!(evicted > SILENT as f64 / 2.0, "{evicted}: the places were not all taken");
}

#[test]
fn silent_strangers_do_not_stop_the_controller() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let _echo = app::Echo::start(&b, 8080, "");
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"warm").unwrap();
    let (out, addresses) = stranger(&mut w);
    let honest = w.pod(PodSpec::new("out", "honest", 1));
    w.settle();
    let discovery = SocketAddr::from(([10, 66, 0, 100], 15012));
    let attack = Silent::start(&out, addresses, discovery);
    let load = Load::start(a.netns(), b.at(8080), 100, b"bystander");
    // A stranger who does speak has its handshake, among the silent ones.
    let client = TlsClient::new(std::fs::read_to_string(w.dir.join("controller/root-cert.pem")).unwrap());
    let mut failed = vec![];
    let mut slowest = Duration::ZERO;
    for n in 0..30 {
        let t = Instant::now();
        if let Err(e) = TlsSession::new(&honest, discovery, "10.66.0.100", &client) {
            failed.push(format!("{n}: {e}"));
        }
        slowest = slowest.max(t.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    let served = load.end();
    // A proxy that starts has its configuration and its certificates.
    let t = Instant::now();
    w.stop_ztunnel(0, libc::SIGTERM);
    w.start_ztunnel(0).unwrap();
    w.wait_ztunnel(0);
    w.settle();
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"again").unwrap();
    let again = t.elapsed();
    let opened = attack.end();
    println!(
        "silent={opened} handshakes_failed={failed:?} slowest_ms={} served={} failed={:?} proxy_again_ms={}",
        slowest.as_millis(),
        served.ok,
        served.failed,
        again.as_millis()
    );
    assert!(failed.is_empty() && served.failed.is_empty() && served.ok > 100, "{failed:?} {served:?}");
}

/// Connections of one pod's process, held: as many as it gets.
fn hold(from: &Pod, to: SocketAddr, n: usize) -> Vec<TcpStream> {
    from.netns()
        .run(|| {
            let one = || {
                let mut s = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
                s.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
                app::ping(&mut s, b"hold").ok()?;
                Some(s)
            };
            (0..n).filter_map(|_| one()).collect()
        })
        .unwrap()
}

/// A client without a tunnel has a share of the pod's connections, and not all of them; what tunnels need is not its affair.
#[test]
fn one_client_in_plaintext_leaves_places_to_others() {
    const DESCRIPTORS: u64 = 4096;
    let per_pod = karst_core::limits::connections_per_pod(DESCRIPTORS);
    let mut w = World::start(Options { ztunnel_descriptors: Some(DESCRIPTORS), ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let (out, addresses) = stranger(&mut w);
    let honest = w.pod(PodSpec::new("out", "honest", 0));
    w.settle();
    let _echo = app::Echo::start(&b, 8080, "");
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"warm").unwrap();
    let (load, plain) =
        (Load::start(a.netns(), b.at(8080), 50, b"bystander"), Load::start(honest.netns(), b.at(8080), 50, b"plain"));
    let held = hold(&out, b.at(8080), 2 * per_pod);
    println!("held={} of {} per_pod={per_pod} addresses={}", held.len(), 2 * per_pod, addresses.len());
    std::thread::sleep(Duration::from_secs(2));
    let (load, plain) = (load.end(), plain.end());
    assert!(held.len() > per_pod / 4 && held.len() < per_pod, "{}", held.len());
    println!("tunnels: ok={} failed={:?}; plaintext: ok={} failed={:?}", load.ok, load.failed, plain.ok, plain.failed);
    assert!(load.failed.is_empty() && load.ok > 50, "{load:?}");
    assert!(plain.failed.is_empty() && plain.ok > 50, "{plain:?}");
}

/// What a pod calls, and what calls it, do not take each other's places.
#[test]
fn a_pod_that_calls_without_end_is_still_called() {
    const DESCRIPTORS: u64 = 4096;
    let per_pod = karst_core::limits::connections_per_pod(DESCRIPTORS);
    let mut w = World::start(Options { ztunnel_descriptors: Some(DESCRIPTORS), ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let sinks: Vec<Pod> = (0..4).map(|n| w.mesh_pod(PodSpec::new("app", &format!("sink{n}"), 0))).collect();
    let _echoes: Vec<_> = sinks.iter().chain([&b]).map(|p| app::Echo::start(p, 8080, "")).collect();
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"warm").unwrap();
    let load = Load::start(a.netns(), b.at(8080), 50, b"bystander");
    // Twice as many as there are places in all.
    let held: Vec<_> = sinks.iter().flat_map(|s| hold(&b, s.at(8080), per_pod / 2)).collect();
    println!("held={} of {} per_pod={per_pod}", held.len(), sinks.len() * (per_pod / 2));
    std::thread::sleep(Duration::from_secs(2));
    let load = load.end();
    println!("ok={} failed={:?}", load.ok, load.failed);
    assert!(held.len() > per_pod / 2 && held.len() < per_pod, "{}", held.len());
    assert!(load.failed.is_empty() && load.ok > 50, "{load:?}");
}
