//! Streams that go on in another process (docs/hbone.md §10): a side that leaves ends its half with a token in trailers, the other
//! side does the same, and a later CONNECT that shows the token goes on where this stream has ended. Both must have said before
//! that they know of this.
//!
//! Pure: [`Sides`] is what one side knows of both halves. What must always hold: both sides come to the same end and the same token,
//! whoever leaves, both at a time too. Proven by the tests below, for all orders of events.

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// The header: of a CONNECT, of the answer to it, and of trailers.
pub const HEADER: HeaderName = HeaderName::from_static("karst-continue");
/// Its value where a side says that it knows of continuation.
const KNOWS: &str = "1";

/// Names one interrupted stream, once. Whoever has it and is the right peer gets the connection: it is never logged.
#[derive(Clone, Copy)]
pub struct Token([u8; 16]);

/// There is no randomness.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn new() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 16];
        rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    /// Reads 32 lower case hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digit = |d: u8| match d {
            b'0'..=b'9' => Some(d - b'0'),
            b'a'..=b'f' => Some(d - b'a' + 10),
            _ => None,
        };
        let text: &[u8; 32] = text.try_into().ok()?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = (digit(*high)? << 4) | digit(*low)?;
        }
        Some(Self(bytes))
    }

    /// As the header has it.
    pub fn value(&self) -> Option<HeaderValue> {
        use fmt::Write;
        let mut text = String::with_capacity(32);
        for byte in self.0 {
            let _ = write!(text, "{byte:02x}");
        }
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// For another process of the same node.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// From another process of the same node.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl PartialEq for Token {
    /// Takes the same time whatever the difference.
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Token {}

impl Hash for Token {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing, or nothing that is understood: then nothing is continued.
    Nothing,
    /// The sender knows of continuation.
    Knows,
    /// The stream goes on where the one with this token has ended; in trailers: it will go on.
    Token(Token),
}

/// Reads the header; more than one counts for nothing.
pub fn said(headers: &HeaderMap) -> Said {
    let mut all = headers.get_all(HEADER).iter();
    match (all.next(), all.next()) {
        (Some(value), None) if value.as_bytes() == KNOWS.as_bytes() => Said::Knows,
        (Some(value), None) => Token::parse(value.as_bytes()).map_or(Said::Nothing, Said::Token),
        (_, _) => Said::Nothing,
    }
}

/// Says that we know of continuation, in a CONNECT or the answer to it.
pub fn announce(headers: &mut HeaderMap) {
    headers.insert(HEADER, HeaderValue::from_static(KNOWS));
}

/// Says that the stream goes on where the one with this token has ended; as trailers, that it will.
pub fn name(headers: &mut HeaderMap, token: &Token) {
    if let Some(value) = token.value() {
        headers.insert(HEADER, value);
    }
}

/// One half of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Half {
    /// Bytes may come.
    #[default]
    Open,
    /// Its end of data has been said.
    Ended,
    /// It goes on in another stream.
    Continued(Token),
}

/// What becomes of a stream of which both halves are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is over.
    Over,
    /// It goes on, in the stream that shows this token.
    Continues(Token),
    /// It has not come to an end: its tunnel has broken. The connection goes on in the stream that shows this token, from where its sides
    /// have come ([`crate::lasting`]).
    Breaks(Token),
}

/// What one side knows of a stream's two halves.
#[derive(Clone, Copy, Debug)]
pub struct Sides {
    client: bool,
    sent: Half,
    received: Half,
}

impl Sides {
    /// Of a stream that has just begun. `client`: it is the side that has opened it.
    pub fn new(client: bool) -> Self {
        Self { client, sent: Half::Open, received: Half::Open }
    }
    /// Our half.
    pub fn sent(&self) -> Half {
        self.sent
    }
    /// The other's.
    pub fn received(&self) -> Half {
        self.received
    }
    /// Our half is closed now.
    pub fn close(&mut self, half: Half) {
        if self.sent == Half::Open {
            self.sent = half;
        }
    }
    /// The other side has closed its half. Gives the token with which ours is to be closed, too, if it is.
    pub fn closed(&mut self, half: Half) -> Option<Token> {
        if self.received == Half::Open {
            self.received = half;
        }
        match (self.sent, half) {
            (Half::Open, Half::Continued(token)) => Some(token),
            (Half::Open | Half::Ended | Half::Continued(_), _) => None,
        }
    }
    /// What becomes of the stream, once both halves are closed; not [`End::Breaks`]. If both sides have left at the same time there are two tokens: that of
    /// the side that has opened the stream counts.
    pub fn end(&self) -> Option<End> {
        let (first, second) = if self.client { (self.sent, self.received) } else { (self.received, self.sent) };
        match (first, second) {
            (Half::Open, _) | (_, Half::Open) => None,
            (Half::Continued(token), Half::Ended | Half::Continued(_)) | (Half::Ended, Half::Continued(token)) => {
                Some(End::Continues(token))
            }
            (Half::Ended, Half::Ended) => Some(End::Over),
        }
    }
    /// The same connection in its next stream: what has ended stays ended.
    pub fn next(&self) -> Self {
        let open = |half: Half| match half {
            Half::Ended => Half::Ended,
            Half::Open | Half::Continued(_) => Half::Open,
        };
        Self { client: self.client, sent: open(self.sent), received: open(self.received) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashSet, VecDeque};

    fn token(n: u8) -> Token {
        Token([n; 16])
    }

    #[test]
    fn a_token_is_read_as_it_is_written() {
        let one = Token::new().unwrap();
        assert!(one != Token::new().unwrap());
        let mut headers = HeaderMap::new();
        assert_eq!(said(&headers), Said::Nothing);
        announce(&mut headers);
        assert_eq!(said(&headers), Said::Knows);
        name(&mut headers, &one);
        assert_eq!(said(&headers), Said::Token(one));
        assert_eq!(Token::from_bytes(&one.bytes()), Some(one));
        headers.append(HEADER, HeaderValue::from_static("1"));
        assert_eq!(said(&headers), Said::Nothing, "two of them");
        for bad in ["", "2", "0123456789abcdef0123456789abcde", "0123456789ABCDEF0123456789ABCDEF", "1, 1"] {
            headers.insert(HEADER, HeaderValue::from_str(bad).unwrap());
            assert_eq!(said(&headers), Said::Nothing, "{bad}");
        }
        assert_eq!(format!("{one:?} {:?}", one.value().unwrap()), "Token Sensitive", "it is in no log");
    }

    #[test]
    fn equal_tokens_are_one_in_a_table() {
        let mut all = HashSet::from([token(1), token(2)]);
        assert!(!all.insert(token(1)) && all.remove(&token(2)) && !all.contains(&token(3)));
    }

    /// What can happen to one side.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Ends(usize),
        Leaves(usize),
        Hears(usize),
    }

    /// A client, a server, and what is on its way to each.
    #[derive(Clone)]
    struct World {
        sides: [Sides; 2],
        to: [VecDeque<Half>; 2],
    }

    impl World {
        fn say(&mut self, who: usize, half: Half) {
            if self.sides[who].sent() == Half::Open {
                self.sides[who].close(half);
                self.to[1 - who].push_back(half);
            }
        }
        fn step(&mut self, event: Event) {
            match event {
                Event::Ends(who) => self.say(who, Half::Ended),
                Event::Leaves(who) => self.say(who, Half::Continued(token(who as u8))),
                Event::Hears(who) => {
                    let Some(half) = self.to[who].pop_front() else { return };
                    if let Some(answer) = self.sides[who].closed(half) {
                        self.say(who, Half::Continued(answer));
                    }
                }
            }
        }
    }

    /// Every order of so many events.
    fn all(world: World, depth: usize, ends: &mut usize) {
        if depth == 0 {
            let mut world = world;
            for who in [0, 1, 0, 1, 0, 1] {
                world.step(Event::Hears(who));
            }
            let [client, server] = &world.sides;
            assert_eq!(client.end(), server.end(), "{client:?} {server:?}");
            for (one, other) in [(client, server), (server, client)] {
                assert_eq!(one.sent(), other.received(), "all that was said is heard");
                // Who is asked to go on does, unless it has ended already.
                assert!(!matches!(one.received(), Half::Continued(_)) || one.sent() != Half::Open);
                assert_eq!(one.next().sent() == Half::Ended, other.next().received() == Half::Ended);
            }
            if let Some(End::Continues(token)) = client.end() {
                let said = [client.sent(), server.sent()];
                assert!(said.contains(&Half::Continued(token)), "somebody has said it");
                *ends += 1;
            }
            return;
        }
        for who in 0..2 {
            for event in [Event::Ends(who), Event::Leaves(who), Event::Hears(who)] {
                let mut next = world.clone();
                next.step(event);
                all(next, depth - 1, ends);
            }
        }
    }

    #[test]
    fn whoever_leaves_both_sides_come_to_the_same_end() {
        let begin = World { sides: [Sides::new(true), Sides::new(false)], to: Default::default() };
        let mut continued = 0;
        all(begin, 6, &mut continued);
        assert!(continued > 1000, "{continued}");
    }
}
