//! Wrong command lines: each gets one clear error with the next step, and a status that tells what kind of error it is.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::{
    path::Path,
    process::{Command, Output},
};

/// A word that is replaced by the directory of this test's files.
const DIR: &str = "DIR";

struct Case {
    line: &'static str,
    status: i32,
    /// What the error says.
    says: &'static str,
    /// The next step.
    next: &'static str,
}

const fn case(line: &'static str, status: i32, says: &'static str, next: &'static str) -> Case {
    Case { line, status, says, next }
}

const HELP: &str = "try '--help'";
const KUBECONFIG: &str = "next: set KUBECONFIG or pass --kubeconfig FILE";

const CASES: &[Case] = &[
    case("instal", 64, "unrecognized subcommand 'instal'", HELP),
    case(
        "ztunnel-config workloadz",
        64,
        "unrecognized subcommand 'workloadz'",
        "tip: some similar subcommands exist: ",
    ),
    case(
        "proxy-status -o xml",
        64,
        "invalid value 'xml' for '--output <OUTPUT>'",
        "[possible values: table, json, yaml]",
    ),
    case("waypoint delete", 64, "required arguments were not provided", HELP),
    case("waypoint delete a --all", 64, "cannot be used with", HELP),
    case(
        "waypoint apply --for everything",
        64,
        "invalid value 'everything'",
        "[possible values: service, workload, all, none]",
    ),
    case("waypoint apply --overwrite", 64, "--enroll-namespace", HELP),
    case("waypoint status --waypoint-timeout soon", 64, "not a duration: write for example 90s, 2m or 1m30s", HELP),
    case("zc connections --direction sideways", 64, "invalid value 'sideways'", "[possible values: inbound, outbound]"),
    case("zc workload a --node b", 64, "cannot be used with", HELP),
    case(
        "zc log --level loud! -c /nowhere",
        64,
        "--level \"loud!\": not a level",
        "next: use trace, debug, info, warn, error or off",
    ),
    case("tag set prod", 64, "--revision <NAME>", HELP),
    case("tag remove", 64, "required arguments were not provided", HELP),
    case("policy tset a.yaml", 64, "unrecognized subcommand 'tset'", "tip: a similar subcommand exists: 'test'"),
    case("policy test", 64, "required arguments were not provided", HELP),
    case("policy test /nowhere.yaml", 65, "/nowhere.yaml: no such file or directory", "next: check the path"),
    case(
        "policy test DIR/bad.yaml --flows DIR/book.json --objects DIR/good.yaml",
        65,
        "spec.acton",
        "next: `karst validate -f FILE` names all that is wrong",
    ),
    case(
        "policy test DIR/empty.json --flows DIR/book.json --objects DIR/good.yaml",
        65,
        "empty.json:1: kind: is missing: each document needs apiVersion and kind",
        "next: `karst validate -f FILE` names all that is wrong",
    ),
    case(
        "policy test DIR/good.yaml --flows DIR/empty.json --objects DIR/good.yaml",
        65,
        "empty.json: not a book of flows: missing field `flows`",
        "next: save one with `karst policy flows -o json`",
    ),
    case(
        "policy test DIR/good.yaml --flows DIR/book.json --objects DIR/good.yaml",
        2,
        "nothing was seen, so nothing can be said",
        "next: let the mesh have some traffic",
    ),
    case("policy test DIR/good.yaml", 1, "no Kubernetes cluster is configured", KUBECONFIG),
    case(
        "policy suggest -n shop --flows DIR/book.json --objects DIR/good.yaml",
        2,
        "no call to namespace shop was seen",
        "or name another namespace with -n",
    ),
    case("policy flows --flows /nowhere", 65, "/nowhere: cannot be read", "next: check the path"),
    case("pc routes", 64, "required arguments were not provided", HELP),
    case("pc cluster a --port http", 64, "invalid value 'http' for '--port <PORT>'", HELP),
    case(
        "analyze --use-kube=false",
        64,
        "nothing to look at without files",
        "next: name files, or leave out --use-kube=false",
    ),
    case("analyze -S IST0101 --use-kube=false DIR/good.yaml", 64, "write CODE=RESOURCE, for example", HELP),
    case(
        "analyze --use-kube=false /nowhere.yaml",
        65,
        "/nowhere.yaml: no such file or directory",
        "next: check the path",
    ),
    case("validate -f DIR/bad.yaml", 65, "bad.yaml: 1 errors", "next: each names the field and the fix"),
    case("validate", 64, "required arguments were not provided", HELP),
    case("kube-inject -f /nowhere.yaml", 65, "/nowhere.yaml: cannot be read", "next: check the path"),
    case("zc all -f DIR/good.yaml", 65, "good.yaml: not a dump of ztunnel", "next: save one with"),
    case(
        "pc routes -f DIR/empty.json",
        65,
        "it has no list named configs",
        "next: check that the pod is a waypoint or gateway",
    ),
    case("proxy-status", 1, "no Kubernetes cluster is configured", KUBECONFIG),
    case("tap", 1, "no Kubernetes cluster is configured", KUBECONFIG),
    case("tap --limit 0", 64, "invalid value '0' for '--limit <N>'", HELP),
    case("tap cow/web", 64, "cow is not a kind", HELP),
    case("tap --status 9xx", 64, "a status such as 503", HELP),
    case(
        "tap --from svc/web --file DIR/empty.json",
        64,
        "a service calls nobody",
        "next: name the workload that calls",
    ),
    case("tap --file /nowhere", 65, "/nowhere: cannot be read", "next: check the path"),
    case("top --file DIR/empty.json", 65, "not a line of a tap", "a file is saved with `karst tap -o json`"),
    case("version --remote=false --kubeconfig", 64, "a value is required for '--kubeconfig <FILE>'", HELP),
    case("check --kubeconfig /nowhere", 1, "--kubeconfig /nowhere: cannot be read", KUBECONFIG),
    case(
        "check --kubeconfig DIR/good.yaml --context other",
        1,
        "cannot be",
        "next: it has no contexts: is it a kubeconfig?",
    ),
    case("completion tcsh", 64, "invalid value 'tcsh'", "[possible values: bash, elvish, fish, powershell, zsh]"),
    case("x describe pod", 64, "required arguments were not provided", HELP),
    case(
        "dashboard --port 80 kiali",
        64,
        "dashboard: options of a page are before its name",
        "next: write them after it",
    ),
    case("dashboard mesh --port 70000", 64, "invalid value '70000' for '--port <PORT>'", HELP),
    case("dashboard", 1, "no Kubernetes cluster is configured", KUBECONFIG),
    case("admin log --level loud", 64, "--level \"loud\": not a level", "next: use debug, info, warn"),
];

fn run(line: &str, dir: &Path) -> Output {
    let dir = dir.display().to_string();
    let words = line.split(' ').map(|word| word.replace(DIR, &dir));
    Command::new(env!("CARGO_BIN_EXE_karst")).args(words).env_clear().env("HOME", "/nowhere").output().unwrap()
}

#[test]
fn each_has_one_error_and_the_next_step() {
    let dir = std::env::temp_dir().join(format!("karst-wrong-lines-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let service = |kind: &str| format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: web, namespace: shop}}\n");
    std::fs::write(dir.join("good.yaml"), service("Service") + "spec: {}\n").unwrap();
    let wrong = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\nspec: {acton: DENY}\n";
    std::fs::write(dir.join("bad.yaml"), wrong).unwrap();
    std::fs::write(dir.join("empty.json"), "{}").unwrap();
    std::fs::write(dir.join("book.json"), "{\"enabled\": true, \"flows\": []}").unwrap();
    let mut failed = vec![];
    for Case { line, status, says, next } in CASES {
        let out = run(line, &dir);
        let said = String::from_utf8_lossy(&out.stderr);
        let errors = said.lines().filter(|text| text.starts_with("error: ") || text.starts_with("karst: ")).count();
        let fits = out.status.code() == Some(*status) && said.contains(says) && said.contains(next);
        if !fits || errors != 1 || said.contains("panicked") {
            failed.push(format!("karst {line}: status {:?}, {errors} errors:\n{said}", out.status.code()));
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn an_error_names_the_object_and_the_field() {
    let dir = std::env::temp_dir().join(format!("karst-named-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let wrong = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\nspec: {acton: DENY}\n";
    std::fs::write(dir.join("bad.yaml"), wrong).unwrap();
    let out = run("validate -f DIR/bad.yaml -o json", &dir);
    std::fs::remove_dir_all(&dir).unwrap();
    let messages: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let all = messages.as_array().unwrap();
    assert_eq!(all.len(), 1, "{messages}");
    assert_eq!(all[0]["code"], "IST0106");
    assert_eq!(all[0]["origin"], "AuthorizationPolicy shop/web");
    assert!(all[0]["message"].as_str().unwrap().contains("acton"), "{messages}");
}

#[test]
fn a_manifest_goes_through_kube_inject_as_it_is() {
    let dir = std::env::temp_dir().join(format!("karst-inject-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("app.yaml"), "kind: Pod\n# a comment\n").unwrap();
    let out = run("kube-inject -f DIR/app.yaml", &dir);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), &b"kind: Pod\n# a comment\n"[..]));
    assert!(String::from_utf8_lossy(&out.stderr).contains("nothing was injected"));
}
