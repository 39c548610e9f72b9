//! XBackendTrafficPolicies: for whom they are in force, and what becomes of them there.

use super::*;
use karst_api::route as ir;

const KEY: &str = "a/s.a.svc.cluster.local";
/// A target.
const S: &str = "{group: '', kind: Service, name: s}";

fn policy(name: &str, made: &str, targets: &str, spec: &str) -> String {
    format!(
        "apiVersion: gateway.networking.x-k8s.io/v1alpha1\nkind: XBackendTrafficPolicy\nmetadata: {{name: {name}, namespace: a, generation: 2, creationTimestamp: '{made}'}}\nspec: {{targetRefs: [{targets}]{spec}}}\n---\n"
    )
}

/// The services `s` and `t`, and `s` of another namespace.
fn services() -> String {
    let other = SHOP.replace("name: s,", "name: t,").replace("10.96.0.1", "10.96.0.2");
    [SHOP, &other, &SHOP.replace("namespace: a", "namespace: b").replace("10.96.0.1", "10.96.0.3")].concat()
}

fn statuses(text: &str) -> Vec<Write> {
    written(text).statuses.into_iter().filter(|write| write.to.kind == "XBackendTrafficPolicy").collect()
}

/// Of each policy and target: what is said of it.
fn said(text: &str) -> Vec<String> {
    let mut out = vec![];
    for write in statuses(text) {
        assert_eq!((write.to.group, write.to.version), ("gateway.networking.x-k8s.io", "v1alpha1"));
        for entry in write.status["ancestors"].as_array().unwrap() {
            let (to, is) = (&entry["ancestorRef"], &entry["conditions"][0]);
            assert_eq!(to["namespace"], "a");
            assert_eq!(is["type"], "Accepted");
            assert_eq!(is["observedGeneration"], 2);
            // Left out it would be that of Gateways.
            assert!(to["group"].is_string(), "{to}");
            let message = is["message"].as_str().unwrap();
            assert!(is["status"] == "True" || code::of(message).is_some(), "has no code: {message}");
            let line = format!("{} {} {} {} {}", write.to.name, to["kind"], to["name"], is["status"], is["reason"]);
            out.push(line.replace('"', ""));
        }
    }
    out
}

#[test]
fn each_target_is_told_whether_the_policy_is_in_force_there() {
    const T: &str = "{group: core, kind: Service, name: t}";
    const GONE: &str = "{group: '', kind: Service, name: gone}";
    const ENTRY: &str = "{group: networking.istio.io, kind: ServiceEntry, name: s}";
    let both = format!("{S}, {T}");
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: gone, namespace: a}\nspec: {type: ExternalName, externalName: x.com}\n---\n";
    for (more, wanted) in [
        (policy("p", "1", S, ""), &["p Service s True Accepted"][..]),
        (policy("p", "1", &both, ""), &["p Service s True Accepted", "p Service t True Accepted"]),
        (policy("p", "1", GONE, ""), &["p Service gone False TargetNotFound"]),
        (policy("p", "1", GONE, "") + alias, &["p Service gone False TargetNotFound"]),
        (policy("p", "1", ENTRY, ""), &["p ServiceEntry s False TargetNotFound"]),
        (policy("p", "1", S, ", retryConstraint: {budget: {percent: 200}}"), &["p Service s False Invalid"]),
        (policy("p", "1", S, ", sessionPersistence: {type: Query}"), &["p Service s False Invalid"]),
        // The older one stays, also where it cannot be used: what it was to bound is not bounded otherwise by mistake.
        (
            policy("young", "2", &both, "") + &policy("old", "1", S, ""),
            &["old Service s True Accepted", "young Service s False Conflicted", "young Service t True Accepted"],
        ),
        (
            policy("young", "2", S, "") + &policy("old", "1", S, ", retryConstraint: {budget: {interval: 1ms}}"),
            &["old Service s False Invalid", "young Service s False Conflicted"],
        ),
        // Of the same age by name.
        (
            policy("b", "1", S, "") + &policy("a", "1", S, ""),
            &["a Service s True Accepted", "b Service s False Conflicted"],
        ),
    ] {
        assert_eq!(said(&(services() + &more)), wanted, "{more}");
    }
}

#[test]
fn a_status_that_is_there_is_not_written_again_and_others_entries_stay() {
    const THEIRS: &str = "{ancestorRef: {name: theirs}, controllerName: x.io/y, conditions: []}";
    let with = |status: &str| services() + &policy("p", "1", S, "").replace("---\n", &format!("status: {status}\n"));
    let first = statuses(&with(&format!("{{ancestors: [{THEIRS}]}}")));
    let entries = first[0].status["ancestors"].as_array().unwrap();
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert_eq!(entries[1]["controllerName"], "x.io/y");
    assert_eq!(statuses(&with(&first[0].status.to_string())), []);
    // A target that is none any more has no entry.
    let gone = first[0].status.to_string().replace("\"name\":\"s\"", "\"name\":\"before\"");
    assert_eq!(statuses(&with(&gone))[0].status, first[0].status);
}

/// A DestinationRule's own budget stays: proxies go by that where there is one.
#[test]
fn the_rate_is_for_the_whole_service() {
    let own = policy("p", "1", S, ", retryConstraint: {budget: {percent: 5}, minRetryRate: {count: 7, interval: 2s}}");
    let rate = ir::RetryRate { per_million: 50_000, interval_ms: 10_000, at_least: 7, at_least_ms: 2000 };
    let (model, problems) = run(&(services() + &own));
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(model.backends.get(KEY).map(|backend| backend.retry_rate), Some(Some(rate)));
    assert_eq!(model.backends.len(), 1, "nobody else's");
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec: {host: s, trafficPolicy: {retryBudget: {percent: 50}}, subsets: [{name: v1, labels: {version: v1}}]}\n---\n";
    let (model, _) = run(&(services() + &own + rule));
    let backend = &model.backends[KEY];
    let budget = ir::RetryBudget { per_million: 500_000, at_least: 3 };
    let budgets = [backend.policy.as_ref(), backend.subsets[0].policy.as_ref()].map(|policy| policy.unwrap().retries);
    assert_eq!((backend.retry_rate, budgets), (Some(rate), [Some(budget); 2]));
    // One without retryConstraint bounds none.
    assert!(run(&(services() + &policy("p", "1", S, ""))).0.backends.is_empty());
    // Nor does one that is not in force.
    let wrong = policy("p", "1", S, ", retryConstraint: {minRetryRate: {count: 0}}, sessionPersistence: {}");
    let (model, problems) = run(&(services() + &wrong));
    assert!(model.backends.is_empty() && problems.len() == 1, "{problems:?}");
    assert!(problems[0].to_string().contains(" a/p: spec.retryConstraint.minRetryRate.count: 0 is "), "{problems:?}");
}

#[test]
fn each_service_has_sessions_of_its_own_before_those_of_its_labels() {
    let label = "namespace: a, labels: {istio.io/persistent-session: of-the-label}";
    let labelled = services().replace("name: s, namespace: a", &format!("name: s, {label}"));
    let both = format!("{S}, {{group: '', kind: Service, name: t}}");
    let session = |name: &str, spec: &str| {
        let model = run(&(labelled.clone() + &policy("p", "1", &both, spec))).0;
        let key = format!("a/{name}.a.svc.cluster.local");
        model.backends.get(&key).and_then(|backend| backend.session.clone())
    };
    let own = |name: &str| session(name, ", sessionPersistence: {}").unwrap();
    assert_eq!([own("s").scope, own("t").scope], ["Service a/s", "Service a/t"]);
    assert!(own("s").name != own("t").name && own("s").strict, "a browser has both cookies");
    let named = session("s", ", sessionPersistence: {cookie: {name: c, path: /p}}").unwrap();
    assert_eq!((named.name.as_str(), named.path.as_str()), ("c", "/p"));
    // What says nothing of it leaves what the label says.
    let kept = session("s", ", retryConstraint: {}").unwrap();
    assert_eq!((kept.name.as_str(), session("t", ", retryConstraint: {}")), ("of-the-label", None));
}

/// As the webhook sees it: what it is for may come later.
#[test]
fn alone_only_its_values_are_judged() {
    let alone = |targets: &str, spec: &str| -> Vec<String> {
        let object = parse::file("t.yaml".as_ref(), &policy("p", "1", targets, spec)).unwrap().remove(0).object;
        let all = check::problems(object, &mesh());
        all.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
    };
    assert_eq!(alone(S, ", retryConstraint: {budget: {percent: 20, interval: 10s}}, sessionPersistence: {}"), [""; 0]);
    let wrong = alone(S, ", retryConstraint: {budget: {percent: 101}}");
    assert!(wrong.len() == 1 && wrong[0].starts_with("spec.retryConstraint.budget.percent: 101 is "), "{wrong:?}");
    let wrong = alone("{group: x.io, kind: Backend, name: s}", "");
    assert!(wrong.len() == 1 && wrong[0].starts_with("spec.targetRefs[0]: unsupported target kind "), "{wrong:?}");
}

/// Stored with a field of a newer version: nothing of it is in force, and its status says so.
#[test]
fn one_that_cannot_be_read_is_told_to_its_owner() {
    let raw = serde_json::json!({
        "metadata": { "name": "p", "namespace": "a" },
        "spec": { "targetRefs": [{ "group": "", "kind": "Service", "name": "s" }], "retryConstraint": { "new": 1 } },
    });
    assert!(parse::value("XBackendTrafficPolicy", raw.clone()).is_err());
    let object = karst_manifest::closed::closed("XBackendTrafficPolicy", raw).unwrap();
    let mut objects = parse::file("t.yaml".as_ref(), SHOP).unwrap();
    objects.push(Located { object, file: "t.yaml".into(), line: 0 });
    let state = State { objects: objects.into_iter().map(Arc::new).collect(), ..State::default() };
    assert!(compile(&state, &mesh()).0.backends.is_empty());
    let all = written_with(&state, &Template::default(), None).statuses;
    let status = &all.iter().find(|write| write.to.kind == "XBackendTrafficPolicy").unwrap().status;
    assert_eq!(status["ancestors"][0]["conditions"][0]["reason"], "Invalid");
}
