//! Connections whose stream was interrupted by a process that leaves, until the stream comes with which they go on (docs/hbone.md
//! §10). One task of the process has all of them, as streams may come to any worker.
//!
//! What must always hold: a connection goes to the one who shows its token, is the same peer, from the same address, and asks for
//! the same application of the same pod (at a waypoint, of the same service); once; and to nobody after its time. Then it is dropped.
//! Proven by the tests below.

use crate::continuation::Token;
use karst_core::Identity;
use karst_rt::clock::Instant;
use std::{collections::HashMap, net::IpAddr, net::SocketAddr, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// A connection waits this long for its stream: a peer has to connect, and perhaps to find its own successor.
const PARKED_FOR: Duration = Duration::from_secs(15);
/// A stream waits this long for its connection, which may be on its way from the process before.
const WAITS_FOR: Duration = Duration::from_secs(5);
/// Connections that wait, and of one peer half of them; one more is reset.
const MAX_PARKED: usize = 8192;
/// Streams that wait, and of one peer half of them; one more is refused at once, so that who invents tokens holds up little.
const MAX_WAITING: usize = 1024;
/// How often it is looked who has waited too long.
const LOOK: Duration = Duration::from_millis(500);
/// Orders that may wait for the task; beyond, workers wait.
const ORDERS: usize = 256;

/// Whom a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The other end, as it has proven.
    pub peer: Identity,
    /// Where that is.
    pub from: IpAddr,
    /// What it was opened to: a pod of this node, by its uid; at a waypoint a service, by its key.
    pub owner: String,
    /// The application that was asked for.
    pub to: SocketAddr,
}

enum Order<P> {
    Park(Token, Bound, P),
    Claim(Token, Bound, oneshot::Sender<P>),
}

/// All of them, for the workers. `P`: what is kept of a connection; its drop says that nobody goes on with it.
pub struct Parking<P>(mpsc::Sender<Order<P>>);

/// What the task receives.
pub struct Orders<P>(mpsc::Receiver<Order<P>>);

/// A new one, and what its task receives ([`run`]).
pub fn new<P>() -> (Parking<P>, Orders<P>) {
    let (tx, rx) = mpsc::channel(ORDERS);
    (Parking(tx), Orders(rx))
}

impl<P> Clone for Parking<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P> Parking<P> {
    /// Keeps a connection for its next stream.
    pub async fn park(&self, token: Token, bound: Bound, what: P) {
        // What cannot be kept any more is dropped.
        let _ = self.0.send(Order::Park(token, bound, what)).await;
    }

    /// The connection that goes on with a stream; waits for it for a bounded time.
    pub async fn claim(&self, token: Token, bound: Bound) -> Option<P> {
        let (tx, rx) = oneshot::channel();
        self.0.send(Order::Claim(token, bound, tx)).await.ok()?;
        rx.await.ok()
    }
}

/// The task, for as long as there are workers.
pub async fn run<P>(mut orders: Orders<P>) {
    let mut lot = Lot::new();
    loop {
        let order = tokio::select! {
            order = orders.0.recv() => order,
            () = tokio::time::sleep(LOOK), if !lot.is_empty() => {
                lot.expire(Instant::now());
                continue;
            }
        };
        let now = Instant::now();
        let (token, bound, met) = match order {
            None => return,
            Some(Order::Park(token, bound, what)) => (token, bound.clone(), lot.park(token, bound, what, now)),
            Some(Order::Claim(token, bound, who)) => {
                // A stream that has gone is in nobody's way.
                lot.forget(&token, oneshot::Sender::is_closed);
                (token, bound.clone(), lot.claim(token, bound, who, now))
            }
        };
        // Whoever has gone meanwhile gives it back, and it waits for the next.
        if let Some((what, who)) = met
            && let Err(what) = who.send(what)
        {
            lot.park(token, bound, what, now);
        }
    }
}

/// One that waits.
struct Waiting<T> {
    bound: Bound,
    what: T,
    until: Instant,
}

/// Is there room for one more of a peer's? It leaves some to others, whatever it parks or invents.
fn has_room<T>(all: &HashMap<Token, Waiting<T>>, most: usize, bound: &Bound) -> bool {
    let is_own = |waiting: &&Waiting<T>| waiting.bound.from == bound.from && waiting.bound.peer == bound.peer;
    all.len() < most / 2 || (all.len() < most && all.values().filter(is_own).count() < most / 2)
}

/// Connections and streams that wait for one another. Pure; what it drops is refused, or not gone on with.
struct Lot<P, W> {
    parked: HashMap<Token, Waiting<P>>,
    waiting: HashMap<Token, Waiting<W>>,
}

impl<P, W> Lot<P, W> {
    fn new() -> Self {
        Self { parked: HashMap::new(), waiting: HashMap::new() }
    }

    fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.waiting.is_empty()
    }

    /// A connection comes; both, if its stream is there.
    fn park(&mut self, token: Token, bound: Bound, what: P, now: Instant) -> Option<(P, W)> {
        // One that was here first with this token, and is not the same peer, has guessed it.
        if let Some(waiting) = self.waiting.remove(&token)
            && waiting.bound == bound
        {
            return Some((what, waiting.what));
        }
        if has_room(&self.parked, MAX_PARKED, &bound) && !self.parked.contains_key(&token) {
            self.parked.insert(token, Waiting { bound, what, until: now + PARKED_FOR });
        }
        None
    }

    /// A stream comes; both, if its connection is there.
    fn claim(&mut self, token: Token, bound: Bound, what: W, now: Instant) -> Option<(P, W)> {
        match self.parked.get(&token) {
            // It is somebody else's.
            Some(parked) if parked.bound != bound => return None,
            Some(_) => return self.parked.remove(&token).map(|parked| (parked.what, what)),
            None => {}
        }
        if has_room(&self.waiting, MAX_WAITING, &bound) && !self.waiting.contains_key(&token) {
            self.waiting.insert(token, Waiting { bound, what, until: now + WAITS_FOR });
        }
        None
    }

    /// Lets go of the stream that waits, if it has gone.
    fn forget(&mut self, token: &Token, has_gone: impl Fn(&W) -> bool) {
        if self.waiting.get(token).is_some_and(|waiting| has_gone(&waiting.what)) {
            self.waiting.remove(token);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.parked.retain(|_, parked| parked.until > now);
        self.waiting.retain(|_, waiting| waiting.until > now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use std::rc::Rc;

    fn bound() -> Bound {
        Bound {
            peer: "spiffe://td/ns/a/sa/a".parse().unwrap(),
            from: [10, 0, 0, 1].into(),
            owner: "uid".into(),
            to: ([10, 0, 0, 2], 80).into(),
        }
    }

    /// Everybody else that could show the token.
    fn others() -> Vec<Bound> {
        vec![
            Bound { peer: "spiffe://td/ns/a/sa/b".parse().unwrap(), ..bound() },
            Bound { from: [10, 0, 0, 9].into(), ..bound() },
            Bound { owner: "other".into(), ..bound() },
            Bound { to: ([10, 0, 0, 2], 81).into(), ..bound() },
        ]
    }

    #[test]
    fn a_connection_and_its_stream_meet_in_both_orders_and_once() {
        let (now, token) = (Instant::now(), Token::new().unwrap());
        let mut lot = Lot::new();
        assert_eq!(lot.park(token, bound(), 1, now), None);
        assert_eq!(lot.claim(token, bound(), 'a', now), Some((1, 'a')));
        assert_eq!(lot.claim(token, bound(), 'b', now), None, "it is gone, and is waited for");
        assert_eq!(lot.claim(token, bound(), 'c', now), None, "somebody waits already");
        assert_eq!(lot.park(token, bound(), 2, now), Some((2, 'b')));
        assert!(lot.is_empty());
    }

    #[test]
    fn a_stream_that_has_gone_is_in_nobodys_way() {
        let (now, token) = (Instant::now(), Token::new().unwrap());
        let mut lot = Lot::new();
        assert_eq!(lot.claim(token, bound(), 'a', now), None);
        lot.forget(&token, |stream| *stream == 'b');
        assert_eq!(lot.claim(token, bound(), 'b', now), None, "the first one waits");
        lot.forget(&token, |stream| *stream == 'a');
        assert_eq!(lot.claim(token, bound(), 'c', now), None);
        assert_eq!(lot.park(token, bound(), 1, now), Some((1, 'c')));
    }

    /// What a stream cannot take any more waits for the next one.
    #[tokio::test]
    async fn what_nobody_has_taken_is_parked_again() {
        let ((parking, orders), token) = (new::<u8>(), Token::new().unwrap());
        let task = tokio::spawn(run(orders));
        {
            let gone = parking.claim(token, bound());
            assert!(tokio::time::timeout(Duration::from_millis(50), gone).await.is_err());
        }
        parking.park(token, bound(), 7).await;
        assert_eq!(parking.claim(token, bound()).await, Some(7));
        task.abort();
    }

    #[test]
    fn whoever_is_another_gets_nothing() {
        let (now, token) = (Instant::now(), Token::new().unwrap());
        for other in others() {
            let (mut lot, refused) = (Lot::new(), Rc::new(()));
            assert_eq!(lot.park(token, bound(), 1, now), None);
            assert_eq!(lot.claim(token, other.clone(), refused.clone(), now), None, "{other:?}");
            assert_eq!(Rc::strong_count(&refused), 1, "it is refused at once");
            assert_eq!(lot.claim(token, bound(), refused.clone(), now), Some((1, refused.clone())));
            // It was there first.
            assert_eq!(lot.claim(token, other, refused.clone(), now), None);
            assert_eq!(lot.park(token, bound(), 2, now), None);
            assert_eq!(Rc::strong_count(&refused), 1);
            assert_eq!(lot.claim(token, bound(), refused.clone(), now), Some((2, refused.clone())));
        }
        let mut lot = Lot::new();
        assert_eq!(lot.park(token, bound(), 1, now), None);
        assert_eq!(lot.claim(Token::new().unwrap(), bound(), 'x', now), None, "another token");
    }

    #[test]
    fn nobody_waits_for_ever_and_not_too_many_do() {
        let (now, token) = (Instant::now(), Token::new().unwrap());
        let mut lot = Lot::new();
        lot.park(token, bound(), 1, now);
        lot.expire(now + PARKED_FOR - LOOK);
        lot.claim(Token::new().unwrap(), bound(), 'a', now);
        assert!(!lot.is_empty());
        lot.expire(now + PARKED_FOR);
        assert!(lot.is_empty());
        // One that waits itself leaves half to others; all of these together have no more than there is.
        for (peer, many, parts) in [(1, MAX_PARKED / 2 + 10, 1), (2, MAX_PARKED / 2 + 10, 2), (3, 10, 2)] {
            for n in 0..many {
                let from = Bound { from: [10, 0, 0, peer].into(), ..bound() };
                lot.park(Token::new().unwrap(), from.clone(), n as i32, now);
                lot.claim(Token::new().unwrap(), from, 'b', now);
            }
            assert_eq!((lot.parked.len(), lot.waiting.len()), (MAX_PARKED / 2 * parts, MAX_WAITING / 2 * parts));
        }
    }
}
