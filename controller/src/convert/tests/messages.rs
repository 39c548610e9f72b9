//! Messages to users: docs/refused.md is their table.

use super::*;

#[test]
fn what_the_api_server_refuses_is_refused_in_files_too() {
    let rows = refused();
    assert!(rows.len() >= 40);
    for [kind, spec, annotations, by, text] in rows {
        // Of the two Gateways Istio's.
        let ours = |k: &&(&str, &str, bool)| {
            karst_manifest::kinds::api_kind(k.0) == kind && (k.1.ends_with("istio.io") || k.1 == OWN_GROUP)
        };
        let idle = karst_manifest::unsupported::UNSUPPORTED.iter().find(|(k, ..)| *k == kind).map(|(_, g, _)| *g);
        let group = karst_manifest::kinds::KINDS.iter().find(ours).map(|k| k.1).or(idle).unwrap();
        let version = if group == OWN_GROUP { "v1alpha1" } else { "v1" };
        let doc = format!(
            "apiVersion: {group}/{version}\nkind: {kind}\nmetadata: {{name: x, namespace: default, annotations: {annotations}}}\nspec: {spec}\n"
        );
        let problems = match parse::file("t.yaml".as_ref(), &doc) {
            Ok(mut o) => check::problems(o.remove(0).object, &mesh()),
            Err(p) => p,
        };
        assert!(!problems.is_empty(), "{kind} {spec}");
        if by == "webhook" {
            assert!(code::of(&text).is_some(), "has no code: {text}");
            let text_of = |p: &Problem| p.to_string().trim_start_matches("t.yaml:1: ").to_string();
            let all: Vec<String> = problems.iter().map(text_of).collect();
            assert_eq!(all.join("; "), text, "{kind} {spec}");
        }
    }
}

#[test]
fn every_code_is_used_and_documented() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = String::new();
    for dir in ["controller/src", "cli/src/analysis", "crates", "charts/base/files/crds"] {
        sources(&root.join(dir), &mut all);
    }
    let crds = std::fs::read_dir(root.join("charts/base/files/crds")).unwrap().map(|f| f.unwrap().path());
    for rule in crds.flat_map(|f| std::fs::read_to_string(f).unwrap().lines().map(String::from).collect::<Vec<_>>()) {
        let is_message = rule.trim_start().starts_with("message: ") || rule.contains("\"message\": ");
        assert!(!is_message || code::of(&rule).is_some() || rule.contains("type\": \"string"), "has no code: {rule}");
    }
    let coded = |part: &str| code::of(&format!("[KARST-{}", part.get(..5).unwrap_or_default()));
    let mut used: BTreeSet<u16> = all.split("[KARST-").skip(1).filter_map(coded).collect();
    used.insert(1); // where a parser's text gets it
    let listed: BTreeSet<u16> = code::CODES.iter().map(|(c, _)| *c).collect();
    assert_eq!(used, listed, "used, and in the list");
    let doc = include_str!("../../../../docs/refused.md");
    let (_, doc) = doc.split_once("## Codes").unwrap();
    let lines: Vec<String> = doc.lines().filter(|l| l.starts_with("- ")).map(String::from).collect();
    let wanted: Vec<String> = code::CODES.iter().map(|(c, meaning)| format!("- `KARST-{c:04}`: {meaning}")).collect();
    assert_eq!(lines, wanted, "docs/refused.md");
}

/// What users of Istio write is taken, each object by itself, as the webhook sees it.
#[test]
fn what_users_write_is_accepted_alone() {
    let text = include_str!("../../../../tests/e2e/manifests/accepted.yaml");
    let all = parse::file("accepted.yaml".as_ref(), text).unwrap();
    assert!(all.len() > 20);
    for o in all {
        let p = check::problems(o.object, &mesh());
        assert!(p.is_empty(), "{p:?}");
    }
}
