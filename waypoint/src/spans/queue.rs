//! Spans, and records of the log, on their way from the workers to the exporter: for each of both a bounded queue of batches that nobody
//! waits at. What finds no place is dropped and counted.

use crate::spans::rules::Collector;
use bytes::Bytes;
use karst_rt::exposition::{Kind, Page};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio::sync::mpsc;

/// Batches that wait, at most: of about 1 MiB each. Beyond, workers keep the one that they fill, and drop what it has no room for.
pub const CAPACITY: usize = 16;
/// Workers that count by themselves; beyond, several count in one place.
const PLACES: usize = 16;

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Traces.
    Spans,
    /// The access log.
    Logs,
}

impl Signal {
    /// What its items are called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spans => "spans",
            Self::Logs => "records of the access log",
        }
    }

    /// Its metrics: of what was exported, and of what was dropped.
    fn metrics(self) -> [&'static str; 2] {
        match self {
            Self::Spans => ["karst_trace_spans_exported_total", "karst_trace_spans_dropped_total"],
            Self::Logs => ["karst_log_records_exported_total", "karst_log_records_dropped_total"],
        }
    }
}

/// Items of requests that have ended, as their collector takes them.
#[derive(Debug)]
pub struct Batch {
    pub signal: Signal,
    pub collector: Arc<Collector>,
    /// How many they are.
    pub count: usize,
    pub message: Bytes,
    /// Takes the buffer back, for the worker's next batches.
    pub buffers: mpsc::Sender<Vec<u8>>,
}

/// Why items are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The queue is full.
    QueueFull,
    /// The collector was not reached, or has not taken them; or it is known that it takes none.
    ExportFailed,
}

impl Dropped {
    const ALL: [Self; 2] = [Self::QueueFull, Self::ExportFailed];

    /// As metrics have it.
    fn reason(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
        }
    }
}

/// What has become of them.
#[derive(Debug, Default)]
pub struct Counts {
    pub exported: AtomicU64,
    dropped: [DroppedBy; PLACES],
}

/// What a worker has dropped. Where nothing is taken each request counts: so it is the worker's own, in cache lines of its own (two, as
/// they are fetched).
#[derive(Debug, Default)]
#[repr(align(128))]
struct DroppedBy([AtomicU64; Dropped::ALL.len()]);

/// A way to the exporter.
#[derive(Clone, Debug)]
pub struct Queue {
    sender: mpsc::Sender<Batch>,
    counts: Arc<Counts>,
    /// Whose it is.
    worker: usize,
}

impl Queue {
    /// A queue that is counted here, and its other end.
    pub fn new(counts: Arc<Counts>) -> (Self, mpsc::Receiver<Batch>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { sender, counts, worker: 0 }, receiver)
    }

    /// The same way, for a worker.
    pub fn of_worker(&self, number: usize) -> Self {
        Self { worker: number, ..self.clone() }
    }

    /// Hands over a batch. False: there is no place for it, and it is not made.
    pub fn push(&self, make: impl FnOnce() -> Batch) -> bool {
        let place = self.sender.try_reserve();
        place.map(|place| place.send(make())).is_ok()
    }

    /// Is there a place for a batch?
    pub fn has_place(&self) -> bool {
        self.sender.capacity() > 0
    }

    /// So many items are dropped.
    pub fn count_dropped(&self, why: Dropped, count: usize) {
        self.counts.count_dropped(self.worker, why, count as u64);
    }
}

impl Counts {
    /// How many items were dropped.
    pub fn dropped(&self, why: Dropped) -> u64 {
        self.dropped.iter().map(|by| by.0[why as usize].load(Relaxed)).sum()
    }

    /// A worker drops so many.
    pub fn count_dropped(&self, worker: usize, why: Dropped, count: u64) {
        self.dropped[worker % PLACES].0[why as usize].fetch_add(count, Relaxed);
    }

    /// Adds them to the metrics page.
    pub fn render(&self, signal: Signal, page: &mut Page) {
        let (what, [exported, dropped]) = (signal.name(), signal.metrics());
        let help = format!("How many {what} a collector has taken.");
        page.single(exported, Kind::Counter, &help, self.exported.load(Relaxed));
        let help =
            format!("How many {what} were dropped because the queue was full or the collector did not take them.");
        let mut family = page.family(dropped, Kind::Counter, &help);
        for why in Dropped::ALL {
            family.sample(&[("reason", why.reason())], self.dropped(why));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::spans::rules::Tracing;
    use karst_api::route as ir;
    use std::cell::Cell;

    #[test]
    fn what_finds_no_place_is_dropped_and_counted() {
        let collector = ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
        let collector =
            Tracing::new(&ir::Tracing { collector: Some(collector), ..Default::default() }).unwrap().collector;
        let (queue, receiver) = Queue::new(Arc::default());
        let (buffers, _kept) = mpsc::channel(1);
        let made = Cell::new(0);
        let push = || {
            let is_taken = queue.push(|| {
                made.set(made.get() + 1);
                let (collector, buffers) = (collector.clone(), buffers.clone());
                Batch { signal: Signal::Spans, collector, count: 2, message: Bytes::new(), buffers }
            });
            if !is_taken {
                queue.count_dropped(Dropped::QueueFull, 2);
            }
        };
        (0..CAPACITY).for_each(|_| push());
        assert_eq!(queue.counts.dropped(Dropped::QueueFull), 0);
        push();
        drop(receiver);
        push();
        assert_eq!(made.get(), CAPACITY, "what is dropped is not made");
        let page = karst_rt::exposition::page(|page| queue.counts.render(Signal::Spans, page));
        assert!(page.contains("karst_trace_spans_dropped_total{reason=\"queue_full\"} 4"), "{page}");
    }

    #[test]
    fn each_worker_counts_by_itself_and_all_are_told() {
        let counts = Arc::<Counts>::default();
        let (queue, _receiver) = Queue::new(counts.clone());
        // More than there are places, and the exporter's own.
        for number in (0..2 * PLACES).chain([usize::MAX]) {
            queue.of_worker(number).count_dropped(Dropped::ExportFailed, 3);
        }
        let all = 3 * (2 * PLACES as u64 + 1);
        assert_eq!((counts.dropped(Dropped::QueueFull), counts.dropped(Dropped::ExportFailed)), (0, all));
        assert_eq!(counts.dropped[1].0[Dropped::ExportFailed as usize].load(Relaxed), 6);
        let page = karst_rt::exposition::page(|page| counts.render(Signal::Logs, page));
        assert!(
            page.contains(&format!("karst_log_records_dropped_total{{reason=\"export_failed\"}} {all}\n")),
            "{page}"
        );
    }
}
