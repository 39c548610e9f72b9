//! When a request must be over.

use super::*;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn a_routes_timeout_is_kept_to_the_millisecond() {
    run(async {
        let m = Mesh::of(route(|r| r.timeout_ms = 2000), |_, _| Does::Never);
        let began = Instant::now();
        let (status, text) = m.ask(get("/")).await;
        assert_eq!((status.as_u16(), &*text, began.elapsed().as_millis()), (504, "upstream request timeout", 2000));
        assert!(logged(" 504 UT response_timeout "));
    });
}

#[test]
fn retries_do_not_outlast_the_deadline() {
    run(async {
        let retry = ir::Retry { attempts: 100, per_try_ms: 300, backoff_ms: 1, reset: true, ..Default::default() };
        let change = route(|r| (r.timeout_ms, r.retry) = (2000, Some(retry)));
        let m = Mesh::of(change, |_, _| Does::Never);
        let began = Instant::now();
        assert_eq!(m.ask(get("/")).await.0, 504);
        assert_eq!(began.elapsed().as_millis(), LIMIT.as_millis());
        assert_eq!(m.count(), 7);
    });
}

#[test]
fn of_a_grpc_timeout_and_the_routes_the_sooner_counts() {
    run(async {
        for (asked, own, want) in [("500m", 2000, 500), ("5S", 2000, 2000), ("1S", 0, 1000)] {
            let m = Mesh::of(route(|r| r.timeout_ms = own), |_, _| Does::Never);
            let mut r = get("/");
            r.headers_mut().insert("grpc-timeout", asked.parse().unwrap());
            let began = Instant::now();
            assert_eq!(m.ask(r).await.0, 504);
            assert_eq!(began.elapsed().as_millis(), want, "{asked} {own}");
        }
    });
}

#[test]
fn an_answer_that_goes_on_beyond_the_deadline_breaks_off() {
    run(async {
        let m =
            Mesh::of(route(|r| r.timeout_ms = 2000), |_, _| Does::Answer(Response::new(Endless(false).boxed_unsync())));
        let began = Instant::now();
        let a = m.send(get("/")).await;
        assert_eq!((a.status().as_u16(), began.elapsed()), (200, Duration::ZERO));
        assert!(a.into_body().collect().await.is_err());
        assert_eq!(began.elapsed().as_millis(), LIMIT.as_millis());
    });
}

/// A body that begins, and never ends.
struct Endless(bool);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"begun")))))
    }
}
