//! The admin page /config_dump of ztunnel: ours and Istio's, each section a list or an object.

use crate::problem::{Exit, Problem};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// What is read of the page. Objects stay as they are, so that -o json shows all of them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Dump {
    #[serde(deserialize_with = "list_or_map")]
    pub workloads: Vec<Value>,
    #[serde(deserialize_with = "list_or_map")]
    pub services: Vec<Value>,
    #[serde(deserialize_with = "list_or_map")]
    pub policies: Vec<Value>,
    #[serde(deserialize_with = "list_or_map")]
    pub certificates: Vec<Value>,
    /// Pods of the node, by uid.
    pub workload_state: BTreeMap<String, Value>,
}

fn list_or_map<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<Value>, D::Error> {
    Ok(match Value::deserialize(value)? {
        Value::Array(all) => all,
        Value::Object(all) => all.into_iter().map(|(_, value)| value).collect(),
        _ => vec![],
    })
}

impl Dump {
    /// Reads the page; `source` names it in errors.
    pub fn parse(text: &str, source: &str) -> Result<Self, Problem> {
        let mut dump: Self = serde_json::from_str(text).map_err(|e| {
            Problem::new(format!("{source}: not a dump of ztunnel"))
                .because(e)
                .next("save one with `karst ztunnel-config all -o json`, or from ztunnel's /config_dump")
                .exit(Exit::Data)
        })?;
        for objects in [&mut dump.workloads, &mut dump.services, &mut dump.policies] {
            objects.sort_by(|a, b| name(a).cmp(&name(b)));
        }
        Ok(dump)
    }

    /// The name of the waypoint that `object` uses: that of its service. `None` without one; `NA` if it is not known.
    pub fn waypoint(&self, object: &Value) -> String {
        let Some(destination) = object.pointer("/waypoint/destination").and_then(Value::as_str) else {
            return "None".into();
        };
        let serves = |service: &&Value| {
            format!("{}/{}", text(service, "namespace"), text(service, "hostname")) == destination
                || list(service, "vips").contains(&destination)
        };
        self.services.iter().find(serves).map_or_else(|| "NA".into(), |service| text(service, "name").to_owned())
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Value> {
        self.workloads.iter().find(|workload| text(workload, "uid") == uid)
    }
}

fn name(object: &Value) -> (&str, &str) {
    (text(object, "namespace"), text(object, "name"))
}

/// A field that is a text; empty if there is none.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The texts of a field that is a list.
pub fn list<'a>(object: &'a Value, field: &str) -> Vec<&'a str> {
    object.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The objects of a namespace, or all.
pub fn of_namespace<'a>(objects: &'a [Value], namespace: Option<&str>) -> Vec<&'a Value> {
    objects.iter().filter(|object| namespace.is_none_or(|name| text(object, "namespace") == name)).collect()
}
