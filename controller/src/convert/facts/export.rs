//! For which namespaces an object of Istio's API is (`exportTo`).

use crate::convert::objects::Objects;
use karst_manifest::kinds::*;

/// Whom an object of Istio's API is for (`exportTo`).
pub(crate) struct Export<'a> {
    pub(crate) namespace: &'a str,
    /// Namespaces, `.` for its own, `*` for all.
    to: &'a [String],
}

impl<'a> Export<'a> {
    pub(crate) fn of_virtual_service(objects: &Objects<'a>, service: &'a VirtualService) -> Self {
        let said = &objects.mesh_config.default_virtual_service_export_to;
        let default = if said.is_empty() { &objects.mesh.virtual_services_are_for } else { said };
        Self::new(&service.metadata, &service.spec.export_to, default)
    }

    pub(crate) fn of_destination_rule(objects: &Objects<'a>, rule: &'a DestinationRule) -> Self {
        let said = &objects.mesh_config.default_destination_rule_export_to;
        let default = if said.is_empty() { &objects.mesh.destination_rules_are_for } else { said };
        Self::new(&rule.metadata, &rule.spec.export_to, default)
    }

    pub(crate) fn new(meta: &'a Meta, own: &'a [String], default: &'a [String]) -> Self {
        Self { namespace: &meta.namespace, to: if own.is_empty() { default } else { own } }
    }

    pub(crate) fn is_for_all(&self) -> bool {
        self.to.iter().any(|t| t == "*")
    }

    /// Is it for clients of this namespace?
    pub(crate) fn is_for(&self, namespace: &str) -> bool {
        self.is_for_all() || self.namespaces().any(|n| n == namespace)
    }

    /// The namespaces that it names.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &'a str> {
        let own = self.namespace;
        let named = self.to.iter().filter(|t| *t != "*" && *t != "~");
        named.map(move |t| if t == "." { own } else { t.as_str() })
    }
}
