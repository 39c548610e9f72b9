//! A client, the application that it talks to, and what both draw from.

use crate::tally::Tally;
use bytes::Bytes;
use karst_world::Pod;
use rand::{Rng, rngs::StdRng};
use std::{
    io,
    net::{Ipv4Addr, TcpStream},
    sync::LazyLock,
    time::Duration,
};

/// Bodies are cut from this: whoever reads where a body should be passed over sees requests and answers, and miscounts.
pub static TEXT: LazyLock<Bytes> =
    LazyLock::new(|| b"HTTP/1.1 200 OK\r\n\r\nGET / HTTP/1.1\r\n\r\n0\r\n\r\n".repeat(3000).into());

/// Longest silence of an application that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Route {
    /// The client, and its node.
    pub client: Pod,
    pub number: usize,
    /// The application's address, and what it counts.
    pub service: Ipv4Addr,
    pub tally: Tally,
}

impl Route {
    pub fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let stream = self.client.connect((self.service, port).into())?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

/// One of these.
pub fn pick<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}
