//! What is told of sessions and datagrams, over all workers.

use karst_rt::exposition::{Kind, Page};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why datagrams are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// No route is attached to the listener.
    NoRoute,
    /// It is the share of a backend that is not there, or may not be referred to.
    NoDestination,
    /// No endpoint may be used.
    NoEndpoint,
    /// Endpoints take only who shows who he is, and no tunnel carries datagrams.
    Closed,
    /// A policy of the gateway denies it.
    Denied,
    /// There are as many sessions as there may be.
    Limit,
    /// No socket to the endpoint can be had.
    Connect,
    /// The gateway is about to end, and takes no new sessions.
    Draining,
    /// The gateway has sent it itself: it would go round without end.
    Loop,
    /// The kernel had no room for it on its way out, or no way.
    Send,
    /// The worker was too slow: the socket's queue was full.
    Queue,
    /// It is longer than a datagram can be.
    Long,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::NoRoute,
        Self::NoDestination,
        Self::NoEndpoint,
        Self::Closed,
        Self::Denied,
        Self::Limit,
        Self::Connect,
        Self::Draining,
        Self::Loop,
        Self::Send,
        Self::Queue,
        Self::Long,
    ];

    /// As metrics and the log call it.
    pub fn text(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoDestination => "no_destination",
            Self::NoEndpoint => "no_endpoint",
            Self::Closed => "plaintext_closed",
            Self::Denied => "denied",
            Self::Limit => "limit",
            Self::Connect => "connect",
            Self::Draining => "draining",
            Self::Loop => "loop",
            Self::Send => "send",
            Self::Queue => "receive_queue",
            Self::Long => "too_long",
        }
    }
}

/// Why a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// Neither side has sent anything for a while.
    Idle,
    /// It had to give way to others.
    Evicted,
    /// A policy forbids it.
    Denied,
    /// Its endpoint, or the way there, is gone.
    Gone,
    /// The endpoint's host says that nobody is at the port.
    Refused,
    /// The listener is gone.
    Closed,
}

impl SessionEnd {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Idle, Self::Evicted, Self::Denied, Self::Gone, Self::Refused, Self::Closed];

    /// As metrics and the log call it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "evicted",
            Self::Denied => "denied",
            Self::Gone => "endpoint_gone",
            Self::Refused => "refused",
            Self::Closed => "listener_closed",
        }
    }
}

/// Datagrams and their bytes, one way.
#[derive(Debug, Default)]
pub struct Carried {
    pub datagrams: AtomicU64,
    pub bytes: AtomicU64,
}

impl Carried {
    /// So many more.
    pub fn add(&self, datagrams: u64, bytes: u64) {
        self.datagrams.fetch_add(datagrams, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

/// All of a process.
#[derive(Debug, Default)]
pub struct Counts {
    /// Sessions that have begun.
    pub opened: AtomicU64,
    ended: [AtomicU64; SessionEnd::ALL.len()],
    /// From clients to endpoints.
    pub received: Carried,
    /// From endpoints to clients.
    pub sent: Carried,
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Counts {
    /// So many datagrams were dropped.
    pub fn note_dropped(&self, why: Dropped, datagrams: u64) {
        if datagrams > 0 {
            self.dropped[why as usize].fetch_add(datagrams, Relaxed);
        }
    }

    /// So many were.
    #[cfg(test)]
    pub fn dropped(&self, why: Dropped) -> u64 {
        self.dropped[why as usize].load(Relaxed)
    }

    /// A session has ended.
    pub fn end(&self, why: SessionEnd) {
        self.ended[why as usize].fetch_add(1, Relaxed);
    }

    /// Those that have ended so.
    #[cfg(test)]
    pub fn ended(&self, why: SessionEnd) -> u64 {
        self.ended[why as usize].load(Relaxed)
    }

    /// For the page of metrics.
    pub fn render(&self, page: &mut Page) {
        let (opened, ended) = (self.opened.load(Relaxed), self.ended.each_ref().map(|n| n.load(Relaxed)));
        let active = opened.saturating_sub(ended.iter().sum());
        let help = "UDP sessions that have begun at listeners of a gateway.";
        page.single("karst_udp_sessions_opened_total", Kind::Counter, help, opened);
        page.single("karst_udp_sessions", Kind::Gauge, "UDP sessions that are open.", active);
        let help = "UDP sessions that have ended, by why.";
        let mut family = page.family("karst_udp_sessions_ended_total", Kind::Counter, help);
        for (why, count) in SessionEnd::ALL.iter().zip(ended) {
            family.sample(&[("reason", why.text())], count);
        }
        let ways = [("received", &self.received), ("sent", &self.sent)];
        let help = "Datagrams from clients to endpoints (received), and back (sent).";
        let mut family = page.family("karst_udp_datagrams_total", Kind::Counter, help);
        for (direction, carried) in ways {
            family.sample(&[("direction", direction)], carried.datagrams.load(Relaxed));
        }
        let mut family = page.family("karst_udp_bytes_total", Kind::Counter, "Bytes of these datagrams.");
        for (direction, carried) in ways {
            family.sample(&[("direction", direction)], carried.bytes.load(Relaxed));
        }
        let help = "Datagrams that were not carried, by why.";
        let mut family = page.family("karst_udp_datagrams_dropped_total", Kind::Counter, help);
        for (why, count) in Dropped::ALL.iter().zip(&self.dropped) {
            family.sample(&[("reason", why.text())], count.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_by_its_own_name() {
        let counts = Counts::default();
        for (index, why) in Dropped::ALL.into_iter().enumerate() {
            counts.note_dropped(why, index as u64 + 1);
        }
        for (index, why) in SessionEnd::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, index);
            counts.end(why);
        }
        counts.opened.store(10, Relaxed);
        counts.sent.add(2, 30);
        let page = karst_rt::exposition::page(|page| counts.render(page));
        for (index, why) in Dropped::ALL.into_iter().enumerate() {
            let line = format!("karst_udp_datagrams_dropped_total{{reason=\"{}\"}} {}\n", why.text(), index + 1);
            assert!(page.contains(&line), "{line}: {page}");
        }
        for line in ["karst_udp_sessions 4\n", "karst_udp_datagrams_total{direction=\"sent\"} 2\n"] {
            assert!(page.contains(line), "{line}: {page}");
        }
    }
}
