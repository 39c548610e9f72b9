//! T01 to T06: a client with a valid certificate that abuses HTTP/2, frame by frame, against the server as ztunnel runs it.
//! Printed: when the tunnel was closed, what the server's thread spent, and how an honest client fared beside it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

mod common;

use bytes::Bytes;
use common::{A, ca};
use http::{HeaderMap, Response};
use karst_hbone::{Settings, client, copy, server, tls, tls::Credentials};
use karst_rt::drain;
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A server in a thread of its own, so that its CPU and its end can be seen. Streams are connected to `app`.
struct Server {
    at: SocketAddr,
    thread: u64,
    /// Streams that were handed over.
    streams: Arc<AtomicUsize>,
}

/// On-CPU time of a thread of ours, seconds.
fn cpu(thread: u64) -> f64 {
    let t = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).unwrap();
    t.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Pages of the process that are in memory, MiB.
fn rss() -> f64 {
    let t = std::fs::read_to_string("/proc/self/status").unwrap();
    t.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok()).unwrap() / 1024.0
}

fn serve(creds: Arc<Credentials>, app: SocketAddr) -> Server {
    let (tx, rx) = std::sync::mpsc::channel();
    let streams = Arc::new(AtomicUsize::new(0));
    let count = streams.clone();
    std::thread::spawn(move || {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&rt, async {
            let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let me = std::fs::read_link("/proc/thread-self").unwrap();
            let me: u64 = me.file_name().unwrap().to_str().unwrap().parse().unwrap();
            tx.send((l.local_addr().unwrap(), me)).unwrap();
            loop {
                let (s, _) = l.accept().await.unwrap();
                let (creds, count) = (creds.clone(), count.clone());
                spawn_local(async move {
                    let Ok((stream, _)) = server::handshake(s, &creds).await else { return };
                    let (_drain, watch) = drain::new();
                    let on_stream = move |c: server::Connect| {
                        count.fetch_add(1, Relaxed);
                        spawn_local(connect(c, app));
                    };
                    let _ = server::serve(stream, &Settings::default(), watch, on_stream).await;
                });
            }
        });
    });
    let (at, thread) = rx.recv().unwrap();
    Server { at, thread, streams }
}

async fn connect(mut c: server::Connect, app: SocketAddr) {
    let Ok(tcp) = TcpStream::connect(app).await else { return };
    let Ok(send) = c.respond.send_response(Response::new(()), false) else { return };
    let _ = copy::tunnel(tcp, send, c.request.into_body(), &copy::Counts::default(), false).await;
}

/// An application that echoes, in a thread of its own.
fn echo() -> SocketAddr {
    let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = l.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((s, _)) = l.accept() {
            std::thread::spawn(move || std::io::copy(&mut &s, &mut &s));
        }
    });
    at
}

fn frame(typ: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let n = (body.len() as u32).to_be_bytes();
    [&[n[1], n[2], n[3], typ, flags][..], &stream.to_be_bytes(), body].concat()
}
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A CONNECT, in HPACK without any table: `:method` is static name 2, `:authority` is 1.
fn connect_block() -> Vec<u8> {
    [&[2, 7][..], b"CONNECT", &[1, 11], b"10.0.0.1:80"].concat()
}

async fn attacker(creds: &Credentials, to: SocketAddr, settings: &[u8]) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(to).await.unwrap();
    let c = TlsConnector::from(creds.client.clone());
    let mut s = c.connect(tls::server_name(to.ip()), tcp).await.unwrap();
    s.write_all(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, settings)[..]].concat()).await.unwrap();
    s
}

struct Outcome {
    /// Frames that were sent until the server closed, or all.
    sent: usize,
    closed: bool,
    server_cpu: f64,
    client_cpu: f64,
    rss_growth: f64,
    honest: usize,
    goaway: bool,
    resets: usize,
}

/// Sends `each(i)` for i up to `limit`, reading along, while an honest client makes connections beside it.
async fn flood(what: &str, limit: usize, read: bool, settings: &[u8], each: impl Fn(u32) -> Vec<u8>) -> Outcome {
    let creds = Arc::new(common::credentials(&ca(), A));
    let app = echo();
    let s = serve(creds.clone(), app);
    honest(&creds, s.at).await;
    let (before, mem) = (cpu(s.thread), rss());
    let a = attacker(&creds, s.at, settings).await;
    let (mut r, mut w) = tokio::io::split(a);
    // What the server says: GOAWAY, and resets of streams.
    let heard = tokio::spawn(async move {
        let (mut buf, mut got, mut goaway, mut resets) = (vec![0; 64 << 10], Vec::new(), false, 0usize);
        if !read {
            return (false, 0);
        }
        loop {
            match tokio::time::timeout(Duration::from_secs(20), r.read(&mut buf)).await {
                Ok(Ok(n)) if n > 0 => got.extend_from_slice(&buf[..n]),
                _ => break,
            }
            let mut at = 0;
            while let Some(h) = got.get(at..at + 9) {
                let n = u32::from_be_bytes([0, h[0], h[1], h[2]]) as usize;
                goaway |= h[3] == 7;
                resets += usize::from(h[3] == RST_STREAM);
                if got.len() < at + 9 + n {
                    break;
                }
                at += 9 + n;
            }
            got.drain(..at.min(got.len()));
        }
        (goaway, resets)
    });
    let me: u64 =
        std::fs::read_link("/proc/thread-self").unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap();
    let own = cpu(me);
    let (creds2, to) = (creds.clone(), s.at);
    let beside = std::thread::spawn(move || {
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&rt, async {
            let mut n = 0;
            for _ in 0..20 {
                n += usize::from(tokio::time::timeout(Duration::from_secs(5), honest(&creds2, to)).await.is_ok());
            }
            n
        })
    });
    let (mut sent, mut closed) = (0, false);
    let end = Instant::now() + Duration::from_secs(20);
    while sent < limit && !closed && Instant::now() < end {
        let some: Vec<u8> = (sent..(sent + 500).min(limit)).flat_map(|i| each(i as u32)).collect();
        match tokio::time::timeout(Duration::from_secs(2), w.write_all(&some)).await {
            Ok(Ok(())) => sent += 500,
            Ok(Err(_)) => closed = true,
            // Nobody reads any more: the server waits for us to read, which is its right.
            Err(_) => break,
        }
        tokio::task::yield_now().await;
    }
    if !closed {
        // The last writes may have been into the kernel's buffer.
        tokio::time::sleep(Duration::from_millis(300)).await;
        closed = w.write_all(&frame(PING, 0, 0, &[0; 8])).await.is_err() || heard.is_finished();
    }
    let client_cpu = cpu(me) - own;
    let honest = tokio::task::spawn_blocking(|| beside.join().unwrap()).await.unwrap();
    let server_cpu = cpu(s.thread) - before;
    let rss_growth = rss() - mem;
    drop(w);
    let (goaway, resets) = tokio::time::timeout(Duration::from_secs(1), heard).await.map_or((false, 0), Result::unwrap);
    println!(
        "{what} frames={} closed={closed} goaway={goaway} resets={resets} streams={} server_cpu_s={server_cpu:.2} client_cpu_s={client_cpu:.2} rss_growth_mib={rss_growth:.1} honest={honest}/20",
        sent.min(limit),
        s.streams.load(Relaxed),
    );
    Outcome { sent, closed, server_cpu, client_cpu, rss_growth, honest, goaway, resets }
}

/// One connection with an echo.
async fn honest(creds: &Credentials, to: SocketAddr) {
    LocalSet::new()
        .run_until(async {
            let tcp = TcpStream::connect(to).await.unwrap();
            let expected = [A.parse().unwrap()];
            let (send, drive) = client::handshake(tcp, to, creds, &expected, &Settings::default()).await.unwrap();
            let drive = Rc::new(spawn_local(drive));
            let (mut send, mut recv, _) = client::connect(send, "10.0.0.1:80", HeaderMap::new()).await.unwrap();
            send.send_data(Bytes::from_static(b"hello"), false).unwrap();
            assert_eq!(recv.data().await.unwrap().unwrap(), "hello");
            drive.abort();
        })
        .await;
}

/// Closed, or no dearer for the server than twice what it costs the attacker.
fn bounded(o: &Outcome) {
    assert_eq!(o.honest, 20, "honest connections");
    assert!(o.rss_growth < 24.0, "{} MiB", o.rss_growth);
    assert!(o.closed || o.server_cpu <= 2.0 * o.client_cpu + 0.3, "{} s for {} s", o.server_cpu, o.client_cpu);
}

#[tokio::test(flavor = "current_thread")]
async fn t01_rapid_reset() {
    let block = connect_block();
    let o = flood("T01", 100_000, true, &[], |i| {
        let id = 2 * i + 1;
        [frame(HEADERS, END_HEADERS, id, &block), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()
    })
    .await;
    bounded(&o);
    assert!(o.closed && o.goaway, "the attacker is told to go");
}

#[tokio::test(flavor = "current_thread")]
async fn t02_endless_continuation() {
    let one = [&[0, 1][..], b"x", &[127, 0x81, 0x06], &[b'v'; 1008]].concat();
    let o = flood("T02", 20_000, true, &[], |i| match i {
        0 => frame(HEADERS, 0, 1, &connect_block()),
        _ => frame(CONTINUATION, 0, 1, &one),
    })
    .await;
    bounded(&o);
    assert!(o.closed, "closed");
}

#[tokio::test(flavor = "current_thread")]
async fn t03_made_you_reset() {
    let block = connect_block();
    // A window update of zero makes the server reset the stream (RFC 9113 §6.9).
    let o = flood("T03", 50_000, true, &[], |i| {
        let id = 2 * i + 1;
        [frame(HEADERS, END_HEADERS, id, &block), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat()
    })
    .await;
    bounded(&o);
    assert!(o.closed && o.resets <= 1100, "closed after {} resets", o.resets);
}

#[tokio::test(flavor = "current_thread")]
async fn t04_small_frames() {
    let block = connect_block();
    let open = |i: u32, f: Vec<u8>| if i == 0 { [frame(HEADERS, END_HEADERS, 1, &block), f].concat() } else { f };
    let o = flood("T04 empty DATA", 1_000_000, true, &[], |i| open(i, frame(DATA, 0, 1, &[]))).await;
    bounded(&o);
    let o = flood("T04 PING", 1_000_000, true, &[], |_| frame(PING, 0, 0, &[1; 8])).await;
    bounded(&o);
    let o = flood("T04 PING, answers not read", 1_000_000, false, &[], |_| frame(PING, 0, 0, &[1; 8])).await;
    bounded(&o);
    let o = flood("T04 SETTINGS", 1_000_000, true, &[], |_| frame(SETTINGS, 0, 0, &[])).await;
    bounded(&o);
    assert!(o.closed, "one costs us more than twice what it costs its sender");
    let o = flood("T04 PRIORITY", 1_000_000, true, &[], |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])).await;
    bounded(&o);
    assert!(o.sent > 0);
}

#[tokio::test(flavor = "current_thread")]
async fn t05_header_expansion() {
    // A 4,000-byte header goes into the table once; one byte names it again: a request of 64 MB in 16 KB.
    let first = [&[0x40, 1][..], b"x", &[0x7f, 0xa1, 0x1e], &[b'v'; 4000]].concat();
    let bomb = [&connect_block()[..], &first, &[0xbe; 16_000 - 4100]].concat();
    let o = flood("T05", 2_000, true, &[], |i| frame(HEADERS, END_HEADERS, 2 * i + 1, &bomb)).await;
    bounded(&o);
}

#[tokio::test(flavor = "current_thread")]
async fn t06_zero_window() {
    // Applications that push, and clients whose streams have no window: nothing may pile up.
    let creds = Arc::new(common::credentials(&ca(), A));
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = l.local_addr().unwrap();
    let pushed = Arc::new(AtomicUsize::new(0));
    let p = pushed.clone();
    tokio::spawn(async move {
        while let Ok((mut s, _)) = l.accept().await {
            let p = p.clone();
            tokio::spawn(async move {
                while let Ok(n) = s.write(&[7; 64 << 10]).await {
                    p.fetch_add(n, Relaxed);
                }
            });
        }
    });
    let s = serve(creds.clone(), app);
    let mem = rss();
    let mut tunnels = vec![];
    for _ in 0..10 {
        // SETTINGS_INITIAL_WINDOW_SIZE 0.
        let mut a = attacker(&creds, s.at, &[0, 4, 0, 0, 0, 0]).await;
        for i in 0..200 {
            a.write_all(&frame(HEADERS, END_HEADERS, 2 * i + 1, &connect_block())).await.unwrap();
        }
        a.flush().await.unwrap();
        tunnels.push(a);
    }
    tokio::time::timeout(Duration::from_secs(10), async {
        while s.streams.load(Relaxed) < 2000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = rss() - mem;
    println!("T06 tunnels=10 streams=2000 rss_growth_mib={grown:.1} (both sides and the applications)");
    // Stream, task, socket on both sides and 64 KiB of the pushing application: far below a window for each.
    assert!(grown < 260.0, "{grown} MiB");
}
