//! A worker's spans until the exporter has them ([`Batches`]).

use crate::spans::{
    batches::Batches,
    common::{Common, Own},
    queue::{Dropped, Queue, Signal},
    rules::Collector,
    tags::{self, Ended},
};
use karst_proxy::state::Workload;
use std::{cell::RefCell, rc::Rc, sync::Arc};

/// A worker's spans.
pub struct Recorder {
    batches: Batches,
    own: Own,
    common: RefCell<Common>,
}

impl Recorder {
    /// Hands batches over to this queue.
    pub fn new(queue: Queue, own: Own) -> Self {
        Self { batches: Batches::new(Signal::Spans, queue), own, common: RefCell::default() }
    }

    /// Would spans for a collector be taken at the moment?
    ///
    /// # Errors
    /// Why they would be dropped.
    pub fn takes(&self, collector: &Arc<Collector>) -> Result<(), Dropped> {
        self.batches.takes(collector)
    }

    /// A request has ended, and its spans were not made.
    pub fn count_dropped(&self, why: Dropped, count: usize) {
        self.batches.count_dropped(why, count);
    }

    /// Adds the spans of a request that has ended, or drops them if there is no place. `workload`: this proxy, if it is known;
    /// `is_new`: the state has changed since the last request.
    pub fn add(&self, workload: Option<&Arc<Workload>>, is_new: bool, ended: Ended<'_>) {
        let (count, collector) = (1 + ended.spans.attempts.len(), &ended.tracing.collector);
        let mut common = self.common.borrow_mut();
        if is_new {
            common.forget();
        }
        let producer = || self.own.producer(workload, collector);
        self.batches.add(collector, count, producer, |message| {
            tags::write(message, &mut common, (&self.own, workload), ended);
        });
    }
}

/// Hands over what is due, as long as it is polled.
pub async fn flush_in_time(recorder: Rc<Recorder>) {
    // What spans have in common is not kept where none comes.
    recorder.batches.flush_in_time(|| recorder.common.borrow_mut().forget()).await;
}
