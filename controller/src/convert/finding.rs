//! What is to be said of objects that are valid, and yet have no effect, or not all of it (found by `unserved`). It is said
//! when they are applied, in their statuses, by `check`, and in a metric by kind and reason.

use karst_manifest::{Problem, kinds, unsupported::UNSUPPORTED};
use std::{collections::BTreeMap, fmt};

/// Why an object has no effect. Few: they are values of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It cannot be used as it is written.
    Invalid,
    /// A service whose routes it has uses no waypoint (Istio's name).
    MissingUseWaypointLabel,
    /// One is named, and is not ready or does not take it.
    WaypointNotBound,
    /// There is no such service.
    HostNotFound,
    /// A service has no such port.
    PortNotFound,
    /// None of the gateways that it names takes one of its hosts.
    GatewayNotFound,
    /// A route asks about claims of tokens, and nobody verifies any.
    TokensNotVerified,
    /// There are no sidecars.
    SidecarInjection,
    /// No control plane is the revision that it is for.
    RevisionNotFound,
}

impl Reason {
    /// As statuses and metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "Invalid",
            Self::MissingUseWaypointLabel => "MissingUseWaypointLabel",
            Self::WaypointNotBound => "WaypointNotBound",
            Self::HostNotFound => "HostNotFound",
            Self::PortNotFound => "PortNotFound",
            Self::GatewayNotFound => "GatewayNotFound",
            Self::TokensNotVerified => "TokensNotVerified",
            Self::SidecarInjection => "SidecarInjection",
            Self::RevisionNotFound => "RevisionNotFound",
        }
    }

    /// The condition that is False by it.
    pub(crate) fn condition(self) -> &'static str {
        match self {
            Self::MissingUseWaypointLabel | Self::WaypointNotBound => RESOLVED_WAYPOINTS,
            Self::HostNotFound | Self::PortNotFound | Self::GatewayNotFound | Self::TokensNotVerified => RESOLVED_REFS,
            Self::Invalid | Self::SidecarInjection => "Accepted",
            Self::RevisionNotFound => REVISION,
        }
    }
}

/// Condition of routes: the services that they are for have waypoints (Istio's name).
pub(crate) const RESOLVED_WAYPOINTS: &str = "ResolvedWaypoints";
/// Condition of routes: what they refer to is there.
pub(crate) const RESOLVED_REFS: &str = "ResolvedRefs";

/// Condition of what configures the mesh: a control plane is the revision that it names.
pub(crate) const REVISION: &str = "karst.io/Revision";

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// One of [`kinds::KINDS`].
    pub kind: &'static str,
    /// Namespace; empty for a Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The object's generation that it was found of.
    pub generation: i64,
    /// Why.
    pub reason: Reason,
    /// Path of the field.
    pub field: String,
    /// What is wrong, and the fix.
    pub message: String,
}

impl Finding {
    pub(crate) fn new(
        kind: &'static str,
        meta: &kinds::Meta,
        reason: Reason,
        (field, message): (String, String),
    ) -> Self {
        let (namespace, name, generation) = (meta.namespace.clone(), meta.name.clone(), meta.generation);
        Self { kind, namespace, name, generation, reason, field, message }
    }

    /// Without the object's name, as kubectl shows it.
    pub fn text(&self) -> String {
        format!("{}: {}", self.field, self.message)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        write!(f, "{} {}{slash}{}: {}", kinds::api_kind(self.kind), self.namespace, self.name, self.text())
    }
}

/// How many objects there are something to be said of, by kind and reason.
pub fn count<'a>(
    findings: &'a [Finding],
    problems: impl Iterator<Item = &'a Problem>,
) -> BTreeMap<(&'static str, &'static str), u64> {
    let mut objects: Vec<(&'static str, &'static str, String)> = vec![];
    for f in findings {
        objects.push((kinds::api_kind(f.kind), f.reason.name(), format!("{}/{}", f.namespace, f.name)));
    }
    for problem in problems {
        let kind = problem.object.split(' ').next().unwrap_or_default();
        // Not what somebody has written: values of a metric are few.
        let known = kinds::KINDS.iter().map(|k| kinds::api_kind(k.0)).chain(UNSUPPORTED.iter().map(|(k, ..)| *k));
        let kind = known.into_iter().find(|k| *k == kind).unwrap_or("other");
        objects.push((
            kind,
            Reason::Invalid.name(),
            format!("{}:{} {}", problem.file.display(), problem.line, problem.object),
        ));
    }
    objects.sort();
    objects.dedup();
    let mut out = BTreeMap::new();
    for (kind, reason, _) in objects {
        *out.entry((kind, reason)).or_default() += 1;
    }
    out
}
