//! A connection that goes over, as packets.

use bytes::Bytes;
use karst_api::{
    HANDOVER_PIECE,
    handover::{Given, Go, Rest, given::What},
};
use karst_hbone::{
    continuation::Token,
    copy::{Interrupted, Left, Pair, Parts},
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// All there is of a connection.
#[derive(Debug)]
pub enum Moved {
    /// Two sockets.
    Pair(Parts),
    /// A socket, and a stream that goes on by this token.
    Stream(Interrupted, Token),
}

/// What is wrong with a connection that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a connection without its sockets, or with a token that is none")]
pub struct PiecesError;

impl Moved {
    /// Its packets, in order. The last one brings its sockets.
    pub fn pieces(&self, id: u64) -> Vec<Given> {
        match self {
            Self::Pair(parts) => pieces(id, &parts.up, &parts.down, Go::default()),
            Self::Stream(cut, token) => {
                let go = Go { token: token.bytes().to_vec(), is_client: cut.client, ..Go::default() };
                let own = Left { rest: Bytes::new(), ended: cut.ended };
                match cut.client {
                    true => pieces(id, &own, &cut.down, go),
                    false => pieces(id, &cut.down, &own, go),
                }
            }
        }
    }

    /// Its sockets.
    pub fn sockets(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Pair(parts) => vec![parts.client.as_fd(), parts.server.as_fd()],
            Self::Stream(cut, _) => vec![cut.socket.as_fd()],
        }
    }

    /// It has not gone. Two sockets stay with whoever has carried them; with a stream that has come to its end nobody can go on.
    pub fn give_up(self) {
        match self {
            Self::Pair(_) => {}
            Self::Stream(cut, _) => cut.reset(),
        }
    }

    /// It, if it is of the kind that was offered, by which it was judged: a socket with a stream (`tunnel`), or two sockets. If not,
    /// it is reset.
    pub fn if_offered(self, tunnel: bool) -> Option<Self> {
        if matches!(self, Self::Stream(..)) == tunnel {
            return Some(self);
        }
        self.reset();
        None
    }

    /// Nobody serves it any more: an application must not take it for complete.
    pub fn reset(self) {
        match self {
            // Both its sockets are, when a pair is dropped that has not ended.
            Self::Pair(parts) => drop(Pair::resume(parts)),
            Self::Stream(cut, _) => cut.reset(),
        }
    }

    /// From what has come.
    ///
    /// # Errors
    /// See [`PiecesError`].
    pub fn read(go: &Go, sockets: Vec<OwnedFd>, up: Left, down: Left) -> Result<Self, PiecesError> {
        if go.token.is_empty() {
            let [client, server] = <[OwnedFd; 2]>::try_from(sockets).map_err(|_| PiecesError)?;
            return Ok(Self::Pair(Parts { client, server, up, down }));
        }
        let token = Token::from_bytes(&go.token).ok_or(PiecesError)?;
        let [socket] = <[OwnedFd; 1]>::try_from(sockets).map_err(|_| PiecesError)?;
        let (ended, down) = if go.is_client { (up.ended, down) } else { (down.ended, up) };
        Ok(Self::Stream(Interrupted { socket, client: go.is_client, ended, down, reached: None }, token))
    }
}

/// The packets of one connection.
pub fn pieces(id: u64, up: &Left, down: &Left, go: Go) -> Vec<Given> {
    let rest = |to_client: bool, rest: &Bytes| {
        rest.chunks(HANDOVER_PIECE).map(|data| What::Rest(Rest { to_client, data: data.to_vec() })).collect::<Vec<_>>()
    };
    let go = Go { client_ended: up.ended, server_ended: down.ended, ..go };
    let all = [rest(false, &up.rest), rest(true, &down.rest), vec![What::Go(go)]].concat();
    all.into_iter().map(|what| Given { id, what: Some(what) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_stream_is_the_same_on_the_other_side() {
        for (client, ended, passed) in
            [(true, false, true), (false, true, false), (true, true, false), (false, false, true)]
        {
            let down = Left { rest: Bytes::from(vec![7; HANDOVER_PIECE + 1]), ended: passed };
            let token = Token::new().unwrap();
            let cut = Interrupted { socket: socket(), client, ended, down: down.clone(), reached: None };
            let moved = Moved::Stream(cut, token);
            assert_eq!(moved.sockets().len(), 1);
            let mut table = super::super::table::Table::new();
            table.offered(1, ()).unwrap();
            let mut arrived = None;
            for given in moved.pieces(1) {
                match given.what.unwrap() {
                    What::Rest(rest) => table.rest(1, &rest).unwrap(),
                    What::Go(go) => {
                        let ((), up, down) = table.go(1, &go).unwrap();
                        arrived = Some(Moved::read(&go, vec![socket()], up, down).unwrap());
                    }
                    What::Offer(_) | What::Withdrawn(_) => unreachable!("they are not among the pieces"),
                }
            }
            let Some(Moved::Stream(cut, by)) = arrived else { panic!("it has not come") };
            assert!(by == token && cut.down == down);
            assert_eq!((cut.client, cut.ended), (client, ended));
        }
    }

    /// By the kind it is judged: two sockets that were offered as a tunnel's end had an identity that nobody has vouched for.
    #[tokio::test]
    async fn what_was_not_offered_is_not_taken() {
        let stream = || {
            let (down, reached) = (Left::default(), None);
            let cut = Interrupted { socket: socket(), client: false, ended: false, down, reached };
            Moved::Stream(cut, Token::new().unwrap())
        };
        assert!(stream().if_offered(true).is_some() && stream().if_offered(false).is_none());
        let pair = || {
            let (up, down) = (Left::default(), Left::default());
            Moved::Pair(Parts { client: socket(), server: socket(), up, down })
        };
        assert!(pair().if_offered(false).is_some() && pair().if_offered(true).is_none());
    }

    #[test]
    fn a_connection_without_its_sockets_is_none() {
        let read = |token: Vec<u8>, sockets: usize| {
            let go = Go { token, ..Go::default() };
            Moved::read(&go, (0..sockets).map(|_| socket()).collect(), Left::default(), Left::default()).is_ok()
        };
        assert!(read(vec![], 2) && read(vec![1; 16], 1));
        assert!(!read(vec![], 1) && !read(vec![], 3) && !read(vec![1; 16], 2) && !read(vec![1; 15], 1));
    }
}
