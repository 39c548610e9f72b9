//! What the process after one that was killed does with its open connections: it takes them from the holder, sees what they are, and how
//! far they have come.

use super::{
    entry::{Named, Noted},
    holder::Requests,
    progress::{Progress, progress, take, waiting},
    settle::{Direction, Unaccounted},
    table,
};
use crate::{
    clock::Instant,
    seqpacket::MAX_FDS,
    splice::{self, PIPE_SIZE},
};
use socket2::SockRef;
use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};
use tokio::time::timeout_at;

/// Open connections of a process that is gone.
#[derive(Debug)]
pub struct Claimed {
    /// Those that are there, of two sockets each.
    pub connections: Vec<Claim>,
    /// Those of one socket, which a stream has carried.
    pub singles: Vec<Single>,
    /// Those that were in the table, and are not what it says, or for which there was no time.
    pub lost: usize,
}

/// Takes all that the table has; then the holder ends, which closes everything else. `limit`: how long that may take.
///
/// # Errors
/// There is no table. The holder has ended.
pub async fn claim(holder: OwnedFd, limit: Duration) -> io::Result<Claimed> {
    let (until, requests) = (Instant::now() + limit, Requests::new(holder)?);
    let taken = taken(&requests, until).await;
    requests.end().await;
    taken
}

async fn taken(requests: &Requests, until: Instant) -> io::Result<Claimed> {
    let table = timeout_at(until, requests.table()).await??;
    let noted = table::read(&table)?;
    let (all, mut connections, mut singles) = (noted.len(), vec![], vec![]);
    for some in packets(noted) {
        let numbers: Vec<RawFd> = some.iter().flat_map(numbers).collect();
        // What has no time any more is closed with the rest.
        let Ok(Ok(descriptors)) = timeout_at(until, requests.descriptors(&numbers)).await else { break };
        let mut descriptors = descriptors.into_iter();
        for noted in some {
            match noted.server {
                Some(server) => connections.extend(Claim::of(noted, server, &mut descriptors)),
                None => singles.extend(Single::of(noted, &mut descriptors)),
            }
        }
    }
    Ok(Claimed { lost: all - connections.len() - singles.len(), connections, singles })
}

/// The descriptors of a connection.
fn numbers(noted: &Noted) -> impl Iterator<Item = RawFd> {
    let pipes = noted.pipes.into_iter().flatten();
    [noted.client].into_iter().chain(noted.server).chain(pipes).map(|named| named.fd)
}

/// As many as have room in one packet, again and again.
fn packets(all: Vec<Noted>) -> Vec<Vec<Noted>> {
    let (mut packets, mut room) = (Vec::<Vec<Noted>>::new(), 0);
    for noted in all {
        let needed = numbers(&noted).count();
        match packets.last_mut() {
            Some(packet) if needed <= room => {
                room -= needed;
                packet.push(noted);
            }
            _ => {
                room = MAX_FDS - needed;
                packets.push(vec![noted]);
            }
        }
    }
    packets
}

/// A connection whose sockets are ours. Its close is a reset: an application must not take what it has for complete.
#[derive(Debug)]
pub struct Claim {
    client: OwnedFd,
    server: OwnedFd,
    pipes: [Option<OwnedFd>; 2],
    offsets: [u64; 2],
    /// Whose connection it is, as it was noted.
    pub note: Vec<u8>,
}

/// What of a direction is left to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Taken from who sends, and not given to who receives.
    pub rest: Vec<u8>,
    /// Its end has been passed on.
    pub ended: bool,
}

/// A connection that goes on from here.
#[derive(Debug)]
pub struct Settled {
    /// The socket of who has opened it.
    pub client: OwnedFd,
    /// The socket of the other side.
    pub server: OwnedFd,
    /// From the client.
    pub up: Left,
    /// To the client.
    pub down: Left,
}

impl Claim {
    /// One whose descriptors are the next ones. None: they are not what the table says.
    fn of(noted: Noted, server: Named, descriptors: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let Noted { client, offsets, pipes, note, .. } = noted;
        let (of_client, of_server) = (descriptors.next()?, descriptors.next()?);
        let mut of_pipes = [None, None];
        for (own, pipe) in of_pipes.iter_mut().zip(pipes) {
            if pipe.is_some() {
                *own = Some(descriptors.next()?);
            }
        }
        let is_pipe = |(fd, named): (&Option<OwnedFd>, Option<Named>)| match (fd, named) {
            (Some(fd), Some(named)) => splice::id(fd.as_fd()).is_ok_and(|id| id == named.id),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let is_it =
            is_socket(&of_client, client) && is_socket(&of_server, server) && of_pipes.iter().zip(pipes).all(is_pipe);
        if !is_it {
            return None;
        }
        for socket in [&of_client, &of_server] {
            SockRef::from(socket).set_linger(Some(Duration::ZERO)).ok()?;
        }
        Some(Self { client: of_client, server: of_server, pipes: of_pipes, offsets, note })
    }

    /// The sockets, of the client and of the other side.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.client.as_fd(), self.server.as_fd()]
    }

    /// Makes up for what the dead process had begun. None: nothing is left to be done, the kernel sends the rest.
    ///
    /// # Errors
    /// Bytes are missing, or nobody knows; it has been reset.
    pub fn settle(self) -> Result<Option<Settled>, Unaccounted> {
        let Self { client, server, pipes, offsets, .. } = self;
        let progress = |socket: &OwnedFd| progress(socket.as_fd()).map_err(|_| Unaccounted::Unknown);
        let (of_client, of_server) = (progress(&client)?, progress(&server)?);
        let mut rests = [vec![], vec![]];
        for (rest, pipe) in rests.iter_mut().zip(pipes) {
            *rest = pipe.map_or(Ok(vec![]), held).map_err(|_| Unaccounted::Unknown)?;
        }
        let is_over = |progress: Option<Progress>| progress.is_none_or(|progress| progress.ended);
        if is_over(of_client) && is_over(of_server) && rests.iter().all(Vec::is_empty) {
            for socket in [&client, &server] {
                let _ = SockRef::from(socket).set_linger(None);
            }
            return Ok(None);
        }
        let (Some(of_client), Some(of_server)) = (of_client, of_server) else { return Err(Unaccounted::Closed) };
        let direction = |from: Progress, to: Progress, offset: u64, rest: &[u8]| Direction {
            taken: from.taken,
            waiting: from.waiting,
            sender_ended: from.peer_ended,
            given: to.given,
            offset,
            in_pipe: rest.len() as u64,
            ended: to.ended,
        };
        let [up, down] = rests;
        let of_up = direction(of_client, of_server, offsets[0], &up);
        let of_down = direction(of_server, of_client, offsets[1], &down);
        // Both are known before anything is done.
        let (ahead_up, ahead_down) = (of_up.ahead()?, of_down.ahead()?);
        for (socket, ahead) in [(&client, ahead_up), (&server, ahead_down)] {
            take(socket.as_fd(), ahead).map_err(|_| Unaccounted::Unknown)?;
        }
        let up = Left { rest: up, ended: of_up.ended };
        let down = Left { rest: down, ended: of_down.ended };
        Ok(Some(Settled { client, server, up, down }))
    }
}

/// A connection of which one socket is ours: a stream has carried it. Its close is a reset, as above.
#[derive(Debug)]
pub struct Single {
    socket: OwnedFd,
    offsets: [u64; 2],
    /// Whose connection it is, as it was noted.
    pub note: Vec<u8>,
}

/// How far one has come, by the count of its stream.
#[derive(Debug)]
pub struct Reached {
    /// Its socket.
    pub socket: OwnedFd,
    /// Bytes that were taken out of it.
    pub taken: u64,
    /// Bytes that it was given.
    pub given: u64,
    /// It was told that it is given no more.
    pub ended: bool,
}

impl Single {
    /// One whose descriptor is the next one. None: it is not what the table says.
    fn of(noted: Noted, descriptors: &mut impl Iterator<Item = OwnedFd>) -> Option<Self> {
        let socket = descriptors.next()?;
        if !is_socket(&socket, noted.client) || noted.pipes.iter().any(Option::is_some) {
            return None;
        }
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).ok()?;
        Some(Self { socket, offsets: noted.offsets, note: noted.note })
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// How far it has come.
    ///
    /// # Errors
    /// The kernel does not say, or says less than what was noted at its beginning; it has been reset.
    pub fn settle(self) -> Result<Reached, Unaccounted> {
        let Self { socket, offsets: [of_taken, of_given], .. } = self;
        let progress = progress(socket.as_fd()).map_err(|_| Unaccounted::Unknown)?.ok_or(Unaccounted::Closed)?;
        // Offsets may be below 0: a number that is too large by far is one that is too small.
        let count = |now: u64, offset: u64| i64::try_from(now.wrapping_sub(offset)).map_err(|_| Unaccounted::Unknown);
        let (taken, given) = (count(progress.taken, of_taken)?, count(progress.given, of_given)?);
        Ok(Reached { socket, taken: taken.unsigned_abs(), given: given.unsigned_abs(), ended: progress.ended })
    }
}

fn is_socket(fd: &OwnedFd, named: Named) -> bool {
    SockRef::from(fd).cookie().is_ok_and(|id| id == named.id)
}

/// What a pipe holds: no more than a pipe of ours can.
fn held(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let count = usize::try_from(waiting(pipe.as_fd())?).ok().filter(|count| *count <= PIPE_SIZE);
    let mut bytes = vec![0; count.ok_or(io::ErrorKind::InvalidData)?];
    // All of it is there: neither does this wait, nor is it short.
    File::from(pipe).read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splice::Pipe;
    use std::{
        io::Write,
        net::{Shutdown, TcpListener, TcpStream},
    };

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn of(noted: Noted, descriptors: &mut impl Iterator<Item = OwnedFd>) -> Option<Claim> {
        let server = noted.server.unwrap();
        Claim::of(noted, server, descriptors)
    }

    /// A connection: the applications, and what the process between them has.
    struct Between {
        client: TcpStream,
        a: TcpStream,
        b: TcpStream,
        app: TcpStream,
    }

    impl Between {
        fn new() -> Self {
            let ((client, a), (b, app)) = (pair(), pair());
            for end in [&client, &app] {
                end.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            }
            Self { client, a, b, app }
        }

        fn noted(&self, pipe: Option<&Pipe>) -> Noted {
            let named = |s: &TcpStream| Named { fd: 0, id: SockRef::from(s).cookie().unwrap() };
            let pipe = pipe.map(|pipe| pipe.named().unwrap()).map(|(fd, id)| Named { fd, id });
            let (client, server) = (named(&self.a), Some(named(&self.b)));
            Noted { client, server, offsets: [1, 0], pipes: [pipe, None], note: vec![] }
        }

        fn claim(&self, pipe: Option<&Pipe>) -> Option<Claim> {
            let sockets = [&self.a, &self.b].map(|s| s.as_fd().try_clone_to_owned().unwrap());
            let pipe_end: Option<OwnedFd> = pipe.map(|pipe| {
                let (fd, _) = pipe.named().unwrap();
                File::open(format!("/proc/self/fd/{fd}")).unwrap().into()
            });
            of(self.noted(pipe), &mut sockets.into_iter().chain(pipe_end))
        }
    }

    /// Waits until a socket has so many bytes.
    fn has(socket: &TcpStream, count: u64) {
        for _ in 0..1000 {
            if waiting(socket.as_fd()).unwrap() >= count {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("{count} bytes have not come");
    }

    #[test]
    fn what_was_given_and_not_taken_is_given_once() {
        let mut way = Between::new();
        way.client.write_all(b"given already, and more").unwrap();
        has(&way.a, 23);
        way.b.write_all(b"given already").unwrap();
        let settled = way.claim(None).unwrap().settle().unwrap().unwrap();
        assert_eq!((settled.up, settled.down), (Left::default(), Left::default()));
        let mut rest = [0; 20];
        let length = File::from(settled.client).read(&mut rest).unwrap();
        assert_eq!(&rest[..length], b", and more");
    }

    #[test]
    fn what_is_in_a_pipe_is_left_to_be_given() {
        let mut way = Between::new();
        let mut pipe = Pipe::new().unwrap();
        way.client.write_all(b"in the pipe").unwrap();
        while pipe.fill(way.a.as_fd(), PIPE_SIZE).is_err() {}
        way.app.shutdown(Shutdown::Write).unwrap();
        way.a.shutdown(Shutdown::Write).unwrap();
        let ended = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            progress(way.b.as_fd()).unwrap().unwrap().peer_ended
        });
        assert!(ended);
        let settled = way.claim(Some(&pipe)).unwrap().settle().unwrap().unwrap();
        assert_eq!(settled.up, Left { rest: b"in the pipe".to_vec(), ended: false });
        assert_eq!(settled.down, Left { rest: vec![], ended: true });
    }

    #[test]
    fn what_does_not_fit_is_reset() {
        // A byte was taken that nobody has.
        let mut way = Between::new();
        way.client.write_all(b"x").unwrap();
        way.a.read_exact(&mut [0]).unwrap();
        let lost = way.claim(None).unwrap().settle().unwrap_err();
        assert_eq!(lost, Unaccounted::Bytes { given: 0, taken: 1, in_pipe: 0 });
        let Between { mut client, a, b, mut app } = way;
        drop((a, b));
        for end in [&mut client, &mut app] {
            assert_eq!(end.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        // Another socket than the one that was noted, another pipe, and none.
        let (way, other) = (Between::new(), Between::new());
        let sockets = || [&way.a, &way.b].map(|s| s.as_fd().try_clone_to_owned().unwrap()).into_iter();
        assert!(of(other.noted(None), &mut sockets()).is_none());
        let pipe = Pipe::new().unwrap();
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(of(way.noted(Some(&pipe)), &mut sockets().chain([file()])).is_none());
        assert!(of(way.noted(Some(&pipe)), &mut sockets()).is_none());
        assert!(of(way.noted(None), &mut [file(), file()].into_iter()).is_none());
        assert!(of(way.noted(None), &mut sockets()).is_some());
    }

    /// Ended both ways: nothing is left, and what is on its way to the applications is not thrown away.
    #[test]
    fn what_is_over_is_not_reset() {
        let way = Between::new();
        for end in [&way.a, &way.b] {
            end.shutdown(Shutdown::Write).unwrap();
        }
        assert!(way.claim(None).unwrap().settle().unwrap().is_none());
        let Between { mut client, a, b, mut app } = way;
        drop((a, b));
        for end in [&mut client, &mut app] {
            assert_eq!(end.read(&mut [0]).unwrap(), 0);
        }
    }

    /// Of one socket: what was taken and given since it was noted, by whichever process.
    #[test]
    fn how_far_a_single_socket_has_come_is_the_kernels() {
        let (mut client, a) = pair();
        client.write_all(b"before").unwrap();
        (&a).read_exact(&mut [0; 6]).unwrap();
        let named = |s: &TcpStream| Named { fd: 0, id: SockRef::from(s).cookie().unwrap() };
        // As many as the stream had counted when it was noted: 106 of what was taken, and 10 of what was given.
        let offsets = [6u64.wrapping_sub(106), 0u64.wrapping_sub(10)];
        let noted = |client: Named| Noted { client, server: None, offsets, pipes: [None, None], note: vec![7] };
        client.write_all(b"more").unwrap();
        (&a).read_exact(&mut [0; 3]).unwrap();
        (&a).write_all(b"answer").unwrap();
        a.shutdown(Shutdown::Write).unwrap();
        let socket = || [a.as_fd().try_clone_to_owned().unwrap()].into_iter();
        let single = Single::of(noted(named(&a)), &mut socket()).unwrap();
        assert_eq!(single.note, [7]);
        let reached = single.settle().unwrap();
        assert_eq!((reached.taken, reached.given, reached.ended), (109, 16, true));
        // Less was taken than when it was noted: somebody else has written that.
        let ahead = Noted { offsets: [10, 0], ..noted(named(&a)) };
        assert_eq!(Single::of(ahead, &mut socket()).unwrap().settle().unwrap_err(), Unaccounted::Unknown);
        assert!(Single::of(noted(named(&client)), &mut socket()).is_none(), "another socket");
        assert!(Single::of(noted(named(&a)), &mut [].into_iter()).is_none());
    }

    #[test]
    fn a_packet_has_no_more_descriptors_than_it_can() {
        let noted = |pipes: usize| {
            let named = Named { fd: 1, id: 1 };
            let pipe = |at: usize| (at < pipes).then_some(named);
            let server = (pipes < 2).then_some(named);
            Noted { client: named, server, offsets: [0, 0], pipes: [pipe(0), pipe(1)], note: vec![] }
        };
        let all: Vec<Noted> = (0..100).map(|at| noted(at % 3)).collect();
        let packets = packets(all.clone());
        assert!(packets.iter().all(|packet| packet.iter().flat_map(numbers).count() <= MAX_FDS));
        assert!(packets.len() <= 25, "{}", packets.len());
        assert_eq!(packets.concat(), all);
        assert!(super::packets(vec![]).is_empty());
    }
}
