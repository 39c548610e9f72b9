//! Connections that outlive the tunnel that carries them (docs/survival.md): what both sides say of it.
//!
//! In headers they agree on a token when a stream opens. From then on each side keeps what its application has said until the other
//! side's application has been given it, and hears of that by acknowledgements: in one stream of the tunnel, for all others ([`Acks`]).
//! If the tunnel breaks, the connection goes on in a stream that shows the token, and each side says in headers how far it has come.
//!
//! How far a side has come is always one number: the bytes that its application was given since the first stream began, and one more once
//! it has heard of the other's end.

use crate::{continuation::Token, server::Connect};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, StreamId};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    io,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::{sync::Notify, time::sleep};

/// Of a CONNECT: the connection is to outlive its tunnel. Of the answer: its token.
pub const HEADER: HeaderName = HeaderName::from_static("karst-survive");
/// How far the side that says it has come, in decimal digits.
pub const OFFSET: HeaderName = HeaderName::from_static("karst-offset");
/// The header's value in a CONNECT, and in that of the stream of acknowledgements.
const ASKS: &str = "1";
const ACKS: &str = "acks";

/// An acknowledgement: a stream's number (4 bytes), and how far its connection has come (8), both with the highest byte first.
const RECORD: usize = 12;
/// What is acknowledged waits this long for more, unless it is as much as [`SOON`] (the receive queue of a new socket has twice that), or an
/// end.
const DELAY: Duration = Duration::from_millis(10);
/// Bytes.
const SOON: u64 = 32 << 10;
/// So much of the tunnel's window is kept for acknowledgements, in bytes: whoever waits for these may be the one that is to make room
/// for others (an application that reads when it has written). As many records as acknowledge a window (16 MiB) by [`SOON`], and some.
const OWN: usize = 8 << 10;

/// What a CONNECT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing, or nothing that is understood.
    Nothing,
    /// A connection that outlives its tunnel.
    Lasts,
    /// The same, of one that has come so far, and whose token is shown as that of any interrupted one ([`crate::continuation`]).
    GoesOn(u64),
    /// The stream of acknowledgements.
    Acks,
}

/// Reads what a CONNECT asks for; a header that is there twice counts for nothing.
pub fn asked(headers: &HeaderMap) -> Asked {
    match (only(headers, HEADER), headers.contains_key(OFFSET)) {
        (Some(value), false) if value == ASKS.as_bytes() => Asked::Lasts,
        (Some(value), false) if value == ACKS.as_bytes() => Asked::Acks,
        (Some(value), true) if value == ASKS.as_bytes() => offset(headers).map_or(Asked::Nothing, Asked::GoesOn),
        (Some(_) | None, _) => Asked::Nothing,
    }
}

/// Asks for a connection that outlives its tunnel. `reached`: how far it has come, if it goes on.
pub fn ask(headers: &mut HeaderMap, reached: Option<u64>) {
    headers.insert(HEADER, HeaderValue::from_static(ASKS));
    if let Some(reached) = reached {
        headers.insert(OFFSET, reached.into());
    }
}

/// Asks for the stream of acknowledgements.
pub fn ask_for_acks(headers: &mut HeaderMap) {
    headers.insert(HEADER, HeaderValue::from_static(ACKS));
}

/// Answers that the connection outlives its tunnel: by which token it goes on, and how far this side has come.
pub fn answer(headers: &mut HeaderMap, token: &Token, reached: u64) {
    if let Some(value) = token.value() {
        headers.insert(HEADER, value);
        headers.insert(OFFSET, reached.into());
    }
}

/// Reads that answer.
pub fn answered(headers: &HeaderMap) -> Option<(Token, u64)> {
    Some((Token::parse(only(headers, HEADER)?)?, offset(headers)?))
}

fn only(headers: &HeaderMap, name: HeaderName) -> Option<&[u8]> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => Some(value.as_bytes()),
        (_, _) => None,
    }
}

fn offset(headers: &HeaderMap) -> Option<u64> {
    let digits = only(headers, OFFSET).filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What both sides of a stream have agreed on.
pub struct Joint {
    /// By which it goes on after a break.
    pub token: Token,
    /// What is acknowledged in this stream.
    pub line: Rc<Line>,
    /// How far the other side has come.
    pub theirs: u64,
}

/// Acknowledgements of one tunnel, as one side of it has them.
#[derive(Default)]
pub struct Acks {
    lines: RefCell<HashMap<u32, Weak<Line>>>,
    /// There is something to be said; and it is to be said at once.
    say: Notify,
    soon: Notify,
    /// A line has ended.
    less: Notify,
    /// The stream of acknowledgements is there; there is one.
    taken: Cell<bool>,
    gone: Cell<bool>,
    /// It was ended on purpose: what it has carried ends with it.
    closed: Cell<bool>,
}

/// Acknowledgements of one stream.
pub struct Line {
    acks: Rc<Acks>,
    id: u32,
    /// How far our side has come, and how far the other knows.
    given: Cell<u64>,
    told: Cell<u64>,
    /// How far the other side has come.
    acked: Cell<u64>,
    /// The application's socket has failed: then there is nothing to go on with.
    failed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Acks {
    /// Those of a new stream.
    pub fn line(self: &Rc<Self>, stream: StreamId) -> Rc<Line> {
        let line = Rc::new(Line {
            acks: self.clone(),
            id: stream.as_u32(),
            given: Cell::new(0),
            told: Cell::new(0),
            acked: Cell::new(0),
            failed: Cell::new(false),
            waker: RefCell::default(),
        });
        self.lines.borrow_mut().insert(line.id, Rc::downgrade(&line));
        line
    }

    /// Has the tunnel broken, or ended?
    pub fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// The tunnel has broken, or ended: its connections are to go on elsewhere. To be called before their tasks hear of it.
    pub fn break_off(&self) {
        self.gone.set(true);
        self.lines().iter().for_each(|line| line.wake());
    }

    /// The tunnel is ended on purpose, and what it carries with it: nobody goes on with that. To be called as above.
    pub fn close(&self) {
        self.closed.set(true);
        self.break_off();
    }

    fn lines(&self) -> Vec<Rc<Line>> {
        self.lines.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Says and hears acknowledgements in this stream until the tunnel ends. `leaving`: it takes no new streams any more, and this one must
    /// not keep it open.
    pub async fn run(self: Rc<Self>, (send, recv): (SendStream<Bytes>, RecvStream), leaving: impl Future<Output = ()>) {
        let unused = async {
            leaving.await;
            while !self.lines().is_empty() {
                self.less.notified().await;
            }
        };
        tokio::select! {
            () = self.say(send) => {}
            () = self.hear(recv) => {}
            () = unused => {}
        }
        self.break_off();
    }

    /// The same of a stream that the other side asks for: the first one.
    pub async fn serve(self: Rc<Self>, connect: Connect, leaving: impl Future<Output = ()>) {
        let Connect { request, mut respond } = connect;
        if self.taken.replace(true) {
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        match respond.send_response(Response::new(()), false) {
            Ok(send) => self.run((send, request.into_body()), leaving).await,
            Err(_) => self.break_off(),
        }
    }

    async fn say(&self, mut send: SendStream<Bytes>) {
        send.reserve_capacity(OWN);
        loop {
            self.say.notified().await;
            // Several messages are acknowledged together, and those of other streams with them.
            tokio::select! {
                () = self.soon.notified() => {}
                () = sleep(DELAY) => {}
            }
            loop {
                let untold: Vec<_> = self.lines().into_iter().filter(|line| !line.is_told()).collect();
                if untold.is_empty() {
                    break;
                }
                // Not beyond the window: who does not listen has little of our memory.
                let Some(room) = room(&mut send, untold.len() * RECORD).await else { return };
                let told = &untold[..untold.len().min(room / RECORD)];
                let mut records = BytesMut::with_capacity(told.len() * RECORD);
                for line in told {
                    records.put_u32(line.id);
                    records.put_u64(line.given.get());
                }
                if send.send_data(records.freeze(), false).is_err() {
                    return;
                }
                for line in told {
                    line.told.set(line.given.get());
                    line.wake();
                }
            }
            send.reserve_capacity(OWN);
        }
    }

    async fn hear(&self, mut recv: RecvStream) {
        let mut heard = BytesMut::new();
        while let Some(Ok(data)) = recv.data().await {
            if recv.flow_control().release_capacity(data.len()).is_err() {
                return;
            }
            heard.extend_from_slice(&data);
            while heard.len() >= RECORD {
                let (id, number) = (heard.get_u32(), heard.get_u64());
                let line = self.lines.borrow().get(&id).and_then(Weak::upgrade);
                // One that has ended needs none.
                if let Some(line) = line {
                    line.acked.set(line.acked.get().max(number));
                    line.wake();
                }
            }
        }
    }
}

/// So many bytes may be sent: at least one record. None: nothing can be sent any more.
async fn room(send: &mut SendStream<Bytes>, wanted: usize) -> Option<usize> {
    send.reserve_capacity(wanted.max(OWN));
    poll_fn(|cx| {
        loop {
            let room = send.capacity();
            if room >= RECORD {
                return Poll::Ready(Some(room));
            }
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(None),
            }
        }
    })
    .await
}

impl Line {
    /// How far both sides have come, and know of each other, when the stream begins.
    pub fn begin(&self, given: u64, acked: u64) {
        self.given.set(given);
        self.told.set(given);
        self.acked.set(acked);
    }

    /// Our application was given so much more.
    pub fn give(&self, count: u64) {
        let given = self.given.get() + count;
        self.given.set(given);
        if given - self.told.get() >= SOON {
            self.acks.soon.notify_one();
        }
        self.acks.say.notify_one();
    }

    /// Our application was told of the other's end, for which the other side waits.
    pub fn end(&self) {
        self.acks.soon.notify_one();
        self.give(1);
    }

    /// How far our side has come.
    pub fn given(&self) -> u64 {
        self.given.get()
    }

    /// Does the other side know how far ours has come?
    pub fn is_told(&self) -> bool {
        self.told.get() == self.given.get()
    }

    /// How far the other side has come, once that is further than this.
    ///
    /// # Errors
    /// The tunnel has broken, and no more is heard.
    pub fn poll_acked(&self, cx: &mut Context<'_>, known: u64) -> Poll<io::Result<u64>> {
        match self.acked.get() {
            acked if acked > known => Poll::Ready(Ok(acked)),
            _ => self.poll_gone(cx).map(Err),
        }
    }

    /// Waits until the tunnel has broken. All that waits for a line is one task.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.acks.is_gone() {
            return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionReset, "the tunnel has broken"));
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The application's socket has failed.
    pub fn fail(&self) {
        self.failed.set(true);
    }

    /// Has the tunnel broken, and nothing else?
    pub fn is_broken(&self) -> bool {
        self.acks.is_gone() && !self.acks.closed.get() && !self.failed.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.acks.lines.borrow_mut().remove(&self.id);
        self.acks.less.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
    use super::*;
    use tokio::{
        task::{LocalSet, spawn_local},
        time::{Instant, timeout},
    };

    #[test]
    fn what_is_said_is_read() {
        let (token, mut headers) = (Token::new().unwrap(), HeaderMap::new());
        assert_eq!((asked(&headers), answered(&headers)), (Asked::Nothing, None));
        ask(&mut headers, None);
        assert_eq!((asked(&headers), answered(&headers)), (Asked::Lasts, None));
        ask(&mut headers, Some(u64::MAX));
        assert_eq!(asked(&headers), Asked::GoesOn(u64::MAX));
        for bad in ["", "+1", "-1", "1 ", "18446744073709551616", "1, 1"] {
            headers.insert(OFFSET, HeaderValue::from_str(bad).unwrap());
            assert_eq!(asked(&headers), Asked::Nothing, "{bad:?}");
        }
        headers.clear();
        ask_for_acks(&mut headers);
        assert_eq!(asked(&headers), Asked::Acks);
        headers.append(HEADER, HeaderValue::from_static(ASKS));
        assert_eq!(asked(&headers), Asked::Nothing, "two of them");
        headers.clear();
        answer(&mut headers, &token, 7);
        assert_eq!((asked(&headers), answered(&headers)), (Asked::Nothing, Some((token, 7))));
        headers.remove(OFFSET);
        assert_eq!(answered(&headers), None);
    }

    type Stream = (SendStream<Bytes>, RecvStream);

    /// Both sides of two streams in memory, and the task of the tunnel's client, with which it breaks.
    async fn streams() -> ([[Stream; 2]; 2], tokio::task::JoinHandle<()>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (tx, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        spawn_local(async move {
            let mut connection = h2::server::handshake(far).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let send = respond.send_response(Response::new(()), false).unwrap();
                let _ = tx.send((send, request.into_body()));
            }
        });
        let (client, connection) = h2::client::handshake(near).await.unwrap();
        let task = spawn_local(async move { drop(connection.await) });
        let mut open = async || {
            let request = http::Request::connect("a:1").body(()).unwrap();
            let mut client = client.clone().ready().await.unwrap();
            let (response, send) = client.send_request(request, false).unwrap();
            let recv = response.await.unwrap().into_body();
            [(send, recv), accepted.recv().await.unwrap()]
        };
        ([open().await, open().await], task)
    }

    /// Both sides of one line, with the acknowledgements under way between them in this stream.
    fn lines_of(sides: [Stream; 2]) -> ([Rc<Line>; 2], [Rc<Acks>; 2]) {
        let acks = [Rc::<Acks>::default(), Rc::default()];
        let id = sides[0].0.stream_id();
        let lines = [acks[0].line(id), acks[1].line(id)];
        for (acks, stream) in acks.iter().zip(sides) {
            spawn_local(acks.clone().run(stream, std::future::pending()));
        }
        (lines, acks)
    }

    /// The same in a tunnel of their own.
    async fn lines() -> ([Rc<Line>; 2], [Rc<Acks>; 2], tokio::task::JoinHandle<()>) {
        let ([sides, _], task) = streams().await;
        let (lines, acks) = lines_of(sides);
        (lines, acks, task)
    }

    async fn acked(line: &Line, known: u64) -> io::Result<u64> {
        timeout(Duration::from_secs(10), poll_fn(|cx| line.poll_acked(cx, known))).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn little_is_acknowledged_together_and_much_at_once() {
        let run = async {
            let ([one, other], _acks, _task) = lines().await;
            let began = Instant::now();
            for _ in 0..5 {
                one.give(10);
                sleep(DELAY / 10).await;
            }
            assert!(!one.is_told());
            assert_eq!(acked(&other, 0).await.unwrap(), 50, "all of it by one");
            let took = began.elapsed();
            assert!((DELAY..DELAY * 2).contains(&took) && one.is_told(), "{took:?}");
            let began = Instant::now();
            one.give(SOON);
            assert_eq!(acked(&other, 50).await.unwrap(), 50 + SOON);
            assert!(began.elapsed() < DELAY, "{:?}", began.elapsed());
            // The other way, and what is known already is not told.
            other.give(3);
            assert_eq!(acked(&one, 0).await.unwrap(), 3);
            assert!(timeout(Duration::from_secs(1), poll_fn(|cx| one.poll_acked(cx, 3))).await.is_err());
            let began = Instant::now();
            other.end();
            assert_eq!(acked(&one, 3).await.unwrap(), 4);
            assert!(began.elapsed() < DELAY, "nobody waits for an end");
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_break_after_what_came_before_it() {
        let run = async {
            let ([one, other], acks, task) = lines().await;
            one.give(SOON);
            assert_eq!(acked(&other, 0).await.unwrap(), SOON);
            assert!(!acks[0].is_gone() && !other.is_broken());
            task.abort();
            for line in [&one, &other] {
                assert!(acked(line, SOON).await.is_err() && line.is_broken());
            }
            assert_eq!(acked(&other, 0).await.unwrap(), SOON, "that has come");
            // One whose socket has failed has not broken.
            one.fail();
            assert!(!one.is_broken() && acks.iter().all(|acks| acks.is_gone()));
            // Nor one whose tunnel was ended on purpose.
            acks[1].close();
            assert!(!other.is_broken());
        };
        LocalSet::new().run_until(run).await;
    }

    /// Data that nobody reads has used up the tunnel's window: acknowledgements have some of their own.
    #[tokio::test]
    async fn data_that_nobody_reads_is_not_in_the_way() {
        let run = async {
            let ([sides, [(mut send, _recv), _unread]], _task) = streams().await;
            let ([one, other], _acks) = lines_of(sides);
            sleep(Duration::from_millis(20)).await;
            // As much as is left of it, and always more.
            let all = async {
                send.reserve_capacity(1 << 20);
                while let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await {
                    send.send_data(vec![0; room].into(), false).unwrap();
                    send.reserve_capacity(1 << 20);
                }
            };
            let mut all = std::pin::pin!(all);
            assert!(timeout(Duration::from_millis(100), &mut all).await.is_err(), "it has ended");
            for number in 1..=20 {
                one.give(SOON);
                assert_eq!(acked(&other, (number - 1) * SOON).await.unwrap(), number * SOON);
            }
        };
        LocalSet::new().run_until(run).await;
    }

    /// The stream of acknowledgements does not keep a tunnel open that leaves: it ends with the last line.
    #[tokio::test]
    async fn who_leaves_waits_for_the_last_line_only() {
        let run = async {
            let ([[near, _far], _], _task) = streams().await;
            let acks = Rc::<Acks>::default();
            let line = acks.line(near.0.stream_id());
            let ran = spawn_local(acks.clone().run(near, std::future::ready(())));
            sleep(Duration::from_millis(20)).await;
            assert!(!ran.is_finished());
            drop(line);
            timeout(Duration::from_secs(10), ran).await.unwrap().unwrap();
            assert!(acks.is_gone());
        };
        LocalSet::new().run_until(run).await;
    }
}
