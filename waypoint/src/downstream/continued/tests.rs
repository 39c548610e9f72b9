//! Streams in memory, whose other side is the test; time is paused.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use super::*;
use crate::downstream::stream::Io;
use h2::client::SendRequest;
use karst_hbone::parking;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    task::{LocalSet, spawn_local},
    time::{Instant, sleep},
};

type Stream = (SendStream<Bytes>, RecvStream);

/// A tunnel in memory: a client's handle, and the server's side of each stream.
struct Wire {
    client: SendRequest<Bytes>,
    accepted: mpsc::UnboundedReceiver<Stream>,
}

impl Wire {
    async fn new() -> Self {
        let (near, far) = tokio::io::duplex(256 << 10);
        let (tx, accepted) = mpsc::unbounded_channel();
        spawn_local(async move {
            let mut connection = h2::server::handshake(far).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let send = respond.send_response(http::Response::new(()), false).unwrap();
                let _ = tx.send((send, request.into_body()));
            }
        });
        let (client, connection) = h2::client::handshake(near).await.unwrap();
        spawn_local(connection);
        Self { client, accepted }
    }

    /// A stream: the client's side, and the server's.
    async fn open(&mut self) -> (Stream, Stream) {
        let mut ready = self.client.clone().ready().await.unwrap();
        let request = http::Request::connect("a:1").body(()).unwrap();
        let (response, send) = ready.send_request(request, false).unwrap();
        let recv = response.await.unwrap().into_body();
        ((send, recv), self.accepted.recv().await.unwrap())
    }
}

fn bound() -> Bound {
    Bound {
        peer: "spiffe://td/ns/a/sa/a".parse().unwrap(),
        from: [10, 0, 0, 1].into(),
        owner: "ns/s".into(),
        to: ([10, 96, 0, 1], 80).into(),
    }
}

fn next((send, recv): Stream) -> Next {
    Next { send, recv, held: Box::new(()) }
}

/// A server's side that waits for its client's next stream.
fn waits(parking: &Parking<Place>, stream: Stream) -> Io {
    let waits = Waits { parking: parking.clone(), bound: bound() };
    Io::continuing(next(stream), false, Box::new(waits), mpsc::unbounded_channel().0)
}

fn lot() -> Parking<Place> {
    let (parking, orders): (Parking<Place>, _) = parking::new();
    spawn_local(parking::run(orders));
    parking
}

fn bytes(seed: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n / 5) as u8 ^ (n >> 12) as u8 ^ seed as u8).collect()
}

async fn data(recv: &mut RecvStream) -> Option<Bytes> {
    let data = recv.data().await?.unwrap();
    recv.flow_control().release_capacity(data.len()).unwrap();
    Some(data)
}

/// All until the half's end, and what it has ended with.
async fn rest(recv: &mut RecvStream) -> (Vec<u8>, Option<Said>) {
    let mut all = vec![];
    while let Some(data) = data(recv).await {
        all.extend_from_slice(&data);
    }
    let trailers = recv.trailers().await.unwrap();
    (all, trailers.as_ref().map(continuation::said))
}

/// The test's side leaves.
fn leave(send: &mut SendStream<Bytes>) -> Token {
    let (token, mut trailers) = (Token::new().unwrap(), HeaderMap::new());
    continuation::name(&mut trailers, &token);
    send.send_trailers(trailers).unwrap();
    token
}

/// The stream that shows the token comes.
async fn give(parking: &Parking<Place>, token: Token, stream: Stream) {
    let place = parking.claim(token, bound()).await.unwrap();
    assert!(place.send(next(stream)).is_ok());
}

async fn echo(mut io: Io) {
    let mut buf = vec![0; 10_000];
    while let Ok(length @ 1..) = io.read(&mut buf).await {
        io.write_all(&buf[..length]).await.unwrap();
    }
    io.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_goes_on_in_stream_after_stream() {
    let run = async {
        let (mut wire, parking) = (Wire::new().await, lot());
        let ((mut send, mut recv), theirs) = wire.open().await;
        spawn_local(echo(waits(&parking, theirs)));
        let (mut said, mut heard) = (vec![], vec![]);
        for n in 0..20 {
            let some = bytes(n, 1 + n as usize * 2777);
            send.send_data(some.clone().into(), false).unwrap();
            said.extend(some);
            // The rest of the answer comes while it leaves, and in the next stream.
            while heard.len() < said.len() / 2 {
                heard.extend(data(&mut recv).await.unwrap());
            }
            let token = leave(&mut send);
            let (more, end) = rest(&mut recv).await;
            assert_eq!(end, Some(Said::Token(token)), "both halves go on");
            heard.extend(more);
            let (ours, theirs) = wire.open().await;
            give(&parking, token, theirs).await;
            (send, recv) = ours;
        }
        send.send_data(Bytes::new(), true).unwrap();
        let (more, end) = rest(&mut recv).await;
        heard.extend(more);
        assert!(heard == said && end.is_none(), "{} of {} bytes", heard.len(), said.len());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_stays_ended() {
    let run = async {
        let (mut wire, parking) = (Wire::new().await, lot());
        let ((mut send, mut recv), theirs) = wire.open().await;
        let mut io = waits(&parking, theirs);
        io.write_all(b"bye").await.unwrap();
        io.shutdown().await.unwrap();
        let reader = spawn_local(async move {
            let mut all = vec![];
            io.read_to_end(&mut all).await.map(|_| all)
        });
        for _ in 0..2 {
            send.send_data(Bytes::from_static(b"more "), false).unwrap();
            let token = leave(&mut send);
            let (all, end) = rest(&mut recv).await;
            assert!(all.is_empty() || all == b"bye");
            assert!(end.is_none(), "our half has ended, and can say nothing any more");
            let (ours, theirs) = wire.open().await;
            give(&parking, token, theirs).await;
            (send, recv) = ours;
        }
        let (all, end) = rest(&mut recv).await;
        assert!(all.is_empty() && end.is_none(), "the end is said in each stream");
        send.send_data(Bytes::from_static(b"and out"), true).unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), b"more more and out");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn an_end_that_falls_between_two_streams_is_said_in_the_next() {
    let run = async {
        let (mut wire, parking) = (Wire::new().await, lot());
        let ((mut send, mut recv), theirs) = wire.open().await;
        let (mut rd, mut wr) = tokio::io::split(waits(&parking, theirs));
        let reader = spawn_local(async move { rd.read(&mut [0]).await });
        let token = leave(&mut send);
        assert_eq!(rest(&mut recv).await.1, Some(Said::Token(token)));
        wr.shutdown().await.unwrap();
        let ((mut send, mut recv), theirs) = wire.open().await;
        give(&parking, token, theirs).await;
        let (all, end) = rest(&mut recv).await;
        assert!(all.is_empty() && end.is_none());
        send.send_data(Bytes::new(), true).unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), 0);
    };
    LocalSet::new().run_until(run).await;
}

/// The writer waits for room in the stream that ends, and is another task than the reader, who hears of the end.
#[tokio::test(start_paused = true)]
async fn who_waits_for_room_goes_on_in_the_next_stream() {
    let run = async {
        let (mut wire, parking, all) = (Wire::new().await, lot(), bytes(7, 300_000));
        let ((mut send, mut recv), theirs) = wire.open().await;
        let (mut rd, mut wr) = tokio::io::split(waits(&parking, theirs));
        let said = all.clone();
        let writer = spawn_local(async move {
            wr.write_all(&said).await?;
            wr.shutdown().await
        });
        let reader = spawn_local(async move { rd.read(&mut [0]).await });
        sleep(Duration::from_secs(1)).await;
        let token = leave(&mut send);
        let (mut heard, end) = rest(&mut recv).await;
        assert!(end == Some(Said::Token(token)) && heard.len() < all.len());
        let ((mut send, mut recv), theirs) = wire.open().await;
        give(&parking, token, theirs).await;
        let (more, end) = rest(&mut recv).await;
        heard.extend(more);
        assert!(heard == all && end.is_none(), "{} of {} bytes", heard.len(), all.len());
        writer.await.unwrap().unwrap();
        send.send_data(Bytes::new(), true).unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), 0);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_next_stream_it_is_broken_off() {
    let run = async {
        let (mut wire, parking) = (Wire::new().await, lot());
        let ((mut send, mut recv), theirs) = wire.open().await;
        let mut io = waits(&parking, theirs);
        let token = leave(&mut send);
        let (began, mut byte) = (Instant::now(), [0]);
        let (read, (_, end)) = tokio::join!(io.read(&mut byte), rest(&mut recv));
        assert_eq!(end, Some(Said::Token(token)));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "it is no end");
        let took = began.elapsed();
        assert!((Duration::from_secs(14)..Duration::from_secs(17)).contains(&took), "{took:?}");
        assert_eq!(io.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(io.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(parking.claim(token, bound()).await.is_none(), "nobody is given it any more");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_reset_in_the_next_stream_is_a_reset() {
    let run = async {
        let (mut wire, parking) = (Wire::new().await, lot());
        let ((mut send, mut recv), theirs) = wire.open().await;
        let mut io = waits(&parking, theirs);
        let reader = spawn_local(async move { io.read(&mut [0]).await });
        let token = leave(&mut send);
        rest(&mut recv).await;
        let ((mut send, _recv), theirs) = wire.open().await;
        give(&parking, token, theirs).await;
        send.send_reset(Reason::CANCEL);
        assert_eq!(reader.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    };
    LocalSet::new().run_until(run).await;
}

/// Gives the test what it asks for.
struct Asks(mpsc::UnboundedSender<(Token, Place)>);

impl Resume for Asks {
    fn next(&self, token: Token) -> NextStream {
        let (place, arrives) = oneshot::channel();
        let _ = self.0.send((token, place));
        Box::pin(async move { arrives.await.ok() })
    }
}

/// The place on a tunnel is given back when the next stream has one.
#[tokio::test(start_paused = true)]
async fn who_has_opened_the_stream_asks_for_the_next_by_the_servers_token() {
    let run = async {
        let mut wire = Wire::new().await;
        let (tx, mut asked) = mpsc::unbounded_channel();
        let ((send, recv), (mut theirs, mut heard)) = wire.open().await;
        let (held, gone) = oneshot::channel::<()>();
        let first = Next { send, recv, held: Box::new(held) };
        let mut io = Io::continuing(first, true, Box::new(Asks(tx)), mpsc::unbounded_channel().0);
        io.write_all(b"first").await.unwrap();
        let token = leave(&mut theirs);
        let reader = spawn_local(async move {
            let mut four = [0; 4];
            io.read_exact(&mut four).await.map(|_| (four, io))
        });
        assert_eq!(rest(&mut heard).await, (b"first".to_vec(), Some(Said::Token(token))));
        let (named, place) = asked.recv().await.unwrap();
        assert!(named == token && !place.is_closed());
        let (ours, (mut theirs, _heard)) = wire.open().await;
        assert!(place.send(next(ours)).is_ok());
        theirs.send_data(Bytes::from_static(b"next"), false).unwrap();
        let (four, _io) = reader.await.unwrap().unwrap();
        assert_eq!(&four, b"next");
        assert!(gone.await.is_err(), "the first place is given back");
    };
    LocalSet::new().run_until(run).await;
}

/// Of a peer that has not said that it knows, trailers are an end.
#[tokio::test(start_paused = true)]
async fn without_an_agreement_trailers_mean_nothing() {
    let run = async {
        let mut wire = Wire::new().await;
        let ((mut send, mut recv), (theirs, body)) = wire.open().await;
        spawn_local(echo(Io::tunnel(theirs, body, mpsc::unbounded_channel().0)));
        send.send_data(Bytes::from_static(b"all"), false).unwrap();
        leave(&mut send);
        assert_eq!(rest(&mut recv).await, (b"all".to_vec(), None));
    };
    LocalSet::new().run_until(run).await;
}
