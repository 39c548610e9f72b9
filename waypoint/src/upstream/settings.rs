//! What an endpoint of HTTP/2 says of itself in its first frame: does it take an extended CONNECT (RFC 8441)? hyper's client does not
//! tell of it once its connection runs by itself. A peer's first frame is its SETTINGS (RFC 9113 §3.4), and is read in passing.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};

/// Length of a frame's head.
const HEAD: usize = 9;
/// SETTINGS frames have this type.
const SETTINGS: u8 = 4;
/// Largest payload of a frame that nobody has allowed to be larger.
const MOST: usize = 16 << 10;
/// Length of one setting: its number, and its value.
const SETTING: usize = 6;
/// SETTINGS_ENABLE_CONNECT_PROTOCOL, with the value 1.
const TAKES: [u8; SETTING] = [0, 8, 0, 0, 0, 1];

/// Does the endpoint take an extended CONNECT?
#[derive(Default)]
pub struct Announced {
    /// None: it has not said yet.
    takes: Cell<Option<bool>>,
    changed: Notify,
}

impl Announced {
    /// Waits until it is known. One that goes without a word takes none.
    pub async fn takes_extended(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            if let Some(takes) = self.takes.get() {
                return takes;
            }
            changed.await;
        }
    }

    fn tell(&self, takes: bool) {
        if self.takes.get().is_none() {
            self.takes.set(Some(takes));
            self.changed.notify_waiters();
        }
    }
}

/// What the first bytes say; None: too little has come.
fn first_frame(bytes: &[u8]) -> Option<bool> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let &[a, b, c, kind, ..] = head else { return None };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if kind != SETTINGS || length > MOST {
        return Some(false);
    }
    let payload = rest.get(..length)?;
    // Of several the last counts.
    let own = payload.chunks_exact(SETTING).rfind(|setting| setting.starts_with(&TAKES[..2]));
    Some(own.is_some_and(|setting| setting == TAKES))
}

/// A stream of HTTP/2 from an endpoint, whose first frame is read in passing.
pub struct Reading<S> {
    stream: S,
    /// The first bytes, until they are a frame.
    first: Vec<u8>,
    is_known: bool,
    announced: Rc<Announced>,
}

impl<S> Reading<S> {
    /// Tells here what it finds.
    pub fn new(stream: S, announced: Rc<Announced>) -> Self {
        Self { stream, first: vec![], is_known: false, announced }
    }

    fn read(&mut self, bytes: &[u8]) {
        self.first.extend_from_slice(bytes);
        // Nothing comes any more.
        let found = if bytes.is_empty() { Some(false) } else { first_frame(&self.first) };
        if let Some(takes) = found {
            self.announced.tell(takes);
            (self.first, self.is_known) = (vec![], true);
        }
    }
}

impl<S> Drop for Reading<S> {
    fn drop(&mut self) {
        self.announced.tell(false);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Reading<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let room = buf.remaining();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if !this.is_known && room > 0 {
            this.read(&buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Reading<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn the_first_frame_says_it() {
        let (yes, no) = ([0, 8, 0, 0, 0, 1], [0, 8, 0, 0, 0, 0]);
        // Its value looks like the number that is looked for.
        let other = [0, 3, 0, 8, 0, 1];
        for (frame, want) in [
            (frame(SETTINGS, &[]), false),
            (frame(SETTINGS, &yes), true),
            (frame(SETTINGS, &no), false),
            (frame(SETTINGS, &[other, yes].concat()), true),
            (frame(SETTINGS, &[yes, no].concat()), false),
            (frame(SETTINGS, &other.repeat(3)), false),
            (frame(0, &yes), false),
            (frame(SETTINGS, &yes.repeat(MOST)), false),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), false),
        ] {
            // However it is cut.
            let known = (0..frame.len()).find_map(|n| first_frame(&frame[..n])).or_else(|| first_frame(&frame));
            assert_eq!(known, Some(want), "{frame:?}");
        }
    }

    #[tokio::test]
    async fn whoever_waits_is_told_and_no_byte_is_lost() {
        for (sent, want) in [(frame(SETTINGS, &TAKES), true), (frame(SETTINGS, &[]), false), (vec![], false)] {
            let (mut peer, stream) = tokio::io::duplex(64);
            let announced = Rc::<Announced>::default();
            let mut reading = Reading::new(stream, announced.clone());
            let mut back = vec![];
            let send = async {
                peer.write_all(&sent).await.unwrap();
                drop(peer);
            };
            let (takes, (), read) = tokio::join!(announced.takes_extended(), send, reading.read_to_end(&mut back));
            read.unwrap();
            assert_eq!((takes, &back), (want, &sent));
        }
        let announced = Rc::<Announced>::default();
        drop(Reading::new(tokio::io::empty(), announced.clone()));
        assert!(!announced.takes_extended().await);
    }
}
