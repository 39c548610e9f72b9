//! Incidents as people meet them, each a directory (`incidents/NAME`) of manifests and a question: the first line of the answer
//! names what is wrong, and what is offered as a fix was tried. docs/troubleshooting.md lists all of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_explain::{Call, Enrolment, Explanation, Head, NetworkPolicy, Outcome, PartyError, World, explain, text};
use karst_manifest::{State, parse};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is asked, and what the answer must be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// What has happened, for people.
    title: String,
    from: String,
    to: String,
    port: Option<u16>,
    host: Option<String>,
    /// Claims of a token.
    claims: Option<serde_json::Map<String, serde_json::Value>>,
    /// Bytes, not a request.
    #[serde(default)]
    tcp: bool,
    /// As `-o json` has it, or `error`.
    verdict: String,
    cause: Option<String>,
    /// Part of the first line.
    says: String,
    /// A change is offered, and was tried.
    #[serde(default)]
    fixed: bool,
}

impl Question {
    fn call(&self) -> Call {
        let head = || Head { host: self.host.clone(), claims: self.claims.clone(), ..Head::default() };
        Call {
            from: self.from.clone(),
            to: self.to.clone(),
            namespace: String::new(),
            port: self.port,
            request: (!self.tcp).then(head),
            server_name: None,
            now: 1_750_000_000,
        }
    }

    /// As it is typed.
    fn line(&self) -> String {
        let mut line = format!("karst explain {} {}", self.from, self.to);
        let mut add = |flag: &str, value: Option<String>| line.extend(value.map(|value| format!(" {flag} {value}")));
        add("--port", self.port.map(|port| port.to_string()));
        add("--host", self.host.clone());
        add(
            "--token-claims",
            self.claims.as_ref().map(|claims| format!("'{}'", serde_json::to_string(claims).unwrap())),
        );
        if self.tcp {
            line.push_str(" --tcp");
        }
        line
    }
}

fn all() -> Vec<(String, PathBuf, Question)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("incidents");
    let mut all: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let question = fs::read_to_string(path.join("question.yaml")).unwrap();
            let question = serde_yaml_ng::from_str(&question).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path.file_name().unwrap().to_string_lossy().into_owned(), path, question)
        })
        .collect();
    all.sort_by(|one, other| one.0.cmp(&other.0));
    all
}

fn world(directory: &Path) -> World {
    let file = directory.join("mesh.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let objects = parse::file(Path::new("mesh.yaml"), &text);
    let objects = objects.unwrap_or_else(|e| panic!("{}: {e:?}", file.display()));
    let objects = objects.into_iter().map(Arc::new).collect();
    let network = parse::values(&text);
    let network = network.iter().filter_map(|(line, v)| NetworkPolicy::read(v, Some("mesh.yaml".into()), *line));
    let world = World::new(State { objects, ..State::default() }, Enrolment::Expected).unwrap();
    world.with_network_policies(network.collect())
}

fn ask(directory: &Path, question: &Question) -> Result<Explanation, PartyError> {
    explain(&world(directory), &question.call())
}

#[test]
fn each_incident_is_named_in_the_first_line() {
    let mut wrong = vec![];
    for (name, path, question) in all() {
        let (shown, verdict, cause, fixed) = match ask(&path, &question) {
            Err(e) => (e.to_string(), "error".into(), None, false),
            Ok(answer) => {
                let word = |v: serde_json::Value| v.as_str().map(String::from);
                let json = serde_json::to_value(&answer).unwrap();
                let fixed = answer.fix.as_ref().is_some_and(|fix| fix.verified);
                (text::render(&answer), word(json["verdict"].clone()).unwrap(), word(json["cause"].clone()), fixed)
            }
        };
        let first = shown.lines().next().unwrap_or_default();
        let named = first.contains(&question.says);
        if !named || (&verdict, &cause, fixed) != (&question.verdict, &question.cause, question.fixed) {
            wrong.push(format!("{name}: {verdict} {cause:?} fixed {fixed}\n{question:?}\n{shown}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_manual_lists_all_incidents_with_the_question() {
    let all = all();
    assert!(all.len() >= 40, "{}", all.len());
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/troubleshooting.md");
    let page = fs::read_to_string(page).unwrap();
    let row = |name: &str, question: &Question| format!("| `{name}` | {} | `{}` |", question.title, question.line());
    let missing: Vec<String> =
        all.iter().map(|(name, _, question)| row(name, question)).filter(|row| !page.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "docs/troubleshooting.md lacks:\n{}", missing.join("\n"));
}

#[test]
fn steps_name_the_object_with_its_file_and_line() {
    let (_, path, question) = all().into_iter().find(|(name, ..)| name == "nothing-allowed").unwrap();
    let answer = ask(&path, &question).unwrap();
    let decided = answer.steps.iter().find(|s| s.outcome == Outcome::Refuse).unwrap();
    let object = decided.object.as_ref().unwrap();
    assert_eq!((&*object.kind, &*object.name), ("AuthorizationPolicy", "web"));
    let text = fs::read_to_string(path.join("mesh.yaml")).unwrap();
    let line = text.lines().position(|line| line.starts_with("kind: AuthorizationPolicy")).unwrap();
    assert_eq!((object.file.as_deref(), object.line), (Some(Path::new("mesh.yaml")), line));
}
