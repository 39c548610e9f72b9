//! Who watches a connection is shown bytes after they have left: reading them takes no time of the request's.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod common;

use common::{A, ca, credentials};
use http::{HeaderMap, Response};
use karst_hbone::{
    Settings, client,
    copy::{self, Counts, Watch},
    server,
};
use karst_rt::drain;
use std::{
    cell::RefCell,
    net::TcpStream as Socket,
    os::fd::AsFd,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

/// Of a message; no frame that says something of the tunnel itself is nearly as long.
const LENGTH: usize = 1000;
/// So many requests and answers.
const ROUNDS: usize = 5;

/// Of each piece that was shown: whose it was, how long, and whether it had left.
type Log = Rc<RefCell<Vec<(&'static str, usize, bool)>>>;

async fn pair() -> (TcpStream, TcpStream) {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (a, b) = tokio::join!(TcpStream::connect(l.local_addr().unwrap()), l.accept());
    (a.unwrap(), b.unwrap().0)
}

/// Another handle of a socket.
fn handle(socket: &TcpStream) -> Socket {
    Socket::from(socket.as_fd().try_clone_to_owned().unwrap())
}

/// Looks, whenever it is shown something, whether that waits for its receiver already. All that could take it there is in the
/// thread of the one who looks.
#[derive(Debug)]
struct Left {
    /// Where what the client has sent comes next, and what the server has.
    to_server: Socket,
    to_client: Socket,
    log: Log,
}

impl Left {
    fn note(&self, from: &'static str, bytes: &[u8], to: &Socket) {
        if bytes.is_empty() {
            return;
        }
        let (mut room, until) = ([0; 2 * LENGTH], Instant::now() + Duration::from_secs(2));
        let mut waits = || to.peek(&mut room).is_ok_and(|length| length >= LENGTH);
        // The kernel may take a moment.
        while !waits() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        self.log.borrow_mut().push((from, bytes.len(), waits()));
    }
}

impl Watch for Left {
    fn is_reading(&self) -> bool {
        true
    }
    fn client_sent(&self, bytes: &[u8]) {
        self.note("client", bytes, &self.to_server);
    }
    fn server_sent(&self, bytes: &[u8]) {
        self.note("server", bytes, &self.to_client);
    }
    fn client_ended(&self) {}
    fn server_ended(&self) {}
    fn closed(&self) {}
}

/// Requests and answers, one after the other.
async fn talk(mut client: TcpStream, mut app: TcpStream) {
    let mut room = [0; LENGTH];
    for round in 0..ROUNDS {
        let (said, answer) = ([round as u8; LENGTH], [!(round as u8); LENGTH]);
        client.write_all(&said).await.unwrap();
        app.read_exact(&mut room).await.unwrap();
        assert!(room == said);
        app.write_all(&answer).await.unwrap();
        client.read_exact(&mut room).await.unwrap();
        assert!(room == answer);
    }
}

fn watched(to_server: Socket, to_client: Socket) -> (Counts, Log) {
    let (counts, log) = (Counts::default(), Log::default());
    counts.show_to(Rc::new(Left { to_server, to_client, log: log.clone() }));
    (counts, log)
}

fn judge(who: &str, log: &Log) {
    let want: Vec<_> = (0..ROUNDS).flat_map(|_| [("client", LENGTH, true), ("server", LENGTH, true)]).collect();
    assert_eq!(*log.borrow(), want, "{who}");
}

#[tokio::test]
async fn bytes_between_sockets_are_shown_after_they_have_left() {
    let ((client, a), (b, app)) = (pair().await, pair().await);
    let (counts, log) = watched(handle(&app), handle(&client));
    tokio::select! {
        _ = copy::plain(a, b, &counts) => panic!("nobody has ended it"),
        () = talk(client, app) => {}
    }
    judge("plain", &log);
}

/// Of both sides of a tunnel: what comes from their socket and goes to a stream, and what comes from a stream.
#[tokio::test]
async fn bytes_in_a_tunnel_are_shown_after_they_have_left() {
    let run = async {
        let creds = Rc::new(credentials(&ca(), A));
        let ((near, far), (client, a), (b, app)) = (pair().await, pair().await, pair().await);
        let at = far.local_addr().unwrap();
        let (ours, our_log) = watched(handle(&far), handle(&client));
        let (theirs, their_log) = watched(handle(&app), handle(&near));
        let (served, own) = (RefCell::new(Some((b, theirs))), creds.clone());
        spawn_local(async move {
            let (stream, _) = server::handshake(far, &own).await.unwrap();
            let (_drain, watch) = drain::new();
            let on_stream = move |mut c: server::Connect| {
                let (b, theirs) = served.borrow_mut().take().unwrap();
                spawn_local(async move {
                    let send = c.respond.send_response(Response::new(()), false).unwrap();
                    let _ = copy::tunnel(b, send, c.request.into_body(), &theirs, false).await;
                });
            };
            let _ = server::serve(stream, &Settings::default(), watch, on_stream).await;
        });
        let (send, drive) =
            client::handshake(near, at, &creds, &[A.parse().unwrap()], &Settings::default()).await.unwrap();
        spawn_local(async move {
            let _ = drive.await;
        });
        let (send, recv, _) = client::connect(send, "10.0.0.1:80", HeaderMap::new()).await.unwrap();
        // What the tunnel says of itself has come by then: a turn of either side shows what both have been given.
        tokio::time::sleep(Duration::from_millis(50)).await;
        tokio::select! {
            _ = copy::tunnel(a, send, recv, &ours, true) => panic!("nobody has ended it"),
            () = talk(client, app) => {}
        }
        judge("the client's side", &our_log);
        judge("the server's side", &their_log);
    };
    LocalSet::new().run_until(run).await;
}
