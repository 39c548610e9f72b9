//! Bytes carried so far, and who is shown them.

use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
};

/// Bytes carried so far.
#[derive(Debug)]
pub struct Counts {
    /// From the side that opened the connection.
    pub from_client: Way,
    /// To the side that opened the connection.
    pub to_client: Way,
}

impl Default for Counts {
    fn default() -> Self {
        Self { from_client: Way::new(true), to_client: Way::new(false) }
    }
}

impl Counts {
    /// Shows all bytes that are carried from now on.
    pub fn show_to(&self, watch: Rc<dyn Watch>) {
        // Nobody is put in another's place.
        let _ = self.from_client.watch.set(watch.clone());
        let _ = self.to_client.watch.set(watch);
    }
    /// Who is shown the bytes, if anybody.
    pub fn watch(&self) -> Option<&dyn Watch> {
        self.from_client.watch.get().map(|w| &**w)
    }
}

/// Somebody who is shown what is carried, in passing and before it is passed on. It can change nothing and delays nothing.
pub trait Watch: std::fmt::Debug {
    /// Does it want more? If not, a plain connection may be spliced.
    fn is_reading(&self) -> bool;
    /// Bytes of the side that opened the connection.
    fn client_sent(&self, bytes: &[u8]);
    /// Bytes of the other side.
    fn server_sent(&self, bytes: &[u8]);
    /// The side that opened the connection sends no more, or has gone.
    fn client_ended(&self);
    /// The other side sends no more.
    fn server_ended(&self);
    /// The connection has ended, in whatever way.
    fn closed(&self);
}

/// One direction of a connection.
#[derive(Debug)]
pub struct Way {
    count: Cell<u64>,
    watch: OnceCell<Rc<dyn Watch>>,
    from_client: bool,
}

impl Way {
    fn new(from_client: bool) -> Self {
        Self { count: Cell::new(0), watch: OnceCell::new(), from_client }
    }
    /// Bytes carried so far.
    pub fn get(&self) -> u64 {
        self.count.get()
    }
    /// Takes over a number.
    pub fn set(&self, count: u64) {
        self.count.set(count);
    }
    pub(super) fn add(&self, count: usize) {
        self.set(self.get() + count as u64);
    }
    pub(super) fn show(&self, bytes: &[u8]) {
        match self.watch.get() {
            None => {}
            Some(watch) if self.from_client => watch.client_sent(bytes),
            Some(watch) => watch.server_sent(bytes),
        }
    }
    pub(super) fn ended(&self) {
        match self.watch.get() {
            None => {}
            Some(watch) if self.from_client => watch.client_ended(),
            Some(watch) => watch.server_ended(),
        }
    }
    /// Who sends these bytes has gone. Of a server that is no end: what it has said may lack its rest.
    pub(super) fn sender_gone(&self) {
        if self.from_client {
            self.ended();
        }
    }
    /// Who is sent these bytes has gone.
    pub(super) fn receiver_gone(&self) {
        if let Some(watch) = self.watch.get().filter(|_| !self.from_client) {
            watch.client_ended();
        }
    }
    pub(super) fn is_watched(&self) -> bool {
        self.watch.get().is_some_and(|w| w.is_reading())
    }
}
