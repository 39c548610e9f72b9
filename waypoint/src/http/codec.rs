//! How HTTP is spoken, on both sides, with one limit of heads: a head that one side may send can be taken from the other.

use hyper::{client, server};
use hyper_util::rt::TokioTimer;
use karst_rt::turns;
use std::time::Duration;

/// Largest head of a response, and largest trailers, bytes (Envoy: 60 KiB); of a request, where no option says otherwise. Peers of HTTP/2
/// are told (SETTINGS_MAX_HEADER_LIST_SIZE). A larger request is answered with 431, a larger response becomes a 502 (UPE).
pub const MAX_HEADERS: u32 = 60 << 10;
/// Most fields of the head of a request, by whichever version of HTTP, where no option says otherwise (Envoy's default, and that of our
/// parser of HTTP/1.1). Cookies count as one: browsers split them.
pub const MAX_FIELDS: usize = 100;
/// Streams of one HTTP/2 connection of a client.
const MAX_STREAMS: u32 = 1000;
/// Receive windows of HTTP/2, bytes: of a stream, and of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What HTTP/1.1 reads ahead beside a head, bytes.
const READ_AHEAD: usize = 64 << 10;

/// hyper's tasks run on the worker's thread.
#[derive(Clone, Copy)]
pub struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, f: F) {
        tokio::task::spawn_local(async move {
            let _ = f.await;
        });
    }
}

/// The same for what a client's connection starts: in the turn of the caller.
#[derive(Clone, Copy)]
pub struct LocalInTurn;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalInTurn {
    fn execute(&self, f: F) {
        let task = Box::pin(async move {
            let _ = f.await;
        });
        tokio::task::spawn_local(turns::of(turns::current(), task));
    }
}

/// How large the head of a request may be.
#[derive(Clone, Copy)]
pub struct HeadLimits {
    /// Bytes.
    pub bytes: u32,
    /// Fields.
    pub fields: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        Self { bytes: MAX_HEADERS, fields: MAX_FIELDS }
    }
}

/// HTTP/1.1 of a client. `patience`: its heads must be there after this time.
pub fn server1(patience: Option<Duration>, limits: HeadLimits) -> server::conn::http1::Builder {
    let mut b = server::conn::http1::Builder::new();
    b.timer(TokioTimer::new()).header_read_timeout(patience);
    b.max_header_size(limits.bytes as usize).max_buf_size(limits.bytes as usize + READ_AHEAD);
    // By itself the parser has room for as many on its stack.
    if limits.fields != MAX_FIELDS {
        b.max_headers(limits.fields);
    }
    b
}

/// HTTP/2 of a client.
pub fn server2(limits: HeadLimits) -> server::conn::http2::Builder<LocalInTurn> {
    let mut builder = server::conn::http2::Builder::new(LocalInTurn);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(limits.bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // WebSocket (RFC 8441); other tunnels are refused at the entry.
        .enable_connect_protocol();
    builder
}

/// HTTP/1.1 of an endpoint.
pub fn client1() -> client::conn::http1::Builder {
    let mut builder = client::conn::http1::Builder::new();
    builder.max_header_size(MAX_HEADERS as usize);
    builder
}

/// HTTP/2 of an endpoint.
pub fn client2() -> client::conn::http2::Builder<Local> {
    let mut builder = client::conn::http2::Builder::new(Local);
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}

/// Why a head that has come is none.
pub fn bad_head() -> String {
    format!("a head that is not HTTP, or larger than {MAX_HEADERS} bytes")
}
