//! How far a connection has come that outlives its tunnel ([`crate::lasting`]), as the side of one application has it.
//!
//! What must always hold: a byte of the application's is in its socket until the other side has said that its application has it, so
//! whoever goes on can send it again; and nobody goes on from a number that cannot be. Proven by `tests`, which break tunnels.

use crate::{
    continuation::Token,
    lasting::{Joint, Line},
};
use bytes::Bytes;
use karst_rt::survive::{
    ahead::look_ahead,
    progress::{progress, take},
    table::{Entry, Region},
};
use socket2::SockRef;
use std::{
    io,
    os::fd::BorrowedFd,
    rc::Rc,
    task::{Context, Poll},
};

/// How far a connection has come whose tunnel has broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Bytes of the application's that are not in its socket any more: the other side has said that its application has them.
    pub taken: u64,
    /// How far the other direction has come: what the other side is told.
    pub given: u64,
    /// Bytes of the application's, and its end, that have been counted and shown.
    pub counted: u64,
    /// Bytes of the application's, and its end, that were sent. None: nobody knows, another process was killed.
    pub sent: Option<u64>,
    /// Both directions have come to their end here, and only the other side may lack something.
    pub over: bool,
}

/// What a tunnel has of it.
pub(super) struct Outlives {
    /// Its place in the table of those that outlive this process, if it is in there. The first field: what is closed is in no table.
    entry: Option<Entry>,
    pub(super) token: Token,
    pub(super) line: Rc<Line>,
    /// Bytes that the other side's application has: taken out of the socket.
    taken: u64,
    /// Bytes that were sent, and whether the end was.
    sent: u64,
    ended: bool,
    /// What the other side has said last.
    acked: u64,
    counted: u64,
    /// The tunnel has broken.
    pub(super) broken: bool,
}

impl Outlives {
    /// Of a connection of which nothing was carried; but so many bytes of its application's have been taken and sent already.
    pub(super) fn begin(socket: BorrowedFd<'_>, joint: Joint, already: u64) -> io::Result<Self> {
        joint.line.begin(0, already);
        let reached = Reached { taken: already, given: 0, counted: already, sent: None, over: false };
        Self::ahead(socket, joint, reached, already)
    }

    /// Of one that goes on.
    ///
    /// # Errors
    /// The sides do not fit together: bytes are missing, or somebody has said what cannot be.
    pub(super) fn go_on(socket: BorrowedFd<'_>, joint: Joint, reached: Reached) -> io::Result<Self> {
        // A socket that is closed tells nothing.
        let now = progress(socket)?.ok_or(io::ErrorKind::NotConnected)?;
        let (here, theirs) = (reached.taken + now.waiting, joint.theirs);
        let has_end = now.peer_ended && theirs.checked_sub(1) == Some(here);
        let bytes = if has_end { here } else { theirs };
        let was_sent = reached.sent.is_none_or(|sent| theirs <= sent);
        if !(reached.taken..=here).contains(&bytes) || !was_sent {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the sides of the connection do not fit together"));
        }
        take(socket, (bytes - reached.taken) as usize)?;
        joint.line.begin(reached.given, theirs);
        Self::ahead(socket, joint, reached, bytes)
    }

    fn ahead(socket: BorrowedFd<'_>, joint: Joint, reached: Reached, taken: u64) -> io::Result<Self> {
        // As the kernel counts (docs/survival.md): before the first byte.
        SockRef::from(&socket).set_out_of_band_inline(true)?;
        look_ahead(socket)?;
        let Joint { token, line, theirs } = joint;
        let (acked, counted) = (theirs.max(taken), reached.counted.max(taken));
        Ok(Self { entry: None, token, line, taken, sent: taken, ended: false, acked, counted, broken: false })
    }

    /// It outlives this process as well, from now on. `passed`: the application has heard of the other's end.
    pub(super) fn enter(&mut self, socket: BorrowedFd<'_>, region: &Rc<Region>, passed: bool, note: &[u8]) {
        let given = self.line.given() - u64::from(passed);
        self.entry = region.enter_single(socket, (self.taken, given), note);
    }

    /// These bytes, which were seen, are sent now. Gives those that have not been counted before.
    pub(super) fn sends(&mut self, data: &Bytes) -> Bytes {
        let before = self.sent;
        self.sent += data.len() as u64;
        let known = self.counted.saturating_sub(before).min(data.len() as u64) as usize;
        self.counted = self.counted.max(self.sent);
        data.slice(known..)
    }

    /// The end is sent now. True: it has not been counted before.
    pub(super) fn ends(&mut self) -> bool {
        self.ended = true;
        let is_new = self.counted <= self.sent;
        self.counted = self.sent + 1;
        is_new
    }

    fn all_sent(&self) -> u64 {
        self.sent + u64::from(self.ended)
    }

    /// Takes what has been acknowledged out of the socket.
    ///
    /// # Errors
    /// The tunnel has broken; or more was acknowledged than was sent; or the socket has failed.
    pub(super) fn acknowledge(&mut self, socket: BorrowedFd<'_>, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let number = match self.line.poll_acked(cx, self.acked) {
                Poll::Ready(number) => number?,
                Poll::Pending => return Ok(()),
            };
            if number > self.all_sent() {
                let what = "the other side acknowledges more than it was sent";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            let bytes = number.min(self.sent);
            take(socket, (bytes - self.taken) as usize).inspect_err(|_| self.line.fail())?;
            (self.taken, self.acked) = (bytes, number);
        }
    }

    /// Both directions have come to their end: whether the other side has all of it, and knows that we have.
    pub(super) fn poll_done(&mut self, socket: BorrowedFd<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let heard = self.acknowledge(socket, cx);
        if self.acked == self.sent + 1 && self.line.is_told() {
            return Poll::Ready(Ok(()));
        }
        match heard {
            Ok(()) => Poll::Pending,
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    /// Its stream has come to an orderly end, and it goes on in another one and perhaps another process: what was sent has come.
    pub(super) fn leaves(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.entry = None;
        take(socket, (self.sent - self.taken) as usize)?;
        self.taken = self.sent;
        Ok(())
    }

    /// Its tunnel has broken. `passed`: the application has heard of the other's end.
    pub(super) fn reached(&self, passed: bool) -> Reached {
        Reached {
            taken: self.taken,
            given: self.line.given(),
            counted: self.counted,
            sent: Some(self.all_sent()),
            over: self.ended && passed,
        }
    }
}
