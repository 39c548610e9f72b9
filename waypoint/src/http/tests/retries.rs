//! Which requests are sent again, how often, and when.

use super::*;
use crate::upstream::error::ConnectError;
use karst_hbone::client::ClientError;
use karst_proxy::dial::DialError;
use std::cell::Cell;

/// What a rule of Gateway API makes of `retry: {attempts}`: whatever no application can have acted on, and attempts that take too long.
fn of_gateway_api(attempts: u32, change: impl FnOnce(&mut ir::Retry)) -> impl FnOnce(&mut Snapshot) {
    retry(attempts, |r| {
        (r.connect_failure, r.refused_stream, r.reset_before_request) = (true, true, true);
        (r.attempt_timeout, r.grpc) = (true, vec![14]);
        change(r);
    })
}

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

/// GEP-3388: above its part of all requests, and above what there may always be, a request that has failed is answered with 503.
#[test]
fn a_retry_rate_bounds_retries_of_a_time() {
    run(async {
        let rules = retry(1, |r| (r.server_error, r.backoff_ms) = (true, 1));
        let rate = ir::RetryRate { per_million: 200_000, interval_ms: 60_000, at_least: 1, at_least_ms: 60_000 };
        let change = |s: &mut Snapshot| {
            rules(s);
            s.backends.insert(KEY.into(), Arc::new(ir::Backend { retry_rate: Some(rate), ..Default::default() }));
        };
        let m = Mesh::of(change, |_, _| status(500));
        // One there may be; of eight requests with two retries a fifth are retries.
        for (n, want) in [500, 503, 503, 503, 503, 503, 503, 500].into_iter().enumerate() {
            assert_eq!(m.ask(get("/")).await.0.as_u16(), want, "{n}");
        }
        assert_eq!((m.count(), logged(" 503 UO "), logged(" 500 URX ")), (10, true, true));
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!((m.ask(get("/")).await.0.as_u16(), m.count()), (500, 12), "one again");
    });
}

/// A DestinationRule's budget is before it, and it is before a DestinationRule's number of retries at a time.
#[test]
fn a_retry_rate_stands_between_both_of_a_destination_rule() {
    run(async {
        let none = ir::RetryRate { interval_ms: 1000, at_least_ms: 1000, ..Default::default() };
        let any = ir::RetryRate { per_million: 1_000_000, ..none };
        let of_rule = |retries, max_retries| ir::Policy {
            retries,
            limits: Some(ir::Limits { max_retries, ..Default::default() }),
            ..Default::default()
        };
        let one = ir::RetryBudget { per_million: 0, at_least: 1 };
        for (rate, policy, want) in [
            (none, of_rule(None, 5), 1),
            (any, of_rule(None, 1), 2),
            (none, of_rule(Some(one), 0), 2),
            (any, of_rule(Some(ir::RetryBudget::default()), 0), 1),
        ] {
            let rules = retry(1, |r| r.server_error = true);
            let backend = ir::Backend { policy: Some(policy), retry_rate: Some(rate), ..Default::default() };
            let change = |s: &mut Snapshot| {
                rules(s);
                s.backends.insert(KEY.into(), Arc::new(backend));
            };
            let m = Mesh::of(change, |_, _| status(503));
            assert_eq!((m.ask(get("/")).await.0.as_u16(), m.count()), (503, want), "{rate:?}");
        }
    });
}

#[test]
fn in_gateway_api_what_was_sent_is_not_sent_again_when_the_connection_breaks() {
    run(async {
        for speaks in [AppProtocol::Http11, AppProtocol::Http2] {
            let m = Mesh::new(1, speaks, of_gateway_api(3, |_| {}));
            m.listen(0, |_, _| Does::Break);
            assert_eq!((m.ask(get("/")).await.0.as_u16(), m.count()), (503, 1), "{speaks:?}");
            assert_eq!((m.ask(post("order")).await.0.as_u16(), m.count()), (503, 2), "{speaks:?}");
        }
    });
}

#[test]
fn in_gateway_api_an_attempt_over_its_time_is_cancelled_and_sent_again() {
    run(async {
        const LIMIT: Duration = Duration::from_millis(500);
        let m = Mesh::of(of_gateway_api(2, |r| r.per_try_ms = 500), |n, _| match n {
            0 => Does::Never,
            1 => Does::After(LIMIT * 2, Response::new(payload("late"))),
            _ => status(200),
        });
        let began = Instant::now();
        let (code, text) = m.ask(post("order")).await;
        assert_eq!((code.as_u16(), &*text, m.count()), (200, "ok", 3), "nobody waits for the late one");
        assert!((LIMIT * 2..LIMIT * 2 + Duration::from_millis(40)).contains(&began.elapsed()), "{:?}", began.elapsed());
        // Where that is not asked for, the client is told.
        let m = Mesh::of(retry(2, |r| (r.per_try_ms, r.codes) = (500, vec![504])), |_, _| Does::Never);
        assert_eq!((m.ask(get("/")).await.0.as_u16(), m.count()), (504, 1));
        // All retries are used up.
        let m = Mesh::of(of_gateway_api(1, |r| r.per_try_ms = 500), |_, _| Does::Never);
        assert_eq!((m.ask(get("/")).await.0.as_u16(), m.count()), (504, 2));
    });
}

#[test]
fn in_gateway_api_only_the_codes_of_the_rule_count() {
    run(async {
        const ALL: &[u32] = &[500, 502, 503, 504];
        const ONE: &[u32] = &[500];
        for (attempts, asked, fails, with, want) in [
            (3, ONE, 2, 500, (200, 3)),
            (3, ONE, 4, 500, (500, 4)),
            (3, ONE, 2, 503, (503, 1)),
            (2, ALL, 1, 502, (200, 2)),
            (2, ALL, 3, 504, (504, 3)),
            (0, ALL, 1, 500, (500, 1)),
            (1, &[], 1, 503, (503, 1)),
        ] {
            let rules = of_gateway_api(attempts, |r| r.codes = asked.to_vec());
            let m = Mesh::of(rules, move |n, _| status(if n < fails { with } else { 200 }));
            assert_eq!((m.ask(get("/")).await.0.as_u16(), m.count()), want, "{attempts} {asked:?} {fails} {with}");
        }
    });
}

#[test]
fn a_call_that_an_application_calls_unavailable_is_made_again() {
    run(async {
        for (unavailable, want) in [("14", 2), ("13", 1)] {
            let m = Mesh::new(1, AppProtocol::Grpc, of_gateway_api(1, |_| {}));
            m.listen(0, move |n, _| {
                let said = if n == 0 { unavailable } else { "0" };
                Does::Answer(Response::builder().header("grpc-status", said).body(payload("")).unwrap())
            });
            let r = Request::post("http://s/s/m").header("content-type", "application/grpc");
            let a = m.send_two(r.body(payload("call")).unwrap()).await;
            let said = if want == 2 { "0" } else { unavailable };
            assert_eq!((a.headers()["grpc-status"].to_str().unwrap(), m.count()), (said, want));
        }
    });
}

#[test]
fn a_stream_that_was_refused_is_asked_for_again() {
    run(async {
        for (reason, want) in [(h2::Reason::REFUSED_STREAM, 200), (h2::Reason::INTERNAL_ERROR, 503)] {
            let m = Mesh::new(1, AppProtocol::Http2, of_gateway_api(1, |_| {}));
            let asked = Rc::new(Cell::new(0));
            let count = asked.clone();
            m.memory.listen(address(0), move |io| {
                let count = count.clone();
                spawn(async move {
                    let mut connection = h2::server::handshake(io).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        match count.replace(count.get() + 1) {
                            0 => respond.send_reset(reason),
                            _ => drop(respond.send_response(Response::new(()), true).unwrap()),
                        }
                    }
                });
            });
            let (code, _) = m.ask(get("/")).await;
            assert_eq!((code.as_u16(), asked.get()), (want, if want == 200 { 2 } else { 1 }), "{reason:?}");
        }
    });
}

/// Nobody listens at a port of a pod in the mesh: its node's proxy says so, and answers CONNECT with 503.
#[test]
fn a_closed_port_behind_a_tunnel_is_a_connection_that_failed() {
    run(async {
        let answered = |code: u16| {
            let status = StatusCode::from_u16(code).unwrap();
            move || ConnectError::from(DialError::from(ClientError::Status(status)))
        };
        let m = Mesh::new(2, AppProtocol::Http11, of_gateway_api(100, |_| {}));
        m.memory.fail(address(0), answered(503));
        m.listen(1, |_, _| status(200));
        for n in 1..=20 {
            assert_eq!((m.ask(post("order")).await.0.as_u16(), m.count()), (200, n));
        }
        // What a policy forbids is not tried again.
        for (code, want) in [(503, 3), (504, 3), (401, 1), (403, 1)] {
            let m = Mesh::new(1, AppProtocol::Http11, of_gateway_api(2, |_| {}));
            let tried = Rc::new(Cell::new(0));
            let (count, why) = (tried.clone(), answered(code));
            m.memory.fail(address(0), move || {
                count.set(count.get() + 1);
                why()
            });
            assert_eq!((m.ask(get("/")).await.0.as_u16(), tried.get()), (503, want), "{code}");
        }
    });
}

#[test]
fn a_back_off_does_not_outlast_the_deadline() {
    run(async {
        const HOUR: u64 = 3_600_000;
        let again = ir::Retry { attempts: 5, backoff_ms: HOUR, server_error: true, ..Default::default() };
        let m = Mesh::of(route(|r| (r.timeout_ms, r.retry) = (500, Some(again))), |_, _| status(503));
        let began = Instant::now();
        assert_eq!(m.ask(get("/")).await.0, 504);
        assert_eq!(began.elapsed().as_millis(), 500);
        assert!(logged(" 504 UT "));
    });
}
