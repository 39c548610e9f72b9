//! One session: a socket that is connected to its endpoint, and what decides about its end.

use crate::{
    downstream::{
        conns,
        context::Downstream,
        gate::Gate,
        udp::{
            choose::SessionEndpoint,
            counts::{Counts, Dropped, SessionEnd},
        },
    },
    telemetry::{carried::Carried, flag::ResponseFlag, request_log::RequestLog},
};
use karst_core::limits;
use karst_proxy::dial::Endpoint;
use karst_rt::{
    admission::Permit,
    clock::Instant,
    drain, turns,
    udp::{Batch, Connected, Front, Sent},
};
use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    ops::Range,
    rc::Rc,
    time::Duration,
};
use tokio::sync::Notify;

/// Between whom a session is: with the listener's port, the 4-tuple of its datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub client: SocketAddr,
    /// The address that it calls, and gets answers from.
    pub called: IpAddr,
}

/// Since when nothing has come, and how long that may last. (A datagram sets no timer.)
pub struct Idle {
    last: Cell<Instant>,
    limit: Cell<Duration>,
    shorter: Notify,
}

impl Idle {
    /// Something has come now.
    pub fn new(limit: Duration) -> Self {
        Self { last: Cell::new(Instant::now()), limit: Cell::new(limit), shorter: Notify::new() }
    }

    /// Something has come.
    pub fn touch(&self) {
        self.last.set(Instant::now());
    }

    /// It may last no longer than this from now on.
    pub fn shorten(&self, limit: Duration) {
        self.limit.set(self.limit.get().min(limit));
        self.shorter.notify_one();
    }

    /// Waits until it has lasted too long.
    pub async fn over(&self) {
        loop {
            let end = self.last.get() + self.limit.get();
            if Instant::now() >= end {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(end) => {}
                () = self.shorter.notified() => {}
            }
        }
    }
}

/// A session.
pub struct Session {
    pub peer: Peer,
    pub held: SessionEndpoint,
    pub downstream: Downstream,
    upstream: Connected,
    idle: Idle,
    /// The endpoint has sent something.
    answered: Cell<bool>,
    /// The client has sent something since: it gets what is sent to it, and so its address is no forged one.
    proven: Cell<bool>,
    permit: RefCell<Permit>,
    carried: Rc<Carried>,
    end: Cell<Option<SessionEnd>>,
    ending: Notify,
}

impl Session {
    /// One with this socket to its endpoint, and this place among all.
    pub fn new(
        peer: Peer,
        downstream: Downstream,
        held: SessionEndpoint,
        (upstream, permit): (Connected, Permit),
        idle: Duration,
        carried: Rc<Carried>,
    ) -> Self {
        Self {
            peer,
            held,
            downstream,
            upstream,
            idle: Idle::new(idle),
            answered: Cell::new(false),
            proven: Cell::new(false),
            permit: RefCell::new(permit),
            carried,
            end: Cell::new(None),
            ending: Notify::new(),
        }
    }

    /// It is to end, for the first of the reasons that there are.
    pub fn end(&self, why: SessionEnd) {
        if self.end.get().is_none() {
            self.end.set(Some(why));
        }
        self.ending.notify_one();
    }

    /// Is it to end?
    pub fn is_ending(&self) -> bool {
        self.end.get().is_some()
    }

    /// Sends what its client has sent on to the endpoint.
    pub fn receive(&self, batch: &Batch, range: Range<usize>, gate: &Gate, counts: &Counts) {
        if self.answered.get() && !self.proven.replace(true) {
            // One that has had to give way meanwhile ends.
            let _ = gate.prove_session(&mut self.permit.borrow_mut(), self.peer.client.ip());
        }
        let sent = self.upstream.send(batch, range);
        counts.received.add(sent.datagrams, sent.bytes);
        counts.note_dropped(Dropped::Send, sent.lost);
        self.carried.receive(sent.bytes);
        self.idle.touch();
        if sent.refused {
            self.refused();
        }
    }

    /// The endpoint's host has refused datagrams: others are better, for a while.
    fn refused(&self) {
        self.held.state.avoid();
        self.end(SessionEnd::Refused);
    }

    /// Sends what comes from the endpoint to the client, until the endpoint cannot be reached.
    async fn answers(&self, front: &Front, batch: &RefCell<Batch>, counts: &Counts) {
        while let Ok(count) = self.upstream.receive(batch).await {
            let Sent { datagrams, bytes, lost, .. } =
                front.send(&batch.borrow(), 0..count, self.peer.client, self.peer.called);
            counts.sent.add(datagrams, bytes);
            counts.note_dropped(Dropped::Send, lost);
            self.carried.send(bytes);
            self.answered.set(true);
            self.idle.touch();
            turns::spend(bytes as usize + count * limits::TURN_DATAGRAM);
            turns::pass().await;
        }
        self.refused();
    }

    /// Carries answers until it ends, and tells of it.
    pub async fn run(
        &self,
        (front, batch): (&Front, &RefCell<Batch>),
        counts: &Counts,
        guard: conns::Guard,
        mut drain: drain::Watch,
        mut record: Box<RequestLog>,
    ) {
        let evicted = self.permit.borrow().watch();
        let draining = async {
            drain.reached(drain::Phase::Graceful).await;
            self.idle.shorten(limits::UDP_DRAIN_IDLE);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.answers(front, batch, counts) => {}
            () = self.idle.over() => self.end(SessionEnd::Idle),
            () = evicted => self.end(SessionEnd::Evicted),
            () = self.ending.notified() => {}
            by = guard.forbidden() => {
                (record.error, record.details) = (by.error, by.details.into());
                self.end(SessionEnd::Denied);
            }
            () = draining => {}
        }
        let why = self.end.get().unwrap_or(SessionEnd::Closed);
        counts.end(why);
        match why {
            // As a connection that both sides have closed.
            SessionEnd::Idle | SessionEnd::Denied => {}
            SessionEnd::Refused => {
                record = record.failed(ResponseFlag::ConnectFailure, "the endpoint's host has refused datagrams");
            }
            SessionEnd::Evicted | SessionEnd::Gone | SessionEnd::Closed => record.details = why.text().into(),
        }
        drop(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    const LIMIT: Duration = Duration::from_secs(60);

    /// How long it takes from now on.
    async fn lasts(idle: &Idle) -> Duration {
        let start = Instant::now();
        idle.over().await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_ends_and_who_is_not_goes_on() {
        let idle = Idle::new(LIMIT);
        {
            let mut over = pin!(idle.over());
            for _ in 0..5 {
                assert!(tokio::time::timeout(LIMIT - Duration::from_secs(1), &mut over).await.is_err());
                idle.touch();
            }
        }
        let took = lasts(&idle).await;
        assert!((LIMIT..LIMIT + Duration::from_millis(10)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_does_not_wait_for_who_is_silent() {
        let idle = Idle::new(LIMIT);
        let shorten = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            idle.touch();
            idle.shorten(limits::UDP_DRAIN_IDLE);
        };
        let (took, ()) = tokio::join!(lasts(&idle), shorten);
        let want = Duration::from_secs(10) + limits::UDP_DRAIN_IDLE;
        assert!((want..want + Duration::from_millis(10)).contains(&took), "{took:?}");
        // It is never made longer.
        idle.touch();
        idle.shorten(LIMIT);
        assert!(lasts(&idle).await < 2 * limits::UDP_DRAIN_IDLE);
    }
}
