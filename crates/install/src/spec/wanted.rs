//! What the user has said, as one IstioOperator.

use super::{error::SpecError, operator, profile, set};
use serde_json::{Map, Value};

/// What the user has said.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// IstioOperators with the names of their files, the last one wins.
    pub files: Vec<(String, String)>,
    /// `--set`, in order; over the files.
    pub sets: Vec<String>,
    /// `--revision`; over all.
    pub revision: Option<String>,
    /// The namespace of the mesh, where nothing else says it.
    pub namespace: String,
}

/// One IstioOperator of all that was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// The profile that it is based on.
    pub profile: String,
    /// The namespace of the mesh.
    pub namespace: String,
    /// Empty: the default one.
    pub revision: String,
    /// `spec` whole.
    pub spec: Map<String, Value>,
    /// What the profile has, and a further revision leaves to the one that has it.
    pub left: Vec<String>,
}

impl Wanted {
    /// Lays everything over its profile.
    ///
    /// # Errors
    /// If something is no IstioOperator, or has a key that there is not.
    pub fn spec(&self) -> Result<Spec, SpecError> {
        let mut said = Map::new();
        for (file, text) in &self.files {
            operator::over(&mut said, operator::read(file, text)?);
        }
        let mut sets = Map::new();
        for text in &self.sets {
            set::set(&mut sets, text.strip_prefix("spec.").unwrap_or(text))?;
        }
        let said_profile = sets.get("profile").or_else(|| said.get("profile"));
        let profile = said_profile.and_then(Value::as_str).unwrap_or("default").to_string();
        let mut spec = profile::spec(&profile)?;
        // Before the user's words are laid over them.
        let gateways = if self.named(&said, &sets).is_empty() { vec![] } else { leave_out_gateways(&mut spec) };
        let explicit = SHARED.map(|name| (name, enables(&said, name) || enables(&sets, name)));
        operator::over(&mut spec, said);
        // Set at last and in place: a path may name a gateway of the profile by its index.
        for text in &self.sets {
            set::set(&mut spec, text.strip_prefix("spec.").unwrap_or(text))?;
        }
        if let Some(revision) = &self.revision {
            spec.insert("revision".into(), revision.as_str().into());
        }
        operator::check("spec", &spec)?;
        spec.insert("profile".into(), profile.as_str().into());
        let text =
            |pointer: &str| Value::Object(spec.clone()).pointer(pointer).and_then(Value::as_str).map(String::from);
        let namespace = text("/namespace")
            .or_else(|| text("/values/global/istioNamespace"))
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| self.namespace.clone());
        let revision =
            text("/revision").or_else(|| text("/values/revision")).filter(|name| name != "default").unwrap_or_default();
        let is_default = revision.is_empty();
        let unsaid: Vec<String> = gateways.into_iter().filter(|name| settle(&mut spec, name, is_default)).collect();
        let mut left = vec![];
        if !is_default {
            for (name, _) in explicit.iter().filter(|(_, explicit)| !explicit) {
                left.extend(leave_out(&mut spec, name).then(|| (*name).to_string()));
            }
            left.extend(unsaid);
        }
        Ok(Spec { profile, namespace, revision, spec, left })
    }

    /// The revision that the user says; empty for the default one.
    fn named(&self, said: &Map<String, Value>, sets: &Map<String, Value>) -> String {
        let of = |spec: &Map<String, Value>| {
            let values = spec.get("values").and_then(|values| values.get("revision"));
            spec.get("revision").or(values).and_then(Value::as_str).map(String::from)
        };
        let name = self.revision.clone().or_else(|| of(sets)).or_else(|| of(said)).unwrap_or_default();
        if name == "default" { String::new() } else { name }
    }
}

/// Components that there is one of in a cluster, whatever the revisions: a further revision would take them over, and
/// its removal would remove them. It has them only if the user says so; a profile does not.
const SHARED: [&str; 3] = ["base", "cni", "ztunnel"];

fn enables(spec: &Map<String, Value>, component: &str) -> bool {
    let said = spec.get("components").and_then(|components| components.get(component));
    said.and_then(|said| said.get("enabled")) == Some(&Value::Bool(true))
}

/// Switches a component off. True: it was on.
fn leave_out(spec: &mut Map<String, Value>, component: &str) -> bool {
    let components = spec.get_mut("components").and_then(|components| components.get_mut(component));
    let Some(Value::Object(said)) = components else { return false };
    said.insert("enabled".into(), false.into()) == Some(Value::Bool(true))
}

/// Lists of gateways. Those of a profile have the same names in every revision: one that is not named by the user stays with the
/// revision that runs it.
const GATEWAYS: [&str; 2] = ["ingressGateways", "egressGateways"];

/// Leaves it open whether the gateways of a profile are on ([`settle`]). Gives the names of those that were.
fn leave_out_gateways(spec: &mut Map<String, Value>) -> Vec<String> {
    let mut left = vec![];
    for list in GATEWAYS {
        let gateways = spec.get_mut("components").and_then(|components| components.get_mut(list));
        for gateway in gateways.and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(gateway) = gateway.as_object_mut() else { continue };
            if gateway.get("enabled") == Some(&Value::Bool(true)) {
                gateway.remove("enabled");
                left.extend(gateway.get("name").and_then(Value::as_str).map(String::from));
            }
        }
    }
    left
}

/// Switches a gateway on or off, unless the user has said which. True: nothing was said.
fn settle(spec: &mut Map<String, Value>, name: &str, on: bool) -> bool {
    for list in GATEWAYS {
        let gateways = spec.get_mut("components").and_then(|components| components.get_mut(list));
        let gateways = gateways.and_then(Value::as_array_mut).into_iter().flatten();
        for gateway in gateways.filter_map(Value::as_object_mut) {
            if gateway.get("name").and_then(Value::as_str) == Some(name) {
                let is_unsaid = !gateway.contains_key("enabled");
                gateway.entry("enabled").or_insert(Value::Bool(on));
                return is_unsaid;
            }
        }
    }
    true
}

impl Spec {
    /// As an IstioOperator.
    pub fn to_yaml(&self) -> String {
        let document = serde_json::json!({
            "apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator", "spec": self.spec});
        // Through the templates' values, which write whole numbers without a fraction.
        crate::template::to_yaml(&crate::template::Value::from_json(&document).to_json()) + "\n"
    }
}
