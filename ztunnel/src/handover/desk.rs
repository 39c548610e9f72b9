//! Where a connection of a process that leaves asks whether its successor would take it, and from where it goes.

use super::pieces::Moved;
use arc_swap::ArcSwapOption;
use karst_api::handover::Offer;
use karst_rt::exposition::{Kind, Page};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc, oneshot},
    time::{sleep, timeout},
};

/// Connections that are under way at a time; the others are carried on meanwhile, and wait.
const AT_A_TIME: usize = 64;
/// Orders that may wait for the thread that talks to the successor: more than all who are under way have.
pub const ORDERS: usize = 4 * AT_A_TIME;
/// A successor that has not answered for this long is asked anew.
const ANSWER: Duration = Duration::from_secs(5);
/// What a successor has refused (a pod that it does not know yet) it is asked for again after this long.
const AGAIN: Duration = Duration::from_millis(250);

/// For the thread that talks to the successor.
pub enum Order {
    /// Ask whether it takes this one; why not, if not.
    Offer {
        /// Its number.
        id: u64,
        /// What is said of it.
        offer: Box<Offer>,
        /// Empty: it does.
        answer: oneshot::Sender<String>,
    },
    /// It is the successor's.
    Go {
        /// Its number.
        id: u64,
        /// All there is of it.
        moved: Box<Moved>,
        /// False: nothing has happened.
        done: oneshot::Sender<bool>,
    },
    /// It has ended meanwhile.
    Withdraw(u64),
}

/// What has become of open connections when their process left.
#[derive(Debug, Default)]
pub struct Counts {
    /// Given to a successor.
    pub given: AtomicU64,
    /// Taken over.
    pub taken: AtomicU64,
    /// Offers that were refused; they are made again.
    pub refused: AtomicU64,
    /// Went on in another stream, because the other end's process was replaced.
    pub followed: AtomicU64,
}

impl Counts {
    /// For the page of metrics.
    pub fn render(&self, page: &mut Page) {
        let mut family = page.family(
            "karst_connections_handed_over_total",
            Kind::Counter,
            "Open connections passed to the next process of this ztunnel (given), taken over from the one before (taken), offers that the next one refused (refused), and connections whose other end was replaced (followed).",
        );
        let all =
            [("given", &self.given), ("taken", &self.taken), ("refused", &self.refused), ("followed", &self.followed)];
        for (role, count) in all {
            family.sample(&[("role", role)], count.load(Relaxed));
        }
    }
}

/// The desk; one for all workers.
pub struct Desk {
    /// Is there a successor?
    orders: ArcSwapOption<mpsc::Sender<Order>>,
    places: Semaphore,
    next: AtomicU64,
}

impl Default for Desk {
    fn default() -> Self {
        Self { orders: ArcSwapOption::empty(), places: Semaphore::new(AT_A_TIME), next: AtomicU64::new(1) }
    }
}

impl Desk {
    /// There is a successor, and this thread talks to it; or none any more.
    pub fn open(&self, orders: Option<mpsc::Sender<Order>>) {
        self.orders.store(orders.map(Arc::new));
    }

    /// Waits until a successor would take a connection. Dropped before, it is withdrawn.
    pub async fn ask(&self, counts: &Counts, offer: impl Fn() -> Offer) -> Ticket<'_> {
        loop {
            match self.ask_once(counts, &offer).await {
                Some(ticket) => return ticket,
                None => sleep(AGAIN).await,
            }
        }
    }

    async fn ask_once(&self, counts: &Counts, offer: &impl Fn() -> Offer) -> Option<Ticket<'_>> {
        let place = self.places.acquire().await.ok()?;
        let orders = self.orders.load_full()?;
        let id = self.next.fetch_add(1, Relaxed);
        let (answer, answered) = oneshot::channel();
        orders.send(Order::Offer { id, offer: Box::new(offer()), answer }).await.ok()?;
        let ticket = Ticket { id, orders, _place: place, open: true };
        let refusal = timeout(ANSWER, answered).await.ok()?.ok()?;
        if refusal.is_empty() {
            return Some(ticket);
        }
        counts.refused.fetch_add(1, Relaxed);
        tracing::debug!(id, refusal, "the successor does not take a connection (yet)");
        None
    }
}

/// A successor would take it.
pub struct Ticket<'a> {
    id: u64,
    orders: Arc<mpsc::Sender<Order>>,
    _place: SemaphorePermit<'a>,
    open: bool,
}

impl Ticket<'_> {
    /// Passes it on; nothing may be read or written before this is done. False: it has stayed here.
    pub async fn go(mut self, moved: Moved) -> bool {
        let (done, is_done) = oneshot::channel();
        let order = Order::Go { id: self.id, moved: Box::new(moved), done };
        if self.orders.send(order).await.is_err() {
            return false;
        }
        self.open = false;
        is_done.await.unwrap_or(false)
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.open {
            // There is room for as many as can be under way.
            let _ = self.orders.try_send(Order::Withdraw(self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_hbone::copy::Parts;

    /// A desk, and the thread that talks to the successor.
    fn open() -> (Desk, Counts, mpsc::Receiver<Order>) {
        let (desk, (tx, rx)) = (Desk::default(), mpsc::channel(ORDERS));
        desk.open(Some(tx));
        (desk, Counts::default(), rx)
    }

    async fn answer(orders: &mut mpsc::Receiver<Order>, with: &str) -> u64 {
        match orders.recv().await {
            Some(Order::Offer { id, answer, .. }) => {
                let _ = answer.send(with.into());
                id
            }
            Some(Order::Go { .. } | Order::Withdraw(_)) | None => panic!("no offer"),
        }
    }

    fn parts() -> Moved {
        let socket = || std::fs::File::open("/dev/null").unwrap().into();
        Moved::Pair(Parts { client: socket(), server: socket(), up: Default::default(), down: Default::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_offered_again_and_goes_once() {
        let (desk, counts, mut orders) = open();
        let successor = async {
            let first = answer(&mut orders, "not yet").await;
            assert!(matches!(orders.recv().await, Some(Order::Withdraw(id)) if id == first));
            let second = answer(&mut orders, "").await;
            let Some(Order::Go { id, done, .. }) = orders.recv().await else { panic!("it does not go") };
            assert!(id == second && first != second);
            done.send(true).unwrap();
            orders
        };
        let leaves = async { desk.ask(&counts, Offer::default).await.go(parts()).await };
        let (mut orders, went) = tokio::join!(successor, leaves);
        assert!(went && counts.refused.load(Relaxed) == 1);
        assert!(orders.try_recv().is_err(), "what has gone is not withdrawn");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_successor_nothing_goes() {
        let (desk, counts, orders) = open();
        drop(orders);
        assert!(timeout(ANSWER, desk.ask(&counts, Offer::default)).await.is_err());
        desk.open(None);
        assert!(timeout(ANSWER, desk.ask(&counts, Offer::default)).await.is_err());
        // The one that has answered dies before it has the connection.
        let (tx, mut orders) = mpsc::channel(ORDERS);
        desk.open(Some(tx));
        let (ticket, _) = tokio::join!(desk.ask(&counts, Offer::default), answer(&mut orders, ""));
        drop(orders);
        assert!(!ticket.go(parts()).await);
        assert_eq!(desk.places.available_permits(), AT_A_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn who_ends_before_is_withdrawn_and_others_wait_for_its_place() {
        let (desk, counts, mut orders) = open();
        let mut tickets = vec![];
        for _ in 0..AT_A_TIME {
            let (ticket, _) = tokio::join!(desk.ask(&counts, Offer::default), answer(&mut orders, ""));
            tickets.push(ticket);
        }
        assert!(timeout(ANSWER, desk.ask(&counts, Offer::default)).await.is_err() && orders.try_recv().is_err());
        drop(tickets.pop());
        assert!(matches!(orders.try_recv(), Ok(Order::Withdraw(_))));
        let (_ticket, _) = tokio::join!(desk.ask(&counts, Offer::default), answer(&mut orders, ""));
    }
}
