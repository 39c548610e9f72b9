//! What the kernel's numbers of a connection say that the dead process had done last, and what is left to be done. Pure.
//!
//! A process takes bytes out of a socket in two ways (`karst_hbone::copy`). It looks at them, gives them to the other socket, and only
//! then takes them: so as many were given as were taken, or more by what it had given last. Or it moves them into a pipe, and from there
//! to the other socket: so as many were taken as were given and are in the pipe. Whatever else the numbers are, bytes have been lost or
//! somebody else has had a hand in it, and nobody may guess.

/// Most bytes that are looked at in one go.
pub const LOOK: usize = 64 << 10;

/// One direction of a connection of which nobody takes or gives anything any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// Bytes that were taken from who sends, and that wait there.
    pub taken: u64,
    /// See [`Direction::taken`].
    pub waiting: u64,
    /// Who sends has ended.
    pub sender_ended: bool,
    /// Bytes that who receives was given, as the kernel counts them.
    pub given: u64,
    /// And less these (`entry::Fixed::offsets`).
    pub offset: u64,
    /// Bytes in the pipe between them.
    pub in_pipe: u64,
    /// Who receives was told that nothing more comes.
    pub ended: bool,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unaccounted {
    /// Its sockets are closed, or are none.
    #[error("its sockets are not open")]
    Closed,
    /// Neither the one nor the other way.
    #[error("{given} bytes were given and {taken} taken, and {in_pipe} are in a pipe")]
    Bytes {
        /// To the one socket.
        given: u64,
        /// From the other.
        taken: u64,
        /// Between them.
        in_pipe: u64,
    },
    /// An end was passed on that has not come, or not yet.
    #[error("an end was passed on before it had come")]
    End,
    /// The kernel does not say.
    #[error("the kernel does not tell how far it has come")]
    Unknown,
}

impl Direction {
    /// How many bytes that wait were given already: they are to be taken, and given to nobody.
    ///
    /// # Errors
    /// See [`Unaccounted`].
    pub fn ahead(&self) -> Result<usize, Unaccounted> {
        let given = self.given.wrapping_sub(self.offset);
        let Self { taken, in_pipe, .. } = *self;
        let unaccounted = Unaccounted::Bytes { given, taken, in_pipe };
        let ahead = match (given.checked_sub(taken), in_pipe) {
            (Some(ahead), 0) => ahead,
            _ if taken.checked_sub(given) == Some(in_pipe) => 0,
            _ => return Err(unaccounted),
        };
        let ahead = usize::try_from(ahead).ok().filter(|ahead| *ahead <= LOOK).ok_or(unaccounted)?;
        if ahead as u64 > self.waiting {
            return Err(unaccounted);
        }
        let is_all = self.sender_ended && self.waiting == 0 && in_pipe == 0;
        if self.ended && !is_all { Err(Unaccounted::End) } else { Ok(ahead) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// A direction, and what of it the applications and the process have done.
    #[derive(Default)]
    struct Model {
        sent: u64,
        taken: u64,
        given: u64,
        in_pipe: u64,
        sender_ended: bool,
        ended: bool,
    }

    impl Model {
        fn of_kernel(&self, offset: u64) -> Direction {
            let Self { sent, taken, given, in_pipe, sender_ended, ended } = *self;
            let given = given.wrapping_add(offset);
            Direction { taken, waiting: sent - taken, sender_ended, given, offset, in_pipe, ended }
        }
    }

    /// A process that is killed after any of its calls, and another that goes on, again and again: each byte comes once, and the end after
    /// the last one.
    #[test]
    fn whatever_was_done_last_each_byte_is_given_once() {
        for seed in 0..3000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut way = Model::default();
            let offset = [1, 0, u64::MAX, 12_345][seed as usize % 4];
            let mut kills = 0;
            while !way.ended {
                if !way.sender_ended {
                    way.sent += random.random_range(0..200_000);
                    way.sender_ended = random.random_bool(0.1);
                }
                let waiting = way.sent - way.taken;
                // Calls of one round, of which not all may be made.
                let calls = random.random_range(0..4);
                if way.in_pipe > 0 {
                    let moved = if calls == 3 { way.in_pipe } else { random.random_range(0..=way.in_pipe) };
                    (way.in_pipe, way.given) = (way.in_pipe - moved, way.given + moved);
                } else if waiting == 0 {
                    way.ended = way.sender_ended && calls > 0;
                } else if random.random_bool(0.5) {
                    let seen = waiting.min(LOOK as u64);
                    let given = random.random_range(0..=seen);
                    way.given += if calls > 0 { given } else { 0 };
                    way.taken += if calls > 1 { given } else { 0 };
                } else if calls > 0 {
                    let moved = random.random_range(1..=waiting);
                    (way.taken, way.in_pipe) = (way.taken + moved, moved);
                }
                let was_cut_short = way.given > way.taken;
                if was_cut_short || random.random_bool(0.3) {
                    kills += 1;
                    let ahead = way.of_kernel(offset).ahead().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                    way.taken += ahead as u64;
                    assert_eq!(way.taken, way.given + way.in_pipe, "seed {seed}");
                }
            }
            assert_eq!((way.given, way.taken), (way.sent, way.sent), "seed {seed}, {kills} kills");
            assert_eq!(way.of_kernel(offset).ahead(), Ok(0));
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let good = Direction { taken: 100, waiting: 50, given: 101, offset: 1, ..Direction::default() };
        assert_eq!(good.ahead(), Ok(0));
        assert_eq!(Direction { given: 151, ..good }.ahead(), Ok(50));
        let bytes = |way: Direction| matches!(way.ahead(), Err(Unaccounted::Bytes { .. }));
        assert!(bytes(Direction { given: 152, ..good }), "more than waits");
        assert!(bytes(Direction { given: 100, ..good }), "a byte is lost");
        assert!(bytes(Direction { given: 0, ..good }) && bytes(Direction { given: u64::MAX, ..good }));
        assert!(bytes(Direction { in_pipe: 1, ..good }) && bytes(Direction { given: 95, in_pipe: 5, ..good }));
        assert_eq!(Direction { given: 96, in_pipe: 5, ..good }.ahead(), Ok(0));
        let far = Direction { given: 101 + LOOK as u64, waiting: 1 << 20, ..good };
        assert_eq!(far.ahead(), Ok(LOOK));
        assert!(bytes(Direction { given: far.given + 1, ..far }), "more than is looked at");
        let ended = Direction { waiting: 0, sender_ended: true, ended: true, ..good };
        assert_eq!(ended.ahead(), Ok(0));
        for early in [
            Direction { sender_ended: false, ..ended },
            Direction { waiting: 1, ..ended },
            Direction { given: 96, in_pipe: 5, ..ended },
        ] {
            assert_eq!(early.ahead(), Err(Unaccounted::End));
        }
    }
}
