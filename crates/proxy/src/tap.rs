//! Who looks on live at a proxy's traffic (`karst tap`): the page `/tap` of the admin port. A looker has a filter, a queue of
//! [`limits::TAP_QUEUE`] records, and an end. What does not fit its queue is counted and lost: nobody who is looked at waits.
//!
//! While nobody looks, a finished request or connection costs one relaxed load (and so does, in ztunnel, each piece of a client's that
//! is read for requests), and nothing is made (proven by
//! `nothing_is_made_while_nobody_looks`).

use crate::state::Workload;
use arc_swap::ArcSwap;
use bytes::Bytes;
use karst_core::limits;
use karst_flows::tap::{End, Event, Filter, Line, Peer, Record};
use karst_rt::{admin, clock, log};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};

/// Lines that are made and wait for the client's socket.
const LINES: usize = 16;
/// [`limits::TAP_RATE`] is of this time.
const SECOND: Duration = Duration::from_secs(1);

/// There are [`limits::TAP_LOOKERS`] already.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} others look at this proxy already, and more are not served; wait until one of them ends",
    limits::TAP_LOOKERS
)]
pub struct TooMany;

struct Looker {
    number: u64,
    filter: Filter,
    records: mpsc::Sender<Record>,
    lost: AtomicU64,
}

/// The lookers of a process.
pub struct Taps {
    /// How many there are, or are about to be.
    count: AtomicUsize,
    lookers: ArcSwap<Vec<Arc<Looker>>>,
    next: AtomicU64,
    /// Records that were made.
    made: AtomicU64,
    node: String,
}

/// A looker's side. Dropped, it is told of nothing more.
pub struct Looking {
    taps: Arc<Taps>,
    own: Arc<Looker>,
    records: mpsc::Receiver<Record>,
}

impl Taps {
    /// Of a proxy of this name ([`Record::node_name`]); nobody looks.
    pub fn new(node: impl Into<String>) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            lookers: ArcSwap::default(),
            next: AtomicU64::new(0),
            made: AtomicU64::new(0),
            node: node.into(),
        })
    }

    /// Does anybody look?
    pub fn is_looked_at(&self) -> bool {
        self.count.load(Relaxed) != 0
    }

    /// Tells whoever looks. What it is made from costs nothing while nobody does.
    pub fn tell<'a>(&self, event: impl FnOnce() -> Event<'a>) {
        if self.is_looked_at() {
            self.tell_all(&event());
        }
    }

    #[cold]
    fn tell_all(&self, event: &Event<'_>) {
        for looker in self.lookers.load().iter().filter(|looker| looker.filter.matches(event)) {
            match looker.records.try_reserve() {
                Ok(place) => {
                    self.made.fetch_add(1, Relaxed);
                    place.send(Record::new(event, &self.node, log::timestamp(clock::wall()), looker.filter.query));
                }
                Err(TrySendError::Full(())) => {
                    looker.lost.fetch_add(1, Relaxed);
                }
                // It is about to be taken off the list.
                Err(TrySendError::Closed(())) => {}
            }
        }
    }

    /// Begins to look.
    ///
    /// # Errors
    /// If too many do.
    pub fn look(self: &Arc<Self>, filter: Filter) -> Result<Looking, TooMany> {
        if self.count.fetch_add(1, Relaxed) >= limits::TAP_LOOKERS {
            self.count.fetch_sub(1, Relaxed);
            return Err(TooMany);
        }
        let (sender, records) = mpsc::channel(limits::TAP_QUEUE);
        let number = self.next.fetch_add(1, Relaxed);
        let own = Arc::new(Looker { number, filter, records: sender, lost: AtomicU64::new(0) });
        self.lookers.rcu(|all| all.iter().chain([&own]).cloned().collect::<Vec<_>>());
        Ok(Looking { taps: self.clone(), own, records })
    }

    /// The page `/tap`: lines of JSON ([`Line`]) until the limit or the time of the filter is reached, or the client goes. Must be
    /// called in a `LocalSet`.
    pub fn page(self: &Arc<Self>, query: &str) -> admin::Answer {
        let filter = match Filter::parse(query) {
            Ok(filter) => filter,
            Err(e) => return admin::text(400, format!("{e}\n")),
        };
        let looking = match self.look(filter) {
            Ok(looking) => looking,
            Err(e) => return admin::text(429, format!("{e}\n")),
        };
        // Who has the right to reach the page is in the API server's audit log (port-forward); here is what was asked.
        tracing::info!(query = %karst_core::untrusted::Untrusted(query), "tap begins");
        let (lines, parts) = mpsc::channel(LINES);
        tokio::task::spawn_local(async move {
            looking.pump(lines).await;
            tracing::info!("tap ends");
        });
        admin::stream("application/x-ndjson", parts)
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        let number = self.own.number;
        self.taps.lookers.rcu(|all| all.iter().filter(|one| one.number != number).cloned().collect::<Vec<_>>());
        self.taps.count.fetch_sub(1, Relaxed);
    }
}

impl Looking {
    /// Sends what is seen, until the end.
    async fn pump(mut self, out: mpsc::Sender<Bytes>) {
        let until = Instant::now() + self.own.filter.time;
        let mut left = self.own.filter.limit;
        let (mut beat, mut second) = (interval(limits::TAP_BEAT), interval(SECOND));
        // After a client that has not read for a while, none of them is made up for.
        for every in [&mut beat, &mut second] {
            every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut may = limits::TAP_RATE;
        let end = loop {
            let line = tokio::select! {
                biased;
                () = out.closed() => return,
                () = sleep_until(until) => break End::Time,
                _ = second.tick() => {
                    may = limits::TAP_RATE;
                    let Some(line) = self.lost() else { continue };
                    line
                }
                _ = beat.tick() => Line::NodeStatus { node_name: self.taps.node.clone() },
                Some(record) = self.records.recv(), if may > 0 => {
                    (may, left) = (may - 1, left - 1);
                    Line::Flow(Box::new(record))
                }
            };
            match timeout_at(until, send(&out, &line)).await {
                Ok(true) if left > 0 => {}
                Ok(true) => break End::Limit,
                Ok(false) => return,
                Err(_) => break End::Time,
            }
        };
        if end == End::Time {
            // They have been taken for it, and are not sent any more.
            self.own.lost.fetch_add(self.records.len() as u64, Relaxed);
        }
        // A client that does not read is not waited for.
        let last = [self.lost(), Some(Line::End { reason: end })];
        for line in last.into_iter().flatten() {
            let _ = out.try_send(encode(&line));
        }
    }

    fn lost(&self) -> Option<Line> {
        let num_events_lost = self.own.lost.swap(0, Relaxed);
        (num_events_lost > 0).then_some(Line::LostEvents { num_events_lost })
    }
}

async fn send(out: &mpsc::Sender<Bytes>, line: &Line) -> bool {
    out.send(encode(line)).await.is_ok()
}

fn encode(line: &Line) -> Bytes {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

/// A workload as one end, without an address; its identity is what the control plane says.
pub fn peer(workload: &Workload) -> Peer<'_> {
    Peer {
        namespace: &workload.namespace,
        workload: &workload.workload_name,
        kind: workload.workload_type,
        pod: &workload.name,
        identity: workload.identity.as_str(),
        address: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_flows::{
        Reporter,
        tap::{Direction, Peer, Phase, Verdict},
    };
    use tokio::task::{LocalSet, spawn_local};

    fn event(from: &str, verdict: Verdict) -> Event<'_> {
        Event {
            reporter: Reporter::Ztunnel,
            direction: Direction::Ingress,
            phase: Phase::Close,
            source: Peer { namespace: "shop", workload: from, ..Peer::default() },
            destination: Peer { namespace: "shop", workload: "db", ..Peer::default() },
            service: "",
            verdict,
            policy: "",
            reason: "".into(),
            flags: "-",
            mtls: true,
            request: None,
            received: 0,
            sent: 0,
            took: Duration::ZERO,
        }
    }

    /// Begins to look; the lines.
    fn look(taps: &Arc<Taps>, query: &str) -> mpsc::Receiver<Bytes> {
        let looking = taps.look(Filter::parse(query).unwrap()).unwrap();
        let (lines, parts) = mpsc::channel(LINES);
        spawn_local(looking.pump(lines));
        parts
    }

    async fn next(parts: &mut mpsc::Receiver<Bytes>) -> Option<Line> {
        parts.recv().await.map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    /// All lines but those that only say that the proxy is there.
    async fn all(mut parts: mpsc::Receiver<Bytes>) -> Vec<Line> {
        let mut lines = vec![];
        while let Some(line) = next(&mut parts).await {
            if !matches!(line, Line::NodeStatus { .. }) {
                lines.push(line);
            }
        }
        lines
    }

    /// Lets the tasks that can go on do so.
    async fn settle(taps: &Arc<Taps>, lookers: usize) {
        while taps.count.load(Relaxed) != lookers {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn nothing_is_made_while_nobody_looks() {
        let run = async {
            let taps = Taps::new("n");
            taps.tell(|| unreachable!());
            let parts = look(&taps, "from=web");
            taps.tell(|| event("other", Verdict::Forwarded));
            assert_eq!(taps.made.load(Relaxed), 0, "what no looker wants is not made either");
            taps.tell(|| event("web", Verdict::Forwarded));
            assert_eq!(taps.made.load(Relaxed), 1);
            drop(parts);
            settle(&taps, 0).await;
            taps.tell(|| unreachable!());
            assert!(taps.lookers.load().is_empty());
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_begins_with_its_node_and_ends_at_its_limit() {
        let run = async {
            let taps = Taps::new("node-1");
            let mut parts = look(&taps, "limit=2&verdict=dropped");
            assert_eq!(next(&mut parts).await, Some(Line::NodeStatus { node_name: "node-1".into() }));
            taps.tell(|| event("a", Verdict::Forwarded));
            for from in ["a", "b", "c"] {
                taps.tell(|| event(from, Verdict::Dropped));
            }
            let lines = all(parts).await;
            let [Line::Flow(one), Line::Flow(two), Line::End { reason: End::Limit }] = &lines[..] else {
                panic!("{lines:?}")
            };
            assert_eq!([one.event().source.workload, two.event().source.workload], ["a", "b"]);
            assert_eq!((one.verdict, &*one.node_name), (Verdict::Dropped, "node-1"));
            settle(&taps, 0).await;
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_at_its_time_also_where_nobody_reads() {
        let run = async {
            let taps = Taps::new("n");
            let begun = Instant::now();
            let lines = all(look(&taps, "seconds=7")).await;
            assert_eq!((lines, begun.elapsed().as_secs()), (vec![Line::End { reason: End::Time }], 7));
            let _unread = look(&taps, "seconds=7");
            for _ in 0..100 {
                taps.tell(|| event("a", Verdict::Forwarded));
            }
            tokio::time::sleep(Duration::from_secs(8)).await;
            settle(&taps, 0).await;
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_looker_does_not_take_is_lost_and_counted() {
        let run = async {
            let taps = Taps::new("n");
            let parts = look(&taps, "seconds=60&limit=100000");
            let told = limits::TAP_QUEUE + 17;
            // Nobody else runs meanwhile, so nothing is taken out of the queue.
            (0..told).for_each(|_| taps.tell(|| event("a", Verdict::Forwarded)));
            let lines = all(parts).await;
            let (mut lost, mut flows) = (0, 0);
            for line in &lines {
                match line {
                    Line::LostEvents { num_events_lost } => lost += num_events_lost,
                    Line::Flow(_) => flows += 1,
                    Line::NodeStatus { .. } | Line::End { .. } => {}
                }
            }
            assert_eq!((flows, lost), (limits::TAP_QUEUE, 17));
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_when_the_time_is_over_is_lost_and_counted() {
        let run = async {
            let taps = Taps::new("n");
            let parts = look(&taps, "seconds=1&limit=100000");
            // Fewer than wait at most, and more than are sent in this second.
            (0..limits::TAP_RATE + 7).for_each(|_| taps.tell(|| event("a", Verdict::Forwarded)));
            let lines = all(parts).await;
            let last = [Line::LostEvents { num_events_lost: 7 }, Line::End { reason: End::Time }];
            assert_eq!(
                (lines.len(), lines.ends_with(&last)),
                (limits::TAP_RATE as usize + 2, true),
                "{:?}",
                lines.last()
            );
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_looker_is_sent_so_many_in_a_second() {
        let run = async {
            let taps = Taps::new("n");
            let rate = limits::TAP_RATE as usize;
            let mut parts = look(&taps, "seconds=60&limit=100000");
            (0..rate + 1).for_each(|_| taps.tell(|| event("a", Verdict::Forwarded)));
            let begun = Instant::now();
            let mut flows = 0;
            while flows < rate + 1 {
                let line = next(&mut parts).await.unwrap();
                flows += usize::from(matches!(line, Line::Flow(_)));
                assert_eq!(begun.elapsed() >= SECOND, flows > rate, "{flows}");
            }
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn only_a_few_look_at_a_time() {
        let run = async {
            let taps = Taps::new("n");
            let mut held: Vec<_> = (0..limits::TAP_LOOKERS).map(|_| look(&taps, "")).collect();
            assert_eq!(taps.page("").status(), 429);
            held.pop();
            settle(&taps, limits::TAP_LOOKERS - 1).await;
            assert_eq!(taps.page("").status(), 200);
            assert_eq!(taps.page("nmespace=shop").status(), 400, "what is not understood shows nothing");
        };
        LocalSet::new().run_until(run).await;
    }
}
