//! A connection by a tunnel: the process at its one end is killed again and again, in bulk both ways, and the next one goes on with what the
//! holder has, in a new tunnel. The other end lives on. Each byte is compared.

use crate::{
    kills::Load,
    sys::{Process, close_all_but, pair},
};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request, Response};
use karst_hbone::{
    continuation::{End, Token},
    copy::{self, Counts, Interrupted, Reached, Tunnel},
    lasting::{self, Acks, Asked, Joint, Line},
    server::Connect,
};
use karst_rt::{
    seqpacket::Channel,
    survive::{
        ahead,
        claim::claim,
        holder::{Holder, Left},
        table::Table,
    },
};
use std::{
    future::pending,
    io::{self, Read, Write},
    net::TcpStream,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::{LocalSet, spawn_blocking, spawn_local},
};

const KILLS: u64 = 40;
const SOON: Duration = Duration::from_secs(10);

type Stream = (SendStream<Bytes>, RecvStream);

/// The socket of a tunnel. Its end is none in order, as of TLS.
struct Wire(tokio::net::TcpStream);

impl Wire {
    fn new(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(tcp).map(Self)
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        let is_end = buf.filled().len() == before;
        Poll::Ready(if is_end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What one end of the tunnel begins with.
enum Side {
    New(TcpStream),
    /// And how far the other end has come.
    Cut(Interrupted, u64),
}

impl Side {
    fn tunnel(self, is_client: bool, stream: Stream, line: Rc<Line>) -> io::Result<Tunnel> {
        let token = Token::from_bytes(&[7; 16]).unwrap();
        match self {
            Self::New(tcp) => {
                tcp.set_nonblocking(true)?;
                let tcp = tokio::net::TcpStream::from_std(tcp)?;
                let mut tunnel = Tunnel::new(tcp, stream, is_client, false);
                tunnel.outlive(Joint { token, line, theirs: 0 }, 0)?;
                Ok(tunnel)
            }
            Self::Cut(cut, theirs) => Tunnel::go_on(cut, stream, Joint { token, line, theirs }, false),
        }
    }

    fn socket(&self) -> i32 {
        match self {
            Self::New(tcp) => tcp.as_raw_fd(),
            Self::Cut(cut, _) => cut.socket.as_raw_fd(),
        }
    }
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_io().enable_time().build()
}

async fn ask(client: &SendRequest<Bytes>, headers: HeaderMap) -> io::Result<Stream> {
    let mut request = Request::connect("a:1").body(()).map_err(io::Error::other)?;
    *request.headers_mut() = headers;
    let mut client = client.clone().ready().await.map_err(io::Error::other)?;
    let (response, send) = client.send_request(request, false).map_err(io::Error::other)?;
    Ok((send, response.await.map_err(io::Error::other)?.into_body()))
}

/// What the process does that is killed: it is the tunnel's client. `says`: it has begun.
fn serve(side: Side, wire: TcpStream, orders: OwnedFd, mut says: UnixStream) -> io::Result<End> {
    close_all_but(&[side.socket(), wire.as_raw_fd(), orders.as_raw_fd(), says.as_raw_fd()]);
    let table = Table::new(1)?;
    let _holder = Holder::start(table.as_fd(), &Channel::from_fd(orders)?)?;
    let region = table.region(0).ok_or(io::ErrorKind::NotFound)?;
    let runtime = runtime()?;
    LocalSet::new().block_on(&runtime, async {
        let (client, connection) = h2::client::handshake(Wire::new(wire)?).await.map_err(io::Error::other)?;
        let acks = Rc::<Acks>::default();
        let broken = acks.clone();
        spawn_local(async move {
            let _ = connection.await;
            broken.break_off();
        });
        let stream = ask(&client, HeaderMap::new()).await?;
        let mut headers = HeaderMap::new();
        lasting::ask_for_acks(&mut headers);
        let of_acks = ask(&client, headers).await?;
        let line = acks.line(stream.0.stream_id());
        spawn_local(acks.run(of_acks, pending()));
        let mut tunnel = side.tunnel(true, stream, line)?;
        tunnel.enter(&region, b"whose");
        says.write_all(b"!")?;
        tunnel.carry(&Counts::default()).await
    })
}

/// That process, where it says that it has begun, and the supervisor's end of its orders.
fn start(side: Side, wire: TcpStream) -> (Process, UnixStream, Channel) {
    let (supervisor, orders) = Channel::pair().unwrap();
    let (hears, says) = UnixStream::pair().unwrap();
    // As in `goes_on`: it needs the allocator, and nothing else that other threads have.
    let process = Process::fork(move || i32::from(!matches!(serve(side, wire, orders, says), Ok(End::Over))));
    hears.set_read_timeout(Some(SOON)).unwrap();
    (process, hears, supervisor)
}

/// The other end of the tunnel: its stream, when that has been asked for.
async fn accepted(wire: TcpStream) -> (Stream, Rc<Line>) {
    let (wire, acks) = (Wire::new(wire).unwrap(), Rc::<Acks>::default());
    let (tx, accepted) = oneshot::channel();
    spawn_local(async move {
        let mut tx = Some(tx);
        let mut connection = h2::server::handshake(wire).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            if lasting::asked(request.headers()) == Asked::Acks {
                spawn_local(acks.clone().serve(Connect { request, respond }, pending()));
                continue;
            }
            let send = respond.send_response(Response::new(()), false).unwrap();
            let line = acks.line(send.stream_id());
            drop(tx.take().map(|tx| tx.send(((send, request.into_body()), line))));
        }
        acks.break_off();
    });
    accepted.await.unwrap()
}

#[test]
fn what_a_tunnel_carries_goes_on_in_the_next_process() {
    if !ahead::is_supported() {
        return;
    }
    let (runtime, local, counts) = (runtime().unwrap(), LocalSet::new(), Counts::default());
    let ((client, a), (b, app)) = (pair(), pair());
    let up = Load::start(client.try_clone().unwrap(), app.try_clone().unwrap());
    let down = Load::start(app, client);
    let (mut near, mut far, mut on_its_way) = (Side::New(a), Side::New(b), 0);
    for number in 0..KILLS {
        let (wire, other) = pair();
        let (process, mut hears, supervisor) = start(near, wire);
        let (cut, claimed) = local.block_on(&runtime, async {
            let (stream, line) = accepted(other).await;
            let mut tunnel = far.tunnel(false, stream, line).unwrap();
            let killed = spawn_blocking(move || {
                hears.read_exact(&mut [0]).unwrap();
                // From when it has just begun to some ms of bulk.
                thread::sleep(Duration::from_micros(number * 1797 % 9000));
                process.kill();
            });
            let claimed = async {
                killed.await.unwrap();
                let left = Left::of(&supervisor).expect("it has a holder");
                claim(left.as_fd().try_clone_to_owned().unwrap(), SOON).await.unwrap()
            };
            // The tunnel's end is there when the holder's is.
            let (end, claimed) = tokio::join!(tunnel.carry(&counts), claimed);
            assert!(matches!(end, Ok(End::Breaks(_))), "kill {number}: {end:?}");
            let cut = tunnel.interrupted().unwrap();
            tunnel.release();
            (cut, claimed)
        });
        assert_eq!((claimed.connections.len(), claimed.singles.len(), claimed.lost), (0, 1, 0));
        let [one] = <[_; 1]>::try_from(claimed.singles).unwrap();
        assert_eq!(one.note, b"whose");
        let one = one.settle().unwrap_or_else(|e| panic!("kill {number}: {e}"));
        let (ours, theirs) = (one.given + u64::from(one.ended), cut.reached.unwrap().given);
        on_its_way += u64::from(theirs > one.taken);
        let reached =
            Reached { taken: one.taken, given: ours, counted: one.taken, sent: None, ended: false, over: false };
        let down = copy::Left { ended: one.ended, ..copy::Left::default() };
        let left = Interrupted { socket: one.socket, client: true, ended: false, down, reached: Some(reached) };
        (near, far) = (Side::Cut(left, theirs), Side::Cut(cut, ours));
    }
    for load in [&up, &down] {
        load.stop();
    }
    let (wire, other) = pair();
    let (process, _hears, supervisor) = start(near, wire);
    let code = local.block_on(&runtime, async {
        let (stream, line) = accepted(other).await;
        let mut tunnel = far.tunnel(false, stream, line).unwrap();
        let ended = async {
            let code = spawn_blocking(move || process.end()).await.unwrap();
            Left::of(&supervisor).expect("it has a holder").end();
            code
        };
        let (end, code) = tokio::join!(tunnel.carry(&counts), ended);
        match end.unwrap() {
            End::Over => {}
            // It has ended before its last acknowledgement had left.
            End::Breaks(_) => {
                assert!(tunnel.interrupted().unwrap().reached.unwrap().over);
                tunnel.release();
            }
            other => panic!("{other:?}"),
        }
        code
    });
    assert_eq!(code, Some(0), "both directions have come to their end");
    let carried = [up.end(), down.end()].map(|(sent, received)| {
        assert_eq!(sent, received);
        sent >> 20
    });
    println!("{KILLS} kills, {carried:?} MiB, {on_its_way} with something not acknowledged");
    assert!(on_its_way > 0, "none was killed where it matters");
}
