//! What is seen is what hyper's and h2's own clients and servers have said.
#![allow(missing_docs, clippy::unwrap_used, clippy::type_complexity, reason = "a test's failure is a panic")]

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{body::Frame, service::service_fn};
use hyper_util::rt::TokioIo;
use karst_signals::{Connection, Exchange, Flag, Over, Protocol};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{cell::RefCell, collections::BTreeMap, convert::Infallible, rc::Rc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    task::{LocalSet, spawn_local},
};

/// What was seen of a connection, and all that the client and the server have sent.
type Seen = (Vec<Exchange>, Option<Over>, [Vec<u8>; 2]);

/// Two ends that are relayed, in pieces of random size; what was seen of them, when both have ended.
fn relayed(seed: u64) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<Seen>) {
    let ((client, near), (far, server)) = (duplex(4096), duplex(4096));
    let watched = Rc::new(RefCell::new((Connection::new(true), vec![])));
    async fn one(
        mut from: ReadHalf<DuplexStream>,
        mut to: WriteHalf<DuplexStream>,
        mut random: StdRng,
        mut seen: impl FnMut(&[u8]),
    ) {
        let mut buffer = [0; 3000];
        loop {
            let most = random.random_range(1..buffer.len());
            match from.read(&mut buffer[..most]).await {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    seen(&buffer[..n]);
                    if to.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
            }
        }
        let _ = to.shutdown().await;
    }
    let task = spawn_local(async move {
        let ((a, b), (c, d)) = (split(near), split(far));
        let (up, down) = (watched.clone(), watched.clone());
        let note = |w: &RefCell<(Connection, Vec<Exchange>)>, f: &dyn Fn(&mut Connection)| {
            let (connection, all) = &mut *w.borrow_mut();
            f(connection);
            all.extend(connection.take());
        };
        let up = async {
            let mut wire = vec![];
            let seen = |x: &[u8]| {
                wire.extend_from_slice(x);
                note(&up, &|c| c.client_sent(x, &|| Duration::ZERO));
            };
            one(a, d, StdRng::seed_from_u64(seed), seen).await;
            note(&up, &|c| c.client_ended());
            wire
        };
        let down = async {
            let mut wire = vec![];
            let seen = |x: &[u8]| {
                wire.extend_from_slice(x);
                note(&down, &|c| c.server_sent(x, &|| Duration::ZERO));
            };
            one(c, b, StdRng::seed_from_u64(seed + 1), seen).await;
            note(&down, &|c| c.server_ended(&|| Duration::ZERO));
            wire
        };
        let (up, down) = tokio::join!(up, down);
        let (connection, all) = &mut *watched.borrow_mut();
        let over = connection.over();
        connection.close(&|| Duration::ZERO);
        all.extend(connection.take());
        (std::mem::take(all), over, [up, down])
    });
    (client, server, task)
}

/// What an application has counted: status, bytes of the answer's body.
type Counted = (u16, u64);

/// Answers at random, and counts.
async fn answer(
    request: Request<hyper::body::Incoming>,
    random: Rc<RefCell<StdRng>>,
    log: Rc<RefCell<Vec<Counted>>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let is_head = request.method() == Method::HEAD;
    request.into_body().collect().await.unwrap();
    let mut random = random.borrow_mut();
    let status = [200, 201, 204, 304, 404, 500][random.random_range(0..6)];
    let body = vec![b'x'; random.random_range(0..9000)];
    let is_empty = is_head || matches!(status, 204 | 304);
    log.borrow_mut().push((status, if is_empty { 0 } else { body.len() as u64 }));
    let body = if is_empty && !is_head {
        Full::<Bytes>::default().boxed()
    } else if random.random() {
        // Of unknown length: in chunks.
        let chunks: Vec<Result<_, Infallible>> =
            body.chunks(700).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
        BodyExt::boxed(StreamBody::new(futures_util::stream::iter(chunks)))
    } else {
        Full::new(Bytes::from(body)).boxed()
    };
    Ok(Response::builder().status(status).body(body).unwrap())
}

#[tokio::test]
async fn pipelines_are_counted_as_hyper_does() {
    LocalSet::new()
        .run_until(async {
            for seed in 0..40 {
                let (client, server, seen) = relayed(seed);
                let random = Rc::new(RefCell::new(StdRng::seed_from_u64(seed)));
                let log = Rc::new(RefCell::new(vec![]));
                let (r, l) = (random.clone(), log.clone());
                let service = service_fn(move |request| answer(request, r.clone(), l.clone()));
                spawn_local(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(server), service)
                        .await;
                });
                let mut all = Vec::new();
                let requests = random.borrow_mut().random_range(1..40);
                for n in 0..requests {
                    let mut random = random.borrow_mut();
                    let size: usize = random.random_range(0..3000);
                    let close = if n + 1 == requests { "connection: close\r\n" } else { "" };
                    let head = format!("{} /{n} HTTP/1.1\r\nhost: a\r\n{close}", ["GET", "HEAD", "POST", "PUT"][n % 4]);
                    let body = "y".repeat(if n % 4 < 2 { 0 } else { size });
                    let chunk = if body.is_empty() { String::new() } else { format!("{:x}\r\n{body}\r\n", body.len()) };
                    all.push(match random.random_range(0..2) {
                        _ if n % 4 < 2 => format!("{head}\r\n"),
                        0 => format!("{head}content-length: {}\r\n\r\n{body}", body.len()),
                        _ => format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n"),
                    });
                }
                let (mut read, mut write) = split(client);
                let sizes: Vec<u64> = all.iter().map(|request| request.len() as u64).collect();
                let write = async move {
                    write.write_all(all.concat().as_bytes()).await.unwrap();
                    write
                };
                let mut heard = vec![];
                let (write, got) = tokio::join!(write, read.read_to_end(&mut heard));
                got.unwrap();
                drop((read, write));
                let (exchanges, over, _) = seen.await.unwrap();
                assert!(over.is_none() && exchanges.iter().all(|e| e.flag == Flag::None), "seed {seed}: {exchanges:?}");
                assert_eq!(exchanges.iter().map(|e| e.request_bytes).collect::<Vec<_>>(), sizes, "seed {seed}");
                let (log, heard) = (log.borrow(), heard.len() as u64);
                assert_eq!((exchanges.len(), log.len()), (requests, requests));
                for (exchange, (status, body)) in exchanges.iter().zip(log.iter()) {
                    assert!(exchange.status == *status && exchange.response_bytes > *body, "seed {seed}: {exchange:?}");
                }
                assert_eq!(exchanges.iter().map(|e| e.response_bytes).sum::<u64>(), heard, "seed {seed}");
            }
        })
        .await;
}

/// A message of gRPC of so many bytes.
fn message(size: usize) -> Bytes {
    [&[0][..], &(size as u32).to_be_bytes(), &vec![7; size]].concat().into()
}

/// Bytes of each stream in one direction: of its frames DATA, HEADERS and CONTINUATION.
fn sizes(mut wire: &[u8]) -> BTreeMap<u32, u64> {
    let mut sizes: BTreeMap<u32, u64> = BTreeMap::new();
    while let [a, b, c, kind, _, d, e, f, g, rest @ ..] = wire {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if matches!(*kind, 0 | 1 | 9) {
            *sizes.entry(u32::from_be_bytes([*d, *e, *f, *g])).or_default() += 9 + length as u64;
        }
        wire = rest.get(length..).unwrap_or_default();
    }
    sizes
}

/// Serves h2 streams: as many messages as came, and a code in the trailers.
async fn serve(server: DuplexStream) {
    let mut connection = h2::server::handshake(server).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        spawn_local(async move {
            let code = request.uri().path()[1..].to_string();
            let grpc = request.headers().contains_key("content-type");
            let mut body = request.into_body();
            let mut bytes = 0;
            while let Some(Ok(data)) = body.data().await {
                bytes += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            let response = Response::builder()
                .status(if grpc { 200 } else { 418 })
                .header("x-n", bytes.to_string())
                .body(())
                .unwrap();
            if code == "reset" {
                return respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
            let mut send = respond.send_response(response, false).unwrap();
            send.send_data(message(bytes % 500), !grpc).unwrap();
            if grpc {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", code.parse().unwrap());
                send.send_trailers(trailers).unwrap();
            }
        });
    }
}

#[tokio::test]
async fn streams_are_counted_as_h2_does() {
    LocalSet::new()
        .run_until(async {
            for seed in 0..20 {
                let (client, server, seen) = relayed(seed);
                spawn_local(serve(server));
                let (mut send, connection) = h2::client::handshake(client).await.unwrap();
                let connection = spawn_local(connection);
                let mut random = StdRng::seed_from_u64(seed);
                let (mut want, mut answers) = (vec![], vec![]);
                for n in 0..60u64 {
                    let grpc = random.random::<bool>();
                    let code = random.random_range(0..17u8);
                    let reset = random.random_range(0..10) == 0;
                    let path = if reset { "reset".to_string() } else { code.to_string() };
                    let mut request = Request::post(format!("http://a/{path}")).header("x-id", n.to_string());
                    if grpc {
                        request = request.header("content-type", "application/grpc+proto");
                    }
                    send = send.ready().await.unwrap();
                    let (response, mut body) = send.send_request(request.body(()).unwrap(), false).unwrap();
                    let messages: Vec<Bytes> =
                        (0..random.random_range(0..4)).map(|_| message(random.random_range(0..900))).collect();
                    for one in &messages {
                        body.send_data(one.clone(), false).unwrap();
                    }
                    body.send_data(Bytes::new(), true).unwrap();
                    answers.push(spawn_local(async move {
                        let Ok(response) = response.await else { return };
                        let mut body = response.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                        }
                        let _ = body.trailers().await;
                    }));
                    want.push(Exchange {
                        protocol: if grpc { Protocol::Grpc } else { Protocol::Http },
                        status: match (reset, grpc) {
                            (true, _) => 0,
                            (false, true) => 200,
                            (false, false) => 418,
                        },
                        flag: if reset { Flag::UpstreamReset } else { Flag::None },
                        grpc_status: (grpc && !reset).then_some(code),
                        request_bytes: 0,
                        response_bytes: 0,
                        request_messages: if grpc { messages.len() as u64 } else { 0 },
                        response_messages: u64::from(grpc && !reset),
                        duration: Duration::ZERO,
                        asked: None,
                    });
                }
                for one in answers {
                    one.await.unwrap();
                }
                drop(send);
                let _ = connection.await;
                let (mut got, over, [sent, heard]) = seen.await.unwrap();
                assert_eq!(over, None);
                // Behind the preface.
                let (sent, heard) = (sizes(&sent[24..]), sizes(&heard));
                for (one, stream) in want.iter_mut().zip((1u32..).step_by(2)) {
                    one.request_bytes = sent[&stream];
                    one.response_bytes = heard.get(&stream).copied().unwrap_or(0);
                }
                let key = |e: &Exchange| format!("{e:?}");
                got.sort_by_key(key);
                want.sort_by_key(key);
                assert_eq!(got, want, "seed {seed}");
            }
        })
        .await;
}
