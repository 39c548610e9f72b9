//! The workers as they see each other. All of them accept from the same listeners, and whoever wakes first takes what is
//! there: of a few busy connections all may end at one worker while the others are idle. So a worker that has accepted
//! more than its share hands a new connection, before its first byte, to the one with the fewest. (`cargo xtask bench l4`,
//! bulk with 8 connections: 194 of 200 ticks in one thread without this, 85 and 98 with it.)

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::sync::mpsc::{self, Receiver, Sender};

/// Commands that may wait for a worker.
const COMMANDS: usize = 256;

struct WorkerHandle<O> {
    commands: Sender<O>,
    running: Arc<AtomicUsize>,
}

/// All workers.
pub struct WorkerPool<O>(Vec<WorkerHandle<O>>);

impl<O> WorkerPool<O> {
    /// A pool of `n` workers, and what each of them receives.
    pub fn new(count: usize) -> (Self, Vec<Receiver<O>>) {
        let one = |_| {
            let (commands, rx) = mpsc::channel(COMMANDS);
            (WorkerHandle { commands, running: Arc::default() }, rx)
        };
        let (members, rx) = (0..count).map(one).unzip();
        (Self(members), rx)
    }

    /// The command channel of each worker.
    pub fn commands(&self) -> impl Iterator<Item = &Sender<O>> {
        self.0.iter().map(|m| &m.commands)
    }

    /// Connections of a worker, from their accept to their end.
    pub fn running(&self, worker: usize) -> usize {
        self.0[worker].running.load(Relaxed)
    }

    /// Counts one more for a worker.
    pub fn start(&self, worker: usize) -> ConnectionGuard {
        let running = self.0[worker].running.clone();
        running.fetch_add(1, Relaxed);
        ConnectionGuard(running)
    }

    /// Who should serve a connection that this worker has accepted, if not itself.
    pub fn pick_less_loaded(&self, worker: usize) -> Option<usize> {
        let counts = self.0.iter().map(|m| m.running.load(Relaxed));
        least_loaded(worker, counts)
    }

    /// Hands something over.
    ///
    /// # Errors
    /// The same, where the other has ended or has its hands full.
    pub fn dispatch(&self, to: usize, command: O) -> Result<(), O> {
        match self.0[to].commands.try_reserve() {
            Ok(place) => {
                place.send(command);
                Ok(())
            }
            Err(_) => Err(command),
        }
    }
}

/// A difference that new connections even out by themselves is left alone: a hand-over costs a wake-up.
fn least_loaded(me: usize, counts: impl Iterator<Item = usize> + Clone) -> Option<usize> {
    let mine = counts.clone().nth(me)? + 1;
    let (i, least) = counts.enumerate().filter(|(i, _)| *i != me).min_by_key(|(_, n)| *n)?;
    (mine > least + 1 + least / 4).then_some(i)
}

/// A connection that is counted until this is dropped. The drain waits for these: a connection that was accepted a moment
/// ago is in no other list yet.
pub struct ConnectionGuard(Arc<AtomicUsize>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of them accepted by the first of the workers.
    fn spread(workers: usize, connections: usize) -> Vec<usize> {
        let mut counts = vec![0; workers];
        for _ in 0..connections {
            let to = least_loaded(0, counts.clone().into_iter()).unwrap_or(0);
            counts[to] += 1;
        }
        counts
    }

    #[test]
    fn what_one_worker_accepts_is_spread() {
        assert_eq!(spread(1, 8), [8]);
        assert_eq!(spread(2, 1), [1, 0]);
        assert_eq!(spread(2, 2), [1, 1]);
        assert_eq!(spread(2, 8), [4, 4]);
        let many = spread(4, 1000);
        assert!(many.iter().all(|n| (200..=300).contains(n)), "{many:?}");
    }

    #[test]
    fn small_differences_are_left_alone() {
        assert_eq!(least_loaded(0, [20, 18].into_iter()), None);
        assert_eq!(least_loaded(1, [20, 18].into_iter()), None);
        assert_eq!(least_loaded(0, [40, 18, 17].into_iter()), Some(2));
    }

    #[test]
    fn counts_end_with_their_connection() {
        let (c, _rx) = WorkerPool::<()>::new(2);
        let (a, b) = (c.start(1), c.start(1));
        assert_eq!((c.running(0), c.running(1)), (0, 2));
        drop(a);
        assert_eq!(c.running(1), 1);
        drop(b);
        assert_eq!(c.running(1), 0);
    }
}
