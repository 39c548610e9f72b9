//! A policy as it is evaluated. Mirrors `istio.security.Authorization`, with one addition: every place where the
//! wire may hold something that we do not understand has an explicit `unknown` form.

use crate::ValueError;
use karst_core::Cidr;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// An L4 authorization policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Name, unique in its namespace.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// To which workloads it applies.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Any of them matches. None: the policy never matches.
    pub rules: Vec<Rule>,
    /// Only logged, never enforced.
    #[serde(default)]
    pub dry_run: bool,
}

impl Policy {
    /// The xDS resource name: `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// To which workloads a policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// All workloads of the mesh.
    Global,
    /// All workloads of the policy's namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What it means that a policy matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Allow; and whatever no allow policy matches is denied.
    Allow,
    /// Deny, whatever else allows.
    Deny,
}

/// All clauses must match. None: matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)] // Istio's dumps and files have lists of lists of lists
pub struct Rule {
    /// The clauses (Istio: one each for `from`, `to`, and every `when`).
    pub clauses: Vec<Clause>,
}

/// Any match suffices. None: matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Clause {
    /// The matches.
    pub matches: Vec<Match>,
}

/// All fields that are set must match; within a field, any of its values, and none of its `not_` values.
/// A match with no field set at all is skipped: it neither matches nor fails (Istio's ztunnel does the same).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the fields are those of the wire, one to one")]
pub struct Match {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<StringMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<CidrText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_source_ips: Vec<CidrText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ips: Vec<CidrText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ips: Vec<CidrText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_destination_ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The wire held something that this version does not know. Such a match fires in a DENY policy and never
    /// in an ALLOW policy.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
}

/// A [`Cidr`] that serializes as text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CidrText(pub Cidr);

impl Serialize for CidrText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for CidrText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(CidrText).map_err(serde::de::Error::custom)
    }
}

/// A namespace and service account, whatever the trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountMatch {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StringMatch {
    /// The same text.
    Exact(Arc<str>),
    /// Begins with (`x*`).
    Prefix(Arc<str>),
    /// Ends with (`*x`).
    Suffix(Arc<str>),
    /// Not empty (`*`).
    Presence,
}

impl StringMatch {
    /// Does it match? An empty text has no presence.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            StringMatch::Exact(x) => &**x == value,
            StringMatch::Prefix(x) => value.starts_with(&**x),
            StringMatch::Suffix(x) => value.ends_with(&**x),
            StringMatch::Presence => !value.is_empty(),
        }
    }
    /// Reads Istio's notation: `*`, `x*`, `*x`, or the text itself.
    ///
    /// # Errors
    /// A `*` elsewhere, or one more: nobody knows what it was to mean.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        Ok(match (text.matches('*').count(), text.strip_prefix('*'), text.strip_suffix('*')) {
            (0, ..) => StringMatch::Exact(text.into()),
            (1, Some(""), _) => StringMatch::Presence,
            (1, Some(end), _) => StringMatch::Suffix(end.into()),
            (1, _, Some(start)) => StringMatch::Prefix(start.into()),
            _ => return Err(ValueError::Star),
        })
    }
}
