//! What a successor keeps of connections that it would take and that are not its own yet. Pure.
//!
//! Bounded: whoever is on the other side can be a process that has gone wrong.

use bytes::{Bytes, BytesMut};
use karst_api::handover::{Go, Rest};
use karst_hbone::copy::Left;
use std::collections::HashMap;

/// Connections that one leaving process may have under way; more is a fault. (It asks for at most half as many at a time.)
pub const MAX_WAITING: usize = 128;
/// Bytes of one connection that one of its sides has not taken yet; one with more is reset when it comes. A pipe and a read are at most
/// 1.1 MiB each way, a stream's window 4 MiB; to an application that takes nothing there is a window more after each hand-over.
pub const MAX_REST: usize = 16 << 20;
/// The same of all connections under way.
const MAX_REST_OF_ALL: usize = 64 << 20;

/// What the other process must not say. The talk ends, and what it has stays its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The number is taken.
    #[error("two connections with one number")]
    Twice,
    /// Nobody has accepted it.
    #[error("a connection that was not accepted")]
    Unknown,
    /// See [`MAX_WAITING`].
    #[error("more than {MAX_WAITING} connections under way")]
    TooMany,
    /// See [`MAX_REST`]. It is this connection's, and stops no other.
    #[error("more bytes under way than a connection may have")]
    TooMuch,
}

/// Connections by number; `W` is who waits for one.
#[derive(Debug)]
pub struct Table<W> {
    waiting: HashMap<u64, Waiting<W>>,
    held: usize,
}

#[derive(Debug)]
struct Waiting<W> {
    who: W,
    up: BytesMut,
    down: BytesMut,
    /// There was more; it is gone.
    is_too_much: bool,
}

impl<W> Table<W> {
    /// With nothing under way.
    pub fn new() -> Self {
        Self { waiting: HashMap::new(), held: 0 }
    }

    /// A connection is offered.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn offered(&mut self, id: u64, who: W) -> Result<(), Fault> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(Fault::TooMany);
        }
        let waiting = Waiting { who, up: BytesMut::new(), down: BytesMut::new(), is_too_much: false };
        match self.waiting.insert(id, waiting) {
            None => Ok(()),
            Some(_) => Err(Fault::Twice),
        }
    }

    /// Some of its bytes. (If they are too many, `go` says so.)
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn rest(&mut self, id: u64, rest: &Rest) -> Result<(), Fault> {
        let waiting = self.waiting.get_mut(&id).ok_or(Fault::Unknown)?;
        if waiting.is_too_much {
            return Ok(());
        }
        let to = if rest.to_client { &mut waiting.down } else { &mut waiting.up };
        if to.len() + rest.data.len() > MAX_REST || self.held + rest.data.len() > MAX_REST_OF_ALL {
            self.held -= waiting.up.len() + waiting.down.len();
            (waiting.up, waiting.down, waiting.is_too_much) = (BytesMut::new(), BytesMut::new(), true);
            return Ok(());
        }
        to.extend_from_slice(&rest.data);
        self.held += rest.data.len();
        Ok(())
    }

    /// It is ours: who waits for it, and what is under way in it, from the client and to it.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn go(&mut self, id: u64, go: &Go) -> Result<(W, Left, Left), Fault> {
        let Waiting { who, up, down, is_too_much } = self.take(id).ok_or(Fault::Unknown)?;
        if is_too_much {
            return Err(Fault::TooMuch);
        }
        let left = |rest: BytesMut, ended: bool| Left { rest: Bytes::from(rest), ended };
        Ok((who, left(up, go.client_ended), left(down, go.server_ended)))
    }

    /// It was refused, or has ended, or stays where it is. Both sides may say so at the same time.
    pub fn withdrawn(&mut self, id: u64) {
        self.take(id);
    }

    fn take(&mut self, id: u64) -> Option<Waiting<W>> {
        let waiting = self.waiting.remove(&id)?;
        self.held -= waiting.up.len() + waiting.down.len();
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::pieces::pieces;
    use karst_api::handover::given::What;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// One direction of a connection: what its sender has sent, what its receiver has, and what is between them, all told.
    #[derive(Default)]
    struct Way {
        said: Vec<u8>,
        read: usize,
        heard: Vec<u8>,
        /// The sender has ended; its receiver has heard of it, so many times.
        sender_ended: bool,
        heard_end: usize,
    }

    /// A process that carries a connection: it may only while it is the owner.
    #[derive(Default)]
    struct Process {
        up: Left,
        down: Left,
    }

    impl Process {
        /// Reads some, or writes some, of one direction.
        fn turn(&mut self, random: &mut StdRng, ways: &mut [Way; 2]) {
            let at = random.random_range(0..2);
            let (left, way) = (if at == 0 { &mut self.up } else { &mut self.down }, &mut ways[at]);
            if !left.rest.is_empty() {
                // The receiver takes some.
                let taken = left.rest.split_to(random.random_range(0..=left.rest.len()));
                way.heard.extend_from_slice(&taken);
            } else if way.read < way.said.len() {
                let to = random.random_range(way.read + 1..=way.said.len());
                left.rest = Bytes::copy_from_slice(&way.said[way.read..to]);
                way.read = to;
            } else if way.sender_ended && !left.ended {
                (left.ended, way.heard_end) = (true, way.heard_end + 1);
            }
        }
    }

    /// Passes the connection on. The other process dies, or the talk breaks, before any of the packets: then nothing has happened.
    fn pass_on(random: &mut StdRng, from: &Process) -> Option<Process> {
        let mut table = Table::new();
        table.offered(7, "worker").unwrap();
        // Others are under way, too.
        table.offered(8, "other").unwrap();
        let (packets, dies) = (pieces(7, &from.up, &from.down, Go::default()), random.random_bool(0.3));
        let last = if dies { random.random_range(0..packets.len()) } else { packets.len() };
        let mut arrived = None;
        for given in packets.into_iter().take(last) {
            match given.what.unwrap() {
                What::Rest(rest) => table.rest(given.id, &rest).unwrap(),
                What::Go(go) => {
                    let (who, up, down) = table.go(given.id, &go).unwrap();
                    assert_eq!(who, "worker");
                    arrived = Some(Process { up, down });
                }
                What::Offer(_) | What::Withdrawn(_) => unreachable!("they are not among the pieces"),
            }
        }
        assert_eq!(arrived.is_some(), !dies, "the last packet, and only it, makes it the other's");
        assert!(dies || table.held == 0);
        arrived
    }

    /// Random bytes, ends, hand-overs and deaths in any order: both sides hear what the other one has said, once, in order, and its
    /// end once.
    #[test]
    fn whoever_carries_a_connection_its_bytes_are_the_same() {
        for seed in 0..2000 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut ways, mut process, mut passed) = (<[Way; 2]>::default(), Process::default(), 0);
            let most = if seed % 400 == 0 { 200_000 } else { 300 };
            for _ in 0..random.random_range(10..200) {
                match random.random_range(0..10) {
                    0 => {
                        if let Some(next) = pass_on(&mut random, &process) {
                            (process, passed) = (next, passed + 1);
                        }
                    }
                    1..=3 => {
                        let way = &mut ways[random.random_range(0..2)];
                        if !way.sender_ended {
                            way.said.extend((0..random.random_range(0..most)).map(|n| (n as u64 ^ seed) as u8));
                            way.sender_ended = random.random_bool(0.05);
                        }
                    }
                    _ => process.turn(&mut random, &mut ways),
                }
                assert!(ways.iter().all(|way| way.said.starts_with(&way.heard)), "seed {seed}");
            }
            // Both say all they have, and end.
            ways.iter_mut().for_each(|way| way.sender_ended = true);
            while ways.iter().any(|way| way.heard_end == 0) {
                process.turn(&mut random, &mut ways);
                if random.random_bool(0.1) {
                    process = pass_on(&mut random, &process).unwrap_or(process);
                }
            }
            for way in &ways {
                assert!(way.heard == way.said && way.heard_end == 1, "seed {seed}, passed on {passed} times");
            }
        }
    }

    #[test]
    fn what_nobody_has_accepted_is_a_fault() {
        let mut table = Table::new();
        let rest = |length: usize| Rest { to_client: true, data: vec![1; length] };
        assert_eq!(table.rest(1, &rest(1)), Err(Fault::Unknown));
        assert_eq!(table.go(1, &Go::default()).err(), Some(Fault::Unknown));
        table.offered(1, ()).unwrap();
        assert_eq!(table.offered(1, ()), Err(Fault::Twice));
        table.withdrawn(1);
        table.withdrawn(1);
        assert_eq!(table.go(1, &Go::default()).err(), Some(Fault::Unknown));
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let mut table = Table::new();
        for id in 0..MAX_WAITING as u64 {
            table.offered(id, ()).unwrap();
        }
        assert_eq!(table.offered(1000, ()), Err(Fault::TooMany));
        let all = Rest { to_client: false, data: vec![0; MAX_REST] };
        for id in 0..(MAX_REST_OF_ALL / MAX_REST) as u64 {
            table.rest(id, &all).unwrap();
        }
        // One more of all, and one more of one: these are lost, and no other.
        let one = |to_client: bool| Rest { to_client, data: vec![0] };
        table.rest(100, &one(true)).unwrap();
        table.rest(1, &one(false)).unwrap();
        table.rest(1, &all).unwrap();
        for id in [100, 1] {
            assert_eq!(table.go(id, &Go::default()).err(), Some(Fault::TooMuch));
        }
        // What has gone on makes room.
        let (_, up, _) = table.go(0, &Go::default()).unwrap();
        assert_eq!(up.rest.len(), MAX_REST);
        table.rest(101, &one(true)).unwrap();
        assert_eq!(table.go(101, &Go::default()).unwrap().2.rest.len(), 1);
        for id in 2..(MAX_REST_OF_ALL / MAX_REST) as u64 {
            table.go(id, &Go::default()).unwrap();
        }
        assert_eq!(table.held, 0);
    }
}
