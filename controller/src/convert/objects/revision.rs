//! Revisions: several control planes side by side, told apart by the label `istio.io/rev` (Istio's rules).

use karst_manifest::{Object, kinds::Labels};

/// Label of an object that only one revision reads.
pub(crate) const LABEL: &str = "istio.io/rev";
/// The revision that is not named anywhere.
const DEFAULT: &str = "default";

/// Which control plane this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its name; `default` if it has none.
    pub name: String,
    /// Other names of it (revision tags).
    pub tags: Vec<String>,
}

impl Default for Revision {
    fn default() -> Self {
        Self { name: DEFAULT.into(), tags: vec![] }
    }
}

impl Revision {
    /// Is it the one without a name?
    pub fn is_default(&self) -> bool {
        self.name.is_empty() || self.name == DEFAULT
    }

    /// The name of what each revision has of its own: `istiod`, or `istiod-REVISION`.
    pub fn named(&self, name: &str) -> String {
        if self.is_default() { name.to_string() } else { format!("{name}-{}", self.name) }
    }

    /// The revision that an object is for, if it is for another one. Objects without the label are for all.
    /// Only what configures the mesh is told apart: workloads, services and what belongs to them are the same
    /// for all.
    pub fn other<'a>(&self, object: &'a Object) -> Option<&'a str> {
        let wanted = self.label(object)?;
        let is_ours = wanted.is_empty()
            || wanted == self.name
            || (self.is_default() && wanted == DEFAULT)
            || self.tags.iter().any(|t| t == wanted);
        (!is_ours).then_some(wanted)
    }

    fn label<'a>(&self, object: &'a Object) -> Option<&'a str> {
        let of = |labels: &'a Labels| labels.get(LABEL).map(String::as_str);
        match object {
            Object::Namespace(_)
            | Object::Node(_)
            | Object::Pod(_)
            | Object::Service(_)
            | Object::ServiceAccount(_)
            | Object::Secret(_)
            | Object::Deployment(_)
            | Object::EndpointSlice(_)
            | Object::GatewayClass(_)
            | Object::ReferenceGrant(_) => None,
            // Parameters of classes: each revision has its own.
            Object::ConfigMap(_)
            | Object::Gateway(_)
            | Object::HTTPRoute(_)
            | Object::GRPCRoute(_)
            | Object::TCPRoute(_)
            | Object::TLSRoute(_)
            | Object::BackendTLSPolicy(_)
            | Object::VirtualService(_)
            | Object::IstioGateway(_)
            | Object::DestinationRule(_)
            | Object::ServiceEntry(_)
            | Object::WorkloadEntry(_)
            | Object::AuthorizationPolicy(_)
            | Object::PeerAuthentication(_)
            | Object::RequestAuthentication(_)
            | Object::Telemetry(_)
            | Object::HTTPFilter(_) => of(&object.meta().labels),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_manifest::parse;

    fn object(kind: &str, version: &str, labels: &str) -> Object {
        let text = format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: a, labels: {{{labels}}}}}\n{}",
            if version == "v1" { "" } else { "spec: {}\n" }
        );
        parse::file("x.yaml".as_ref(), &text).unwrap().remove(0).object
    }

    #[test]
    fn only_objects_of_another_revision_are_for_others() {
        let policy = |labels: &str| object("PeerAuthentication", "security.istio.io/v1", labels);
        let named = Revision { name: "canary".into(), tags: vec!["prod".into()] };
        for (revision, labels, other) in [
            (Revision::default(), "", None),
            (Revision::default(), "istio.io/rev: default", None),
            (Revision::default(), "istio.io/rev: canary", Some("canary")),
            (named.clone(), "", None),
            (named.clone(), "istio.io/rev: canary", None),
            (named.clone(), "istio.io/rev: prod", None),
            (named.clone(), "istio.io/rev: default", Some("default")),
        ] {
            assert_eq!(revision.other(&policy(labels)), other, "{revision:?} {labels}");
        }
        assert_eq!(named.other(&object("Pod", "v1", "istio.io/rev: other")), None, "workloads are for all");
        assert_eq!(named.other(&object("ConfigMap", "v1", "istio.io/rev: default")), Some("default"));
        assert_eq!(
            (named.named("istiod"), Revision::default().named("istiod")),
            ("istiod-canary".into(), "istiod".into())
        );
    }
}
