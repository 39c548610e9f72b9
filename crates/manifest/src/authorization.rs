//! Istio's AuthorizationPolicy and PeerAuthentication: who may connect, and how.
#![allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]

use crate::meta::{Meta, Selector, Status, TargetRef};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AuthorizationPolicy {
    pub metadata: Meta,
    pub spec: AuthorizationPolicySpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    pub selector: Option<Selector>,
    pub target_ref: Option<TargetRef>,
    pub target_refs: Vec<TargetRef>,
    pub action: Option<String>,
    pub rules: Vec<PolicyRule>,
    pub provider: Option<PolicyProvider>,
    /// It stands for one that cannot be read ([`crate::closed::closed`]): it closes, by its action.
    #[serde(skip)]
    pub is_unread: bool,
}
impl AuthorizationPolicySpec {
    /// What the policy is attached to, and the path of the field that says so.
    pub fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
        TargetRef::all(self.target_ref.as_ref(), &self.target_refs)
    }
}

/// Of action CUSTOM: one of the mesh configuration's `extensionProviders`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyProvider {
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyRule {
    pub from: Vec<From>,
    pub to: Vec<To>,
    pub when: Vec<When>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct From {
    pub source: Source,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct To {
    pub operation: Operation,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct When {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PeerAuthentication {
    pub metadata: Meta,
    pub spec: PeerAuthenticationSpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    pub selector: Option<Selector>,
    pub mtls: Option<MutualTls>,
    #[serde(deserialize_with = "by_port")]
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

/// Keys of YAML may be numbers or text; in Kubernetes' API they are text, and many write them so.
fn by_port<'de, D: serde::Deserializer<'de>>(d: D) -> Result<BTreeMap<u16, MutualTls>, D::Error> {
    #[derive(PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    #[serde(untagged)]
    enum Key {
        Number(i64),
        Text(String),
    }
    let all = BTreeMap::<Key, MutualTls>::deserialize(d)?;
    let port = |(k, m)| {
        let text = match k {
            Key::Number(n) => n.to_string(),
            Key::Text(s) => s,
        };
        let bad = |_| serde::de::Error::custom(format!("invalid port {text:?}: use 1 to 65535 [KARST-0019]"));
        Ok((text.parse().map_err(bad)?, m))
    };
    all.into_iter().map(port).collect()
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MutualTls {
    pub mode: Mode,
}
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Mode {
    #[default]
    #[serde(rename = "UNSET")]
    Unset,
    #[serde(rename = "DISABLE")]
    Disable,
    #[serde(rename = "PERMISSIVE")]
    Permissive,
    #[serde(rename = "STRICT")]
    Strict,
}
