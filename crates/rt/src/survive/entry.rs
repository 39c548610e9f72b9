//! A connection as the table has it: what is written of it, in which order, and how it is read. Pure.
//!
//! Always true: a process may be killed between any two of the words that it writes, and then what is read is the connection as it was,
//! or nothing; and whatever the words are, reading them is harmless (`tests`).

use std::os::fd::RawFd;

/// Words of an entry.
pub const WORDS: usize = 128;

/// Is there a connection? The last word that is written.
const STATE: usize = 0;
/// Of the words from [`FIXED`] on, as far as they are used.
const SUM: usize = 1;
/// Of each direction: the end of its pipe, and which pipe that is.
const PIPES: [usize; 2] = [2, 4];
/// What does not change while the connection lasts.
const FIXED: usize = 6;
/// Behind it: the note.
const NOTE: usize = FIXED + 6;

/// Most bytes of a note.
pub const MOST_NOTE: usize = (WORDS - NOTE) * 8;

const OPEN: u64 = 0x6b61_7273_7405_0e01;
/// The same of a connection that has one socket, and is carried by a stream: the words of the other one are 0.
const SINGLE: u64 = 0x6b61_7273_7405_0e02;
/// With a descriptor: there is a pipe. (Without: 0.)
const PIPE: u64 = 0x7069_7065 << 32;
const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// A descriptor, and what it is one of, as the kernel tells it from all others: a socket's cookie, a pipe's inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its number in the process that has it.
    pub fd: RawFd,
    /// What it is one of.
    pub id: u64,
}

/// What does not change while a connection lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed<'a> {
    /// The socket of who has opened it; or the only one.
    pub client: Named,
    /// The socket of the other side. None: that is a stream.
    pub server: Option<Named>,
    /// Of what the client has said, and of what it is told: what the kernel counts as given to the one socket, less what it counts as
    /// taken from the other, when as much was given as was taken. (The SYN counts; and what was said before there was an entry.) Of an
    /// only socket: what the kernel counts as taken from it and as given to it, less what was taken and given by the stream's count.
    pub offsets: [u64; 2],
    /// Whose connection it is, in the words of who uses this.
    pub note: &'a [u8],
}

/// A connection that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// See [`Fixed`].
    pub client: Named,
    /// See [`Fixed`].
    pub server: Option<Named>,
    /// See [`Fixed`].
    pub offsets: [u64; 2],
    /// The pipes in which bytes may be, from the client and to it: their ends that are read.
    pub pipes: [Option<Named>; 2],
    /// See [`Fixed`].
    pub note: Vec<u8>,
}

/// Writes a connection, word by word, with the pipes that have bytes of it already. False, and nothing is written: its note is too long.
pub fn open(fixed: &Fixed<'_>, pipes: [Option<Named>; 2], put: &mut (impl FnMut(usize, u64) + ?Sized)) -> bool {
    if fixed.note.len() > MOST_NOTE {
        return false;
    }
    put(STATE, 0);
    let mut sum = SEED;
    for (at, word) in words(fixed).enumerate() {
        put(FIXED + at, word);
        sum = add(sum, word);
    }
    for (from_client, named) in [true, false].into_iter().zip(pipes) {
        pipe(from_client, named, put);
    }
    put(SUM, sum);
    put(STATE, if fixed.server.is_some() { OPEN } else { SINGLE });
    true
}

/// Writes which pipe has bytes of a direction from now on. None: it has none any more, and may be another connection's.
pub fn pipe(from_client: bool, pipe: Option<Named>, put: &mut (impl FnMut(usize, u64) + ?Sized)) {
    let at = PIPES[usize::from(!from_client)];
    match pipe {
        Some(Named { fd, id }) => {
            put(at + 1, id);
            put(at, PIPE | u64::from(fd as u32));
        }
        None => put(at, 0),
    }
}

/// Writes that there is none any more: before a descriptor of it is closed.
pub fn close(put: &mut (impl FnMut(usize, u64) + ?Sized)) {
    put(STATE, 0);
}

/// The connection, if there is one and its words are as they were written.
pub fn read(words: &[u64; WORDS]) -> Option<Noted> {
    let has_both = match words[STATE] {
        OPEN => true,
        SINGLE => false,
        _ => return None,
    };
    let [fds, client, server, up, down, length] = *words[FIXED..].first_chunk::<6>()?;
    let length = usize::try_from(length).ok().filter(|length| *length <= MOST_NOTE)?;
    let fixed = words.get(FIXED..NOTE + length.div_ceil(8))?;
    if fixed.iter().fold(SEED, |sum, word| add(sum, *word)) != words[SUM] {
        return None;
    }
    let pipes = PIPES.map(|at| match words[at] {
        0 => Ok(None),
        word if word & !u64::from(u32::MAX) == PIPE => {
            fd(word as u32).map(|fd| Some(Named { fd, id: words[at + 1] })).ok_or(())
        }
        _ => Err(()),
    });
    let [Ok(of_client), Ok(to_client)] = pipes else { return None };
    Some(Noted {
        client: Named { fd: fd((fds >> 32) as u32)?, id: client },
        server: if has_both { Some(Named { fd: fd(fds as u32)?, id: server }) } else { None },
        offsets: [up, down],
        pipes: [of_client, to_client],
        note: words[NOTE..].iter().flat_map(|word| word.to_le_bytes()).take(length).collect(),
    })
}

/// A descriptor's number.
fn fd(number: u32) -> Option<RawFd> {
    RawFd::try_from(number).ok()
}

fn words(fixed: &Fixed<'_>) -> impl Iterator<Item = u64> {
    let Fixed { client, offsets: [up, down], note, .. } = *fixed;
    let server = fixed.server.unwrap_or(Named { fd: 0, id: 0 });
    let fds = (u64::from(client.fd as u32) << 32) | u64::from(server.fd as u32);
    let note_words = note.chunks(8).map(|bytes| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    });
    [fds, client.id, server.id, up, down, note.len() as u64].into_iter().chain(note_words)
}

/// Told from any other word in any other place, by chance. Who means to write a wrong sum, can: nothing is decided by it.
fn add(sum: u64, word: u64) -> u64 {
    (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn named(fd: RawFd, id: u64) -> Named {
        Named { fd, id }
    }

    fn noted(fixed: &Fixed<'_>, pipes: [Option<Named>; 2]) -> Noted {
        let Fixed { client, server, offsets, note } = *fixed;
        Noted { client, server, offsets, pipes, note: note.to_vec() }
    }

    /// Words that are written after each other, and what is to be read after the last of each step.
    #[derive(Default)]
    struct Script {
        writes: Vec<(usize, u64)>,
        steps: Vec<(usize, Option<Noted>)>,
    }

    impl Script {
        fn step(&mut self, write: impl FnOnce(&mut dyn FnMut(usize, u64)), then: Option<Noted>) {
            let writes = &mut self.writes;
            write(&mut |at, word| writes.push((at, word)));
            self.steps.push((writes.len(), then));
        }
    }

    #[test]
    fn killed_between_any_two_words_it_is_read_as_it_was_or_not_at_all() {
        let long: Vec<u8> = (0..MOST_NOTE).map(|n| n as u8).collect();
        let one = Fixed { client: named(5, 77), server: Some(named(6, 78)), offsets: [1, u64::MAX], note: &long };
        let other = Fixed { client: named(9, 80), server: Some(named(5, 81)), offsets: [1, 0], note: b"short" };
        let single = Fixed { client: named(7, 90), server: None, offsets: [3, 4], note: b"a stream" };
        let [up, down] = [named(11, 500), named(13, 501)];
        let mut script = Script::default();
        script.step(|put| assert!(open(&one, [None, None], put)), Some(noted(&one, [None, None])));
        script.step(|put| pipe(true, Some(up), put), Some(noted(&one, [Some(up), None])));
        script.step(|put| pipe(false, Some(down), put), Some(noted(&one, [Some(up), Some(down)])));
        script.step(|put| pipe(true, None, put), Some(noted(&one, [None, Some(down)])));
        script.step(|put| close(put), None);
        // The next one in the same place; what the first has left there is not its own.
        script.step(|put| assert!(open(&other, [None, Some(up)], put)), Some(noted(&other, [None, Some(up)])));
        script.step(|put| close(put), None);
        script.step(|put| assert!(open(&single, [None, None], put)), Some(noted(&single, [None, None])));
        script.step(|put| close(put), None);
        let (mut memory, mut before, mut step) = ([0; WORDS], None, 0);
        for (written, (at, word)) in script.writes.iter().enumerate() {
            memory[*at] = *word;
            let now = read(&memory);
            let (end, then) = &script.steps[step];
            match written + 1 == *end {
                true => {
                    assert_eq!(now, *then, "after step {step}");
                    (before, step) = (now, step + 1);
                }
                // Within opening there is nothing; within another step, what was before it.
                false if before.is_none() => assert_eq!(now, None, "within step {step}"),
                false => assert_eq!(now, before, "within step {step}"),
            }
        }
        assert_eq!(step, script.steps.len());
    }

    #[test]
    fn what_is_too_long_is_not_written() {
        let long = [0; MOST_NOTE + 1];
        let fixed = Fixed { client: named(5, 1), server: Some(named(6, 2)), offsets: [0, 0], note: &long };
        assert!(!open(&fixed, [None, None], &mut |_, _| panic!("it writes")));
    }

    /// Wild writes, of one bit to all: never more than another connection's words could be, and never a panic.
    #[test]
    fn words_that_nobody_has_written_are_harmless() {
        let note: Vec<u8> = (0..300).map(|n| n as u8).collect();
        let fixed = Fixed { client: named(5, 77), server: Some(named(6, 78)), offsets: [1, 0], note: &note };
        let mut whole = [0; WORDS];
        assert!(open(&fixed, [None, None], &mut |at, word| whole[at] = word));
        let good = read(&whole).unwrap();
        for seed in 0..20_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut words = whole;
            match seed % 3 {
                0 => {
                    words[random.random_range(0..NOTE + note.len().div_ceil(8))] ^=
                        1u64 << random.random_range(0..64u32)
                }
                1 => words[random.random_range(0..WORDS)] = random.random::<u64>(),
                _ => words.iter_mut().skip(1).for_each(|word| *word = random.random::<u64>()),
            }
            if let Some(read) = read(&words) {
                // Pipes are not in the sum: they are compared with what the kernel has.
                assert_eq!(Noted { pipes: [None, None], ..read }, good, "seed {seed}");
            }
        }
    }
}
