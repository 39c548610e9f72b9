//! Bytes that are known at each place of a stream, and at no other one.

use std::io::Read;

/// One word of eight bytes.
fn word(number: u64) -> [u8; 8] {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ number).to_le_bytes()
}

/// Those from this place on; it begins with a word.
pub fn fill(at: u64, to: &mut [u8]) {
    assert_eq!(at % 8, 0);
    for (place, number) in to.chunks_mut(8).zip(at / 8..) {
        place.copy_from_slice(&word(number)[..place.len()]);
    }
}

/// Reads to the end, and compares; how many there were.
pub fn expect(heard: &mut impl Read) -> u64 {
    let (mut buffer, mut expected) = (vec![0; 64 << 10], vec![0; (64 << 10) + 8]);
    let mut at = 0;
    loop {
        let length = heard.read(&mut buffer).unwrap();
        if length == 0 {
            return at;
        }
        let into = (at % 8) as usize;
        fill(at - into as u64, &mut expected[..into + length]);
        assert!(buffer[..length] == expected[into..into + length], "other bytes than those of {at} and after");
        at += length as u64;
    }
}
