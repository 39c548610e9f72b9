//! Headers that concern one connection only.

use super::*;

const HOP: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "x-hop", "te"];

#[test]
fn what_concerns_one_connection_is_sent_on_neither_way() {
    run(async {
        let m = Mesh::of(
            |_| {},
            |_, _| {
                let r = Response::builder().header("connection", "x-hop").header("x-hop", "1").header("x-kept", "1");
                Does::Answer(r.header("keep-alive", "timeout=5").body(payload("ok")).unwrap())
            },
        );
        let mut r = get("/");
        for (name, value) in
            [("connection", "x-hop, keep-alive"), ("x-hop", "1"), ("keep-alive", "timeout=5"), ("x-kept", "1")]
        {
            r.headers_mut().append(name, value.parse().unwrap());
        }
        let a = m.send(r).await;
        let seen = m.seen.borrow();
        for headers in [&seen[0].headers, a.headers()] {
            assert_eq!(headers["x-kept"], "1");
            assert!(!HOP.iter().any(|n| headers.contains_key(*n)), "{headers:?}");
        }
    });
}
