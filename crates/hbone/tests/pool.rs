//! Streams on pooled tunnels: which failures are healed by a fresh tunnel, and which are not.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod common;

use common::{A, ca, credentials};
use http::{HeaderMap, Response, StatusCode};
use karst_hbone::{
    Settings,
    client::{self, ClientError},
    pool::Pool,
    server,
};
use karst_rt::drain;
use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

/// What the peer does with its n-th tunnel's streams, from 0.
#[derive(Clone, Copy)]
enum Does {
    Answer(u16),
    /// Answers the first stream, and vanishes at the second, as a pod does whose address is another's by now.
    AnswerOnce,
    Vanish,
}

/// A peer; counts its tunnels.
async fn peer(script: &'static [Does]) -> (SocketAddr, Rc<Cell<usize>>) {
    let (l, tunnels) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Rc::new(Cell::new(0)));
    let at = l.local_addr().unwrap();
    let count = tunnels.clone();
    let creds = Arc::new(credentials(&ca_shared(), A));
    spawn_local(async move {
        while let Ok((s, _)) = l.accept().await {
            let does = script[count.get().min(script.len() - 1)];
            count.set(count.get() + 1);
            let creds = creds.clone();
            spawn_local(async move {
                let (stream, _) = server::handshake(s, &creds).await.unwrap();
                let ((_drain, watch), settings) = (drain::new(), Settings::default());
                let (gone, seen) = (Rc::new(tokio::sync::Notify::new()), Rc::new(Cell::new(0)));
                let end = gone.clone();
                let on_stream = move |mut c: server::Connect| {
                    let n = seen.replace(seen.get() + 1);
                    let status = match does {
                        Does::Answer(s) => s,
                        Does::AnswerOnce if n == 0 => 200,
                        Does::AnswerOnce | Does::Vanish => return gone.notify_one(),
                    };
                    let mut r = Response::new(());
                    *r.status_mut() = StatusCode::from_u16(status).unwrap();
                    let _ = c.respond.send_response(r, true);
                };
                tokio::select! {
                    _ = server::serve(stream, &settings, watch, on_stream) => {}
                    () = end.notified() => {}
                };
            });
        }
    });
    (at, tunnels)
}

thread_local! {
    static CA: std::cell::OnceCell<Rc<common::Ca>> = const { std::cell::OnceCell::new() };
}
fn ca_shared() -> Rc<common::Ca> {
    CA.with(|c| c.get_or_init(|| Rc::new(ca())).clone())
}

async fn open(pool: &Rc<Pool<SocketAddr>>, at: SocketAddr) -> Result<(), ClientError> {
    let creds = Rc::new(credentials(&ca_shared(), A));
    let dial = || {
        let creds = creds.clone();
        async move {
            let tcp = TcpStream::connect(at).await.map_err(|e| ClientError::Connect(at, e.into()))?;
            client::handshake(tcp, at, &creds, &[A.parse().unwrap()], &Settings::default()).await
        }
    };
    pool.open(&at, dial, "10.0.0.1:80", HeaderMap::new).await.map(drop)
}

async fn tried(script: &'static [Does], streams: usize) -> (Vec<Option<bool>>, usize) {
    let run = async {
        let (at, tunnels) = peer(script).await;
        let pool = Pool::new(10, Duration::from_secs(60));
        let mut seen = vec![];
        for _ in 0..streams {
            // None: it was opened. Else: may another endpoint be tried?
            seen.push(open(&pool, at).await.err().map(|e| e.may_retry()));
        }
        (seen, tunnels.get())
    };
    LocalSet::new().run_until(run).await
}

#[tokio::test]
async fn a_used_tunnel_that_has_lost_its_peer_is_replaced_once() {
    let (seen, tunnels) = tried(&[Does::AnswerOnce, Does::Answer(200)], 4).await;
    assert_eq!(seen, [None; 4], "nobody sees it");
    assert_eq!(tunnels, 2);
}

#[tokio::test]
async fn a_fresh_tunnel_that_breaks_is_not_tried_again_here() {
    let (seen, tunnels) = tried(&[Does::Vanish], 2).await;
    assert_eq!(seen, [Some(true), Some(true)], "another endpoint may be");
    assert_eq!(tunnels, 2);
}

#[tokio::test]
async fn an_answer_is_no_reason_for_another_tunnel() {
    for (status, elsewhere) in
        [(503, true), (404, false), (400, false), (401, false), (403, false), (429, false), (501, false)]
    {
        let script: &'static [Does] = Box::leak(Box::new([Does::Answer(status)]));
        let (seen, tunnels) = tried(script, 2).await;
        assert_eq!((seen, tunnels), (vec![Some(elsewhere); 2], 1), "{status}");
    }
}

#[tokio::test]
async fn of_unused_tunnels_those_that_were_used_last_stay() {
    let run = async {
        let pool = Pool::new(10, Duration::from_secs(60));
        let mut at = vec![];
        for _ in 0..4 {
            let (peer, _) = peer(&[Does::Answer(200)]).await;
            open(&pool, peer).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
            at.push(peer);
        }
        let (other, kept) = (at[0], [at[0], at[3]]);
        assert_eq!(pool.make_room(|to| *to != other, 4), 3, "there is room");
        assert_eq!(pool.make_room(|to| *to != other, 2), 1, "with the new one there are two");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(pool.len(), 2);
        pool.retire(|to| kept.contains(to));
        assert!(pool.is_empty(), "the others are closed");
    };
    LocalSet::new().run_until(run).await;
}
