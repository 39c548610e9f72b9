//! What is sent as the body of a request's attempts.

use crate::http::body::{BEHIND, Body, REPLAY, RequestBody, Source};

/// The body that attempts send.
pub(super) enum Outgoing {
    /// There is none.
    Empty,
    /// As it comes, once.
    Once(Option<RequestBody>),
    /// It is kept for other attempts and for mirrors, up to a bound.
    Kept(Source),
}

impl Outgoing {
    /// Of a request that may be sent `again`, or to `mirrors` as well.
    pub(super) fn new(incoming: RequestBody, again: bool, mirrors: bool) -> Self {
        if hyper::body::Body::is_end_stream(&incoming) {
            Outgoing::Empty
        } else if mirrors {
            Outgoing::Kept(Source::new(incoming, BEHIND))
        } else if again {
            Outgoing::Kept(Source::new(incoming, REPLAY))
        } else {
            Outgoing::Once(Some(incoming))
        }
    }

    /// That of the next attempt; None: it is not there any more.
    pub(super) fn attempt(&mut self) -> Option<Body> {
        match self {
            Outgoing::Empty => Some(Body::Empty),
            Outgoing::Once(body) => body.take().map(Body::Incoming),
            Outgoing::Kept(source) => source.attempt(),
        }
    }

    /// That of a mirror.
    pub(super) fn mirror(&self) -> Option<Body> {
        match self {
            Outgoing::Empty => Some(Body::Empty),
            Outgoing::Once(_) => None,
            Outgoing::Kept(source) => source.mirror(),
        }
    }

    /// Is all of it still there for another attempt?
    pub(super) fn can_repeat(&self) -> bool {
        match self {
            Outgoing::Empty => true,
            Outgoing::Once(_) => false,
            Outgoing::Kept(source) => source.is_whole(),
        }
    }
}
