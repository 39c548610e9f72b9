//! Who is waited for, how long, and what is learnt of it.

use super::error::DialError;
use karst_core::limits;
use std::{future::pending, pin::Pin, time::Duration};
use tokio::time::{Instant, sleep};

/// What is known of an endpoint by trying.
pub trait Endpoint {
    /// It could not be reached: for [`limits::AVOID`] others are better.
    fn avoid(&self);
}

/// The endpoint of a service that was chosen.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// Which.
    pub endpoint: &'a dyn Endpoint,
    /// Is there another one that would be tried, and is not avoided? Asked when this one has not answered for
    /// [`limits::FIRST_TRY`].
    pub has_other: &'a dyn Fn() -> bool,
}

/// Somebody waits for an endpoint's answer. One who stops waiting says nothing of it, unless that was after a while.
struct Waiting<'a> {
    endpoint: &'a dyn Endpoint,
    since: Instant,
    /// So long is a while.
    unanswered: Duration,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over && self.since.elapsed() >= self.unanswered {
            self.endpoint.avoid();
        }
    }
}

/// How long endpoints are waited for.
pub(super) struct Patience {
    /// Where there are others: not longer than this.
    pub(super) first_try: Duration,
    /// One who has waited for so long and leaves says that there was no answer.
    pub(super) unanswered: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first_try: limits::FIRST_TRY, unanswered: limits::UNANSWERED }
    }
}

impl Patience {
    /// Waits for an endpoint: not long where there are others.
    pub(super) async fn reach<T>(
        &self,
        candidate: Option<Candidate<'_>>,
        work: Pin<&mut impl Future<Output = Result<T, DialError>>>,
    ) -> Result<T, DialError> {
        let Some(Candidate { endpoint, has_other }) = candidate else { return work.await };
        let (since, unanswered) = (Instant::now(), self.unanswered);
        let mut waiting = Waiting { endpoint, since, unanswered, over: false };
        let early = async {
            sleep(self.first_try).await;
            if !has_other() {
                pending::<()>().await;
            }
        };
        let done = tokio::select! {
            biased;
            r = work => r,
            () = early => Err(DialError::NoAnswer(self.first_try)),
        };
        waiting.over = true;
        if done.as_ref().is_err_and(DialError::may_retry) {
            endpoint.avoid();
        }
        done
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::{dial::testing::Learnt, unreachable::Unreachable};
    use karst_core::Identity;
    use karst_hbone::client::ClientError;
    use std::{cell::Cell, io, pin::pin, sync::Arc};
    use tokio::time::timeout;

    /// With the limits that are in force, and a clock of the test's own: who is waited for, how long, and what is learnt of it.
    struct Reach {
        patience: Patience,
        learnt: Learnt,
        /// How often it was asked whether there is another endpoint.
        asked: Cell<usize>,
    }

    impl Reach {
        fn new() -> Self {
            Self { patience: Patience::default(), learnt: Learnt::default(), asked: Cell::default() }
        }
        /// How it went with an endpoint that answers so after this time, and when.
        async fn reach(
            &self,
            after: Duration,
            answer: Result<(), DialError>,
            others: bool,
        ) -> (Result<(), DialError>, Duration) {
            let has_other = || {
                self.asked.set(self.asked.get() + 1);
                others
            };
            let candidate = Candidate { endpoint: &self.learnt, has_other: &has_other };
            let began = Instant::now();
            let work = pin!(async {
                sleep(after).await;
                answer
            });
            let result = self.patience.reach(Some(candidate), work).await;
            (result, began.elapsed())
        }
        /// Is it avoided now? Forgets it.
        fn avoids(&self) -> bool {
            self.learnt.0.take()
        }
    }

    /// A timer ends in the millisecond after its time.
    const TICK: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn the_first_try_has_its_time_and_no_more() {
        let test = Reach::new();
        let (result, took) = test.reach(LONG, Ok(()), true).await;
        assert!(matches!(result, Err(DialError::NoAnswer(limit)) if limit == limits::FIRST_TRY), "{result:?}");
        assert!((limits::FIRST_TRY..limits::FIRST_TRY + TICK).contains(&took), "{took:?}");
        assert!(test.avoids());
        assert_eq!(test.asked.get(), 1);
        // One that answers just in time is taken, and nobody asks for others.
        let (result, took) = test.reach(limits::FIRST_TRY - TICK, Ok(()), true).await;
        assert!(result.is_ok() && took < limits::FIRST_TRY && !test.avoids());
        assert_eq!(test.asked.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_endpoint_is_waited_for() {
        let test = Reach::new();
        let (result, took) = test.reach(LONG, Ok(()), false).await;
        assert!(result.is_ok() && took >= LONG && !test.avoids());
        assert_eq!(test.asked.get(), 1, "there was no other when its time was over");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_another_endpoint_may_heal_is_held_against_it() {
        let test = Reach::new();
        let nobody: Identity = "spiffe://cluster.local/ns/x/sa/x".parse().unwrap();
        let refused = || DialError::Connect(Arc::new(io::ErrorKind::ConnectionRefused.into()));
        for (error, avoided) in [
            (refused(), true),
            (ClientError::Stream("broken".into()).into(), true),
            (ClientError::Unanswered("broken".into()).into(), false),
            (ClientError::Status(http::StatusCode::SERVICE_UNAVAILABLE).into(), true),
            (ClientError::Status(http::StatusCode::UNAUTHORIZED).into(), false),
            (DialError::NoCertificate(nobody), false),
        ] {
            let text = error.to_string();
            let (result, took) = test.reach(TICK, Err(error), true).await;
            assert!(result.is_err() && took < limits::FIRST_TRY, "{text}");
            assert_eq!(test.avoids(), avoided, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_early_says_nothing_of_the_endpoint() {
        let test = Reach::new();
        for (patience, avoided) in [(limits::UNANSWERED - TICK, false), (limits::UNANSWERED + TICK, true)] {
            assert!(timeout(patience, test.reach(LONG, Ok(()), false)).await.is_err());
            assert_eq!(test.avoids(), avoided, "{patience:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_endpoint_is_tried_again_after_a_while() {
        let (patience, all) = (Patience::default(), Unreachable::new(limits::AVOID));
        let (lost, port): (Arc<str>, u16) = ("lost".into(), 80);
        let endpoint = all.endpoint(&lost, Some(port));
        let candidate = Candidate { endpoint: &endpoint, has_other: &|| true };
        let result = patience.reach(Some(candidate), pin!(pending::<Result<(), DialError>>())).await;
        assert!(result.is_err() && all.avoids(&lost, port));
        sleep(limits::AVOID - TICK).await;
        assert!(all.avoids(&lost, port));
        sleep(TICK * 2).await;
        assert!(!all.avoids(&lost, port));
    }
}
