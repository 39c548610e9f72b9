//! Circuit breaking and rate limits.

use super::*;
use crate::{
    downstream::tcp::{connect_tcp, relay},
    upstream::error::ConnectError,
};
use http::HeaderValue;
use std::cell::Cell;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
};

fn limited(limits: ir::Limits) -> impl FnOnce(&mut Snapshot) {
    move |s| policy(s, ir::Policy { limits: Some(limits), ..Default::default() })
}

/// Answers of requests that come at the same time.
async fn at_once(m: &Rc<Mesh>, n: usize) -> Vec<u16> {
    let one = |_| {
        let m = m.clone();
        spawn_local(async move { m.ask(get("/")).await.0.as_u16() })
    };
    let mut all = vec![];
    for task in (0..n).map(one).collect::<Vec<_>>() {
        all.push(task.await.unwrap());
    }
    all.sort_unstable();
    all
}

fn slow(_: usize, _: &Seen) -> Does {
    Does::After(Duration::from_secs(1), Response::new(payload("ok")))
}

#[test]
fn more_requests_than_may_be_are_refused_at_once() {
    run(async {
        let m = Rc::new(Mesh::of(limited(ir::Limits { max_requests: 2, ..Default::default() }), slow));
        assert_eq!(at_once(&m, 4).await, [200, 200, 503, 503]);
        assert!(logged(" 503 UO "));
        assert_eq!(at_once(&m, 2).await, [200, 200], "the places are given back");
    });
}

#[test]
fn requests_wait_for_a_connection_as_many_as_may() {
    run(async {
        let limits = ir::Limits { max_connections: 1, max_pending: 2, ..Default::default() };
        let m = Rc::new(Mesh::of(limited(limits), slow));
        let began = Instant::now();
        assert_eq!(at_once(&m, 4).await, [200, 200, 200, 503]);
        assert_eq!(began.elapsed().as_secs(), 3, "one after the other");
    });
}

#[test]
fn no_more_streams_are_on_a_connection_than_may_be() {
    run(async {
        let limits = ir::Limits { concurrent_streams: 2, ..Default::default() };
        let m = Rc::new(Mesh::new(1, AppProtocol::Http2, limited(limits)));
        let most = Rc::new(Cell::new(0_u32));
        let seen = most.clone();
        m.memory.listen(address(0), move |io| {
            let (most, streams) = (seen.clone(), Rc::new(Cell::new(0_u32)));
            let slow = move |_: Request<Incoming>| -> Answering {
                let (most, streams) = (most.clone(), streams.clone());
                Box::pin(async move {
                    streams.set(streams.get() + 1);
                    most.set(streams.get().max(most.get()));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    streams.set(streams.get() - 1);
                    Ok(Response::new(payload("ok")))
                })
            };
            spawn(serve_http2(io, http2::Builder::new(codec::Local), Rc::new(slow)));
        });
        assert_eq!(at_once(&m, 1).await, [200]);
        // The connection that is there takes two of them.
        assert_eq!(at_once(&m, 6).await, [200; 6]);
        assert_eq!(most.get(), 2);
    });
}

#[test]
fn a_connection_on_which_nothing_passes_ends_after_its_time() {
    run(async {
        let limits = ir::Limits { tcp_idle_ms: 1000, ..Default::default() };
        for (idle, limits) in [(true, limits), (false, ir::Limits::default())] {
            let m = Mesh::new(1, AppProtocol::Tcp, limited(limits));
            m.memory.listen(address(0), |io| {
                let (mut from, mut to) = tokio::io::split(io);
                spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            });
            let Ok(to) = connect_tcp(&m.worker, &m.downstream()).await else { panic!("no connection") };
            let (mut client, io) = tokio::io::duplex(64);
            spawn(relay(Io::memory(io), to));
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(900)).await;
                client.write_all(b"x").await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), b'x');
            }
            let last = Instant::now();
            let end = tokio::time::timeout(Duration::from_secs(60), client.read(&mut [0])).await;
            assert_eq!(end.is_ok_and(|n| n.unwrap() == 0), idle);
            let silent = last.elapsed().as_millis();
            assert!(!idle || (1000..=1250).contains(&silent), "{silent}");
            assert_eq!(logged("\"idle for 1000 ms\""), idle);
            LINES.take();
        }
    });
}

#[test]
fn connections_that_fail_are_counted_in_a_row() {
    run(async {
        let outlier = ir::Outlier { consecutive_5xx: 4, ejection_ms: 60_000, ..Default::default() };
        let m = Mesh::new(1, AppProtocol::Tcp, |s| {
            policy(s, ir::Policy { outlier: Some(outlier), ..Default::default() });
        });
        let connected = async || connect_tcp(&m.worker, &m.downstream()).await.is_ok();
        // Three tries each.
        for _ in 0..3 {
            m.memory.fail(address(0), || ConnectError::Timeout);
            assert!(!connected().await);
            m.memory.listen(address(0), drop);
            assert!(connected().await, "not in a row");
        }
        m.memory.fail(address(0), || ConnectError::Timeout);
        assert!(!connected().await && !connected().await);
        m.memory.listen(address(0), drop);
        assert!(!connected().await, "ejected");
    });
}

#[test]
fn a_rate_limit_refuses_what_is_above_it_and_says_when_to_come_again() {
    run(async {
        let limit = ir::RateLimit { name: "l".into(), requests: 1, per_ms: 10_000, burst: 2, ..Default::default() };
        let m = Mesh::of(route(|r| r.limits = vec![limit]), |_, _| status(200));
        for _ in 0..2 {
            assert_eq!(m.ask(get("/")).await.0, 200);
        }
        let a = m.send(get("/")).await;
        assert_eq!((a.status().as_u16(), m.count()), (429, 2));
        assert_eq!(a.headers()["retry-after"], "10");
        assert!(logged(" 429 RL local_rate_limited "));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(m.ask(get("/")).await.0, 200);
        assert_eq!(m.ask(get("/")).await.0, 429);
    });
}

/// Requests with other values of a limit's keys do not count against each other; those without share a bucket.
#[test]
fn a_limit_counts_by_the_values_of_its_keys() {
    use ir::rate_limit_key::Key;
    run(async {
        let limited_by = |keys: &[Key]| {
            let keys = keys.iter().map(|key| ir::RateLimitKey { key: Some(key.clone()) }).collect();
            let limit =
                ir::RateLimit { name: "l".into(), requests: 1, per_ms: 10_000, burst: 1, keys, ..Default::default() };
            Mesh::of(route(|r| r.limits = vec![limit]), |_, _| status(200))
        };
        let with = |path: &str, tenant: &'static str| {
            let mut request = get(path);
            if !tenant.is_empty() {
                request.headers_mut().insert("x-tenant", HeaderValue::from_static(tenant));
            }
            request
        };
        let header = Key::Header("x-tenant".into());
        for (keys, requests) in [
            (
                vec![header.clone()],
                [("/", "a", 200), ("/x", "a", 429), ("/", "b", 200), ("/", "", 200), ("/x", "", 429)],
            ),
            (
                vec![Key::Path(true)],
                [("/", "a", 200), ("/?q", "b", 429), ("/x", "a", 200), ("/x", "", 429), ("/y", "", 200)],
            ),
            (
                vec![Key::Path(true), header],
                [("/", "a", 200), ("/", "b", 200), ("/x", "a", 200), ("/", "a", 429), ("/x", "", 200)],
            ),
            (
                vec![Key::Query("user".into())],
                [
                    ("/?user=a", "", 200),
                    ("/x?a=b&user=a", "", 429),
                    ("/?user=b", "", 200),
                    ("/", "", 200),
                    ("/?x=a", "", 429),
                ],
            ),
            // One client, by whatever it is told apart.
            (
                vec![Key::Caller(true)],
                [("/", "", 200), ("/", "a", 429), ("/x", "", 429), ("/", "b", 429), ("/y", "", 429)],
            ),
            (
                vec![Key::SourceAddress(true)],
                [("/", "", 200), ("/", "a", 429), ("/x", "", 429), ("/", "", 429), ("/y", "", 429)],
            ),
        ] {
            let m = limited_by(&keys);
            for (path, tenant, wanted) in requests {
                assert_eq!(m.ask(with(path, tenant)).await.0.as_u16(), wanted, "{keys:?} {path} {tenant}");
            }
        }
    });
}

/// How many of the requests after the first so many have gone to endpoint 0.
fn of_first(m: &Mesh, after: usize) -> usize {
    m.seen.borrow().iter().skip(after).filter(|seen| seen.endpoint == 0).count()
}

/// One that says that it has too much to do gets an eleventh of what two get, for as long as it says; then its half again.
#[test]
fn an_overloaded_endpoint_is_chosen_less_for_as_long_as_it_says() {
    run(async {
        let m = Mesh::new(2, AppProtocol::Http11, |_| {});
        let is_busy = Rc::new(Cell::new(true));
        let refusal = || Response::builder().status(429).header("retry-after", "5").body(payload("later")).unwrap();
        let busy = is_busy.clone();
        m.listen(0, move |_, _| if busy.get() { Does::Answer(refusal()) } else { status(200) });
        m.listen(1, |_, _| status(200));
        while of_first(&m, 0) == 0 {
            m.ask(get("/")).await;
        }
        let before = m.count();
        for _ in 0..400 {
            m.ask(get("/")).await;
        }
        assert!((5..100).contains(&of_first(&m, before)), "{} of 400", of_first(&m, before));
        is_busy.set(false);
        tokio::time::sleep(Duration::from_secs(6)).await;
        let before = m.count();
        for _ in 0..400 {
            m.ask(get("/")).await;
        }
        assert!((100..300).contains(&of_first(&m, before)), "{} of 400", of_first(&m, before));
    });
}

/// The same of gRPC, whose status comes with the trailers.
#[test]
fn an_exhausted_endpoint_of_grpc_is_chosen_less() {
    run(async {
        let m = Mesh::new(2, AppProtocol::Grpc, |_| {});
        let ended = |status: &'static str| {
            let trailers = [("grpc-status", status), ("grpc-retry-pushback-ms", "5000")];
            let trailers = trailers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let body = with_trailers("reply", HeaderMap::from_iter(trailers));
            Does::Answer(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
        };
        m.listen(0, move |_, _| ended("8"));
        m.listen(1, move |_, _| ended("0"));
        let ask = async || {
            let call = Request::post("http://s/s/m").header("content-type", "application/grpc");
            let answer = m.send_two(call.body(payload("call")).unwrap()).await;
            answer.into_body().collect().await.unwrap();
        };
        while of_first(&m, 0) == 0 {
            ask().await;
        }
        let before = m.count();
        for _ in 0..200 {
            ask().await;
        }
        assert!((1..60).contains(&of_first(&m, before)), "{} of 200", of_first(&m, before));
    });
}

#[test]
fn a_clients_flood_of_settings_ends_its_connection() {
    run(async {
        let m = Rc::new(Mesh::of(|_| {}, |_, _| Does::Answer(Response::new(payload("ok")))));
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let mut client = m.connect(true);
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut sent = 0;
        // What answers is not read: the pipe holds those of the first thousand.
        while sent < 5_000 && client.write_all(&settings).await.is_ok() {
            sent += 1;
        }
        assert!((1_000..5_000).contains(&sent), "{sent} frames were taken");
    });
}
