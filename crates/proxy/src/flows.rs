//! The books of flows ([`karst_flows`]) of a process: each worker has one that nobody else touches, and sends a copy to whoever
//! reads the admin page. A worker that does not answer within [`PATIENCE`] is left out. What is refused is counted for the metrics, too
//! (`refusals`).

use crate::refusals::Refusals;
use karst_core::limits;
use karst_flows::{Book, Flow, Page, Seen, merge};
use karst_rt::{
    clock,
    exposition::{self, Kind},
};
use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{broadcast, mpsc};

/// A page is told within this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Readers that may wait for their page; of more, the first get what had come until then.
const READERS: usize = 16;

/// Who wants a copy of each book.
type Reader = mpsc::Sender<Vec<Flow>>;

/// The books of a process.
pub struct Books {
    /// None: no book is kept.
    readers: Option<broadcast::Sender<Reader>>,
    workers: usize,
    since: u64,
    evicted: Arc<AtomicU64>,
    refusals: Arc<Refusals>,
}

impl Books {
    /// Those of so many workers; none if it is switched off.
    pub fn new(workers: usize, enabled: bool) -> Self {
        Self {
            readers: enabled.then(|| broadcast::Sender::new(READERS)),
            workers,
            since: clock::since_epoch().as_secs(),
            evicted: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// A worker's own. Called in its `LocalSet`.
    pub fn recorder(&self) -> Recorder {
        let Some(readers) = &self.readers else { return Recorder::default() };
        let book = Rc::new(RefCell::new(Book::new(limits::flows_per_worker(self.workers))));
        let (mut wanted, own) = (readers.subscribe(), book.clone());
        tokio::task::spawn_local(async move {
            loop {
                match wanted.recv().await {
                    Ok(reader) => {
                        let copy = own.borrow().flows().collect();
                        // Who does not wait any more needs none.
                        let _ = reader.send(copy).await;
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        Recorder { book: Some(book), evicted: self.evicted.clone(), refusals: self.refusals.clone() }
    }

    /// What all workers have noted.
    pub async fn page(&self) -> Page {
        let Some(readers) = &self.readers else { return Page::default() };
        let (reader, mut copies) = mpsc::channel(self.workers.max(1));
        let mut all = vec![];
        if readers.send(reader).is_ok() {
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while let Ok(Some(copy)) = tokio::time::timeout_at(deadline, copies.recv()).await {
                all.extend(copy);
            }
        }
        let capacity = limits::flows_per_worker(self.workers) * self.workers;
        let evicted = self.evicted.load(Relaxed);
        Page { enabled: true, since: self.since, capacity: capacity as u64, evicted, flows: merge(all) }
    }

    /// Adds to the metrics page.
    pub fn render(&self, page: &mut exposition::Page) {
        let help = "Flows that had to make room for others in the book of flows (/flows).";
        page.single("karst_flows_evicted_total", Kind::Counter, help, self.evicted.load(Relaxed));
        self.refusals.render(page);
    }
}

/// A worker's way to its book.
#[derive(Default)]
pub struct Recorder {
    book: Option<Rc<RefCell<Book>>>,
    evicted: Arc<AtomicU64>,
    refusals: Arc<Refusals>,
}

impl Recorder {
    /// Notes what was seen. What it and its time are made from costs nothing where no book is kept. `at`: the time at which it came,
    /// which who serves requests has read for them already.
    pub fn note<'a>(&self, at: impl FnOnce() -> SystemTime, seen: impl FnOnce() -> Seen<'a>) {
        let Some(book) = &self.book else { return };
        let seen = seen();
        self.refusals.note(&seen);
        let seconds = at().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if book.borrow_mut().note(&seen, seconds) {
            self.evicted.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_flows::{Decision, Reporter};
    use std::net::IpAddr;
    use tokio::task::LocalSet;

    fn seen<'a>(from: [u8; 4]) -> Seen<'a> {
        Seen {
            reporter: Reporter::Ztunnel,
            identity: None,
            from: IpAddr::from(from),
            namespace: "shop",
            workload: "web",
            service: "",
            to: ([10, 0, 0, 1], 80).into(),
            pod: "web-1",
            request: None,
            decision: Decision::Allowed,
        }
    }

    #[tokio::test]
    async fn a_page_is_of_all_workers() {
        let run = async {
            let books = Books::new(2, true);
            let (one, two) = (books.recorder(), books.recorder());
            one.note(clock::wall, || seen([10, 0, 0, 1]));
            two.note(clock::wall, || seen([10, 0, 0, 2]));
            two.note(clock::wall, || seen([10, 0, 1, 1]));
            let (page, again) = tokio::join!(books.page(), books.page());
            let counts: Vec<u64> = page.flows.iter().map(|f| f.count).collect();
            assert_eq!((page.enabled, page.capacity, counts), (true, limits::FLOWS as u64, vec![2, 1]));
            assert_eq!(again, page, "two readers at once");
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_hangs_is_left_out() {
        let run = async {
            let books = Books::new(2, true);
            let _hangs = books.readers.as_ref().unwrap().subscribe();
            let one = books.recorder();
            one.note(clock::wall, || seen([10, 0, 0, 1]));
            assert_eq!(books.page().await.flows.len(), 1);
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn what_was_seen_is_of_the_time_at_which_it_came() {
        let run = async {
            let books = Books::new(1, true);
            let one = books.recorder();
            for seconds in [17, 19] {
                one.note(|| UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 999), || seen([10, 0, 0, 1]));
            }
            let page = books.page().await;
            let [flow] = &page.flows[..] else { panic!("{page:?}") };
            assert_eq!((flow.count, flow.first, flow.last), (2, 17, 19));
            one.note(|| UNIX_EPOCH - Duration::from_secs(1), || seen([10, 0, 0, 1]));
            assert_eq!(books.page().await.flows[0].first, 0, "a clock that is wrong");
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn none_is_kept_where_it_is_switched_off() {
        let books = Books::new(1, false);
        books.recorder().note(|| unreachable!(), || unreachable!());
        assert_eq!(books.page().await, Page::default());
    }

    #[tokio::test]
    async fn evictions_are_counted() {
        let run = async {
            // The fewest that a worker has, so that the test is short.
            let books = Books::new(limits::FLOWS, true);
            let one = books.recorder();
            for n in 0..limits::FLOWS_OF_WORKER + 3 {
                one.note(clock::wall, || seen([10, (n >> 8) as u8, n as u8, 1]));
            }
            one.note(clock::wall, || Seen { decision: Decision::NotAllowed, ..seen([10, 0, 0, 1]) });
            let out = exposition::page(|page| books.render(page));
            assert!(out.contains("\nkarst_flows_evicted_total 4\n"), "{out}");
            assert!(
                out.contains("karst_policy_refusals_total{by=\"ztunnel\",") && out.ends_with("policy=\"-\"} 1\n"),
                "{out}"
            );
        };
        LocalSet::new().run_until(run).await;
    }
}
