//! Spans on their way from the workers to the exporter: a bounded queue of batches that nobody waits at. What finds no place is
//! dropped and counted.

use crate::spans::rules::Collector;
use bytes::Bytes;
use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::mpsc;

/// Batches that wait, at most: of about 1 MiB each. Beyond, workers keep the one that they fill, and drop what it has no room for.
pub const CAPACITY: usize = 16;

/// Spans of requests that have ended, as their collector takes them.
#[derive(Debug)]
pub struct Batch {
    pub collector: Arc<Collector>,
    /// How many they are.
    pub count: usize,
    pub message: Bytes,
    /// Takes the buffer back, for the worker's next batches.
    pub buffers: mpsc::Sender<Vec<u8>>,
}

/// What has become of spans.
#[derive(Debug, Default)]
pub struct Counts {
    pub exported: AtomicU64,
    /// The queue was full.
    pub dropped_full: AtomicU64,
    /// The collector was not reached, or has not taken them.
    pub dropped_failed: AtomicU64,
}

/// A way to the exporter.
#[derive(Clone, Debug)]
pub struct Queue {
    sender: mpsc::Sender<Batch>,
    counts: Arc<Counts>,
}

impl Queue {
    /// A queue that is counted here, and its other end.
    pub fn new(counts: Arc<Counts>) -> (Self, mpsc::Receiver<Batch>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { sender, counts }, receiver)
    }

    /// Hands over a batch. False: there is no place for it, and it is not made.
    pub fn push(&self, make: impl FnOnce() -> Batch) -> bool {
        let place = self.sender.try_reserve();
        place.map(|place| place.send(make())).is_ok()
    }

    /// So many spans have found no place.
    pub fn count_dropped(&self, count: usize) {
        self.counts.dropped_full.fetch_add(count as u64, Relaxed);
    }
}

impl Counts {
    /// Metrics, in the text format.
    pub fn render(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "# HELP karst_trace_spans_exported_total Spans that a collector has taken.\n# TYPE karst_trace_spans_exported_total counter\nkarst_trace_spans_exported_total {}",
            self.exported.load(Relaxed)
        );
        let _ = writeln!(
            out,
            "# HELP karst_trace_spans_dropped_total Spans dropped because the queue was full or the collector did not take them.\n# TYPE karst_trace_spans_dropped_total counter"
        );
        for (reason, count) in [("queue_full", &self.dropped_full), ("export_failed", &self.dropped_failed)] {
            let _ = writeln!(out, "karst_trace_spans_dropped_total{{reason=\"{reason}\"}} {}", count.load(Relaxed));
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
                Batch { collector, count: 2, message: Bytes::new(), buffers }
            });
            if !is_taken {
                queue.count_dropped(2);
            }
        };
        (0..CAPACITY).for_each(|_| push());
        assert_eq!(queue.counts.dropped_full.load(Relaxed), 0);
        push();
        drop(receiver);
        push();
        assert_eq!(made.get(), CAPACITY, "what is dropped is not made");
        let mut page = String::new();
        queue.counts.render(&mut page);
        assert!(page.contains("karst_trace_spans_dropped_total{reason=\"queue_full\"} 4"), "{page}");
    }
}
