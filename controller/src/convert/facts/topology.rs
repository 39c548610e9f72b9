//! What stands in front of the pods of gateways, and what these and waypoints tell on of clients (Istio's gatewayTopology): as the mesh
//! configuration has it, or, in place of that, the annotation `proxy.istio.io/config` of the pod (of what is deployed for a Gateway:
//! `spec.infrastructure.annotations`). An annotation that cannot be read makes the gateway trust nobody.

use crate::convert::{facts::waypoint, objects::Objects};
use karst_api::route as ir;
use karst_manifest::{
    kinds::{Gateway, Meta, Pod},
    mesh_config::{ForwardClientCertDetails, GatewayTopology, MeshConfigError, PROXY_CONFIG, ProxyConfig},
};

/// Annotation of a waypoint's Gateway, or of its class: callers' identities are told by x-forwarded-client-cert (Istio's).
const INCLUDE_IDENTITY: &str = "ambient.istio.io/xfcc-include-client-identity";

/// What a waypoint may be told of this: nothing where it is false.
pub(crate) fn is_at_waypoint(objects: &Objects<'_>, gateway: &Gateway) -> bool {
    let is_configured = gateway.spec.infrastructure.annotations.contains_key(PROXY_CONFIG);
    waypoint::is_waypoint(objects, gateway) && (is_configured || includes_identity(objects, gateway))
}

fn includes_identity(objects: &Objects<'_>, gateway: &Gateway) -> bool {
    let class = || objects.classes.get(gateway.spec.gateway_class_name.as_str()).map(|c| &c.metadata);
    let of = |meta: &Meta| meta.annotations.get(INCLUDE_IDENTITY).map(|v| v == "true");
    of(&gateway.metadata).or_else(|| of(class()?)).unwrap_or(false)
}

/// What a pod is told. `own`: the Gateway that it is deployed for; `listens`: it serves what gateways listen on.
///
/// # Errors
/// Why its annotation cannot be read, and what it is told then.
pub(crate) fn of_pod(
    objects: &Objects<'_>,
    pod: &Pod,
    own: Option<&Gateway>,
    listens: bool,
) -> Result<ir::Topology, (MeshConfigError, ir::Topology)> {
    let around = objects.mesh_config.default_config.gateway_topology.as_ref();
    let said = pod.metadata.annotations.get(PROXY_CONFIG).map(|text| ProxyConfig::read(text)).transpose();
    match (own.filter(|own| waypoint::is_waypoint(objects, own)), said) {
        // What the mesh configuration says is for gateways.
        (Some(waypoint), said) => {
            let closed = ir::ForwardClientCert::Sanitize as i32;
            let closed = ir::Topology { forward_client_cert: closed, ..Default::default() };
            let said = said.map_err(|e| (e, closed))?.and_then(|c| c.gateway_topology);
            let mode = match mode(said.as_ref()) {
                ir::ForwardClientCert::Standard if includes_identity(objects, waypoint) => {
                    ir::ForwardClientCert::SanitizeSet
                }
                mode => mode,
            };
            // What comes by a tunnel has no other header before it.
            let told = ir::Topology { proxy_protocol: false, ..topology(said.as_ref()) };
            Ok(ir::Topology { forward_client_cert: mode as i32, ..told })
        }
        (None, _) if !listens => Ok(ir::Topology::default()),
        (None, Ok(said)) => Ok(topology(said.and_then(|c| c.gateway_topology).as_ref().or(around))),
        (None, Err(e)) => {
            let forward_client_cert = ir::ForwardClientCert::Sanitize as i32;
            Err((e, ir::Topology { trusted_proxies: 0, forward_client_cert, ..topology(around) }))
        }
    }
}

/// What is said of a Gateway's annotation as it is written: it cannot be read.
pub(crate) fn warnings(gateway: &Gateway) -> Vec<String> {
    let said = gateway.spec.infrastructure.annotations.get(PROXY_CONFIG).map(|text| ProxyConfig::read(text));
    let error = said.and_then(Result::err);
    error.map(|e| format!("spec.infrastructure.annotations[{PROXY_CONFIG}]: {e}")).into_iter().collect()
}

fn topology(said: Option<&GatewayTopology>) -> ir::Topology {
    let Some(topology) = said else { return ir::Topology::default() };
    ir::Topology {
        trusted_proxies: topology.num_trusted_proxies,
        forward_client_cert: mode(said) as i32,
        proxy_protocol: topology.proxy_protocol.is_some(),
    }
}

fn mode(said: Option<&GatewayTopology>) -> ir::ForwardClientCert {
    match said.map(|t| t.forward_client_cert_details).unwrap_or_default() {
        ForwardClientCertDetails::Undefined => ir::ForwardClientCert::Standard,
        ForwardClientCertDetails::Sanitize => ir::ForwardClientCert::Sanitize,
        ForwardClientCertDetails::ForwardOnly => ir::ForwardClientCert::ForwardOnly,
        ForwardClientCertDetails::AppendForward => ir::ForwardClientCert::AppendForward,
        ForwardClientCertDetails::SanitizeSet => ir::ForwardClientCert::SanitizeSet,
        ForwardClientCertDetails::AlwaysForwardOnly => ir::ForwardClientCert::AlwaysForwardOnly,
    }
}
