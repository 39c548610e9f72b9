//! Memory that a large update has freed goes back to the system. Its messages, what is decoded from them and the snapshot before it
//! lie between what stays, and glibc keeps such pages for good: a process would stay as large as its largest moment.
//!
//! Never in the way of an update, nor more often than once in [`PAUSE`]: a trim takes the allocator's locks one after the other, for
//! milliseconds with a large heap, and pages that are used again have to be faulted in again.

use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Bytes of resources in one update that are worth it: decoded and compiled they take several times that (5,000 routes are about
/// 1 MiB). Small ones, however many, use again what the last one has freed.
const LARGE: usize = 256 << 10;
/// From an update to the trim: by then workers have let go of the snapshot before. And between two trims.
const PAUSE: Duration = Duration::from_secs(10);

/// Notes updates, and trims after large ones.
pub(crate) struct Trimmer {
    trim: Arc<dyn Fn() + Send + Sync>,
    /// Of the update so far.
    bytes: usize,
    /// The way to the task that trims; there is none before the first large update.
    wake: Option<mpsc::Sender<()>>,
}

impl Trimmer {
    /// Of this process; `trim` may block.
    pub(crate) fn new(trim: impl Fn() + Send + Sync + 'static) -> Self {
        Self { trim: Arc::new(trim), bytes: 0, wake: None }
    }

    /// Notes so many bytes of resources that are in force now; `more`: the rest of the update is still to come. To be called
    /// within a runtime.
    pub(crate) fn note(&mut self, bytes: usize, more: bool) {
        self.bytes = self.bytes.saturating_add(bytes);
        if more {
            return;
        }
        if std::mem::take(&mut self.bytes) >= LARGE {
            let wake = self.wake.get_or_insert_with(|| start(self.trim.clone()));
            // Full: one waits already, and is for this update, too.
            let _ = wake.try_send(());
        }
    }
}

/// Starts the task, which ends with the sender. What comes during a pause is followed by another.
fn start(trim: Arc<dyn Fn() + Send + Sync>) -> mpsc::Sender<()> {
    let (wake, mut woken) = mpsc::channel(1);
    tokio::spawn(async move {
        while woken.recv().await.is_some() {
            tokio::time::sleep(PAUSE).await;
            let trim = trim.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || trim()).await {
                tracing::warn!(%error, "memory that an update has freed is kept");
            }
        }
    });
    wake
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn a_large_update_is_followed_by_a_trim_and_many_by_one_in_a_pause() {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let mut trimmer = Trimmer::new(move || {
            counted.fetch_add(1, Relaxed);
        });
        for _ in 0..100 {
            trimmer.note(LARGE - 1, false);
        }
        sleep(PAUSE * 2).await;
        assert_eq!(count.load(Relaxed), 0, "small ones, however many");
        // One in parts.
        trimmer.note(LARGE, true);
        sleep(PAUSE * 2).await;
        assert_eq!(count.load(Relaxed), 0, "the rest is still to come");
        trimmer.note(1, false);
        assert_eq!(count.load(Relaxed), 0, "not in the way of the update");
        sleep(PAUSE * 2).await;
        assert_eq!(count.load(Relaxed), 1);
        // One second after the other, for ten pauses.
        for _ in 0..100 {
            trimmer.note(LARGE, false);
            sleep(PAUSE / 10).await;
        }
        sleep(PAUSE * 3).await;
        let trims = count.load(Relaxed) - 1;
        assert!((9..=12).contains(&trims), "{trims}");
    }
}
