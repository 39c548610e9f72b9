//! A worker's spans until the exporter has them. A request that has ended writes its spans into the open batch of their collector:
//! nothing is kept of it, no other thread is woken, and nobody waits. A batch goes to the queue when it is full, and at latest
//! after [`FLUSH`].

use crate::spans::{
    common::{Common, Own},
    encode::{Message, Producer},
    queue::{Batch, Queue},
    rules::Collector,
    tags::{self, Ended},
};
use karst_proxy::state::Workload;
use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

/// Spans of one batch, at most.
const SPANS: usize = 512;
/// A batch of so many bytes is full: with what one request adds at most, it is under 4 MiB, the most that collectors take by
/// default.
const BYTES: usize = 1 << 20;
/// Spans wait at most this long for others.
const FLUSH: Duration = Duration::from_secs(1);
/// Collectors that batches are open for at a time: one, and more only while the configuration changes.
const OPEN: usize = 4;
/// Buffers that are kept to be used again, beside those of batches that are open or under way: their pages are there.
const BUFFERS: usize = 1;

/// A worker's spans.
pub struct Recorder {
    queue: Queue,
    own: Own,
    common: RefCell<Common>,
    open: RefCell<Vec<Open>>,
    /// The first batch is open.
    opened: Notify,
    /// Buffers that have come back.
    buffers: RefCell<mpsc::Receiver<Vec<u8>>>,
    back: mpsc::Sender<Vec<u8>>,
}

/// A batch that spans are added to.
struct Open {
    collector: Arc<Collector>,
    message: Message,
    count: usize,
    due: Instant,
}

impl Open {
    fn has_room(&self, count: usize) -> bool {
        self.count + count <= SPANS && self.message.len() < BYTES
    }
}

impl Recorder {
    /// Hands batches over to this queue.
    pub fn new(queue: Queue, own: Own) -> Self {
        let (back, buffers) = mpsc::channel(BUFFERS);
        let (common, open, opened) = Default::default();
        Self { queue, own, common, open, opened, buffers: RefCell::new(buffers), back }
    }

    /// Adds the spans of a request that has ended, or drops them if there is no place. `workload`: this proxy, if it is known;
    /// `is_new`: the state has changed since the last request.
    pub fn add(&self, workload: Option<&Arc<Workload>>, is_new: bool, ended: Ended<'_>) {
        let (count, collector) = (1 + ended.spans.attempts.len(), &ended.tracing.collector);
        let (mut all, mut common) = (self.open.borrow_mut(), self.common.borrow_mut());
        if is_new {
            common.forget();
        }
        let Some(at) = self.room(&mut all, collector, count, workload) else { return self.queue.count_dropped(count) };
        let open = &mut all[at];
        tags::write(&mut open.message, &mut common, (&self.own, workload), ended);
        open.count += count;
    }

    /// The place of a batch of a collector that has room. None: it is full, and so is the queue.
    fn room(
        &self,
        all: &mut Vec<Open>,
        collector: &Arc<Collector>,
        count: usize,
        workload: Option<&Arc<Workload>>,
    ) -> Option<usize> {
        let found = all.iter().position(|open| Arc::ptr_eq(&open.collector, collector));
        let leaves = match found {
            Some(at) if all[at].has_room(count) => return Some(at),
            Some(at) => Some(at),
            None => (all.len() >= OPEN).then_some(0),
        };
        if let Some(at) = leaves
            && !self.hand_over(all, at)
        {
            return None;
        }
        let buffer = self.buffers.borrow_mut().try_recv().unwrap_or_default();
        let message = Message::begin(collector.protocol, &self.producer(workload, collector), buffer);
        all.push(Open { collector: collector.clone(), message, count: 0, due: Instant::now() + FLUSH });
        self.opened.notify_one();
        Some(all.len() - 1)
    }

    /// False: there is no place for it, and it stays.
    fn hand_over(&self, all: &mut Vec<Open>, at: usize) -> bool {
        self.queue.push(|| self.batch(all.remove(at)))
    }

    fn batch(&self, Open { collector, message, count, .. }: Open) -> Batch {
        Batch { collector, count, message: message.finish(), buffers: self.back.clone() }
    }

    /// Who creates the spans, as Istio names it: a waypoint by its account, a gateway by what it calls itself.
    fn producer(&self, workload: Option<&Arc<Workload>>, collector: &Collector) -> Producer {
        let own = &self.own;
        let name = workload.filter(|_| own.is_gateway).map_or(&own.account, |workload| &workload.canonical_name);
        let about = [
            ("service.namespace", &own.namespace),
            ("service.instance.id", &own.hostname),
            ("k8s.namespace.name", &own.namespace),
            ("k8s.pod.name", &own.hostname),
        ];
        let about = about.map(|(key, value)| (key.to_string(), value.to_string()));
        let attributes = about.into_iter().chain(collector.resource.iter().cloned()).collect();
        Producer { service: format!("{name}.{}", own.namespace), attributes }
    }

    /// Hands over what was due at this time. What finds no place stays a while longer.
    fn flush(&self, now: Instant) {
        let mut all = self.open.borrow_mut();
        for at in (0..all.len()).rev() {
            if all[at].due <= now && !self.hand_over(&mut all, at) {
                all[at].due = now + FLUSH;
            }
        }
        if all.is_empty() {
            // Nothing comes at the moment: no memory is kept for it.
            let _ = self.buffers.borrow_mut().try_recv();
            self.common.borrow_mut().forget();
        }
    }

    fn due(&self) -> Option<Instant> {
        self.open.borrow().iter().map(|open| open.due).min()
    }
}

/// Hands over what is due, as long as it is polled.
pub async fn flush_in_time(recorder: Rc<Recorder>) {
    loop {
        match recorder.due() {
            None => recorder.opened.notified().await,
            Some(due) => {
                tokio::time::sleep_until(due).await;
                recorder.flush(Instant::now());
            }
        }
    }
}

impl Drop for Recorder {
    /// A worker that ends hands over what it still has: the exporter ends after it.
    fn drop(&mut self) {
        for open in std::mem::take(self.open.get_mut()) {
            let count = open.count;
            if !self.queue.push(|| self.batch(open)) {
                self.queue.count_dropped(count);
            }
        }
    }
}
