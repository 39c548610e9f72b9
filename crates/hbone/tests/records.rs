//! Our record layer against plain rustls as the peer: sizes, fragmentation, key updates, tickets, and what must be refused.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

mod common;

use common::{A, ca};
use karst_hbone::{
    stream::{self, TlsStream},
    tls::{self, Credentials},
};
use std::{io, pin::Pin, task::Poll};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

async fn sockets() -> (TcpStream, TcpStream) {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(l.local_addr().unwrap()), l.accept());
    (a.unwrap(), b.unwrap().0)
}

/// Splitmix64: the same bytes and sizes in every run.
struct Numbers(u64);
impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Every order of magnitude is as likely.
    fn size(&mut self) -> usize {
        let bits = self.next() % 18;
        (self.next() % (2 << bits)) as usize + 1
    }
}

fn pattern(at: usize, n: usize) -> Vec<u8> {
    (at..at + n).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

const TOTAL: usize = 16 << 20;

/// Reads to the end with reads of all sizes; every byte must be the right one.
async fn read_all(s: &mut (impl AsyncRead + Unpin), mut numbers: Numbers) -> io::Result<usize> {
    let mut at = 0;
    loop {
        let mut buf = vec![0; numbers.size()];
        let n = s.read(&mut buf).await?;
        if n == 0 {
            return Ok(at);
        }
        assert_eq!(buf[..n], pattern(at, n), "bytes from {at}");
        at += n;
    }
}

async fn write_all(s: &mut (impl AsyncWrite + Unpin), mut numbers: Numbers) -> io::Result<()> {
    let mut at = 0;
    while at < TOTAL {
        let n = numbers.size().min(TOTAL - at);
        s.write_all(&pattern(at, n)).await?;
        at += n;
    }
    s.shutdown().await
}

/// Our stream as its task would drive it: each poll is a turn.
struct Turned(TlsStream);
impl AsyncRead for Turned {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        b: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let t = self.0.flush_turn();
        t.run(cx, |cx| Pin::new(&mut self.0).poll_read(cx, b))
    }
}
impl AsyncWrite for Turned {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>, b: &[u8]) -> Poll<io::Result<usize>> {
        // Alone, a write is a turn of its own only now and then: several are gathered, as HTTP/2's are.
        if !b.len().is_multiple_of(3) {
            return Pin::new(&mut self.0).poll_write(cx, b);
        }
        let t = self.0.flush_turn();
        t.run(cx, |cx| Pin::new(&mut self.0).poll_write(cx, b))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn every_size_in_both_roles_and_directions() {
    let c = common::credentials(&ca(), A);
    let name = tls::server_name([127, 0, 0, 1].into());
    for seed in 0..2 {
        // We are the client.
        let (a, b) = sockets().await;
        let acceptor = TlsAcceptor::from(c.server.clone());
        let (ours, theirs) = tokio::join!(stream::connect(a, &c.client, name.clone()), acceptor.accept(b));
        let (mut ours, mut theirs) = (Turned(ours.unwrap().0), theirs.unwrap());
        let (r, w) =
            tokio::try_join!(read_all(&mut theirs, Numbers(seed)), write_all(&mut ours, Numbers(seed + 10))).unwrap();
        assert_eq!((r, w), (TOTAL, ()));
        let (r, w) =
            tokio::try_join!(read_all(&mut ours, Numbers(seed)), write_all(&mut theirs, Numbers(seed + 10))).unwrap();
        assert_eq!((r, w), (TOTAL, ()));
        // We are the server.
        let (a, b) = sockets().await;
        let connector = TlsConnector::from(c.client.clone());
        let (ours, theirs) = tokio::join!(stream::accept(b, &c.server), connector.connect(name.clone(), a));
        let (mut ours, mut theirs) = (Turned(ours.unwrap().0), theirs.unwrap());
        let (r, w) =
            tokio::try_join!(read_all(&mut ours, Numbers(seed)), write_all(&mut theirs, Numbers(seed + 10))).unwrap();
        assert_eq!((r, w), (TOTAL, ()));
        let (r, w) =
            tokio::try_join!(read_all(&mut theirs, Numbers(seed)), write_all(&mut ours, Numbers(seed + 10))).unwrap();
        assert_eq!((r, w), (TOTAL, ()));
    }
}

#[tokio::test]
async fn two_of_ours_in_both_directions_at_once() {
    let c = common::credentials(&ca(), A);
    let (a, b) = sockets().await;
    let (x, y) = tokio::join!(
        stream::connect(a, &c.client, tls::server_name([127, 0, 0, 1].into())),
        stream::accept(b, &c.server)
    );
    let (x, y) = (Turned(x.unwrap().0), Turned(y.unwrap().0));
    let ((mut xr, mut xw), (mut yr, mut yw)) = (tokio::io::split(x), tokio::io::split(y));
    let all = tokio::try_join!(
        read_all(&mut xr, Numbers(1)),
        write_all(&mut xw, Numbers(2)),
        read_all(&mut yr, Numbers(3)),
        write_all(&mut yw, Numbers(4))
    );
    assert_eq!(all.unwrap(), (TOTAL, (), TOTAL, ()));
}

/// Our stream, and a peer that can say anything: rustls without a socket, its records in our hands.
struct Rig {
    ours: Turned,
    peer: rustls::ServerConnection,
    socket: TcpStream,
}

impl Rig {
    async fn new(c: &Credentials) -> Self {
        let (a, mut b) = sockets().await;
        let mut peer = rustls::ServerConnection::new(c.server.clone()).unwrap();
        let theirs = async {
            while peer.is_handshaking() {
                let mut buf = vec![0; 64 << 10];
                let n = b.read(&mut buf).await.unwrap();
                let mut bytes = &buf[..n];
                while !bytes.is_empty() {
                    peer.read_tls(&mut bytes).unwrap();
                    peer.process_new_packets().unwrap();
                }
                let mut out = vec![];
                while peer.wants_write() {
                    peer.write_tls(&mut out).unwrap();
                }
                b.write_all(&out).await.unwrap();
            }
        };
        let name = tls::server_name([127, 0, 0, 1].into());
        let (ours, ()) = tokio::join!(stream::connect(a, &c.client, name), theirs);
        Self { ours: Turned(ours.unwrap().0), peer, socket: b }
    }
    /// What the peer would send now.
    fn records(&mut self) -> Vec<u8> {
        let mut out = vec![];
        while self.peer.wants_write() {
            self.peer.write_tls(&mut out).unwrap();
        }
        out
    }
    fn say(&mut self, text: &[u8]) -> Vec<u8> {
        io::Write::write_all(&mut self.peer.writer(), text).unwrap();
        self.records()
    }
    async fn hear(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.socket.write_all(bytes).await?;
        let mut buf = vec![0; 1 << 10];
        let n = self.ours.read(&mut buf).await?;
        buf.truncate(n);
        Ok(buf)
    }
    /// The alert that the peer gets from us.
    async fn alert(&mut self) -> String {
        let mut buf = vec![0; 4 << 10];
        let n = self.socket.read(&mut buf).await.unwrap();
        self.peer.read_tls(&mut &buf[..n]).unwrap();
        self.peer.process_new_packets().unwrap_err().to_string()
    }
}

#[tokio::test]
async fn keys_change_when_the_peer_changes_them() {
    let c = common::credentials(&ca(), A);
    let mut r = Rig::new(&c).await;
    for round in 0..100u8 {
        r.peer.refresh_traffic_keys().unwrap();
        let bytes = r.say(&[round; 3]);
        assert_eq!(r.hear(&bytes).await.unwrap(), [round; 3]);
        // Asked for ours, too (update_requested): what we send is read with the new key.
        r.ours.write_all(&[round; 6]).await.unwrap();
        let mut got = vec![];
        while got.is_empty() {
            let mut buf = vec![0; 4 << 10];
            let n = r.socket.read(&mut buf).await.unwrap();
            r.peer.read_tls(&mut &buf[..n]).unwrap();
            r.peer.process_new_packets().unwrap();
            let mut text = [0; 16];
            if let Ok(n) = io::Read::read(&mut r.peer.reader(), &mut text) {
                got = text[..n].to_vec();
            }
        }
        assert_eq!(got, [round; 6]);
    }
}

#[tokio::test]
async fn a_ticket_serves_the_next_handshake() {
    let c = common::credentials(&ca(), A);
    for i in 0..3 {
        let (a, b) = sockets().await;
        let acceptor = TlsAcceptor::from(c.server.clone());
        let name = tls::server_name([127, 0, 0, 1].into());
        let (ours, theirs) = tokio::join!(stream::connect(a, &c.client, name), acceptor.accept(b));
        let (mut ours, mut theirs) = (Turned(ours.unwrap().0), theirs.unwrap());
        let kind = theirs.get_ref().1.handshake_kind().unwrap();
        assert_eq!(kind == rustls::HandshakeKind::Resumed, i > 0, "handshake {i} was {kind:?}");
        assert!(theirs.get_ref().1.peer_certificates().is_some(), "a resumed session still has its peer");
        // The ticket comes in front of the data.
        theirs.write_all(b"x").await.unwrap();
        theirs.flush().await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn what_is_not_the_peers_is_refused() {
    let c = common::credentials(&ca(), A);
    let flip = |at: fn(usize) -> usize| {
        move |r: &mut Rig| {
            let mut b = r.say(b"hello");
            let at = at(b.len());
            b[at] ^= 1;
            b
        }
    };
    let table: Vec<(&str, Box<dyn Fn(&mut Rig) -> Vec<u8>>, &str)> = vec![
        ("a bit of the text", Box::new(flip(|_| 6)), "BadRecordMac"),
        ("a bit of the tag", Box::new(flip(|n| n - 1)), "BadRecordMac"),
        ("a bit of the version in the header", Box::new(flip(|_| 1)), "BadRecordMac"),
        (
            "a record twice",
            Box::new(|r| {
                let b = r.say(b"hello");
                [&b[..], &b[..]].concat()
            }),
            "BadRecordMac",
        ),
        (
            "a record left out",
            Box::new(|r| {
                r.say(b"one");
                r.say(b"two")
            }),
            "BadRecordMac",
        ),
        ("a record in the clear", Box::new(|_| vec![22, 3, 3, 0, 1, 0]), "UnexpectedMessage"),
        ("a change_cipher_spec", Box::new(|_| vec![20, 3, 3, 0, 1, 1]), "UnexpectedMessage"),
        ("HTTP", Box::new(|_| b"GET / HTTP/1.1\r\n".to_vec()), "UnexpectedMessage"),
        ("a record that says it is too long", Box::new(|_| vec![23, 3, 3, 0x41, 1]), "RecordOverflow"),
        (
            "nothing but empty records",
            Box::new(|r| {
                // rustls sends no empty records by itself; key updates carry as little.
                for _ in 0..40 {
                    r.peer.refresh_traffic_keys().unwrap();
                }
                r.records()
            }),
            "UnexpectedMessage",
        ),
    ];
    for (what, bytes, alert) in table {
        let mut r = Rig::new(&c).await;
        let bytes = bytes(&mut r);
        let mut heard = r.hear(&bytes).await;
        if heard.is_ok() {
            heard = r.hear(&[]).await;
        }
        let e = heard.expect_err(what);
        assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{what}: {e}");
        assert!(r.ours.read_u8().await.is_err(), "{what}: read again");
        assert!(r.ours.write_all(&[0; 3]).await.is_err(), "{what}: written to");
        let said = r.alert().await;
        assert!(said.contains(alert), "{what}: the peer was told {said}");
    }
    // The end without close_notify is no end.
    let Rig { mut ours, socket, .. } = Rig::new(&c).await;
    drop(socket);
    assert_eq!(ours.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let mut r = Rig::new(&c).await;
    r.peer.send_close_notify();
    let bytes = r.records();
    assert_eq!(r.hear(&bytes).await.unwrap(), b"", "close_notify is the end");
}
