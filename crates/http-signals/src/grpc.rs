//! Messages of gRPC in a body: each is a flag, a length of four bytes, and so many bytes.

/// Of one direction of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Messages {
    /// Messages whose length has come.
    pub count: u64,
    /// Bytes of the next one's prefix that have come.
    prefix: u8,
    length: u32,
    /// Bytes of the message that are to come.
    left: u32,
}

impl Messages {
    /// More of the body.
    pub fn read(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = bytes.len().min(self.left as usize);
            self.left -= skipped as u32;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((first, rest)) = bytes.split_first() else { return };
            bytes = rest;
            if self.prefix > 0 {
                self.length = (self.length << 8) | u32::from(*first);
            }
            self.prefix += 1;
            if self.prefix == 5 {
                self.count += 1;
                (self.prefix, self.left, self.length) = (0, self.length, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let body = b"\0\0\0\0\x03abc\0\0\0\0\0\x01\0\0\x01\0".iter().copied().chain([7; 256]).collect::<Vec<_>>();
        for size in [1, 2, 3, 7, 300] {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|b| messages.read(b));
            assert_eq!((messages.count, messages.left, messages.prefix), (3, 0, 0), "{size}");
        }
    }
}
