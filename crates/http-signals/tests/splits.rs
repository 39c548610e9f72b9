//! However the bytes are cut the result is the same, and no bytes can do harm.

use karst_signals::{Asked, Connection, Exchange, Flag, Over, Protocol, Surprise};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{cell::Cell, time::Duration};

/// Who says what, in turn.
#[derive(Clone, Debug)]
enum Said {
    Client(Vec<u8>),
    Server(Vec<u8>),
    ClientEnds,
    ServerEnds,
}
use Said::{Client, ClientEnds, Server, ServerEnds};

fn client(text: impl AsRef<[u8]>) -> Said {
    Client(text.as_ref().to_vec())
}
fn server(text: impl AsRef<[u8]>) -> Said {
    Server(text.as_ref().to_vec())
}

type Seen = (Vec<Exchange>, Option<Over>);

/// What is seen of a conversation, in pieces of at most `most` bytes.
fn seen(said: &[Said], most: impl FnMut() -> usize) -> Seen {
    seen_of(Connection::new(false), said, most)
}

/// The same, with what requests ask for.
fn with_heads(said: &[Said], most: impl FnMut() -> usize) -> Seen {
    let mut connection = Connection::new(false);
    connection.keep_heads(true);
    seen_of(connection, said, most)
}

fn seen_of(mut connection: Connection, said: &[Said], mut most: impl FnMut() -> usize) -> Seen {
    let now = || Duration::ZERO;
    let mut all = vec![];
    for one in said {
        match one {
            Client(bytes) | Server(bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (piece, more) = rest.split_at(most().clamp(1, rest.len()));
                    match one {
                        Client(_) => connection.client_sent(piece, &now),
                        _ => connection.server_sent(piece, &now),
                    }
                    rest = more;
                }
            }
            ClientEnds => connection.client_ended(),
            ServerEnds => connection.server_ended(&now),
        }
        all.extend(connection.take());
    }
    let over = connection.over();
    connection.close(&now);
    all.extend(connection.take());
    (all, over)
}

/// The same, whole and in pieces.
fn read(said: &[Said]) -> Seen {
    let whole = seen(said, || usize::MAX);
    for size in 1..9 {
        assert_eq!(seen(said, || size), whole, "pieces of {size}: {said:?}");
    }
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..20 {
        assert_eq!(seen(said, || random.random_range(1..40)), whole, "{said:?}");
    }
    assert!(whole.0.iter().all(|exchange| exchange.asked.is_none()), "nobody wanted it");
    let mut heads = with_heads(said, || usize::MAX);
    for size in 1..9 {
        assert_eq!(with_heads(said, || size), heads, "pieces of {size}: {said:?}");
    }
    heads.0.iter_mut().for_each(|exchange| assert!(exchange.asked.take().is_some()));
    assert_eq!(heads, whole, "who looks changes nothing: {said:?}");
    whole
}

/// Method, path and version of each request.
fn asked(exchanges: impl IntoIterator<Item = Exchange>) -> Vec<String> {
    let text = |Asked { method, path, version }: Asked| format!("{method} {path} {version}");
    exchanges.into_iter().map(|exchange| exchange.asked.map_or("-".into(), |asked| text(*asked))).collect()
}

#[test]
fn what_requests_ask_for_is_kept_bounded_and_visible() {
    let long = format!("GET /{}", "a".repeat(karst_signals::MAX_PATH));
    let cut = format!("{} HTTP/1.1", &long[..4 + karst_signals::MAX_PATH]);
    let requests = [
        ("GET /a?b=c", "GET /a?b=c HTTP/1.1"),
        ("OPTIONS *", "OPTIONS * HTTP/1.1"),
        ("GET ", "GET  HTTP/1.1"),
        ("GET http://me:secret@a.example/b?c=http://d/", "GET /b?c=http://d/ HTTP/1.1"),
        ("GET http://me:secret@a.example", "GET / HTTP/1.1"),
        ("GET me:secret@a.example", "GET  HTTP/1.1"),
        ("GET /\x1b[2J\u{e9} x", "GET /%1B[2J%C3%A9%20x HTTP/1.1"),
        (&*long, &*cut),
    ];
    for (line, want) in requests {
        let said = [client(format!("{line} HTTP/1.1\r\n\r\n")), server("HTTP/1.1 204 No\r\n\r\n")];
        read(&said);
        assert_eq!(asked(with_heads(&said, || 3).0), [want]);
    }
    let old = [client("GET / HTTP/1.0\r\n\r\n"), server("HTTP/1.0 200 OK\r\n\r\n"), ServerEnds];
    assert_eq!(asked(with_heads(&old, || usize::MAX).0), ["GET / HTTP/1.0"]);
}

/// A table's entries from before the look are not known, and those that a look knew are not kept behind its end.
#[test]
fn paths_in_a_table_are_known_from_the_first_look_on() {
    let now = || Duration::ZERO;
    let mut connection = Connection::new(false);
    connection.client_sent(&[PREFACE, &frame(4, 0, 0, &[])].concat(), &now);
    connection.server_sent(&frame(4, 0, 0, &[]), &now);
    let mut stream = 1;
    let mut ask = |keep: bool, block: &[u8]| {
        connection.keep_heads(keep);
        connection.client_sent(&frame(1, 0x5, stream, block), &now);
        connection.server_sent(&frame(1, 0x5, stream, b"\x88"), &now);
        stream += 2;
        asked(connection.take()).join(", ")
    };
    // Literal fields that go into the table: `:path` (4), and a method that it has not from the beginning (2).
    assert_eq!(ask(false, b"\x83\x44\x02/a"), "-");
    assert_eq!(ask(true, b"\x83\xbe"), "POST  HTTP/2", "it went in before");
    assert_eq!(ask(true, b"\x42\x03PUT\x44\x02/b"), "PUT /b HTTP/2");
    assert_eq!(ask(true, b"\xbf\xbe"), "PUT /b HTTP/2");
    // Others in the table, not in it, and in Huffman's code.
    assert_eq!(ask(true, b"\x40\x01x\x01y\xc0\xbf"), "PUT /b HTTP/2", "what came later has moved them");
    assert_eq!(ask(true, b"\x82\x04\x02/c"), "GET /c HTTP/2");
    assert_eq!(ask(true, b"\x82\x04\x85\x60\x2c\x0e\xb3\x7f"), "GET /1/api HTTP/2");
    assert_eq!(ask(true, b"\x82\x85"), "GET /index.html HTTP/2");
    // A smaller table loses its oldest: with room for one entry there is only x: y.
    assert_eq!(ask(true, b"\x3f\x03\x82\xbe"), "GET  HTTP/2");
    assert_eq!(ask(true, b"\x3f\xe1\x1f\x83\x44\x02/d"), "POST /d HTTP/2");
    assert_eq!(ask(false, b"\x83\xbe"), "-");
    assert_eq!(ask(true, b"\x83\xbe"), "POST  HTTP/2", "nobody looked, and it is not kept");
    assert_eq!(connection.over(), None);
}

/// Status, flag, bytes of both messages on the wire.
type Short = (u16, &'static str, u64, u64);

fn short((all, over): Seen) -> (Vec<Short>, Option<Over>) {
    (all.iter().map(|e| (e.status, e.flag.text(), e.request_bytes, e.response_bytes)).collect(), over)
}

#[test]
fn pipelines_of_every_framing() {
    let requests = [
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD /b HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /c HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello",
        "POST /d HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n4;x=y\r\nwiki\r\n0\r\nTrailer: 1\r\n\r\n",
        "GET /e HTTP/1.1\nHost: a\n\n",
        "GET /f HTTP/1.1\r\nX: \r\n folded\r\n\r\n",
    ];
    let answers = [
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n",
        "HTTP/1.1 204 No\r\n\r\n",
        "HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "HTTP/1.1 304 Not\r\nContent-Length: 9\r\n\r\n",
        "HTTP/1.1 500 No\r\nContent-Length:\r\n 2\r\n\r\nno",
    ];
    let said = [
        client(requests[..2].concat()),
        client(requests[2]),
        client(requests[3]),
        // The line's end before the fifth one is nobody's.
        client(["\r\n", requests[4], requests[5]].concat()),
        server(answers[0]),
        server(answers[1..3].concat()),
        server(answers[3]),
        server(answers[4]),
        server(answers[5]),
    ];
    let sizes = requests.iter().zip(answers).map(|(request, answer)| (request.len() as u64, answer.len() as u64));
    let statuses = [200, 200, 204, 404, 304, 500];
    let want = statuses.into_iter().zip(sizes).map(|(status, (request, answer))| (status, "-", request, answer));
    let want: Vec<Short> = want.collect();
    assert_eq!(short(read(&said)), (want, None));
}

#[test]
fn an_answer_without_length_ends_with_the_connection() {
    let asked = client("GET / HTTP/1.0\r\n\r\n");
    let said = [asked.clone(), server("HTTP/1.0 200 OK\r\n\r\nall of it"), ServerEnds];
    assert_eq!(short(read(&said)).0, [(200, "-", 18, 28)]);
    assert_eq!(short(read(&said[..2])).0, [(200, "UC", 18, 28)], "it broke");
    assert_eq!(short(read(&[asked.clone(), server("HTTP/1.0 20"), ServerEnds])).0, [(0, "UC", 18, 11)]);
    assert_eq!(short(read(&[asked.clone(), ServerEnds])).0, [(0, "UC", 18, 0)]);
    assert_eq!(short(read(&[asked, ClientEnds])).0, [(0, "DC", 18, 0)]);
    assert!(read(&[client("GET / HTTP/1.0\r\nHost")]).0.is_empty(), "no request yet");
}

#[test]
fn an_answer_may_come_before_the_request_has_ended() {
    let early = [
        client("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n01234"),
        server("HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n"),
    ];
    assert_eq!(short(read(&early)).0, [(413, "-", 44, 38)]);
    let goes_on = [&early[..], &[client("56789GET / HTTP/1.1\r\n\r\n"), server("HTTP/1.1 204 No\r\n\r\n")]].concat();
    assert_eq!(short(read(&goes_on)), (vec![(413, "-", 49, 38), (204, "-", 18, 19)], None));
}

#[test]
fn what_becomes_something_else_is_one_request() {
    let upgrade = client("GET /chat HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let became = [upgrade.clone(), server(b"HTTP/1.1 101 Switching\r\n\r\n\x81\x01a"), client(b"\x81\x01b")];
    assert_eq!(short(read(&became)), (vec![(101, "-", 63, 26)], Some(Over::Upgraded)));
    let refused = [
        upgrade,
        server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        client("GET / HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 204 No\r\n\r\n"),
    ];
    assert_eq!(short(read(&refused)), (vec![(200, "-", 63, 40), (204, "-", 18, 19)], None));
    // The answer begins before the request has ended, and ends after it.
    let early = [
        client("POST / HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\na"),
        server("HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nn"),
        client("b"),
        server("o"),
        client("GET / HTTP/1.1\r\n\r\n"),
        server("HTTP/1.1 204 No\r\n\r\n"),
    ];
    assert_eq!(short(read(&early)), (vec![(413, "-", 54, 40), (204, "-", 18, 19)], None));
    let tunnel = [client("CONNECT a:1 HTTP/1.1\r\n\r\n"), server("HTTP/1.1 200 OK\r\n\r\n"), client("anything")];
    assert_eq!(short(read(&tunnel)), (vec![(200, "-", 24, 19)], Some(Over::Upgraded)));
}

#[test]
fn what_is_no_http_is_left_alone() {
    for first in [
        &b"\x16\x03\x01"[..],
        b"\0\0\0\x10",
        b"*1\r\n",
        b"PING\r\n",
        b"INVITE sip:a SIP/2.0\r\n",
        b"SSH-2.0-x\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET / HTTP/1.\r\n",
        b"GET / HTTP/1. \r\n",
        b"GET / XHTTP/1.1\r\n",
        b"GET HTTP/1.1\r\n",
        b" HTTP/1.1\r\n",
        b"G:T / HTTP/1.1\r\n",
        &[b'A'; 100],
    ] {
        assert_eq!(read(&[client(first)]), (vec![], Some(Over::NotHttp)), "{first:?}");
    }
    assert_eq!(read(&[server("220 mail\r\n"), client("EHLO a\r\n")]), (vec![], Some(Over::NotHttp)));
    let mut declared = Connection::new(true);
    declared.client_sent(b"\x16", &|| Duration::ZERO);
    assert_eq!(declared.over(), Some(Over::GaveUp(Surprise::NotHttp)));
}

/// What comes in pieces costs no look at the clock for each.
#[test]
fn the_clock_is_asked_where_a_request_begins_and_where_it_is_over() {
    let asked = Cell::new(0);
    let clock = || {
        asked.set(asked.get() + 1);
        Duration::from_secs(asked.get())
    };
    let mut connection = Connection::new(false);
    for _ in 0..2 {
        for piece in ["POST / HTTP/1.1\r\n", "Content-Length: 4\r\n\r\n", "ab", "cd"] {
            connection.client_sent(piece.as_bytes(), &clock);
        }
        for piece in ["HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "a", "b", "c"] {
            connection.server_sent(piece.as_bytes(), &clock);
        }
    }
    connection.client_ended();
    connection.server_ended(&clock);
    connection.close(&clock);
    let durations: Vec<Duration> = connection.take().map(|exchange| exchange.duration).collect();
    assert_eq!((durations, asked.get()), (vec![Duration::from_secs(1); 2], 4));
}

#[test]
fn what_surprises_ends_the_reading() {
    let get = "GET / HTTP/1.1\r\n\r\n";
    let long = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(karst_signals::MAX_LINE));
    for (said, why) in [
        (vec![client("POST / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n")], Surprise::Framing),
        (vec![client("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n")], Surprise::Framing),
        (vec![client("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n")], Surprise::Framing),
        (vec![client("GET / HTTP/1.1\r\nno colon\r\n\r\n")], Surprise::Head),
        (vec![client(long)], Surprise::TooLong),
        (vec![client(get), server("HTTP/1.1 204 No\r\n\r\nHTTP/1.1 204 No\r\n\r\n")], Surprise::Unasked),
        (vec![client(get), server("hello\r\n")], Surprise::Head),
        (vec![client(get.repeat(karst_signals::MAX_PIPELINE + 1))], Surprise::TooMany),
        (vec![client("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\nmore")], Surprise::Upgrade),
        (vec![client("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x01\0\0\0\0\x01")], Surprise::Frame),
    ] {
        assert_eq!(read(&said).1, Some(Over::GaveUp(why)), "{said:?}");
    }
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn streams_with_padding_priority_continuations_and_resets() {
    let grpc = b"\x83\x5f\x10application/grpc";
    let (head, rest) = grpc.split_at(7);
    let headed = [&[3, 0, 0, 0, 0, 9][..], head, &[0; 3]].concat();
    let said = [
        server(frame(4, 0, 0, &[])),
        Client(PREFACE.to_vec()),
        Client(frame(4, 0, 0, &[])),
        Client(frame(1, 0x28, 1, &headed)),
        Client(frame(9, 0x4, 1, rest)),
        Client(frame(0, 0x8, 1, b"\x02\0\0\0\0\x03ab\0\0")),
        Client(frame(0, 0x1, 1, b"c\0\0\0\0\0")),
        // The table has the content type now.
        Client(frame(1, 0x5, 3, b"\x83\xbe")),
        Client(frame(1, 0x5, 5, b"\x82")),
        Client(frame(1, 0x5, 7, b"\x82")),
        Client(frame(1, 0x4, 9, b"\x82")),
        Server(frame(5, 0x4, 1, b"\0\0\0\x02\x40\x0bgrpc-status\x015")),
        Server(frame(1, 0x4, 1, b"\x88")),
        Server(frame(0, 0, 1, b"\0\0\0\0\x01x")),
        Server(frame(1, 0x5, 1, b"\xbe")),
        Server(frame(1, 0x5, 3, b"\x88\x0f\x2f\x0277")),
        Server(frame(1, 0x4, 5, b"\x08\x03100")),
        Server(frame(1, 0x4, 5, b"\x8d")),
        Server(frame(3, 0, 5, &[0, 0, 0, 2])),
        Client(frame(3, 0, 7, &[0, 0, 0, 8])),
        Server(frame(7, 0, 0, &[0, 0, 0, 7, 0, 0, 0, 0])),
    ];
    let (all, over) = read(&said);
    assert_eq!(over, None);
    // Frames of HEADERS, CONTINUATION and DATA, with 9 bytes of header each; not those that promise or reset.
    let exchange = |protocol, status, flag, grpc_status, (request_bytes, response_bytes)| Exchange {
        protocol,
        status,
        flag,
        grpc_status,
        request_bytes,
        response_bytes,
        request_messages: 0,
        response_messages: 0,
        duration: Duration::ZERO,
        asked: None,
    };
    let first = Exchange {
        request_messages: 2,
        response_messages: 1,
        ..exchange(Protocol::Grpc, 200, Flag::None, Some(5), (25 + 21 + 19 + 15, 10 + 15 + 10))
    };
    let want = [
        first,
        exchange(Protocol::Grpc, 200, Flag::None, Some(2), (11, 15)),
        exchange(Protocol::Http, 404, Flag::UpstreamReset, None, (10, 14 + 10)),
        exchange(Protocol::Http, 0, Flag::ClientGone, None, (10, 0)),
        exchange(Protocol::Http, 0, Flag::UpstreamReset, None, (10, 0)),
    ];
    assert_eq!(all, want);
}

/// Bytes that are nearly right, and bytes that are not.
#[test]
fn garbage_does_no_harm() {
    let mut random = StdRng::seed_from_u64(42);
    let good: [Vec<Said>; 2] = [
        vec![
            client("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            server("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
        ],
        vec![
            Client(
                [
                    PREFACE,
                    &frame(4, 0, 0, &[]),
                    &frame(1, 0x2c, 1, b"\x01\0\0\0\0\x09\x83\x40\x85\xae\xc3\x77\x1a\x4b\x01b\0"),
                ]
                .concat(),
            ),
            Server([frame(4, 0, 0, &[]), frame(1, 0x5, 1, b"\x88\x54\x03gzi")].concat()),
        ],
    ];
    for round in 0..20_000 {
        let mut said = good[round % 2].clone();
        for one in &mut said {
            let (Client(bytes) | Server(bytes)) = one else { continue };
            for _ in 0..random.random_range(0..4) {
                let at = random.random_range(0..bytes.len());
                match random.random_range(0..3) {
                    0 => bytes[at] = random.random(),
                    1 => bytes.truncate(at.max(1)),
                    _ => {
                        let more: Vec<u8> = (0..random.random_range(0..30)).map(|_| random.random()).collect();
                        bytes.splice(at..at, more);
                    }
                }
            }
        }
        let whole = seen(&said, || usize::MAX);
        assert_eq!(seen(&said, || random.random_range(1..9)), whole, "{said:?}");
        let mut heads = with_heads(&said, || random.random_range(1..9));
        heads.0.iter_mut().for_each(|exchange| exchange.asked = None);
        assert_eq!(heads, whole, "{said:?}");
    }
}
