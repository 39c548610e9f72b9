//! The bytes that HTTP/2 reads, with the frames counted that ask for an answer and carry nothing: SETTINGS and PING. One costs its
//! sender less than it costs us (T04: a SETTINGS four times as much), and h2 answers as many as come. Who sends more than a
//! working peer ever has a use for is cut off, as RFC 9113 §10.5 allows.

use crate::observed::{Observed, Observer};
use karst_rt::clock::Instant;
use std::{io, time::Duration};

/// Within this time a peer may send so many.
const PERIOD: Duration = Duration::from_secs(60);
/// A peer sends SETTINGS at its beginning, and where it measures its windows some ten times more.
const MOST_SETTINGS: u32 = 1_000;
/// A peer may send one in each round trip to measure its windows, which within a host is some thousand times a second.
const MOST_PINGS: u32 = 600_000;
/// What a client sends before its first frame (RFC 9113 §3.4).
pub const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Length of a frame's head.
const HEAD: usize = 9;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// Flag of both: it is the answer.
const ACK: u8 = 1;

/// More came than a peer has a use for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer has sent more than {most} {kind} frames in {} s", PERIOD.as_secs())]
struct Flood {
    kind: &'static str,
    most: u32,
}

/// So many since then.
#[derive(Debug, Default)]
struct Count {
    seen: u32,
    since: Option<Instant>,
}

impl Count {
    /// One more. The clock is read only with the first of a period and beyond the last.
    fn add(&mut self, kind: &'static str, most: u32) -> Result<(), Flood> {
        if self.seen == most && self.since.is_some_and(|since| since.elapsed() < PERIOD) {
            return Err(Flood { kind, most });
        }
        if self.seen == most || self.since.is_none() {
            *self = Self { seen: 0, since: Some(Instant::now()) };
        }
        self.seen += 1;
        Ok(())
    }
}

/// Where in its frames what is read has come to.
#[derive(Debug, Default)]
pub struct Frames {
    /// Bytes that are no frame's head, of the preface or of a payload, still to come.
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of the head that have come.
    have: usize,
    settings: Count,
    pings: Count,
}

impl Frames {
    /// Goes on with these bytes.
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return Ok(());
            }
            let taken = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < HEAD {
                return Ok(());
            }
            self.have = 0;
            let [a, b, c, kind, flags, ..] = self.head;
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
            match kind {
                SETTINGS if flags & ACK == 0 => self.settings.add("SETTINGS", MOST_SETTINGS)?,
                PING if flags & ACK == 0 => self.pings.add("PING", MOST_PINGS)?,
                _ => {}
            }
        }
    }
}

impl Observer for Frames {
    fn observe(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.read(bytes).map_err(io::Error::other)
    }
}

/// A stream of HTTP/2 whose reader is told of a flood as an error of it.
pub type Limited<S> = Observed<S, Frames>;

impl<S> Limited<S> {
    /// A stream that begins with so many bytes that are no frame: [`PREFACE`] of a client's, 0 of a server's.
    pub fn new(stream: S, before: usize) -> Self {
        Self::by(Frames { skip: before, ..Frames::default() }, stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 0], payload].concat()
    }

    /// Frames whose payloads look like heads of others.
    fn conversation(settings: usize) -> Vec<u8> {
        let inner = frame(SETTINGS, 0, &[]).repeat(50);
        let mut all = vec![b'x'; PREFACE];
        for _ in 0..settings {
            all.extend([frame(SETTINGS, 0, &[0; 6]), frame(SETTINGS, ACK, &[]), frame(0, 0, &inner)].concat());
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn however_the_bytes_are_cut_the_same_frames_are_counted() {
        let bytes = conversation(7);
        for size in [1, 2, 8, 9, 10, 100, bytes.len()] {
            let mut frames = Frames { skip: PREFACE, ..Frames::default() };
            assert!(bytes.chunks(size).all(|part| frames.read(part).is_ok()));
            assert_eq!((frames.settings.seen, frames.pings.seen), (7, 0), "by {size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_and_a_long_life_does_not() {
        let one = frame(SETTINGS, 0, &[]);
        let mut frames = Frames::default();
        assert_eq!(frames.read(&one.repeat(MOST_SETTINGS as usize)), Ok(()));
        assert_eq!(frames.read(&one), Err(Flood { kind: "SETTINGS", most: MOST_SETTINGS }));
        let mut frames = Frames::default();
        for _ in 0..3 * MOST_SETTINGS {
            assert_eq!(frames.read(&one), Ok(()));
            tokio::time::advance(PERIOD / (MOST_SETTINGS - 1)).await;
        }
        let mut frames = Frames::default();
        let ping = frame(PING, 0, &[0; 8]);
        let flood = frames.read(&ping.repeat(MOST_PINGS as usize + 1));
        assert_eq!(flood, Err(Flood { kind: "PING", most: MOST_PINGS }));
        assert_eq!(Frames::default().read(&frame(PING, ACK, &[0; 8]).repeat(MOST_PINGS as usize + 1)), Ok(()));
    }
}
