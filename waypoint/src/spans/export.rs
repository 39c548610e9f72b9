//! The exporter: one task of the control thread that takes batches of spans, and of records of the log, from their queues and sends them
//! to their collectors ([`call`]). It never holds up a request: what a collector does not take in time is dropped and counted. A batch is
//! sent as the worker has written it, and its buffer goes back there. Neither of both waits for the other's collector.
//!
//! A collector that takes nothing is down ([`crate::spans::health`]): workers make nothing for it, and a task of its own tries it now and
//! then. Proven by `http/tests/traces.rs` and `http/tests/logs.rs`.

use crate::{
    spans::{
        call::{self, ExportError},
        encode,
        queue::{Batch, CAPACITY, Counts, Dropped, Signal},
        rules::Collector,
    },
    upstream::{connector::Connector, follow, reopen},
    worker::{Shared, Worker},
};
use bytes::Bytes;
use karst_rt::{drain, repeated::Repeated, socket::NetnsConnector};
use std::{
    rc::Rc,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// A stopping process waits this long for its last exports.
const LAST: Duration = Duration::from_secs(2);

impl Signal {
    /// Where it is counted.
    fn counts(self, worker: &Worker) -> &Counts {
        match self {
            Self::Spans => &worker.shared.metrics.spans,
            Self::Logs => &worker.shared.metrics.logs,
        }
    }
}

/// The exporter of a process.
pub struct Exporter {
    stops: [oneshot::Sender<()>; 2],
    task: tokio::task::JoinHandle<()>,
    /// The workers' drain is none of its: it has something to do when they have nothing.
    _drain: drain::Drain,
}

/// Starts it, on this thread's `LocalSet`: of spans, and of the log.
pub fn start(shared: Arc<Shared>, [spans, logs]: [mpsc::Receiver<Batch>; 2]) -> Exporter {
    let (drain, watch) = drain::new();
    let ((no_more_spans, spans_end), (no_more_logs, logs_end)) = (oneshot::channel(), oneshot::channel());
    let task = tokio::task::spawn_local(async move {
        // What connections and tunnels are kept in is a worker's; this one has no number, and serves nobody.
        let (following, orders) = follow::orders();
        let network = Connector::Network(NetnsConnector::host());
        let worker = Worker::new(shared, usize::MAX, watch, network, following);
        tokio::task::spawn_local(reopen::run(Rc::downgrade(&worker), orders));
        tokio::join!(run(worker.clone(), spans, spans_end), run(worker, logs, logs_end));
    });
    Exporter { stops: [no_more_spans, no_more_logs], task, _drain: drain }
}

impl Exporter {
    /// Sends what is still there, for at most [`LAST`].
    pub async fn finish(self) {
        for stop in self.stops {
            let _ = stop.send(());
        }
        let _ = tokio::time::timeout(LAST, self.task).await;
    }
}

/// Exports until it is told to stop; then what is in the queue is the last.
pub async fn run(worker: Rc<Worker>, mut queue: mpsc::Receiver<Batch>, mut stop: oneshot::Receiver<()>) {
    let mut trouble = Repeated::default();
    loop {
        let first = tokio::select! {
            first = queue.recv() => first,
            _ = &mut stop, if !queue.is_closed() => {
                queue.close();
                continue;
            }
        };
        let Some(first) = first else { return };
        export(&worker, first, &mut trouble).await;
        // What waits already belongs to the same round, within limits: it is asked in between whether there is an end.
        for _ in 1..CAPACITY {
            let Ok(next) = queue.try_recv() else { break };
            export(&worker, next, &mut trouble).await;
        }
        // Tunnels to collectors that have gone are not kept.
        worker.dialer.retire(&worker.snapshot().mesh);
        for over in trouble.end_round() {
            tracing::info!("export: {over}");
        }
    }
}

/// Sends a batch; what is not taken is counted, and told in the log.
async fn export(worker: &Rc<Worker>, batch: Batch, trouble: &mut Repeated) {
    let Batch { signal, collector, count, message, buffers } = batch;
    let all = count as u64;
    let rejected = match collector.health.is_down() {
        // It was written before that was known. The others' batches do not wait for it.
        true => all,
        false => match call::send(worker, signal, &collector, &message).await {
            Ok(rejected) => {
                collector.health.take();
                rejected.min(all)
            }
            Err(error) => {
                failed(worker, signal, &collector, &error, trouble);
                all
            }
        },
    };
    let counts = signal.counts(worker);
    counts.count_dropped(worker.number, Dropped::ExportFailed, rejected);
    counts.exported.fetch_add(all - rejected, Relaxed);
    give_back(message, &buffers);
}

/// A batch was not taken. A collector that would take no other one, either, is down from here on.
fn failed(
    worker: &Rc<Worker>,
    signal: Signal,
    collector: &Arc<Collector>,
    error: &ExportError,
    trouble: &mut Repeated,
) {
    let (what, text) = (signal.name(), told(collector, error));
    if error.is_of_message() {
        if let Some(line) = trouble.note(&text) {
            tracing::warn!("{what} could not be exported and are dropped: {line}");
        }
    } else if collector.health.fail() {
        tracing::warn!("{what} are dropped until their collector answers again: {text}");
        tokio::task::spawn_local(recover(worker.clone(), signal, Arc::downgrade(collector), text));
    }
}

fn told(collector: &Collector, error: &ExportError) -> String {
    format!("{}:{}: {error}", collector.service, collector.port)
}

/// Tries a collector that is down until it takes a message without anything in it; no batch and no request waits for that. Ends with the
/// collector, too, when no configuration names it any more. `last`: what is known of its trouble.
async fn recover(worker: Rc<Worker>, signal: Signal, collector: Weak<Collector>, mut last: String) {
    loop {
        let Some(pause) = collector.upgrade().map(|c| c.health.pause(|bound| worker.random(bound))) else { return };
        tokio::time::sleep(pause).await;
        let Some(collector) = collector.upgrade() else { return };
        let answer = call::send(&worker, signal, &collector, &encode::empty(collector.protocol)).await;
        worker.dialer.retire(&worker.snapshot().mesh);
        let what = signal.name();
        match answer {
            Err(error) if !error.is_of_message() => {
                collector.health.fail();
                let text = told(&collector, &error);
                if text != last {
                    tracing::warn!("{what} are still dropped: {text}");
                    last = text;
                }
            }
            // It may not like a message without anything, but it reads them.
            Ok(_) | Err(_) => {
                collector.health.answer();
                tracing::info!("{}:{} answers again: {what} are exported", collector.service, collector.port);
                return;
            }
        }
    }
}

/// The worker writes its next batch into the same memory, unless somebody still has it, or there is enough.
fn give_back(message: Bytes, buffers: &mpsc::Sender<Vec<u8>>) {
    if let Ok(mut buffer) = message.try_into_mut() {
        // Nothing is moved then.
        buffer.clear();
        let _ = buffers.try_send(buffer.into());
    }
}
