//! Bulk in one direction, through one process in the middle: a thread that sends, one that carries, one that receives.

use crate::{
    figures::Spread,
    pattern,
    shared::Shared,
    sys::{pair, thread_cpu},
    ways::Way,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Bytes of one run.
const BYTES: u64 = 256 << 20;
/// Of one write of the sender.
const BLOCK: usize = 128 << 10;
/// Rounds of all ways, as many as there is time for.
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=15;
const TIME: Duration = Duration::from_secs(30);

/// Carries what is sent to who receives it; what that says, and the CPU time of the thread that has carried.
fn through<T: Send + 'static>(
    way: Way,
    send: impl FnOnce(&mut TcpStream) + Send + 'static,
    receive: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (T, Duration) {
    let ((mut said, from), (to, heard)) = (pair(), pair());
    let mut shared = Shared::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sender = thread::spawn(move || {
        send(&mut said);
        said.shutdown(Shutdown::Write).unwrap();
        // Until the other direction has ended, too.
        assert_eq!(said.read(&mut [0; 1]).unwrap(), 0);
    });
    let receiver = thread::spawn(move || receive(heard));
    let began = thread_cpu();
    runtime.block_on(async {
        let [from, to] = [from, to].map(|end| {
            end.set_nonblocking(true).unwrap();
            tokio::net::TcpStream::from_std(end).unwrap()
        });
        way.carry(from, to, &mut shared).await.unwrap();
    });
    let cpu = thread_cpu() - began;
    sender.join().unwrap();
    (receiver.join().unwrap(), cpu)
}

#[test]
fn every_way_carries_what_was_said() {
    const BLOCKS: u64 = 100;
    for way in Way::ALL {
        if !way.is_possible() {
            println!("NOT CHECKED: {} (this kernel has no SO_PEEK_OFF of TCP)", way.name());
            continue;
        }
        let send = |said: &mut TcpStream| {
            let mut block = vec![0; BLOCK];
            for number in 0..BLOCKS {
                pattern::fill(number * BLOCK as u64, &mut block);
                said.write_all(&block).unwrap();
            }
        };
        let (heard, _) = through(way, send, |mut heard| pattern::expect(&mut heard));
        assert_eq!(heard, BLOCKS * BLOCK as u64, "{way:?}");
    }
}

#[derive(Clone, Copy)]
struct Run {
    gbit: f64,
    /// CPU seconds per GB of the thread that carries.
    cpu: f64,
}

fn run(way: Way) -> Run {
    let send = |said: &mut TcpStream| {
        let block = vec![0; BLOCK];
        for _ in 0..BYTES / BLOCK as u64 {
            said.write_all(&block).unwrap();
        }
    };
    let receive = |mut heard: TcpStream| {
        let (mut buffer, mut count) = (vec![0; 256 << 10], 0);
        loop {
            match heard.read(&mut buffer).unwrap() {
                0 => return (count, Instant::now()),
                length => count += length as u64,
            }
        }
    };
    let began = Instant::now();
    let ((count, ended), cpu) = through(way, send, receive);
    assert_eq!(count, BYTES);
    let giga = BYTES as f64 / 1e9;
    Run { gbit: giga * 8.0 / (ended - began).as_secs_f64(), cpu: cpu.as_secs_f64() / giga }
}

/// All ways in turn, round by round; each is compared with its base in the same round.
pub fn measure() {
    let ways: Vec<Way> = Way::ALL.into_iter().filter(|way| way.is_possible()).collect();
    // Memory and processor are awake after it.
    run(Way::Copy);
    let (began, mut rounds) = (Instant::now(), Vec::<Vec<Run>>::new());
    while rounds.len() < *ROUNDS.start() || (rounds.len() < *ROUNDS.end() && began.elapsed() < TIME) {
        let mut round = vec![None; ways.len()];
        for n in 0..ways.len() {
            // Another one is the first each time.
            let at = (n + rounds.len()) % ways.len();
            round[at] = Some(run(ways[at]));
        }
        rounds.push(round.into_iter().flatten().collect());
    }
    println!(
        "\nBulk, one connection, one direction; {} rounds of {} MiB; medians (low to high).\n",
        rounds.len(),
        BYTES >> 20
    );
    println!("| way | Gbit/s | Gbit/s, of its base | CPU s per GB | CPU, of its base | CPU s per GB more |");
    println!("|---|---|---|---|---|---|");
    for (at, way) in ways.iter().enumerate() {
        let base = ways.iter().position(|other| *other == way.base()).unwrap();
        let median = |figure: fn(&Run) -> f64| Spread::of(rounds.iter().map(|round| figure(&round[at]))).median;
        let ratio =
            |figure: fn(&Run) -> f64| Spread::of(rounds.iter().map(|round| figure(&round[at]) / figure(&round[base])));
        let more = Spread::of(rounds.iter().map(|round| round[at].cpu - round[base].cpu)).median;
        println!(
            "| {} | {:.2} | {} | {:.3} | {} | {more:+.3} |",
            way.name(),
            median(|run| run.gbit),
            ratio(|run| run.gbit),
            median(|run| run.cpu),
            ratio(|run| run.cpu)
        );
    }
}
