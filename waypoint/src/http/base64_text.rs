//! Base64 as gRPC-Web's text form has it: a sequence of parts, each padded by itself, that are cut anywhere on the way.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

/// Characters that stand for three bytes.
const GROUP: usize = 4;

/// Makes bytes of a text that comes piece by piece.
#[derive(Default)]
pub struct Decoder {
    /// The beginning of a group.
    held: Vec<u8>,
}

impl Decoder {
    /// What a piece completes. None: it is no base64.
    pub fn decode(&mut self, piece: &[u8]) -> Option<Bytes> {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(piece);
        let whole = text.len() / GROUP * GROUP;
        let mut out = Vec::with_capacity(whole / GROUP * 3);
        let mut rest = &text[..whole];
        while !rest.is_empty() {
            // A part ends with the group that is padded.
            let end = rest.iter().position(|b| *b == b'=').map_or(rest.len(), |at| at / GROUP * GROUP + GROUP);
            let (part, after) = rest.split_at(end);
            STANDARD.decode_vec(part, &mut out).ok()?;
            rest = after;
        }
        text.drain(..whole);
        self.held = text;
        Some(out.into())
    }

    /// Is no group left unfinished?
    pub fn is_whole(&self) -> bool {
        self.held.is_empty()
    }
}

/// A part of its own.
pub fn encode(bytes: &[u8]) -> Bytes {
    STANDARD.encode(bytes).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn however_a_text_is_cut_it_means_the_same() {
        let parts: [&[u8]; 5] = [b"a", b"", b"bc", b"def", &[0, 255, 254, 7]];
        let text: Vec<u8> = parts.iter().flat_map(|part| encode(part)).collect();
        for size in 1..=text.len() {
            let mut decoder = Decoder::default();
            let all: Vec<u8> = text.chunks(size).flat_map(|piece| decoder.decode(piece).unwrap()).collect();
            assert_eq!(all, parts.concat(), "by {size}");
            assert!(decoder.is_whole());
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in ["a-b_", "====", "ab=c", "YQ=a", "\r\n\r\n", "YR=="] {
            assert!(Decoder::default().decode(text.as_bytes()).is_none(), "{text:?}");
        }
        let mut cut = Decoder::default();
        assert_eq!(cut.decode(b"YWJjZ").unwrap(), &b"abc"[..]);
        assert!(!cut.is_whole());
    }
}
