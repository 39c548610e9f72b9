//! The load: callers that know each byte that is due. Connections that are made anew, such that stay open, requests through waypoints
//! and gateway, and a caller whom a policy forbids everything.

use crate::{oracle, shared::Shared, site::Site};
use karst_world::{
    Pod,
    soak::{
        judge::{Failure, Place},
        schedule::Dice,
    },
    web::Session,
};
use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Who waits this long for an answer on a new connection gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// And on one that is held: TCP sends again after a node was away for as long as that took.
const HELD_PATIENCE: Duration = Duration::from_secs(40);
/// The pause between new connections of a caller.
const PAUSE: Duration = Duration::from_millis(60);
/// Requests: clients of each place, and the pause of each.
const CLIENTS: usize = 2;
const BREATH: Duration = Duration::from_millis(80);
/// So many requests are sent on a kept connection; then it is closed, as clients do. (One that is never closed holds up the rollouts
/// of all that is on its way.)
const KEPT: usize = 25;
/// Held connections of each place and kind: bytes at a time, and the pause between.
const HELD: usize = 5;
const KINDS: [(usize, Duration); 4] = [
    (1, Duration::from_millis(100)),
    (700, Duration::from_millis(50)),
    (64 << 10, Duration::from_millis(400)),
    // Idle, mostly.
    (700, Duration::from_secs(10)),
];

static NEXT: AtomicU64 = AtomicU64::new(1);

/// What has gone wrong.
type Why = (Failure, String);
/// What a call has come to: how many bytes were compared.
type Answer = Result<usize, Why>;

/// Starts all callers; they end when the run stops.
pub fn start(site: &Site, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    *shared.gateways.lock().unwrap() = vec![site.gateway_at()];
    let mut all = Vec::new();
    for (place, to) in site.targets() {
        let (from, shared) = (site.caller.clone(), shared.clone());
        all.push(spawn(move || call_again(&from, place, to, &shared)));
    }
    for (place, to) in site.held() {
        for (length, pause) in KINDS.into_iter().flat_map(|kind| [kind; HELD]) {
            let (from, shared) = (site.caller.clone(), shared.clone());
            all.push(spawn(move || hold(&from, (place, to), (length, pause), &shared)));
        }
    }
    for _ in 0..CLIENTS {
        for (place, to) in site.shops() {
            let (from, own) = (site.caller.clone(), shared.clone());
            all.push(spawn(move || ask_again(&from, place, &own, || to)));
        }
        let (from, own) = (site.outside.clone(), shared.clone());
        all.push(spawn(move || ask_again(&from, Place::Gateway, &own, || gateway(&own))));
    }
    let (from, to, own) = (site.intruder.clone(), site.forbidden(), shared.clone());
    all.push(spawn(move || intrude(&from, &to, &own)));
    all
}

fn spawn(work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap()
}

/// One of the gateway's pods, in turn.
fn gateway(shared: &Shared) -> SocketAddr {
    let gateways = shared.gateways.lock().unwrap();
    gateways[NEXT.fetch_add(1, Relaxed) as usize % gateways.len()]
}

/// New connections, one after the other.
fn call_again(from: &Pod, place: Place, to: SocketAddr, shared: &Shared) {
    while shared.goes_on() {
        call(from, place, to, shared);
        thread::sleep(PAUSE);
    }
}

/// One new connection, with some messages.
pub fn call(from: &Pod, place: Place, to: SocketAddr, shared: &Shared) {
    let (began, mut dice) = (shared.now(), dice());
    let mut once = || -> Answer {
        let mut s = connect(from, to, PATIENCE)?;
        let mut bytes = 0;
        for length in [300, 1, 5000] {
            bytes += echo(&mut s, &mut dice, length)?;
        }
        Ok(bytes)
    };
    shared.note(place, began, once());
}

/// A connection that stays open; when it is cut, that is told, and there is another.
fn hold(from: &Pod, (place, to): (Place, SocketAddr), (length, pause): (usize, Duration), shared: &Shared) {
    let mut dice = dice();
    let mut whole = shared.now();
    while shared.goes_on() {
        let mut until_it_fails = || -> Result<(), Why> {
            let mut s = connect(from, to, HELD_PATIENCE)?;
            while shared.goes_on() {
                let began = shared.now();
                let bytes = echo(&mut s, &mut dice, length)?;
                shared.note(place, began, Ok(bytes));
                whole = shared.now();
                rest(pause, shared);
            }
            Ok(())
        };
        if let Err(why) = until_it_fails() {
            shared.note(place, whole, Err(why));
            whole = shared.now();
            thread::sleep(PAUSE);
        }
    }
}

/// A pause that ends with the run.
fn rest(pause: Duration, shared: &Shared) {
    let end = shared.now() + pause;
    while shared.goes_on() && shared.now() < end {
        thread::sleep(end.saturating_sub(shared.now()).min(Duration::from_millis(100)));
    }
}

/// Requests in turn on a kept connection and on new ones.
fn ask_again(from: &Pod, place: Place, shared: &Shared, to: impl Fn() -> SocketAddr) {
    let mut kept = None;
    while shared.goes_on() {
        let began = shared.now();
        let came = ask_kept((from, place), &to, &mut kept, shared).map_err(of_new);
        shared.note(place, began, came);
        thread::sleep(BREATH);
        let began = shared.now();
        let came = open((from, place), to()).and_then(|mut session| ask(&mut session)).map_err(of_new);
        shared.note(place, began, came.map(|(bytes, _)| bytes));
        thread::sleep(BREATH);
    }
}

/// On the kept connection, or a new one that is kept. A server may end a kept connection between two requests: clients ask again
/// what changes nothing (RFC 9110, 9.2.2).
fn ask_kept(
    (from, place): (&Pod, Place),
    to: &impl Fn() -> SocketAddr,
    kept: &mut Option<(Session, usize)>,
    shared: &Shared,
) -> Answer {
    let began = shared.now();
    let (mut session, mut requests) = match kept.take() {
        Some(kept) => kept,
        None => (open((from, place), to())?, 0),
    };
    let said = match ask(&mut session) {
        Err((Failure::Ended, why)) if requests > 0 => {
            shared.has_ended(place, began, why);
            (session, requests) = (open((from, place), to())?, 0);
            ask(&mut session)
        }
        said => said,
    };
    let (bytes, stays) = said?;
    if stays && requests + 1 < KEPT {
        *kept = Some((session, requests + 1));
    }
    Ok(bytes)
}

fn open((from, place): (&Pod, Place), to: SocketAddr) -> Result<Session, Why> {
    Session::new(from, to, oracle::host(place)).map_err(|e| before(&e))
}

/// One request: the bytes of its answer, and whether the connection stays.
fn ask(session: &mut Session) -> Result<(usize, bool), Why> {
    let path = oracle::path(NEXT.fetch_add(1, Relaxed));
    session.send("GET", &path, &[], b"").map_err(ended)?;
    session.wait().map_err(ended)?;
    let answer = session.answer(false).map_err(cut)?;
    if answer.status() != 200 {
        return Err((Failure::Status(answer.status()), format!("{}: {}", answer.status(), answer.text())));
    }
    let has_length = !answer.header("content-length").is_empty() || !answer.header("transfer-encoding").is_empty();
    match oracle::differs(&oracle::answer(&path), &answer.body) {
        None => Ok((answer.body.len(), !answer.header("connection").eq_ignore_ascii_case("close"))),
        // Without a length, its end is that of the connection.
        Some(at) if at == answer.body.len() && !has_length => Err((Failure::Cut, format!("after {at} bytes"))),
        Some(at) => Err((Failure::Wrong, format!("other bytes after {at} of {}, for {path}", answer.body.len()))),
    }
}

/// Nothing that it calls may answer.
fn intrude(from: &Pod, to: &[SocketAddr], shared: &Shared) {
    while shared.goes_on() {
        for to in to {
            shared.served_forbidden.fetch_add(oracle::is_served(from, *to).into(), Relaxed);
            shared.forbidden.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Each caller has bytes of its own.
fn dice() -> Dice {
    Dice::new(NEXT.fetch_add(1, Relaxed) << 32)
}

/// The marker and so many bytes by chance, there and back.
fn echo(s: &mut TcpStream, dice: &mut Dice, length: usize) -> Answer {
    let said = oracle::message(dice, length);
    s.write_all(&said).map_err(cut)?;
    let mut heard = vec![0; said.len()];
    s.read_exact(&mut heard).map_err(cut)?;
    match oracle::differs(&said, &heard) {
        None => Ok(said.len()),
        Some(at) => Err((Failure::Wrong, format!("other bytes after {at} of {}", said.len()))),
    }
}

fn connect(from: &Pod, to: SocketAddr, patience: Duration) -> Result<TcpStream, Why> {
    let s = from.connect(to).map_err(|e| before(&e))?;
    s.set_nodelay(true).map_err(cut)?;
    s.set_read_timeout(Some(patience)).map_err(cut)?;
    s.set_write_timeout(Some(patience)).map_err(cut)?;
    Ok(s)
}

fn is_late(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

/// An error before there was a connection. A reset means that a process that was killed had taken it already.
fn before(e: &io::Error) -> Why {
    let failure = match e.kind() {
        ErrorKind::ConnectionReset => Failure::Cut,
        _ if is_late(e) => Failure::Late,
        _ => Failure::Refused,
    };
    (failure, format!("connecting: {e}"))
}

/// An error of an open connection.
fn cut(e: io::Error) -> Why {
    (if is_late(&e) { Failure::Late } else { Failure::Cut }, e.to_string())
}

/// An error before the first byte of an answer.
fn ended(e: io::Error) -> Why {
    (if is_late(&e) { Failure::Late } else { Failure::Ended }, format!("before an answer: {e}"))
}

/// A connection that was opened for a request and ends before its answer is cut.
fn of_new((failure, why): Why) -> Why {
    (if failure == Failure::Ended { Failure::Cut } else { failure }, why)
}
