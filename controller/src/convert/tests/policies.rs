//! Policies, tokens and PeerAuthentications: what is enforced, and what closes.

use super::*;

const B: Option<&str> = Some("spiffe://cluster.local/ns/b/sa/x");

fn verdict(m: &Model, id: Option<&str>, port: u16) -> bool {
    let c = Connection {
        source_identity: id.map(|i| i.parse().unwrap()),
        source_ip: "10.0.0.9".parse().unwrap(),
        destination_ip: "10.0.0.1".parse().unwrap(),
        destination_port: port,
    };
    let w = &m.workloads["Kubernetes//Pod/a/p"];
    let applies = |p: &&karst_policy::Policy| match p.scope {
        karst_policy::Scope::Global => true,
        karst_policy::Scope::Namespace => *p.namespace == *"a",
        karst_policy::Scope::WorkloadSelector => w.authorization_policies.contains(&p.key()),
    };
    authorize(m.policies.values().filter(applies), &c).is_allow()
}

#[test]
fn peer_authentication_modes() {
    let pa = |ns: &str, name: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}\n"
        )
    };
    let strict = "{mtls: {mode: STRICT}}";
    for (text, plain_80, plain_81) in [
        (String::new(), true, true),
        (pa("istio-system", "m", strict), false, false),
        (pa("a", "n", strict), false, false),
        (pa("istio-system", "m", strict) + &pa("a", "n", "{mtls: {mode: PERMISSIVE}}"), true, true),
        (pa("a", "w", "{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: STRICT}}}"), false, true),
        (pa("a", "w", "{selector: {matchLabels: {app: web}}, portLevelMtls: {'80': {mode: STRICT}}}"), false, true),
        (pa("a", "w", "{selector: {matchLabels: {app: web}}, portLevelMtls: {\"80\": {mode: STRICT}}}"), false, true),
        (
            pa(
                "a",
                "w",
                "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}",
            ),
            true,
            false,
        ),
        (pa("a", "w", "{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}"), true, true),
    ] {
        let (m, p) = run(&format!("{POD}{text}"));
        assert!(p.is_empty(), "{p:?}");
        assert_eq!((verdict(&m, None, 80), verdict(&m, None, 81)), (plain_80, plain_81), "{text}");
        assert!(verdict(&m, B, 80));
    }
}

#[test]
fn policies_at_l4() {
    for (spec, b, plain) in [
        ("{}", false, false),
        ("{rules: [{}]}", true, true),
        ("{rules: [{from: [{source: {namespaces: [b]}}]}]}", true, false),
        ("{rules: [{from: [{source: {serviceAccounts: [b/x]}}]}]}", true, false),
        (
            "{rules: [{from: [{source: {principals: ['cluster.local/ns/b/*']}}], to: [{operation: {ports: ['80']}}]}]}",
            true,
            false,
        ),
        ("{rules: [{from: [{source: {notNamespaces: [b]}}]}]}", false, true),
        ("{action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/24]}}]}]}", false, false),
        ("{action: DENY, rules: [{when: [{key: destination.port, values: ['80']}]}]}", false, false),
        ("{action: DENY, rules: [{when: [{key: destination.port, values: ['81']}]}]}", true, true),
        // Beyond L4: an ALLOW rule vanishes, a DENY rule denies what is left of it.
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", false, false),
        ("{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}", false, false),
        (
            "{action: DENY, rules: [{from: [{source: {namespaces: [b]}}], to: [{operation: {paths: [/x]}}]}]}",
            false,
            true,
        ),
        ("{action: DENY, rules: [{to: [{operation: {paths: [/x], ports: ['81']}}]}]}", true, true),
        ("{selector: {matchLabels: {app: other}}}", true, true),
        ("{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: w}]}", true, true),
    ] {
        let (m, p) = run(&policy(spec));
        assert!(p.is_empty(), "{spec}: {p:?}");
        assert_eq!((verdict(&m, B, 80), verdict(&m, None, 80)), (b, plain), "{spec}");
    }
}

/// Each key of the table: at ztunnel as its row says, and a waypoint is told of an attribute that it knows. (What it makes of
/// that: `every_key_evaluates` in the waypoint.)
#[test]
fn every_key_is_compiled_for_ztunnel_and_for_waypoints() {
    use karst_policy::{
        Attribute as A,
        attribute::{KEYS, SeenBy, Values},
    };
    for k in KEYS {
        let (matches, other) = match k.attribute {
            A::Principal => ("cluster.local/ns/b/sa/x", "cluster.local/ns/b/sa/y"),
            A::Namespace => ("b", "c"),
            A::ServiceAccount => ("b/x", "x"),
            A::TrustDomain => ("cluster.local", "cluster"),
            A::SourceIp => ("10.0.0.9", "10.0.0.8"),
            A::DestinationIp => ("10.0.0.0/24", "10.1.0.0/24"),
            A::Port => ("80", "81"),
            // What only waypoints see is not compared here, whatever it is.
            of_waypoints => match of_waypoints.values() {
                Values::Ranges => ("10.0.0.9", "10.0.0.8"),
                Values::Ports => ("80", "81"),
                Values::Text | Values::Path | Values::Accounts | Values::TrustDomains => ("x", "y"),
            },
        };
        let key = format!("{}{}", k.key, if k.is_named() { "[x]" } else { "" });
        for (value, holds) in [(matches, true), (other, false)] {
            for (field, holds) in [("values", holds), ("notValues", !holds)] {
                let spec = |action: &str| {
                    format!("action: {action}, rules: [{{when: [{{key: '{key}', {field}: ['{value}']}}]}}]")
                };
                for action in ["ALLOW", "DENY"] {
                    let (m, p) = run(&policy(&format!("{{{}}}", spec(action))));
                    assert!(p.is_empty(), "{key}: {p:?}");
                    // Of what ztunnel cannot see nothing is allowed, and everything is denied.
                    let allowed = k.attribute.seen_by() == SeenBy::Both && holds == (action == "ALLOW");
                    assert_eq!(verdict(&m, B, 80), allowed, "{action} {key} {field}: {value}");
                    let attached = format!("{{targetRefs: [{{kind: Service, group: '', name: s}}], {}}}", spec(action));
                    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
                    let (m, p) = run(&(policy(&attached) + service));
                    assert!(p.is_empty(), "{key}: {p:?}");
                    let access = &m.access["a/s.a.svc.cluster.local"];
                    let test = &access.policies[0].rules[0].clauses[0].matches[0].tests[0];
                    assert_eq!(test.attribute().known(), Some(k.attribute), "{key}");
                    assert_eq!(test.name, if k.is_named() { "x" } else { "" });
                }
            }
        }
    }
}

/// Whatever field it is in: a value that would never be matched is refused, where it is applied and where it is compiled.
#[test]
fn a_star_inside_closes_what_the_policy_selects() {
    let source =
        ["principals", "notPrincipals", "namespaces", "notNamespaces", "requestPrincipals", "notRequestPrincipals"];
    let operation = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"];
    let keys = karst_policy::attribute::KEYS;
    let mut rules: Vec<(String, String)> = vec![];
    for f in source {
        rules.push((format!("from[0].source.{f}[1]"), format!("from: [{{source: {{{f}: ['/x', 'VALUE']}}}}]")));
    }
    for f in operation {
        rules.push((format!("to[0].operation.{f}[1]"), format!("to: [{{operation: {{{f}: ['/x', 'VALUE']}}}}]")));
    }
    let text = |k: &&karst_policy::attribute::Key| k.attribute.values() == karst_policy::attribute::Values::Text;
    for k in keys.iter().filter(text) {
        let key = format!("{}{}", k.key, if k.is_named() { "[x]" } else { "" });
        for f in ["values", "notValues"] {
            rules.push((format!("when[0].{f}[1]"), format!("when: [{{key: '{key}', {f}: ['/x', 'VALUE']}}]")));
        }
    }
    for (field, rule) in rules {
        for (value, fine) in
            [("/a*", true), ("*a", true), ("*", true), ("*a*", false), ("/a*b", false), ("/a**", false)]
        {
            let (m, p) = run(&policy(&format!("{{action: DENY, rules: [{{{}}}]}}", rule.replace("VALUE", value))));
            assert_eq!(p.is_empty(), fine, "{rule} {value}: {p:?}");
            if !fine {
                let said = p[0].to_string();
                let named =
                    format!("AuthorizationPolicy a/ap: spec.rules[0].{field}: {value:?} may contain only one '*'");
                assert!(said.contains(&named), "{said}");
                assert!(!verdict(&m, B, 80) && !verdict(&m, None, 80), "{rule} {value} closes");
            }
        }
    }
}

#[test]
fn a_dry_run_is_told_and_never_enforced() {
    let dry = |spec: &str, mark: &str| {
        policy(spec).replace(
            "namespace: a}\nspec: ",
            &format!("namespace: a, annotations: {{istio.io/dry-run: '{mark}'}}}}\nspec: "),
        )
    };
    let selector = "selector: {matchLabels: {app: web}}";
    for (spec, problems) in [
        ("{}".to_string(), 0),
        ("{action: DENY, rules: [{}]}".to_string(), 0),
        (format!("{{{selector}}}"), 0),
        // What cannot be understood would close; the mark is understood.
        (format!("{{{selector}, action: PERMIT}}"), 1),
        ("{rules: [{when: [{key: source.port, values: ['1']}]}]}".to_string(), 1),
    ] {
        let (m, p) = run(&dry(&spec, "true"));
        assert_eq!(p.len(), problems, "{spec}: {p:?}");
        assert!(verdict(&m, B, 80) && verdict(&m, None, 80), "{spec}");
        assert!(m.policies["a/ap"].dry_run, "{spec}");
        let w = &m.workloads["Kubernetes//Pod/a/p"];
        assert!(w.authorization_policies.is_empty(), "{spec}: it would be waited for, and enforced by others");
        let selected: &[&str] = if spec.contains("selector") { &["a/ap"] } else { &[] };
        assert_eq!(w.karst_dry_run_policies, selected, "{spec}");
        let (m, _) = run(&dry(&spec, "false"));
        assert!(!verdict(&m, B, 80), "{spec}");
        assert_eq!(m.workloads["Kubernetes//Pod/a/p"].authorization_policies, selected, "{spec}");
    }
    // A mark that is not understood is none.
    let (m, p) = run(&dry("{rules: [{}]}", "yes"));
    assert_eq!((p.len(), verdict(&m, B, 80)), (1, false));
    let said = |spec: &str| conditions(&written(&dry(spec, "true")));
    let wanted = "AuthorizationPolicy a/ap: ZtunnelAccepted True Accepted".to_string();
    assert!(said("{}").contains(&wanted), "{:#?}", said("{}"));
}

#[test]
fn bad_policies_close_and_are_reported() {
    for (spec, field) in [
        ("{action: PERMIT}", "spec.action"),
        ("{action: CUSTOM, rules: [{}]}", "spec.provider.name"),
        ("{action: CUSTOM, provider: {}, rules: [{}]}", "spec.provider.name"),
        ("{action: CUSTOM, provider: {name: p}}", "spec.rules"),
        ("{provider: {name: p}, rules: [{}]}", "spec.provider"),
        ("{action: DENY}", "spec.rules"),
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0.0/40]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
        ("{rules: [{to: [{operation: {ports: [http]}}]}]}", "spec.rules[0].to[0].operation.ports[0]"),
        ("{rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source"),
        ("{rules: [{when: [{key: source.port, values: ['1']}]}]}", "spec.rules[0].when[0].key"),
        ("{rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]"),
        ("{rules: [{from: [{source: {serviceAccounts: ['*']}}]}]}", "spec.rules[0].from[0].source.serviceAccounts[0]"),
        ("{selector: {matchLabels: {app: web}}, targetRefs: [{kind: Gateway, name: w}]}", "spec.targetRefs"),
    ] {
        let (m, p) = run(&policy(spec));
        assert_eq!(p.iter().map(|p| p.field.as_str()).collect::<Vec<_>>(), [field], "{spec}");
        assert!(!verdict(&m, B, 80), "{spec}: nothing is allowed while a policy cannot be read");
    }
}

/// One that was to refuse, or nobody knows to do what, refuses also where another allows everything.
#[test]
fn a_policy_that_cannot_be_read_refuses_beside_one_that_allows() {
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    for (spec, refuses) in [
        ("action: DENY, rules: [{when: [{key: source.port, values: ['1']}]}]", true),
        ("action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.0/40]}}]}]", true),
        ("action: CUSTOM, rules: [{}]", true),
        ("action: PERMIT, rules: [{}]", true),
        ("rules: [{when: [{key: source.port, values: ['1']}]}]", false),
        ("action: AUDIT, rules: [{when: [{key: source.port, values: ['1']}]}]", false),
    ] {
        let object = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec: {{{spec}}}\n"
            )
        };
        let (m, p) = run(&(policy("{rules: [{}]}") + &object("bad", spec)));
        assert_eq!((p.len(), verdict(&m, B, 80)), (1, !refuses), "{spec}");
        // And at a waypoint.
        let target = "targetRefs: [{group: '', kind: Service, name: s}]";
        let (m, p) = run(&(waypoint.clone() + &object("bad", &format!("{target}, {spec}"))));
        let policies = &m.access["a/s.a.svc.cluster.local"].policies;
        let told: Vec<_> = policies.iter().map(|p| (p.action, p.rules.len())).collect();
        let audits = spec.contains("AUDIT");
        let want = if audits {
            (2, 0)
        } else if refuses {
            (1, 1)
        } else {
            (0, 0)
        };
        assert_eq!((p.len(), told), (1, vec![want]), "{spec}");
    }
}

/// A reference to a Service names one of its own namespace; a name that could be read as a host name of another is nobody's. Nor does
/// a ServiceEntry that is hidden, or not in force, stand for what others have of the same host name.
#[test]
fn no_reference_reaches_into_another_namespace() {
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let entry = |more: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: b}}\nspec: {{hosts: [s.a.svc.cluster.local], {more}}}\n"
        )
    };
    let hidden =
        entry("exportTo: ['~'], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 80, name: http}]");
    let broken = entry("resolution: NOTHING, ports: [{number: 80, name: http}]");
    let targets = [
        ("{group: '', kind: Service, name: s.a}", ""),
        ("{group: '', kind: Service, name: s.a.svc}", ""),
        ("{group: '', kind: Service, name: s.a.svc.cluster.local}", ""),
        ("{group: networking.istio.io, kind: ServiceEntry, name: e}", hidden.as_str()),
        ("{group: networking.istio.io, kind: ServiceEntry, name: e}", broken.as_str()),
    ];
    let objects = [
        ("security.istio.io/v1", "AuthorizationPolicy", "action: DENY, rules: [{}]"),
        ("security.istio.io/v1", "RequestAuthentication", "jwtRules: [{issuer: i}]"),
        ("karst.io/v1alpha1", "HTTPFilter", "rateLimits: [{requests: 1}]"),
    ];
    let seen = |model: &Model| {
        let access = model.access.get("a/s.a.svc.cluster.local").map_or((0, 0), |a| (a.policies.len(), a.tokens.len()));
        (access, model.routes.get("a/s.a.svc.cluster.local").cloned())
    };
    let (alone, _) = run(&base);
    for (api, kind, spec) in objects {
        let of = |namespace: &str, target: &str| {
            format!(
                "---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: x, namespace: {namespace}}}\nspec: {{targetRefs: [{target}], {spec}}}\n"
            )
        };
        let (own, problems) = run(&(base.clone() + &of("a", "{group: '', kind: Service, name: s}")));
        assert_ne!(seen(&own), seen(&alone), "{kind} of its own namespace is in force: {problems:?}");
        for (target, more) in targets {
            let (model, _) = run(&(base.clone() + more + &of("b", target)));
            assert_eq!(seen(&model), seen(&alone), "{kind} for {target}");
        }
    }
}

/// In each action, by a value that the newer rules refuse, beside an ALLOW of everything: what is meant to refuse does so.
#[test]
fn values_that_cannot_be_read_close_what_refuses() {
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let object = |spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: bad, namespace: a}}\nspec: {{{spec}}}\n"
        )
    };
    let target = "targetRefs: [{group: '', kind: Service, name: s}]";
    for rule in [
        "to: [{operation: {paths: ['/admin/*', '*/secret/*']}}]",
        "to: [{operation: {hosts: ['*.x.*']}}]",
        "from: [{source: {principals: ['td/ns/bad/*', '*/ns/*/sa/x']}}]",
        "when: [{key: source.trustDomain, values: ['cluster.*']}]",
        "when: [{key: 'request.headers[x]', notValues: ['*x*']}]",
    ] {
        for (action, refuses) in [("ALLOW", false), ("DENY", true), ("CUSTOM", true), ("AUDIT", false)] {
            let spec = format!("action: {action}, rules: [{{{rule}}}]");
            let (m, p) = run(&(policy("{rules: [{}]}") + &object(&spec)));
            assert_eq!((p.len(), verdict(&m, B, 80)), (1, !refuses), "{spec}");
            let (m, p) = run(&(waypoint.clone() + &object(&format!("{target}, {spec}"))));
            let policies = &m.access["a/s.a.svc.cluster.local"].policies;
            let deny = karst_api::route::AccessAction::Deny as i32;
            let closes = policies.iter().any(|p| p.action == deny && p.rules.iter().any(|r| r.clauses.is_empty()));
            assert_eq!((p.len(), closes), (1, refuses), "{spec}");
            // Alone it closes, too, unless it refuses nobody whatever it says.
            let audits = action == "AUDIT";
            assert_eq!(verdict(&run(&policy(&format!("{{{spec}}}"))).0, B, 80), audits, "{spec}");
            let allow = karst_api::route::AccessAction::Allow as i32;
            assert_eq!(policies.iter().all(|p| p.action != allow && p.action != deny), audits, "{spec}");
        }
    }
}

#[test]
fn who_upgrades_is_told_what_comes_of_a_policy() {
    let bad = "rules: [{to: [{operation: {paths: ['/a', '*x*']}}]}]";
    let not = "rules: [{to: [{operation: {notPaths: ['*x*']}}]}]";
    for (spec, wanted) in [
        (format!("action: DENY, {bad}"), Some("denies all traffic that it selects")),
        (format!("action: CUSTOM, {bad}"), Some("denies all traffic that it selects")),
        (not.into(), Some("allows no traffic: traffic that no other policy allows is denied")),
        (bad.into(), Some("ignores the values above; the rest of the policy is in force")),
        ("rules: [{}]".into(), None),
    ] {
        let objects = parse::file("t.yaml".as_ref(), &policy(&format!("{{{spec}}}"))).unwrap();
        let state = State { objects: objects.into_iter().map(std::sync::Arc::new).collect(), ..State::default() };
        let wanted: Vec<String> = wanted.iter().map(|w| format!("AuthorizationPolicy a/ap: {w}")).collect();
        assert_eq!(closing(&state, &mesh()), wanted, "{spec}");
    }
}

/// An ALLOW allows no less without a value that matches nothing: one that was stored goes on letting in whom it names.
#[test]
fn of_a_policy_that_allows_only_what_cannot_match_is_dropped() {
    let say = |spec: &str| {
        let (m, p) = run(&policy(spec));
        let fields: Vec<String> = p.iter().map(|p| p.field.trim_start_matches("spec.rules").to_string()).collect();
        (verdict(&m, B, 80), verdict(&m, B, 81), fields)
    };
    let ns = B.unwrap().split('/').nth(4).unwrap();
    let bad = "'*x*'";
    for (rules, wanted) in [
        // What is left lets in; what has nothing left does not let in everybody.
        (
            format!("[{{from: [{{source: {{namespaces: [{bad}, {ns}]}}}}]}}]"),
            (true, true, vec!["[0].from[0].source.namespaces[0]"]),
        ),
        (
            format!("[{{from: [{{source: {{namespaces: [{bad}]}}}}]}}]"),
            (false, false, vec!["[0].from[0].source.namespaces[0]"]),
        ),
        (
            format!("[{{from: [{{source: {{namespaces: [{bad}]}}}}, {{source: {{namespaces: [{ns}]}}}}]}}]"),
            (true, true, vec!["[0].from[0].source.namespaces[0]"]),
        ),
        (
            format!("[{{from: [{{source: {{namespaces: [{ns}], principals: [{bad}]}}}}]}}]"),
            (false, false, vec!["[0].from[0].source.principals[0]"]),
        ),
        (
            "[{to: [{operation: {ports: ['80', 'x', '0']}}]}]".into(),
            (true, false, vec!["[0].to[0].operation.ports[1]", "[0].to[0].operation.ports[2]"]),
        ),
        (
            format!(
                "[{{when: [{{key: source.namespace, values: [{bad}]}}, {{key: source.namespace, values: [{ns}]}}]}}]"
            ),
            (false, false, vec!["[0].when[0].values[0]"]),
        ),
        (
            format!(
                "[{{when: [{{key: source.namespace, values: [{bad}]}}]}}, {{to: [{{operation: {{ports: ['80']}}}}]}}]"
            ),
            (true, false, vec!["[0].when[0].values[0]"]),
        ),
        // An exception that is dropped would let in more.
        (
            format!("[{{from: [{{source: {{namespaces: [{ns}], notPrincipals: [{bad}]}}}}]}}]"),
            (false, false, vec!["[0].from[0].source.notPrincipals[0]"]),
        ),
    ] {
        let (a, b, fields) = say(&format!("{{rules: {rules}}}"));
        assert_eq!((a, b, fields.iter().map(String::as_str).collect()), wanted, "{rules}");
    }
    // At a waypoint, too.
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let at = |paths: &str| {
        let object = format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: a}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s}}], rules: [{{to: [{{operation: {{paths: [{paths}]}}}}]}}]}}\n"
        );
        let (m, p) = run(&(waypoint.clone() + &object));
        let all = m.access["a/s.a.svc.cluster.local"].policies.iter().flat_map(|p| &p.rules).flat_map(|r| &r.clauses);
        let tests = all.flat_map(|c| &c.matches).flat_map(|m| &m.tests);
        (
            p.len(),
            tests.flat_map(|t| t.values.clone()).collect::<Vec<_>>(),
            m.access["a/s.a.svc.cluster.local"].policies[0].rules.len(),
        )
    };
    assert_eq!(at("'/public/*', '/x/*/y'"), (1, vec!["/public/*".to_string()], 1));
    assert_eq!(at("'/x/*/y'"), (1, vec![], 0));
}

/// What stands for a policy that cannot be read closes, and does not say that all is well; once said, it is not said again.
#[test]
fn a_policy_that_cannot_be_read_says_so() {
    for (action, target, condition) in [
        ("ALLOW", "selector: {matchLabels: {app: web}}", "ZtunnelAccepted False UnsupportedValue"),
        ("DENY", "selector: {matchLabels: {app: web}}", "ZtunnelAccepted False UnsupportedValue"),
        ("ALLOW", "targetRefs: [{kind: Service, name: s}]", "WaypointAccepted False Invalid"),
        ("DENY", "targetRefs: [{kind: Service, name: s}]", "WaypointAccepted False Invalid"),
    ] {
        let spec = format!("{{action: {action}, {target}, rules: [{{new: 1}}]}}");
        let spec: serde_json::Value = serde_yaml_ng::from_str(&spec).unwrap();
        let of = |status: serde_json::Value| {
            let raw =
                serde_json::json!({ "metadata": { "name": "p", "namespace": "a" }, "spec": spec, "status": status });
            assert!(parse::value("AuthorizationPolicy", raw.clone()).is_err());
            let object = karst_manifest::closed::closed("AuthorizationPolicy", raw).unwrap();
            let mut objects = parse::file("t.yaml".as_ref(), &(POD.to_string() + SHOP)).unwrap();
            objects.push(Located { object, file: "t.yaml".into(), line: 0 });
            let state = State { objects: objects.into_iter().map(Arc::new).collect(), ..State::default() };
            let template =
                Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), pull_secrets: vec![] };
            let all = written_with(&state, &template, None).statuses;
            (state, all.into_iter().find(|w| w.to.kind == "AuthorizationPolicy").map(|w| w.status))
        };
        let (state, status) = of(serde_json::Value::Null);
        let status = status.unwrap();
        let is = &status["conditions"][0];
        assert_eq!(format!("{} {} {}", is["type"], is["status"], is["reason"]).replace('"', ""), condition);
        assert_eq!(of(status).1, None, "said already");
        let (model, _) = compile(&state, &mesh());
        // One rule, which denies everything; or none, which allows nothing.
        let is = match model.access.get("a/s.a.svc.cluster.local").map(|access| &access.policies[0]) {
            Some(policy) => (policy.action == karst_api::route::AccessAction::Deny as i32, policy.rules.len()),
            None => (model.policies["a/p"].action == karst_policy::Action::Deny, model.policies["a/p"].rules.len()),
        };
        let denies = action == "DENY";
        assert_eq!(is, (denies, usize::from(denies)), "{action} {target}");
    }
}

/// Stored with a field of a newer version, and first seen so: tokens are refused, and nothing goes in plaintext that may have been
/// meant to go by TLS.
#[test]
fn what_cannot_be_read_of_tokens_and_tls_is_closed() {
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let base = base.replace("clusterIP: 10.96.0.1}", "clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}");
    let with = |kind: &str, spec: &str| {
        let spec: serde_json::Value = serde_yaml_ng::from_str(spec).unwrap();
        let raw = serde_json::json!({ "metadata": { "name": "unread", "namespace": "a" }, "spec": spec });
        assert!(parse::value(kind, raw.clone()).is_err(), "{kind} {spec}");
        let mut objects = parse::file("t.yaml".as_ref(), &base).unwrap();
        let object = karst_manifest::closed::closed(kind, raw).unwrap_or_else(|| panic!("{kind} vanishes"));
        objects.push(Located { object, file: "t.yaml".into(), line: 0 });
        State { objects: objects.into_iter().map(Arc::new).collect(), ..State::default() }
    };
    let key = "a/s.a.svc.cluster.local";
    for (target, is_for_service) in [
        ("targetRefs: [{group: '', kind: Service, name: s}]", true),
        ("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: w}]", true),
        // For the waypoints or services that a newer kind of reference selects.
        ("targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, matchLabels: {}}]", true),
        ("targetRefs: [{group: '', kind: Service, name: other}]", false),
    ] {
        let rules = "jwtRules: [{issuer: i, fromHeaders: [{name: x-token}], new: 1}]";
        let state = with("RequestAuthentication", &format!("{{{target}, {rules}}}"));
        let (model, _) = compile(&state, &mesh());
        let tokens: Vec<_> = model.access.get(key).map(|a| a.tokens.clone()).unwrap_or_default();
        assert_eq!(!tokens.is_empty(), is_for_service, "{target}");
        assert!(tokens.iter().all(|t| !t.broken.is_empty() && t.headers[0].name == "x-token"), "{tokens:?}");
    }
    let tls = |state: &State| {
        let (model, _) = compile(state, &mesh());
        let backend = model.backends.get(key)?;
        let policy = backend.ports.get(&80).or(backend.policy.as_ref());
        policy.and_then(|p| p.tls.clone())
    };
    for spec in ["{host: s, trafficPolicy: {tls: {mode: SIMPLE, new: 1}}}", "{host: s, trafficPolicy: {new: 1}}"] {
        let broken = tls(&with("DestinationRule", spec)).unwrap_or_else(|| panic!("plaintext: {spec}")).broken;
        assert!(broken.starts_with("DestinationRule a/unread: cannot be read"), "{broken}");
    }
    let kept = "{host: s, trafficPolicy: {tls: {mode: SIMPLE, sni: x}, loadBalancer: {new: 1}}}";
    let kept = tls(&with("DestinationRule", kept)).unwrap();
    assert_eq!((kept.sni.as_str(), kept.broken.as_str()), ("x", ""));
    assert_eq!(tls(&with("DestinationRule", "{host: s, trafficPolicy: {loadBalancer: {new: 1}}}")), None);
    let refs = "targetRefs: [{group: '', kind: Service, name: s}]";
    let validation = "validation: {hostname: x, wellKnownCACertificates: System";
    for spec in [format!("{{{refs}, {validation}, new: 1}}}}"), format!("{{{refs}, {validation}}}, new: 1}}")] {
        let state = with("BackendTLSPolicy", &spec);
        let broken = tls(&state).unwrap_or_else(|| panic!("plaintext: {spec}")).broken;
        assert!(broken.starts_with("BackendTLSPolicy a/unread: spec: cannot be read"), "{broken}");
        let template = Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), pull_secrets: vec![] };
        let all = written_with(&state, &template, None).statuses;
        let status = &all.iter().find(|w| w.to.kind == "BackendTLSPolicy").unwrap().status;
        assert_eq!(status["ancestors"][0]["conditions"][0]["reason"], "Invalid");
    }
}

/// Whose tokens are taken is said beside the service, or in the root namespace for a whole class; what is wrong takes nobody's.
/// The keys of an issuer are those that were found for it: at the URL that a rule names, or by the issuer's name.
#[test]
fn keys_are_those_of_their_source() {
    use karst_manifest::{dir::NotFetched, security::KeySource};
    let at = "https://i/.well-known/openid-configuration";
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let tokens = |rule: &str, keys: Vec<(KeySource, Result<String, NotFetched>)>| {
        let text = format!(
            "{base}apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r, namespace: a}}\nspec: {{targetRefs: [{{group: '', kind: Service, name: s}}], jwtRules: [{{issuer: 'https://i/', {rule}}}]}}\n"
        );
        let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
        let state = State { objects, keys: Arc::new(keys.into_iter().collect()), ..State::default() };
        let (m, p) = compile(&state, &mesh());
        assert!(p.is_empty(), "{p:?}");
        let token = m.access["a/s.a.svc.cluster.local"].tokens[0].clone();
        (token.jwks, token.broken)
    };
    let by_name = || KeySource::Issuer("https://i/".into());
    let failed = || Err(NotFetched("HTTP 500".into()));
    assert_eq!(tokens("", vec![(by_name(), Ok("K".into()))]), ("K".into(), String::new()));
    assert_eq!(tokens("", vec![(by_name(), failed())]), (String::new(), format!("{at}: HTTP 500")));
    assert_eq!(tokens("", vec![(KeySource::Jwks(at.into()), Ok("K".into()))]).1, format!("{at}: not fetched yet"));
    let named = format!("jwksUri: '{at}'");
    assert_eq!(tokens(&named, vec![(by_name(), Ok("K".into()))]).1, format!("{at}: not fetched yet"));
    assert_eq!(tokens(&named, vec![(KeySource::Jwks(at.into()), Ok("K".into()))]).0, "K");
}

#[test]
fn issuers_are_named_where_they_may_be() {
    let base = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    let tokens = |ns: &str, target: &str, rule: &str| {
        let text = format!(
            "{base}apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r, namespace: {ns}}}\nspec: {{targetRefs: [{target}], jwtRules: [{{issuer: i, outputClaimToHeaders: [{{header: X-Sub, claim: sub}}], {rule}}}]}}\n"
        );
        let (m, p) = run(&text);
        let access = m.access.get("a/s.a.svc.cluster.local").cloned();
        let broken: Vec<_> = access.iter().flat_map(|a| &a.tokens).map(|t| t.broken.clone()).collect();
        // Whatever is wrong, no client writes what only proxies write.
        assert!(access.iter().flat_map(|a| &a.tokens).all(|t| t.claim_headers[0].header == "x-sub"));
        (broken, p.len())
    };
    const KEYS: &str = r#"jwks: '{"keys": [{"kty": "EC", "crv": "P-256", "x": "e-y4scs2WBMwaIE0WvgVG0UZa9sB8aS-BgmB4N5Q0Ls", "y": "eWJ4nB_CTnISFQXtcUJuRMXRJgi_LaEJN6ycvLl4xgs"}]}'"#;
    let (service, class) = (
        "{group: '', kind: Service, name: s}",
        "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}",
    );
    let fine = (vec![String::new()], 0);
    assert_eq!(tokens("a", service, KEYS), fine);
    assert_eq!(tokens("b", service, KEYS), (vec![], 0), "the service of another namespace is not meant");
    assert_eq!(tokens("istio-system", class, KEYS), fine);
    assert_eq!(tokens("b", class, KEYS), (vec![], 1), "not everybody names issuers for all");
    let (broken, problems) = tokens("a", service, "jwks: nonsense");
    assert!(broken[0].contains("is not a valid JSON Web Key Set") && problems == 1, "{broken:?}");
    let (broken, problems) = tokens("a", service, r#"jwks: '{"keys": [{"kty": "oct", "k": "MDEyMw"}]}'"#);
    assert!(broken[0].contains("contains no usable public key") && problems == 1, "{broken:?}");
    let (broken, problems) = tokens("a", service, "jwksUri: 'https://i/keys'");
    assert!(broken[0].contains("not fetched yet") && problems == 0, "{broken:?}");
    let (broken, problems) = tokens("a", service, "audiences: [x]");
    assert!(broken[0].contains("the issuer \"i\" is not a URL") && problems == 1, "{broken:?}");
}
