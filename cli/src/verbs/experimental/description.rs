//! What `x describe` says: for programs as it is here, for people as text.

use serde::Serialize;
use std::fmt::{self, Display, Formatter};

/// Between the parts of a pod's text.
const LINE: &str = "--------------------";

/// A pod, and what the mesh does for it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodDescription {
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    /// Those that its containers declare.
    pub ports: Vec<ContainerPort>,
    /// Whether it is in the mesh, and why.
    pub mesh: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The waypoint for its own addresses: namespace/name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<String>,
    /// Those that select it.
    pub services: Vec<ServiceDescription>,
    pub authorization_policies: Vec<PolicyDescription>,
    pub mutual_tls: MutualTls,
}

/// A port that a container declares.
#[derive(Debug, Serialize)]
pub struct ContainerPort {
    pub port: i32,
    pub container: String,
}

/// Which mode is in force, and by whom.
#[derive(Debug, Serialize)]
pub struct MutualTls {
    pub mode: String,
    /// The PeerAuthentication, name.namespace, or that it is the default.
    pub by: String,
}

/// A service, and what the mesh does for it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceDescription {
    pub name: String,
    pub namespace: String,
    pub ports: Vec<ServicePort>,
    /// Namespace/name.
    pub waypoint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    pub destination_rules: Vec<RuleDescription>,
    pub virtual_services: Vec<RouteDescription>,
    pub http_routes: Vec<RouteDescription>,
    /// Those that its waypoint enforces for it.
    pub authorization_policies: Vec<PolicyDescription>,
}

/// A port of a service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    pub port: u64,
    /// The pods' port, by number or name.
    pub target_port: String,
    /// How its protocol is known.
    pub protocol: String,
}

/// A DestinationRule.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleDescription {
    pub name: String,
    pub namespace: String,
    pub host: String,
    /// All of them, of a service that is described.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<String>,
    /// Those that a pod that is described belongs to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matching_subsets: Vec<String>,
    /// Those that it does not belong to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub non_matching_subsets: Vec<String>,
    pub traffic_policy: Option<TrafficPolicy>,
}

/// What a DestinationRule sets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_mode: Option<String>,
    /// In istioctl's words.
    pub sets: Vec<&'static str>,
}

/// A VirtualService or HTTPRoute.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteDescription {
    pub name: String,
    pub namespace: String,
    /// Gateways that let in by it what comes from outside, with their addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_on: Vec<String>,
    /// Of a VirtualService.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<Destination>,
}

/// Where a rule of a VirtualService leads.
#[derive(Debug, Serialize)]
pub struct Destination {
    /// As `http[0]`.
    pub rule: String,
    /// Which requests it is for.
    pub requests: String,
    pub host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
}

/// An AuthorizationPolicy.
#[derive(Debug, Serialize)]
pub struct PolicyDescription {
    pub name: String,
    pub namespace: String,
    pub action: String,
    /// How many.
    pub rules: usize,
}

impl Display for PodDescription {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ports: Vec<String> = self.ports.iter().map(|one| format!("{} ({})", one.port, one.container)).collect();
        let ports = if ports.is_empty() { "none declared".to_owned() } else { ports.join(", ") };
        writeln!(f, "Pod: {}.{}", self.name, self.namespace)?;
        writeln!(f, "   Service account: {}", self.service_account)?;
        writeln!(f, "   Pod ports: {ports}")?;
        writeln!(f, "   Mesh: {}", self.mesh)?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "   WARNING: {warning}"))?;
        if let Some(waypoint) = &self.waypoint {
            writeln!(f, "   Waypoint for its own addresses: {waypoint}")?;
        }
        writeln!(f, "{LINE}")?;
        if self.services.is_empty() {
            writeln!(f, "No service selects this pod.\n{LINE}")?;
        }
        self.services.iter().try_for_each(|service| writeln!(f, "{service}{LINE}"))?;
        policies(f, "Authorization policies", &self.authorization_policies)?;
        let MutualTls { mode, by } = &self.mutual_tls;
        writeln!(f, "Effective PeerAuthentication:\n   Workload mTLS mode: {mode} (by {by})")
    }
}

impl Display for ServiceDescription {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "Service: {}.{}", self.name, self.namespace)?;
        for ServicePort { port, target_port, protocol } in &self.ports {
            writeln!(f, "   Port: {port} -> {target_port} ({protocol})")?;
        }
        writeln!(f, "   Waypoint: {}", self.waypoint.as_deref().unwrap_or("none"))?;
        self.warnings.iter().try_for_each(|warning| writeln!(f, "   WARNING: {warning}"))?;
        self.destination_rules.iter().try_for_each(|rule| write!(f, "{rule}"))?;
        self.virtual_services.iter().try_for_each(|route| write!(f, "VirtualService: {route}"))?;
        self.http_routes.iter().try_for_each(|route| write!(f, "HTTPRoute: {route}"))?;
        policies(f, "Authorization policies at the waypoint", &self.authorization_policies)
    }
}

impl Display for RuleDescription {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "DestinationRule: {}.{} for {:?}", self.name, self.namespace, self.host)?;
        for (what, names) in [
            ("Subsets", &self.subsets),
            ("Matching subsets", &self.matching_subsets),
            ("Non-matching subsets", &self.non_matching_subsets),
        ] {
            if !names.is_empty() {
                writeln!(f, "   {what}: {}", names.join(", "))?;
            }
        }
        let Some(TrafficPolicy { tls_mode, sets }) = &self.traffic_policy else {
            return writeln!(f, "   No Traffic Policy");
        };
        if let Some(mode) = tls_mode {
            writeln!(f, "   Traffic Policy TLS Mode: {mode}")?;
        }
        if sets.is_empty() { Ok(()) } else { writeln!(f, "   Traffic Policy: {}", sets.join(", ")) }
    }
}

impl Display for RouteDescription {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}.{}", self.name, self.namespace)?;
        self.exposed_on.iter().try_for_each(|gateway| writeln!(f, "   Exposed on Gateway {gateway}"))?;
        self.destinations.iter().try_for_each(|destination| writeln!(f, "   {destination}"))
    }
}

impl Display for Destination {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.rule, self.requests, self.host)?;
        if let Some(subset) = &self.subset {
            write!(f, " subset {subset}")?;
        }
        self.weight.map_or(Ok(()), |weight| write!(f, ", weight {weight}"))
    }
}

fn policies(f: &mut Formatter<'_>, title: &str, all: &[PolicyDescription]) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(f, "{title}:")?;
    all.iter().try_for_each(|PolicyDescription { name, namespace, action, rules }| {
        writeln!(f, "   {action} {name}.{namespace} ({rules} rules)")
    })
}
