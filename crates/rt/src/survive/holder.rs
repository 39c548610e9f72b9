//! The holder: a process that shares the table of descriptors of the one that serves, and does nothing else. What that one opens and
//! closes is so in both; if it is killed, everything stays open until the holder has ended, too.
//!
//! It begins before its process has a second thread or a key, waits for requests, and reads nothing that comes from outside. Who may
//! ask is whoever has the other end of its pair of sockets: the supervisor, and who gets it from there. When nobody has it any more, it
//! ends.
#![allow(unsafe_code, reason = "clone with CLONE_FILES, and what the new process may call")]

use crate::seqpacket::{Channel, MAX_FDS, Packets, send};
use socket2::{Domain, Socket, Type};
use std::{
    array,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

/// Requests: the table; descriptors, by numbers of four bytes each; to end.
const TABLE: u8 = b't';
const DESCRIPTORS: u8 = b'd';
const END: u8 = b'e';
/// The longest of them.
const REQUEST: usize = 1 + 4 * MAX_FDS;
/// What a process tells its supervisor once, with the other end of its holder's sockets.
const HELD: &[u8] = b"h";
/// A holder ends within this time, however much it has to close; or it is left alone.
const END_LIMIT: Duration = Duration::from_secs(1);

/// The holder of this process.
#[derive(Debug)]
pub struct Holder(libc::pid_t);

impl Holder {
    /// Starts it. There must be no other thread yet. `table`: what it gives to whoever asks. `supervisor`: who may ask.
    ///
    /// # Errors
    /// Those of `socketpair`, `sendmsg` and `clone`.
    pub fn start(table: BorrowedFd<'_>, supervisor: &Channel) -> io::Result<Self> {
        let (own, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
        supervisor.send(HELD, &[other.as_fd()])?;
        // It must not have it itself, or it would never see its end.
        drop(other);
        let flags = libc::c_long::from(libc::CLONE_FILES | libc::SIGCHLD);
        const NONE: libc::c_long = 0;
        // SAFETY: as `fork`, since the memory is not shared. There is no other thread that could hold a lock, and what the new process
        // does allocates nothing.
        match unsafe { libc::syscall(libc::SYS_clone, flags, NONE, NONE, NONE, NONE) } {
            0 => hold(&own, table),
            -1 => Err(io::Error::last_os_error()),
            pid => {
                // It is the holder's; in this process nobody must close it.
                std::mem::forget(own);
                Ok(Self(pid as libc::pid_t))
            }
        }
    }

    /// Has it ended? Then nothing outlives this process.
    pub fn has_ended(&self) -> bool {
        // SAFETY: no memory is involved. 0: it has not.
        unsafe { libc::waitpid(self.0, ptr::null_mut(), libc::WNOHANG) != 0 }
    }
}

/// What the new process does.
fn hold(requests: &Socket, table: BorrowedFd<'_>) -> ! {
    const NONE: libc::c_ulong = 0;
    // SAFETY: no memory but a name that ends with a zero is involved.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, NONE, NONE, NONE, NONE);
        libc::prctl(libc::PR_SET_NAME, c"ztunnel-holder".as_ptr(), NONE, NONE, NONE);
    }
    let mut request = [0; REQUEST];
    while let Some(length) = receive(requests, &mut request) {
        let answered = match &request[..length] {
            [TABLE] => send(requests, &[TABLE], &[table]),
            [DESCRIPTORS, numbers @ ..] => {
                let (numbers, _) = numbers.as_chunks::<4>();
                // One that is not open is answered with another one, so that there are as many as were asked for.
                let open = |number: &[u8; 4]| {
                    let fd = RawFd::from_le_bytes(*number);
                    // SAFETY: a number that is no descriptor's is refused; nobody opens or closes any meanwhile.
                    match unsafe { libc::fcntl(fd, libc::F_GETFD) } {
                        -1 => table,
                        // SAFETY: it is open, and stays so.
                        _ => unsafe { BorrowedFd::borrow_raw(fd) },
                    }
                };
                let all: [BorrowedFd<'_>; MAX_FDS] = array::from_fn(|at| numbers.get(at).map_or(table, open));
                send(requests, &[DESCRIPTORS], &all[..numbers.len().min(MAX_FDS)])
            }
            [END] => {
                close_all_but(requests.as_raw_fd());
                break;
            }
            _ => break,
        };
        if answered.is_err() {
            break;
        }
    }
    // SAFETY: no preconditions. What the process that it came from would do at its end is not done.
    unsafe { libc::_exit(0) }
}

/// A request's length; None: nobody has the other end any more.
fn receive(requests: &Socket, request: &mut [u8; REQUEST]) -> Option<usize> {
    loop {
        // SAFETY: the kernel writes no more than the array has.
        let length = unsafe { libc::recv(requests.as_raw_fd(), request.as_mut_ptr().cast(), REQUEST, 0) };
        match usize::try_from(length) {
            Ok(0) => return None,
            Ok(length) => return Some(length),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

/// So that who asks for the end sees it when the last port is free. Should the process that they are shared with still be there, it
/// keeps its own.
fn close_all_but(one: RawFd) {
    let unshared = libc::c_long::from(libc::CLOSE_RANGE_UNSHARE);
    let (below, above) = (libc::c_long::from(one - 1), libc::c_long::from(one + 1));
    let last = libc::c_long::from(u32::MAX);
    // SAFETY: nothing in this process uses any of them any more. Those below are closed only in a table of its own.
    unsafe {
        if libc::syscall(libc::SYS_close_range, above, last, unshared) == 0 {
            libc::syscall(libc::SYS_close_range, 0 as libc::c_long, below, 0 as libc::c_long);
        }
    }
}

/// The holder of a process that has ended, as its supervisor has it.
#[derive(Debug)]
pub struct Left(Channel);

impl Left {
    /// That of the process to which these are the supervisor's orders, if it has one.
    pub fn of(orders: &Channel) -> Option<Self> {
        let (said, sockets) = orders.recv(HELD.len()).ok()?;
        let socket = sockets.into_iter().next().filter(|_| said == HELD)?;
        Channel::from_fd(socket).ok().map(Self)
    }

    /// Ends it, and waits until it has closed what it has, so that ports are free.
    pub fn end(self) {
        if self.0.send(&[END], &[]).is_ok() {
            self.0.ended(END_LIMIT);
        }
    }
}

impl AsFd for Left {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The same, as the next process has it.
pub struct Requests(Packets);

impl Requests {
    /// By the supervisor's word.
    ///
    /// # Errors
    /// The runtime cannot take it.
    pub fn new(holder: OwnedFd) -> io::Result<Self> {
        Packets::from_fd(holder).map(Self)
    }

    /// The table.
    ///
    /// # Errors
    /// It is not there.
    pub async fn table(&self) -> io::Result<File> {
        self.0.send(&[TABLE], &[]).await?;
        self.answer(TABLE, 1).await?.pop().map(File::from).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Descriptors by their numbers, at most [`MAX_FDS`]. One that is not open is one of something else.
    ///
    /// # Errors
    /// It is not there.
    pub async fn descriptors(&self, numbers: &[RawFd]) -> io::Result<Vec<OwnedFd>> {
        let mut request = vec![DESCRIPTORS];
        request.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        self.0.send(&request, &[]).await?;
        self.answer(DESCRIPTORS, numbers.len()).await
    }

    /// Ends it. When that is done everything is closed that was not asked for, and ports are free.
    pub async fn end(self) {
        let ended = async {
            if self.0.send(&[END], &[]).await.is_err() {
                return;
            }
            loop {
                match self.0.recv(1).await {
                    // An answer that nobody has waited for any more, or that we have no descriptors left for.
                    Ok((said, _)) if !said.is_empty() => {}
                    Err(e) if e.kind() == io::ErrorKind::InvalidData => {}
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(END_LIMIT, ended).await;
    }

    async fn answer(&self, what: u8, count: usize) -> io::Result<Vec<OwnedFd>> {
        let (said, descriptors) = self.0.recv(1).await?;
        if said != [what] || descriptors.len() != count {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(descriptors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Seek, Write},
        os::unix::net::UnixStream,
    };

    /// A holder of this process, and its other end.
    fn start(table: &File) -> (Holder, Left) {
        let (supervisor, orders) = Channel::pair().unwrap();
        let holder = Holder::start(table.as_fd(), &Channel::from_fd(orders).unwrap()).unwrap();
        (holder, Left::of(&supervisor).unwrap())
    }

    fn ends(holder: &Holder) -> bool {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            holder.has_ended()
        })
    }

    fn table() -> File {
        let name = format!("karst-holder-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        file.write_all(b"the table").unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[tokio::test]
    async fn it_gives_what_is_open_in_its_process() {
        let table = table();
        let (holder, left) = start(&table);
        let requests = Requests::new(left.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let mut given = requests.table().await.unwrap();
        let mut text = String::new();
        given.rewind().unwrap();
        given.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the table");
        // Opened since.
        let (mut one, other) = UnixStream::pair().unwrap();
        let mut given = requests.descriptors(&[other.as_raw_fd(), -1, 1 << 30]).await.unwrap();
        assert_eq!(given.len(), 3);
        drop(other);
        UnixStream::from(given.swap_remove(0)).write_all(b"held").unwrap();
        let mut heard = [0; 4];
        one.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"held");
        let many: Vec<RawFd> = vec![one.as_raw_fd(); MAX_FDS];
        assert_eq!(requests.descriptors(&many).await.unwrap().len(), MAX_FDS);
        assert!(!holder.has_ended());
        drop(left);
        requests.end().await;
        assert!(ends(&holder));
        // What this process has closed is closed, and what it has is there.
        assert_eq!(one.read(&mut heard).unwrap(), 0);
    }

    #[test]
    fn it_ends_with_the_last_who_may_ask() {
        let table = table();
        let (holder, left) = start(&table);
        assert!(!holder.has_ended());
        drop(left);
        assert!(ends(&holder));
        // Or as it is told; and what it does not understand ends it.
        let (holder, left) = start(&table);
        left.end();
        assert!(ends(&holder));
        let (holder, left) = start(&table);
        left.0.send(b"?", &[]).unwrap();
        assert!(ends(&holder));
    }

    #[test]
    fn a_process_without_a_holder_leaves_none() {
        let (supervisor, orders) = Channel::pair().unwrap();
        assert!(Left::of(&supervisor).is_none());
        Channel::from_fd(orders).unwrap().send(b"x", &[]).unwrap();
        assert!(Left::of(&supervisor).is_none() && Left::of(&supervisor).is_none());
    }
}
