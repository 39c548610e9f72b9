//! What an endpoint of HTTP/2 says of itself in its first frame: does it take an extended CONNECT (RFC 8441)? hyper's client does not
//! tell of it once its connection runs by itself. A peer's first frame is its SETTINGS (RFC 9113 §3.4), and is read in passing.

use karst_hbone::observed::Observer;
use std::{cell::Cell, io, rc::Rc};
use tokio::sync::Notify;

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

/// Reads the first frame of an endpoint in passing.
pub struct FirstFrame {
    /// The first bytes, until they are a frame.
    first: Vec<u8>,
    is_known: bool,
    announced: Rc<Announced>,
}

impl FirstFrame {
    /// Tells here what it finds.
    pub fn new(announced: Rc<Announced>) -> Self {
        Self { first: vec![], is_known: false, announced }
    }
}

impl Observer for FirstFrame {
    fn observe(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_known {
            return Ok(());
        }
        self.first.extend_from_slice(bytes);
        // Nothing comes any more.
        let found = if bytes.is_empty() { Some(false) } else { first_frame(&self.first) };
        if let Some(takes) = found {
            self.announced.tell(takes);
            (self.first, self.is_known) = (vec![], true);
        }
        Ok(())
    }
}

impl Drop for FirstFrame {
    fn drop(&mut self) {
        self.announced.tell(false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_hbone::observed::Observed;
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
            let mut reading = Observed::by(FirstFrame::new(announced.clone()), stream);
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
        drop(Observed::by(FirstFrame::new(announced.clone()), tokio::io::empty()));
        assert!(!announced.takes_extended().await);
    }
}
