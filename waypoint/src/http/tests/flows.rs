//! What policies say of requests, as the book of flows has it.

use super::*;
use crate::authz::access::Access;
use karst_flows::{Reporter, Source, Verdict};

#[test]
fn requests_are_noted_with_what_policies_said() {
    run(async {
        let deny = |s: &mut Snapshot| {
            let mut test = ir::AccessTest { values: vec!["/admin".into()], ..Default::default() };
            test.set_attribute(ir::Attribute::Path);
            let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![test] }] }];
            let rules = vec![ir::AccessRule { clauses }];
            let mut policy = ir::AccessPolicy { name: "ns/deny".into(), rules, ..Default::default() };
            policy.set_action(ir::AccessAction::Deny);
            let access = Access::new(&ir::Access { policies: vec![policy], ..Default::default() }).unwrap();
            s.access.insert(KEY.into(), Arc::new(access));
        };
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
