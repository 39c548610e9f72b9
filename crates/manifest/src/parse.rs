//! From text to objects, with errors that say where.

use crate::{
    code,
    kinds::{self, Object},
    unsupported::{UnsupportedKind, unsupported},
};
use serde::Deserialize;
use std::{fmt, path::PathBuf};

/// Code of what does not fit its schema.
const UNREADABLE: u16 = 1;

/// Something wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file; empty for an object from the API server.
    pub file: PathBuf,
    /// Line of the file, from 1.
    pub line: usize,
    /// `Kind namespace/name`, as far as known.
    pub object: String,
    /// Path of the field, as `spec.rules[0].from`; empty if it is the whole document.
    pub field: String,
    /// What is wrong, and the fix.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}:{}: ", self.file.display(), self.line)?;
        }
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// An object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The object.
    pub object: Object,
    /// The file.
    pub file: PathBuf,
    /// Line of its document, from 1.
    pub line: usize,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: HeadMeta,
    #[serde(default)]
    items: Option<serde::de::IgnoredAny>,
}
#[derive(Default, Deserialize)]
struct HeadMeta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
}

/// Reads all documents of a file. Kinds that Karst does not read are passed over.
///
/// # Errors
/// All problems of the file.
pub fn file(path: &std::path::Path, text: &str) -> Result<Vec<Located>, Vec<Problem>> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (line, doc) in documents(text) {
        match document(doc) {
            Ok(None) => {}
            Ok(Some(object)) => good.push(Located { object, file: path.into(), line }),
            Err(mut p) => {
                p.file = path.into();
                p.line += line - 1;
                bad.push(p);
            }
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// Splits at lines of `---`, keeping the first line's number of each document.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let (mut from, mut first, mut at) = (0, 1, 0);
    for (n, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            out.push((first, &text[from..at]));
            (from, first) = (at + line.len(), n + 2);
        }
        at += line.len();
    }
    out.push((first, &text[from..]));
    out.retain(|(_, d)| d.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')));
    out
}

/// All documents of a file as they are written, each with its first line. What is no YAML is left out ([`file()`] tells).
pub fn values(text: &str) -> Vec<(usize, serde_json::Value)> {
    documents(text).into_iter().filter_map(|(line, doc)| Some((line, serde_yaml_ng::from_str(doc).ok()?))).collect()
}

fn document(text: &str) -> Result<Option<Object>, Problem> {
    let problem = |line: usize, object: &str, field: &str, message: String| Problem {
        file: PathBuf::new(),
        line,
        object: object.into(),
        field: field.into(),
        message,
    };
    let yaml_error = |e: &serde_yaml_ng::Error, object: &str, field: &str| {
        let line = e.location().map_or(1, |l| l.line());
        // The location is in `line`; say it once.
        let text = e.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(t, _)| t);
        let text = text.strip_prefix(&format!("{field}: ")).unwrap_or(text);
        problem(line, object, field, code::with(UNREADABLE, text.to_string()))
    };
    let head: Head = serde_yaml_ng::from_str(text).map_err(|e| yaml_error(&e, "", ""))?;
    if head.kind.is_empty() || head.api_version.is_empty() {
        return Err(problem(1, "", "kind", "is missing: each document needs apiVersion and kind [KARST-0002]".into()));
    }
    if head.items.is_some() && head.kind.ends_with("List") {
        return Err(problem(
            1,
            &head.kind,
            "items",
            "lists are not supported in files: write one document per object, separated by --- [KARST-0003]".into(),
        ));
    }
    let group = head.api_version.split_once('/').map_or("", |(g, _)| g);
    let Some((kind, _, namespaced)) = kinds::known(&head.kind, group) else {
        let Some(UnsupportedKind::Refused(text)) = unsupported(&head.kind, group) else { return Ok(None) };
        let namespace = if head.metadata.namespace.is_empty() { "default" } else { &head.metadata.namespace };
        return Err(problem(1, &format!("{} {namespace}/{}", head.kind, head.metadata.name), "", text.into()));
    };
    let namespace =
        if *namespaced && head.metadata.namespace.is_empty() { "default" } else { &head.metadata.namespace };
    let name = if *namespaced {
        format!("{} {namespace}/{}", head.kind, head.metadata.name)
    } else {
        format!("{} {}", head.kind, head.metadata.name)
    };
    if !is_name(kind, &head.metadata.name) {
        return Err(problem(
            1,
            &name,
            "metadata.name",
            "must be a DNS name: lowercase letters, digits, '-' and '.', at most 253 characters [KARST-0004]".into(),
        ));
    }
    let mut track = serde_path_to_error::Track::new();
    let d = serde_path_to_error::Deserializer::new(serde_yaml_ng::Deserializer::from_str(text), &mut track);
    match Object::read(kind, d) {
        None => Ok(None),
        Some(Ok(mut o)) => {
            if *namespaced && o.meta().namespace.is_empty() {
                o.meta_mut().namespace = "default".into();
            }
            Ok(Some(o))
        }
        Some(Err(e)) => {
            let path = track.path().to_string();
            Err(yaml_error(&e, &name, if path == "." { "" } else { &path }))
        }
    }
}

/// Reads one object as the API server gives it.
///
/// # Errors
/// What is wrong with it: the API server's schema may be older than what is read here.
pub fn value(kind: &str, mut object: serde_json::Value) -> Result<Object, Problem> {
    crate::nulls::without_nulls(&mut object);
    let at =
        |f: &str| object.pointer(&format!("/metadata/{f}")).and_then(|v| v.as_str()).unwrap_or_default().to_string();
    let name = format!("{}/{}", at("namespace"), at("name"));
    let mut track = serde_path_to_error::Track::new();
    match Object::read(kind, serde_path_to_error::Deserializer::new(object, &mut track)) {
        Some(Ok(o)) => Ok(o),
        Some(Err(e)) => {
            let mut problem = unreadable(kind, &name, e.to_string());
            problem.field = track.path().to_string();
            Err(problem)
        }
        None => Err(unreadable(kind, &name, "is of an unsupported kind [KARST-0001]".into())),
    }
}

/// The problem of an object (`namespace/name`) that cannot be read.
pub fn unreadable(kind: &str, name: &str, message: String) -> Problem {
    let message = code::with(UNREADABLE, message);
    let name = name.trim_start_matches('/');
    Problem { file: PathBuf::new(), line: 0, object: format!("{kind} {name}"), field: String::new(), message }
}

/// Can an object of this kind have the name? A ClusterTrustBundle's begins with that of its signer, as `example.com:roots:v1`.
fn is_name(kind: &str, name: &str) -> bool {
    match kind {
        "ClusterTrustBundle" => name.split(':').all(is_dns_name),
        _ => is_dns_name(name),
    }
}

fn is_dns_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|p| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            edge(p.chars().next())
                && edge(p.chars().last())
                && p.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Problem {
        file("f.yaml".as_ref(), text).unwrap_err().remove(0)
    }

    #[test]
    fn objects_are_read_and_others_passed_over() {
        let text = "# c\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: y}}\n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: d}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIP: 10.0.0.1}\n";
        let all = file("f.yaml".as_ref(), text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(
            (all[1].object.kind(), all[1].object.meta().namespace.as_str(), all[1].line),
            ("Pod", "default", 11)
        );
    }

    #[test]
    fn a_trust_bundle_has_the_name_of_its_signer() {
        let text = |kind: &str, name: &str| {
            let group = if kind == "Namespace" { "v1" } else { "certificates.k8s.io/v1" };
            format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: '{name}'}}\nspec: {{trustBundle: x}}\n")
        };
        let all = file("f.yaml".as_ref(), &text("ClusterTrustBundle", "example.com:roots:v1")).unwrap();
        let Object::ClusterTrustBundle(bundle) = &all[0].object else { panic!("another kind") };
        assert_eq!((bundle.metadata.name.as_str(), bundle.spec.trust_bundle.as_str()), ("example.com:roots:v1", "x"));
        for (kind, name) in [("ClusterTrustBundle", "a::b"), ("ClusterTrustBundle", "a:B"), ("Namespace", "a:b")] {
            assert_eq!(one(&text(kind, name)).field, "metadata.name", "{kind} {name}");
        }
    }

    #[test]
    fn objects_of_the_api_server_are_read() {
        let v = serde_json::json!({ "metadata": { "name": "s", "namespace": "n" }, "endpoints": null, "addressType": "IPv4", "ports": [{ "name": null, "port": 80 }] });
        let o = value("EndpointSlice", v).unwrap();
        assert_eq!((o.kind(), o.meta().name.as_str()), ("EndpointSlice", "s"));
        let v =
            serde_json::json!({ "metadata": { "name": "p", "namespace": "n" }, "spec": { "rules": [{ "form": [] }] } });
        let p = value("AuthorizationPolicy", v).unwrap_err();
        assert_eq!((p.object.as_str(), p.field.as_str()), ("AuthorizationPolicy n/p", "spec.rules[0].form"));
        assert!(p.to_string().starts_with("AuthorizationPolicy n/p: spec.rules[0].form: unknown field"), "{p}");
    }

    /// A status that Istio has left behind makes no object unreadable.
    #[test]
    fn statuses_of_istio_are_read() {
        let condition = serde_json::json!({ "type": "Reconciled", "status": "True", "observedGeneration": "3", "lastProbeTime": null });
        let v = serde_json::json!({
            "metadata": { "name": "v", "namespace": "n" }, "spec": { "hosts": ["a"] },
            "status": { "conditions": [condition], "observedGeneration": "3", "validationMessages": [{ "level": "WARNING" }] },
        });
        let Object::VirtualService(v) = value("VirtualService", v).unwrap() else { panic!("another kind") };
        assert_eq!(v.status.conditions[0].observed_generation, 3);
    }

    #[test]
    fn problems_name_line_object_and_field() {
        let p = one(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\nspec:\n  rules:\n  - from:\n    - source:\n        principal: [x]\n",
        );
        assert_eq!(
            (p.object.as_str(), p.field.as_str(), p.line),
            ("AuthorizationPolicy default/p", "spec.rules[0].from[0].source.principal", 13)
        );
        assert!(
            p.message.contains("unknown field `principal`") && p.message.ends_with(" [KARST-0001]"),
            "{}",
            p.message
        );
        let p = one("apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: 70000\n");
        assert_eq!((p.field.as_str(), p.line), ("spec.ports[0].port", 6));
        let p = one("apiVersion: v1\nkind: Service\nmetadata: {name: S}\n");
        assert_eq!(p.field, "metadata.name");
        let p = one("a: [\n");
        assert!(p.line >= 1 && p.object.is_empty());
        let p = one("kind: Pod\n");
        assert_eq!(p.field, "kind");
    }
}
