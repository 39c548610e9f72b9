//! Compressors of a worker. One holds some 300 KiB, whatever it compresses, and is used again: the time that it takes to make one is that
//! of compressing a page.

use flate2::{Compression, write::DeflateEncoder};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

/// Answers that one worker compresses at a time (40 MiB of compressors); others are sent as they are.
const MOST: usize = 128;
/// Compressors that are kept for the next answers.
const IDLE: usize = 8;
/// Between speed and size; zlib's own is 6, which takes twice the time for some per cent.
const LEVEL: u32 = 4;

/// Compresses into memory.
pub type Encoder = DeflateEncoder<Vec<u8>>;

/// The compressors of a worker.
#[derive(Default)]
pub struct Encoders {
    idle: RefCell<Vec<Encoder>>,
    lent: Cell<usize>,
}

/// One of them, given back when dropped.
pub struct Lent {
    encoder: Option<Encoder>,
    of: Rc<Encoders>,
}

impl Encoders {
    /// One whose output begins with these bytes. None: there are as many as there may be.
    pub fn lend(self: &Rc<Self>, head: &[u8]) -> Option<Lent> {
        if self.lent.get() >= MOST {
            return None;
        }
        let kept = self.idle.borrow_mut().pop();
        let mut encoder = kept.unwrap_or_else(|| Encoder::new(vec![], Compression::new(LEVEL)));
        encoder.get_mut().extend_from_slice(head);
        self.lent.set(self.lent.get() + 1);
        Some(Lent { encoder: Some(encoder), of: self.clone() })
    }
}

impl Lent {
    /// What compresses. None: never.
    pub fn encoder(&mut self) -> Option<&mut Encoder> {
        self.encoder.as_mut()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.of.lent.set(self.of.lent.get() - 1);
        let Some(mut encoder) = self.encoder.take() else { return };
        let mut idle = self.of.idle.borrow_mut();
        if idle.len() < IDLE && encoder.reset(vec![]).is_ok() {
            idle.push(encoder);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use flate2::read::DeflateDecoder;
    use std::io::{Read, Write};

    #[test]
    fn one_that_was_used_begins_anew() {
        let all = Rc::<Encoders>::default();
        for text in ["the first", "another"] {
            // Given up in the middle.
            let mut one = all.lend(b"").unwrap();
            one.encoder().unwrap().write_all(b"of somebody else").unwrap();
            drop(one);
            let mut one = all.lend(b"head").unwrap();
            let encoder = one.encoder().unwrap();
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.try_finish().unwrap();
            let out = std::mem::take(encoder.get_mut());
            let (mut back, rest) = (String::new(), out.strip_prefix(b"head").unwrap());
            DeflateDecoder::new(rest).read_to_string(&mut back).unwrap();
            assert_eq!(back, text);
        }
        assert_eq!((all.idle.borrow().len(), all.lent.get()), (1, 0));
    }

    #[test]
    fn there_are_no_more_than_may_be() {
        let all = Rc::<Encoders>::default();
        let lent: Vec<Lent> = (0..MOST).map(|_| all.lend(b"").unwrap()).collect();
        assert!(all.lend(b"").is_none());
        drop(lent);
        assert_eq!((all.idle.borrow().len(), all.lent.get()), (IDLE, 0));
        assert!(all.lend(b"").is_some());
    }
}
