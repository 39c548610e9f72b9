//! A worker's part of the UDP ports: its socket of each, and the table of sessions that began there.

use crate::{
    downstream::{
        context::{Downstream, DownstreamTarget, Entered},
        ports::LEAVING,
        udp::{
            choose::{self, NoWay, SessionEndpoint},
            counts::{Counts, Dropped, SessionEnd},
            ports::Ports,
            session::{Peer, Session},
        },
    },
    telemetry::stream_info::DATAGRAMS,
    worker::Worker,
};
use karst_core::limits;
use karst_proxy::dial::Endpoint;
use karst_rt::{
    admission::Source,
    clock::{self, Instant},
    drain,
    repeated::Repeated,
    turns,
    udp::{Batch, Connected, Datagram, Front},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{Ipv4Addr, UdpSocket},
    ops::Range,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

/// Sessions that are looked at in one go when the state has changed; then others of the worker have their turn.
const AT_ONCE: usize = 64;
/// Dropped datagrams of one kind are told of at most once in this time.
const TOLD: Duration = Duration::from_secs(1);

/// Serves the open ports, in a worker.
pub async fn serve(worker: Rc<Worker>, mut ports: watch::Receiver<Ports>) {
    let mut tasks: HashMap<u16, (Arc<Vec<UdpSocket>>, JoinHandle<()>)> = HashMap::new();
    let mut room: Option<Rc<RefCell<Batch>>> = None;
    let idle = Duration::from_secs(worker.shared.config.udp_idle_timeout);
    loop {
        let now = ports.borrow_and_update().clone();
        tasks.retain(|number, (sockets, task)| {
            let same = now.get(number).is_some_and(|n| Arc::ptr_eq(n, sockets));
            if !same {
                task.abort();
            }
            same
        });
        for (number, sockets) in now.iter() {
            if tasks.contains_key(number) {
                continue;
            }
            let own = sockets.get(worker.number).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
            match own.and_then(UdpSocket::try_clone).and_then(Front::new) {
                Ok(front) => {
                    let batch = room.get_or_insert_with(Rc::default).clone();
                    let task = tokio::task::spawn_local(port(worker.clone(), front, (*number, idle), batch));
                    tasks.insert(*number, (sockets.clone(), task));
                }
                Err(e) => tracing::error!(port = number, error = %e, "cannot take datagrams"),
            }
        }
        drop(now);
        if ports.changed().await.is_err() {
            return;
        }
    }
}

/// Serves one port, until the drain is over and no session is left. `room`: for what is received at once, by all of the worker.
pub async fn port(worker: Rc<Worker>, front: Front, (number, idle): (u16, Duration), room: Rc<RefCell<Batch>>) {
    // The worker is not idle.
    let open = worker.connection();
    let port = Rc::new(Port {
        worker,
        front,
        number,
        idle,
        room,
        sessions: RefCell::default(),
        closing: Cell::new(false),
        emptied: Notify::new(),
        lost: Cell::new(0),
        told: RefCell::new((Repeated::default(), Instant::now() + TOLD)),
    });
    let closing = Closing(port.clone());
    tokio::select! {
        () = read(&port) => {}
        () = recheck(&port) => {}
        () = leave(&port) => {}
    }
    drop((closing, open));
}

/// A port of a worker.
struct Port {
    worker: Rc<Worker>,
    front: Front,
    number: u16,
    idle: Duration,
    room: Rc<RefCell<Batch>>,
    sessions: RefCell<HashMap<Peer, Rc<Session>>>,
    /// No new sessions are taken.
    closing: Cell<bool>,
    emptied: Notify,
    /// How many datagrams the socket had no room for, as it was told last.
    lost: Cell<u32>,
    /// What was told of dropped datagrams, and when the next of each kind may be.
    told: RefCell<(Repeated, Instant)>,
}

/// Ends the sessions of a port that is closed, however it is.
struct Closing(Rc<Port>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.sessions.borrow().values().for_each(|s| s.end(SessionEnd::Closed));
    }
}

/// Takes what clients send.
async fn read(port: &Rc<Port>) {
    loop {
        match port.front.receive(&port.room).await {
            Ok(count) => port.take(count),
            Err(e) => {
                tracing::warn!(port = port.number, error = %e, "cannot receive datagrams; trying again");
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
            }
        }
        // However many more there are: the answers have their turn, too.
        tokio::task::yield_now().await;
    }
}

/// Ends sessions whose way is gone when the state changes. (Policies are [`crate::downstream::conns`]' business.)
async fn recheck(port: &Rc<Port>) {
    let mut state = port.worker.shared.state.clone();
    state.mark_unchanged();
    while state.changed().await.is_ok() {
        state.mark_unchanged();
        let all: Vec<Rc<Session>> = port.sessions.borrow().values().cloned().collect();
        for some in all.chunks(AT_ONCE) {
            let snapshot = port.worker.snapshot();
            let listener = snapshot.gateway.as_ref().and_then(|g| g.udp.get(&port.number));
            for session in some {
                let stands = |l| choose::stands(&port.worker, &snapshot, l, &session.downstream, &session.held);
                if !listener.is_some_and(stands) {
                    session.end(SessionEnd::Gone);
                }
            }
            tokio::task::yield_now().await;
        }
    }
    // Nobody tells of changes any more.
    std::future::pending().await
}

/// Waits until the process drains and no session is left.
async fn leave(port: &Rc<Port>) {
    port.worker.drain.clone().reached(drain::Phase::Graceful).await;
    // Those who send datagrams hear of it late.
    tokio::time::sleep(LEAVING.min(port.worker.shared.config.drain_limit() / 2)).await;
    port.closing.set(true);
    while !port.sessions.borrow().is_empty() {
        port.emptied.notified().await;
    }
}

impl Port {
    fn counts(&self) -> &Counts {
        &self.worker.shared.metrics.udp
    }

    /// Takes what was received: what is of one client, and follows each other, at once.
    fn take(self: &Rc<Self>, count: usize) {
        let room = self.room.borrow();
        let all = room.datagrams(count);
        self.note_lost(all.iter().filter_map(|d| d.lost).next_back());
        let mut at = 0;
        while at < all.len() {
            let first = all[at];
            let is_same = |d: &&Datagram| (d.from, d.to, d.is_whole) == (first.from, first.to, first.is_whole);
            let range = at..at + all[at..].iter().take_while(is_same).count().max(1);
            at = range.end;
            match (first.from, first.to) {
                _ if !first.is_whole => self.counts().note_dropped(Dropped::Long, range.len() as u64),
                (Some(client), Some(called)) if !called.is_multicast() && called != Ipv4Addr::BROADCAST => {
                    self.carry(Peer { client, called }, &room, range);
                }
                // Nobody could be answered from there.
                _ => self.counts().note_dropped(Dropped::NoRoute, range.len() as u64),
            }
        }
    }

    /// The kernel counts modulo 2^32.
    fn note_lost(&self, lost: Option<u32>) {
        if let Some(lost) = lost {
            let new = lost.wrapping_sub(self.lost.replace(lost));
            self.counts().note_dropped(Dropped::Queue, new.into());
        }
    }

    /// Sends what one client has sent on, in its session.
    fn carry(self: &Rc<Self>, peer: Peer, room: &Batch, range: Range<usize>) {
        let known = self.sessions.borrow().get(&peer).filter(|s| !s.is_ending()).cloned();
        let session = match known.map_or_else(|| self.open(peer), Ok) {
            Ok(session) => session,
            Err(no) => return self.dropped(&no, range.len()),
        };
        session.receive(room, range, &self.worker.shared.gate, self.counts());
    }

    fn dropped(&self, no: &NoWay, datagrams: usize) {
        self.counts().note_dropped(no.why, datagrams as u64);
        let mut held = self.told.borrow_mut();
        let (told, next) = &mut *held;
        let now = Instant::now();
        if now >= *next {
            *next = now + TOLD;
            for over in told.end_round() {
                tracing::info!(port = self.number, "datagrams dropped: {over}");
            }
        }
        if let Some(reason) = told.note(no.why.text()) {
            tracing::warn!(port = self.number, reason, of = &*no.of, text = no.text, "datagrams dropped");
        }
    }

    /// A session that begins.
    fn open(self: &Rc<Self>, peer: Peer) -> Result<Rc<Session>, NoWay> {
        if self.closing.get() {
            return Err(Dropped::Draining.into());
        }
        let (worker, shared) = (&self.worker, &self.worker.shared);
        let snapshot = worker.snapshot();
        if worker.own(&snapshot).is_some_and(|own| own.has(peer.client.ip())) {
            let text = "the gateway has sent them itself: an endpoint is one of its addresses";
            return Err(NoWay { why: Dropped::Loop, text, of: Arc::default() });
        }
        let gateway = snapshot.gateway.as_ref().ok_or(Dropped::NoRoute)?;
        let listener = gateway.udp.get(&self.number).ok_or(Dropped::NoRoute)?;
        let downstream = Downstream {
            peer: None,
            from: peer.client,
            source: None,
            target: DownstreamTarget::Gateway(None),
            port: self.number,
            to: peer.called,
            hello: None,
            permit: None,
            entered: Entered::default(),
            written: Default::default(),
        };
        let access = gateway.access.as_ref();
        let denied = access.and_then(|a| downstream.authorize(&shared.metrics.dry_runs, a, peer.client.ip(), None));
        worker.note(&downstream, None, denied.as_ref(), clock::wall());
        if let Some(by) = denied {
            return Err(NoWay { why: Dropped::Denied, text: "a policy of the gateway", of: by.policy.into() });
        }
        let way = choose::choose(worker, &snapshot, listener, &downstream)?;
        let permit = shared.gate.session(peer.client.ip()).map_err(|_| Dropped::Limit)?;
        let member = &way.set.members[way.index];
        let upstream = Connected::to(member.address).map_err(|e| {
            member.state.avoid();
            tracing::debug!(endpoint = %member.address, error = %e, "no socket to the endpoint");
            NoWay { why: Dropped::Connect, text: "no socket to the endpoint", of: way.set.key.service.clone() }
        })?;
        let mut record = downstream.connection(&worker.sink, &snapshot);
        record.protocol = DATAGRAMS;
        record.route.clone_from(&way.route);
        record.destination = Some(way.set.chosen.clone());
        record.workload = Some((member.workload.clone(), member.address));
        let carried = record.carried.clone().unwrap_or_default();
        let guard = worker.register(&snapshot, &downstream, None);
        let held = SessionEndpoint::of(&way);
        let session = Rc::new(Session::new(peer, downstream, held, (upstream, permit), self.idle, carried));
        self.counts().opened.fetch_add(1, Relaxed);
        self.sessions.borrow_mut().insert(peer, session.clone());
        let share = worker.callers.of(Source::address(peer.client.ip(), false));
        let (port, own, drain) = (self.clone(), session.clone(), worker.drain.clone());
        let task = async move {
            own.run((&port.front, &*port.room), port.counts(), guard, drain, record).await;
            port.forget(&own);
        };
        tokio::task::spawn_local(turns::of(Some(share), Box::pin(task)));
        Ok(session)
    }

    /// It has ended. (Another one may be in its place.)
    fn forget(&self, session: &Rc<Session>) {
        let mut all = self.sessions.borrow_mut();
        if all.get(&session.peer).is_some_and(|s| Rc::ptr_eq(s, session)) {
            all.remove(&session.peer);
        }
        if all.is_empty() {
            self.emptied.notify_one();
        }
    }
}
