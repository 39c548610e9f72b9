//! Reads HTTP/1.x, HTTP/2 and gRPC in passing. A [`Connection`] is shown the bytes of each direction as they are relayed, and
//! says of each request how it went ([`Exchange`]). It changes nothing and delays nothing; where bytes are not as expected it
//! gives up on that connection, silently and for good ([`Over`]). Pure: no I/O, and no clock but the one that is given ([`Clock`]).
//!
//! What it keeps is bounded, whatever comes: see the constants. However the bytes are cut, the result is the same
//! (`tests/splits.rs`); counts are those of hyper's and h2's own clients and servers (`tests/peers.rs`).

mod exchange;
mod grpc;
mod hpack;
mod http1;
mod http2;
mod huffman;
mod limits;
mod lines;
mod queue;

pub use exchange::{Asked, Clock, Exchange, Flag, Over, Protocol, Surprise};
pub use limits::{MAX_BLOCK, MAX_EARLY, MAX_LINE, MAX_PATH, MAX_PIPELINE, MAX_STREAMS, MAX_TABLE};

use exchange::Ends;
use http1::Http1;
use http2::Http2;
use queue::Queue;

/// What a client of HTTP/2 begins with (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A relayed connection.
#[derive(Debug)]
pub struct Connection {
    state: State,
    /// The port is declared to be HTTP.
    declared: bool,
    /// What requests ask for is kept.
    keeps_heads: bool,
    ends: Ends,
    done: Queue<Exchange>,
}

#[derive(Debug)]
enum State {
    /// So much of the preface has come, and nothing else of the client's; what the server has said.
    First(usize, Vec<u8>),
    One(Box<Http1>),
    Two(Box<Http2>),
    Over(Over),
}

impl Connection {
    /// One of which nothing has been seen. `declared`: its port is one of HTTP; then it is a surprise if it is not.
    pub fn new(declared: bool) -> Self {
        let (state, ends, done) = (State::First(0, Vec::new()), Ends::default(), Queue::default());
        Self { state, declared, keeps_heads: false, ends, done }
    }

    /// From now on, what requests ask for is kept, or is not ([`Exchange::asked`]). It changes nothing else of what is seen.
    pub fn keep_heads(&mut self, keep: bool) {
        self.keeps_heads = keep;
    }

    /// The client has sent this.
    pub fn client_sent(&mut self, bytes: &[u8], now: Clock<'_>) {
        let result = match &mut self.state {
            State::Over(_) => return,
            State::First(..) => self.first(bytes, now),
            State::One(http) => http.client_sent(bytes, self.keeps_heads, now, &mut self.done),
            State::Two(http) => http.client_sent(bytes, self.keeps_heads, now, &mut self.done),
        };
        self.settle(result);
    }

    /// The server has sent this.
    pub fn server_sent(&mut self, bytes: &[u8], now: Clock<'_>) {
        let result = match &mut self.state {
            State::Over(_) => return,
            State::First(_, early) => {
                early.extend_from_slice(bytes.get(..MAX_EARLY + 1).unwrap_or(bytes));
                // The length of a first frame, SETTINGS, begins so.
                if early.first().is_some_and(|b| *b != 0) || early.len() > MAX_EARLY {
                    Err(Over::NotHttp)
                } else {
                    Ok(())
                }
            }
            State::One(http) => http.server_sent(bytes, now, &mut self.done),
            State::Two(http) => http.server_sent(bytes, now, &mut self.done),
        };
        self.settle(result);
    }

    /// The client sends no more.
    pub fn client_ended(&mut self) {
        self.ends.client |= !self.ends.server;
    }

    /// The server sends no more: an answer without a length is whole.
    pub fn server_ended(&mut self, now: Clock<'_>) {
        // Who was first has ended the connection.
        self.ends.server |= !self.ends.client;
        if let State::One(http) = &mut self.state {
            http.server_ended(now, &mut self.done);
        }
    }

    /// The connection has ended: what is open has broken off.
    pub fn close(&mut self, now: Clock<'_>) {
        match &mut self.state {
            State::First(..) | State::Over(_) => {}
            State::One(http) => http.close(self.ends, now, &mut self.done),
            State::Two(http) => http.close(self.ends, now, &mut self.done),
        }
        if !matches!(self.state, State::Over(_)) {
            self.state = State::Over(Over::NotHttp);
        }
    }

    /// What has ended since the last time.
    pub fn take(&mut self) -> impl Iterator<Item = Exchange> {
        self.done.drain()
    }

    /// Why nothing more is to be shown to it, if so.
    pub fn over(&self) -> Option<Over> {
        if let State::Over(over) = self.state { Some(over) } else { None }
    }

    /// The client's first bytes: which HTTP it is, if any.
    fn first(&mut self, bytes: &[u8], now: Clock<'_>) -> Result<(), Over> {
        let State::First(seen, early) = &mut self.state else { return Ok(()) };
        let Some(first) = bytes.first() else { return Ok(()) };
        // One comparison for what is not HTTP.
        if *seen == 0 && !first.is_ascii_uppercase() {
            return Err(Over::NotHttp);
        }
        let wanted = PREFACE.get(*seen..).unwrap_or_default();
        let same = wanted.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        if same == bytes.len() && same < wanted.len() {
            *seen += same;
            return Ok(());
        }
        if same == wanted.len() {
            let mut http = Box::<Http2>::default();
            let early = std::mem::take(early);
            let rest = bytes.get(same..).unwrap_or_default();
            let result = http.server_sent(&early, now, &mut self.done);
            let result = result.and_then(|()| http.client_sent(rest, self.keeps_heads, now, &mut self.done));
            self.state = State::Two(http);
            return result;
        }
        if !early.is_empty() {
            return Err(Over::NotHttp);
        }
        let mut http = Box::<Http1>::default();
        let before = PREFACE.get(..*seen).unwrap_or_default();
        let result = http.client_sent(before, self.keeps_heads, now, &mut self.done);
        let result = result.and_then(|()| http.client_sent(bytes, self.keeps_heads, now, &mut self.done));
        self.state = State::One(http);
        result
    }

    fn settle(&mut self, result: Result<(), Over>) {
        let Err(over) = result else { return };
        let over = if over == Over::NotHttp && self.declared { Surprise::NotHttp.into() } else { over };
        self.state = State::Over(over);
    }
}
