//! Ways to carry a direction of a connection, from one socket to another, until its end.

use crate::{
    shared::{Number, Shared},
    sys,
};
use karst_hbone::copy::{self, Counts};
use karst_rt::splice::{PIPE_SIZE, Pipe};
use std::{io, mem, net::Shutdown, os::fd::AsFd};
use tokio::{io::Interest, net::TcpStream};

/// Of one read, as in the product's copy loop.
const CHUNK: usize = 64 << 10;
/// While more is coming, the other end acknowledges this much at a time; the rest when nothing is.
const ACKNOWLEDGED: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The product's: `copy::plain`.
    Product,
    /// Read and write.
    Copy,
    /// What was read is copied into shared memory before it is written.
    Ring,
    /// The same, and the kernel is asked how far the other side is.
    RingAndInfo,
    /// It is read into shared memory, and written from there.
    InRing,
    /// It is looked at, written, and then taken out.
    Peek,
    /// It is looked at further and further, and taken out once it is acknowledged.
    PeekAhead,
    /// Through a pipe.
    Splice,
    /// The same, and shared memory has how far it has come.
    SpliceNoted,
}

impl Way {
    pub const ALL: [Self; 9] = [
        Self::Product,
        Self::Copy,
        Self::Ring,
        Self::RingAndInfo,
        Self::InRing,
        Self::Peek,
        Self::PeekAhead,
        Self::Splice,
        Self::SpliceNoted,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Product => "product",
            Self::Copy => "copy",
            Self::Ring => "ring",
            Self::RingAndInfo => "ring, TCP_INFO",
            Self::InRing => "in the ring",
            Self::Peek => "peek",
            Self::PeekAhead => "peek ahead",
            Self::Splice => "splice",
            Self::SpliceNoted => "splice, noted",
        }
    }

    /// What it is compared with: the same without what a crash asks for.
    pub fn base(self) -> Self {
        match self {
            Self::Product => Self::Product,
            Self::Copy | Self::Ring | Self::RingAndInfo | Self::InRing | Self::Peek | Self::PeekAhead => Self::Copy,
            Self::Splice | Self::SpliceNoted => Self::Splice,
        }
    }

    /// Can this kernel do it?
    pub fn is_possible(self) -> bool {
        self != Self::PeekAhead || sys::peek_ahead(&sys::pair().0).is_ok()
    }

    pub async fn carry(self, from: TcpStream, to: TcpStream, shared: &mut Shared) -> io::Result<()> {
        match self {
            Self::Product => return copy::plain(from, to, &Counts::default()).await,
            Self::Copy => copied(&from, &to).await?,
            Self::Ring => ring(&from, &to, shared, false).await?,
            Self::RingAndInfo => ring(&from, &to, shared, true).await?,
            Self::InRing => in_ring(&from, &to, shared).await?,
            Self::Peek => peek(&from, &to, shared).await?,
            Self::PeekAhead => peek_ahead(&from, &to, shared).await?,
            Self::Splice => spliced(&from, &to, None).await?,
            Self::SpliceNoted => spliced(&from, &to, Some(&*shared)).await?,
        }
        socket2::SockRef::from(&to).shutdown(Shutdown::Write)
    }
}

async fn read(from: &TcpStream, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    from.async_io(Interest::READABLE, || sys::recv(from, buffer, flags)).await
}

async fn write(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    to.async_io(Interest::WRITABLE, || sys::send(to, bytes)).await
}

async fn write_all(to: &TcpStream, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        rest = &rest[write(to, rest).await?..];
    }
    Ok(())
}

async fn copied(from: &TcpStream, to: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match read(from, &mut buffer, 0).await? {
            0 => return Ok(()),
            length => write_all(to, &buffer[..length]).await?,
        }
    }
}

/// How far a direction has come, and what of it is acknowledged.
#[derive(Default)]
struct Progress {
    taken: u64,
    given: u64,
    acknowledged: u64,
}

impl Progress {
    fn took(&mut self, length: usize, shared: &Shared) {
        self.taken += length as u64;
        shared.note(Number::Taken, self.taken);
    }

    /// True: the other end acknowledges now.
    fn gave(&mut self, length: usize, shared: &Shared) -> bool {
        self.given += length as u64;
        shared.note(Number::Given, self.given);
        let is_time = self.given - self.acknowledged >= ACKNOWLEDGED;
        if is_time {
            self.acknowledged = self.given;
            shared.note(Number::Acknowledged, self.acknowledged);
        }
        is_time
    }
}

async fn ring(from: &TcpStream, to: &TcpStream, shared: &mut Shared, asks: bool) -> io::Result<()> {
    let (mut buffer, mut progress) = (vec![0; CHUNK], Progress::default());
    loop {
        let length = read(from, &mut buffer, 0).await?;
        if length == 0 {
            return Ok(());
        }
        shared.keep(progress.taken, &buffer[..length]);
        progress.took(length, shared);
        write_all(to, &buffer[..length]).await?;
        if progress.gave(length, shared) && asks {
            let acked = sys::counters(to).acked;
            // The SYN counts.
            assert!(acked <= progress.given + 1, "{acked} of {}", progress.given);
        }
    }
}

async fn in_ring(from: &TcpStream, to: &TcpStream, shared: &mut Shared) -> io::Result<()> {
    let mut progress = Progress::default();
    loop {
        let at = progress.taken;
        let length = read(from, shared.at(at, CHUNK), 0).await?;
        if length == 0 {
            return Ok(());
        }
        progress.took(length, shared);
        write_all(to, shared.at(at, length)).await?;
        progress.gave(length, shared);
    }
}

async fn peek(from: &TcpStream, to: &TcpStream, shared: &Shared) -> io::Result<()> {
    let (mut buffer, mut progress) = (vec![0; CHUNK], Progress::default());
    loop {
        let seen = read(from, &mut buffer, libc::MSG_PEEK).await?;
        if seen == 0 {
            return Ok(());
        }
        let mut done = 0;
        while done < seen {
            let written = write(to, &buffer[done..seen]).await?;
            progress.gave(written, shared);
            sys::consume(from, written)?;
            progress.took(written, shared);
            done += written;
        }
    }
}

async fn peek_ahead(from: &TcpStream, to: &TcpStream, shared: &Shared) -> io::Result<()> {
    let (mut buffer, mut progress) = (vec![0; CHUNK], Progress::default());
    sys::peek_ahead(from)?;
    let mut unacknowledged = 0;
    loop {
        let seen = match from.try_io(Interest::READABLE, || sys::recv(from, &mut buffer, libc::MSG_PEEK)) {
            Ok(0) => break,
            Ok(seen) => seen,
            // Nothing more is coming for the moment.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                sys::consume(from, mem::take(&mut unacknowledged))?;
                from.readable().await?;
                continue;
            }
            Err(e) => return Err(e),
        };
        progress.took(seen, shared);
        write_all(to, &buffer[..seen]).await?;
        unacknowledged += seen;
        if progress.gave(seen, shared) {
            sys::consume(from, mem::take(&mut unacknowledged))?;
        }
    }
    sys::consume(from, unacknowledged)
}

async fn spliced(from: &TcpStream, to: &TcpStream, shared: Option<&Shared>) -> io::Result<()> {
    let (mut pipe, mut progress) = (Pipe::new()?, Progress::default());
    loop {
        let filled = from.async_io(Interest::READABLE, || pipe.fill(from.as_fd(), PIPE_SIZE)).await?;
        if filled == 0 {
            return Ok(());
        }
        if let Some(shared) = shared {
            progress.took(filled, shared);
        }
        while pipe.held > 0 {
            let drained = to.async_io(Interest::WRITABLE, || pipe.drain(to.as_fd())).await?;
            if let Some(shared) = shared {
                progress.gave(drained, shared);
            }
        }
    }
}
