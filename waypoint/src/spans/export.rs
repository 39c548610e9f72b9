//! The exporter: one task of the control thread that takes batches of spans, and of records of the log, from their queues and sends them
//! to their collectors ([`call`]). It never holds up a request: what a collector does not take in time is dropped and counted. A batch is
//! sent as the worker has written it, and its buffer goes back there. Neither of both waits for the other's collector.

use crate::{
    spans::{
        call,
        queue::{Batch, CAPACITY, Counts, Dropped, Signal},
    },
    upstream::{connector::Connector, follow, reopen},
    worker::{Shared, Worker},
};
use bytes::Bytes;
use karst_rt::{drain, repeated::Repeated, socket::NetnsConnector};
use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// While a collector cannot be reached it is tried once in this time: meanwhile the queue fills, and what finds no place costs nothing.
const PAUSE: Duration = Duration::from_secs(2);
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
        let mut is_reached = export(&worker, first, &mut trouble).await;
        // What waits already belongs to the same round, within limits: it is asked in between whether there is an end.
        for _ in 1..CAPACITY {
            if !is_reached {
                break;
            }
            let Ok(next) = queue.try_recv() else { break };
            is_reached = export(&worker, next, &mut trouble).await;
        }
        // Tunnels to collectors that have gone are not kept.
        worker.dialer.retire(&worker.snapshot().mesh);
        for over in trouble.end_round() {
            tracing::info!("export: {over}");
        }
        if !is_reached && !queue.is_closed() {
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                _ = &mut stop => queue.close(),
            }
        }
    }
}

/// Sends a batch; what is not taken is counted, and told in the log. False: the collector is not there.
async fn export(worker: &Rc<Worker>, batch: Batch, trouble: &mut Repeated) -> bool {
    let Batch { signal, collector, count, message, buffers } = batch;
    let all = count as u64;
    let (rejected, is_reached) = match call::send(worker, signal, &collector, &message).await {
        Ok(rejected) => (rejected.min(all), true),
        Err(error) => {
            let text = format!("{}:{}: {error}", collector.service, collector.port);
            if let Some(line) = trouble.note(&text) {
                tracing::warn!("{} could not be exported and are dropped: {line}", signal.name());
            }
            (all, !error.is_unreachable())
        }
    };
    let counts = signal.counts(worker);
    counts.count_dropped(worker.number, Dropped::ExportFailed, rejected);
    counts.exported.fetch_add(all - rejected, Relaxed);
    give_back(message, &buffers);
    is_reached
}

/// The worker writes its next batch into the same memory, unless somebody still has it, or there is enough.
fn give_back(message: Bytes, buffers: &mpsc::Sender<Vec<u8>>) {
    if let Ok(mut buffer) = message.try_into_mut() {
        // Nothing is moved then.
        buffer.clear();
        let _ = buffers.try_send(buffer.into());
    }
}
