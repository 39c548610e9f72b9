//! Places for connections that have not shown yet who they are, and for those that have and do nothing: a cap that nobody
//! can turn against the others. Whoever is accepted gets a [`Permit`]; when there is none, the oldest that is idle gives
//! way, of the source that has the most (`table` decides). The connection's task waits for [`Permit::evicted`] beside what it does.
//!
//! A place is taken and given back under a lock, once in a connection's life; nothing is locked for its bytes. Streams of
//! a tunnel that is established cost two additions ([`Permit::in_use`]).
//!
//! ```
//! use karst_rt::admission::{Admission, Limits, Permit, Source};
//! # async fn f(listener: tokio::net::TcpListener) {
//! let handshakes = Admission::new(Limits::shared(512));
//! let (tcp, from) = karst_rt::accept::accept(&listener).await;
//! let Ok(permit) = Permit::admit(&[&handshakes], &Source::address(from.ip(), false)) else { return };
//! # let _ = (tcp, permit);
//! # }
//! ```

mod table;

pub use table::{Limits, Source};

use crate::exposition::{Kind, Page};
use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};
use table::{Full, Table};
use tokio::{net::TcpStream, sync::Notify, time::Instant};

/// Why a connection ends before it is what it wants to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There is no place, and nobody who would have to give way.
    Refused,
    /// It had to give way.
    Evicted,
    /// Not one byte has come in time.
    Silent,
    /// It was not done in time.
    Late,
    /// The peer has left without a byte.
    Left,
}

impl Ended {
    /// As metrics call it. None: it is nothing that a limit does.
    fn reason(self) -> Option<&'static str> {
        match self {
            Self::Refused => Some("refused"),
            Self::Evicted => Some("evicted"),
            Self::Silent => Some("silent"),
            Self::Late => Some("late"),
            Self::Left => None,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "too many connections of this kind, and none can be evicted",
            Self::Evicted => "evicted in favor of another connection: too many are unfinished or idle",
            Self::Silent => "the peer has sent nothing",
            Self::Late => "the handshake took too long",
            Self::Left => "the peer has left",
        })
    }
}

impl std::error::Error for Ended {}

/// Counts connections that limits have ended.
#[derive(Debug, Default)]
pub struct Counts {
    refused: AtomicU64,
    evicted: AtomicU64,
    silent: AtomicU64,
    late: AtomicU64,
}

impl Counts {
    /// One more.
    pub fn note(&self, ended: Ended) {
        if let Some(count) = self.counter(ended) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// So many.
    pub fn of(&self, ended: Ended) -> u64 {
        self.counter(ended).map_or(0, |n| n.load(Relaxed))
    }

    fn counter(&self, ended: Ended) -> Option<&AtomicU64> {
        match ended {
            Ended::Refused => Some(&self.refused),
            Ended::Evicted => Some(&self.evicted),
            Ended::Silent => Some(&self.silent),
            Ended::Late => Some(&self.late),
            Ended::Left => None,
        }
    }

    /// For a page of metrics: those of several listeners, by their name and stage (`handshake`, `open`).
    pub fn render(page: &mut Page, all: &[(&str, &str, &Counts)]) {
        let mut family = page.family(
            "karst_connections_ended_by_limit_total",
            Kind::Counter,
            "Connections that had to end: no place (refused), gave way to others (evicted), not a byte (silent), not done in time (late).",
        );
        for (listener, stage, counts) in all {
            for ended in [Ended::Refused, Ended::Evicted, Ended::Silent, Ended::Late] {
                if let Some(reason) = ended.reason() {
                    let labels = [("listener", *listener), ("stage", *stage), ("reason", reason)];
                    family.sample(&labels, counts.of(ended));
                }
            }
        }
    }
}

/// A number of places, for all threads.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Places>);

#[derive(Debug)]
struct Places {
    limits: Limits,
    table: Mutex<Table<Arc<Holder>>>,
}

/// What a place's holder and its table share.
#[derive(Debug, Default)]
struct Holder {
    evicted: AtomicBool,
    wake: Notify,
    /// What goes on there at the moment; nothing: it is idle.
    in_use: AtomicUsize,
}

impl Holder {
    async fn evicted(&self) {
        // A notice that comes in between is kept for who asks next.
        while !self.evicted.load(Acquire) {
            self.wake.notified().await;
        }
    }
}

impl Admission {
    /// So many places.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Places { limits, table: Mutex::new(Table::new(limits)) }))
    }

    /// Places that are taken.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    /// Is none taken?
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    fn table(&self) -> MutexGuard<'_, Table<Arc<Holder>>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, source: &Source, holder: &Arc<Holder>) -> Result<Seat, Ended> {
        let idle = |h: &Arc<Holder>| h.in_use.load(Acquire) == 0;
        let given = self.table().admit(source.clone(), holder.clone(), idle).map_err(|Full| Ended::Refused)?;
        if let Some(holder) = given.instead_of {
            holder.evicted.store(true, Release);
            holder.wake.notify_one();
        }
        Ok(Seat { of: self.clone(), id: given.id, share: given.share })
    }
}

/// A place in one table, given back when dropped.
#[derive(Debug)]
struct Seat {
    of: Admission,
    id: u64,
    share: Arc<AtomicUsize>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.of.table().leave(self.id);
    }
}

/// A connection's place, in all the tables that it was admitted to; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    holder: Arc<Holder>,
    seats: Vec<Seat>,
    since: Instant,
}

impl Permit {
    /// A place in each of these tables (those of the process, then that of the pod).
    ///
    /// # Errors
    /// `Refused`.
    pub fn admit(tables: &[&Admission], source: &Source) -> Result<Self, Ended> {
        let mut p = Self { holder: Arc::default(), seats: Vec::new(), since: Instant::now() };
        p.move_to(tables, source)?;
        Ok(p)
    }

    /// Takes places in these tables, then gives back those of before: the connection has got on.
    ///
    /// # Errors
    /// `Refused`; `Evicted` if it has lost its place already. It then still has the places of before.
    pub fn move_to(&mut self, tables: &[&Admission], source: &Source) -> Result<(), Ended> {
        if self.is_evicted() {
            return Err(Ended::Evicted);
        }
        self.seats = tables.iter().map(|t| t.admit(source, &self.holder)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Has it had to give way?
    pub fn is_evicted(&self) -> bool {
        self.holder.evicted.load(Acquire)
    }

    /// Waits until it has to give way.
    pub async fn evicted(&self) {
        self.holder.evicted().await;
    }

    /// The same for who does not hold the place.
    pub fn watch(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let holder = self.holder.clone();
        async move { holder.evicted().await }
    }

    /// Does something, unless it has to give way or the time is over, which counts from when it was admitted.
    ///
    /// # Errors
    /// `Evicted` or `Late`.
    pub async fn within<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            () = self.evicted() => Err(Ended::Evicted),
            r = tokio::time::timeout_at(self.since + limit, work) => r.map_err(|_| Ended::Late),
        }
    }

    /// Waits for the first byte of the peer, which is left where it is. A peer that has to go is reset: it has sent nothing
    /// that could be lost, and its socket need not linger.
    ///
    /// # Errors
    /// `Evicted`, `Silent` or `Left`.
    pub async fn first_byte(&self, tcp: &TcpStream, limit: Duration) -> Result<(), Ended> {
        let result = match self.within(limit, tcp.peek(&mut [0])).await {
            Ok(Ok(1..)) => return Ok(()),
            Ok(Ok(0) | Err(_)) => Ended::Left,
            Err(Ended::Late) => Ended::Silent,
            Err(e) => e,
        };
        crate::socket::reset_on_close(tcp);
        Err(result)
    }

    /// Something goes on there (a stream, a request): until this is dropped it is not idle. None: its source has as much in use
    /// as it may, on all its places in the last of the tables.
    pub fn in_use(&self) -> Option<InUse> {
        let limit = self.seats.last().map_or(usize::MAX, |s| s.of.0.limits.in_use);
        // Without a limit it is not counted: all threads with connections of the source would do that in one place.
        let share = self.seats.last().filter(|_| limit < usize::MAX).map(|s| s.share.clone());
        let before = share.as_ref().map_or(0, |s| s.fetch_add(1, AcqRel));
        self.holder.in_use.fetch_add(1, AcqRel);
        let one = InUse { holder: self.holder.clone(), share };
        (before < limit).then_some(one)
    }
}

/// Something that goes on at a place, until it is dropped.
#[derive(Debug)]
pub struct InUse {
    holder: Arc<Holder>,
    share: Option<Arc<AtomicUsize>>,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.holder.in_use.fetch_sub(1, AcqRel);
        if let Some(share) = &self.share {
            share.fetch_sub(1, AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, SocketAddr};
    use tokio::{
        io::AsyncWriteExt,
        net::{TcpListener, TcpSocket},
    };

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    fn stranger(n: u8) -> Source {
        Source::address(IpAddr::from([192, 0, 2, n]), false)
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(l.local_addr().unwrap()), l.accept());
        (a.unwrap(), b.unwrap().0)
    }

    #[tokio::test]
    async fn who_gives_way_is_told_and_its_work_ends() {
        let all = Admission::new(Limits::even(1));
        let first = Permit::admit(&[&all], &stranger(1)).unwrap();
        let work = async {
            let r = first.within(LONG, std::future::pending::<()>()).await;
            (r, first.is_evicted())
        };
        let other = async {
            tokio::task::yield_now().await;
            Permit::admit(&[&all], &stranger(2)).unwrap()
        };
        let (ended, second) = tokio::join!(work, other);
        assert_eq!(ended, (Err(Ended::Evicted), true));
        // Also who asks later, and as often as it asks.
        first.evicted().await;
        first.watch().await;
        assert_eq!(all.len(), 1, "its place is the other's already");
        drop(first);
        assert_eq!((all.len(), second.is_evicted()), (1, false));
        drop(second);
        assert!(all.is_empty());
    }

    #[tokio::test]
    async fn time_counts_from_the_admission() {
        let all = Admission::new(Limits::even(1));
        let p = Permit::admit(&[&all], &stranger(1)).unwrap();
        tokio::time::sleep(SHORT).await;
        assert_eq!(p.within(SHORT, std::future::pending::<()>()).await, Err(Ended::Late));
        assert_eq!(p.within(LONG, async { 7 }).await, Ok(7));
    }

    #[tokio::test]
    async fn peers_that_say_nothing_are_reset_and_the_first_byte_stays_readable() {
        let all = Admission::new(Limits::even(8));
        let permit = || Permit::admit(&[&all], &stranger(1)).unwrap();
        let (silent, server) = pair().await;
        assert_eq!(permit().first_byte(&server, SHORT).await, Err(Ended::Silent));
        drop(server);
        let e = silent.peek(&mut [0]).await.unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset);
        let (gone, server) = pair().await;
        drop(gone);
        assert_eq!(permit().first_byte(&server, LONG).await, Err(Ended::Left));
        let (mut speaks, server) = pair().await;
        speaks.write_all(b"x").await.unwrap();
        assert_eq!(permit().first_byte(&server, LONG).await, Ok(()));
        assert_eq!(server.peek(&mut [0; 2]).await.unwrap(), 1);
        assert!(all.is_empty());
    }

    #[tokio::test]
    async fn a_place_in_several_tables_is_lost_in_all_of_them() {
        let (process, pod) = (Admission::new(Limits::even(8)), Admission::new(Limits::even(1)));
        let first = Permit::admit(&[&process, &pod], &stranger(1)).unwrap();
        let _second = Permit::admit(&[&process, &pod], &stranger(2)).unwrap();
        assert!(first.is_evicted());
        assert_eq!((process.len(), pod.len()), (2, 1));
        drop(first);
        assert_eq!((process.len(), pod.len()), (1, 1));
        // One that is refused by the second has none in the first.
        let none = Admission::new(Limits::even(0));
        assert_eq!(Permit::admit(&[&process, &none], &stranger(3)).err(), Some(Ended::Refused));
        assert_eq!(process.len(), 1);
    }

    #[tokio::test]
    async fn who_gets_on_leaves_its_place_to_others() {
        let (handshakes, tunnels) = (Admission::new(Limits::even(1)), Admission::new(Limits::even(1)));
        let mut first = Permit::admit(&[&handshakes], &stranger(1)).unwrap();
        first.move_to(&[&tunnels], &stranger(1)).unwrap();
        assert_eq!((handshakes.len(), tunnels.len()), (0, 1));
        let mut second = Permit::admit(&[&handshakes], &stranger(1)).unwrap();
        assert!(!first.is_evicted());
        // In use: who has no more cannot have its place.
        let stream = first.in_use().unwrap();
        assert_eq!(second.move_to(&[&tunnels], &stranger(2)), Err(Ended::Refused));
        assert_eq!((handshakes.len(), tunnels.len()), (1, 1));
        drop(stream);
        second.move_to(&[&tunnels], &stranger(2)).unwrap();
        assert!(first.is_evicted());
        assert_eq!(first.move_to(&[&handshakes], &stranger(1)), Err(Ended::Evicted));
    }

    #[test]
    fn one_source_has_its_share_of_what_is_in_use() {
        let all = Admission::new(Limits { in_use: 2, ..Limits::even(8) });
        let (a, b) = (Permit::admit(&[&all], &stranger(1)).unwrap(), Permit::admit(&[&all], &stranger(1)).unwrap());
        let c = Permit::admit(&[&all], &stranger(2)).unwrap();
        let (one, _two) = (a.in_use().unwrap(), b.in_use().unwrap());
        assert!(a.in_use().is_none() && b.in_use().is_none() && c.in_use().is_some());
        drop(one);
        assert!(b.in_use().is_some());
        assert_eq!(a.holder.in_use.load(Relaxed), 0, "what was refused counts no more");
    }

    /// Twice the places are held by peers that say nothing, from several addresses: everybody who speaks is served.
    #[tokio::test]
    async fn silent_peers_keep_nobody_out() {
        const PLACES: usize = 64;
        let all = Admission::new(Limits::shared(PLACES));
        let l = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], l.local_addr().unwrap().port()));
        let served = Arc::new(AtomicUsize::new(0));
        let server = {
            let (all, served) = (all.clone(), served.clone());
            tokio::spawn(async move {
                loop {
                    let (s, from) = crate::accept::accept(&l).await;
                    let Ok(p) = Permit::admit(&[&all], &Source::address(from.ip(), false)) else { continue };
                    let served = served.clone();
                    tokio::spawn(async move {
                        if p.first_byte(&s, LONG).await.is_ok() {
                            served.fetch_add(1, Relaxed);
                        }
                    });
                }
            })
        };
        let connect = async |from: [u8; 4]| {
            let s = TcpSocket::new_v4().unwrap();
            s.bind((from, 0).into()).unwrap();
            s.connect(to).await
        };
        let mut held = vec![];
        for i in 0..2 * PLACES {
            held.push(connect([127, 0, 1, (i % 8) as u8 + 1]).await);
            if i % 16 == 0 {
                let mut honest = connect([127, 0, 0, 1]).await.unwrap();
                honest.write_all(b"x").await.unwrap();
                // Until it is closed: the server is done with it.
                let _ = honest.readable().await;
            }
        }
        assert_eq!(served.load(Relaxed), 2 * PLACES / 16);
        assert!(all.len() <= PLACES / 2, "what is kept for known sources is free: {}", all.len());
        server.abort();
    }
}
