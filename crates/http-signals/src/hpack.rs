//! HPACK (RFC 7541), as far as it is needed: three fields are read, and for who wants it method and path; of all others only the
//! size is known, so that the table stays the sender's.

use crate::{
    exchange::{Asked, Surprise, visible},
    huffman,
    limits::{MAX_PATH, MAX_TABLE},
};
use std::collections::VecDeque;

/// A header field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// `:status`; 0: it is none.
    Status(u16),
    /// `content-type`: is it gRPC's?
    ContentType {
        grpc: bool,
    },
    /// `grpc-status`.
    GrpcStatus(u8),
    /// `:method`.
    Method,
    /// `:path`.
    Path,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Status,
    ContentType,
    GrpcStatus,
    Method,
    Path,
    Other,
}

/// An entry of a table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    field: Field,
    name_length: u32,
    /// RFC 7541 §4.1.
    size: u32,
}

/// RFC 7541, appendix A; values are in [`STATUSES`] and [`HEADS`].
const STATIC: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];
/// Values of `:status` in it.
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
/// Where they begin.
const FIRST_STATUS: usize = 8;
/// Values of `:method` and `:path` in it.
const HEADS: [&str; 4] = ["GET", "POST", "/", "/index.html"];
/// Where they begin.
const FIRST_HEAD: usize = 2;
/// What an entry costs besides its text.
const OVERHEAD: usize = 32;
/// A table's size until the peer says another (RFC 9113 §6.5.2).
const INITIAL_TABLE: usize = 4096;
/// Largest number: none that is larger can be right within a block's bounds.
const MAX_NUMBER: usize = 1 << 24;

/// The first bytes of a string, and how long it is.
struct Text {
    kept: [u8; 32],
    length: usize,
}

impl Text {
    fn bytes(&self) -> &[u8] {
        self.kept.get(..self.length).unwrap_or(&self.kept)
    }
}

/// The table of one direction of a connection.
#[derive(Debug)]
pub(crate) struct Decoder {
    entries: VecDeque<Entry>,
    size: usize,
    max: usize,
    /// Entries that have ever been put into it.
    inserted: u64,
    /// Methods and paths in it, by how many entries had been put in before theirs; those that came while heads were kept.
    heads: VecDeque<(u64, Box<str>)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, max: INITIAL_TABLE, inserted: 0, heads: VecDeque::new() }
    }
}

impl Decoder {
    /// Reads a whole block. `asked`: what is to have the method and the path, if they are wanted.
    pub fn decode(
        &mut self,
        mut block: &[u8],
        mut asked: Option<&mut Asked>,
        mut found: impl FnMut(Field),
    ) -> Result<(), Surprise> {
        if asked.is_none() && !self.heads.is_empty() {
            self.heads = VecDeque::new();
        }
        while let Some(first) = block.first().copied() {
            if first & 0x80 != 0 {
                let index = number(&mut block, 7)?;
                let field = self.entry(index)?.field;
                if let Some(asked) = &mut asked {
                    note(asked, field, self.head(index));
                }
                found(field);
            } else if first & 0x40 != 0 {
                let (entry, head) = self.literal(&mut block, 6, true, &mut asked)?;
                found(entry.field);
                self.insert(entry, head);
            } else if first & 0x20 != 0 {
                self.max = number(&mut block, 5)?;
                if self.max > MAX_TABLE {
                    return Err(Surprise::Hpack);
                }
                self.evict(0);
            } else {
                found(self.literal(&mut block, 4, false, &mut asked)?.0.field);
            }
        }
        Ok(())
    }

    fn entry(&self, index: usize) -> Result<Entry, Surprise> {
        let place = index.checked_sub(1).ok_or(Surprise::Hpack)?;
        let Some(name) = STATIC.get(place) else {
            return self.entries.get(place - STATIC.len()).copied().ok_or(Surprise::Hpack);
        };
        let field = match name_of(name.as_bytes()) {
            Name::Status => Field::Status(STATUSES.get(index - FIRST_STATUS).copied().unwrap_or_default()),
            Name::ContentType => Field::ContentType { grpc: false },
            Name::Method => Field::Method,
            Name::Path => Field::Path,
            Name::GrpcStatus | Name::Other => Field::Other,
        };
        Ok(Entry { field, name_length: name.len() as u32, size: 0 })
    }

    /// The method or path that this entry has; empty: none that is known.
    fn head(&self, index: usize) -> &str {
        if let Some(known) = index.checked_sub(FIRST_HEAD).and_then(|place| HEADS.get(place)) {
            return known;
        }
        // The newest is the first behind the fixed ones.
        let age = index.saturating_sub(STATIC.len()) as u64;
        let before = self.inserted.checked_sub(age);
        let place = before.and_then(|before| self.heads.binary_search_by_key(&before, |(number, _)| *number).ok());
        place.and_then(|place| self.heads.get(place)).map_or("", |(_, head)| head)
    }

    /// A literal field, and its text if that is one for `asked`. Of one that is not `kept` in the table the size is not needed.
    fn literal(
        &self,
        block: &mut &[u8],
        prefix: u8,
        kept: bool,
        asked: &mut Option<&mut Asked>,
    ) -> Result<(Entry, Option<Box<str>>), Surprise> {
        let (name, name_length) = match number(block, prefix)? {
            0 => {
                let text = text(block)?;
                (name_of(text.bytes()), text.length as u32)
            }
            index => {
                let entry = self.entry(index)?;
                (entry.field.name(), entry.name_length)
            }
        };
        let unread = match name {
            Name::Method => Some(Field::Method),
            Name::Path => Some(Field::Path),
            Name::Other => Some(Field::Other),
            Name::Status | Name::ContentType | Name::GrpcStatus => None,
        };
        let head = match (asked, unread) {
            (Some(asked), Some(field @ (Field::Method | Field::Path))) => {
                // One that cannot be read is not known, and no other surprise than it is to who wants none.
                let head = head(block).unwrap_or_default();
                note(asked, field, &head);
                Some(head)
            }
            _ => None,
        };
        if let Some(field) = unread.filter(|_| !kept) {
            string(block)?;
            return Ok((Entry { field, name_length, size: 0 }, head));
        }
        let value = text(block)?;
        let size = name_length as usize + value.length + OVERHEAD;
        Ok((Entry { field: field(name, &value), name_length, size: size as u32 }, head))
    }

    fn insert(&mut self, entry: Entry, head: Option<Box<str>>) {
        self.evict(entry.size as usize);
        // One that is larger than the table only empties it (RFC 7541 §4.4).
        if entry.size as usize <= self.max {
            self.size += entry.size as usize;
            self.entries.push_front(entry);
            self.heads.extend(head.map(|head| (self.inserted, head)));
            self.inserted += 1;
        }
    }

    /// Makes room.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.max {
            let Some(oldest) = self.entries.pop_back() else { break };
            self.size -= oldest.size as usize;
        }
        let gone = self.inserted - self.entries.len() as u64;
        while self.heads.front().is_some_and(|(number, _)| *number < gone) {
            self.heads.pop_front();
        }
    }
}

impl Field {
    fn name(self) -> Name {
        match self {
            Field::Status(_) => Name::Status,
            Field::ContentType { .. } => Name::ContentType,
            Field::GrpcStatus(_) => Name::GrpcStatus,
            Field::Method => Name::Method,
            Field::Path => Name::Path,
            Field::Other => Name::Other,
        }
    }
}

fn name_of(name: &[u8]) -> Name {
    match name {
        b":status" => Name::Status,
        b"content-type" => Name::ContentType,
        b"grpc-status" => Name::GrpcStatus,
        b":method" => Name::Method,
        b":path" => Name::Path,
        _ => Name::Other,
    }
}

fn field(name: Name, value: &Text) -> Field {
    let text = value.bytes();
    match name {
        Name::Status => Field::Status(status(text).unwrap_or_default()),
        Name::ContentType => {
            let rest = text.strip_prefix(b"application/grpc");
            Field::ContentType { grpc: rest.is_some_and(|r| matches!(r.first(), None | Some(b'+' | b';' | b' '))) }
        }
        Name::GrpcStatus => {
            let code = std::str::from_utf8(text).ok().and_then(|t| t.parse::<u8>().ok());
            Field::GrpcStatus(code.filter(|c| *c <= 16).unwrap_or(2))
        }
        Name::Method => Field::Method,
        Name::Path => Field::Path,
        Name::Other => Field::Other,
    }
}

/// A field is noted, if it is one that is asked for. It can be there once (RFC 9113 §8.3): another one is passed over, or each byte of a
/// block that names an entry of the table could cost a copy of that.
fn note(asked: &mut Asked, field: Field, text: &str) {
    let noted = match field {
        Field::Method => &mut asked.method,
        Field::Path => &mut asked.path,
        Field::Status(_) | Field::ContentType { .. } | Field::GrpcStatus(_) | Field::Other => return,
    };
    if noted.is_empty() {
        *noted = text.into();
    }
}

/// A status of three digits, 100 to 599.
pub(crate) fn status(text: &[u8]) -> Option<u16> {
    if text.len() != 3 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = text.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0'));
    (100..600).contains(&number).then_some(number)
}

/// RFC 7541 §5.1; the first byte is there, and `prefix` bits of it are the number's.
fn number(block: &mut &[u8], prefix: u8) -> Result<usize, Surprise> {
    let most = (1usize << prefix) - 1;
    let mut number = byte(block)? & most;
    if number < most {
        return Ok(number);
    }
    for shift in (0..28).step_by(7) {
        let next = byte(block)?;
        number += (next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return if number <= MAX_NUMBER { Ok(number) } else { Err(Surprise::Hpack) };
        }
    }
    Err(Surprise::Hpack)
}

fn byte(block: &mut &[u8]) -> Result<usize, Surprise> {
    let (first, rest) = block.split_first().ok_or(Surprise::Hpack)?;
    *block = rest;
    Ok(usize::from(*first))
}

/// A string as it is on the wire, and whether it is in Huffman's code.
fn string<'a>(block: &mut &'a [u8]) -> Result<(&'a [u8], bool), Surprise> {
    let coded = block.first().ok_or(Surprise::Hpack)? & 0x80 != 0;
    let length = number(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or(Surprise::Hpack)?;
    *block = rest;
    Ok((bytes, coded))
}

fn text(block: &mut &[u8]) -> Result<Text, Surprise> {
    let (bytes, coded) = string(block)?;
    let mut text = Text { kept: [0; 32], length: bytes.len() };
    if coded {
        text.length = huffman::decode(bytes, &mut text.kept)?;
    } else {
        text.kept.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }
    Ok(text)
}

/// The method or the path that is next in a block.
fn head(mut block: &[u8]) -> Result<Box<str>, Surprise> {
    let (bytes, coded) = string(&mut block)?;
    if !coded {
        return Ok(visible(bytes));
    }
    let mut kept = [0; MAX_PATH];
    let length = huffman::decode(bytes, &mut kept)?;
    Ok(visible(kept.get(..length).unwrap_or(&kept)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<Field>, Surprise> {
        let mut fields = vec![];
        decoder.decode(block, None, |f| fields.push(f))?;
        Ok(fields)
    }

    /// RFC 7541, appendix C.6: a table of 256 bytes, with evictions.
    #[test]
    fn answers_of_the_standard() {
        let hex = |t: &str| {
            (0..t.len()).step_by(2).map(|i| u8::from_str_radix(&t[i..i + 2], 16).unwrap()).collect::<Vec<_>>()
        };
        let mut decoder = Decoder { max: 256, ..Decoder::default() };
        let first = "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3";
        for (block, status, size) in [
            (first, 302, 222),
            ("4883640effc1c0bf", 307, 222),
            (
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                200,
                215,
            ),
        ] {
            let fields = all(&mut decoder, &hex(block)).unwrap();
            assert_eq!((fields[0], decoder.size), (Field::Status(status), size));
        }
        assert_eq!(decoder.entries.len(), 3);
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let bad: [&[u8]; 6] = [
            &[0x80],
            &[0xff],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[0xbe],
            &[0x40, 5, b'a'],
            &[0x3f, 0xe2, 0xff, 0x07],
        ];
        for block in bad {
            assert_eq!(all(&mut Decoder::default(), block), Err(Surprise::Hpack), "{block:x?}");
        }
    }

    /// A block of 32 KiB can name a path of 256 bytes 32,000 times.
    #[test]
    fn what_is_asked_for_is_noted_once() {
        let (mut decoder, mut asked) = (Decoder::default(), Asked::default());
        // Paths: two with their text, the newest of the table, one of the fixed ones. Methods: POST, GET.
        let block = [b"\x44\x02/a".as_slice(), b"\x44\x02/b", &[0xbe, 0x85, 0x83, 0x82]].concat();
        let mut fields = 0;
        decoder.decode(&block, Some(&mut asked), |_| fields += 1).unwrap();
        assert_eq!((&*asked.method, &*asked.path, fields), ("POST", "/a", 6));
        // The next request's own.
        let mut next = Asked::default();
        decoder.decode(&[0xbe, 0x82], Some(&mut next), |_| ()).unwrap();
        assert_eq!((&*next.method, &*next.path), ("GET", "/b"));
    }

    #[test]
    fn a_name_in_the_table_keeps_its_meaning() {
        let mut decoder = Decoder::default();
        let block = [b"\x40\x0bgrpc-status\x015".as_slice(), b"\x0f\x2f\x0212", &[0xbe]].concat();
        let fields = all(&mut decoder, &block).unwrap();
        assert_eq!(fields, [Field::GrpcStatus(5), Field::GrpcStatus(12), Field::GrpcStatus(5)]);
        let grpc = |v: &str| all(&mut Decoder::default(), &[&[0x5f, v.len() as u8], v.as_bytes()].concat()).unwrap();
        for (value, is) in
            [("application/grpc", true), ("application/grpc+proto", true), ("application/grpc-web", false)]
        {
            assert_eq!(grpc(value), [Field::ContentType { grpc: is }], "{value}");
        }
    }
}
