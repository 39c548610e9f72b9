//! The pool's promises that time and load make visible: over streams in memory, with a clock of the test's own. What TLS has to
//! do with is in pool.rs.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Response};
use karst_hbone::{
    client::ClientError,
    continuation::{self, Token},
    pool::{Opened, Pool},
};
use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::DuplexStream,
    sync::Notify,
    task::{LocalSet, spawn_local},
    time::{Instant, sleep, timeout},
};

/// A tunnel that is not used is closed after this time.
const IDLE: Duration = Duration::from_secs(300);
/// A connection takes this long.
const CONNECT: Duration = Duration::from_secs(5);

/// What becomes of a stream.
enum Does {
    Answer,
    Nothing,
    /// It is refused without a look at it.
    Refuse,
    /// Its tunnel breaks.
    Break,
}

/// An endpoint, and how it was used.
struct Peer {
    /// What it does with a stream, by its number on all tunnels, from 0.
    does: fn(usize) -> Does,
    /// Is there anybody?
    is_there: bool,
    attempts: Cell<usize>,
    streams: Cell<usize>,
    open: RefCell<Vec<(SendStream<Bytes>, RecvStream)>>,
    unanswered: RefCell<Vec<SendResponse<Bytes>>>,
    go_away: Notify,
    /// How often the tunnels were looked at.
    looks: Cell<usize>,
}

impl Peer {
    fn new(does: fn(usize) -> Does) -> Rc<Self> {
        Rc::new(Self {
            does,
            is_there: true,
            attempts: Cell::default(),
            streams: Cell::default(),
            open: RefCell::default(),
            unanswered: RefCell::default(),
            go_away: Notify::new(),
            looks: Cell::default(),
        })
    }
    fn nobody() -> Rc<Self> {
        Rc::new(Self { is_there: false, ..Rc::into_inner(Self::new(|_| Does::Nothing)).unwrap() })
    }

    async fn serve(self: Rc<Self>, stream: DuplexStream) {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        loop {
            tokio::select! {
                accepted = connection.accept() => {
                    let Some(Ok((request, mut respond))) = accepted else { return };
                    match (self.does)(self.streams.replace(self.streams.get() + 1)) {
                        Does::Answer => {
                            let send = respond.send_response(Response::new(()), false).unwrap();
                            self.open.borrow_mut().push((send, request.into_body()));
                        }
                        Does::Nothing => self.unanswered.borrow_mut().push(respond),
                        Does::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        Does::Break => return,
                    }
                }
                () = self.go_away.notified() => connection.graceful_shutdown(),
            }
        }
    }

    async fn connect(self: Rc<Self>) -> Result<(SendRequest<Bytes>, Watched), ClientError> {
        self.attempts.set(self.attempts.get() + 1);
        sleep(CONNECT).await;
        if !self.is_there {
            let refused = Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
            return Err(ClientError::Connect("10.0.0.1:15008".parse().unwrap(), refused));
        }
        let (near, far) = tokio::io::duplex(64 << 10);
        spawn_local(self.clone().serve(far));
        let (send, connection) = h2::client::handshake(near).await.unwrap();
        Ok((send, Watched { connection, peer: self }))
    }
}

/// The driver of a tunnel; counts how often it is looked at.
struct Watched {
    connection: h2::client::Connection<DuplexStream>,
    peer: Rc<Peer>,
}

impl Future for Watched {
    type Output = Result<(), h2::Error>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.peer.looks.set(self.peer.looks.get() + 1);
        Pin::new(&mut self.connection).poll(cx)
    }
}

async fn open(pool: &Rc<Pool<u8>>, peer: &Rc<Peer>) -> Result<Opened, ClientError> {
    pool.open(&0, || peer.clone().connect(), "10.0.0.1:80", HeaderMap::new).await
}

/// All at once; how each went.
async fn open_many(pool: &Rc<Pool<u8>>, peer: &Rc<Peer>, count: usize) -> Vec<Result<Opened, ClientError>> {
    let one = || {
        let (pool, peer) = (pool.clone(), peer.clone());
        spawn_local(async move { open(&pool, &peer).await })
    };
    let tasks: Vec<_> = (0..count).map(|_| one()).collect();
    let mut all = vec![];
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_connection_waits_for_the_same_one() {
    let run = async {
        let (pool, peer, began) = (Pool::new(100, IDLE), Peer::new(|_| Does::Answer), Instant::now());
        let opened = open_many(&pool, &peer, 20).await;
        assert!(opened.iter().all(Result::is_ok));
        assert_eq!((peer.attempts.get(), peer.streams.get(), pool.len()), (1, 20, 1));
        // And if there is none, nobody waits longer than the first.
        let (pool, nobody) = (Pool::new(100, IDLE), Peer::nobody());
        let (before, failed) = (began.elapsed(), open_many(&pool, &nobody, 20).await);
        assert!(failed.iter().all(|r| r.as_ref().is_err_and(|e| matches!(e, ClientError::Connect(..)))));
        assert_eq!(nobody.attempts.get(), 1);
        assert!(began.elapsed() - before < CONNECT * 2, "{:?}", began.elapsed() - before);
        assert!(pool.is_empty());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_tunnel_gets_a_second_and_is_used_again() {
    let run = async {
        let (pool, peer) = (Pool::new(2, IDLE), Peer::new(|_| Does::Answer));
        let mut opened = vec![];
        for _ in 0..3 {
            opened.push(open(&pool, &peer).await.unwrap());
        }
        assert_eq!((peer.attempts.get(), pool.len()), (2, 2), "three do not fit on one");
        // One of the first tunnel's two ends: both have a place now, and the one that is fuller is not given another tunnel.
        drop(opened.remove(0));
        opened.push(open(&pool, &peer).await.unwrap());
        opened.push(open(&pool, &peer).await.unwrap());
        assert_eq!((peer.attempts.get(), pool.len()), (2, 2));
        opened.push(open(&pool, &peer).await.unwrap());
        assert_eq!(peer.attempts.get(), 3);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_closed_when_its_last_stream_is_long_gone() {
    let run = async {
        let (pool, peer) = (Pool::new(10, IDLE), Peer::new(|_| Does::Answer));
        let opened = open(&pool, &peer).await.unwrap();
        sleep(IDLE * 3).await;
        assert_eq!(pool.len(), 1, "it is in use");
        drop(opened);
        sleep(IDLE / 2).await;
        drop(open(&pool, &peer).await.unwrap());
        sleep(IDLE - Duration::from_secs(2)).await;
        assert_eq!((pool.len(), peer.attempts.get()), (1, 1), "the time counts from the last one's end");
        sleep(Duration::from_secs(4)).await;
        assert!(pool.is_empty());
        open(&pool, &peer).await.unwrap();
        assert_eq!(peer.attempts.get(), 2);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_in_use_costs_nothing_while_it_is_quiet() {
    let run = async {
        let (pool, peer) = (Pool::new(10, IDLE), Peer::new(|_| Does::Answer));
        let _opened = open(&pool, &peer).await.unwrap();
        sleep(IDLE * 2).await;
        peer.looks.set(0);
        sleep(Duration::from_secs(60)).await;
        // Once a second, and once more for each; without a bound it was 9,000.
        assert!(peer.looks.get() <= 2 * 61, "{} in a minute", peer.looks.get());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_whose_peer_did_not_answer_keeps_what_it_has_and_gets_no_more() {
    let run = async {
        let (pool, peer) =
            (Pool::new(10, IDLE), Peer::new(|stream| if stream == 1 { Does::Nothing } else { Does::Answer }));
        let mut first = open(&pool, &peer).await.unwrap();
        assert!(timeout(Duration::from_secs(2), open(&pool, &peer)).await.is_err());
        let _third = open(&pool, &peer).await.unwrap();
        assert_eq!((peer.attempts.get(), peer.streams.get()), (2, 3), "the third is on a fresh one");
        first.send.send_data(Bytes::from_static(b"x"), false).unwrap();
        assert!(timeout(Duration::from_secs(2), first.recv.data()).await.is_err(), "the first goes on");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_away_gets_no_more_streams_and_ends_those_it_has() {
    let run = async {
        let (pool, peer) = (Pool::new(10, IDLE), Peer::new(|_| Does::Answer));
        let mut first = open(&pool, &peer).await.unwrap();
        let tunnel = first.lease.tunnel();
        assert!(!tunnel.is_leaving());
        peer.go_away.notify_one();
        sleep(Duration::from_secs(1)).await;
        assert!(tunnel.is_leaving(), "who keeps a stream for later is told");
        let _second = open(&pool, &peer).await.unwrap();
        assert_eq!(peer.attempts.get(), 2);
        first.send.send_data(Bytes::from_static(b"x"), false).unwrap();
        assert!(timeout(Duration::from_secs(2), first.recv.data()).await.is_err(), "the first goes on");
    };
    LocalSet::new().run_until(run).await;
}

/// A rollback, or a node whose proxy is another one: what a connection's beginning has not gone to must not get its rest.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_know_of_continuation_gets_nothing_of_the_connection() {
    let run = async {
        let (pool, peer) = (Pool::new(10, IDLE), Peer::new(|_| Does::Answer));
        let mut headers = HeaderMap::new();
        continuation::name(&mut headers, &Token::new().unwrap());
        let opened = pool.open(&0, || peer.clone().connect(), "10.0.0.1:80", || headers.clone()).await;
        let error = opened.err().unwrap();
        assert!(matches!(error, ClientError::NotContinued) && !error.may_retry(), "{error}");
        let (_send, mut recv) = peer.open.borrow_mut().pop().unwrap();
        let ended = timeout(Duration::from_secs(2), recv.data()).await.unwrap();
        assert!(ended.is_some_and(|data| data.is_err()), "what it has begun is reset");
        // Others of its streams go on as ever.
        assert!(!open(&pool, &peer).await.unwrap().continues);
        assert_eq!(peer.attempts.get(), 1);
    };
    LocalSet::new().run_until(run).await;
}

/// It works once: whoever has taken it may have begun to use it, although no answer has come.
#[tokio::test(start_paused = true)]
async fn a_token_that_may_have_been_seen_is_not_shown_again() {
    let run = async {
        let mut token = HeaderMap::new();
        continuation::name(&mut token, &Token::new().unwrap());
        let second = async |does: fn(usize) -> Does, headers: &HeaderMap| {
            let (pool, peer) = (Pool::new(10, IDLE), Peer::new(does));
            let _first = open(&pool, &peer).await.unwrap();
            let opened = pool.open(&0, || peer.clone().connect(), "10.0.0.1:80", || headers.clone()).await;
            (opened.err(), peer.streams.get())
        };
        let breaks = |stream: usize| if stream == 1 { Does::Break } else { Does::Answer };
        let (error, streams) = second(breaks, &token).await;
        let error = error.unwrap();
        assert!(matches!(error, ClientError::Unanswered(_)) && !error.may_retry(), "{error}");
        assert_eq!(streams, 2, "nobody was asked a second time");
        // Of another connection nothing is used up.
        let (error, streams) = second(breaks, &HeaderMap::new()).await;
        assert!(error.is_none() && streams == 3, "{error:?} {streams}");
        // Who has not looked at it has not seen it. (This peer does not continue anything when it is asked again.)
        let refuses = |stream: usize| if stream == 1 { Does::Refuse } else { Does::Answer };
        let (error, streams) = second(refuses, &token).await;
        assert!(matches!(error, Some(ClientError::NotContinued)) && streams == 3, "{error:?} {streams}");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_says_is_made_once_for_each_try() {
    let run = async {
        let does = |stream: usize| if stream == 1 { Does::Break } else { Does::Answer };
        let (pool, peer, made) = (Pool::new(10, IDLE), Peer::new(does), Cell::new(0));
        let headers = || {
            made.set(made.get() + 1);
            HeaderMap::new()
        };
        let (mut opened, mut counts) = (vec![], vec![]);
        for _ in 0..2 {
            opened.push(pool.open(&0, || peer.clone().connect(), "10.0.0.1:80", headers).await.unwrap());
            counts.push((made.get(), peer.streams.get()));
        }
        assert_eq!(counts, [(1, 1), (3, 3)], "the second has lost its tunnel, and was tried on a fresh one");
    };
    LocalSet::new().run_until(run).await;
}
