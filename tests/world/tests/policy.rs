//! L4 policy on real connections: the table, STRICT, changes against open connections, propagation order.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{Options, Pod, PodSpec, World, app, wait_for};
use std::time::{Duration, Instant};

fn works(from: &Pod, to: std::net::SocketAddr) -> bool {
    from.connect(to).and_then(|mut s| app::ping(&mut s, b"hello")).is_ok()
}
fn ap(name: &str, ns: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}\n"
    )
}

#[test]
fn policies_let_through_whom_they_say() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("other", true);
    w.namespace("out", false);
    let server = w.mesh_pod(PodSpec::new("app", "server", 1));
    let friend = w.mesh_pod(PodSpec::new("app", "friend", 0));
    let stranger = w.mesh_pod(PodSpec::new("other", "stranger", 0));
    let plain = w.pod(PodSpec::new("out", "plain", 0));
    w.settle();
    let _e = (app::Echo::start(&server, 8080, ""), app::Echo::start(&server, 9090, ""));
    let cidr = format!("{}/32", friend.ip);
    let td = "cluster.local/ns";
    // Policy, then who gets through to 8080 and to 9090: friend, stranger, plaintext.
    let table: Vec<(String, [bool; 6])> = vec![
        ("{}".into(), [false; 6]),
        ("{rules: [{}]}".into(), [true; 6]),
        (
            format!("{{rules: [{{from: [{{source: {{principals: [{td}/app/sa/friend]}}}}]}}]}}"),
            [true, false, false, true, false, false],
        ),
        (
            format!("{{rules: [{{from: [{{source: {{principals: ['{td}/app/*']}}}}]}}]}}"),
            [true, false, false, true, false, false],
        ),
        (
            "{rules: [{from: [{source: {principals: ['*/sa/stranger']}}]}]}".into(),
            [false, true, false, false, true, false],
        ),
        ("{rules: [{from: [{source: {principals: ['*']}}]}]}".into(), [true, true, false, true, true, false]),
        ("{rules: [{from: [{source: {namespaces: [other]}}]}]}".into(), [false, true, false, false, true, false]),
        ("{rules: [{from: [{source: {notNamespaces: [other]}}]}]}".into(), [true, false, true, true, false, true]),
        ("{rules: [{from: [{source: {serviceAccounts: [friend]}}]}]}".into(), [true, false, false, true, false, false]),
        (
            format!("{{rules: [{{from: [{{source: {{ipBlocks: [{cidr}]}}}}]}}]}}"),
            [true, false, false, true, false, false],
        ),
        (
            format!("{{action: DENY, rules: [{{from: [{{source: {{notIpBlocks: [{cidr}]}}}}]}}]}}"),
            [true, false, false, true, false, false],
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}]}".into(),
            [true, true, true, false, false, false],
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {notPorts: ['9090']}}]}]}".into(),
            [false, false, false, true, true, true],
        ),
        (
            "{rules: [{from: [{source: {namespaces: [app]}}], to: [{operation: {ports: ['8080']}}]}]}".into(),
            [true, false, false, false, false, false],
        ),
        (
            format!(
                "{{rules: [{{when: [{{key: source.ip, values: [{cidr}]}}, {{key: destination.port, values: ['8080']}}]}}]}}"
            ),
            [true, false, false, false, false, false],
        ),
        (
            format!("{{action: DENY, rules: [{{when: [{{key: destination.ip, values: [{}]}}]}}]}}", server.ip),
            [false; 6],
        ),
        (
            "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}".into(),
            [true, true, false, true, true, false],
        ),
        ("{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}".into(), [false; 6]),
        ("{selector: {matchLabels: {app: nobody}}}".into(), [true; 6]),
        ("{action: PERMIT}".into(), [false; 6]),
    ];
    let mut wrong = 0;
    for (spec, want) in &table {
        w.apply("policy", &ap("p", "app", spec));
        let got: Vec<bool> =
            [8080, 9090].iter().flat_map(|p| [&friend, &stranger, &plain].map(|c| works(c, server.at(*p)))).collect();
        let ok = got == want;
        println!("policy {:<8} {spec}", if ok { "ok" } else { "WRONG" });
        if !ok {
            println!("   expected {want:?}\n   seen     {got:?}");
            wrong += 1;
        }
    }
    println!("policy rows={} wrong={wrong}", table.len());
    assert_eq!(wrong, 0);
    let log = w.log_text("controller.log");
    assert!(
        log.contains("policy.yaml:1: AuthorizationPolicy app/p: spec.action: unsupported value \"PERMIT\""),
        "the bad one is reported"
    );
    w.delete("policy");
    assert!(works(&plain, server.at(8080)));
    w.apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n");
    assert!(works(&friend, server.at(8080)) && !works(&plain, server.at(8080)), "STRICT");
}

#[test]
fn policy_changes_close_open_connections() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("other", true);
    let server = w.mesh_pod(PodSpec::new("app", "server", 1));
    let (good, bad) = (w.mesh_pod(PodSpec::new("app", "good", 0)), w.mesh_pod(PodSpec::new("other", "bad", 0)));
    let same = w.mesh_pod(PodSpec::new("other", "same", 1));
    let _echo = app::Echo::start(&server, 8080, "");
    for (scope, ns, selector) in [
        ("selector", "app", "selector: {matchLabels: {app: server}}, "),
        ("namespace", "app", ""),
        ("mesh", "istio-system", ""),
    ] {
        let open = |p: &Pod| {
            let mut s = p.connect(server.at(8080)).unwrap();
            app::ping(&mut s, b"x").unwrap();
            s.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            s
        };
        let mut good_ones: Vec<_> = (0..10).map(|_| open(&good)).collect();
        let mut bad_ones: Vec<_> = (0..10).map(|_| open(&bad)).collect();
        bad_ones.extend((0..10).map(|_| open(&same)));
        let t = Instant::now();
        w.write(
            "deny",
            &ap(
                "deny",
                ns,
                &format!("{{{selector}action: DENY, rules: [{{from: [{{source: {{namespaces: [other]}}}}]}}]}}"),
            ),
        )
        .unwrap();
        let first = wait_for("a new connection is refused", Duration::from_secs(5), || {
            (!works(&bad, server.at(8080))).then(|| t.elapsed())
        });
        let closed = |s: &mut std::net::TcpStream| !matches!(std::io::Read::read(s, &mut [0; 1]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
        let all = wait_for("the open ones are closed", Duration::from_secs(5), || {
            bad_ones.iter_mut().all(closed).then(|| t.elapsed())
        });
        let kept = good_ones.iter_mut().filter_map(|s| app::ping(s, b"y").ok()).count();
        println!(
            "live policy scope={scope} first_refusal_ms={} closed={}/{} after_ms={} others_kept={kept}/10",
            first.as_millis(),
            bad_ones.len(),
            bad_ones.len(),
            all.as_millis()
        );
        assert_eq!(kept, 10);
        w.delete("deny");
        assert!(works(&bad, server.at(8080)));
    }
}

/// Right after a policy is in force, nobody waits: who is refused hears it at once, who is allowed is served at once. What went
/// before, again and again: a connection that a policy has closed, and plaintext that was served a moment ago.
#[test]
fn a_policy_change_leaves_nobody_waiting() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("other", true);
    w.namespace("out", false);
    let server = w.mesh_pod(PodSpec::new("app", "server", 1));
    let (friend, stranger) =
        (w.mesh_pod(PodSpec::new("app", "friend", 0)), w.mesh_pod(PodSpec::new("other", "stranger", 0)));
    let plain = w.pod(PodSpec::new("out", "plain", 0));
    w.settle();
    let _e = (app::Echo::start(&server, 8080, ""), app::Echo::start(&server, 9000, ""));
    let deny = ap("no-others", "app", "{action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]}");
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: app}\nspec: {mtls: {mode: STRICT}}\n";
    let mut slowest = [Duration::ZERO; 3];
    let mut wrong = vec![];
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(12);
    for round in 0..rounds {
        let mut open = stranger.connect(server.at(9000)).unwrap();
        app::ping(&mut open, b"open").unwrap();
        w.write("deny", &deny).unwrap();
        open.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let closed = std::io::Read::read(&mut open, &mut [0; 1]);
        assert!(
            !matches!(closed, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
            "the open connection is closed"
        );
        w.delete("deny");
        for (i, (who, pod, served)) in [
            ("plaintext, permissive", &plain, true),
            ("plaintext, strict", &plain, false),
            ("member, strict", &friend, true),
        ]
        .into_iter()
        .enumerate()
        {
            if i == 1 {
                w.apply("strict", strict);
            }
            let t = Instant::now();
            let seen = pod.connect(server.at(8080)).and_then(|mut s| app::ping(&mut s, b"hello"));
            slowest[i] = slowest[i].max(t.elapsed());
            if seen.is_ok() != served || t.elapsed() > Duration::from_secs(1) {
                wrong.push(format!("round {round}, {who}: {seen:?} after {:?}", t.elapsed()));
            }
        }
        w.delete("strict");
    }
    println!("policy rounds={rounds} slowest={slowest:?} wrong={wrong:?}");
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Issue 14, 6: what a policy in dry run would have done is in the access log, once for each connection, and counted; nobody is
/// refused by it, and no open connection is closed.
#[test]
fn a_dry_run_is_logged_and_counted_and_refuses_nobody() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("other", true);
    let server = w.mesh_pod(PodSpec::new("app", "server", 1));
    let friend = w.mesh_pod(PodSpec::new("app", "friend", 0));
    let (far, near) = (w.mesh_pod(PodSpec::new("other", "far", 0)), w.mesh_pod(PodSpec::new("other", "near", 1)));
    let _echo = app::Echo::start(&server, 8080, "");
    let dry = |name: &str, spec: &str| {
        ap(name, "app", spec).replace("namespace: app}", "namespace: app, annotations: {istio.io/dry-run: 'true'}}")
    };
    let from = |ns: &str| format!("rules: [{{from: [{{source: {{namespaces: [{ns}]}}}}]}}]");
    let selector = "selector: {matchLabels: {app: server}}";
    // Name, spec, and the results for: the two of namespace other (and one open connection of theirs), the friend.
    for (name, spec, others, own) in [
        ("deny-selector", format!("{{{selector}, action: DENY, {}}}", from("other")), Some("denied"), None),
        ("deny-namespace", format!("{{action: DENY, {}}}", from("other")), Some("denied"), None),
        ("allow-selector", format!("{{{selector}, {}}}", from("app")), Some("denied"), Some("allowed")),
        ("allow-nothing", "{}".to_string(), Some("denied"), Some("denied")),
    ] {
        let mut open = far.connect(server.at(8080)).unwrap();
        app::ping(&mut open, b"before").unwrap();
        w.apply("dry", &dry(name, &spec));
        for p in [&friend, &far, &near] {
            assert!(works(p, server.at(8080)), "{name}: {}", p.spec.name);
        }
        let results = |wanted: &str| {
            [(others, 3), (own, 1)].iter().filter(|(r, _)| *r == Some(wanted)).map(|(_, n)| n).sum::<i32>()
        };
        let policy = format!("policy=\"app/{name}\"");
        let counted = |result: &str| {
            let result = format!("authz_dry_run_result=\"{result}\"");
            w.metric(1, "karst_authz_dry_run_total", &[&policy, &result]) as i32
        };
        let logged = |result: &str| {
            let log = w.log_text("ztunnel1.log");
            let (message, named) =
                (format!("dry run: would have been {result}"), format!("dry_run.policy=\"app/{name}\""));
            let lines = log.lines().filter(|l| l.contains("\taccess\t") && l.contains(&message) && l.contains(&named));
            lines.count() as i32
        };
        wait_for("what would have been is told", Duration::from_secs(5), || {
            ["denied", "allowed"].iter().all(|r| counted(r) == results(r) && logged(r) == results(r)).then_some(())
        });
        app::ping(&mut open, b"still open").unwrap();
        println!("dry run {name}: denied={} allowed={} logged once each", counted("denied"), counted("allowed"));
        // Enforced: it refuses, it closes, and is no dry run any more.
        w.edit("dry", "'true'", "'false'");
        assert!(!works(&far, server.at(8080)) && !works(&near, server.at(8080)), "{name}");
        wait_for("the open one is closed", Duration::from_secs(5), || {
            app::ping(&mut open, b"after").is_err().then_some(())
        });
        assert_eq!(works(&friend, server.at(8080)), own != Some("denied"), "{name}");
        let (_, page) = w.get(1, 15020, "/metrics").unwrap();
        let remains = page.lines().any(|line| line.starts_with("karst_authz_dry_run_total{") && line.contains(&policy));
        assert!(!remains, "{name}: the series is gone");
        w.delete("dry");
        assert!(works(&far, server.at(8080)), "{name}");
    }
    // One that cannot be understood is reported, and does not close either.
    w.apply("dry", &dry("broken", "{action: PERMIT}"));
    assert!(works(&far, server.at(8080)));
    assert!(
        w.log_text("controller.log")
            .contains("AuthorizationPolicy app/broken: spec.action: unsupported value \"PERMIT\"")
    );
}

/// Issue 16, 3: what policies have said of connections is on the page /flows of the server's ztunnel, by caller and port; the
/// book counts what is alike.
#[test]
fn connections_are_in_the_book_of_flows() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let server = w.mesh_pod(PodSpec::new("app", "server", 1));
    let (far, near) = (w.mesh_pod(PodSpec::new("app", "far", 0)), w.mesh_pod(PodSpec::new("app", "near", 1)));
    let plain = w.pod(PodSpec::new("out", "plain", 0));
    w.settle();
    let _echo = app::Echo::start(&server, 8080, "");
    let rules =
        "{action: DENY, rules: [{to: [{operation: {ports: ['1']}}]}, {from: [{source: {serviceAccounts: [near]}}]}]}";
    w.apply("deny", &ap("no-near", "app", rules));
    for _ in 0..3 {
        assert!(works(&far, server.at(8080)) && !works(&near, server.at(8080)) && works(&plain, server.at(8080)));
    }
    let (_, page) = w.get(1, 15000, "/flows").unwrap();
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let of = |source: &str| {
        let mut all = page["flows"].as_array().unwrap().iter();
        let found = all.find(|f| f["source"].to_string().contains(source) && f["port"] == 8080);
        found.unwrap_or_else(|| panic!("{source}: {page:#}")).clone()
    };
    for (source, verdict, policy) in
        [("/sa/far", "allowed", None), ("/sa/near", "denied", Some("app/no-near")), ("addresses", "allowed", None)]
    {
        let flow = of(source);
        let said = (flow["verdict"].as_str().unwrap(), flow["policy"].as_str(), flow["count"].as_u64());
        assert_eq!(said, (verdict, policy, Some(3)), "{flow:#}");
        assert_eq!((&flow["destination"]["namespace"], &flow["example"]["pod"]), (&"app".into(), &"server".into()));
    }
    assert_eq!(w.metric(1, "karst_flows_evicted_total", &[]), 0.0);
    let by = "reason=\"policy_denied\" policy=\"app/no-near\" rule=\"1\"";
    wait_for("the access log names policy and rule", Duration::from_secs(5), || {
        let log = w.log_text("ztunnel1.log");
        let told = log.lines().filter(|line| line.contains("direction=\"inbound\"") && line.contains(by));
        (told.count() == 3).then_some(())
    });
}
