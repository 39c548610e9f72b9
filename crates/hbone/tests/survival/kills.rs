//! A process that carries bytes is killed in the middle of its work, and another one goes on with the same sockets. What the first one
//! has noted is not asked for: only what the kernel knows.

use crate::{
    kernel::{given, taken},
    pattern,
    sys::{self, Process, pair},
};
use std::{
    io::{self, Write},
    net::{Shutdown, TcpStream},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

const KILLS: u64 = 100;
const CHUNK: usize = 64 << 10;

/// Somebody who sends until told to stop, and somebody who compares. Both tell how many bytes there were.
pub struct Load {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Load {
    pub fn start(mut said: TcpStream, mut heard: TcpStream) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_told = stop.clone();
        let sender = thread::spawn(move || {
            let (mut block, mut at) = (vec![0; CHUNK], 0);
            while !is_told.load(Relaxed) {
                pattern::fill(at, &mut block);
                said.write_all(&block).unwrap();
                at += block.len() as u64;
            }
            said.shutdown(Shutdown::Write).unwrap();
            at
        });
        Self { stop, sender, receiver: thread::spawn(move || pattern::expect(&mut heard)) }
    }

    /// Nothing more is sent from now on.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// How many bytes were sent, and how many have come.
    pub fn end(self) -> (u64, u64) {
        (self.sender.join().unwrap(), self.receiver.join().unwrap())
    }
}

/// Kills whoever relays, again and again. Before the next one begins, `settle` is given the socket that is read from, the bytes that were
/// taken from it, and those that the other was given.
fn killed_again_and_again(relay: &dyn Fn(RawFd, RawFd) -> i32, settle: &mut dyn FnMut(&TcpStream, u64, u64)) {
    let ((said, from), (to, heard)) = (pair(), pair());
    let (source, sink) = (from.as_raw_fd(), to.as_raw_fd());
    let load = Load::start(said, heard);
    for number in 0..KILLS {
        let process = Process::fork(|| relay(source, sink));
        // From before it has begun to some ms of bulk.
        thread::sleep(Duration::from_micros(100 + number * 797 % 3000));
        process.kill();
        // The SYN counts.
        settle(&from, taken(&from), given(&to) - 1);
    }
    load.stop();
    assert_eq!(Process::fork(|| relay(source, sink)).end(), Some(0));
    let (sent, received) = load.end();
    assert_eq!(received, sent);
    println!("{KILLS} kills, {} MiB", sent >> 20);
}

/// Looks at what has come, sends it on, and only then takes it.
fn peeks(from: RawFd, to: RawFd) -> i32 {
    let mut buffer = [0; CHUNK];
    loop {
        let seen = match sys::recv(&from, &mut buffer, libc::MSG_PEEK) {
            Ok(0) => return i32::from(sys::end(to).is_err()),
            Ok(seen) => seen,
            Err(_) => return 2,
        };
        let Ok(sent) = sys::send(&to, &buffer[..seen]) else { return 3 };
        if sys::consume(&from, sent).is_err() {
            return 4;
        }
    }
}

/// Of what was sent and not taken any more, the kernel has both numbers: the next one takes it, and sends it to nobody.
#[test]
fn who_sends_before_it_takes_may_be_killed_at_any_time() {
    let mut between = 0;
    killed_again_and_again(&peeks, &mut |from, taken, given| {
        let ahead = given.checked_sub(taken).expect("nothing is taken before it was sent") as usize;
        assert!(ahead <= CHUNK, "{ahead}");
        between += u64::from(ahead > 0);
        sys::consume(from, ahead).unwrap();
    });
    println!("between the two: {between}");
    assert!(between > 0, "none was killed where it matters");
}

/// Moves what has come into the pipe, and then on; first what the one before has left there.
fn splices(from: RawFd, to: RawFd, out_of: RawFd, into: RawFd) -> i32 {
    loop {
        let mut held = sys::queued(&out_of, libc::FIONREAD) as usize;
        while held > 0 {
            match sys::splice(out_of, to, held) {
                Ok(0) | Err(_) => return 2,
                Ok(moved) => held -= moved,
            }
        }
        match sys::splice(from, into, CHUNK) {
            Ok(0) => return i32::from(sys::end(to).is_err()),
            Ok(_) => {}
            Err(_) => return 3,
        }
    }
}

/// Whoever has the pipe has all that was taken from the one socket and not given to the other.
#[test]
fn what_was_spliced_when_a_process_was_killed_is_in_the_pipe() {
    let (out_of, into) = io::pipe().unwrap();
    let (read, write) = (out_of.as_raw_fd(), into.as_raw_fd());
    let mut between = 0;
    killed_again_and_again(&|from, to| splices(from, to, read, write), &mut |_, taken, given| {
        let held = sys::queued(&out_of, libc::FIONREAD);
        assert_eq!(taken, given + held);
        between += u64::from(held > 0);
    });
    println!("in the pipe: {between}");
    assert!(between > 0, "none was killed where it matters");
}
