//! A worker's messages to collectors, until the exporter has them. What has ended is written into the open batch of its collector:
//! nothing is kept of it, no other thread is woken, and nobody waits. A batch goes to the queue when it is full, and at latest
//! after [`FLUSH`].

use crate::spans::{
    encode::{Message, Producer},
    queue::{Batch, Dropped, Queue, Signal},
    rules::Collector,
};
use std::{cell::RefCell, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

/// Items of one batch, at most.
const ITEMS: usize = 512;
/// A batch of so many bytes is full: with what one request adds at most, it is under 4 MiB, the most that collectors take by
/// default.
const BYTES: usize = 1 << 20;
/// Items wait at most this long for others.
const FLUSH: Duration = Duration::from_secs(1);
/// Collectors that batches are open for at a time: of spans there is one, of the log there may be several, and for a while there are
/// twice as many when the configuration changes. Beyond, the oldest batch leaves as it is, and each may have one item.
pub(super) const OPEN: usize = 16;
/// Buffers that are kept to be used again, beside those of batches that are open or under way: their pages are there.
const BUFFERS: usize = 1;

/// A worker's batches of one signal.
pub struct Batches {
    signal: Signal,
    queue: Queue,
    open: RefCell<Vec<Open>>,
    /// The first batch is open.
    opened: Notify,
    /// Buffers that have come back.
    buffers: RefCell<mpsc::Receiver<Vec<u8>>>,
    back: mpsc::Sender<Vec<u8>>,
}

/// A batch that items are added to.
struct Open {
    collector: Arc<Collector>,
    message: Message,
    count: usize,
    due: Instant,
}

impl Open {
    fn has_room(&self, count: usize) -> bool {
        self.count + count <= ITEMS && self.message.len() < BYTES
    }
}

impl Batches {
    /// Hands batches over to this queue.
    pub fn new(signal: Signal, queue: Queue) -> Self {
        let (back, buffers) = mpsc::channel(BUFFERS);
        let (open, opened) = Default::default();
        Self { signal, queue, open, opened, buffers: RefCell::new(buffers), back }
    }

    /// Would an item for a collector be taken at the moment? To be asked before it is made: it looks at what other threads seldom write.
    ///
    /// # Errors
    /// Why it would be dropped.
    pub fn takes(&self, collector: &Arc<Collector>) -> Result<(), Dropped> {
        if collector.health.is_down() {
            return Err(Dropped::ExportFailed);
        }
        let all = self.open.borrow();
        let has_room = match all.iter().find(|open| Arc::ptr_eq(&open.collector, collector)) {
            Some(open) => open.has_room(1),
            None => all.len() < OPEN,
        };
        if has_room || self.queue.has_place() { Ok(()) } else { Err(Dropped::QueueFull) }
    }

    /// Drops so many items that were not made.
    pub fn count_dropped(&self, why: Dropped, count: usize) {
        self.queue.count_dropped(why, count);
    }

    /// Adds so many items for a collector, which `write` appends to its message, or drops them if it takes nothing or there is no place.
    /// `producer`: who tells of them.
    pub fn add(
        &self,
        collector: &Arc<Collector>,
        count: usize,
        producer: impl FnOnce() -> Producer,
        write: impl FnOnce(&mut Message),
    ) {
        if collector.health.is_down() {
            return self.queue.count_dropped(Dropped::ExportFailed, count);
        }
        let mut all = self.open.borrow_mut();
        let Some(at) = self.room(&mut all, collector, count, producer) else {
            return self.queue.count_dropped(Dropped::QueueFull, count);
        };
        write(&mut all[at].message);
        all[at].count += count;
    }

    /// The place of a batch of a collector that has room. None: it is full, and so is the queue.
    fn room(
        &self,
        all: &mut Vec<Open>,
        collector: &Arc<Collector>,
        count: usize,
        producer: impl FnOnce() -> Producer,
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
        let message = Message::begin(collector.protocol, &producer(), buffer);
        all.push(Open { collector: collector.clone(), message, count: 0, due: Instant::now() + FLUSH });
        self.opened.notify_one();
        Some(all.len() - 1)
    }

    /// False: there is no place for it, and it stays.
    fn hand_over(&self, all: &mut Vec<Open>, at: usize) -> bool {
        self.queue.push(|| self.batch(all.remove(at)))
    }

    fn batch(&self, Open { collector, message, count, .. }: Open) -> Batch {
        Batch { signal: self.signal, collector, count, message: message.finish(), buffers: self.back.clone() }
    }

    /// Hands over what was due at this time. What finds no place stays a while longer. True: none is open any more.
    fn flush(&self, now: Instant) -> bool {
        let mut all = self.open.borrow_mut();
        for at in (0..all.len()).rev() {
            if all[at].due <= now && !self.hand_over(&mut all, at) {
                all[at].due = now + FLUSH;
            }
        }
        if all.is_empty() {
            // Nothing comes at the moment: no memory is kept for it.
            let _ = self.buffers.borrow_mut().try_recv();
        }
        all.is_empty()
    }

    fn due(&self) -> Option<Instant> {
        self.open.borrow().iter().map(|open| open.due).min()
    }

    /// Hands over what is due, as long as it is polled. `is_empty` is called when none is open any more.
    pub async fn flush_in_time(&self, is_empty: impl Fn()) {
        loop {
            match self.due() {
                None => self.opened.notified().await,
                Some(due) => {
                    tokio::time::sleep_until(due).await;
                    if self.flush(Instant::now()) {
                        is_empty();
                    }
                }
            }
        }
    }
}

impl Drop for Batches {
    /// A worker that ends hands over what it still has: the exporter ends after it.
    fn drop(&mut self) {
        for open in std::mem::take(self.open.get_mut()) {
            let count = open.count;
            if !self.queue.push(|| self.batch(open)) {
                self.queue.count_dropped(Dropped::QueueFull, count);
            }
        }
    }
}
