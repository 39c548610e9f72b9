//! HPACK's Huffman code (RFC 7541, appendix B). It is canonical, so the lengths of its codes are all of it.

use crate::exchange::Surprise;

/// Length of each symbol's code, in bits. (The end of a string, 30 ones, is no symbol: RFC 7541 §5.2.)
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23,
    23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19,
    22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27,
    27, 27, 27, 26,
];
const LONGEST: usize = 30;

/// Codes in their order: by length, then by symbol.
struct Code {
    /// The first code of each length.
    first: [u32; LONGEST + 1],
    /// How many there are.
    count: [u32; LONGEST + 1],
    /// Where they begin in `symbols`.
    start: [usize; LONGEST + 1],
    symbols: [u8; 256],
    /// Of codes of at most 8 bits: symbol and length, by the next 8 bits. Length 0: the code is longer.
    short: [(u8, u8); 256],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut all = Code {
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: [0; 256],
        short: [(0, 0); 256],
    };
    let (mut length, mut next, mut place) = (1, 0u32, 0);
    while length <= LONGEST {
        next <<= 1;
        all.first[length] = next;
        all.start[length] = place;
        let mut symbol = 0;
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                all.symbols[place] = symbol as u8;
                if length <= 8 {
                    let (mut at, end) = ((next as usize) << (8 - length), (next as usize + 1) << (8 - length));
                    while at < end {
                        all.short[at] = (symbol as u8, length as u8);
                        at += 1;
                    }
                }
                (place, next) = (place + 1, next + 1);
                all.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    all
}

/// Decodes a string: its first bytes into `keep`, and its length.
pub(crate) fn decode(bytes: &[u8], keep: &mut [u8]) -> Result<usize, Surprise> {
    let (mut bits, mut have, mut length) = (0u64, 0u32, 0);
    let mut rest = bytes.iter();
    loop {
        while have <= 56 {
            let Some(byte) = rest.next() else { break };
            bits = (bits << 8) | u64::from(*byte);
            have += 8;
        }
        if have < 8 && bits & ((1 << have) - 1) == (1 << have) - 1 {
            // Ones fill the last byte.
            return Ok(length);
        }
        // What is behind the end counts as zeros; a code that needs it is longer than what there is.
        let next = if have >= 8 { (bits >> (have - 8)) as u8 } else { (bits << (8 - have)) as u8 };
        let (symbol, taken) = match CODE.short[usize::from(next)] {
            (_, 0) => long(&CODE, bits, have).ok_or(Surprise::Hpack)?,
            (symbol, length) => (symbol, u32::from(length)),
        };
        have = have.checked_sub(taken).ok_or(Surprise::Hpack)?;
        if let Some(place) = keep.get_mut(length) {
            *place = symbol;
        }
        length += 1;
    }
}

/// A code of more than 8 bits.
fn long(table: &Code, bits: u64, have: u32) -> Option<(u8, u32)> {
    (9..=LONGEST.min(have as usize)).find_map(|length| {
        let code = (bits >> (have - length as u32)) as u32 & ((1 << length) - 1);
        let nth = code.checked_sub(table.first[length]).filter(|n| *n < table.count[length])?;
        Some((table.symbols[table.start[length] + nth as usize], length as u32))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Option<String> {
        let mut keep = [0; 64];
        decode(bytes, &mut keep).ok().map(|n| String::from_utf8_lossy(&keep[..n]).into_owned())
    }

    #[test]
    fn examples_of_the_standard() {
        let all: [(&[u8], &str); 5] = [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x64, 0x02], "302"),
            (&[0xae, 0xc3, 0x77, 0x1a, 0x4b], "private"),
            (&[], ""),
        ];
        for (bytes, want) in all {
            assert_eq!(text(bytes).as_deref(), Some(want));
        }
    }

    #[test]
    fn padding_is_ones_and_less_than_a_byte() {
        assert_eq!(text(&[0x00]), None, "zeros are not the end's first bits");
        assert_eq!(text(&[0xff]), None, "a whole byte of padding");
        assert_eq!(text(&[0xff; 4]), None, "the end is no symbol");
    }
}
