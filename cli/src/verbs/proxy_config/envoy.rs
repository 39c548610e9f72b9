//! Envoy's config_dump (ProtoJSON of envoy.admin.v3.ConfigDump, snake case), as far as istioctl's tables read it.

use crate::problem::{Exit, Problem};
use serde_json::Value;

/// The page.
#[derive(Debug)]
pub struct Dump {
    whole: Value,
}

impl Dump {
    /// Reads the page; `source` names it in errors.
    ///
    /// # Errors
    /// If it is no such dump.
    pub fn parse(text: &str, source: &str) -> Result<Self, Problem> {
        let wrong = |why: String| {
            Problem::new(format!("{source}: not a dump in Envoy's form"))
                .because(why)
                .next("check that the pod is a waypoint or gateway of this mesh, of this program's version or newer")
                .exit(Exit::Data)
        };
        let whole: Value = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        if !whole.get("configs").is_some_and(Value::is_array) {
            return Err(wrong("it has no list named configs".into()));
        }
        Ok(Self { whole })
    }

    /// All of it.
    pub fn whole(&self) -> &Value {
        &self.whole
    }

    /// A section, by the last part of its type.
    pub fn section(&self, kind: &str) -> Option<&Value> {
        let sections = self.whole.get("configs").and_then(Value::as_array)?;
        sections.iter().find(|section| text(section, "/@type").rsplit('.').next() == Some(kind))
    }

    fn inner<'a>(&'a self, section: &str, list: &'a str, inner: &'a str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let all = self.section(section).and_then(|section| section.get(list)).and_then(Value::as_array);
        all.into_iter().flatten().filter_map(move |one| one.pointer(inner))
    }

    /// Clusters.
    pub fn clusters(&self) -> impl Iterator<Item = &Value> {
        self.inner("ClustersConfigDump", "dynamic_active_clusters", "/cluster")
    }
    /// Listeners.
    pub fn listeners(&self) -> impl Iterator<Item = &Value> {
        self.inner("ListenersConfigDump", "dynamic_listeners", "/active_state/listener")
    }
    /// Route configurations.
    pub fn routes(&self) -> impl Iterator<Item = &Value> {
        self.inner("RoutesConfigDump", "dynamic_route_configs", "/route_config")
    }
    /// Endpoints of clusters.
    pub fn endpoints(&self) -> impl Iterator<Item = &Value> {
        self.inner("EndpointsConfigDump", "dynamic_endpoint_configs", "/endpoint_config")
    }
    /// Secrets.
    pub fn secrets(&self) -> impl Iterator<Item = &Value> {
        self.inner("SecretsConfigDump", "dynamic_active_secrets", "")
    }
}

/// A text at a place; empty if there is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A list at a place; empty if there is none.
pub fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// `name.namespace` of the object that something was made from, by Istio's metadata.
pub fn origin(value: &Value) -> String {
    let path = text(value, "/metadata/filter_metadata/istio/config");
    let parts: Vec<&str> = path.split('/').collect();
    match parts.as_slice() {
        [.., "namespaces", namespace, _, name] => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}
