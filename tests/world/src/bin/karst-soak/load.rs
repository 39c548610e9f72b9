//! The load: callers that know each byte that is due. Connections that are made anew, such that stay open, requests through waypoint
//! and gateway, and a caller whom a policy forbids everything.

use crate::{
    shared::{MARK, Shared},
    site::Site,
};
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
/// New connections: callers of each place, and the pause of each.
const CALLERS: usize = 2;
const PAUSE: Duration = Duration::from_millis(60);
/// Requests: callers of each place, and the pause of each.
const CLIENTS: usize = 2;
const BREATH: Duration = Duration::from_millis(80);
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

/// What a call has come to: how many bytes were compared.
type Answer = Result<usize, (Failure, String)>;

/// Starts all callers; they end when the run stops.
pub fn start(site: &Site, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    *shared.gateways.lock().unwrap() = vec![site.gateway_at()];
    let mut all = Vec::new();
    for (place, to) in site.targets() {
        for _ in 0..CALLERS {
            let (from, shared) = (site.caller.clone(), shared.clone());
            all.push(spawn(move || call_again(&from, place, to, &shared)));
        }
    }
    for (place, to) in site.held() {
        for (length, pause) in KINDS.into_iter().flat_map(|kind| [kind; HELD]) {
            let (from, shared) = (site.caller.clone(), shared.clone());
            all.push(spawn(move || hold(&from, (place, to), (length, pause), &shared)));
        }
    }
    for _ in 0..CLIENTS {
        let (from, shop, own) = (site.caller.clone(), site.shop(), shared.clone());
        all.push(spawn(move || ask_again(&from, Place::Waypoint, &own, || shop)));
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
        let mut s = connect(from, to)?;
        s.set_read_timeout(Some(PATIENCE)).map_err(cut)?;
        let mut bytes = 0;
        for length in [300, 1, 5000] {
            bytes += echo(&mut s, &mut dice, length)?;
        }
        Ok(bytes)
    };
    match once() {
        Ok(bytes) => shared.well(place, bytes),
        Err(e) => shared.failed(place, began, e),
    }
}

/// A connection that stays open; when it is cut, that is told, and there is another.
fn hold(from: &Pod, (place, to): (Place, SocketAddr), (length, pause): (usize, Duration), shared: &Shared) {
    let mut dice = dice();
    let mut whole = shared.now();
    while shared.goes_on() {
        let mut until_it_fails = || -> Answer {
            let mut s = connect(from, to)?;
            s.set_read_timeout(Some(HELD_PATIENCE)).map_err(cut)?;
            while shared.goes_on() {
                let bytes = echo(&mut s, &mut dice, length)?;
                shared.well(place, bytes);
                whole = shared.now();
                rest(pause, shared);
            }
            Ok(0)
        };
        if let Err(e) = until_it_fails() {
            shared.failed(place, whole, e);
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
        match ask_kept(from, &to, &mut kept, shared) {
            Ok(bytes) => shared.well(place, bytes),
            Err(e) => shared.failed(place, began, e),
        }
        thread::sleep(BREATH);
        let began = shared.now();
        match open(from, to()).and_then(|mut session| ask(&mut session)) {
            Ok((bytes, _)) => shared.well(place, bytes),
            Err(e) => shared.failed(place, began, e),
        }
        thread::sleep(BREATH);
    }
}

/// On the kept connection, or a new one that is kept. A server may end a kept connection between two requests: clients ask again
/// what changes nothing (RFC 9110, 9.2.2).
fn ask_kept(from: &Pod, to: &impl Fn() -> SocketAddr, kept: &mut Option<Session>, shared: &Shared) -> Answer {
    let was_kept = kept.is_some();
    let mut session = match kept.take() {
        Some(session) => session,
        None => open(from, to())?,
    };
    let said = match ask(&mut session) {
        Err((Failure::Cut, _)) if was_kept => {
            shared.asked_again.fetch_add(1, Relaxed);
            session = open(from, to())?;
            ask(&mut session)
        }
        said => said,
    };
    let (bytes, stays) = said?;
    if stays {
        *kept = Some(session);
    }
    Ok(bytes)
}

fn open(from: &Pod, to: SocketAddr) -> Result<Session, (Failure, String)> {
    Session::new(from, to, "shop").map_err(|e| before(&e))
}

/// One request: the bytes of its answer, and whether the connection stays.
fn ask(session: &mut Session) -> Result<(usize, bool), (Failure, String)> {
    let path = format!("/{}/{}", NEXT.fetch_add(1, Relaxed), String::from_utf8_lossy(MARK));
    let answer = session.ask("GET", &path, &[], b"").map_err(cut)?;
    if answer.status() != 200 {
        return Err((Failure::Status(answer.status()), format!("{}: {}", answer.status(), answer.text())));
    }
    if answer.body != path.as_bytes() {
        return Err((Failure::Wrong, format!("{} for {path}", answer.text())));
    }
    Ok((answer.body.len(), !answer.header("connection").eq_ignore_ascii_case("close")))
}

/// Nothing that it calls may answer.
fn intrude(from: &Pod, to: &[SocketAddr], shared: &Shared) {
    let mut dice = dice();
    while shared.goes_on() {
        for to in to {
            let mut once = || -> Answer {
                let mut s = connect(from, *to)?;
                s.set_read_timeout(Some(Duration::from_secs(2))).map_err(cut)?;
                echo(&mut s, &mut dice, 100)
            };
            shared.served_forbidden.fetch_add(once().is_ok().into(), Relaxed);
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
    let mut said = Vec::with_capacity(MARK.len() + length + 8);
    said.extend(MARK);
    while said.len() < MARK.len() + length {
        said.extend(dice.roll().to_le_bytes());
    }
    said.truncate(MARK.len() + length);
    s.write_all(&said).map_err(cut)?;
    let mut heard = vec![0; said.len()];
    s.read_exact(&mut heard).map_err(cut)?;
    match said.iter().zip(&heard).position(|(a, b)| a != b) {
        None => Ok(said.len()),
        Some(at) => Err((Failure::Wrong, format!("other bytes after {at} of {}", said.len()))),
    }
}

fn connect(from: &Pod, to: SocketAddr) -> Result<TcpStream, (Failure, String)> {
    let s = from.connect(to).map_err(|e| before(&e))?;
    s.set_nodelay(true).map_err(cut)?;
    Ok(s)
}

/// An error before there was a connection. A reset means that a process that was killed had taken it already.
fn before(e: &io::Error) -> (Failure, String) {
    let failure = match e.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Failure::Late,
        ErrorKind::ConnectionReset => Failure::Cut,
        _ => Failure::Refused,
    };
    (failure, format!("connecting: {e}"))
}

/// An error of an open connection.
fn cut(e: io::Error) -> (Failure, String) {
    let late = matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
    (if late { Failure::Late } else { Failure::Cut }, e.to_string())
}
