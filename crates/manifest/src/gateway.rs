//! The Gateway API's gateways and their classes (v1); its routes are in [`crate::gatewayapi`].
#![allow(missing_docs, reason = "names and meaning are those of the Kubernetes, Gateway and Istio APIs")]

use crate::{
    gatewayapi::{ExtensionRef, ExternalAuth},
    meta::{Labels, Meta, Status, StatusCondition},
};
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::Value;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayClass {
    pub metadata: Meta,
    pub spec: GatewayClassSpec,
    pub status: Status,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayClassSpec {
    pub controller_name: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Gateway {
    pub metadata: Meta,
    pub spec: GatewaySpec,
    pub status: GatewayStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewaySpec {
    pub gateway_class_name: String,
    pub listeners: Vec<Listener>,
    pub addresses: Vec<GatewayAddress>,
    pub infrastructure: Infrastructure,
    pub tls: GatewayTls,
    pub allowed_listeners: AllowedListeners,
}
/// Whose ListenerSets may add listeners.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AllowedListeners {
    pub namespaces: ListenerNamespaces,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ListenerNamespaces {
    /// All, Same, Selector, None (the default).
    pub from: String,
    pub selector: Option<LabelSelector>,
}
/// More listeners of a Gateway, which may be somebody else's (GEP-1713).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ListenerSet {
    pub metadata: Meta,
    pub spec: ListenerSetSpec,
    pub status: ListenerSetStatus,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListenerSetSpec {
    pub parent_ref: GatewayRef,
    pub listeners: Vec<Listener>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ListenerSetStatus {
    pub conditions: Vec<StatusCondition>,
    pub listeners: Vec<ListenerStatus>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayTls {
    pub frontend: FrontendTls,
    pub backend: GatewayBackendTls,
}
/// What is shown to backends that TLS is spoken to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayBackendTls {
    pub client_certificate_ref: Option<SecretRef>,
}
/// What is asked of clients by listeners that end TLS.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FrontendTls {
    pub default: FrontendTlsConfig,
    /// In place of the default at these ports.
    pub per_port: Vec<FrontendTlsPort>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FrontendTlsConfig {
    /// None: clients are not asked for certificates.
    pub validation: Option<FrontendValidation>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FrontendValidation {
    pub ca_certificate_refs: Vec<CaCertificateRef>,
    /// AllowValidOnly (the default), AllowInsecureFallback.
    pub mode: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct CaCertificateRef {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub namespace: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FrontendTlsPort {
    pub port: u16,
    pub tls: FrontendTlsConfig,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Listener {
    pub name: String,
    pub hostname: Option<String>,
    pub port: u16,
    pub protocol: String,
    pub tls: Option<ListenerTls>,
    pub allowed_routes: AllowedRoutes,
    /// Gateway API's experimental channel.
    pub filters: Option<ListenerFilters>,
}
/// What each request of a listener passes before one of its routes is chosen (GEP-5224). What cannot be read of it is a matter of the
/// listener, not of its whole Gateway.
#[derive(Clone, Debug, PartialEq)]
pub enum ListenerFilters {
    Requests(Vec<ListenerFilter>),
    /// Why they cannot be read.
    Unread(String),
}
impl<'de> Deserialize<'de> for ListenerFilters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Known {
            requests: Vec<ListenerFilter>,
        }
        let raw = Value::deserialize(deserializer)?;
        Ok(match serde_json::from_value::<Known>(raw) {
            Ok(known) => Self::Requests(known.requests),
            Err(error) => Self::Unread(error.to_string()),
        })
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerFilter {
    /// ExternalAuth, ExtensionRef.
    #[serde(rename = "type")]
    pub kind: String,
    pub external_auth: Option<ExternalAuth>,
    pub extension_ref: Option<ExtensionRef>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListenerTls {
    /// Terminate (the default), Passthrough.
    pub mode: Option<String>,
    pub certificate_refs: Vec<SecretRef>,
    pub options: Labels,
    /// Gateway API's experimental channel, before 1.4: whether there is one; what it says is not read.
    pub frontend_validation: Option<IgnoredAny>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SecretRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub name: String,
    pub namespace: Option<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AllowedRoutes {
    pub namespaces: RouteNamespaces,
    pub kinds: Vec<RouteKind>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RouteKind {
    pub group: Option<String>,
    pub kind: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RouteNamespaces {
    /// All, Same (the default), Selector, None.
    pub from: String,
    pub selector: Option<LabelSelector>,
}
/// Kubernetes': one that is empty selects everything, one that is not there nothing.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    pub match_labels: Labels,
    pub match_expressions: Vec<Requirement>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}
impl LabelSelector {
    /// Kubernetes' meaning: all of it must hold; an unknown operator never does.
    pub fn selects(&self, labels: &Labels) -> bool {
        let holds = |r: &Requirement| {
            let value = labels.get(&r.key);
            match r.operator.as_str() {
                "In" => value.is_some_and(|value| r.values.contains(value)),
                "NotIn" => value.is_none_or(|value| !r.values.contains(value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        };
        self.match_labels.iter().all(|(k, value)| labels.get(k) == Some(value))
            && self.match_expressions.iter().all(holds)
    }
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Infrastructure {
    pub labels: Labels,
    pub annotations: Labels,
    /// What is deployed, changed.
    pub parameters_ref: Option<ParametersRef>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ParametersRef {
    pub group: String,
    pub kind: String,
    pub name: String,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GatewayStatus {
    pub addresses: Vec<GatewayAddress>,
    pub conditions: Vec<StatusCondition>,
    pub listeners: Vec<ListenerStatus>,
    pub attached_listener_sets: u32,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListenerStatus {
    pub name: String,
    pub attached_routes: u32,
    pub supported_kinds: Vec<RouteKind>,
    pub conditions: Vec<StatusCondition>,
}
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GatewayAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub value: String,
    /// Gateway API's experimental channel: where it is reached from (GEP-5093).
    pub routability: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_that_cannot_be_read_are_no_reason_to_pass_over_a_gateway() {
        let of = |filters: Value| -> Option<ListenerFilters> {
            let spec = json!({ "listeners": [{ "name": "l", "port": 80, "protocol": "HTTP", "filters": filters }] });
            serde_json::from_value::<GatewaySpec>(spec).unwrap().listeners.remove(0).filters
        };
        let asked = json!({ "type": "ExternalAuth", "externalAuth": { "protocol": "GRPC", "backendRef": { "name": "s", "port": 9 } } });
        let Some(ListenerFilters::Requests(all)) = of(json!({ "requests": [asked, { "type": "New" }] })) else {
            panic!("not read")
        };
        assert_eq!((all.len(), all[1].kind.as_str()), (2, "New"));
        assert_eq!(all[0].external_auth.as_ref().unwrap().backend_ref.port, Some(9));
        assert_eq!(of(json!({})), Some(ListenerFilters::Requests(vec![])));
        assert_eq!(of(Value::Null), None);
        for new in
            [json!({ "connection": [] }), json!({ "requests": [{ "type": "ExternalAuth", "isNew": 1 }] }), json!([1])]
        {
            assert!(matches!(of(new.clone()), Some(ListenerFilters::Unread(_))), "{new}");
        }
    }
}
