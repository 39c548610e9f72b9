//! Clients that do not speak HTTP, or not to the end; and an application that takes all and says nothing.

use crate::{
    http1::drain,
    route::{Route, pick},
};
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use socket2::SockRef;
use std::{
    io::{self, BufReader, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

/// The application's ports: declared to be HTTP, and not declared.
const DECLARED: u16 = 82;
const UNDECLARED: u16 = 83;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame of HTTP/2: SETTINGS without any.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// PING, which must not be the first one.
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// HEADERS whose block has the index 0, which is none.
const BAD_HEADERS: &[u8] = &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x80];

/// What a port's ztunnels make of it.
#[derive(Clone, Copy)]
enum Then {
    /// Nothing: no request has come, and none is wrong.
    Nothing,
    /// It is no HTTP; who has declared it is told.
    NotHttp,
    /// It began as HTTP.
    GaveUp(&'static str),
}

/// One connection each; none has a request that anybody could count.
fn all(rng: &mut StdRng) -> Vec<(Vec<u8>, Then)> {
    let mut noise = vec![0u8; rng.random_range(1..5000)];
    rng.fill(&mut noise[..]);
    // Not the first letter of a method.
    noise[0] |= 0x80;
    let mut hello = vec![0x16u8, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.extend_from_slice(&noise);
    let get: &[u8] = b"GET / HTTP/1.1\r\nhost: app\r\n";
    vec![
        (noise, Then::NotHttp),
        (hello, Then::NotHttp),
        (b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), Then::NotHttp),
        (b"hello\r\n".to_vec(), Then::NotHttp),
        (vec![], Then::Nothing),
        (get[..rng.random_range(1..get.len())].to_vec(), Then::Nothing),
        (get.to_vec(), Then::Nothing),
        (PREFACE[..rng.random_range(1..PREFACE.len())].to_vec(), Then::Nothing),
        ([PREFACE, PING].concat(), Then::GaveUp("frame")),
        ([PREFACE, SETTINGS, BAD_HEADERS].concat(), Then::GaveUp("hpack")),
        ([get, &b"no colon\r\n\r\n"[..]].concat(), Then::GaveUp("head")),
        ([get, &b"x: "[..], &[b'x'; 20_000]].concat(), Then::GaveUp("too_long")),
        (b"POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n".to_vec(), Then::GaveUp("framing")),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_vec(), Then::GaveUp("framing")),
        (b"GET / HTTP/1.1\r\n\r\n".repeat(257), Then::GaveUp("too_many_open")),
        ([get, &b"upgrade: x\r\n\r\n"[..], get].concat(), Then::GaveUp("upgrade")),
    ]
}

/// All of them, in some order.
pub fn session(route: &Route, rng: &mut StdRng) -> io::Result<()> {
    let mut all = all(rng);
    all.shuffle(rng);
    for (bytes, then) in all {
        let port = pick(rng, &[DECLARED, UNDECLARED]);
        let stream = route.connect(port)?;
        let cut = rng.random_range(0..=bytes.len());
        let mut to = &stream;
        to.write_all(&bytes[..cut])?;
        to.write_all(&bytes[cut..])?;
        match then {
            // It may be lost on the way.
            Then::Nothing if rng.random() => {
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                continue;
            }
            Then::NotHttp if port == DECLARED => route.tally.gave_up(route.number, "not_http"),
            Then::GaveUp(reason) => route.tally.gave_up(route.number, reason),
            Then::Nothing | Then::NotHttp => {}
        }
        stream.shutdown(Shutdown::Write)?;
        drain(&mut BufReader::new(&stream))?;
    }
    Ok(())
}

/// Takes all of a connection. What it has taken has passed both ztunnels.
pub fn serve(stream: &TcpStream) -> io::Result<()> {
    drain(&mut BufReader::new(stream))
}
