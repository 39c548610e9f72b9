//! Restarts: nobody is refused, nothing passes unencrypted (T50, T58, T59, T40). The whole forms are `#[ignore]`d and run by
//! `cargo xtask soak --long-tests`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{
    Load, Loaded, Options, Pod, PodSpec, World, app,
    held::{self, PORT, Shared, Size, Way},
    wait_for,
};
use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";
/// Rounds of a whole form.
const WHOLE: usize = 100;
/// The longest that a new connection may take, in a whole form, while the process that serves is killed.
const LONGEST_MS: u64 = 200;

fn two_pods(w: &mut World) -> (Pod, Pod, app::Echo) {
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let e = app::Echo::start(&b, 8080, "");
    app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
    (a, b, e)
}

/// T50: kill -9 of each part in turn, under load, with the sniffer on. No plaintext, nobody refused. Connections that were
/// open in a killed ztunnel are cut: the kernel closes its sockets.
fn kill_nine(rounds: usize) {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let sniffer = w.sniffer(MARK);
    let load = Load::start(a.netns(), b.at(8080), 100, MARK);
    let long = Long::start(&a, b.at(8080), 50);
    for i in 0..rounds {
        match i % 5 {
            0 => {
                w.stop_ztunnel(0, libc::SIGKILL);
                w.start_ztunnel(0).unwrap();
            }
            1 => {
                w.stop_ztunnel(1, libc::SIGKILL);
                w.start_ztunnel(1).unwrap();
            }
            2 => {
                w.stop_agent(0, libc::SIGKILL);
                w.start_agent(0).unwrap();
            }
            3 => {
                w.stop_agent(1, libc::SIGKILL);
                w.start_agent(1).unwrap();
            }
            _ => {
                w.stop_controller(libc::SIGKILL);
                std::thread::sleep(Duration::from_millis(200));
                w.start_controller().unwrap();
            }
        }
        for n in 0..2 {
            w.wait_ztunnel(n);
        }
        std::thread::sleep(Duration::from_millis(150));
    }
    let long_cut = long.end();
    let Loaded { ok, failed, slowest_ms } = load.end();
    println!("load: slowest connection took {slowest_ms} ms");
    let refused = failed.iter().filter(|f| f.starts_with("refused")).count();
    let cut = failed.len() - refused;
    let seen = sniffer.seen();
    println!(
        "T50 kills={rounds} ok={ok} refused={refused} cut={cut} long=50 long_cut={long_cut} plaintext={} {:?}",
        seen.marked,
        failed.iter().take(3).collect::<Vec<_>>()
    );
    assert_eq!((refused, seen.marked, seen.other_tcp), (0, 0, 0), "{failed:?}");
    assert!(ok > 20 * rounds as u64 / 2);
    // Only a ztunnel's own end cuts what it carries: two of five kills.
    assert!(long_cut <= 50 * rounds as u64 * 2 / 5, "{long_cut}");
}

#[test]
fn killed_parts_refuse_nobody_and_leak_nothing() {
    kill_nine(10);
}

#[test]
#[ignore = "soak: about two minutes"]
fn soak_killed_parts() {
    kill_nine(100);
}

/// A world whose ztunnels have a spare each.
fn with_spares() -> World {
    let ztunnel_env = vec![("KARST_WARM_SPARE".into(), "true".into())];
    World::start(Options { ztunnel_env, ..Options::default() }).unwrap()
}

/// The process that serves a node, and its spare, once that is ready. `kills`: how many have been killed before.
fn worker_and_spare(w: &World, node: usize, kills: usize) -> [u32; 2] {
    wait_for("the spare is ready", Duration::from_secs(20), || {
        let log = w.log_text(&format!("ztunnel{node}.log"));
        (log.matches("spare is ready to take over").count() > kills).then_some(())
    });
    w.ztunnel_children(node).try_into().expect("one serves, one stands by")
}

/// Kills the process that serves a node, once its spare is ready, and waits until that serves. `kills`: how many it was before.
fn kill_worker(w: &World, node: usize, kills: usize) {
    kill_worker_by(w, node, kills, libc::SIGKILL);
}

fn kill_worker_by(w: &World, node: usize, kills: usize, signal: i32) {
    let before = worker_and_spare(w, node, kills);
    karst_world::kill(before[0], signal);
    wait_for("the spare serves", Duration::from_secs(5), || {
        (w.ztunnel_children(node).first() == before.get(1)).then_some(())
    });
}

/// Issue 18: the process that serves a node is killed, as by a crash. Its spare takes over, and clients that wait for half a second
/// get their connections, to pods of the same node and of the other. What a killed process was carrying at that moment is cut. How long
/// the longest of them waits is judged in the whole form only: beside the short one, others run.
fn kill_workers(rounds: usize) {
    let mut w = with_spares();
    let (a, b, _echo) = two_pods(&mut w);
    let near = w.mesh_pod(PodSpec::new("app", "near", 0));
    let _near_echo = app::Echo::start(&near, 8080, "");
    app::ping(&mut a.connect(near.at(8080)).unwrap(), MARK).unwrap();
    w.settle();
    let sniffer = w.sniffer(MARK);
    let loads = [("same node", &near), ("other node", &b)]
        .map(|(place, to)| (place, Load::impatient(a.netns(), to.at(8080), 100, MARK, Duration::from_millis(500))));
    // Both spares learn of the pods' certificates, and it is seen what a connection takes otherwise.
    std::thread::sleep(Duration::from_secs(1));
    let mut kills = [0; 2];
    for i in 0..rounds {
        // The client's node, and in turn the server's.
        let node = i % 2;
        kill_worker(&w, node, kills[node]);
        kills[node] += 1;
        w.wait_ztunnel(node);
        assert_eq!(w.metric(node, "karst_ztunnel_crashes_total", &[]) as usize, kills[node]);
        std::thread::sleep(Duration::from_millis(500));
    }
    for (place, load) in loads {
        let Loaded { ok, failed, slowest_ms } = load.end();
        let cut = failed.iter().filter(|f| f.starts_with("cut")).count();
        println!("spare, {place}: kills={rounds} ok={ok} longest_wait_ms={slowest_ms} cut={cut} {failed:?}");
        assert_eq!(failed.len() - cut, 0, "{place}: refused or late: {failed:?}");
        assert!(cut <= 3 * rounds, "{place}: more than were open: {failed:?}");
        assert!(ok > 50 * rounds as u64, "{place}: {ok}");
        assert!(rounds < WHOLE || slowest_ms <= LONGEST_MS, "{place}: the longest has waited {slowest_ms} ms");
    }
    let seen = sniffer.seen();
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
    // Whoever stops the container stops all of it, in order.
    let all = w.ztunnel_children(0);
    w.stop_ztunnel(0, libc::SIGTERM);
    // One that nobody waits for any more may still be in the list, as a zombie.
    let has_ended =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    wait_for("all have ended", Duration::from_secs(5), || all.iter().all(has_ended).then_some(()));
    assert!(w.log_text("ztunnel0.log").contains("ztunnel stops"), "after its drain");
}

#[test]
fn a_killed_worker_is_replaced_at_once() {
    kill_workers(10);
}

#[test]
#[ignore = "soak: about three minutes"]
fn soak_killed_workers() {
    kill_workers(WHOLE);
}

/// The spare has the pods' listeners and certificates: it serves though neither agent nor controller is there.
#[test]
fn a_spare_takes_over_while_all_others_are_away() {
    let mut w = with_spares();
    let (a, b, _echo) = two_pods(&mut w);
    w.settle();
    wait_for("the spare is ready", Duration::from_secs(20), || {
        w.log_text("ztunnel0.log").contains("spare is ready to take over").then_some(())
    });
    // It may have been ready before there were pods: it looks for their certificates four times a second.
    wait_for("certificates of both processes", Duration::from_secs(20), || {
        let log = w.log_text("ztunnel0.log");
        let received = |l: &&str| l.contains("certificate received") && l.contains("/ns/app/sa/a");
        (log.lines().filter(received).count() >= 2).then_some(())
    });
    let sniffer = w.sniffer(MARK);
    w.stop_agent(0, libc::SIGKILL);
    w.stop_controller(libc::SIGKILL);
    kill_worker(&w, 0, 0);
    for _ in 0..5 {
        app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
    }
    let seen = sniffer.seen();
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
    w.start_controller().unwrap();
    w.start_agent(0).unwrap();
    w.wait_ztunnel(0);
    w.wait_enrolled(&a);
    app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
}

/// A world whose ztunnels have spares, in which open connections go on after a kill.
fn with_survival(survives: bool) -> World {
    let env = [("KARST_WARM_SPARE", "true".to_string()), ("KARST_SURVIVE_KILL", survives.to_string())];
    let ztunnel_env = env.map(|(name, value)| (name.to_string(), value)).into();
    World::start(Options { ztunnel_env, ..Options::default() }).unwrap()
}

/// What has become of the open connections of the process before.
fn after_crash(w: &World, outcome: &str) -> usize {
    after_crash_of(w, 0, outcome)
}

fn after_crash_of(w: &World, node: usize, outcome: &str) -> usize {
    let label = format!("outcome=\"{outcome}\"");
    w.metric(node, "karst_connections_after_crash_total{", &[label.as_str()]) as usize
}

/// Waits until all connections are open.
fn all_open(shared: &Shared, size: Size) {
    wait_for("all are open", Duration::from_secs(60), || {
        let failed = shared.failed.lock().unwrap();
        assert!(failed.is_empty(), "{failed:?}");
        (shared.opened.load(Relaxed) == size.connections).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    shared.measures.store(true, Relaxed);
}

/// All of them go on in the process that serves a node now.
fn all_go_on(w: &World, node: usize, size: Size) {
    w.wait_ztunnel(node);
    wait_for("all go on", Duration::from_secs(10), || {
        let [refused, unaccounted] = ["refused", "unaccounted"].map(|outcome| after_crash_of(w, node, outcome));
        assert_eq!((refused, unaccounted), (0, 0), "node {node}");
        (after_crash_of(w, node, "resumed") == size.connections).then_some(())
    });
}

/// Ends them, and compares.
fn all_whole(name: &str, clients: Vec<JoinHandle<()>>, shared: &Shared, size: Size) {
    shared.measures.store(false, Relaxed);
    shared.stop.store(true, Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (failed, pause) = (shared.failed.lock().unwrap(), shared.longest_ms.load(Relaxed));
    println!(
        "{name}: kills={} connections={} broken={} bytes={} longest_pause_ms={pause} {:?}",
        size.rounds,
        size.connections,
        failed.len(),
        shared.bytes.load(Relaxed),
        failed.iter().take(5).collect::<Vec<_>>()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(u128::from(pause) <= size.longest.as_millis(), "{pause} ms");
}

/// Once in this time open connections go on.
const GOES_ON_AFTER: Duration = Duration::from_secs(10);
/// Others run beside it here: what a pause is worth is for the whole form.
const FEW: Size = Size { rounds: 2, connections: 45, longest: Duration::from_secs(1) };
const MANY: Size = Size { rounds: 20, connections: 300, longest: Duration::from_millis(500) };

/// Issue 18, the opt-in: the process that serves is killed again and again, and what needs no tunnel goes on: no byte is lost, doubled or
/// out of order.
fn survive_kills(size: Size) {
    let mut w = with_survival(true);
    w.namespace("app", true);
    w.namespace("out", false);
    let (a, near) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "near", 0)));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    w.settle();
    let shared = Shared::new(size);
    [&near, &outside].into_iter().for_each(|pod| held::serve(pod, &shared));
    let ways = [
        Way::new("same node", &a, near.at(PORT)),
        Way::new("to outside", &a, outside.at(PORT)),
        Way::new("from outside", &outside, near.at(PORT)),
    ];
    let clients = held::open(&ways, &shared);
    all_open(&shared, size);
    for kills in 0..size.rounds {
        kill_worker(&w, 0, kills);
        let began = Instant::now();
        all_go_on(&w, 0, size);
        std::thread::sleep((GOES_ON_AFTER + Duration::from_secs(1)).saturating_sub(began.elapsed()));
    }
    all_whole("survival", clients, &shared, size);
    let log = w.log_text("ztunnel0.log");
    assert!(log.contains("connection resumed after a crash"), "each is told of");
    // Holders of those that were killed have ended, and somebody has waited for them.
    let supervisor = format!(" {} ", w.ztunnel_pid(0));
    wait_for("holders are let go of", Duration::from_secs(5), || {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
        let is_holder = |stat: &String| {
            let behind = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            stat.contains("(ztunnel-holder)") && behind.get(1..).is_some_and(|rest| rest.starts_with(&supervisor))
        };
        (stats.filter(is_holder).count() == 0).then_some(())
    });
}

#[test]
fn open_connections_survive_kills() {
    survive_kills(FEW);
}

#[test]
#[ignore = "soak: about four minutes"]
fn soak_open_connections_survive_kills() {
    survive_kills(MANY);
}

/// Two nodes, and connections between their pods, both ways. None: the kernel cannot look ahead in TCP sockets.
fn between_nodes(size: Size) -> Option<(World, Arc<Shared>, Vec<JoinHandle<()>>)> {
    let mut w = with_survival(true);
    if w.log_text("ztunnel0.log").contains("this kernel cannot look ahead") {
        return None;
    }
    w.namespace("app", true);
    let (a, far) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "far", 1)));
    w.settle();
    let shared = Shared::new(size);
    [&a, &far].into_iter().for_each(|pod| held::serve(pod, &shared));
    let ways = [Way::new("to the other node", &a, far.at(PORT)), Way::new("from the other node", &far, a.at(PORT))];
    let clients = held::open(&ways, &shared);
    all_open(&shared, size);
    Some((w, shared, clients))
}

/// The same by tunnels: of the two processes that carry all of them now the one is killed, and now the other.
fn tunnels_survive_kills(size: Size) {
    let Some((w, shared, clients)) = between_nodes(size) else { return };
    let mut kills = [0; 2];
    for round in 0..size.rounds {
        let node = round % 2;
        kill_worker(&w, node, kills[node]);
        kills[node] += 1;
        let began = Instant::now();
        all_go_on(&w, node, size);
        // Every second one is of the same node.
        std::thread::sleep((GOES_ON_AFTER / 2 + Duration::from_secs(1)).saturating_sub(began.elapsed()));
    }
    all_whole("survival of tunnels", clients, &shared, size);
}

/// What others that run beside them leave of two cores is not judged by it.
const FEW_TUNNELS: Size = Size { rounds: 4, connections: 40, longest: Duration::from_secs(3) };
const MANY_TUNNELS: Size = Size { rounds: 20, connections: 200, longest: Duration::from_secs(1) };

#[test]
fn open_connections_by_tunnels_survive_kills() {
    tunnels_survive_kills(FEW_TUNNELS);
}

#[test]
#[ignore = "soak: about three minutes"]
fn soak_open_connections_by_tunnels_survive_kills() {
    tunnels_survive_kills(MANY_TUNNELS);
}

/// Each end knows its numbers by its own kernel.
#[test]
fn open_connections_by_tunnels_survive_a_kill_at_both_ends() {
    let size = Size { rounds: 1, ..FEW_TUNNELS };
    let Some((w, shared, clients)) = between_nodes(size) else { return };
    let serving = [0, 1].map(|node| worker_and_spare(&w, node, 0)[0]);
    for worker in serving {
        karst_world::kill(worker, libc::SIGKILL);
    }
    for node in [0, 1] {
        all_go_on(&w, node, size);
    }
    std::thread::sleep(Duration::from_secs(1));
    all_whole("survival of tunnels, both ends", clients, &shared, size);
}

/// A policy that comes while the process that carries a connection stands still, and before it is killed.
#[test]
fn what_is_denied_by_now_does_not_survive() {
    let mut w = with_survival(true);
    w.namespace("app", true);
    let [a, denies, allows] = ["a", "denies", "allows"].map(|name| w.mesh_pod(PodSpec::new("app", name, 0)));
    let _echoes = [&denies, &allows].map(|pod| app::Echo::start(pod, PORT, ""));
    let mut open = [&denies, &allows].map(|pod| a.connect(pod.at(PORT)).unwrap());
    open.iter_mut().for_each(|s| app::ping(s, MARK).unwrap());
    let [worker, _] = worker_and_spare(&w, 0, 0);
    karst_world::stop(worker);
    w.write(
        "deny",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: app}\nspec: {selector: {matchLabels: {app: denies}}, action: DENY, rules: [{}]}\n",
    )
    .unwrap();
    w.settle_but(Duration::from_secs(20), 1);
    karst_world::kill(worker, libc::SIGKILL);
    let [denied, allowed] = &mut open;
    app::ping(allowed, MARK).unwrap();
    denied.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(denied.read(&mut [0]).map_err(|e| e.kind()), Err(ErrorKind::ConnectionReset));
    w.wait_ztunnel(0);
    wait_for("both are counted", Duration::from_secs(5), || {
        let counts = ["resumed", "refused", "unaccounted"].map(|outcome| after_crash(&w, outcome));
        (counts == [1, 1, 0]).then_some(())
    });
}

/// As ever: where it is switched off, and where the process has not been killed but has ended in another way.
#[test]
fn other_ends_cut_what_is_open() {
    for (survives, signal) in [(false, libc::SIGKILL), (true, libc::SIGUSR1)] {
        let mut w = with_survival(survives);
        w.namespace("app", true);
        let (a, near) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "near", 0)));
        let _echo = app::Echo::start(&near, PORT, "");
        let mut open = a.connect(near.at(PORT)).unwrap();
        app::ping(&mut open, MARK).unwrap();
        kill_worker_by(&w, 0, 0, signal);
        open.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let end = open.read(&mut [0]).map_err(|e| e.kind());
        assert!(matches!(end, Ok(0) | Err(ErrorKind::ConnectionReset)), "{survives} {signal}: {end:?}");
        // Its ports are free, and its spare serves.
        w.wait_ztunnel(0);
        app::ping(&mut a.connect(near.at(PORT)).unwrap(), MARK).unwrap();
        assert_eq!(["resumed", "refused", "unaccounted"].map(|outcome| after_crash(&w, outcome)), [0, 0, 0]);
    }
}

/// All at once: the agent and ztunnel of a node, and the controller. What remains is in the kernel.
#[test]
fn everything_dead_is_closed() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let sniffer = w.sniffer(MARK);
    w.stop_controller(libc::SIGKILL);
    w.stop_ztunnel(0, libc::SIGKILL);
    w.stop_agent(0, libc::SIGKILL);
    let mut through = 0;
    for _ in 0..5 {
        let s = a.netns().run(|| TcpStream::connect_timeout(&b.at(8080), Duration::from_secs(1))).unwrap();
        through += usize::from(s.and_then(|mut s| app::ping(&mut s, MARK)).is_ok());
    }
    let seen = sniffer.seen();
    println!("T50 all dead: through={through}/5 plaintext={} other_tcp={}", seen.marked, seen.other_tcp);
    assert_eq!((through, seen.marked, seen.other_tcp), (0, 0, 0));
    w.start_controller().unwrap();
    w.start_agent(0).unwrap();
    w.start_ztunnel(0).unwrap();
    w.wait_ztunnel(0);
    w.wait_enrolled(&a);
    app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
}

/// The mutant of T50: without pinned links everything would pass in plaintext, and the sniffer would see it.
#[test]
fn without_redirection_the_sniffer_sees_plaintext() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    w.stop_agent(0, libc::SIGKILL);
    w.stop_agent(1, libc::SIGKILL);
    for n in 0..2 {
        std::fs::remove_dir_all(w.bpf_dir(n)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(500)); // the kernel detaches a little later
    let sniffer = w.sniffer(MARK);
    app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
    let seen = sniffer.seen();
    println!("T50 mutant: without pinned links the sniffer sees {} marked frames", seen.marked);
    assert!(seen.marked > 0);
}

/// Connections that stay open, of which each is used all the time.
struct Long {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Long {
    /// Opens a connection again when it was cut. Gives, at the end, how often that was.
    fn start(from: &Pod, to: SocketAddr, n: u8) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let one = |i: u8| {
            let (stop, from) = (stop.clone(), from.clone());
            std::thread::spawn(move || {
                let mut cut = 0;
                while !stop.load(Relaxed) {
                    // Nobody must refuse it; it may be cut when a ztunnel is killed that carries it.
                    let Ok(mut s) = from.connect(to) else {
                        cut += 1;
                        continue;
                    };
                    while !stop.load(Relaxed) {
                        if app::ping(&mut s, &[i; 64]).is_err() {
                            cut += 1;
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
                cut
            })
        };
        Self { threads: (0..n).map(one).collect(), stop }
    }
    fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().map(|t| t.join().unwrap()).sum()
    }
}

/// T58, T59: rolling replacement under load, with streams that are shorter than the drain.
fn rolling(rounds: usize) {
    let mut w = World::start(Options {
        ztunnel_env: vec![("TERMINATION_GRACE_PERIOD_SECONDS".into(), "10".into())],
        ..Options::default()
    })
    .unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let load = Load::start(a.netns(), b.at(8080), 100, MARK);
    let stop = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = (0..50)
        .map(|i| {
            let (a, to, stop) = (a.clone(), b.at(8080), stop.clone());
            std::thread::spawn(move || {
                let (mut done, mut lost) = (0, 0);
                while !stop.load(Relaxed) {
                    // About half a second, in pieces, every byte checked.
                    let mut s = a.connect(to).unwrap();
                    let ok = (0..50u32).all(|n| {
                        std::thread::sleep(Duration::from_millis(10));
                        app::ping(&mut s, &[MARK, &n.to_be_bytes(), &[i; 100]].concat()).is_ok()
                    });
                    if ok { done += 1 } else { lost += 1 }
                }
                (done, lost)
            })
        })
        .collect();
    let mut old = vec![];
    let mut ports = [15000u16; 2];
    for i in 0..rounds {
        let node = i % 2;
        ports[node] = if ports[node] == 15000 { 16000 } else { 15000 };
        // The pages' ports are free again once the one before the last has gone.
        while old.len() > 1 {
            let mut c: std::process::Child = old.remove(0);
            c.wait().unwrap();
        }
        old.push(w.replace_ztunnel(node, ports[node]));
        std::thread::sleep(Duration::from_millis(100));
    }
    stop.store(true, Relaxed);
    let (mut done, mut lost) = (0, 0);
    for s in streams {
        let (d, l) = s.join().unwrap();
        done += d;
        lost += l;
    }
    let Loaded { ok, failed, slowest_ms } = load.end();
    println!("load: slowest connection took {slowest_ms} ms");
    for mut c in old {
        c.wait().unwrap();
    }
    println!(
        "T58 restarts={rounds} new_ok={ok} new_failed={} streams_done={done} streams_lost={lost} {:?}",
        failed.len(),
        failed.iter().take(3).collect::<Vec<_>>()
    );
    assert_eq!((failed.len(), lost), (0, 0), "{failed:?}");
}

#[test]
fn graceful_restarts_lose_nothing() {
    rolling(6);
}

#[test]
#[ignore = "soak: about two minutes"]
fn soak_graceful_restarts() {
    rolling(100);
}

/// T59: connections that wait in the listener's queue when a ztunnel goes are taken by the next one: the agent holds the
/// listeners. The old one is stopped (SIGSTOP), so that the queue fills, and killed.
fn handoffs(rounds: usize) {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    w.namespace("out", false);
    let stranger = w.pod(PodSpec::new("out", "stranger", 0));
    w.settle();
    let (mut queued, mut lost, mut ports) = (0, Vec::new(), [15000u16; 2]);
    for i in 0..rounds {
        // The queue of the outbound listener, and in turn that of the inbound one. (In the second case the client is no member: a
        // member's connections would be streams of a tunnel that the killed process had accepted.)
        let node = i % 2;
        let from = [&a, &stranger][node];
        karst_world::stop(w.ztunnel_pid(node));
        let waiting: Vec<_> = (0..20u8)
            .map(|n| {
                let (from, to) = (from.clone(), b.at(8080));
                std::thread::spawn(move || from.connect(to).and_then(|mut s| app::ping(&mut s, &[n; 1000])))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        ports[node] = if ports[node] == 15000 { 16000 } else { 15000 };
        let mut old = w.replace_ztunnel(node, ports[node]);
        karst_world::kill(old.id(), libc::SIGKILL);
        old.wait().unwrap();
        queued += waiting.len();
        lost.extend(waiting.into_iter().filter_map(|t| t.join().unwrap().err()).map(|e| format!("round {i}: {e}")));
    }
    println!("T59 handoffs={rounds} queued={queued} lost={}", lost.len());
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn a_queue_is_handed_over() {
    handoffs(4);
}

#[test]
#[ignore = "soak: about two minutes"]
fn soak_queue_handoffs() {
    handoffs(200);
}

/// T40: without the controller everything that is known goes on.
#[test]
fn traffic_goes_on_without_the_controller() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    w.stop_controller(libc::SIGKILL);
    let load = Load::start(a.netns(), b.at(8080), 100, MARK);
    std::thread::sleep(Duration::from_secs(2));
    let Loaded { ok, failed, slowest_ms } = load.end();
    println!("load: slowest connection took {slowest_ms} ms");
    println!("T40 seconds=2 ok={ok} failed={}", failed.len());
    assert!(failed.is_empty() && ok > 100, "{failed:?}");
}

/// T40: a pod that starts while the controller is away works, if its node has its identity; if not, nothing of it leaves.
#[test]
fn a_pod_started_without_the_controller() {
    let mut w = World::start(Options::default()).unwrap();
    let (_a, b, _echo) = two_pods(&mut w);
    let outside = outsider(&mut w);
    w.stop_controller(libc::SIGKILL);
    let sniffer = w.sniffer(MARK);
    let known = w.pod(PodSpec::new("app", "known", 0).account("a"));
    w.wait_redirected(&known);
    app::ping(&mut known.connect(b.at(8080)).unwrap(), MARK).unwrap();
    let line = format!(r#"src.addr={}:"#, known.ip);
    let line = karst_world::wait_for("the access log", Duration::from_secs(5), || {
        w.log_text("ztunnel1.log").lines().find(|l| l.contains(&line)).map(String::from)
    });
    assert!(line.contains(r#"src.identity="spiffe://cluster.local/ns/app/sa/a""#), "{line}");
    let stranger = w.pod(PodSpec::new("app", "stranger", 0));
    w.wait_redirected(&stranger);
    let mut s = stranger.connect(b.at(8080)).unwrap();
    assert!(app::ping(&mut s, MARK).is_err(), "without a certificate there is no way");
    let seen = sniffer.seen();
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
    // Who is at its address nobody can tell a member of another node: it sends nothing there in the clear.
    let echo = app::Echo::start(&known, 8080, "");
    assert!(app::ping(&mut b.connect(known.at(8080)).unwrap(), MARK).is_err());
    karst_world::wait_for("the reason", Duration::from_secs(5), || {
        w.log_text("ztunnel1.log").contains("did not say in time which workload has it").then_some(())
    });
    let seen = sniffer.seen();
    assert_eq!((seen.marked, seen.other_tcp, echo.connections()), (0, 0, 0));
    // Who is no member can call it, under the policies that are known.
    app::ping(&mut outside.connect(known.at(8080)).unwrap(), b"hello").unwrap();
    assert_eq!(echo.last_peer().unwrap().ip(), outside.ip);
}

/// A pod outside of the mesh, on the second node.
fn outsider(w: &mut World) -> Pod {
    w.namespace("out", false);
    let p = w.pod(PodSpec::new("out", "outside", 1));
    w.settle();
    p
}

/// With the controller away, a pod is made anew under the name and at the addresses of another, with another account and uid: it
/// is not taken for the one before, neither by those whom it calls nor by those who call it.
#[test]
fn a_pod_made_anew_is_not_the_one_before() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let server = |name: &str, node| PodSpec::new("app", name, node).label("part", "server");
    let (near, far) = (w.mesh_pod(server("near", 0)), w.mesh_pod(server("far", 1)));
    // Somebody has the other account on that node, so its certificate is there.
    let other = w.mesh_pod(PodSpec::new("app", "other", 0).account("b"));
    let first = w.mesh_pod(PodSpec::new("app", "x", 0).account("a"));
    let outside = outsider(&mut w);
    w.apply(
        "only-a",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-a, namespace: app}\nspec: {selector: {matchLabels: {part: server}}, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/a]}}]}]}\n",
    );
    let _servers = [app::Echo::start(&near, 8080, ""), app::Echo::start(&far, 8080, "")];
    let call = |from: &Pod, to: &Pod| from.connect(to.at(8080)).and_then(|mut s| app::ping(&mut s, MARK)).is_ok();
    {
        let _echo = app::Echo::start(&first, 8080, "");
        for server in [&near, &far] {
            assert!(call(&first, server) && call(server, &first), "{}", server.spec.name);
            assert!(!call(&other, server), "b is not let in by {}", server.spec.name);
        }
        assert!(call(&outside, &first));
    }
    w.stop_controller(libc::SIGKILL);
    w.lose_pod(&first);
    let sniffer = w.sniffer(MARK);
    let second = w.pod_again(&first, "b");
    assert_eq!((second.ip, &second.spec.name), (first.ip, &first.spec.name));
    w.wait_redirected(&second);
    let echo = app::Echo::start(&second, 8080, "");
    for (place, server) in [("same node", &near), ("other node", &far)] {
        assert!(!call(&second, server), "{place}: it came in as the pod before");
        assert!(!call(server, &second), "{place}: it was taken for the pod before");
    }
    let shown = format!("src.addr={}:", second.ip);
    for log in ["ztunnel0.log", "ztunnel1.log"] {
        let text = w.log_text(log);
        let denied = text.lines().any(|l| l.contains(&shown) && l.contains("/sa/b\"") && l.contains("denied"));
        assert!(denied, "{log}: it was judged as what it is");
    }
    let seen = sniffer.seen();
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
    // A policy with a selector in its namespace may be for it.
    assert!(!call(&outside, &second), "closed until it is told which policies apply");
    assert_eq!(echo.connections(), 0);
    // The controller is back and tells who it is.
    w.start_controller().unwrap();
    w.settle();
    karst_world::wait_for("all call it again", Duration::from_secs(20), || {
        (call(&near, &second) && call(&far, &second) && call(&outside, &second)).then_some(())
    });
    assert!(!call(&second, &far) && !call(&second, &near));
}

/// The controller is held up while a new pod is called by its address: nothing goes there in the clear, and the connection is
/// served by a tunnel as soon as the pod is told of.
#[test]
fn an_address_that_is_not_told_yet_is_held() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, _b, _echo) = two_pods(&mut w);
    let outside = outsider(&mut w);
    let sniffer = w.sniffer(MARK);
    let controller = w.controller_pid();
    karst_world::stop(controller);
    // With an account whose certificate its node has.
    let new = w.pod(PodSpec::new("app", "new", 1).account("b"));
    w.wait_redirected(&new);
    let _new_echo = app::Echo::start(&new, 8080, "");
    let calls: Vec<_> = [new.at(8080), new.at6(8080)]
        .map(|to| {
            let a = a.clone();
            std::thread::spawn(move || a.connect(to).and_then(|mut s| app::ping(&mut s, MARK)))
        })
        .into();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(calls.iter().all(|c| !c.is_finished()), "held");
    assert_eq!(sniffer.seen().marked, 0);
    karst_world::kill(controller, libc::SIGCONT);
    for c in calls {
        c.join().unwrap().expect("served once it is told");
    }
    let seen = sniffer.seen();
    println!("untold: marked={} other_tcp={}", seen.marked, seen.other_tcp);
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
    let line = |part: String| w.log_text("ztunnel1.log").lines().any(|l| l.contains(&part) && l.contains("/sa/a\""));
    karst_world::wait_for("the tunnel's end in the log", Duration::from_secs(5), || {
        line(format!("dst.addr={}:8080", new.ip)).then_some(())
    });
    w.settle();
    // Who is known, in the mesh or not, is not waited for. What is at an address of nobody's is, and then goes as it is.
    let took = |to: SocketAddr| {
        let began = Instant::now();
        let served = a.connect(to).and_then(|mut s| app::ping(&mut s, b"hello")).is_ok();
        (served, began.elapsed())
    };
    let _outside_echo = app::Echo::start(&outside, 8080, "");
    for to in [new.at(8080), outside.at(8080), outside.at6(8080)] {
        let (served, t) = took(to);
        assert!(served && t < Duration::from_secs(1), "{to}: {served} {t:?}");
    }
    let node: SocketAddr = "10.77.1.1:8081".parse().unwrap();
    let l = w.nodes[1].netns.run(|| std::net::TcpListener::bind(node)).unwrap().unwrap();
    let answer = std::thread::spawn(move || {
        use std::io::Write;
        let (mut s, _) = l.accept().unwrap();
        let mut buf = [0; 5];
        s.read_exact(&mut buf).and_then(|()| s.write_all(&buf)).unwrap();
    });
    let (served, t) = took(node);
    println!("untold: nobody's address served={served} after {} ms", t.as_millis());
    assert!(served && t >= Duration::from_secs(2) && t < Duration::from_secs(5), "{served} {t:?}");
    answer.join().unwrap();
}

/// The same by a waypoint, where the address is that of a ServiceEntry's endpoint: such an entry does not tell who is there.
#[test]
fn a_waypoint_holds_what_goes_to_an_address_that_is_not_told_yet() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, _b, _echo) = two_pods(&mut w);
    // With an account whose certificate its node has.
    let _account = w.mesh_pod(PodSpec::new("app", "account", 1).account("b"));
    let _waypoint = w.waypoint("app", "waypoint", 0, &[]);
    w.apply("later", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: later, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {hosts: [later.example.com], addresses: [10.97.0.9], resolution: STATIC, ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 8080}], endpoints: [{address: 10.77.1.200}]}\n");
    let sniffer = w.sniffer(MARK);
    let controller = w.controller_pid();
    karst_world::stop(controller);
    w.next_address(1, 200);
    let new = w.pod(PodSpec::new("app", "new", 1).account("b"));
    assert_eq!(new.ip.to_string(), "10.77.1.200");
    w.wait_redirected(&new);
    let _new_echo = app::Echo::start(&new, 8080, "");
    let call = {
        let a = a.clone();
        std::thread::spawn(move || a.connect(([10, 97, 0, 9], 80).into()).and_then(|mut s| app::ping(&mut s, MARK)))
    };
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!call.is_finished(), "held");
    assert_eq!(sniffer.seen().marked, 0);
    karst_world::kill(controller, libc::SIGCONT);
    call.join().unwrap().expect("served once it is told");
    let seen = sniffer.seen();
    println!("untold, by a waypoint: marked={} other_tcp={}", seen.marked, seen.other_tcp);
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
}

/// T24, T40: certificates of 20 seconds rotate under long connections and new ones.
#[test]
fn rotation_breaks_nothing() {
    let mut w = World::start(Options {
        ztunnel_env: vec![("SECRET_TTL".into(), "20".into()), ("POOL_UNUSED_RELEASE_TIMEOUT".into(), "1".into())],
        ..Options::default()
    })
    .unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let mut long: Vec<TcpStream> = (0..10).map(|_| a.connect(b.at(8080)).unwrap()).collect();
    let load = Load::start(a.netns(), b.at(8080), 50, MARK);
    let end = Instant::now() + Duration::from_secs(24);
    let mut broken = 0;
    while Instant::now() < end {
        for s in &mut long {
            broken += usize::from(app::ping(s, MARK).is_err());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let Loaded { ok, failed, slowest_ms } = load.end();
    println!("load: slowest connection took {slowest_ms} ms");
    let rotations = w.log_text("ztunnel0.log").matches("certificate received").count();
    println!("T24 lifetime_s=20 rotations={rotations} long_broken={broken} new_ok={ok} new_failed={}", failed.len());
    assert_eq!((broken, failed.len()), (0, 0), "{failed:?}");
    assert!(rotations >= 2);
}

/// A list that cannot be read changes nothing; one that names a workload's certificate closes its tunnels, also those that are
/// open, and no others. Its ztunnel gets it another certificate by itself.
#[test]
fn a_revoked_certificate_ends_its_tunnels_and_no_others() {
    let tmp = std::env::temp_dir().join(format!("karst-revoked-{}", std::process::id()));
    std::fs::create_dir_all(&tmp).unwrap();
    let file = tmp.join("ca-crl.pem");
    let write = |text: &str| {
        std::fs::write(tmp.join("new"), text).unwrap();
        std::fs::rename(tmp.join("new"), &file).unwrap();
    };
    let mut w = World::start(Options {
        ztunnel_env: vec![("CRL_PATH".into(), file.display().to_string())],
        ..Options::default()
    })
    .unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let c = w.mesh_pod(PodSpec::new("app", "c", 1));
    let _other = app::Echo::start(&c, 8080, "");
    let mut held = a.connect(b.at(8080)).unwrap();
    let mut bystander = a.connect(c.at(8080)).unwrap();
    let mut both = |whole: bool| {
        app::ping(&mut bystander, MARK).unwrap();
        (app::ping(&mut held, MARK).is_ok() == whole).then_some(())
    };
    both(true).unwrap();
    write("nonsense");
    wait_for("the broken list is reported", Duration::from_secs(5), || {
        (w.metric(0, "karst_crl_load_failures_total", &[]) >= 1.0).then_some(())
    });
    both(true).unwrap();

    let serial = || {
        let (_, dump) = w.get(1, 15000, "/config_dump").unwrap();
        let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
        let all = dump["certificates"].as_array().unwrap().clone();
        let own = all.iter().find(|c| c["identity"] == "spiffe://cluster.local/ns/app/sa/b").unwrap();
        own["certChain"][0]["serialNumber"].as_str().unwrap().to_string()
    };
    let (before, now) = (serial(), std::time::SystemTime::now());
    let bytes = serial_bytes(&before);
    let ca = |f: &str| std::fs::read_to_string(w.dir.join("controller").join(f)).unwrap();
    let key = rcgen::KeyPair::from_pem(&ca("ca-key.pem")).unwrap();
    let list = rcgen::CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + Duration::from_secs(3600)).into(),
        crl_number: rcgen::SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(&bytes),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    let issuer = rcgen::Issuer::from_ca_cert_pem(&ca("ca-cert.pem"), key).unwrap();
    write(&list.signed_by(&issuer).unwrap().pem().unwrap());
    let begun = Instant::now();
    wait_for("the open connection is cut", Duration::from_secs(10), || both(false));
    let cut = begun.elapsed();
    wait_for("another certificate", Duration::from_secs(10), || (serial() != before).then_some(()));
    app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
    app::ping(&mut bystander, MARK).unwrap();
    let closed = w.metric(0, "istio_crl_policy_rejections_total", &["reporter=\"source\""]);
    println!("revoked: open tunnel cut after {:.1} s, rejections {closed}", cut.as_secs_f64());
    assert!(closed >= 1.0);
    let _ = std::fs::remove_dir_all(&tmp);
}

/// T13, T14: half-close keeps its meaning, and a reset stays a reset.
#[test]
fn ends_keep_their_meaning() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let data: Vec<u8> = (0..2_000_000u32).map(|i| (i % 253) as u8).collect();
    for _ in 0..20 {
        assert_eq!(
            app::exchange(&mut a.connect(b.at(8080)).unwrap(), &data).unwrap(),
            data,
            "the answer comes after our end"
        );
    }
    // The server's reset arrives as a reset.
    let l = b.netns().run(|| std::net::TcpListener::bind("0.0.0.0:9000").unwrap()).unwrap();
    let t = std::thread::spawn(move || {
        let (s, _) = l.accept().unwrap();
        let s = socket2::Socket::from(s);
        std::thread::sleep(Duration::from_millis(100));
        s.set_linger(Some(Duration::ZERO)).unwrap();
    });
    let mut s = a.connect(b.at(9000)).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let e = s.read(&mut [0; 1]).unwrap_err();
    t.join().unwrap();
    println!("T14 bodies=20 truncated=0; reset arrives as {:?}", e.kind());
    assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
}

/// A node with three of a service's four endpoints is gone without a word: connections go to what is left, also those that would
/// have taken a tunnel that is open. What was open goes on when the node is back.
#[test]
fn a_lost_node_is_not_waited_for() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let backends =
        [0, 1, 2, 3].map(|i| w.mesh_pod(PodSpec::new("app", &format!("b{i}"), i.min(1)).label("app", "web")));
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n");
    let echoes = [0, 1, 2, 3].map(|i: usize| app::Echo::start(&backends[i], 8080, ""));
    let vip: SocketAddr = ([10, 96, 0, 10], 80).into();
    let mut held = client.connect(backends[1].at(8080)).unwrap();
    app::ping(&mut held, MARK).unwrap();
    let load = Load::start(client.netns(), vip, 40, MARK);
    // Each connection goes to one of two that are drawn: how many it takes until all are used is chance.
    let before = wait_for("all are used", Duration::from_secs(10), || {
        let each: Vec<usize> = echoes.iter().map(app::Echo::connections).collect();
        each.iter().all(|n| *n > 3).then_some(each)
    });
    load.between(|| w.lose(1, 0, true));
    // Longer than a client waits (10 s), and not so long that TCP, which waits twice as long each time, tries again much later.
    std::thread::sleep(Duration::from_secs(11));
    w.lose(1, 0, false);
    app::ping(&mut held, MARK).unwrap();
    let at_return: Vec<usize> = echoes.iter().map(app::Echo::connections).collect();
    std::thread::sleep(Duration::from_secs(12));
    let Loaded { ok, failed, slowest_ms } = load.end();
    println!("load: slowest connection took {slowest_ms} ms");
    let after: Vec<usize> = echoes.iter().map(app::Echo::connections).collect();
    println!(
        "node lost for 11 s: ok={ok} failed={} connections {before:?} {at_return:?} {after:?} {failed:?}",
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
    // Of 440.
    assert!(at_return[0] - before[0] > 150, "connections waited: {before:?} {at_return:?}");
    assert!(ok > 300);
    assert!((1..4).all(|i| after[i] > at_return[i]), "the node that is back is used again: {at_return:?} {after:?}");
}

/// A serial number that a dump has in decimal digits, as bytes, the most significant first.
fn serial_bytes(decimal: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new(); // the least significant first
    for digit in decimal.bytes() {
        let mut carry = u32::from(digit - b'0');
        for byte in &mut bytes {
            carry += u32::from(*byte) * 10;
            *byte = carry as u8;
            carry >>= 8;
        }
        if carry > 0 {
            bytes.push(carry as u8);
        }
    }
    bytes.reverse();
    bytes
}
