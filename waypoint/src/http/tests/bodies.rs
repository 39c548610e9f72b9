//! Bodies: large ones both ways, and trailers.

use super::*;

#[test]
fn large_bodies_go_both_ways_unchanged() {
    run(async {
        const SIZE: usize = 8 << 20;
        let bytes: Bytes = (0..SIZE).map(|i| (i % 251) as u8).collect();
        for speaks in [AppProtocol::Http11, AppProtocol::Http2] {
            let m = Mesh::new(1, speaks, |_| {});
            m.listen(0, |_, s| Does::Answer(Response::new(payload(s.body.clone()))));
            let a = m.send(post(bytes.clone())).await;
            let back = a.into_body().collect().await.unwrap().to_bytes();
            assert!(m.seen.borrow()[0].body == bytes && back == bytes, "{speaks:?}: {}", back.len());
        }
    });
}

#[test]
fn trailers_go_both_ways() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Grpc, |_| {});
        m.listen(0, |_, _| {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "7".parse().unwrap())]);
            Does::Answer(Response::new(with_trailers("ok", trailers)))
        });
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
        let r = Request::post("http://s/s/m").header("content-type", "application/grpc");
        let a = m.send_two(r.body(with_trailers("ask", trailers)).unwrap()).await;
        assert_eq!(a.status(), 200);
        let back = a.into_body().collect().await.unwrap();
        assert_eq!(back.trailers().unwrap()["grpc-status"], "7");
        let seen = m.seen.borrow();
        assert_eq!(
            (&seen[0].body[..], &seen[0].trailers.as_ref().unwrap()["x-sum"]),
            (&b"ask"[..], &"1".parse().unwrap())
        );
        assert_eq!(seen[0].uri.path(), "/s/m");
    });
}
