//! What rules and single backends of theirs change of a request.

use super::*;

fn rewrite(path: ir::rewrite::Path) -> ir::Rewrite {
    ir::Rewrite { path: Some(path), ..Default::default() }
}

/// A rule for `/prefix` with two backends of equal weight, the first of which has a rewrite.
fn of_one(own: ir::Rewrite, of_rule: Option<ir::Rewrite>) -> impl FnOnce(&mut Snapshot) {
    route(|r| {
        let path = ir::Text { kind: Some(ir::text::Kind::Segments("/prefix".into())) };
        r.r#match = Some(ir::Match { path: Some(path), ..Default::default() });
        r.destinations.push(r.destinations[0].clone());
        r.destinations[0].rewrite = Some(own);
        r.rewrite = of_rule;
        r.retry = Some(ir::Retry { attempts: 1, backoff_ms: 1, codes: vec![503], ..Default::default() });
    })
}

#[test]
fn a_backends_rewrite_is_for_its_share_of_the_requests() {
    use ir::rewrite::Path;
    run(async {
        let (full, prefix) = (Path::Full("/whole".into()), Path::Prefix("/new".into()));
        let host = ir::Rewrite { authority: "x.com".into(), path: Some(Path::Full("/of-rule".into())) };
        for (own, of_rule, wanted) in [
            (rewrite(full.clone()), None, [("/whole?q=1", "s"), ("/prefix/a?q=1", "s")]),
            (rewrite(prefix), None, [("/new/a?q=1", "s"), ("/prefix/a?q=1", "s")]),
            // What it does not change is changed as the rule says.
            (rewrite(full), Some(host), [("/whole?q=1", "x.com"), ("/of-rule?q=1", "x.com")]),
        ] {
            let m = Mesh::of(of_one(own, of_rule), |_, _| status(200));
            for _ in 0..10 {
                assert_eq!(m.ask(get("/prefix/a?q=1")).await.0, 200);
            }
            let seen = m.seen.borrow();
            let is = |s: &Seen, (path, host): (&str, &str)| {
                s.uri.path_and_query().unwrap().as_str() == path && s.headers["host"] == host
            };
            // From wherever the turns begin: of ten each backend has some.
            for one in wanted {
                assert!(seen.iter().any(|s| is(s, one)), "{one:?}");
            }
            assert!(seen.iter().all(|s| wanted.iter().any(|one| is(s, *one))), "{wanted:?}");
        }
    });
}

#[test]
fn a_request_that_is_sent_again_is_rewritten_as_before() {
    run(async {
        let own = rewrite(ir::rewrite::Path::Prefix("/new".into()));
        let m = Mesh::of(of_one(own, None), |n, _| status(if n % 2 == 0 { 503 } else { 200 }));
        for _ in 0..10 {
            assert_eq!(m.ask(get("/prefix/a")).await.0, 200);
        }
        let seen = m.seen.borrow();
        let paths: Vec<&str> = seen.iter().map(|s| s.uri.path()).collect();
        assert!(paths.len() == 20 && paths.chunks(2).all(|pair| pair[0] == pair[1]), "{paths:?}");
        assert!(paths.contains(&"/new/a") && paths.contains(&"/prefix/a"), "{paths:?}");
    });
}

/// A GRPCRoute's RequestHeaderModifier.
#[test]
fn headers_of_a_grpc_call_are_set_added_and_removed() {
    run(async {
        let header = |name: &str| ir::Header { name: name.into(), value: "ours".into() };
        let change = ir::HeaderChange {
            set: vec![header("x-set"), header("x-set-new")],
            add: vec![header("x-add"), header("x-add-new")],
            remove: vec!["x-remove".into()],
        };
        let m = Mesh::new(1, AppProtocol::Grpc, route(|r| r.request = Some(change)));
        m.listen(0, |_, _| {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            Does::Answer(Response::new(with_trailers("ok", trailers)))
        });
        let mut call = Request::post("http://s/s/m").header("content-type", "application/grpc");
        for name in ["X-Set", "X-Add", "X-Remove", "X-Kept"] {
            call = call.header(name, "theirs");
        }
        assert_eq!(m.send_two(call.body(payload("call")).unwrap()).await.status(), 200);
        let seen = m.seen.borrow();
        let of = |name: &str| seen[0].headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        for (name, wanted) in [
            ("x-set", &["ours"][..]),
            ("x-set-new", &["ours"]),
            ("x-add", &["theirs", "ours"]),
            ("x-add-new", &["ours"]),
            ("x-remove", &[]),
            ("x-kept", &["theirs"]),
        ] {
            assert_eq!(of(name), wanted, "{name}");
        }
    });
}
