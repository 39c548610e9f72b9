//! Fair neighbours: what one pod does to its node, another one hardly notices, and the memory that it took comes back. In short here;
//! at the size that is promised, beside the same load outside of the mesh, as `#[ignore]`d test (`cargo xtask soak --long-tests`).
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{Options, Pod, PodSpec, World, app, net, wait_for};
use socket2::SockRef;
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Where the attacked application listens.
const PORT: u16 = 9000;
/// Of the victim's client.
const THREADS: u32 = 4;
/// The victim's client opens another connection after so many requests.
const ANEW: usize = 20;
/// Memory may be this much above the start, so long after the end.
const ABOVE_MIB: f64 = 5.0;
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// The victim's p99 may be so many times what it is beside the same load outside of the mesh.
const RATIO: f64 = 1.5;
/// At full size: how long each load goes on, how many connections idle ones and slow ones are, and how many new ones come in a second.
const TIME: Duration = Duration::from_secs(20);
const IDLE: usize = 10_000;
const SLOW: usize = 5000;
const NEW_PER_SECOND: usize = 20_000;
/// Of the new connections a second that are asked for, or of those that the control reaches, so much must come to be.
const REACHED: f64 = 0.9;

/// What a neighbour does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// Streams that send as much as they can.
    Bulk,
    /// Connections that do nothing.
    Idle,
    /// Connections that send a byte a second.
    Loris,
    /// Connections a second that are reset at once.
    Resets,
    /// Connections a second that end at once.
    Connects,
}

/// An attack that runs.
struct Running {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
    sink: Option<JoinHandle<()>>,
}

impl Attack {
    /// Starts it: of this size (streams, connections, connections a second).
    fn start(self, from: &Pod, to: &Pod, size: usize) -> Running {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let sink = Some(self.sink(to, stop.clone()));
        let threads = match self {
            Self::Bulk => size,
            Self::Idle | Self::Loris => 1,
            Self::Resets | Self::Connects => 4,
        };
        let one = |_| {
            let (stop, done, netns, to) = (stop.clone(), done.clone(), from.netns().clone(), to.at(PORT));
            std::thread::spawn(move || netns.run(|| self.run(to, size.div_ceil(threads), &stop, &done)).unwrap())
        };
        let threads = (0..threads).map(one).collect();
        Running { stop, done, threads, sink }
    }

    /// One thread's part.
    fn run(self, to: SocketAddr, size: usize, stop: &AtomicBool, done: &AtomicUsize) {
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok();
        let goes_on = || !stop.load(Relaxed);
        match self {
            Self::Bulk => {
                let Some(mut s) = connect() else { return };
                s.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
                let chunk = vec![7; 256 << 10];
                while goes_on() {
                    done.fetch_add(s.write(&chunk).unwrap_or(0), Relaxed);
                }
            }
            Self::Idle | Self::Loris => {
                let (mut held, mut turn) = (Vec::new(), Instant::now());
                while goes_on() {
                    let new = if held.len() < size { connect() } else { None };
                    match new {
                        Some(s) => {
                            held.push(s);
                            done.fetch_add(1, Relaxed);
                        }
                        None => std::thread::sleep(Duration::from_millis(10)),
                    }
                    if self == Self::Loris && turn.elapsed() >= Duration::from_secs(1) {
                        turn = Instant::now();
                        held.iter_mut().for_each(|s| drop(s.write(b"x")));
                    }
                }
            }
            Self::Resets | Self::Connects => {
                let (gap, mut next) = (Duration::from_secs(1) / size.max(1) as u32, Instant::now());
                while goes_on() {
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += gap;
                    let Some(s) = connect() else { continue };
                    if self == Self::Resets {
                        let _ = SockRef::from(&s).set_linger(Some(Duration::ZERO));
                    }
                    done.fetch_add(1, Relaxed);
                }
            }
        }
    }

    /// The attacked application.
    fn sink(self, at: &Pod, stop: Arc<AtomicBool>) -> JoinHandle<()> {
        let listener = at.netns().run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let mut kept = vec![];
            while !stop.load(Relaxed) {
                match listener.accept() {
                    Ok((mut s, _)) => match self {
                        Self::Bulk => {
                            std::thread::spawn(move || {
                                let mut buf = vec![0; 256 << 10];
                                while matches!(s.read(&mut buf), Ok(1..)) {}
                            });
                        }
                        Self::Idle | Self::Loris => kept.push(s),
                        Self::Resets | Self::Connects => {}
                    },
                    Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                    Err(_) => {}
                }
            }
        })
    }
}

impl Running {
    /// Ends it: how much was done (bytes, or connections).
    fn end(mut self) -> usize {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..).chain(self.sink.take()) {
            thread.join().unwrap();
        }
        self.done.load(Relaxed)
    }
}

/// What the victim's client has seen.
#[derive(Debug, Default)]
struct Seen {
    /// From when each request was due to its answer.
    micros: Vec<u64>,
    failed: Vec<String>,
}

impl Seen {
    fn percentile(&self, of_hundred: usize) -> u64 {
        let mut all = self.micros.clone();
        all.sort_unstable();
        all.get((all.len() * of_hundred / 100).min(all.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// So many requests a second for so long, over connections that are kept for a while.
fn victim(from: &Pod, to: SocketAddr, per_second: u32, time: Duration) -> Seen {
    let gap = Duration::from_secs(1) * THREADS / per_second;
    let begun = Instant::now();
    let one = |n: u32| {
        let mut seen = Seen::default();
        let (mut open, mut due, mut count) = (None, begun + gap * n / THREADS, 0);
        while begun.elapsed() < time {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if count % ANEW == 0 {
                open = None;
            }
            count += 1;
            let connected = match open.take() {
                Some(s) => Ok(s),
                None => from.connect(to).and_then(|s| s.set_nodelay(true).map(|()| s)),
            };
            match connected.and_then(|mut s| app::ping(&mut s, b"victim").map(|()| s)) {
                Ok(s) => {
                    seen.micros.push(due.elapsed().as_micros() as u64);
                    open = Some(s);
                }
                Err(e) => seen.failed.push(e.to_string()),
            }
            due += gap;
        }
        seen
    };
    let mut all = Seen::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || one(n))).collect();
        for thread in threads {
            let seen = thread.join().unwrap();
            all.micros.extend(seen.micros);
            all.failed.extend(seen.failed);
        }
    });
    all
}

/// Two nodes; on the first a victim and its neighbour, on the second whom they call. And the same two outside of the mesh.
struct Scene {
    w: World,
    victim: Pod,
    server: SocketAddr,
    member: (Pod, Pod),
    outside: (Pod, Pod),
    _echo: app::Echo,
}

impl Scene {
    fn new() -> Self {
        let mut w = World::start(Options::default()).unwrap();
        w.namespace("app", true);
        w.namespace("out", false);
        let mut member = |name: &str, node| w.mesh_pod(PodSpec::new("app", name, node));
        let (victim, server) = (member("victim", 0), member("server", 1));
        let member = (member("neighbour", 0), member("target", 1));
        let outside = (w.pod(PodSpec::new("out", "near", 0)), w.pod(PodSpec::new("out", "far", 1)));
        w.settle();
        let echo = app::Echo::start(&server, 8080, "");
        let scene = Self { w, victim, server: server.at(8080), member, outside, _echo: echo };
        // What is needed anyway is there.
        let warm = scene.measure(None, 200, Duration::from_secs(3)).0;
        assert!(warm.failed.is_empty(), "{:?}", warm.failed);
        scene
    }

    /// What the victim sees while this is done, by the member or by the one outside; and how much was done.
    fn measure(&self, attack: Option<(Attack, usize, &(Pod, Pod))>, per_second: u32, time: Duration) -> (Seen, usize) {
        let running = attack.map(|(attack, size, (from, to))| attack.start(from, to, size));
        let seen = victim(&self.victim, self.server, per_second, time);
        (seen, running.map_or(0, Running::end))
    }

    fn rss_mib(&self) -> [f64; 2] {
        [0, 1].map(|node| {
            let text = fs::read_to_string(format!("/proc/{}/status", self.w.ztunnel_pid(node))).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
        })
    }

    /// Waits until the memory of both ztunnels is back, for a minute at most: how many seconds that took (infinitely many if it is not
    /// back), and where it is then.
    fn comes_back(&self, before: [f64; 2]) -> (f64, [f64; 2]) {
        let begun = Instant::now();
        let is_back = |now: [f64; 2]| now.iter().zip(before).all(|(now, before)| *now <= before + ABOVE_MIB);
        loop {
            let now = self.rss_mib();
            if is_back(now) {
                return (begun.elapsed().as_secs_f64(), now);
            }
            if begun.elapsed() >= BACK_WITHIN {
                return (f64::INFINITY, now);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// How often somebody had to wait for others' turns on the first node.
    fn waited(&self, pod: &Pod) -> f64 {
        self.w.metric(0, "karst_turns_waited_total", &[&format!("pod=\"{}\"", pod.spec.name)])
    }
}

/// An attack in short.
fn short(attack: Attack, size: usize) {
    karst_rt::process::raise_descriptor_limit().unwrap();
    let scene = Scene::new();
    let before = scene.rss_mib();
    let (seen, done) = scene.measure(Some((attack, size, &scene.member)), 200, Duration::from_secs(4));
    let highest = scene.rss_mib();
    let (took, after) = scene.comes_back(before);
    println!(
        "neighbour {attack:?}: done={done} victim ok={} failed={:?} p50_us={} p99_us={} waited={} \
         rss_mib={before:.1?} {highest:.1?} {after:.1?} back_after_s={took:.1}",
        seen.micros.len(),
        seen.failed,
        seen.percentile(50),
        seen.percentile(99),
        scene.waited(&scene.member.0)
    );
    assert!(
        took.is_finite(),
        "memory does not come back: MiB before {before:.1?}, at the end {highest:.1?}, now {after:.1?}"
    );
    assert!(done > 100, "{done}: there was no attack");
    assert!(seen.failed.is_empty() && seen.micros.len() > 100, "{:?}", seen.failed);
}

#[test]
fn bulk_streams_leave_room_for_others() {
    short(Attack::Bulk, 8);
}

#[test]
fn idle_connections_give_their_memory_back() {
    short(Attack::Idle, 800);
}

#[test]
fn slow_connections_hold_up_nobody() {
    short(Attack::Loris, 400);
}

#[test]
fn a_flood_of_resets_holds_up_nobody() {
    short(Attack::Resets, 2000);
}

#[test]
fn a_flood_of_connections_holds_up_nobody() {
    short(Attack::Connects, 2000);
}

/// A pipe for a log, of which nobody reads yet.
fn unread_log(w: &mut World, node: usize) -> fs::File {
    let path = w.dir.join(format!("logs/ztunnel{node}.log"));
    w.stop_ztunnel(node, libc::SIGTERM);
    fs::remove_file(&path).unwrap();
    net::run("mkfifo", &[&path.display().to_string()]).unwrap();
    let pipe = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    w.start_ztunnel(node).unwrap();
    // Both have it open: nobody else is to read from it by mistake.
    wait_for("ztunnel has its log", Duration::from_secs(5), || {
        let theirs = fs::read_link(format!("/proc/{}/fd/1", w.ztunnel_pid(node))).ok()?;
        (theirs == path && fs::read_link(format!("/proc/{}/exe", w.ztunnel_pid(node))).ok()?.ends_with("ztunnel"))
            .then_some(())
    });
    fs::remove_file(&path).unwrap();
    w.wait_ztunnel(node);
    w.settle();
    pipe
}

/// The log is full: lines are lost and counted, and nobody waits.
#[test]
fn a_log_that_nobody_reads_holds_up_nobody() {
    let mut scene = Scene::new();
    let mut pipe = unread_log(&mut scene.w, 0);
    let attack = Some((Attack::Connects, 4000, &scene.member));
    let lost = || scene.w.metric(0, "karst_log_lines_lost_total", &[]);
    let (seen, done) = scene.measure(attack, 200, Duration::from_secs(5));
    println!("neighbour log: done={done} lost={} ok={} failed={:?}", lost(), seen.micros.len(), seen.failed);
    assert!(lost() > 0.0, "the log was not full: {done} connections");
    assert!(seen.failed.is_empty() && seen.micros.len() > 100, "{:?}", seen.failed);
    // Somebody reads again: what comes is written again, and says what is missing.
    let read = Arc::new(AtomicBool::new(false));
    let told = read.clone();
    std::thread::spawn(move || {
        let (mut text, mut buf) = (Vec::new(), vec![0; 64 << 10]);
        while let Ok(length @ 1..) = pipe.read(&mut buf) {
            text.extend_from_slice(&buf[..length]);
            if String::from_utf8_lossy(&text).contains("lines of the log were lost") {
                told.store(true, Relaxed);
            }
            let from = text.len().saturating_sub(200);
            text.drain(..from);
        }
    });
    wait_for("the log says that lines are missing", Duration::from_secs(10), || read.load(Relaxed).then_some(()));
    let (seen, _) = scene.measure(None, 200, Duration::from_secs(1));
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
}

/// One attack at its full size, beside the same load outside of the mesh: what is not as it is promised. `start`: the memory to which
/// both ztunnels are to come back.
fn at_full_size(scene: &Scene, start: [f64; 2], what: &str, (attack, size): (Attack, usize)) -> Vec<String> {
    let (control, as_much) = scene.measure(Some((attack, size, &scene.outside)), 1000, TIME);
    std::thread::sleep(Duration::from_secs(5));
    let (seen, done) = scene.measure(Some((attack, size, &scene.member)), 1000, TIME);
    let highest = scene.rss_mib();
    let (took, after) = scene.comes_back(start);
    let ratio = seen.percentile(99) as f64 / control.percentile(99).max(1) as f64;
    let [per_second, control_per_second] = [done, as_much].map(|count| count as f64 / TIME.as_secs_f64());
    println!(
        "neighbour {what} size={size}: p50_us={} p99_us={} control p50_us={} p99_us={} ratio_p99={ratio:.2} requests={} failed={} \
         done={done} control_done={as_much} per_second={per_second:.0} control_per_second={control_per_second:.0} waited={} \
         rss_mib={start:.1?} {highest:.1?} {after:.1?} back_after_s={took:.1}",
        seen.percentile(50),
        seen.percentile(99),
        control.percentile(50),
        control.percentile(99),
        seen.micros.len(),
        seen.failed.len(),
        scene.waited(&scene.member.0)
    );
    let mut wrong: Vec<String> = seen.failed.iter().map(|failed| format!("{what}: {failed}")).collect();
    if ratio > RATIO {
        wrong.push(format!(
            "{what}: the victim's p99 is {ratio:.2} of what it is beside the same load outside of the mesh"
        ));
    }
    if took.is_infinite() {
        wrong.push(format!("{what}: memory does not come back: MiB at the start {start:.1?}, now {after:.1?}"));
    }
    // Else the victim was beside another load than the one that is promised.
    let least = REACHED * control_per_second.min(size as f64);
    if matches!(attack, Attack::Resets | Attack::Connects) && per_second < least {
        wrong.push(format!("{what}: {per_second:.0} new connections/s, and not {least:.0} at least"));
    }
    wrong
}

/// The size that is promised: 1,000 requests a second beside each attack; the control is the same load outside of the mesh.
#[test]
#[ignore = "soak: about ten minutes"]
fn neighbours_at_full_size() {
    let own = std::process::id().to_string();
    // Root of the node may have more than the limit of this session.
    if let Err(e) = net::run("prlimit", &["--pid", &own, "--nofile=200000:200000"]) {
        println!("neighbour: the limit of descriptors stays: {e}");
    }
    // Both ends of each connection are this process's; a ztunnel, which has the same limit, may need some more.
    let descriptors = karst_rt::process::raise_descriptor_limit().unwrap() as usize;
    assert!(
        descriptors >= 4 * IDLE,
        "the limit of descriptors is {descriptors}: {IDLE} connections need {} (ulimit -Hn; sysctl fs.nr_open)",
        4 * IDLE
    );
    let mut scene = Scene::new();
    let quiet = scene.measure(None, 1000, TIME).0;
    println!(
        "neighbour none: p50_us={} p99_us={} failed={}",
        quiet.percentile(50),
        quiet.percentile(99),
        quiet.failed.len()
    );
    // Once, before all of them: what each of them left would else be the start of the next.
    let mut start = scene.rss_mib();
    let mut wrong = vec![];
    for (attack, size) in [
        (Attack::Bulk, 64),
        (Attack::Idle, IDLE),
        (Attack::Loris, SLOW),
        (Attack::Resets, NEW_PER_SECOND),
        (Attack::Connects, NEW_PER_SECOND),
    ] {
        wrong.extend(at_full_size(&scene, start, &format!("{attack:?}"), (attack, size)));
    }
    // The last: the first node's ztunnel is another process then, whose memory has a start of its own, as quiet as the first.
    let _unread = unread_log(&mut scene.w, 0);
    wrong.extend(scene.measure(None, 1000, TIME).0.failed);
    start[0] = scene.rss_mib()[0];
    wrong.extend(at_full_size(&scene, start, "full log", (Attack::Connects, NEW_PER_SECOND)));
    assert!(scene.w.metric(0, "karst_log_lines_lost_total", &[]) > 0.0, "the log was not full");
    assert!(wrong.is_empty(), "{} times: {:#?}", wrong.len(), wrong.iter().take(20).collect::<Vec<_>>());
}
