//! The drain, as clients see it: no request is lost, also that which is on its way when it begins.

use super::*;
use karst_rt::drain::Phase;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::spawn_local,
    time::{sleep, timeout},
};

/// One endpoint that takes so long for an answer.
fn mesh(takes: Duration, speaks: AppProtocol) -> (Mesh, Drain) {
    let (m, drain) = Mesh::draining(1, speaks, |_| {});
    m.listen(0, move |_, _| Does::After(takes, Response::new(payload("ok"))));
    (m, drain)
}

async fn seconds(n: u64) {
    sleep(Duration::from_secs(n)).await;
}

async fn say(io: &mut DuplexStream) {
    io.write_all(b"GET / HTTP/1.1\r\nhost: s\r\n\r\n").await.unwrap();
}

/// The next answer; does it say that it is the last?
async fn is_last(io: &mut DuplexStream) -> bool {
    let mut answer = vec![];
    while !answer.ends_with(b"\r\n\r\nok") {
        answer.push(io.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    answer.contains("\r\nconnection: close\r\n")
}

#[test]
fn a_kept_connection_of_http1_ends_with_its_next_answer() {
    run(async {
        let (m, drain) = mesh(Duration::ZERO, AppProtocol::Http11);
        let mut io = m.connect(false);
        for _ in 0..3 {
            say(&mut io).await;
            assert!(!is_last(&mut io).await);
        }
        drain.start(Phase::Graceful);
        seconds(1).await;
        say(&mut io).await;
        assert!(is_last(&mut io).await);
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(m.count(), 4);
    });
}

#[test]
fn a_request_that_is_under_way_is_answered_and_the_last() {
    run(async {
        let (m, drain) = mesh(Duration::from_secs(4), AppProtocol::Http11);
        let mut io = m.connect(false);
        say(&mut io).await;
        seconds(1).await;
        drain.start(Phase::Graceful);
        assert!(is_last(&mut io).await);
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
    });
}

/// Of a drain of 5 s they have half.
#[test]
fn connections_without_requests_do_not_hold_a_drain_up() {
    run(async {
        let (m, drain) = mesh(Duration::ZERO, AppProtocol::Http11);
        let mut io = m.connect(false);
        say(&mut io).await;
        is_last(&mut io).await;
        let began = Instant::now();
        drain.start(Phase::Graceful);
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        let took = began.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_secs(3)).contains(&took), "{took:?}");
    });
}

#[test]
fn a_connection_of_http2_is_told_at_once_and_what_it_has_asked_is_answered() {
    run(async {
        let (m, drain) = mesh(Duration::from_secs(4), AppProtocol::Http2);
        let io = TokioIo::new(m.connect(true));
        let (mut send, conn) = codec::client2().handshake::<_, Payload>(io).await.unwrap();
        let conn = spawn_local(conn);
        let begins = async {
            seconds(1).await;
            drain.start(Phase::Graceful);
        };
        let (answer, ()) = tokio::join!(send.send_request(get("/")), begins);
        let (parts, body) = answer.unwrap().into_parts();
        assert_eq!((parts.status, &*body.collect().await.unwrap().to_bytes()), (StatusCode::OK, &b"ok"[..]));
        assert!(timeout(Duration::from_secs(1), conn).await.is_ok(), "it ends with that");
        assert!(send.ready().await.is_err() && m.count() == 1);
    });
}
