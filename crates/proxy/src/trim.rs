//! Memory that a large update, a flood of connections or a time of work has freed goes back to the system. Messages of an update, what
//! is decoded from them and the snapshot before it lie between what stays, and so do the buffers of connections; glibc keeps such pages
//! for good, and some MiB at the end of each thread's arena: a process would stay as large as its largest moment.
//!
//! Never in the way of an update, of a flood or of work, nor more often than once in [`PAUSE`] ([`limits::EBB_LOOK`] after floods and
//! work): a trim takes the allocator's locks one after the other, for milliseconds with a large heap, and pages that are used again have
//! to be faulted in again.

use karst_core::limits;
use karst_rt::process;
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

/// Looks after a flood to come back after this time (in looks): tunnels that are not needed any more, and who hangs on, have ended then.
const AGAIN: u32 = 4;

/// Whether there is a flood or work, and whether one has ended.
#[derive(Debug)]
struct Tide {
    /// The most that has been open since the last end.
    most: usize,
    /// How often somebody has had to wait, at the last look.
    waited: u64,
    /// Somebody has had to wait since the last end.
    is_busy: bool,
    /// The process has worked since it last rested.
    has_worked: bool,
    /// Looks until one more trim.
    again: u32,
}

impl Tide {
    /// Of a process that has started: that was work.
    fn new() -> Self {
        Self { most: 0, waited: 0, is_busy: false, has_worked: true, again: 0 }
    }

    /// A look: so much is open, so often somebody has had to wait so far, and for so long the process has had processors since the last
    /// look. True: memory is to be given back now.
    fn ebbs(&mut self, open: usize, waited: u64, had: Duration) -> bool {
        let waits = std::mem::replace(&mut self.waited, waited) != waited;
        self.is_busy |= waits;
        self.has_worked |= had >= limits::EBB_WORK;
        self.most = self.most.max(open);
        let fewer = self.most - open >= limits::EBB_CONNECTIONS && open <= self.most / 2;
        let rests = self.has_worked && had <= limits::EBB_REST;
        if fewer || rests || (self.is_busy && !waits) {
            let has_worked = self.has_worked && !rests;
            *self = Self { most: open, waited, is_busy: false, has_worked, again: AGAIN };
            return true;
        }
        let is_due = self.again == 1;
        self.again = self.again.saturating_sub(1);
        is_due
    }
}

/// Gives memory back after each flood and each time of work, for ever; first after the start. `seen`: what is open, and how often
/// somebody has had to wait so far.
pub async fn after_floods(seen: impl Fn() -> (usize, u64)) {
    watch(seen, process::processor_time, process::trim_memory).await;
}

/// `had`: for how long the process has had processors so far.
async fn watch(seen: impl Fn() -> (usize, u64), had: impl Fn() -> Duration, trim: impl Fn() + Clone + Send + 'static) {
    let (mut tide, mut before) = (Tide::new(), had());
    loop {
        tokio::time::sleep(limits::EBB_LOOK).await;
        let ((open, waited), now) = (seen(), had());
        let since = now.saturating_sub(std::mem::replace(&mut before, now));
        if tide.ebbs(open, waited, since)
            && let Err(error) = tokio::task::spawn_blocking(trim.clone()).await
        {
            tracing::warn!(%error, "memory that a flood or work has freed is kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
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

    #[test]
    fn a_flood_ends_when_its_connections_do_or_when_nobody_waits_any_more() {
        let looks = |all: &[(usize, u64)]| {
            let mut tide = Tide::new();
            all.iter().map(|(open, waited)| u8::from(tide.ebbs(*open, *waited, limits::EBB_WORK))).collect::<Vec<_>>()
        };
        let few = limits::EBB_CONNECTIONS - 1;
        assert_eq!(looks(&[(0, 0), (few, 0), (0, 0), (few, 0), (0, 0)]), [0; 5], "what comes and goes");
        let many = 10 * limits::EBB_CONNECTIONS;
        assert_eq!(looks(&[(many, 0), (many - 500, 0), (10, 0), (10, 0)]), [0, 0, 1, 0], "most of them have ended");
        assert_eq!(
            looks(&[(many, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]),
            [0, 1, 0, 0, 0, 1, 0],
            "once more"
        );
        assert_eq!(looks(&[(9, 0), (9, 4), (9, 9), (9, 9), (9, 9)]), [0, 0, 0, 1, 0], "nobody waits any more");
        // One that goes on is not disturbed.
        let on: Vec<_> = (1..50).map(|look| (many + look % 7, look as u64)).collect();
        assert_eq!(looks(&on).iter().sum::<u8>(), 0);
    }

    #[test]
    fn who_has_worked_and_rests_gives_back_what_the_work_has_freed() {
        let looks = |all: &[u64]| {
            let mut tide = Tide::new();
            let look = |had: &u64| u8::from(tide.ebbs(2, 0, Duration::from_millis(*had)));
            all.iter().map(look).collect::<Vec<_>>()
        };
        assert_eq!(looks(&[60, 10, 10, 10, 10, 10, 10]), [0, 1, 0, 0, 0, 1, 0], "after the start, and once more");
        assert_eq!(looks(&[10, 499, 10, 499, 10, 10, 499, 10]), [1, 0, 0, 0, 1, 0, 0, 0], "little is no work");
        assert_eq!(looks(&[10, 0, 0, 0, 0, 500, 51, 50, 0]), [1, 0, 0, 0, 1, 0, 0, 1, 0], "less of it is no rest");
        assert_eq!(looks(&[900; 50]), [0; 50], "nor is work disturbed");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_goes_back_within_a_minute_of_a_floods_end() {
        let (open, count) = (Cell::new(10_000), Arc::new(AtomicUsize::new(0)));
        let (counted, had) = (count.clone(), Cell::new(Duration::ZERO));
        let work = || {
            had.set(had.get() + limits::EBB_WORK);
            had.get()
        };
        let trim = move || {
            counted.fetch_add(1, Relaxed);
        };
        let end = async {
            sleep(Duration::from_secs(600)).await;
            assert_eq!(count.load(Relaxed), 0, "not before");
            open.set(3);
            sleep(Duration::from_secs(60)).await;
            assert_eq!(count.load(Relaxed), 2);
            sleep(Duration::from_secs(600)).await;
            assert_eq!(count.load(Relaxed), 2, "and then no more");
        };
        tokio::select! {
            () = watch(|| (open.get(), 0), work, trim) => {}
            () = end => {}
        }
    }
}
