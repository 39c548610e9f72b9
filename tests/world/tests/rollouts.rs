//! Rollouts of a waypoint under requests (issue 18): none fails. Clients of HTTP/2 are told by GOAWAY, those of HTTP/1.1 by an answer that
//! says Connection: close; nobody sends anything twice here. What is no request has the drain's time.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use h2::client::SendRequest;
use karst_world::{
    Options, Pod, PodSpec, World, app, bin, wait_for,
    web::{self, Session, Web},
};
use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    process::Child,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::task::{LocalSet, spawn_local};

const ROLLOUTS: usize = 3;
/// Longest drain: CONNECTION_TERMINATION_DEADLINE of a waypoint.
const DRAIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(20);
/// What takes a second.
const SLOW: &str = "/slow/";
/// A service behind a waypoint: HTTP at port 80, bytes at port 82.
const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.1.1, selector: {app: shop}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 82, targetPort: 8082}]}\n";

fn shop(port: u16) -> SocketAddr {
    ([10, 96, 1, 1], port).into()
}

struct Site {
    w: World,
    client: Pod,
    server: Pod,
    waypoint: Pod,
}

impl Site {
    fn new() -> Self {
        let mut w = World::start(Options::default()).unwrap();
        w.namespace("app", true);
        w.apply("shop", SHOP);
        let waypoint = w.waypoint("app", "waypoint", 1, &[]);
        let (client, server) =
            (w.mesh_pod(PodSpec::new("app", "client", 0)), w.mesh_pod(PodSpec::new("app", "shop", 1)));
        Self { w, client, server, waypoint }
    }

    /// The waypoint's next pod, ready and known.
    fn next(&mut self, number: usize) -> Pod {
        let name = format!("waypoint-{number}");
        let next = self.w.unready_pod(PodSpec { name, ..self.waypoint.spec.clone() });
        self.w.launch_waypoint(&next, &bin("karst-waypoint"), &[]).unwrap();
        wait_for("the next waypoint ready", PATIENCE, || self.w.is_waypoint_ready(&next).then_some(()));
        self.w.write_pod(&next, true);
        self.w.settle();
        thread::sleep(Duration::from_millis(500));
        next
    }

    /// The one before is told to end, and not chosen any more at the same time, as kubelet and the endpoints' controller do.
    fn leave(&mut self, next: Pod) -> (Pod, Child) {
        let before = std::mem::replace(&mut self.waypoint, next);
        self.w.write_pod(&before, false);
        let process = self.w.leave_waypoint(&before);
        (before, process)
    }

    /// The waypoint's pod is replaced; how long the one before has taken to end.
    fn rollout(&mut self, number: usize) -> Duration {
        let next = self.next(number);
        let (before, mut process) = self.leave(next);
        let began = Instant::now();
        process.wait().unwrap();
        let took = began.elapsed();
        self.w.drop_pod(&before).unwrap();
        took
    }
}

/// What callers share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    next: AtomicU64,
    answered: AtomicU64,
    /// Connections that were told to end, by an answer or by GOAWAY.
    told: AtomicU64,
    slowest_ms: AtomicU64,
    failed: Mutex<Vec<String>>,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }
    /// A path of its own.
    fn path(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.next.fetch_add(1, Relaxed))
    }
    fn is_told(&self) {
        self.told.fetch_add(1, Relaxed);
    }
    /// What has become of a request.
    fn note(&self, who: &str, began: Instant, answer: Result<bool, String>) {
        self.slowest_ms.fetch_max(began.elapsed().as_millis() as u64, Relaxed);
        match answer {
            Ok(true) => drop(self.answered.fetch_add(1, Relaxed)),
            Ok(false) => self.failed.lock().unwrap().push(format!("{who}: another answer")),
            Err(e) => self.failed.lock().unwrap().push(format!("{who}: {e}")),
        }
    }
}

fn is_right(answer: &web::Message, path: &str) -> bool {
    answer.status() == 200 && answer.body == path.as_bytes()
}

/// Requests on one connection of HTTP/1.1, for as long as the server keeps it; then on another.
fn kept(from: &Pod, (prefix, pause): (&str, Duration), shared: &Shared) {
    let mut session: Option<Session> = None;
    while shared.goes_on() {
        let (path, began) = (shared.path(prefix), Instant::now());
        let asked = session.take().map_or_else(|| Session::new(from, shop(80), "shop"), Ok).and_then(|mut open| {
            let answer = open.ask("GET", &path, &[], b"")?;
            Ok((open, answer))
        });
        let right = asked.map_err(|e| e.to_string()).map(|(open, answer)| {
            match answer.header("connection").eq_ignore_ascii_case("close") {
                true => shared.is_told(),
                false => session = Some(open),
            }
            is_right(&answer, &path)
        });
        shared.note(&format!("kept, every {} ms", pause.as_millis()), began, right);
        thread::sleep(pause);
    }
}

/// Each on a connection of its own.
fn anew(from: &Pod, shared: &Shared) {
    while shared.goes_on() {
        let (path, began) = (shared.path("/"), Instant::now());
        let answer = web::ask(from, shop(80), "shop", &path, &[]);
        shared.note("new connections", began, answer.map(|answer| is_right(&answer, &path)).map_err(|e| e.to_string()));
        thread::sleep(Duration::from_millis(50));
    }
}

/// The same on one connection of HTTP/2, until it is told to open no more on it.
fn by_http2(from: &Pod, prefix: &str, shared: &Shared) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        while shared.goes_on() {
            let began = Instant::now();
            let mut client = match connect(from).await {
                Ok(client) => client,
                Err(e) => {
                    shared.note("HTTP/2", began, Err(e));
                    continue;
                }
            };
            while shared.goes_on() {
                // Nothing has been sent before this.
                let Ok(mut ready) = client.ready().await else {
                    shared.is_told();
                    break;
                };
                let (path, began) = (shared.path(prefix), Instant::now());
                let request = http::Request::get(format!("http://shop{path}")).body(()).unwrap();
                let Ok((answer, _)) = ready.send_request(request, true) else {
                    shared.is_told();
                    break;
                };
                let right = body(answer).await.map(|body| body == path.as_bytes());
                // It was under way to a waypoint that had named the last request that it takes: it was not looked at, and any client
                // asks again (RFC 9113, 6.8).
                if right.as_ref().is_err_and(was_not_taken) {
                    shared.is_told();
                    break;
                }
                shared.note("HTTP/2", began, right.map_err(|e| e.to_string()));
                tokio::time::sleep(Duration::from_millis(20)).await;
                client = ready;
            }
        }
    });
}

async fn connect(from: &Pod) -> Result<SendRequest<bytes::Bytes>, String> {
    let socket = || -> io::Result<tokio::net::TcpStream> {
        let s = from.connect(shop(80))?;
        s.set_nodelay(true)?;
        s.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(s)
    };
    let (client, connection) =
        h2::client::handshake(socket().map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
    spawn_local(connection);
    Ok(client)
}

/// Did the peer end the connection in good order, and say that it has not looked at this request?
fn was_not_taken(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// The body of an answer that is a 200.
async fn body(answer: h2::client::ResponseFuture) -> Result<Vec<u8>, h2::Error> {
    let answer = answer.await?;
    let mut body = if answer.status() == 200 { vec![] } else { answer.status().to_string().into_bytes() };
    let mut stream = answer.into_body();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(body)
}

#[test]
fn no_request_fails_in_a_rollout_of_a_waypoint() {
    let mut site = Site::new();
    let _server = Web::start(&site.server, 8080, |asked| {
        if asked.path().starts_with(SLOW) {
            thread::sleep(Duration::from_secs(1));
        }
        (200, vec![], asked.path().as_bytes().to_vec())
    });
    wait_for("the waypoint serves", PATIENCE, || {
        web::ask(&site.client, shop(80), "shop", "/", &[]).ok().filter(|a| a.status() == 200)
    });
    let shared = Arc::<Shared>::default();
    let spawn = |work: fn(&Pod, &Shared)| -> JoinHandle<()> {
        let (client, shared) = (site.client.clone(), shared.clone());
        thread::spawn(move || work(&client, &shared))
    };
    let callers = [
        spawn(|from, shared| kept(from, ("/", Duration::from_millis(20)), shared)),
        // Without a request when the drain begins, mostly.
        spawn(|from, shared| kept(from, ("/", Duration::from_millis(700)), shared)),
        spawn(|from, shared| kept(from, ("/", Duration::from_millis(1100)), shared)),
        // With one, always.
        spawn(|from, shared| kept(from, (SLOW, Duration::ZERO), shared)),
        spawn(anew),
        spawn(|from, shared| by_http2(from, "/", shared)),
        spawn(|from, shared| by_http2(from, SLOW, shared)),
    ];
    let mut slowest = Duration::ZERO;
    for number in 0..ROLLOUTS {
        thread::sleep(Duration::from_secs(1));
        slowest = slowest.max(site.rollout(number + 2));
    }
    thread::sleep(Duration::from_secs(1));
    shared.stop.store(true, Relaxed);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let failed = shared.failed.lock().unwrap();
    let (answered, told) = (shared.answered.load(Relaxed), shared.told.load(Relaxed));
    println!(
        "rollouts of a waypoint={ROLLOUTS} answered={answered} failed={} told_to_end={told} slowest_answer_ms={} slowest_drain_ms={} {:?}",
        failed.len(),
        shared.slowest_ms.load(Relaxed),
        slowest.as_millis(),
        failed.iter().take(5).collect::<Vec<_>>()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(answered > 300 && told >= ROLLOUTS as u64 * 4, "{answered} answers, {told} ends");
    assert!(slowest < DRAIN, "it was cut: {slowest:?}");
}

/// Bytes and WebSockets go on until the drain is over, and are reset then.
#[test]
fn what_is_no_request_has_the_drains_time() {
    let mut site = Site::new();
    let _bytes = app::Echo::start(&site.server, 8082, "");
    let _server = Web::start(&site.server, 8080, |_| {
        (101, vec![("connection".into(), "upgrade".into()), ("upgrade".into(), "websocket".into())], vec![])
    });
    let mut bytes = site.client.connect(shop(82)).unwrap();
    app::ping(&mut bytes, b"before").unwrap();
    // Several, or all might be served where their tunnel is.
    let mut chats: Vec<Session> = (0..8).map(|_| Session::new(&site.client, shop(80), "shop").unwrap()).collect();
    for chat in &mut chats {
        let asked = chat.ask("GET", "/chat", &[("connection", "Upgrade"), ("upgrade", "websocket")], b"").unwrap();
        assert_eq!(asked.status(), 101);
    }
    let next = site.next(2);
    let (_before, mut process) = site.leave(next);
    let began = Instant::now();
    for _ in 0..6 {
        app::ping(&mut bytes, b"bytes").unwrap();
        for chat in &mut chats {
            let (w, r) = chat.raw();
            w.write_all(b"chat").unwrap();
            let mut back = [0; 4];
            r.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"chat");
        }
        thread::sleep(Duration::from_millis(500));
    }
    process.wait().unwrap();
    let took = began.elapsed();
    assert!((DRAIN..DRAIN * 2).contains(&took), "{took:?}");
    bytes.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(bytes.read(&mut [0]).map_err(|e| e.kind()), Err(io::ErrorKind::ConnectionReset));
    for chat in &mut chats {
        assert_eq!(chat.raw().1.read(&mut [0]).map_err(|e| e.kind()), Err(io::ErrorKind::ConnectionReset));
    }
}
