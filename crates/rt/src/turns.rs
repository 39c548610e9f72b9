//! Turns of a worker's thread: each pod (at a waypoint or gateway: each caller) has a [`Share`], and its connections are served in
//! turn with those of the others, however many it has and however much they carry.
//!
//! The tasks of a share run as they come until they have used up its turn. Then they wait in a queue, and go on in the next round: when
//! every task that could run has run, and the sockets have been looked at. What was done beyond a turn (a task is not interrupted)
//! counts against the next ones: deficit round robin. Within a share those who wait are called by peer, one of each after the other
//! ([`of_peer`]): who calls a pod much keeps others who call it waiting as little. Work is counted, not timed: bytes by those who move them ([`spend`]), and
//! [`limits::TURN_POLL`] for each poll. A clock is read only when a turn is used up.
//!
//! Always true: between two polls of a task whose share is not used up, every other share has done at most a turn's work and what one
//! poll goes beyond it; nobody waits while nobody else has anything to do, but for a look at the sockets; and whoever waits is called
//! after a bounded number of rounds (`tests`, `account::tests`).

mod account;

use crate::clock::Instant;
use account::{Account, Queue, turn};
use karst_core::limits;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt,
    future::poll_fn,
    hash::Hash,
    net::IpAddr,
    pin::Pin,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

/// The turns of a thread.
#[derive(Default)]
struct Turns {
    /// Work of the task that is polled at the moment.
    done: Cell<usize>,
    /// Whose task that is.
    current: RefCell<Option<Rc<Share>>>,
    /// Whose was the last one, and how many polls it is still in company.
    last: Cell<u64>,
    company: Cell<u32>,
    /// Those with tasks that wait.
    waiting: RefCell<Vec<Rc<Share>>>,
    /// Is there the task of [`rounds`]? And which round is it?
    running: Cell<bool>,
    round: Cell<u64>,
    /// The newest share's number.
    number: Cell<u64>,
}

thread_local! {
    static TURNS: Turns = Turns::default();
}

impl Turns {
    fn turn(&self) -> usize {
        turn(self.waiting.borrow().len(), self.company.get() > 0)
    }

    /// A task of this share is polled.
    fn meet(&self, number: u64) {
        let company = match self.last.replace(number) == number {
            true => self.company.get().saturating_sub(1),
            false => limits::TURN_COMPANY,
        };
        self.company.set(company);
    }

    /// A task of this share waits.
    fn hold(&self, share: &Rc<Share>) {
        if self.company.get() > 0 {
            share.waits.fetch_add(1, Relaxed);
        }
        if !share.listed.replace(true) {
            self.waiting.borrow_mut().push(share.clone());
        }
        if !self.running.replace(true) {
            tokio::task::spawn_local(rounds());
        }
    }

    /// Begins a round. False: nobody waits any more.
    fn begin_round(&self) -> bool {
        let turn = self.turn();
        self.round.set(self.round.get() + 1);
        let (mut shares, round) = (self.waiting.take(), (self.round.get(), Instant::now()));
        shares.retain(|share| share.begin_round(turn, round));
        let more = !shares.is_empty();
        self.waiting.replace(shares);
        more
    }
}

/// Ends with the runtime, too: then another one's first to wait starts it anew.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        let _ = TURNS.try_with(|turns| turns.running.set(false));
    }
}

/// One round after the other, while somebody waits.
async fn rounds() {
    let _running = Running;
    loop {
        // Until all that can run has run, and the sockets have been looked at.
        tokio::task::yield_now().await;
        if !TURNS.with(Turns::begin_round) {
            return;
        }
    }
}

/// A pod's, or a caller's, share of one worker.
pub struct Share {
    number: u64,
    account: Cell<Account>,
    /// In which round something was taken off the account, or it was begun anew, and when.
    round: Cell<u64>,
    since: Cell<Instant>,
    queue: RefCell<Queue<Rc<Ticket>>>,
    /// Is it among those of which tasks wait?
    listed: Cell<bool>,
    /// How often one of its tasks has had to wait for others.
    waits: Arc<AtomicU64>,
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A task's place in the queue.
#[derive(Debug)]
struct Ticket {
    waker: RefCell<Waker>,
    place: Cell<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    None,
    Waiting,
    Called,
}

impl Share {
    /// One of this thread's. `waits`: counts how often a task of its had to wait for others.
    pub fn new(waits: Arc<AtomicU64>) -> Rc<Self> {
        let (number, round) = TURNS.with(|turns| {
            turns.number.set(turns.number.get() + 1);
            (turns.number.get(), turns.round.get())
        });
        Rc::new(Self {
            number,
            account: Cell::default(),
            round: Cell::new(round),
            since: Cell::new(Instant::now()),
            queue: RefCell::default(),
            listed: Cell::new(false),
            waits,
        })
    }

    /// Is its turn used up, with what the task that is polled has done already? Rounds that have passed since count, also for who
    /// has not waited; and who has taken long for it begins another.
    fn is_over(&self, done: usize) -> bool {
        let (turn, round) = TURNS.with(|turns| (turns.turn(), turns.round.get()));
        if !self.account.get().and(done).is_over(turn) {
            return false;
        }
        let passed = round.saturating_sub(self.round.replace(round));
        self.account.set(self.account.get().after(passed, turn));
        if !self.account.get().and(done).is_over(turn) {
            return false;
        }
        let now = Instant::now();
        if now.duration_since(self.since.get()) < limits::TURN_WINDOW {
            return true;
        }
        self.since.set(now);
        self.account.set(Account::default());
        Account::default().and(done).is_over(turn)
    }

    /// May a task go on? If not, it is queued, and will be woken.
    fn admits(self: &Rc<Self>, peer: u64, ticket: &mut Option<Rc<Ticket>>, waker: &Waker) -> bool {
        if let Some(own) = ticket {
            match own.place.get() {
                Place::Called => {
                    own.place.set(Place::None);
                    return true;
                }
                // Something else has woken it.
                Place::Waiting => {
                    own.waker.borrow_mut().clone_from(waker);
                    return false;
                }
                Place::None => {}
            }
        }
        if self.queue.borrow().is_empty() && !self.is_over(0) {
            return true;
        }
        let new = || Rc::new(Ticket { waker: RefCell::new(waker.clone()), place: Cell::new(Place::None) });
        let own = ticket.get_or_insert_with(new);
        own.waker.borrow_mut().clone_from(waker);
        own.place.set(Place::Waiting);
        self.queue.borrow_mut().push(peer, own.clone());
        TURNS.with(|turns| turns.hold(self));
        false
    }

    /// A task has had its poll. The next one follows if there is something left of the turn: so no more are woken than can run.
    fn spend(&self, done: usize) {
        let account = self.account.get().and(done.saturating_add(limits::TURN_POLL));
        self.account.set(account);
        if !self.queue.borrow().is_empty() && !account.is_over(TURNS.with(Turns::turn)) {
            self.call();
        }
    }

    fn call(&self) {
        loop {
            let Some(ticket) = self.queue.borrow_mut().pop() else { return };
            // Or its task is gone.
            if ticket.place.get() == Place::Waiting {
                ticket.place.set(Place::Called);
                return ticket.waker.borrow().wake_by_ref();
            }
        }
    }

    /// Another turn. False: none of its tasks waits any more.
    fn begin_round(&self, turn: usize, (round, now): (u64, Instant)) -> bool {
        let account = self.account.get().after(1, turn);
        self.account.set(account);
        self.round.set(round);
        self.since.set(now);
        if !account.is_over(turn) {
            self.call();
        }
        let waits = !self.queue.borrow().is_empty();
        self.listed.set(waits);
        waits
    }
}

/// A task's future, served in turn.
#[derive(Debug)]
pub struct InTurn<F> {
    /// None: it is nobody's.
    share: Option<Rc<Share>>,
    peer: u64,
    ticket: Option<Rc<Ticket>>,
    future: F,
}

impl<F> Drop for InTurn<F> {
    fn drop(&mut self) {
        // What it was called for is another's.
        if let (Some(share), Some(ticket)) = (&self.share, &self.ticket)
            && ticket.place.replace(Place::None) == Place::Called
        {
            share.call();
        }
    }
}

/// A task of a share's, or nobody's. To be run on its thread, in a `LocalSet`.
pub fn of<F: Future + Unpin>(share: Option<Rc<Share>>, future: F) -> InTurn<F> {
    InTurn { share, peer: 0, ticket: None, future }
}

/// The same for what a peer of the share's has begun.
pub fn of_peer<F: Future + Unpin>(share: Rc<Share>, peer: IpAddr, future: F) -> InTurn<F> {
    let peer = match peer.to_canonical() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ ip.to_bits() as u64,
    };
    InTurn { share: Some(share), peer, ticket: None, future }
}

/// The share of the task that is polled, if it has one.
pub fn current() -> Option<Rc<Share>> {
    TURNS.with(|turns| turns.current.borrow().clone())
}

impl<F: Future + Unpin> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let Some(share) = &this.share else { return Pin::new(&mut this.future).poll(cx) };
        if !share.admits(this.peer, &mut this.ticket, cx.waker()) {
            return Poll::Pending;
        }
        let _turn = Polled::begin(share);
        Pin::new(&mut this.future).poll(cx)
    }
}

/// While a task is polled.
struct Polled<'a> {
    share: &'a Rc<Share>,
    /// What was there before.
    outer: (Option<Rc<Share>>, usize),
}

impl<'a> Polled<'a> {
    fn begin(share: &'a Rc<Share>) -> Self {
        let outer = TURNS.with(|turns| {
            turns.meet(share.number);
            (turns.current.replace(Some(share.clone())), turns.done.replace(0))
        });
        Self { share, outer }
    }
}

impl Drop for Polled<'_> {
    fn drop(&mut self) {
        let (current, before) = (self.outer.0.take(), self.outer.1);
        let (own, done) = TURNS.with(|turns| (turns.current.replace(current), turns.done.replace(before)));
        drop(own);
        self.share.spend(done);
    }
}

/// The task that is polled has done so much: bytes moved, or what takes as long.
pub fn spend(work: usize) {
    TURNS.with(|turns| turns.done.set(turns.done.get().saturating_add(work)));
}

/// How many of so many bytes are to be moved at once: fewer while others have something to do, too.
pub fn bytes(most: usize) -> usize {
    match TURNS.with(|turns| turns.company.get()) {
        0 => most,
        _ => most.min(limits::TURN_BYTES),
    }
}

/// Lets others have their turn, where the share of the task that is polled has used up its own. For loops that could go on.
pub async fn pass() {
    let over = TURNS.with(|turns| {
        let current = turns.current.borrow();
        current.as_ref().is_some_and(|share| share.is_over(turns.done.get()))
    });
    if over {
        pass_now().await;
    }
}

/// To the end of the queue, whatever is left of the turn.
fn pass_now() -> impl Future<Output = ()> {
    let mut passed = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut passed, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
}

/// The shares of those who come and go: of callers.
pub struct Shares<K> {
    of: RefCell<HashMap<K, Weak<Share>>>,
    /// Of those for whom there is no room.
    rest: Rc<Share>,
    most: usize,
    /// So many more who come have [`Self::rest`] before all are looked at again.
    unlooked: Cell<usize>,
    waits: Arc<AtomicU64>,
}

impl<K: Eq + Hash> Shares<K> {
    /// None yet; `most` are told apart at a time.
    pub fn new(most: usize, waits: Arc<AtomicU64>) -> Self {
        Self { of: RefCell::default(), rest: Share::new(waits.clone()), most, unlooked: Cell::new(0), waits }
    }

    /// The share of one of them, which is there for as long as somebody has it.
    pub fn of(&self, who: K) -> Rc<Share> {
        let mut of = self.of.borrow_mut();
        if let Some(share) = of.get(&who).and_then(Weak::upgrade) {
            return share;
        }
        if of.len() >= self.most {
            // Not by each of a flood.
            if let Some(less) = self.unlooked.get().checked_sub(1) {
                self.unlooked.set(less);
                return self.rest.clone();
            }
            of.retain(|_, share| share.strong_count() > 0);
            if of.len() >= self.most {
                self.unlooked.set(self.most / 8);
                return self.rest.clone();
            }
        }
        let share = Share::new(self.waits.clone());
        of.insert(who, Rc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests;
