//! The rule book for a command line: what `check` prints and the webhook answers, as data.
//!
//! Nothing is judged here: problems, warnings and findings come from [`convert`], by which the model is compiled.

use crate::convert::{self, Mesh, check, finding::Finding, of_gateway, of_listener_set};
use karst_manifest::{
    Object, Problem, State, code, kinds,
    parse::{self, Located},
    unsupported::{UnsupportedKind, unsupported},
};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What the objects of a mesh are judged by that is no object itself.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the control plane: policies there are the whole mesh's.
    pub root_namespace: String,
    /// Domain of the identities.
    pub trust_domain: String,
    /// Domain of the services' names.
    pub cluster_domain: String,
}

impl Default for Settings {
    fn default() -> Self {
        let domain = || "cluster.local".to_owned();
        Self { root_namespace: "istio-system".into(), trust_domain: domain(), cluster_domain: domain() }
    }
}

impl Settings {
    fn mesh(&self) -> Mesh {
        Mesh {
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.clone(),
            cluster_id: "Kubernetes".into(),
            network: String::new(),
            root_namespace: self.root_namespace.clone(),
            revision: crate::convert::Revision::default(),
            virtual_services_are_for: vec!["*".into()],
            destination_rules_are_for: vec!["*".into()],
            privileged_parameters: false,
        }
    }
}

/// What kind of statement it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The object is refused, or a part of it is not in force.
    Problem,
    /// Valid, and hardly what was meant.
    Warning,
    /// Valid, and without effect among what is there; by this reason, as statuses name it.
    NoEffect(&'static str),
}

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What kind of statement it is.
    pub sort: Sort,
    /// `Kind namespace/name`, as far as known.
    pub object: String,
    /// The file; empty for an object of the API server.
    pub file: PathBuf,
    /// Line of the file, from 1.
    pub line: usize,
    /// Path of the field and what is wrong with it, with the fix and its code.
    pub message: String,
}

impl Statement {
    /// The number of its code (`KARST-0307`), if it has one.
    pub fn code(&self) -> Option<u16> {
        code::of(&self.message)
    }
}

impl From<&Problem> for Statement {
    fn from(problem: &Problem) -> Self {
        let separator = if problem.field.is_empty() { "" } else { ": " };
        Self {
            sort: Sort::Problem,
            object: problem.object.clone(),
            file: problem.file.clone(),
            line: problem.line,
            message: format!("{}{separator}{}", problem.field, problem.message),
        }
    }
}

/// Everything that is to be said of these objects among each other.
pub fn whole(state: &State, settings: &Settings) -> Vec<Statement> {
    let mesh = settings.mesh();
    let (model, meaning) = convert::compile(state, &mesh);
    let mut said: Vec<Statement> = state.problems.iter().chain(&meaning).map(Statement::from).collect();
    said.extend(convert::findings(state, &model, &mesh).iter().map(|finding| of_finding(finding, state)));
    said
}

fn of_finding(finding: &Finding, state: &State) -> Statement {
    let is_it = |one: &&std::sync::Arc<Located>| {
        let meta = one.object.meta();
        one.object.kind() == finding.kind && meta.namespace == finding.namespace && meta.name == finding.name
    };
    let (file, line) = state.objects.iter().find(is_it).map_or((PathBuf::new(), 0), |one| (one.file.clone(), one.line));
    let object = object_name(kinds::api_kind(finding.kind), &finding.namespace, &finding.name);
    Statement { sort: Sort::NoEffect(finding.reason.name()), object, file, line, message: finding.text() }
}

fn object_name(kind: &str, namespace: &str, name: &str) -> String {
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{kind} {namespace}{slash}{name}")
}

/// Kind and group of an object, and what it is called in statements.
fn called(object: &Value) -> (&str, &str, String) {
    let at = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, group) = (at("/kind"), at("/apiVersion").split_once('/').map_or("", |(group, _)| group));
    (kind, group, object_name(kind, at("/metadata/namespace"), at("/metadata/name")))
}

/// What is to be said of one object as it is written: fields without effect, deprecated ones.
pub fn written(object: &Value, file: &Path, line: usize) -> Vec<Statement> {
    let (kind, group, name) = called(object);
    let said =
        |message: String| Statement { sort: Sort::Warning, object: name.clone(), file: file.into(), line, message };
    check::written(kind, group, object).into_iter().map(said).collect()
}

/// What the webhook answers to an object that is applied: its problems and warnings by itself.
pub fn alone(object: &Value, file: &Path, line: usize, settings: &Settings) -> Vec<Statement> {
    let (kind, group, name) = called(object);
    let mut said = written(object, file, line);
    let place = |mut statement: Statement| {
        (statement.file, statement.line) = (file.into(), line);
        statement
    };
    let Some((known, ..)) = kinds::known(kind, group) else {
        if let Some(UnsupportedKind::Refused(text)) = unsupported(kind, group) {
            let message = text.to_owned();
            said.push(place(Statement { sort: Sort::Problem, object: name, file: PathBuf::new(), line, message }));
        }
        return said;
    };
    match parse::value(known, object.clone()) {
        Err(problem) => said.push(place(Statement::from(&problem))),
        Ok(object) => {
            let listeners = match &object {
                Object::Gateway(gateway) => of_gateway(gateway),
                Object::ListenerSet(set) => of_listener_set(set),
                _ => vec![],
            };
            let warning =
                |message| Statement { sort: Sort::Warning, object: name.clone(), file: file.into(), line, message };
            said.extend(listeners.into_iter().map(warning));
            // A Gateway alone lacks the Secrets that it names, a ListenerSet its Gateway.
            if !matches!(object, Object::Gateway(_) | Object::ListenerSet(_) | Object::BackendTLSPolicy(_)) {
                let problems = check::problems(object, &settings.mesh());
                said.extend(problems.iter().map(|problem| place(Statement::from(problem))));
            }
        }
    }
    said
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn route(host: &str) -> Value {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "hosts": [host], "http": [{ "route": [{ "destination": { "host": host } }] }] },
        })
    }

    #[test]
    fn a_route_of_a_service_that_is_not_there_has_no_effect() {
        let object = parse::value("VirtualService", route("nowhere")).unwrap();
        let located = Located { object, file: "a.yaml".into(), line: 3 };
        let state = State { objects: vec![Arc::new(located)], ..State::default() };
        let said = whole(&state, &Settings::default());
        let found = said.iter().find(|one| one.sort == Sort::NoEffect("HostNotFound")).unwrap();
        assert_eq!(
            (found.object.as_str(), found.line, found.code()),
            ("VirtualService shop/web", 3, Some(307)),
            "{said:?}"
        );
    }

    #[test]
    fn alone_is_what_the_webhook_refuses() {
        let mut wrong = route("web");
        wrong["spec"]["http"][0]["route"][0]["weight"] = json!(-1);
        let said = alone(&wrong, Path::new("a.yaml"), 7, &Settings::default());
        assert!(said.iter().any(|one| one.sort == Sort::Problem && one.line == 7), "{said:?}");
        assert_eq!(alone(&route("web"), Path::new("a.yaml"), 7, &Settings::default()), []);
        let filter =
            json!({ "apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": { "name": "f" } });
        let said = alone(&filter, Path::new("a.yaml"), 1, &Settings::default());
        assert_eq!(said.iter().map(Statement::code).collect::<Vec<_>>(), [Some(7)]);
    }
}
