//! Connections that are opened and ended, while another process holds their sockets, too: by descriptors that it is passed
//! (`SCM_RIGHTS`), or by a table of descriptors that it shares.

use crate::{
    figures::Spread,
    sys::{Process, thread_cpu},
};
use karst_rt::seqpacket::Packets;
use socket2::{Domain, SockRef, Socket, Type};
use std::{
    collections::HashMap,
    io::{self, Read},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

/// Connections of one run, and how many of them are open at a time.
const CONNECTIONS: usize = 2000;
const BATCH: usize = 8;
/// Rounds, as many as there is time for.
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=9;
const TIME: Duration = Duration::from_secs(15);

/// Who holds the sockets beside their process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nobody,
    /// Another process shares all descriptors.
    Table,
    /// The agent is passed those of one connection at a time.
    Agent,
    /// The agent is passed those of a batch at a time.
    AgentTogether,
}

impl Held {
    const ALL: [Self; 4] = [Self::Nobody, Self::Table, Self::Agent, Self::AgentTogether];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Table => "shared table",
            Self::Agent => "agent",
            Self::AgentTogether => "agent, 8 together",
        }
    }

    /// Connections of one packet to the agent.
    fn together(self) -> Option<usize> {
        match self {
            Self::Nobody | Self::Table => None,
            Self::Agent => Some(1),
            Self::AgentTogether => Some(BATCH),
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The connections from this one on, so many: with descriptors they are to be held, without any more.
fn packet(first: usize, count: usize) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[..8].copy_from_slice(&(first as u64).to_le_bytes());
    packet[8..].copy_from_slice(&(count as u64).to_le_bytes());
    packet
}

/// The agent. Its CPU time.
fn hold(worker: OwnedFd) -> Duration {
    let runtime = runtime();
    let began = thread_cpu();
    runtime.block_on(async {
        let worker = Packets::from_fd(worker).unwrap();
        let (mut held, mut seen) = (HashMap::<u64, [OwnedFd; 2]>::new(), 0);
        loop {
            let (packet, sockets) = worker.recv(16).await.unwrap();
            let Some((first, count)) = packet.split_at_checked(8) else { break };
            let [first, count] = [first, count].map(|number| u64::from_le_bytes(number.try_into().unwrap()));
            if sockets.is_empty() {
                assert!((first..first + count).all(|number| held.remove(&number).is_some()));
                continue;
            }
            let mut sockets = sockets.into_iter();
            for number in first..first + count {
                held.insert(number, [sockets.next().unwrap(), sockets.next().unwrap()]);
                seen += 1;
            }
            assert!(sockets.next().is_none());
        }
        assert!(held.is_empty() && seen == CONNECTIONS, "{} of {seen}", held.len());
    });
    thread_cpu() - began
}

/// The worker: accepts, connects, and ends both.
async fn work(listener: TcpListener, to: SocketAddr, agent: Option<(OwnedFd, usize)>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let agent = match agent {
        Some((socket, together)) => Some((Packets::from_fd(socket)?, together)),
        None => None,
    };
    for first in (0..CONNECTIONS).step_by(BATCH) {
        let mut open = Vec::with_capacity(BATCH);
        for count in 1..=BATCH {
            let (client, _) = listener.accept().await?;
            let server = tokio::net::TcpStream::connect(to).await?;
            open.push((client, server));
            if let Some((agent, together)) = &agent
                && count % together == 0
            {
                let sockets = open[count - together..].iter().flat_map(|(one, other)| [one.as_fd(), other.as_fd()]);
                let sockets: Vec<BorrowedFd<'_>> = sockets.collect();
                agent.send(&packet(first + count - together, *together), &sockets).await?;
            }
        }
        for (client, server) in &open {
            // A close would be none while the agent has them.
            SockRef::from(client).shutdown(Shutdown::Both)?;
            SockRef::from(server).shutdown(Shutdown::Both)?;
        }
        drop(open);
        if let Some((agent, together)) = &agent {
            for number in (first..first + BATCH).step_by(*together) {
                agent.send(&packet(number, *together), &[]).await?;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Run {
    /// CPU microseconds of one connection.
    worker: f64,
    agent: f64,
    /// Connections in a second.
    rate: f64,
}

fn run(held: Held) -> Run {
    let (listener, application) = (listen(), listen());
    let (at, to) = (listener.local_addr().unwrap(), application.local_addr().unwrap());
    let _holder = (held == Held::Table).then(Process::with_our_descriptors);
    let (own, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    let agent = held.together().map(|_| thread::spawn(move || hold(other.into())));
    let began = Instant::now();
    let server = thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            assert_eq!(application.accept().unwrap().0.read(&mut [0; 1]).unwrap(), 0);
        }
    });
    let client = thread::spawn(move || {
        for _ in 0..CONNECTIONS / BATCH {
            let mut open: Vec<TcpStream> = (0..BATCH).map(|_| TcpStream::connect(at).unwrap()).collect();
            assert!(open.iter_mut().all(|one| one.read(&mut [0; 1]).unwrap() == 0));
        }
    });
    let runtime = runtime();
    let before = thread_cpu();
    runtime.block_on(work(listener, to, held.together().map(|together| (own.into(), together)))).unwrap();
    let worker = thread_cpu() - before;
    client.join().unwrap();
    server.join().unwrap();
    let rate = CONNECTIONS as f64 / began.elapsed().as_secs_f64();
    let agent = agent.map_or(Duration::ZERO, |agent| agent.join().unwrap());
    let [worker, agent] = [worker, agent].map(|cpu| cpu.as_secs_f64() * 1e6 / CONNECTIONS as f64);
    Run { worker, agent, rate }
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[test]
fn an_agent_holds_each_connection_until_it_has_ended() {
    // What it holds is asserted there.
    assert!(Held::ALL.into_iter().all(|held| run(held).rate > 0.0));
}

/// All in turn, round by round; each is compared with nobody's holding in the same round.
pub fn measure() {
    run(Held::Nobody);
    let (began, mut rounds) = (Instant::now(), Vec::<[Run; 4]>::new());
    while rounds.len() < *ROUNDS.start() || (rounds.len() < *ROUNDS.end() && began.elapsed() < TIME) {
        rounds.push(Held::ALL.map(run));
    }
    println!(
        "\nNew connections: accept, connect, end; {} rounds of {CONNECTIONS}; medians (low to high).\n",
        rounds.len()
    );
    println!("| held by | worker, CPU us | agent, CPU us | both, CPU us more | both, of nobody's | connections/s |");
    println!("|---|---|---|---|---|---|");
    for (at, held) in Held::ALL.into_iter().enumerate() {
        let all = |figure: fn(&Run) -> f64| Spread::of(rounds.iter().map(|round| figure(&round[at]))).median;
        let both = |run: &Run| run.worker + run.agent;
        let more = Spread::of(rounds.iter().map(|round| both(&round[at]) - both(&round[0]))).median;
        let ratio = Spread::of(rounds.iter().map(|round| both(&round[at]) / both(&round[0])));
        println!(
            "| {} | {:.1} | {:.1} | {more:+.1} | {ratio} | {:.0} |",
            held.name(),
            all(|run| run.worker),
            all(|run| run.agent),
            all(|run| run.rate)
        );
    }
}
