//! What of the suite is declared: profiles and features. It runs a test if all of the test's features are declared, and passes over names
//! that it does not know ([`unknown`] finds these).

/// Features of gateways that are built apart from the rest: true once the product has them. What is false is not declared: its tests do
/// not run, and the report lists it as unsupported. `UDPRoute` brings the profile GATEWAY-UDP with it.
const ARRIVING: [(&str, bool); 7] = [
    // ListenerSets: listeners beside those of the Gateway.
    ("ListenerSet", true),
    // spec.addresses with several, usable or not.
    ("GatewayStaticAddresses", true),
    // Of the routes at a listener the one with the more specific host name of its own comes first.
    ("GatewayRouteHostnameIntersectionPrecedence", true),
    // Client certificates at listeners (spec.tls.frontend), and connections without a valid one.
    ("GatewayFrontendClientCertificateValidation", true),
    ("GatewayFrontendClientCertificateValidationInsecureFallback", true),
    // The gateway's own certificate for backends (spec.tls.backend).
    ("GatewayBackendClientCertificate", true),
    // UDP listeners.
    ("UDPRoute", true),
];

/// What gateways do besides. Not among these, because their fields are in experimental CRDs only and no test asks for them:
/// GatewayAddressRoutability, GatewayAddressRoutabilityCluster, GatewayListenerFilters, ClusterTrustBundle.
const GATEWAYS: [&str; 43] = [
    "Gateway",
    "ReferenceGrant",
    "HTTPRoute",
    "GRPCRoute",
    "TLSRoute",
    "TCPRoute",
    "TLSRouteModeTerminate",
    "TLSRouteModeMixed",
    "GatewayPort8080",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructure",
    "GatewayAddressEmpty",
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRouteNamedRouteRule",
    "GRPCRouteRequestHeaderModifier",
    "HTTPRouteParentRefPort",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendURLRewrite",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteMethodMatching",
    "HTTPRouteResponseHeaderModification",
    "HTTPRoutePortRedirect",
    "HTTPRouteSchemeRedirect",
    "HTTPRoutePathRedirect",
    "HTTPRouteHostRewrite",
    "HTTPRoutePathRewrite",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteBackendTimeout",
    "HTTPRouteRetryCodes",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteCORS",
    "HTTPRouteNamedRouteRule",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

/// The mesh's extended features, all nine, and those without which some of its tests do not run, though no profile counts them.
const MESH: [&str; 19] = [
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRoute",
    "GRPCRoute",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "GRPCRouteNamedRouteRule",
    "HTTPRouteNamedRouteRule",
];

/// What the suite is told.
pub(super) struct Declared {
    pub(super) profiles: Vec<&'static str>,
    pub(super) features: Vec<&'static str>,
}

pub(super) fn mesh() -> Declared {
    Declared { profiles: vec!["MESH-HTTP", "MESH-GRPC"], features: MESH.to_vec() }
}

pub(super) fn gateways() -> Declared {
    gateways_with(&ARRIVING)
}

fn gateways_with(arriving: &[(&'static str, bool)]) -> Declared {
    let there = arriving.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name);
    let features: Vec<&str> = GATEWAYS.into_iter().chain(there).collect();
    let mut profiles = vec!["GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-TLS", "GATEWAY-TCP"];
    if features.contains(&"UDPRoute") {
        profiles.push("GATEWAY-UDP");
    }
    Declared { profiles, features }
}

/// Features that are not among those of the suite, by its sources (`pkg/features`).
pub(super) fn unknown(declared: &Declared, sources: &str) -> Vec<&'static str> {
    let is_there = |name: &str| sources.contains(&format!("= \"{name}\"\n"));
    declared.features.iter().copied().filter(|name| !is_there(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_has_arrived_is_declared_with_its_profile() {
        let none = gateways_with(&[("ListenerSet", false), ("UDPRoute", false)]);
        assert_eq!(none.features, GATEWAYS);
        assert!(!none.profiles.contains(&"GATEWAY-UDP"));
        let sets = gateways_with(&[("ListenerSet", true), ("UDPRoute", false)]);
        assert_eq!((sets.features.len(), sets.profiles.len()), (GATEWAYS.len() + 1, 4));
        let datagrams = gateways_with(&[("ListenerSet", true), ("UDPRoute", true)]);
        assert!(datagrams.features.contains(&"UDPRoute") && datagrams.profiles.contains(&"GATEWAY-UDP"));
    }

    #[test]
    fn nothing_is_declared_twice() {
        let everything: Vec<(&str, bool)> = ARRIVING.iter().map(|(name, _)| (*name, true)).collect();
        for mut features in [mesh().features, gateways_with(&everything).features] {
            let count = features.len();
            features.sort_unstable();
            features.dedup();
            assert_eq!(features.len(), count, "{features:?}");
        }
    }

    #[test]
    fn a_name_that_the_suite_does_not_have_is_found() {
        let sources =
            "\tSupportMesh FeatureName = \"Mesh\"\n\tSupportMeshConsumerRoute FeatureName = \"MeshConsumerRoute\"\n";
        let declared = Declared { profiles: vec![], features: vec!["Mesh", "MeshConsumer", "MeshConsumerRoute"] };
        assert_eq!(unknown(&declared, sources), ["MeshConsumer"]);
    }
}
