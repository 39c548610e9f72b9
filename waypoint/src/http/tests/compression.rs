//! Answers that are compressed, and those that are not.

use super::*;
use crate::http::reply::ResponseBody;
use flate2::read::GzDecoder;
use http::response::Builder;
use std::io::Read;

fn compressing(change: impl FnOnce(&mut ir::Compression)) -> impl FnOnce(&mut Snapshot) {
    let mut compression = ir::Compression::default();
    change(&mut compression);
    compressing_so(compression)
}

fn compressing_so(compression: ir::Compression) -> impl FnOnce(&mut Snapshot) {
    route(move |r| r.compression = Some(compression))
}

fn text() -> Bytes {
    "a page of text, ".repeat(1000).into()
}

fn asking(accept: &str) -> Request<Payload> {
    let r = Request::get("http://s/").header("host", "s").header("accept-encoding", accept);
    r.body(payload("")).unwrap()
}

fn page(change: impl Fn(Builder) -> Builder) -> Does {
    let answer = Response::builder().header("content-type", "text/html; charset=utf-8").header("etag", "\"1\"");
    Does::Answer(change(answer).body(payload(text())).unwrap())
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

#[test]
fn an_answer_is_compressed_for_who_takes_it() {
    run(async {
        for (speaks, two) in [(AppProtocol::Http11, false), (AppProtocol::Http2, true), (AppProtocol::Http11, true)] {
            let m = Mesh::new(1, speaks, compressing(|_| {}));
            m.listen(0, |_, _| page(|a| a.header("accept-ranges", "bytes").header("vary", "origin")));
            for _ in 0..3 {
                let r = asking("br, gzip");
                let a = if two { m.send_two(r).await } else { m.send(r).await };
                let headers = a.headers().clone();
                assert_eq!(
                    (&headers["content-encoding"], &headers["etag"]),
                    (&"gzip".parse().unwrap(), &"W/\"1\"".parse().unwrap())
                );
                let vary: Vec<_> = headers.get_all("vary").iter().collect();
                assert_eq!(vary, ["origin", "accept-encoding"]);
                assert!(!["content-length", "accept-ranges"].iter().any(|name| headers.contains_key(*name)));
                let body = a.into_body().collect().await.unwrap().to_bytes();
                assert!(body.len() < 1000, "{}", body.len());
                assert_eq!(unzipped(&body), text());
                assert!(
                    logged(" 200 - via_upstream ") && logged(&format!(" 0 {} ", body.len())),
                    "what was sent is told"
                );
                LINES.take();
            }
            assert_eq!(m.seen.borrow()[0].headers["accept-encoding"], "br, gzip");
        }
    });
}

#[test]
fn who_does_not_take_it_gets_it_as_it_is() {
    run(async {
        let m = Mesh::of(compressing(|_| {}), |_, _| page(|a| a));
        let mut head = asking("gzip");
        *head.method_mut() = Method::HEAD;
        for r in [get("/"), asking("br"), asking("gzip;q=0"), head] {
            let is_head = r.method() == Method::HEAD;
            let a = m.send(r).await;
            assert!(!a.headers().contains_key("content-encoding"));
            // A cache must know that others may get it in another form.
            assert_eq!(
                (&a.headers()["vary"], &a.headers()["etag"]),
                (&"accept-encoding".parse().unwrap(), &"\"1\"".parse().unwrap())
            );
            let body = a.into_body().collect().await.unwrap().to_bytes();
            assert!(if is_head { body.is_empty() } else { body == text() });
        }
    });
}

#[test]
fn what_may_not_be_changed_is_not() {
    run(async {
        type Change = fn(Builder) -> Builder;
        let rows: [(&str, Change); 9] = [
            ("encoded", |a| a.header("content-encoding", "br")),
            ("no-transform", |a| a.header("cache-control", "private, No-Transform")),
            ("a part", |a| a.status(206).header("content-range", "bytes 0-15999/20000")),
            ("no success of its own", |a| a.status(206)),
            ("a sum", |a| a.header("content-digest", "sha-256=:x:")),
            ("a sum of the whole", |a| a.header("repr-digest", "sha-256=:x:")),
            ("a picture", |mut a| {
                a.headers_mut().unwrap().insert("content-type", "image/png".parse().unwrap());
                a
            }),
            ("a stream of events", |mut a| {
                a.headers_mut().unwrap().insert("content-type", "text/event-stream".parse().unwrap());
                a
            }),
            ("of no kind", |mut a| {
                a.headers_mut().unwrap().remove("content-type");
                a
            }),
        ];
        for (name, change) in rows {
            let m = Mesh::of(compressing(|_| {}), move |_, _| page(change));
            let a = m.send(asking("gzip")).await;
            assert_ne!(a.headers().get("content-encoding"), Some(&"gzip".parse().unwrap()), "{name}");
            assert!(!a.headers().contains_key("vary"), "{name}");
            assert_eq!(a.into_body().collect().await.unwrap().to_bytes(), text(), "{name}");
        }
        // Small ones, and where no rule asks for it.
        let m = Mesh::of(compressing(|c| c.min_bytes = 16_001), |_, _| page(|a| a));
        assert!(!m.send(asking("gzip")).await.headers().contains_key("content-encoding"));
        let m = Mesh::of(compressing(|c| c.min_bytes = 16_000), |_, _| page(|a| a));
        assert!(m.send(asking("gzip")).await.headers().contains_key("content-encoding"));
        let m = Mesh::of(|_| {}, |_, _| page(|a| a));
        let a = m.send(asking("gzip")).await;
        assert!(!a.headers().contains_key("content-encoding") && !a.headers().contains_key("vary"));
    });
}

/// Where somebody asks for it, each event can be read when it is there.
#[test]
fn what_is_there_is_not_held_back() {
    run(async {
        let m = Mesh::of(compressing(|c| c.content_types = vec!["text/event-stream".into()]), |_, _| {
            let answer = Response::builder().header("content-type", "text/event-stream");
            Does::Answer(answer.body(each_ten_seconds(b"data: x\n\n", 3)).unwrap())
        });
        let began = Instant::now();
        let mut body = m.send(asking("gzip")).await.into_body();
        let (mut all, mut times) = (vec![], vec![]);
        while let Some(frame) = body.frame().await {
            all.extend_from_slice(frame.unwrap().data_ref().unwrap());
            // What has come so far, of a stream that is not at its end.
            let (mut decoder, mut plain) = (GzDecoder::new(&all[..]), [0; 100]);
            let mut read = 0;
            while let Ok(n @ 1..) = decoder.read(&mut plain[read..]) {
                read += n;
            }
            times.push((began.elapsed().as_secs(), read / b"data: x\n\n".len()));
        }
        for (seconds, events) in [(0, 1), (10, 2), (20, 3)] {
            assert!(times.contains(&(seconds, events)), "{times:?}");
        }
        assert_eq!(unzipped(&all), b"data: x\n\n".repeat(3));
    });
}

/// The answers of a service whose filter asks for it, whatever their rule; trailers stay.
#[test]
fn a_service_says_it_for_all_its_rules() {
    run(async {
        let routes = ir::Routes { compression: Some(ir::Compression::default()), ..Default::default() };
        let routes = Arc::new(Routes::new(&routes, None).unwrap());
        let m = Mesh::new(1, AppProtocol::Http2, |s| drop(s.routes.insert(KEY.into(), routes)));
        m.listen(0, |_, _| {
            let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "1".parse().unwrap())]);
            let body = Full::new(text()).with_trailers(async move { Some(Ok(trailers)) });
            Does::Answer(Response::builder().header("content-type", "text/plain").body(body.boxed_unsync()).unwrap())
        });
        let a = m.send_two(asking("gzip")).await;
        assert_eq!(a.headers()["content-encoding"], "gzip");
        let body = a.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-sum"], "1");
        assert_eq!(unzipped(&body.to_bytes()), text());
    });
}

/// One that breaks off is no end.
#[test]
fn an_answer_that_breaks_off_does_not_end_well() {
    run(async {
        let m = Mesh::new(1, AppProtocol::Http11, compressing(|_| {}));
        m.memory.listen(address(0), |mut io| {
            spawn(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let _ = io.read(&mut [0; 1000]).await;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100000\r\n\r\n";
                io.write_all(head.as_bytes()).await.unwrap();
                io.write_all(&text()).await.unwrap();
            });
        });
        let a = m.send(asking("gzip")).await;
        assert_eq!(a.headers()["content-encoding"], "gzip");
        assert!(a.into_body().collect().await.is_err());
        assert!(logged(" 200 UC "));
    });
}

#[test]
fn an_answer_of_our_own_can_be_compressed_too() {
    run(async {
        let direct = Some(ir::DirectResponse { status: 200, body: text().to_vec() });
        let m = Mesh::of(
            route(|r| {
                (r.response, r.compression) = (direct, Some(ir::Compression::default()));
            }),
            |_, _| status(200),
        );
        let a = m.send(asking("gzip")).await;
        assert_eq!(a.headers()["content-encoding"], "gzip");
        assert_eq!(unzipped(&a.into_body().collect().await.unwrap().to_bytes()), text());
        assert!(!ResponseBody::local("").is_transformed());
    });
}
