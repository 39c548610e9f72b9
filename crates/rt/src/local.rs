//! A worker: one thread, its runtime, and the tasks that never leave it.

use std::io;
use tokio::{runtime::Builder, task::LocalSet};

/// After how many polls of tasks a busy worker looks for I/O that is ready.
const EVENT_INTERVAL: u32 = 61;

/// Runs `main`, and what it spawns with `spawn_local`, on the calling thread until `main` ends; what is still running then ends
/// where it is.
///
/// `main` is a task like the others: what a [`LocalSet`] itself runs until its end is polled again whenever any task was.
///
/// # Errors
/// If the runtime cannot be made.
///
/// # Panics
/// If `main` does.
pub fn run<T: 'static>(main: impl Future<Output = T> + 'static) -> io::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().event_interval(EVENT_INTERVAL).build()?;
    let tasks = LocalSet::new();
    let ended = tasks.block_on(&runtime, async { tokio::task::spawn_local(main).await });
    // Nobody else has the task to end it.
    ended.map_or_else(|e| std::panic::resume_unwind(e.into_panic()), Ok)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        cell::Cell,
        rc::Rc,
        task::{Poll, Waker},
    };

    /// Counts its polls, and waits until it is told.
    async fn waits(polls: Rc<Cell<usize>>, done: Rc<Cell<bool>>, waker: Rc<Cell<Option<Waker>>>) {
        std::future::poll_fn(|cx| {
            polls.set(polls.get() + 1);
            waker.set(Some(cx.waker().clone()));
            if done.get() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[test]
    fn the_first_task_is_polled_when_it_was_woken_and_not_with_each_other() {
        let (polls, done) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let waker: Rc<Cell<Option<Waker>>> = Rc::default();
        let seen = polls.clone();
        run(async move {
            let (told, woken) = (done.clone(), waker.clone());
            tokio::task::spawn_local(async move {
                for _ in 0..200 {
                    tokio::task::yield_now().await;
                }
                told.set(true);
                if let Some(waker) = woken.take() {
                    waker.wake();
                }
            });
            waits(polls, done, waker).await;
        })
        .unwrap();
        assert_eq!(seen.get(), 2);
    }

    #[test]
    fn what_still_runs_ends_with_the_first_task() {
        struct Told(Rc<Cell<bool>>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.set(true);
            }
        }
        let ended = Rc::new(Cell::new(false));
        let told = Told(ended.clone());
        let value = run(async {
            tokio::task::spawn_local(async move {
                let _told = told;
                std::future::pending::<()>().await;
            });
            tokio::task::yield_now().await;
            7
        });
        assert_eq!((value.unwrap(), ended.get()), (7, true));
    }

    #[test]
    #[should_panic(expected = "as it said")]
    fn a_panic_is_the_callers() {
        let _ = run(async { panic!("as it said") });
    }
}
