//! The table of a process's open connections, in memory that outlives it. Each worker has a region of its own, in which nobody else
//! writes.
//!
//! Always true: an entry is written before a byte is carried by it, and removed before a descriptor of it is closed; and memory that was
//! used by many connections goes back when they have ended (`tests`).

use super::{
    entry::{self, Fixed, MOST_NOTE, Named, Noted, WORDS},
    memory::Memory,
    progress::{Progress, progress},
};
use crate::splice::Pipe;
use socket2::SockRef;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Release},
    },
};

/// Most connections of a process that have an entry; others are cut by a crash.
pub const MOST: usize = 1 << 16;
/// Most workers that have a region.
const MOST_REGIONS: usize = 256;
/// Free places that give their memory back where others behind them do not: so many in a row.
const RUN: u32 = 64;

/// Words of the head: a page.
const HEAD: usize = 512;
/// Of the head: what this is, how many regions there are, and how many places each has.
const MAGIC_AT: usize = 0;
const REGIONS_AT: usize = 1;
const PLACES_AT: usize = 2;
/// And how many of a region's places have been used, of each.
const USED_AT: usize = 8;
/// Also says how the rest is to be read.
const MAGIC: u64 = 0x6b61_7273_7420_0001;

/// The table of a process.
#[derive(Debug)]
pub struct Table {
    memory: Memory,
    regions: usize,
    places: u32,
}

impl Table {
    /// An empty one, for so many workers.
    ///
    /// # Errors
    /// There is no memory of this kind.
    pub fn new(workers: usize) -> io::Result<Arc<Self>> {
        let regions = workers.clamp(1, MOST_REGIONS);
        let places = (MOST / regions) as u32;
        let memory = Memory::new(HEAD + regions * places as usize * WORDS)?;
        let table = Self { memory, regions, places };
        for (at, word) in [(REGIONS_AT, regions as u64), (PLACES_AT, u64::from(places)), (MAGIC_AT, MAGIC)] {
            table.put(at, word);
        }
        Ok(Arc::new(table))
    }

    /// That of a worker. None: it has too high a number.
    pub fn region(self: &Arc<Self>, worker: usize) -> Option<Rc<Region>> {
        let region = Region {
            table: self.clone(),
            number: worker,
            used: Cell::new(0),
            free: RefCell::default(),
            is_less: Cell::new(false),
        };
        (worker < self.regions).then(|| Rc::new(region))
    }

    /// In the order in which they are told: a process may be killed in between.
    fn put(&self, at: usize, word: u64) {
        if let Some(place) = self.word(at) {
            place.store(word, Release);
        }
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.memory.words().get(at)
    }
}

impl AsFd for Table {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// The part of a worker.
#[derive(Debug)]
pub struct Region {
    table: Arc<Table>,
    number: usize,
    /// Places that have been used; those from here on are empty.
    used: Cell<u32>,
    /// Of these, the free ones.
    free: RefCell<BTreeSet<u32>>,
    /// Has one become free since memory was given back?
    is_less: Cell<bool>,
}

impl Region {
    /// Enters a connection of these sockets, the client's first; so many bytes were taken and not given yet, from the client and to it, and
    /// are in these pipes, if there is one. From now on urgent data is a part of its stream, as the kernel counts. None: there is no place,
    /// the note is too long, or the kernel does not tell; then it is cut by a crash.
    pub fn enter(
        self: &Rc<Self>,
        sockets: [BorrowedFd<'_>; 2],
        held: [usize; 2],
        pipes: [Option<&Pipe>; 2],
        note: &[u8],
    ) -> Option<Entry> {
        if note.len() > MOST_NOTE {
            return None;
        }
        let [client, server] = sockets.map(|socket| Socket::of(socket).ok().flatten());
        let (client, server) = (client?, server?);
        let mut of_pipes = [None, None];
        for (own, pipe) in of_pipes.iter_mut().zip(pipes) {
            *own = pipe.map(named).transpose().ok()?;
        }
        // As if what is held had not been taken.
        let offset = |to: &Socket, from: &Socket, held: usize| {
            to.progress.given.wrapping_sub(from.progress.taken.wrapping_sub(held as u64))
        };
        let offsets = [offset(&server, &client, held[0]), offset(&client, &server, held[1])];
        let entry = Entry { place: self.place()?, region: self.clone() };
        let fixed = Fixed { client: client.named, server: Some(server.named), offsets, note };
        entry::open(&fixed, of_pipes, &mut |at, word| entry.put(at, word));
        Some(entry)
    }

    /// The same of a connection that has one socket and a stream: so many bytes were taken from the socket and given to it, by the
    /// stream's count.
    pub fn enter_single(
        self: &Rc<Self>,
        socket: BorrowedFd<'_>,
        (taken, given): (u64, u64),
        note: &[u8],
    ) -> Option<Entry> {
        if note.len() > MOST_NOTE {
            return None;
        }
        let Socket { named, progress } = Socket::of(socket).ok().flatten()?;
        let offsets = [progress.taken.wrapping_sub(taken), progress.given.wrapping_sub(given)];
        let entry = Entry { place: self.place()?, region: self.clone() };
        let fixed = Fixed { client: named, server: None, offsets, note };
        entry::open(&fixed, [None, None], &mut |at, word| entry.put(at, word));
        Some(entry)
    }

    /// A free place, the first one.
    fn place(&self) -> Option<u32> {
        if let Some(place) = self.free.borrow_mut().pop_first() {
            return Some(place);
        }
        let place = self.used.get();
        (place < self.table.places).then(|| {
            self.has_used(place + 1);
            place
        })
    }

    fn has_used(&self, count: u32) {
        self.used.set(count);
        self.table.put(USED_AT + self.number, count.into());
    }

    /// The first word of a place.
    fn first(&self, place: u32) -> usize {
        HEAD + (self.number * self.table.places as usize + place as usize) * WORDS
    }

    /// Gives memory back that connections have needed which have ended. To be called every few seconds.
    pub fn release_unneeded(&self) {
        if !self.is_less.replace(false) {
            return;
        }
        let mut free = self.free.borrow_mut();
        let before = self.used.get();
        let mut used = before;
        while used > 0 && free.remove(&(used - 1)) {
            used -= 1;
        }
        if used < before {
            self.has_used(used);
            self.table.memory.forget(self.first(used)..self.first(before));
        }
        for (first, end) in runs(free.iter().copied()) {
            if end - first >= RUN {
                self.table.memory.forget(self.first(first)..self.first(end));
            }
        }
    }
}

/// A socket that is entered.
struct Socket {
    named: Named,
    progress: Progress,
}

impl Socket {
    fn of(socket: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let option = SockRef::from(&socket);
        option.set_out_of_band_inline(true)?;
        let named = Named { fd: socket.as_raw_fd(), id: option.cookie()? };
        Ok(progress(socket)?.map(|progress| Self { named, progress }))
    }
}

fn named(pipe: &Pipe) -> io::Result<Named> {
    pipe.named().map(|(fd, id)| Named { fd, id })
}

/// The numbers that follow each other: the first, and the one behind the last.
fn runs(numbers: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = vec![];
    for number in numbers {
        match runs.last_mut() {
            Some((_, end)) if *end == number => *end += 1,
            _ => runs.push((number, number + 1)),
        }
    }
    runs
}

/// A connection in the table, until this is dropped.
#[derive(Debug)]
pub struct Entry {
    region: Rc<Region>,
    place: u32,
}

impl Entry {
    /// Bytes of a direction may be in this pipe from now on. None: its pipe is empty, and may be another connection's.
    ///
    /// # Errors
    /// The kernel does not tell which pipe it is.
    pub fn pipe(&self, from_client: bool, pipe: Option<&Pipe>) -> io::Result<()> {
        let named = pipe.map(named).transpose()?;
        entry::pipe(from_client, named, &mut |at, word| self.put(at, word));
        Ok(())
    }

    fn put(&self, at: usize, word: u64) {
        self.region.table.put(self.region.first(self.place) + at, word);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        entry::close(&mut |at, word| self.put(at, word));
        self.region.free.borrow_mut().insert(self.place);
        self.region.is_less.set(true);
    }
}

/// Reads the table of a process that is gone. Each descriptor, socket and pipe is that of one connection: those that share one are left
/// out.
///
/// # Errors
/// It is none, or not of this release.
pub fn read(file: &File) -> io::Result<Vec<Noted>> {
    let head = words(file, 0, HEAD)?;
    let at = |at: usize| head.get(at).copied().unwrap_or_default();
    let (regions, places) = (at(REGIONS_AT) as usize, at(PLACES_AT) as usize);
    let fits = (1..=MOST_REGIONS).contains(&regions) && places <= MOST && regions * places <= MOST;
    if at(MAGIC_AT) != MAGIC || !fits {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut found = vec![];
    for region in 0..regions {
        let used = usize::try_from(at(USED_AT + region)).unwrap_or(usize::MAX);
        if used > places {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let words = words(file, HEAD + region * places * WORDS, used * WORDS)?;
        let (entries, _) = words.as_chunks::<WORDS>();
        found.extend(entries.iter().filter_map(entry::read));
    }
    Ok(unambiguous(found))
}

/// So many words from this one on.
fn words(file: &File, first: usize, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * size_of::<u64>()];
    file.read_exact_at(&mut bytes, (first * size_of::<u64>()) as u64)?;
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

/// Without those that have a descriptor, a socket or a pipe that another one has as well, or have one twice.
fn unambiguous(all: Vec<Noted>) -> Vec<Noted> {
    let mut seen = HashMap::<(bool, u64), usize>::new();
    let named = |noted: &Noted| {
        let pipes = noted.pipes.into_iter().flatten();
        let all = [noted.client].into_iter().chain(noted.server).chain(pipes);
        all.flat_map(|Named { fd, id }| [(true, fd as u64), (false, id)]).collect::<Vec<_>>()
    };
    // (An inode may have the number of a cookie: that costs a connection what a crash would have cost it.)
    all.iter().flat_map(named).for_each(|name| *seen.entry(name).or_default() += 1);
    all.into_iter().filter(|noted| named(noted).iter().all(|name| seen.get(name) == Some(&1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splice::PIPE_SIZE;
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::unix::fs::MetadataExt,
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn file(table: &Table) -> File {
        File::from(table.as_fd().try_clone_to_owned().unwrap())
    }

    #[test]
    fn a_connection_is_in_the_table_for_as_long_as_it_lasts() {
        let table = Table::new(3).unwrap();
        let (first, last) = (table.region(0).unwrap(), table.region(2).unwrap());
        assert!(table.region(3).is_none());
        let ((mut client, a), (b, mut server)) = (pair(), pair());
        client.write_all(b"said before").unwrap();
        (&a).read_exact(&mut [0; 11]).unwrap();
        let sockets = [a.as_fd(), b.as_fd()];
        let entry = first.enter(sockets, [4, 0], [None, None], b"whose").unwrap();
        let mut pipe = Pipe::new().unwrap();
        let other = last.enter([b.as_fd(), a.as_fd()], [0, 0], [None, Some(&pipe)], &[7; MOST_NOTE]);
        assert!(other.is_some() && last.enter(sockets, [0, 0], [None, None], &[7; MOST_NOTE + 1]).is_none());
        assert!(read(&file(&table)).unwrap().is_empty(), "both have the same sockets");
        drop(other);
        entry.pipe(false, Some(&pipe)).unwrap();
        server.write_all(b"x").unwrap();
        while pipe.fill(b.as_fd(), PIPE_SIZE).is_err() {}
        let all = read(&file(&table)).unwrap();
        let [noted] = &all[..] else { panic!("{all:?}") };
        let server = noted.server.unwrap().fd;
        assert_eq!((noted.client.fd, server, &noted.note[..]), (a.as_raw_fd(), b.as_raw_fd(), &b"whose"[..]));
        assert_eq!(noted.client.id, SockRef::from(&a).cookie().unwrap());
        // Of eleven bytes that were taken four are held: seven are elsewhere, and the SYN counts.
        assert_eq!(noted.offsets, [1u64.wrapping_sub(7), 0]);
        assert_eq!(noted.pipes, [None, Some(named(&pipe).unwrap())]);
        entry.pipe(false, None).unwrap();
        assert_eq!(read(&file(&table)).unwrap()[0].pipes, [None, None]);
        drop(entry);
        assert!(read(&file(&table)).unwrap().is_empty());
        let no_socket = File::open("/dev/null").unwrap();
        assert!(first.enter([no_socket.as_fd(), b.as_fd()], [0, 0], [None, None], b"").is_none());
    }

    #[test]
    fn a_single_socket_is_noted_by_the_streams_count() {
        let (table, (mut client, a)) = (Table::new(1).unwrap(), pair());
        let region = table.region(0).unwrap();
        client.write_all(b"said before").unwrap();
        (&a).read_exact(&mut [0; 11]).unwrap();
        (&a).write_all(b"told").unwrap();
        // By the stream's count seven of the eleven, and all four.
        let entry = region.enter_single(a.as_fd(), (7, 4), b"whose").unwrap();
        let all = read(&file(&table)).unwrap();
        let [noted] = &all[..] else { panic!("{all:?}") };
        assert_eq!((noted.client.fd, noted.server, noted.offsets), (a.as_raw_fd(), None, [4, 0]));
        assert_eq!((noted.pipes, &noted.note[..]), ([None, None], &b"whose"[..]));
        assert!(region.enter_single(a.as_fd(), (0, 0), &[0; MOST_NOTE + 1]).is_none());
        drop(entry);
        assert!(read(&file(&table)).unwrap().is_empty());
    }

    #[test]
    fn memory_goes_back_when_connections_have_ended() {
        let table = Table::new(1).unwrap();
        let region = table.region(0).unwrap();
        let (a, b) = pair();
        let enter = || region.enter([a.as_fd(), b.as_fd()], [0, 0], [None, None], &[1; 500]).unwrap();
        let used = || file(&table).metadata().unwrap().blocks() * 512;
        let mut all: Vec<_> = (0..2000).map(|_| enter()).collect();
        let most = used();
        assert!(most >= 2000 * 1024, "{most}");
        // One in the middle stays.
        let stays = all.swap_remove(1000);
        all.truncate(1);
        region.release_unneeded();
        assert!(used() < most / 50, "{} of {most}", used());
        assert_eq!(region.used.get(), 1001);
        drop((stays, all));
        region.release_unneeded();
        assert_eq!((region.used.get(), region.free.borrow().len()), (0, 0));
        assert_eq!(enter().place, 0);
        assert_eq!(region.place(), Some(0));
    }

    #[test]
    fn a_table_that_is_full_takes_no_more() {
        let table = Table::new(MOST_REGIONS * 2).unwrap();
        let region = table.region(MOST_REGIONS - 1).unwrap();
        let (a, b) = pair();
        let enter = || region.enter([a.as_fd(), b.as_fd()], [0, 0], [None, None], b"");
        let all: Vec<_> = (0..MOST / MOST_REGIONS).map(|_| enter().unwrap()).collect();
        assert!(enter().is_none());
        drop(all);
        assert!(enter().is_some());
    }

    #[test]
    fn a_file_that_is_no_table_is_refused() {
        let good = Table::new(2).unwrap();
        assert!(read(&file(&good)).unwrap().is_empty());
        assert!(read(&File::open("/dev/null").unwrap()).is_err());
        assert!(read(&File::open("/dev/zero").unwrap()).is_err());
        for (at, word) in [
            (MAGIC_AT, MAGIC + 1),
            (REGIONS_AT, 0),
            (REGIONS_AT, u64::MAX),
            (PLACES_AT, u64::MAX),
            (PLACES_AT, MOST as u64),
            (USED_AT + 1, MOST as u64),
            (USED_AT, u64::MAX),
        ] {
            let table = Table::new(2).unwrap();
            table.put(at, word);
            assert!(read(&file(&table)).is_err(), "{at} {word}");
        }
        // Shorter than it says.
        let table = Table::new(1).unwrap();
        table.put(USED_AT, 5000);
        file(&table).set_len(4096 + 100).unwrap();
        assert!(read(&file(&table)).is_err());
    }

    #[test]
    fn those_that_follow_each_other_are_found() {
        assert!(runs([].into_iter()).is_empty());
        assert_eq!(runs([0, 1, 2, 5, 7, 8].into_iter()), [(0, 3), (5, 6), (7, 9)]);
    }
}
