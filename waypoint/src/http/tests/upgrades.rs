//! Connections that change their protocol: only to WebSocket.

use super::*;
use crate::{downstream::gateway::Gateway, session::keys::tests::keys};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An endpoint that changes to whatever is asked for, and sends back what it gets then.
fn changes(m: &Mesh) {
    let seen = Rc::new(RefCell::new(Vec::<String>::new()));
    let heads = seen.clone();
    m.memory.listen(address(0), move |mut io| {
        let heads = heads.clone();
        spawn(async move {
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let asked = head.lines().find_map(|l| l.strip_prefix("upgrade: ")).map(String::from);
            heads.borrow_mut().push(head);
            let Some(asked) = asked else {
                io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                return;
            };
            let answer = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {asked}\r\n\r\n");
            io.write_all(answer.as_bytes()).await.unwrap();
            let (mut from, mut to) = tokio::io::split(io);
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    });
}

async fn head(io: &mut DuplexStream, protocol: &str) -> String {
    let r = format!("GET / HTTP/1.1\r\nhost: s\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n");
    io.write_all(r.as_bytes()).await.unwrap();
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn a_websocket_carries_bytes_both_ways() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, |_| {});
        changes(&m);
        let mut io = m.connect(false);
        let answer = head(&mut io, "websocket").await;
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("upgrade: websocket\r\n"), "{answer}");
        io.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        io.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
    });
}

#[test]
fn a_websocket_is_bound_to_its_endpoint() {
    run(async {
        let session = ir::Session { name: "s".into(), ..Default::default() };
        let change = route(|r| r.session = Some(session));
        let session_keys = keys(&[1]);
        let m = Mesh::new(1, AppProtocol::Http11, |s| {
            change(s);
            s.gateway = Some(Arc::new(Gateway { session_keys, ..Default::default() }));
        });
        changes(&m);
        let answer = head(&mut m.connect(false), "websocket").await;
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("set-cookie: s="), "{answer}");
    });
}

#[test]
fn another_protocol_is_an_ordinary_request() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, |_| {});
        changes(&m);
        let answer = head(&mut m.connect(false), "h2c").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}
