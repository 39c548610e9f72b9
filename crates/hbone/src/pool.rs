//! Tunnels shared by the connections of one worker. Single-threaded: no lock, no cross-thread wake-up.
//!
//! For a key there is at most one attempt to connect at a time, in a task of its own; everybody who waits gets its result,
//! good or bad, so that a dead peer costs each connection one timeout and not a queue of them. A tunnel leaves the pool when
//! it ends or says GOAWAY, and one that was full is used again as soon as a stream ends.

use crate::{
    client::{self, ClientError},
    continuation::{self, Said},
    lasting::{self, Acks, Asked, Joint},
};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::HeaderMap;
use karst_core::limits;
use karst_rt::on_wake::OnWake;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::Hash,
    rc::{Rc, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, OnceCell},
    time::Instant,
};

/// A tunnel whose streams last longer than an unused one is kept is looked at this often: nobody says when the last one ends.
const LOOK: Duration = Duration::from_secs(1);
/// No tunnel is looked at more often, however short unused ones are kept.
const LEAST_LOOK: Duration = Duration::from_millis(10);

/// A tunnel.
pub struct Tunnel {
    send: SendRequest<Bytes>,
    /// Another handle, which sends nothing: it is asked how the tunnel is.
    probe: RefCell<SendRequest<Bytes>>,
    active: Cell<usize>,
    closed: Cell<bool>,
    /// Has a stream been on it before the one of now?
    used: Cell<bool>,
    idle_since: Cell<Instant>,
    /// Says that it is to be closed now if nothing is on it.
    end: Notify,
    /// Of its streams whose connections outlive it.
    acks: Rc<Acks>,
    /// The stream in which these are said is open.
    acknowledges: OnceCell<()>,
}

impl Tunnel {
    /// Opens the stream of acknowledgements, if it is not open yet. False: there is none, and will be none.
    async fn acknowledges(&self, authority: &str) -> bool {
        let (tunnel, acks) = (self.send.clone(), self.acks.clone());
        let open = || async move {
            let mut headers = HeaderMap::new();
            lasting::ask_for_acks(&mut headers);
            let (send, recv, _) = client::connect(tunnel, authority, headers).await?;
            // The tunnel is closed when it is not used, whatever this does.
            tokio::task::spawn_local(acks.run((send, recv), std::future::pending()));
            Ok::<_, ClientError>(())
        };
        self.acknowledges.get_or_try_init(open).await.is_ok() && !self.acks.is_gone()
    }

    /// Streams of connections that the peer takes at a time: that of acknowledgements is none of these.
    fn most_streams(&self) -> usize {
        self.send.current_max_send_streams().saturating_sub(usize::from(self.acknowledges.initialized()))
    }

    /// Is it unused, and open?
    fn is_idle(&self) -> bool {
        self.active.get() == 0 && !self.closed.get()
    }

    /// Closed, or told to go away by the peer: readiness then fails.
    fn is_closed(&self) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let gone = matches!(self.probe.borrow_mut().poll_ready(&mut cx), std::task::Poll::Ready(Err(_)));
        if gone {
            self.closed.set(true);
        }
        self.closed.get()
    }
}

/// A place on a tunnel, given back when dropped.
pub struct Lease {
    tunnel: Rc<Tunnel>,
    /// It is not the first on its tunnel.
    used: bool,
}

/// A stream that the peer has taken.
pub struct Opened {
    /// Its place; held until the stream ends.
    pub lease: Lease,
    /// To the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub recv: RecvStream,
    /// The peer knows of continuation ([`crate::continuation`]).
    pub continues: bool,
    /// The connection outlives its tunnel, as was asked for ([`crate::lasting`]).
    pub joint: Option<Box<Joint>>,
}

impl Lease {
    /// The tunnel's handle.
    pub fn sender(&self) -> SendRequest<Bytes> {
        self.tunnel.send.clone()
    }
    /// After an error of the tunnel itself: no new stream is put on it.
    pub fn discard(&self) {
        self.tunnel.closed.set(true);
    }
    /// How its tunnel is, for who keeps the stream for later.
    pub fn tunnel(&self) -> TunnelState {
        TunnelState(Rc::downgrade(&self.tunnel))
    }
}

/// How a tunnel is. It does not keep the tunnel.
#[derive(Clone)]
pub struct TunnelState(Weak<Tunnel>);

impl TunnelState {
    /// Is it going away, or gone? Its peer may wait for its streams to end (a proxy that is being replaced), and resets them when it
    /// has waited long enough: what would be kept on it for later is better opened anew.
    pub fn is_leaving(&self) -> bool {
        self.0.upgrade().is_none_or(|tunnel| tunnel.is_closed())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.tunnel.active.set(self.tunnel.active.get().saturating_sub(1));
        self.tunnel.idle_since.set(Instant::now());
    }
}

/// A place on a tunnel whose peer has not answered yet. If nobody waits for the answer any more, the peer may be gone: what
/// is open on the tunnel goes on (PINGs decide about that), but nothing new is put there.
struct DiscardOnCancel<'a>(Option<&'a Lease>);

impl Drop for DiscardOnCancel<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.0 {
            lease.discard();
        }
    }
}

#[derive(Default)]
struct Slot {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    attempt: RefCell<Option<Rc<Attempt>>>,
}

#[derive(Default)]
struct Attempt {
    done: Notify,
    error: RefCell<Option<ClientError>>,
    finished: Cell<bool>,
}

/// The pool of one worker.
pub struct Pool<K> {
    slots: RefCell<HashMap<K, Rc<Slot>>>,
    streams: usize,
    idle: Duration,
}

impl<K: Clone + Eq + Hash + 'static> Pool<K> {
    /// A pool that puts `streams` on a tunnel and closes tunnels unused for `idle`.
    pub fn new(streams: usize, idle: Duration) -> Rc<Self> {
        Rc::new(Self { slots: RefCell::default(), streams, idle })
    }

    /// A place on a tunnel for the key; `connect` makes one if there is none. Runs in a `LocalSet`.
    ///
    /// # Errors
    /// Those of `connect`.
    pub async fn get<F, D>(self: &Rc<Self>, key: &K, connect: impl FnOnce() -> F) -> Result<Lease, ClientError>
    where
        F: Future<Output = Result<(SendRequest<Bytes>, D), ClientError>> + 'static,
        D: Future<Output = Result<(), h2::Error>> + 'static,
    {
        let mut connect = Some(connect);
        loop {
            let slot = self.slots.borrow_mut().entry(key.clone()).or_default().clone();
            if let Some(lease) = self.lease(&slot) {
                return Ok(lease);
            }
            let running = slot.attempt.borrow().clone();
            let attempt = match (running, connect.take()) {
                (Some(a), c) => {
                    connect = c;
                    a
                }
                (None, Some(c)) => {
                    let attempt = Rc::new(Attempt::default());
                    *slot.attempt.borrow_mut() = Some(attempt.clone());
                    tokio::task::spawn_local(self.clone().attempt(key.clone(), slot.clone(), attempt.clone(), c()));
                    attempt
                }
                // Our own attempt gave a tunnel, and others have filled it.
                (None, None) => {
                    return Err(ClientError::Stream("the tunnel was used up by other connections; try again".into()));
                }
            };
            if !attempt.finished.get() {
                attempt.done.notified().await;
            }
            if let Some(error) = attempt.error.borrow().clone() {
                return Err(error);
            }
        }
    }

    /// Opens a stream to `authority` on a tunnel for the key. A tunnel that was there already may have lost its peer without
    /// hearing of it (a GOAWAY on its way, a pod that is gone and whose address is another's): then a fresh one is asked for, once.
    /// Not for an interrupted connection, unless the peer has not looked at it: its token works once, and may have done so.
    /// `headers` are made for each try, of which there is mostly one.
    ///
    /// # Errors
    /// Those of `connect`, and the peer's answer.
    pub async fn open<F, D>(
        self: &Rc<Self>,
        key: &K,
        connect: impl Fn() -> F,
        authority: &str,
        headers: impl Fn() -> HeaderMap,
    ) -> Result<Opened, ClientError>
    where
        F: Future<Output = Result<(SendRequest<Bytes>, D), ClientError>> + 'static,
        D: Future<Output = Result<(), h2::Error>> + 'static,
    {
        let mut again = false;
        loop {
            let lease = self.get(key, &connect).await?;
            let headers = headers();
            let shows_token = matches!(continuation::said(&headers), Said::Token(_));
            let asked = lasting::asked(&headers);
            let mut undecided = DiscardOnCancel(Some(&lease));
            let answer = client::connect(lease.sender(), authority, headers).await;
            undecided.0 = None;
            drop(undecided);
            match answer {
                Ok((mut send, recv, answer)) => {
                    let continues = continuation::said(&answer) == Said::Knows;
                    let agreed = if asked == Asked::Nothing { None } else { lasting::answered(&answer) };
                    let goes_on = if matches!(asked, Asked::GoesOn(_)) { agreed.is_some() } else { continues };
                    if !goes_on && shows_token {
                        // It is another connection, which must not get the rest of the one that was interrupted.
                        send.send_reset(h2::Reason::CANCEL);
                        return Err(ClientError::NotContinued);
                    }
                    let mut joint = None;
                    if let Some((token, theirs)) = agreed {
                        // Rare, but for the first stream of a tunnel: not in the task of every connection.
                        if !Box::pin(lease.tunnel.acknowledges(authority)).await {
                            // Nothing has been carried by it yet.
                            send.send_reset(h2::Reason::CANCEL);
                            lease.discard();
                            if std::mem::replace(&mut again, true) {
                                return Err(ClientError::Unprocessed("nothing is acknowledged there".into()));
                            }
                            continue;
                        }
                        let line = lease.tunnel.acks.line(send.stream_id());
                        joint = Some(Box::new(Joint { token, line, theirs }));
                    }
                    return Ok(Opened { lease, send, recv, continues, joint });
                }
                Err(e) => {
                    if e.is_of_tunnel() {
                        lease.discard();
                    }
                    let e = match e {
                        ClientError::Stream(why) if shows_token => ClientError::Unanswered(why),
                        other => other,
                    };
                    let worth = matches!(e, ClientError::Unprocessed(_)) || (lease.used && e.is_of_tunnel());
                    if std::mem::replace(&mut again, true) || !worth {
                        return Err(e);
                    }
                }
            }
        }
    }

    fn lease(&self, slot: &Slot) -> Option<Lease> {
        let mut tunnels = slot.tunnels.borrow_mut();
        tunnels.retain(|t| !t.is_closed());
        // The fullest that still has room: others can then become idle and be closed.
        let best = tunnels
            .iter()
            .filter(|t| t.active.get() < self.streams.min(t.most_streams()))
            .max_by_key(|t| t.active.get())?;
        best.active.set(best.active.get() + 1);
        Some(Lease { tunnel: best.clone(), used: best.used.replace(true) })
    }

    async fn attempt<D>(
        self: Rc<Self>,
        key: K,
        slot: Rc<Slot>,
        waiting: Rc<Attempt>,
        connect: impl Future<Output = Result<(SendRequest<Bytes>, D), ClientError>>,
    ) where
        D: Future<Output = Result<(), h2::Error>> + 'static,
    {
        let result = connect.await;
        *slot.attempt.borrow_mut() = None;
        let drive = match result {
            Ok((send, drive)) => {
                let tunnel = Rc::new(Tunnel {
                    probe: RefCell::new(send.clone()),
                    send,
                    active: Cell::new(0),
                    closed: Cell::new(false),
                    used: Cell::new(false),
                    idle_since: Cell::new(Instant::now()),
                    end: Notify::new(),
                    acks: Rc::default(),
                    acknowledges: OnceCell::new(),
                });
                slot.tunnels.borrow_mut().push(tunnel.clone());
                Some((tunnel, drive))
            }
            Err(e) => {
                *waiting.error.borrow_mut() = Some(e);
                None
            }
        };
        waiting.finished.set(true);
        waiting.done.notify_waiters();
        if let Some((tunnel, drive)) = drive {
            self.keep(&tunnel, &slot, drive).await;
        }
        // Ended: forget it, and the slot if nothing is left.
        let mut tunnels = slot.tunnels.borrow_mut();
        tunnels.retain(|t| !t.closed.get());
        let empty = tunnels.is_empty() && slot.attempt.borrow().is_none();
        drop(tunnels);
        if empty {
            let mut slots = self.slots.borrow_mut();
            if slots.get(&key).is_some_and(|s| Rc::ptr_eq(s, &slot)) {
                slots.remove(&key);
            }
        }
    }

    async fn keep(&self, tunnel: &Rc<Tunnel>, slot: &Slot, drive: impl Future<Output = Result<(), h2::Error>>) {
        let mut drive = std::pin::pin!(drive);
        // Its task is polled for each piece of each stream, and this is told once.
        let ended = std::pin::pin!(async {
            loop {
                tunnel.end.notified().await;
                if tunnel.active.get() == 0 {
                    break;
                }
            }
        });
        let mut ended = OnWake::new(ended);
        loop {
            // Where there are several to one place, one is enough for what may come.
            let idle = || match slot.tunnels.borrow().len() {
                0 | 1 => self.idle,
                _ => limits::POOL_SURPLUS_IDLE.min(self.idle),
            };
            let idle_for = tunnel.idle_since.get().elapsed();
            let least = if tunnel.active.get() == 0 { LEAST_LOOK } else { LOOK.min(self.idle).max(LEAST_LOOK) };
            // Nobody says when another one comes.
            let wait = idle().saturating_sub(idle_for).max(least).min(limits::POOL_SURPLUS_IDLE);
            tokio::select! {
                _ = &mut drive => break,
                () = tokio::time::sleep(wait) => {
                    let unused = || tunnel.closed.get() || tunnel.idle_since.get().elapsed() >= idle();
                    if tunnel.active.get() == 0 && unused() {
                        break;
                    }
                }
                () = &mut ended => break,
            }
        }
        tunnel.closed.set(true);
        tunnel.acks.break_off();
        slot.tunnels.borrow_mut().retain(|t| !t.closed.get());
    }

    /// Tunnels at the moment.
    pub fn len(&self) -> usize {
        self.slots.borrow().values().map(|s| s.tunnels.borrow().len()).sum()
    }
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Before another tunnel for one of the keys that match: at most so many of them stay unused, those that were used last. How many
    /// there are, used and unused.
    pub fn make_room(&self, which: impl Fn(&K) -> bool, idle: usize) -> usize {
        let slots = self.slots.borrow();
        let (mut all, mut unused) = (0, Vec::new());
        for (_, slot) in slots.iter().filter(|(key, _)| which(key)) {
            let tunnels = slot.tunnels.borrow();
            all += tunnels.len();
            unused.extend(tunnels.iter().filter(|t| t.is_idle()).cloned());
        }
        let surplus = (unused.len() + 1).saturating_sub(idle).min(unused.len());
        if surplus > 0 {
            unused.sort_by_key(|t| t.idle_since.get());
            for tunnel in unused.iter().take(surplus) {
                tunnel.closed.set(true);
                tunnel.end.notify_one();
            }
        }
        all - surplus
    }
    /// Takes all tunnels of the keys that match out of the pool; their streams go on.
    pub fn retire(&self, which: impl Fn(&K) -> bool) {
        for (_, slot) in self.slots.borrow().iter().filter(|(k, _)| which(k)) {
            for tunnel in slot.tunnels.borrow_mut().drain(..) {
                tunnel.closed.set(true);
            }
        }
    }
}
