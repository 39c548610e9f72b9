//! What conversion needs of the controller's options.

/// Names that conversion needs.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub trust_domain: String,
    pub cluster_domain: String,
    pub cluster_id: String,
    pub network: String,
    pub root_namespace: String,
    /// Whom VirtualServices are for that do not say so: `*` or `.` (Istio: defaultVirtualServiceExportTo).
    pub virtual_services_are_for: Vec<String>,
    /// The same of DestinationRules.
    pub destination_rules_are_for: Vec<String>,
    /// May ConfigMaps that Gateways name as parameters give rights to their pods?
    pub privileged_parameters: bool,
}

/// What a waypoint's pods are made of.
#[derive(Clone, Debug)]
pub struct Template {
    /// Image of the waypoint.
    pub image: String,
    /// IfNotPresent and so on.
    pub pull_policy: String,
}
