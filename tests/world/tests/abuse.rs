//! Pressure and hostile peers: slow readers (T10), tiny writes (T11), peers that never speak (T07), no descriptors left (T60).
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{Options, Pod, PodSpec, World, app, wait_for};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

fn rss_mib(pid: u32) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    t.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok()).unwrap() / 1024.0
}

fn cpu_seconds(pid: u32) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let f: Vec<&str> = t.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

fn two_pods(w: &mut World) -> (Pod, Pod, app::Echo) {
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let e = app::Echo::start(&b, 8080, "");
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"warm").unwrap();
    (a, b, e)
}

#[test]
fn a_slow_reader_stops_the_writer() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let l = b.netns().run(|| std::net::TcpListener::bind("0.0.0.0:9000").unwrap()).unwrap();
    let reader = std::thread::spawn(move || {
        let (mut s, _) = l.accept().unwrap();
        let (mut buf, mut n, end) = (vec![0; 6 << 10], 0usize, Instant::now() + Duration::from_secs(5));
        while Instant::now() < end {
            n += s.read(&mut buf).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
        n
    });
    let before = [w.ztunnel_pid(0), w.ztunnel_pid(1)].map(rss_mib);
    let mut s = a.connect(b.at(9000)).unwrap();
    s.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let (chunk, mut written, end) = (vec![7; 256 << 10], 0usize, Instant::now() + Duration::from_secs(4));
    let mut grown = [0f64; 2];
    while Instant::now() < end {
        written += s.write(&chunk).unwrap_or(0);
        for (i, g) in grown.iter_mut().enumerate() {
            *g = g.max(rss_mib(w.ztunnel_pid(i)) - before[i]);
        }
    }
    let read = reader.join().unwrap();
    println!("T10 seconds=4 read_kib={} accepted_mib={} rss_growth_mib={grown:.1?}", read >> 10, written >> 20);
    assert!(grown.iter().all(|g| *g <= 8.0), "{grown:?}");
}

#[test]
fn tiny_writes_do_not_end_a_tunnel() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let streams = 20;
    let each = 20_000usize;
    let threads: Vec<_> = (0..streams)
        .map(|i| {
            let (a, to) = (a.clone(), b.at(8080));
            std::thread::spawn(move || {
                let mut s = a.connect(to).unwrap();
                s.set_nodelay(true).unwrap();
                s.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let mut r = s.try_clone().unwrap();
                let reader = std::thread::spawn(move || {
                    let (mut got, mut buf) = (0usize, vec![0; 4096]);
                    while got < each {
                        let n = r.read(&mut buf).unwrap();
                        assert!(
                            n > 0 && buf[..n].iter().enumerate().all(|(k, x)| *x == ((got + k) % 251) as u8),
                            "stream {i}"
                        );
                        got += n;
                        if i % 2 == 0 {
                            std::thread::sleep(Duration::from_micros(50)); // half of them are slow
                        }
                    }
                });
                for n in 0..each {
                    s.write_all(&[(n % 251) as u8]).unwrap();
                }
                reader.join().unwrap();
            })
        })
        .collect();
    let lost = threads.into_iter().map(|t| t.join()).filter(Result::is_err).count();
    println!("T11 streams={streams} one_byte_writes={} lost={lost}", streams * each);
    assert_eq!(lost, 0);
}

#[test]
fn peers_that_never_speak_are_closed() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    w.namespace("out", false);
    let stranger = w.pod(PodSpec::new("out", "stranger", 0));
    w.settle();
    let mut silent: Vec<TcpStream> = (0..400).filter_map(|_| stranger.connect(b.at(15008)).ok()).collect();
    let opened = silent.len();
    let begun = Instant::now();
    let mut honest = 0;
    for _ in 0..50 {
        honest += usize::from(a.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, b"x")).is_ok());
    }
    for s in &silent {
        s.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    }
    wait_for("all silent peers are closed", Duration::from_secs(15), || {
        silent.retain_mut(|s| matches!(s.read(&mut [0; 16]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock));
        silent.is_empty().then_some(())
    });
    println!("T07 silent={opened} closed_after_s={:.1} honest={honest}/50", begun.elapsed().as_secs_f64());
    assert_eq!(honest, 50);
}

#[test]
fn no_descriptors_left_is_survived() {
    let mut w = World::start(Options::default()).unwrap();
    let (a, b, _echo) = two_pods(&mut w);
    let pid = w.ztunnel_pid(0);
    karst_world::net::run("prlimit", &["--pid", &pid.to_string(), "--nofile=128:20000"]).unwrap();
    let held: Vec<_> = (0..400).filter_map(|_| a.connect(b.at(8080)).ok()).collect();
    std::thread::sleep(Duration::from_millis(500));
    let cpu = cpu_seconds(pid);
    std::thread::sleep(Duration::from_secs(2));
    let share = (cpu_seconds(pid) - cpu) / 2.0;
    let n = held.len();
    drop(held);
    let t = Instant::now();
    wait_for("served again", Duration::from_secs(5), || {
        a.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, b"x")).ok()
    });
    let warnings = w.log_text("ztunnel0.log").matches("cannot accept connections").count();
    println!("T60 held={n} cpu_share={share:.3} served_again_ms={} log_lines={warnings}", t.elapsed().as_millis());
    assert!(share < 0.10, "{share}");
}
