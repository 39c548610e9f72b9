//! How far a connection has come that outlives its tunnel ([`crate::lasting`]), as the side of one application has it.
//!
//! What must always hold: a byte of the application's is in its socket until the other side has said that its application has it, so
//! whoever goes on can send it again; and nobody goes on from a number that cannot be. Proven by `tests`, which break tunnels.

use crate::{
    continuation::Token,
    lasting::{Joint, Line},
};
use bytes::Bytes;
use karst_rt::survive::{
    ahead::look_ahead,
    progress::{left_at_end, progress, take},
    table::{Entry, Region},
};
use socket2::SockRef;
use std::{
    io,
    os::fd::BorrowedFd,
    rc::Rc,
    task::{Context, Poll},
};

/// How far a connection has come whose tunnel has broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Bytes of the application's that are not in its socket any more: the other side has said that its application has them.
    pub taken: u64,
    /// How far the other direction has come: what the other side is told.
    pub given: u64,
    /// Bytes of the application's, and its end, that have been counted and shown.
    pub counted: u64,
    /// Bytes of the application's, and its end, that were sent. None: nobody knows, another process was killed.
    pub sent: Option<u64>,
    /// Of these the end was one.
    pub ended: bool,
    /// Both directions have come to their end here, and only the other side may lack something.
    pub over: bool,
}

/// What a tunnel has of it.
pub(super) struct Outlives {
    /// Its place in the table of those that outlive this process, if it is in there. The first field: what is closed is in no table.
    entry: Option<Entry>,
    pub(super) token: Token,
    pub(super) line: Rc<Line>,
    /// Bytes that the other side's application has: taken out of the socket.
    taken: u64,
    /// Bytes that were sent, and whether the end was.
    sent: u64,
    ended: bool,
    /// What the other side has said last.
    acked: u64,
    counted: u64,
    /// The tunnel has broken.
    pub(super) broken: bool,
}

impl Outlives {
    /// Of a connection of which nothing was carried; but so many bytes of its application's have been taken and sent already.
    pub(super) fn begin(socket: BorrowedFd<'_>, joint: Joint, already: u64) -> io::Result<Self> {
        joint.line.begin(0, already);
        let reached = Reached { taken: already, given: 0, counted: already, sent: None, ended: false, over: false };
        Self::ahead(socket, joint, reached, already)
    }

    /// Of one that goes on.
    ///
    /// # Errors
    /// The sides do not fit together: bytes are missing, or somebody has said what cannot be.
    pub(super) fn go_on(socket: BorrowedFd<'_>, joint: Joint, reached: Reached) -> io::Result<Self> {
        let (here, has_ended) = match reached.sent {
            // All of it was seen. The socket may be closed by now, and then it tells nothing.
            Some(sent) if reached.ended => (sent - 1, true),
            sent => {
                let (waiting, has_ended) = match progress(socket)? {
                    Some(now) => (now.waiting, now.peer_ended),
                    // Both ends have come meanwhile. An error would have ended the connection here.
                    None if sent.is_some() => (left_at_end(socket)?, true),
                    None => return Err(io::ErrorKind::NotConnected.into()),
                };
                (reached.taken + waiting, has_ended)
            }
        };
        let theirs = joint.theirs;
        let has_end = has_ended && theirs.checked_sub(1) == Some(here);
        let bytes = if has_end { here } else { theirs };
        let was_sent = reached.sent.is_none_or(|sent| theirs <= sent);
        if !(reached.taken..=here).contains(&bytes) || !was_sent {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the sides of the connection do not fit together"));
        }
        take(socket, (bytes - reached.taken) as usize)?;
        joint.line.begin(reached.given, theirs);
        Self::ahead(socket, joint, reached, bytes)
    }

    fn ahead(socket: BorrowedFd<'_>, joint: Joint, reached: Reached, taken: u64) -> io::Result<Self> {
        // As the kernel counts (docs/survival.md): before the first byte.
        SockRef::from(&socket).set_out_of_band_inline(true)?;
        look_ahead(socket)?;
        let Joint { token, line, theirs } = joint;
        let (acked, counted) = (theirs.max(taken), reached.counted.max(taken));
        Ok(Self { entry: None, token, line, taken, sent: taken, ended: false, acked, counted, broken: false })
    }

    /// It outlives this process as well, from now on. `passed`: the application has heard of the other's end.
    pub(super) fn enter(&mut self, socket: BorrowedFd<'_>, region: &Rc<Region>, passed: bool, note: &[u8]) {
        let given = self.line.given() - u64::from(passed);
        self.entry = region.enter_single(socket, (self.taken, given), note);
    }

    /// These bytes, which were seen, are sent now. Gives those that have not been counted before.
    pub(super) fn sends(&mut self, data: &Bytes) -> Bytes {
        let before = self.sent;
        self.sent += data.len() as u64;
        let known = self.counted.saturating_sub(before).min(data.len() as u64) as usize;
        self.counted = self.counted.max(self.sent);
        data.slice(known..)
    }

    /// The end is sent now. True: it has not been counted before.
    pub(super) fn ends(&mut self) -> bool {
        self.ended = true;
        let is_new = self.counted <= self.sent;
        self.counted = self.sent + 1;
        is_new
    }

    fn all_sent(&self) -> u64 {
        self.sent + u64::from(self.ended)
    }

    /// Takes what has been acknowledged out of the socket.
    ///
    /// # Errors
    /// The tunnel has broken; or more was acknowledged than was sent; or the socket has failed.
    pub(super) fn acknowledge(&mut self, socket: BorrowedFd<'_>, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            let number = match self.line.poll_acked(cx, self.acked) {
                Poll::Ready(number) => number?,
                Poll::Pending => return Ok(()),
            };
            if number > self.all_sent() {
                let what = "the other side acknowledges more than it was sent";
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            let bytes = number.min(self.sent);
            take(socket, (bytes - self.taken) as usize).inspect_err(|_| self.line.fail())?;
            (self.taken, self.acked) = (bytes, number);
        }
    }

    /// Both directions have come to their end: whether the other side has all of it, and knows that we have.
    pub(super) fn poll_done(&mut self, socket: BorrowedFd<'_>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let heard = self.acknowledge(socket, cx);
        if self.acked == self.sent + 1 && self.line.is_told() {
            return Poll::Ready(Ok(()));
        }
        match heard {
            Ok(()) => Poll::Pending,
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    /// Its stream has come to an orderly end, and it goes on in another one and perhaps another process: what was sent has come.
    pub(super) fn leaves(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.entry = None;
        take(socket, (self.sent - self.taken) as usize)?;
        self.taken = self.sent;
        Ok(())
    }

    /// Its tunnel has broken. `passed`: the application has heard of the other's end.
    pub(super) fn reached(&self, passed: bool) -> Reached {
        Reached {
            taken: self.taken,
            given: self.line.given(),
            counted: self.counted,
            sent: Some(self.all_sent()),
            ended: self.ended,
            over: self.ended && passed,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
    use super::{
        super::{
            Counts, Interrupted, Tunnel,
            tests::{pair, talk},
        },
        *,
    };
    use crate::{
        continuation::End,
        lasting::{self, Acks, Asked},
        server::Connect,
    };
    use h2::{RecvStream, SendStream};
    use http::{HeaderMap, Request, Response};
    use karst_rt::survive::ahead;
    use std::{cell::Cell, future::pending, pin::Pin, task::ready, time::Duration};
    use tokio::{
        io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf},
        net::TcpStream,
        sync::{Notify, oneshot},
        task::{LocalSet, spawn_local},
        time::timeout,
    };

    const SOON: Duration = Duration::from_secs(20);

    type Stream = (SendStream<Bytes>, RecvStream);

    /// One side of a connection in memory that breaks after so many bytes, of both directions together. Its end is none in order, as of TLS.
    struct Breaks {
        stream: DuplexStream,
        left: Rc<Cell<usize>>,
    }

    impl AsyncRead for Breaks {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
            let is_end = buf.filled().len() == before;
            Poll::Ready(if is_end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
        }
    }

    impl AsyncWrite for Breaks {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let left = self.left.get();
            let some = &buf[..buf.len().min(left)];
            let written = match some.is_empty() {
                true => 0,
                false => ready!(Pin::new(&mut self.stream).poll_write(cx, some))?,
            };
            self.left.set(left - written);
            // Who has written the last bytes does not hear that they have come.
            Poll::Ready(if left == written { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(written) })
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    /// One side of a stream of a tunnel.
    struct Side {
        stream: Stream,
        line: Rc<Line>,
        /// Breaks the tunnel.
        stop: Rc<Notify>,
    }

    impl Side {
        fn joint(self, token: Token, theirs: u64) -> (Stream, Joint) {
            (self.stream, Joint { token, line: self.line, theirs })
        }
    }

    /// A tunnel with a stream and that of acknowledgements, as ztunnel has them; both sides of the stream. None: it has broken before.
    async fn open(bytes: usize) -> Option<[Side; 2]> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let left = Rc::new(Cell::new(bytes));
        let [near, far] = [near, far].map(|stream| Breaks { stream, left: left.clone() });
        let [ours, theirs] = [(); 2].map(|()| Rc::<Acks>::default());
        let (tx, accepted) = oneshot::channel();
        let stop = Rc::<Notify>::default();
        let stops = stop.clone();
        spawn_local(async move {
            let mut tx = Some(tx);
            if let Ok(mut connection) = h2::server::handshake(far).await {
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if lasting::asked(request.headers()) == Asked::Acks {
                        spawn_local(theirs.clone().serve(Connect { request, respond }, pending()));
                        continue;
                    }
                    let Ok(send) = respond.send_response(Response::new(()), false) else { break };
                    let line = theirs.line(send.stream_id());
                    let side = Side { stream: (send, request.into_body()), line, stop: stops.clone() };
                    drop(tx.take().map(|tx| tx.send(side)));
                }
            }
            theirs.break_off();
        });
        let (client, connection) = h2::client::handshake(near).await.ok()?;
        let (acks, stops) = (ours.clone(), stop.clone());
        spawn_local(async move {
            tokio::select! {
                _ = connection => {}
                () = stops.notified() => {}
            }
            acks.break_off();
        });
        let ask = async |headers: HeaderMap| {
            let mut request = Request::connect("a:1").body(()).unwrap();
            *request.headers_mut() = headers;
            let (response, send) = client.clone().ready().await.ok()?.send_request(request, false).ok()?;
            Some((send, response.await.ok()?.into_body()))
        };
        let stream: Stream = ask(HeaderMap::new()).await?;
        let mut for_acks = HeaderMap::new();
        lasting::ask_for_acks(&mut for_acks);
        let of_acks: Stream = ask(for_acks).await?;
        let line = ours.line(stream.0.stream_id());
        spawn_local(ours.run(of_acks, pending()));
        Some([Side { stream, line, stop }, accepted.await.ok()?])
    }

    /// The next tunnel that does not break before its stream is open.
    async fn opened(mut bytes: impl FnMut() -> usize) -> [Side; 2] {
        loop {
            if let Some(sides) = open(bytes()).await {
                return sides;
            }
        }
    }

    fn bytes(seed: u8, length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 5) as u8 ^ (n >> 12) as u8 ^ seed).collect()
    }

    fn begun(tcp: TcpStream, side: Side, is_client: bool, token: Token) -> Tunnel {
        let (stream, joint) = side.joint(token, 0);
        let mut tunnel = Tunnel::new(tcp, stream, is_client, true);
        tunnel.outlive(joint, 0).unwrap();
        tunnel
    }

    /// What is left when its tunnel has broken.
    fn cut(mut tunnel: Tunnel) -> Interrupted {
        let cut = tunnel.interrupted().unwrap();
        tunnel.release();
        assert!(cut.down.rest.is_empty());
        cut
    }

    fn given(cut: &Interrupted) -> u64 {
        cut.reached.unwrap().given
    }

    /// Goes on in tunnel after tunnel, each of which breaks after so many bytes; how many there were.
    async fn carried(
        (a, b): (TcpStream, TcpStream),
        counts: &[Counts; 2],
        mut breaks_after: impl FnMut() -> usize,
    ) -> usize {
        let token = Token::new().unwrap();
        let [near, far] = opened(&mut breaks_after).await;
        let (mut client, mut server) = (begun(a, near, true, token), begun(b, far, false, token));
        let mut tunnels = 1;
        loop {
            let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
            let (one, other) = timeout(SOON, both).await.unwrap_or_else(|_| panic!("tunnel {tunnels} does not end"));
            match (one.unwrap(), other.unwrap()) {
                (End::Over, End::Over) => return tunnels,
                (End::Breaks(one), End::Breaks(other)) => assert!(one == token && other == token),
                // The last acknowledgement was lost: both applications have all.
                (End::Over, End::Breaks(_)) => {
                    assert!(cut(server).reached.unwrap().over);
                    return tunnels;
                }
                (End::Breaks(_), End::Over) => {
                    assert!(cut(client).reached.unwrap().over);
                    return tunnels;
                }
                other => panic!("{other:?}"),
            }
            let (one, other) = (cut(client), cut(server));
            let [near, far] = opened(&mut breaks_after).await;
            let ((near, of_near), (far, of_far)) = (near.joint(token, given(&other)), far.joint(token, given(&one)));
            client = Tunnel::go_on(one, near, of_near, false).unwrap();
            server = Tunnel::go_on(other, far, of_far, false).unwrap();
            tunnels += 1;
        }
    }

    /// A conversation by such tunnels: each byte once, in order, and counted once; ends are passed on.
    async fn converses(up: usize, down: usize, breaks_after: impl FnMut() -> usize) -> usize {
        let ((app, a), (b, other)) = (pair().await, pair().await);
        let (said, answered, counts) = (bytes(1, up), bytes(77, down), <[Counts; 2]>::default());
        let all = carried((a, b), &counts, breaks_after);
        let (tunnels, heard, asked) = tokio::join!(all, talk(app, &said), talk(other, &answered));
        assert!(asked == said && heard == answered, "{up} {down}: {tunnels} tunnels");
        for counts in &counts {
            assert_eq!((counts.from_client.get(), counts.to_client.get()), (up as u64, down as u64));
        }
        tunnels
    }

    #[tokio::test]
    async fn a_tunnel_may_break_at_any_point() {
        if !ahead::is_supported() {
            return;
        }
        let run = async {
            // From before there is a stream to after the last acknowledgement.
            let mut broken = 0;
            for point in (100..4000).step_by(37) {
                let mut first = Some(point);
                broken += usize::from(converses(1000, 700, || first.take().unwrap_or(usize::MAX)).await > 1);
            }
            assert!(broken > 20, "{broken}");
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn tunnels_may_break_again_and_again() {
        if !ahead::is_supported() {
            return;
        }
        let run = async {
            for (up, down) in [(3 << 20, 2 << 20), (2 << 20, 10), (0, 3 << 20)] {
                let mut length = 1000;
                let tunnels = converses(up, down, || {
                    length = 1000 + (length * 7 + 13_331) % 300_000;
                    length
                });
                let tunnels = tunnels.await;
                assert!(tunnels > 5, "{up} {down}: {tunnels}");
            }
        };
        LocalSet::new().run_until(run).await;
    }

    /// What was sent has come when a side has left in order, whether it had been acknowledged or not: nothing is sent again.
    #[tokio::test]
    async fn who_leaves_in_order_sends_nothing_again() {
        if !ahead::is_supported() {
            return;
        }
        let run = async {
            for of_client in [true, false] {
                let ((app, a), (b, other)) = (pair().await, pair().await);
                let (said, answered, counts) = (bytes(1, 6 << 20), bytes(77, 8 << 20), <[Counts; 2]>::default());
                let all = async {
                    let token = Token::new().unwrap();
                    let [near, far] = opened(|| usize::MAX).await;
                    let (mut client, mut server) = (begun(a, near, true, token), begun(b, far, false, token));
                    let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
                    assert!(timeout(Duration::from_millis(5), both).await.is_err(), "it is over already");
                    let leaves = if of_client { &mut client } else { &mut server };
                    assert!(leaves.may_leave());
                    leaves.leave(Token::new().unwrap());
                    let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
                    let (one, two) = timeout(SOON, both).await.unwrap();
                    let (one, two) = (one.unwrap(), two.unwrap());
                    assert!(matches!(one, End::Continues(_)) && one == two, "{one:?} {two:?}");
                    let (one, two) = (client.interrupted().unwrap(), server.interrupted().unwrap());
                    assert!(one.reached.is_none() && two.reached.is_none());
                    client.release();
                    server.release();
                    drop((client, server));
                    let [near, far] = opened(|| usize::MAX).await;
                    let mut client = Tunnel::next(one, near.stream, None, true).unwrap();
                    let mut server = Tunnel::next(two, far.stream, None, true).unwrap();
                    assert!(client.token().is_none(), "it does not outlive this one");
                    let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
                    let (one, two) = timeout(SOON, both).await.unwrap();
                    assert_eq!((one.unwrap(), two.unwrap()), (End::Over, End::Over));
                };
                let ((), heard, asked) = tokio::join!(all, talk(app, &said), talk(other, &answered));
                assert!(asked == said && heard == answered, "{of_client}");
                for counts in &counts {
                    assert_eq!((counts.from_client.get(), counts.to_client.get()), (6 << 20, 8 << 20));
                }
            }
        };
        LocalSet::new().run_until(run).await;
    }

    /// A client and a server between which something was said, until their tunnel breaks; what is left of both, and the applications.
    async fn broken(said: &[u8]) -> ([Interrupted; 2], [TcpStream; 2], Token) {
        let ((mut app, a), (b, other)) = (pair().await, pair().await);
        let token = Token::new().unwrap();
        let [near, far] = opened(|| 3000).await;
        let (mut client, mut server) = (begun(a, near, true, token), begun(b, far, false, token));
        let counts = <[Counts; 2]>::default();
        app.write_all(said).await.unwrap();
        let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
        let ends = timeout(SOON, both).await.unwrap();
        assert!(matches!((ends.0.unwrap(), ends.1.unwrap()), (End::Breaks(_), End::Breaks(_))));
        ([cut(client), cut(server)], [app, other], token)
    }

    /// Who says what cannot be gets nothing: more than was sent, and less than was acknowledged.
    #[tokio::test]
    async fn numbers_that_do_not_fit_are_refused() {
        if !ahead::is_supported() {
            return;
        }
        let run = async {
            // More than the tunnel carries.
            let said = bytes(5, 100_000);
            for wrong in [u64::MAX, 100_000, 0] {
                let ([one, _other], _apps, token) = broken(&said).await;
                let [near, _far] = opened(|| usize::MAX).await;
                let sent = one.reached.unwrap().sent.unwrap();
                let (near, joint) = near.joint(token, wrong.max(sent + 1));
                assert!(Tunnel::go_on(one, near, joint, false).is_err(), "{wrong}");
            }
            let ([mut one, _other], _apps, token) = broken(&said).await;
            let mut reached = one.reached.unwrap();
            reached.taken += 1;
            one.reached = Some(reached);
            let [near, _far] = opened(|| usize::MAX).await;
            let (near, joint) = near.joint(token, reached.taken - 1);
            assert!(Tunnel::go_on(one, near, joint, false).is_err());
            // An acknowledgement of what was never sent.
            let ((_app, a), [near, far]) = (pair().await, opened(|| usize::MAX).await);
            let mut client = begun(a, near, true, token);
            far.line.give(1);
            let counts = Counts::default();
            let error = timeout(SOON, client.carry(&counts)).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        };
        LocalSet::new().run_until(run).await;
    }

    /// Also of a connection that waits for nothing but an application that takes nothing: whoever asks for it is not to wait.
    #[tokio::test]
    async fn a_break_is_heard_of_while_an_application_takes_nothing() {
        if !ahead::is_supported() {
            return;
        }
        let run = async {
            let ((mut app, a), (b, mut other)) = (pair().await, pair().await);
            let token = Token::new().unwrap();
            // Less than is said.
            for socket in [&app, &a] {
                SockRef::from(socket).set_recv_buffer_size(16 << 10).unwrap();
                SockRef::from(socket).set_send_buffer_size(16 << 10).unwrap();
            }
            let [near, far] = opened(|| usize::MAX).await;
            let stop = near.stop.clone();
            let (mut client, mut server) = (begun(a, near, true, token), begun(b, far, false, token));
            // Its end has been said: nothing more comes from it.
            app.shutdown().await.unwrap();
            let counts = <[Counts; 2]>::default();
            let said = bytes(5, 1 << 20);
            let both = async { tokio::join!(client.carry(&counts[0]), server.carry(&counts[1])) };
            let breaks = async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                stop.notify_one();
            };
            let meanwhile = async {
                let _ = tokio::join!(other.write_all(&said), breaks);
                pending::<()>().await;
            };
            let (one, two) = tokio::select! {
                ends = timeout(SOON, both) => ends.unwrap(),
                () = meanwhile => panic!("it waits for ever"),
            };
            assert!(matches!((one.unwrap(), two.unwrap()), (End::Breaks(_), End::Breaks(_))));
            assert!(counts[0].to_client.get() < said.len() as u64);
        };
        LocalSet::new().run_until(run).await;
    }

    /// An application that has gone is not one that has ended: the other side hears of it.
    #[tokio::test]
    async fn an_application_that_has_reset_does_not_go_on() {
        if !ahead::is_supported() {
            return;
        }
        let run = async {
            let ([one, other], [app, _other_app], token) = broken(&bytes(5, 100_000)).await;
            karst_rt::socket::reset_on_close(&app);
            drop(app);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let [near, _far] = opened(|| usize::MAX).await;
            let (near, joint) = near.joint(token, given(&other));
            let went_on = match Tunnel::go_on(one, near, joint, false) {
                Ok(mut tunnel) => timeout(SOON, tunnel.carry(&Counts::default())).await.unwrap().map(|_| ()),
                Err(e) => Err(e),
            };
            assert!(went_on.is_err());
        };
        LocalSet::new().run_until(run).await;
    }
}
