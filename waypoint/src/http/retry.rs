//! What follows from an attempt: its answer goes to the client, the request is sent again, or it is given up. Pure; who sends and waits
//! is [`crate::http::forward`], and there the retry's place is taken before the attempt's own are given back.

use crate::{telemetry::flag::ResponseFlag, upstream::error::Error};
use karst_api::route as ir;
use std::time::Duration;
use tokio::time::Instant;

/// Envoy's longest back-off, in terms of the shortest.
const BACKOFF_CAP: u64 = 10;

/// How an attempt has ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// It took too long.
    TimedOut,
    /// There is no answer.
    Failed(&'a Error),
    /// With this status, and this one of gRPC's.
    Answered(u16, Option<u16>),
}

/// What is known of an attempt besides its outcome.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The endpoint may have read something of the request.
    pub sent: bool,
    /// All that is to be sent is still there.
    pub can_repeat: bool,
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The client gets the answer. True: it is a failure, and all retries are used up.
    Answer { exhausted: bool },
    /// Another attempt, after a back-off below this.
    Retry { within: Duration },
    /// The client gets our own answer; this is told of it.
    GiveUp(ResponseFlag),
}

/// The attempts of one request.
pub struct Attempts<'a> {
    rules: Option<&'a ir::Retry>,
    /// When the whole request must be over.
    deadline: Option<Instant>,
    retries: u32,
}

impl<'a> Attempts<'a> {
    /// The first attempt is under way.
    pub fn new(rules: Option<&'a ir::Retry>, deadline: Option<Instant>) -> Self {
        Self { rules, deadline, retries: 0 }
    }

    /// Is this the last one whatever comes of it?
    pub fn is_last(&self) -> bool {
        self.rules.is_none_or(|r| self.retries >= r.attempts)
    }

    /// Would another follow if this one has no connection?
    pub fn retries_unconnected(&self, unconnected: &Error) -> bool {
        !self.is_last() && self.rules.is_some_and(|r| unconnected.is_retryable(r, false))
    }

    /// What follows from an attempt that has ended now.
    pub fn after(&mut self, outcome: Outcome<'_>, state: State, now: Instant) -> Next {
        let wanted = self.rules.is_some_and(|r| is_retryable(r, outcome, state.sent));
        let over = self.deadline.is_some_and(|d| now >= d);
        if let Some(r) = self.rules.filter(|_| wanted && !self.is_last() && !over && state.can_repeat) {
            let most = (r.backoff_ms << self.retries.min(10)).min(r.backoff_ms * BACKOFF_CAP).max(1);
            self.retries += 1;
            return Next::Retry { within: Duration::from_millis(most) };
        }
        let exhausted = wanted && self.is_last() && self.retries > 0;
        match outcome {
            Outcome::TimedOut => Next::GiveUp(ResponseFlag::Timeout),
            Outcome::Failed(_) if exhausted => Next::GiveUp(ResponseFlag::RetryLimit),
            Outcome::Failed(e) => Next::GiveUp(e.flag()),
            Outcome::Answered(status, _) => Next::Answer { exhausted: exhausted && status >= 500 },
        }
    }
}

/// Is this an end after which the request is to be tried again? `sent`: the endpoint may have read something of it.
fn is_retryable(retry: &ir::Retry, outcome: Outcome<'_>, sent: bool) -> bool {
    match outcome {
        Outcome::TimedOut => {
            retry.attempt_timeout
                || retry.server_error
                || retry.gateway_error
                || retry.reset
                || (retry.reset_before_request && !sent)
        }
        Outcome::Failed(e) => e.is_retryable(retry, sent),
        Outcome::Answered(status, grpc) => {
            retry.codes.contains(&u32::from(status))
                || (retry.server_error && status >= 500)
                || (retry.gateway_error && (502..=504).contains(&status))
                || (retry.retriable_4xx && status == 409)
                || grpc.is_some_and(|g| retry.grpc.contains(&u32::from(g)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::error::ConnectError;

    const SENT: State = State { sent: true, can_repeat: true };
    const UNSENT: State = State { sent: false, can_repeat: true };

    fn rules(attempts: u32, change: impl FnOnce(&mut ir::Retry)) -> ir::Retry {
        let mut r = ir::Retry { attempts, backoff_ms: 10, ..Default::default() };
        change(&mut r);
        r
    }

    #[test]
    fn what_was_sent_is_not_sent_again_by_reset_before_request() {
        let (before, reset) = (rules(1, |r| r.reset_before_request = true), rules(1, |r| r.reset = true));
        let text = String::new;
        let [broken, protocol, refused] = [Error::Reset(text()), Error::Protocol(text()), Error::StreamRefused(text())];
        let unconnected = Error::from(ConnectError::Timeout);
        let table = [
            (Outcome::Failed(&broken), true, false, true),
            (Outcome::Failed(&broken), false, true, true),
            (Outcome::Failed(&protocol), true, false, true),
            (Outcome::Failed(&refused), true, false, true),
            (Outcome::Failed(&unconnected), false, true, true),
            (Outcome::TimedOut, true, false, true),
            (Outcome::TimedOut, false, true, true),
            (Outcome::Answered(200, None), true, false, false),
        ];
        for (outcome, sent, want, by_reset) in table {
            assert_eq!(is_retryable(&before, outcome, sent), want, "{outcome:?} {sent}");
            assert_eq!(is_retryable(&reset, outcome, sent), by_reset, "{outcome:?} {sent}");
        }
    }

    #[test]
    fn what_follows_from_an_attempt() {
        let now = Instant::now();
        let broken = Error::Reset(String::new());
        let errors = rules(1, |r| r.server_error = true);
        let codes = rules(1, |r| (r.codes, r.grpc, r.retriable_4xx) = (vec![429], vec![14], true));
        let late = rules(1, |r| r.attempt_timeout = true);
        let again = || Next::Retry { within: Duration::from_millis(10) };
        let answer = || Next::Answer { exhausted: false };
        let table = [
            (None, Outcome::Answered(503, None), SENT, answer()),
            (None, Outcome::Failed(&broken), SENT, Next::GiveUp(ResponseFlag::Reset)),
            (None, Outcome::TimedOut, SENT, Next::GiveUp(ResponseFlag::Timeout)),
            (Some(&errors), Outcome::Answered(500, None), SENT, again()),
            (Some(&errors), Outcome::Answered(499, None), SENT, answer()),
            (Some(&errors), Outcome::Failed(&broken), UNSENT, again()),
            (Some(&errors), Outcome::Answered(500, None), State { can_repeat: false, ..SENT }, answer()),
            (Some(&late), Outcome::TimedOut, SENT, again()),
            (Some(&late), Outcome::Answered(504, None), SENT, answer()),
            (Some(&late), Outcome::Failed(&broken), UNSENT, Next::GiveUp(ResponseFlag::Reset)),
            (Some(&codes), Outcome::TimedOut, SENT, Next::GiveUp(ResponseFlag::Timeout)),
            (Some(&codes), Outcome::Answered(429, None), SENT, again()),
            (Some(&codes), Outcome::Answered(409, None), SENT, again()),
            (Some(&codes), Outcome::Answered(200, Some(14)), SENT, again()),
            (Some(&codes), Outcome::Answered(200, Some(13)), SENT, answer()),
        ];
        for (rules, outcome, state, want) in table {
            assert_eq!(Attempts::new(rules, None).after(outcome, state, now), want, "{outcome:?} {state:?}");
        }
        let late = Attempts::new(Some(&errors), Some(now)).after(Outcome::TimedOut, SENT, now);
        assert_eq!(late, Next::GiveUp(ResponseFlag::Timeout), "the request is over");
    }

    #[test]
    fn back_off_doubles_up_to_its_cap_and_attempts_end() {
        let now = Instant::now();
        let rules = rules(6, |r| r.server_error = true);
        let mut attempts = Attempts::new(Some(&rules), None);
        for want in [10, 20, 40, 80, 100, 100] {
            let next = attempts.after(Outcome::Answered(503, None), SENT, now);
            assert_eq!(next, Next::Retry { within: Duration::from_millis(want) });
        }
        assert_eq!(attempts.after(Outcome::Answered(503, None), SENT, now), Next::Answer { exhausted: true });
        assert_eq!(attempts.after(Outcome::Answered(200, None), SENT, now), Next::Answer { exhausted: false });
        let broken = Error::Reset(String::new());
        assert_eq!(attempts.after(Outcome::Failed(&broken), SENT, now), Next::GiveUp(ResponseFlag::RetryLimit));
    }
}
