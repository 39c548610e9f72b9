//! A future that waits beside others in one task, and is polled only when it has been woken itself: a connection that
//! waits for its end or for a drain does not ask about both (under a lock) whenever bytes have come.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Release},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

/// Polls a future only when it has been woken.
///
/// ```
/// use karst_rt::on_wake::OnWake;
/// # async fn f(conn: impl Future<Output = ()> + Unpin, drained: impl Future<Output = ()>) {
/// let drained = std::pin::pin!(drained);
/// let mut drained = OnWake::new(drained);
/// tokio::select! {
///     () = conn => {}
///     () = &mut drained => {}
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct OnWake<F> {
    future: F,
    woken: Option<Arc<Woken>>,
}

#[derive(Debug)]
struct Woken {
    /// Since the future was polled last.
    since: AtomicBool,
    task: Waker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.since.store(true, Release);
        self.task.wake_by_ref();
    }
}

impl<F> OnWake<F> {
    /// Of this future, which is polled once in any case.
    pub fn new(future: F) -> Self {
        Self { future, woken: None }
    }
}

impl<F: Future + Unpin> Future for OnWake<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let woken = match &this.woken {
            Some(woken) if woken.task.will_wake(cx.waker()) => {
                if !woken.since.swap(false, AcqRel) {
                    return Poll::Pending;
                }
                woken.clone()
            }
            // The first time, or in another task.
            Some(_) | None => {
                let new = Arc::new(Woken { since: AtomicBool::new(false), task: cx.waker().clone() });
                this.woken = Some(new.clone());
                new
            }
        };
        Pin::new(&mut this.future).poll(&mut Context::from_waker(&Waker::from(woken)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };
    use tokio::sync::oneshot;

    /// In a task of its own, as connections are: what `block_on` gives may differ from poll to poll, which costs a poll each.
    #[tokio::test]
    async fn it_is_polled_only_when_it_was_woken() {
        tokio::task::LocalSet::new()
            .run_until(async { tokio::task::spawn_local(polled_when_woken()).await.unwrap() })
            .await;
    }

    async fn polled_when_woken() {
        let (sender, receiver) = oneshot::channel::<u8>();
        let polls = AtomicUsize::new(0);
        let mut receiver = pin!(receiver);
        let counted = poll_fn(|cx| {
            polls.fetch_add(1, Relaxed);
            receiver.as_mut().poll(cx)
        });
        let counted = pin!(counted);
        let mut waits = OnWake::new(counted);
        for _ in 0..5 {
            let pending = poll_fn(|cx| Poll::Ready(Pin::new(&mut waits).poll(cx).is_pending())).await;
            assert!(pending);
        }
        assert_eq!(polls.load(Relaxed), 1);
        sender.send(7).unwrap();
        assert_eq!((&mut waits).await, Ok(7));
        assert_eq!(polls.load(Relaxed), 2);
    }

    /// A waker of another task must not be lost.
    #[tokio::test]
    async fn it_may_move_to_another_task() {
        let (sender, receiver) = oneshot::channel::<u8>();
        let mut waits = OnWake::new(receiver);
        assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut waits).poll(cx).is_pending())).await);
        let task = tokio::spawn(waits);
        tokio::task::yield_now().await;
        sender.send(9).unwrap();
        assert_eq!(task.await.unwrap(), Ok(9));
    }
}
