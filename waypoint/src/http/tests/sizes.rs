//! How large requests may be. (Of heads: `tests.rs`, `heads_have_one_limit_both_ways`.)

use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn at_most(bytes: u64) -> impl FnOnce(&mut Snapshot) {
    route(move |r| r.max_body_bytes = bytes)
}

#[test]
fn a_body_whose_size_is_told_is_refused_at_once() {
    run(async {
        let m = Mesh::of(at_most(10), |_, _| status(200));
        assert_eq!(m.ask(post("0123456789")).await.0, 200);
        for two in [false, true] {
            let r = Request::post("http://s/").header("host", "s").body(payload("01234567890")).unwrap();
            let a = if two { m.send_two(r).await } else { m.send(r).await };
            assert_eq!(a.status(), 413);
            assert_eq!(a.into_body().collect().await.unwrap().to_bytes(), "Payload Too Large");
            assert!(logged(" 413 - request_payload_too_large ") && logged("[KARST-0912]"));
            LINES.take();
        }
        assert_eq!(m.count(), 1, "nobody has seen it");
    });
}

/// Whoever expects `100 Continue` has not sent the body yet, and need not.
#[test]
fn who_asks_before_sending_is_told() {
    run(async {
        let m = Mesh::of(at_most(10), |_, _| status(200));
        let mut io = m.connect(false);
        io.write_all(b"POST / HTTP/1.1\r\nhost: s\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 12];
        io.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413");
    });
}

#[test]
fn a_body_whose_size_is_not_told_is_refused_where_it_is_too_large() {
    run(async {
        for speaks in [AppProtocol::Http11, AppProtocol::Http2] {
            let m = Mesh::new(2, speaks, at_most(100_000));
            for endpoint in 0..2 {
                m.listen(endpoint, |_, _| status(200));
            }
            let mut io = m.connect(false);
            let head = b"POST / HTTP/1.1\r\nhost: s\r\ntransfer-encoding: chunked\r\n\r\n";
            io.write_all(head).await.unwrap();
            let part = [&b"2710\r\n"[..], &[b'x'; 10_000], b"\r\n"].concat();
            for _ in 0..20 {
                if io.write_all(&part).await.is_err() {
                    break;
                }
            }
            let mut answer = vec![0; 12];
            io.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, b"HTTP/1.1 413", "{speaks:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(logged(" 413 - request_payload_too_large ") && logged("[KARST-0912]"), "{speaks:?}");
            assert_eq!(m.count(), 0, "no application has got the whole of one");
            LINES.take();
            // Nobody is blamed.
            for _ in 0..4 {
                assert_eq!(m.ask(post("x")).await.0, 200);
            }
        }
    });
}

/// The smaller limit counts: of the rule, and of the service.
#[test]
fn the_smallest_limit_counts() {
    run(async {
        for (service, rule, size, want) in
            [(10, 0, 10, 200), (10, 0, 11, 413), (10, 5, 6, 413), (5, 10, 6, 413), (0, 0, 100_000, 200)]
        {
            let to = ir::Destination { service: KEY.into(), weight: 1, ..Default::default() };
            let one = ir::HttpRule { destinations: vec![to], max_body_bytes: rule, ..Default::default() };
            let table = ir::Table { http: vec![one], tcp: vec![] };
            let routes = ir::Routes { producer: Some(table), max_body_bytes: service, ..Default::default() };
            let routes = Arc::new(Routes::new(&routes, None).unwrap());
            let m = Mesh::of(|s| drop(s.routes.insert(KEY.into(), routes)), |_, _| status(200));
            assert_eq!(m.ask(post(vec![7; size])).await.0, want, "{service} {rule} {size}");
        }
    });
}
