//! Spans on their way from the workers to the exporter: a bounded queue that nobody waits at. What finds no place is dropped and
//! counted.

use crate::spans::{attribute::Span, rules::Collector};
use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::mpsc;

/// Requests whose spans wait, at most; beyond, new ones are dropped. Some KiB each: under 16 MiB.
pub const CAPACITY: usize = 1024;

/// The spans of one request, and who takes them.
#[derive(Debug)]
pub struct Finished {
    pub collector: Arc<Collector>,
    pub spans: Vec<Span>,
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
    sender: mpsc::Sender<Finished>,
    counts: Arc<Counts>,
}

impl Queue {
    /// A queue that is counted here, and its other end.
    pub fn new(counts: Arc<Counts>) -> (Self, mpsc::Receiver<Finished>) {
        let (sender, receiver) = mpsc::channel(CAPACITY);
        (Self { sender, counts }, receiver)
    }

    /// Hands over the spans of a request, so many, or drops them: then they are not even made.
    pub fn push(&self, count: usize, make: impl FnOnce() -> Finished) {
        match self.sender.try_reserve() {
            Ok(place) => place.send(make()),
            Err(_) => {
                self.counts.dropped_full.fetch_add(count as u64, Relaxed);
            }
        }
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
    use crate::spans::{attribute::Kind, context::SpanContext, rules::Tracing};
    use karst_api::route as ir;
    use std::{cell::Cell, time::SystemTime};

    #[test]
    fn what_finds_no_place_is_dropped_and_counted() {
        let collector = ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
        let collector =
            Tracing::new(&ir::Tracing { collector: Some(collector), ..Default::default() }).unwrap().collector;
        let span = || Span {
            context: SpanContext { trace: 1, span: 1 },
            parent: None,
            trace_state: String::new(),
            name: "GET".into(),
            kind: Kind::Server,
            start: SystemTime::UNIX_EPOCH,
            end: SystemTime::UNIX_EPOCH,
            attributes: vec![],
            is_error: false,
        };
        let (queue, receiver) = Queue::new(Arc::default());
        let made = Cell::new(0);
        let push = || {
            queue.push(2, || {
                made.set(made.get() + 1);
                Finished { collector: collector.clone(), spans: vec![span(), span()] }
            });
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
