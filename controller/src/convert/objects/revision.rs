//! Revisions: several control planes side by side, told apart by the label `istio.io/rev` (Istio's rules).

use karst_manifest::{Object, kinds::Labels};

/// Label of an object that only one revision reads.
pub(crate) const LABEL: &str = "istio.io/rev";
/// The revision that is not named anywhere.
pub(crate) const DEFAULT: &str = "default";

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

    /// Its name, as labels have it.
    pub fn name(&self) -> &str {
        if self.name.is_empty() { DEFAULT } else { &self.name }
    }

    /// The name of what each revision has of its own: `istiod`, or `istiod-REVISION`.
    pub fn named(&self, name: &str) -> String {
        if self.is_default() { name.to_string() } else { format!("{name}-{}", self.name) }
    }

    /// The name in an object's label `istio.io/rev`, of those objects that only one revision reads: what configures
    /// the mesh. Workloads, services and what belongs to them are the same for all; so are Gateways and their ListenerSets, whose
    /// pods every revision's proxies call (who runs them is another matter: `Revisions::owner`).
    pub(crate) fn label(object: &Object) -> Option<&str> {
        let of = |labels| named(labels);
        match object {
            Object::Namespace(_)
            | Object::Node(_)
            | Object::Pod(_)
            | Object::Service(_)
            | Object::ServiceAccount(_)
            | Object::Secret(_)
            | Object::Deployment(_)
            | Object::EndpointSlice(_)
            | Object::MutatingWebhookConfiguration(_)
            | Object::ClusterTrustBundle(_)
            | Object::ServiceCIDR(_)
            | Object::CustomResourceDefinition(_)
            | Object::GatewayClass(_)
            | Object::Gateway(_)
            | Object::ListenerSet(_)
            | Object::ReferenceGrant(_) => None,
            // Parameters of classes: each revision has its own.
            Object::ConfigMap(_)
            | Object::HTTPRoute(_)
            | Object::GRPCRoute(_)
            | Object::TCPRoute(_)
            | Object::TLSRoute(_)
            | Object::UDPRoute(_)
            | Object::BackendTLSPolicy(_)
            | Object::XBackendTrafficPolicy(_)
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

/// What the label of an object or a namespace says. An empty one says nothing.
pub(crate) fn named(labels: &Labels) -> Option<&str> {
    labels.get(LABEL).map(String::as_str).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_revision_has_of_its_own_has_its_name() {
        let named = Revision { name: "canary".into(), tags: vec![] };
        assert_eq!(
            (named.named("istiod"), Revision::default().named("istiod")),
            ("istiod-canary".into(), "istiod".into())
        );
        assert_eq!(Revision { name: String::new(), tags: vec![] }.name(), "default");
    }
}
