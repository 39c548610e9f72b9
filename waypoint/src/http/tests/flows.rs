//! What policies say of requests, as the book of flows has it, and who looks on.

use super::*;
use crate::authz::access::Access;
use karst_flows::{Reporter, Source, Verdict, tap};

/// A policy `ns/deny` refuses `/admin`.
fn deny(s: &mut Snapshot) {
    let mut test = ir::AccessTest { values: vec!["/admin".into()], ..Default::default() };
    test.set_attribute(ir::Attribute::Path);
    let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![test] }] }];
    let rules = vec![ir::AccessRule { clauses }];
    let mut policy = ir::AccessPolicy { name: "ns/deny".into(), rules, ..Default::default() };
    policy.set_action(ir::AccessAction::Deny);
    let access = Access::new(&ir::Access { policies: vec![policy], ..Default::default() }).unwrap();
    s.access.insert(KEY.into(), Arc::new(access));
}

#[test]
fn a_denied_request_is_told_to_who_looks_on_with_its_policy() {
    run(async {
        let m = Mesh::of(deny, |_, _| Does::Answer(Response::new(payload("ok"))));
        assert_eq!(m.ask(get("/before")).await.0.as_u16(), 200, "nobody looks on yet");
        let mut page = m.worker.shared.taps.page("limit=3&namespace=ns").into_body();
        for (path, wanted) in [("/orders/17?secret=1", 200), ("/admin", 403)] {
            assert_eq!(m.ask(get(path)).await.0.as_u16(), wanted, "{path}");
        }
        let without_host = Request::get("/").body(payload("")).unwrap();
        assert_eq!(m.ask(without_host).await.0.as_u16(), 400);
        let mut told = vec![];
        while let Some(Ok(frame)) = http_body_util::BodyExt::frame(&mut page).await {
            let line: tap::Line = serde_json::from_slice(&frame.into_data().unwrap()).unwrap();
            if let tap::Line::Flow(record) = line {
                told.push(record);
            }
        }
        let (allowed, denied) = (told[0].event(), told[1].event());
        assert_eq!((allowed.verdict, denied.verdict), (tap::Verdict::Forwarded, tap::Verdict::Dropped));
        assert_eq!((allowed.request.unwrap().path, allowed.request.unwrap().status), ("/orders/17", 200));
        assert_eq!((denied.policy, &*denied.reason), ("ns/deny", "denied by policy ns/deny"));
        assert_eq!((denied.service, denied.request.unwrap().status), (KEY, 403));
        assert_eq!(denied.source.identity, "spiffe://cluster.local/ns/app/sa/web");
        let unfit = told[2].event();
        assert_eq!((unfit.verdict, &*unfit.reason), (tap::Verdict::Error, "missing_host_header"), "it went nowhere");
        assert_eq!((told.len(), &*told[1].node_name), (3, "own"));
    });
}

#[test]
fn requests_are_noted_with_what_policies_said() {
    run(async {
        let m = Mesh::of(deny, |_, _| Does::Answer(Response::new(payload("ok"))));
        for (path, wanted) in [("/orders/17", 200), ("/orders/18?secret=1", 200), ("/a/../admin", 403)] {
            assert_eq!(m.ask(get(path)).await.0.as_u16(), wanted, "{path}");
        }
        let page = m.worker.shared.flows.page().await;
        let told: Vec<_> = page
            .flows
            .iter()
            .map(|f| (&*f.key.path, f.key.verdict, &*f.key.policy, f.count, &*f.example.path, &*f.example.host))
            .collect();
        assert_eq!(
            told,
            [
                ("/admin", Verdict::Denied, "ns/deny", 1, "/admin", "s"),
                ("/orders/{*}", Verdict::Allowed, "", 2, "/orders/17", "s"),
            ]
        );
        let key = &page.flows[0].key;
        assert_eq!((key.reporter, &*key.destination.service, key.port), (Reporter::Waypoint, KEY, 80));
        assert_eq!(key.source, Source::Identity("spiffe://cluster.local/ns/app/sa/web".into()));
    });
}

#[test]
fn requests_of_one_connection_are_noted_by_the_policies_of_their_time() {
    run(async {
        let m = Mesh::of(|_| {}, |_, _| Does::Answer(Response::new(payload("ok"))));
        let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(m.connect(false))).await.unwrap();
        spawn(conn);
        let allow: fn(&mut Snapshot) = |s| drop(s.access.remove(KEY));
        let deny: fn(&mut Snapshot) = deny;
        for (change, wanted) in [(allow, 200), (allow, 200), (deny, 403), (allow, 200), (deny, 403)] {
            m.tell(change);
            send.ready().await.unwrap();
            let answer = send.send_request(get("/admin")).await.unwrap();
            assert_eq!(answer.status().as_u16(), wanted);
            answer.into_body().collect().await.unwrap();
        }
        let page = m.worker.shared.flows.page().await;
        let told: Vec<_> = page.flows.iter().map(|f| (&*f.key.path, f.key.verdict, f.count)).collect();
        assert_eq!(told, [("/admin", Verdict::Allowed, 3), ("/admin", Verdict::Denied, 2)]);
    });
}
