//! Which requests are sent again, how often, and when.

use super::*;

#[test]
fn a_request_is_sent_again_until_it_succeeds_or_all_is_tried() {
    run(async {
        let m = Mesh::of(retry(2, |r| r.server_error = true), |n, _| status(if n < 2 { 503 } else { 200 }));
        assert_eq!(m.ask(get("/")).await.0, 200);
        assert_eq!(m.count(), 3);
        let m = Mesh::of(retry(2, |r| r.server_error = true), |_, _| status(503));
        assert_eq!(m.ask(get("/")).await.0, 503);
        assert_eq!(m.count(), 3);
        assert!(logged(" 503 URX via_upstream "));
        let m = Mesh::of(retry(2, |r| r.reset = true), |_, _| status(503));
        assert_eq!((m.ask(get("/")).await.0.as_u16(), m.count()), (503, 1), "what is not asked for is not done");
    });
}

#[test]
fn between_attempts_there_is_a_back_off_that_doubles_up_to_its_cap() {
    run(async {
        const FIRST: u64 = 1000;
        let change = retry(8, |r| (r.server_error, r.backoff_ms) = (true, FIRST));
        let m = Mesh::of(change, |_, _| status(503));
        let began = Instant::now();
        m.ask(get("/")).await;
        let seen = m.seen.borrow();
        let gaps: Vec<Duration> = seen.windows(2).map(|w| w[1].at - w[0].at).collect();
        assert_eq!(gaps.len(), 8);
        for (n, gap) in gaps.iter().enumerate() {
            let most = Duration::from_millis((FIRST << n).min(FIRST * 10));
            assert!(*gap < most, "{n}: {gaps:?}");
        }
        assert!(began.elapsed() > Duration::from_millis(FIRST), "{gaps:?}");
    });
}

#[test]
fn an_attempt_that_takes_too_long_is_given_up() {
    run(async {
        const LIMIT: Duration = Duration::from_millis(500);
        let rules = |attempts| retry(attempts, |r| (r.server_error, r.per_try_ms) = (true, 500));
        let m = Mesh::of(rules(1), |n, _| if n == 0 { Does::Never } else { status(200) });
        let began = Instant::now();
        assert_eq!(m.ask(get("/")).await.0, 200);
        assert!((LIMIT..LIMIT + Duration::from_millis(20)).contains(&began.elapsed()), "{:?}", began.elapsed());
        let m = Mesh::of(rules(0), |_, _| Does::Never);
        assert_eq!(m.ask(get("/")).await.0, 504);
        assert!(logged("upstream_per_try_timeout"));
    });
}

#[test]
fn a_post_whose_head_was_sent_is_not_repeated_by_reset_before_request() {
    run(async {
        let m = Mesh::of(retry(2, |r| r.reset_before_request = true), |_, _| Does::Break);
        assert_eq!((m.ask(post("order")).await.0.as_u16(), m.count()), (503, 1));
        let m = Mesh::of(retry(2, |r| r.reset = true), |_, _| Does::Break);
        assert_eq!((m.ask(post("order")).await.0.as_u16(), m.count()), (503, 3), "it was asked for");
        assert!(m.seen.borrow().iter().all(|s| s.method == Method::POST && s.body == "order"), "whole each time");
    });
}

#[test]
fn what_nobody_has_seen_goes_to_another_endpoint() {
    run(async {
        // Nobody listens at the first.
        let m = Mesh::new(2, AppProtocol::Http11, retry(1, |r| r.connect_failure = true));
        m.listen(1, |_, _| status(200));
        for n in 1..=20 {
            assert_eq!(m.ask(post("order")).await.0, 200);
            assert_eq!(m.count(), n);
        }
        assert!(m.seen.borrow().iter().all(|s| s.endpoint == 1));
        let m = Mesh::new(1, AppProtocol::Http11, retry(0, |_| {}));
        assert_eq!(m.ask(get("/")).await.0, 503);
        assert!(logged(" 503 UF "));
    });
}

#[test]
fn a_body_that_is_not_kept_is_not_sent_again() {
    run(async {
        for (size, want) in [(32 << 10, 2), (300 << 10, 1)] {
            let m = Mesh::of(retry(1, |r| r.server_error = true), |_, _| status(503));
            assert_eq!(m.ask(post(vec![7; size])).await.0, 503);
            assert_eq!(m.count(), want, "{size}");
        }
    });
}

#[test]
fn a_budget_bounds_retries() {
    run(async {
        for (at_least, want) in [(0, 1), (1, 2)] {
            let rules = retry(1, |r| r.server_error = true);
            let budget = ir::RetryBudget { per_million: 0, at_least };
            let change = |s: &mut Snapshot| {
                rules(s);
                policy(s, ir::Policy { retries: Some(budget), ..Default::default() });
            };
            let m = Mesh::of(change, |_, _| status(503));
            assert_eq!(m.ask(get("/")).await.0, 503);
            assert_eq!((m.count(), logged(" 503 UO ")), (want, at_least == 0));
            LINES.take();
        }
    });
}
