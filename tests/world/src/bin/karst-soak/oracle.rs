//! The bytes that are due: both sides can make them, and nothing between them can guess them.

use karst_world::{
    Pod,
    soak::{judge::Place, schedule::Dice},
};
use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::Duration,
};

/// What applications say and no frame between nodes may show.
pub const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";
/// How many bytes by chance answers have, in turn.
const ANSWERS: [usize; 4] = [0, 300, 5_000, 60_000];
/// Who is not served within this time is refused.
const REFUSED: Duration = Duration::from_secs(2);

/// The marker, and so many bytes by chance.
pub fn message(dice: &mut Dice, length: usize) -> Vec<u8> {
    let mut said = Vec::with_capacity(MARK.len() + length + 8);
    said.extend(MARK);
    while said.len() < MARK.len() + length {
        said.extend(dice.roll().to_le_bytes());
    }
    said.truncate(MARK.len() + length);
    said
}

/// The host that requests of a place name.
pub fn host(place: Place) -> &'static str {
    if place == Place::CalmWaypoint { "calm-shop" } else { "shop" }
}

/// The path of the request of this number.
pub fn path(number: u64) -> String {
    format!("/{number}/{}", String::from_utf8_lossy(MARK))
}

/// What a request of this path is answered with: its path, and more that follows from its number.
pub fn answer(path: &str) -> Vec<u8> {
    let number = path.split('/').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    let length = ANSWERS[(number % ANSWERS.len() as u64) as usize];
    [path.as_bytes(), &message(&mut Dice::new(number), length)].concat()
}

/// From where on other bytes came than were due.
pub fn differs(due: &[u8], came: &[u8]) -> Option<usize> {
    let other = due.iter().zip(came).position(|(a, b)| a != b);
    other.or_else(|| (due.len() != came.len()).then(|| due.len().min(came.len())))
}

/// Is a caller served? One byte that comes back is enough.
pub fn is_served(from: &Pod, to: SocketAddr) -> bool {
    let once = || -> std::io::Result<usize> {
        let mut s = from.connect(to)?;
        s.set_read_timeout(Some(REFUSED))?;
        s.set_write_timeout(Some(REFUSED))?;
        s.write_all(MARK)?;
        s.read(&mut [0])
    };
    once().is_ok_and(|count| count > 0)
}
