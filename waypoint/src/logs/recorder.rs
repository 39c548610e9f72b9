//! A worker's records of the log until the exporter has them ([`Batches`]).

use crate::{
    logs::{record::Record, rules::Export},
    spans::{
        batches::Batches,
        common::Own,
        queue::{Queue, Signal},
    },
};
use karst_proxy::state::Workload;
use std::{cell::RefCell, rc::Rc, sync::Arc};

/// What tells collectors which log a record is of (Envoy's).
const LOG_NAME: &str = "log_name";

/// A worker's records.
pub struct Recorder {
    batches: Batches,
    own: Own,
    /// Where a record is written first: its length stands before it.
    buffer: RefCell<Vec<u8>>,
}

impl Recorder {
    /// Hands batches over to this queue.
    pub fn new(queue: Queue, own: Own) -> Self {
        Self { batches: Batches::new(Signal::Logs, queue), own, buffer: RefCell::default() }
    }

    /// Adds a record for each of these collectors, or drops it for those that there is no place for. It is written once, or not at all if
    /// nobody gets it. `workload`: this proxy, if it is known.
    pub fn add<'a>(
        &self,
        exports: impl Iterator<Item = &'a Export>,
        workload: Option<&Arc<Workload>>,
        record: Record<'_>,
    ) {
        let mut buffer = self.buffer.borrow_mut();
        buffer.clear();
        for export in exports {
            let producer = || {
                let mut producer = self.own.producer(workload, &export.collector);
                producer.attributes.push((LOG_NAME.into(), export.name.to_string()));
                producer
            };
            self.batches.add(&export.collector, 1, producer, |message| {
                if buffer.is_empty() {
                    record.write(&mut buffer);
                }
                message.record(&buffer);
            });
        }
    }
}

/// Hands over what is due, as long as it is polled.
pub async fn flush_in_time(recorder: Rc<Recorder>) {
    // No memory is kept where none comes.
    recorder.batches.flush_in_time(|| drop(recorder.buffer.take())).await;
}
