//! What conversion needs of the controller's options.

use crate::convert::objects::Revision;

/// Names that conversion needs.
#[derive(Clone, Debug)]
pub struct Mesh {
    pub trust_domain: String,
    pub cluster_domain: String,
    pub cluster_id: String,
    pub network: String,
    pub root_namespace: String,
    /// Which of several control planes this one is.
    pub revision: Revision,
    /// Whom VirtualServices are for that do not say so: `*` or `.` (Istio: defaultVirtualServiceExportTo).
    pub virtual_services_are_for: Vec<String>,
    /// The same of DestinationRules.
    pub destination_rules_are_for: Vec<String>,
    /// May ConfigMaps that Gateways name as parameters give rights to their pods?
    pub privileged_parameters: bool,
}

impl Mesh {
    /// Where proxies that are deployed find this control plane, HOST:PORT.
    pub fn discovery(&self) -> String {
        format!("{}.{}.svc:15012", self.revision.named("istiod"), self.root_namespace)
    }
}

/// What a waypoint's pods are made of.
#[derive(Clone, Debug, Default)]
pub struct Template {
    /// Image of the waypoint.
    pub image: String,
    /// IfNotPresent and so on.
    pub pull_policy: String,
    /// Secrets of the pods' namespace that hold what the registry asks for.
    pub pull_secrets: Vec<String>,
}
