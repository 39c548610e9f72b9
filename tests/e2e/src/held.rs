//! Connections out of a pod that are held.

use karst_rt::netns::Netns;
use karst_world::app;
use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Connections that stay open and are used now and then.
pub struct Held(Vec<TcpStream>);

impl Held {
    /// Opens them.
    pub fn open(from: &Netns, to: SocketAddr, number: usize) -> Self {
        let one = |_| from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5))).unwrap().unwrap();
        Self((0..number).map(one).collect())
    }
    /// How many do not work any more.
    pub fn broken(&mut self) -> usize {
        self.0.iter_mut().filter_map(|s| app::ping(s, b"held connection").err()).count()
    }
}
