//! What a session's value says: at which endpoint of each destination the client is. One value for several of them, or a client of a
//! weighted route would lose its place at the one whenever it comes to the other.

use crate::session::rules::SessionRules;

/// Most destinations of one value: of more, those that were not seen for longest are forgotten.
pub const MOST: usize = 8;
/// The form that is written. Others are not read.
const VERSION: u8 = 1;
/// Bytes of a place as it is written.
const LENGTH: usize = 32;

/// An endpoint of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which destination, of which scope: [`SessionRules::destination`].
    pub destination: u64,
    /// Which of its endpoints.
    pub endpoint: u64,
    /// When the session began there, milliseconds since 1970.
    pub began: u64,
    /// And when it was last told.
    pub seen: u64,
}

impl Place {
    /// Does it still count? A clock that differs makes nothing older than it is.
    pub fn is_live(&self, rules: &SessionRules, now: u64) -> bool {
        let within = |since: u64, limit: u64| limit == 0 || now.saturating_sub(since) < limit;
        within(self.began, rules.absolute_ms) && within(self.seen, rules.idle_ms)
    }

    fn write(&self, out: &mut Vec<u8>) {
        let all = [self.destination, self.endpoint, self.began, self.seen];
        all.iter().for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    }

    fn read(bytes: &[u8]) -> Self {
        let mut numbers = bytes.chunks_exact(8).map(|b| b.iter().fold(0, |n, byte| (n << 8) | u64::from(*byte)));
        let mut next = || numbers.next().unwrap_or_default();
        Self { destination: next(), endpoint: next(), began: next(), seen: next() }
    }
}

/// The places of a client, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token(Vec<Place>);

impl Token {
    /// Reads what was opened. None: it is of another version.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (version, places) = bytes.split_first()?;
        let fits = *version == VERSION && places.len().is_multiple_of(LENGTH) && places.len() <= MOST * LENGTH;
        fits.then(|| Self(places.chunks_exact(LENGTH).map(Place::read).collect()))
    }

    /// As it is sealed.
    pub fn write(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        self.0.iter().for_each(|place| place.write(&mut out));
        out
    }

    /// The place at a destination.
    pub fn place(&self, destination: u64) -> Option<Place> {
        self.0.iter().find(|place| place.destination == destination).copied()
    }

    /// The client is here now. (Whether the other places still count is for their own rules to say.)
    pub fn put(&mut self, place: Place) {
        self.0.retain(|other| other.destination != place.destination);
        self.0.insert(0, place);
        self.0.truncate(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::route as ir;

    fn place(destination: u64, endpoint: u64) -> Place {
        Place { destination, endpoint, began: 10_000, seen: 20_000 }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut token = Token::default();
        assert_eq!(Token::read(&token.write()), Some(Token::default()));
        token.put(place(1, u64::MAX));
        token.put(place(2, 3));
        assert_eq!(Token::read(&token.write()), Some(token.clone()));
        let strange: [&[u8]; 4] = [&[], &[2], &[VERSION, 0], &[VERSION; 1 + (MOST + 1) * LENGTH]];
        for strange in strange {
            assert_eq!(Token::read(strange), None);
        }
    }

    #[test]
    fn a_client_has_one_place_at_each_of_the_last_destinations() {
        let mut token = Token::default();
        for n in 0..20 {
            token.put(place(n, n));
        }
        token.put(place(15, 1));
        let known: Vec<u64> = (0..20).filter(|n| token.place(*n).is_some()).collect();
        assert_eq!(known, (12..20).collect::<Vec<u64>>());
        assert_eq!(token.place(15), Some(place(15, 1)));
    }

    #[test]
    fn a_place_ends_by_either_time() {
        let rules = |absolute_ms, idle_ms| {
            SessionRules::new(&ir::Session { name: "s".into(), absolute_ms, idle_ms, ..Default::default() }).unwrap()
        };
        let live = |rules: &SessionRules, now| place(1, 1).is_live(rules, now);
        let (endless, absolute, idle) = (rules(0, 0), rules(15_000, 0), rules(0, 3_000));
        assert!(live(&endless, u64::MAX));
        assert_eq!([24_999, 25_000].map(|now| live(&absolute, now)), [true, false]);
        assert_eq!([22_999, 23_000].map(|now| live(&idle, now)), [true, false]);
        assert!(live(&rules(1, 1), 0), "a clock that is behind");
    }
}
