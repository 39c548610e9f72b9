//! Who is shown what is carried, and when: after it was passed on. Whoever it is for has been woken then, so that reading a request
//! is no part of how long it takes.
//!
//! Bytes for a socket are shown when its write has returned. Those for a stream leave with the turn of its tunnel's task, and are
//! shown when that has sent them ([`show_passed`]).
//!
//! Always true: of a connection every byte that was read is shown once, in its order, and before anything is told of what came after
//! it: an answer, an end, the close (`tests`, `super::tests`, `super::tunnel::tests`; the order of both in `tests/shown.rs`).

use bytes::Bytes;
use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
};

/// Most pieces that wait to be shown: more than the streams of a turn mostly have. With one more those before it are shown at once.
const MOST_PASSED: usize = 64;

thread_local! {
    /// What tunnels of this thread are about to send, in its order.
    static PASSED: RefCell<Vec<Passed>> = const { RefCell::new(Vec::new()) };
}

/// A piece that HTTP/2 has been given, and that is to be shown.
struct Passed {
    watch: Rc<dyn Watch>,
    from_client: bool,
    bytes: Bytes,
}

/// Shows what tunnels have been given: they have sent it by now, or their peers take nothing.
pub(crate) fn show_passed() {
    if PASSED.with_borrow(Vec::is_empty) {
        return;
    }
    let mut passed = PASSED.take();
    for Passed { watch, from_client, bytes } in passed.drain(..) {
        show(&*watch, from_client, &bytes);
    }
    // Its memory is for the next ones.
    PASSED.with_borrow_mut(|next| {
        if next.is_empty() {
            *next = passed;
        }
    });
}

fn show(watch: &dyn Watch, from_client: bool, bytes: &[u8]) {
    if from_client { watch.client_sent(bytes) } else { watch.server_sent(bytes) }
}

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
    /// Who is shown the bytes, if anybody; it has been shown all that was carried so far.
    pub fn watch(&self) -> Option<&dyn Watch> {
        self.from_client.watch()
    }
}

/// Somebody who is shown what is carried, in passing and after it was passed on. It can change nothing and delays nothing.
pub trait Watch: std::fmt::Debug {
    /// Does it want more? If not, a plain connection may be spliced, and nothing is kept to be shown.
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
    pub(super) fn is_from_client(&self) -> bool {
        self.from_client
    }
    /// Takes over a number.
    pub fn set(&self, count: u64) {
        self.count.set(count);
    }
    pub(super) fn add(&self, count: usize) {
        self.set(self.get() + count as u64);
    }
    /// Who watches, once it has been shown what came before.
    fn watch(&self) -> Option<&dyn Watch> {
        let watch = self.watch.get()?;
        show_passed();
        Some(&**watch)
    }
    /// These bytes were passed on, or whoever they are for takes nothing.
    pub(super) fn show(&self, bytes: &[u8]) {
        if let Some(watch) = self.watch() {
            show(watch, self.from_client, bytes);
        }
    }
    /// HTTP/2 is given these bytes now: they are shown after the turn that sends them.
    pub(super) fn show_later(&self, bytes: &Bytes) {
        let Some(watch) = self.watch.get().filter(|watch| watch.is_reading()) else { return };
        if PASSED.with_borrow(Vec::len) >= MOST_PASSED {
            show_passed();
        }
        let passed = Passed { watch: watch.clone(), from_client: self.from_client, bytes: bytes.clone() };
        PASSED.with_borrow_mut(|all| all.push(passed));
    }
    pub(super) fn ended(&self) {
        match self.watch() {
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
        if !self.from_client
            && let Some(watch) = self.watch()
        {
            watch.client_ended();
        }
    }
    pub(super) fn is_watched(&self) -> bool {
        self.watch.get().is_some_and(|w| w.is_reading())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    /// Keeps what it is told, with whose it is.
    #[derive(Debug)]
    struct Told {
        log: RefCell<Vec<String>>,
        reading: Cell<bool>,
    }

    impl Told {
        fn note(&self, what: &str, bytes: &[u8]) {
            self.log.borrow_mut().push(format!("{what} {}", bytes.escape_ascii()));
        }
    }

    impl Watch for Told {
        fn is_reading(&self) -> bool {
            self.reading.get()
        }
        fn client_sent(&self, bytes: &[u8]) {
            self.note("client", bytes);
        }
        fn server_sent(&self, bytes: &[u8]) {
            self.note("server", bytes);
        }
        fn client_ended(&self) {
            self.note("client", b"ended");
        }
        fn server_ended(&self) {
            self.note("server", b"ended");
        }
        fn closed(&self) {
            self.note("all", b"closed");
        }
    }

    fn watched() -> (Counts, Rc<Told>) {
        // Of another test in this thread.
        show_passed();
        let (counts, told) = (Counts::default(), Rc::new(Told { log: RefCell::default(), reading: Cell::new(true) }));
        counts.show_to(told.clone());
        (counts, told)
    }

    #[test]
    fn what_was_passed_is_shown_once_and_before_what_is_told_later() {
        let (counts, told) = watched();
        let (up, down) = (&counts.from_client, &counts.to_client);
        up.show_later(&Bytes::from_static(b"one"));
        up.show_later(&Bytes::from_static(b"two"));
        assert!(told.log.borrow().is_empty(), "its tunnel has not had its turn");
        show_passed();
        assert_eq!(told.log.take(), ["client one", "client two"]);
        show_passed();
        assert!(told.log.borrow().is_empty(), "it was shown");
        type Later = fn(&Counts);
        let table: [(Later, &[&str]); 5] = [
            (|counts| counts.to_client.show(b"answer"), &["server answer"]),
            (|counts| counts.from_client.ended(), &["client ended"]),
            (|counts| counts.from_client.sender_gone(), &["client ended"]),
            (|counts| counts.to_client.receiver_gone(), &["client ended"]),
            (|counts| counts.watch().unwrap().closed(), &["all closed"]),
        ];
        for (later, want) in table {
            down.show_later(&Bytes::from_static(b"before"));
            later(&counts);
            assert_eq!(told.log.take(), [&["server before"][..], want].concat());
        }
    }

    #[test]
    fn connections_keep_their_order_beside_others() {
        let ((one, told), (other, others)) = (watched(), watched());
        one.from_client.show_later(&Bytes::from_static(b"a"));
        other.from_client.show_later(&Bytes::from_static(b"b"));
        one.from_client.show_later(&Bytes::from_static(b"c"));
        other.to_client.ended();
        assert_eq!(told.log.take(), ["client a", "client c"]);
        assert_eq!(others.log.take(), ["client b", "server ended"]);
    }

    #[test]
    fn few_pieces_wait_and_none_for_who_reads_no_more() {
        let (counts, told) = watched();
        let piece = Bytes::from_static(b"p");
        (0..MOST_PASSED).for_each(|_| counts.from_client.show_later(&piece));
        assert!(told.log.borrow().is_empty());
        counts.from_client.show_later(&piece);
        assert_eq!((told.log.take().len(), PASSED.with_borrow(Vec::len)), (MOST_PASSED, 1));
        told.reading.set(false);
        counts.from_client.show_later(&piece);
        assert_eq!(PASSED.with_borrow(Vec::len), 1);
        show_passed();
        assert!(PASSED.with_borrow(Vec::is_empty));
    }
}
