//! What of the suite is declared: profiles and features. It runs a test if all of the test's features are declared, and passes over names
//! that it does not know ([`unknown`] finds these).

/// What gateways do.
const GATEWAYS: [&str; 54] = [
    "Gateway",
    "ReferenceGrant",
    "HTTPRoute",
    "GRPCRoute",
    "TLSRoute",
    "TCPRoute",
    "UDPRoute",
    "ListenerSet",
    "TLSRouteModeTerminate",
    "TLSRouteModeMixed",
    "GatewayPort8080",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructure",
    "GatewayAddressEmpty",
    "GatewayStaticAddresses",
    "GatewayRouteHostnameIntersectionPrecedence",
    // Client certificates at listeners (spec.tls.frontend), and connections without a valid one.
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    // The gateway's own certificate for backends (spec.tls.backend).
    "GatewayBackendClientCertificate",
    // Of the experimental channel, and no test asks for them. Roots of the whole cluster.
    "ClusterTrustBundle",
    // Where addresses are reached from.
    "GatewayAddressRoutability",
    "GatewayAddressRoutabilityCluster",
    // Filters of listeners: who is asked about each of their requests.
    "GatewayListenerFilters",
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

/// The tests of `cargo xtask test`: of each kind of route and of the mesh what most else of it stands on, and of what was built last the
/// statuses that change under way. With all their waiting and cleaning up they are to take ten minutes at most.
const SHORT: [&str; 28] = [
    "BackendTLSPolicy",
    "GRPCRouteListenerHostnameMatching",
    "GRPCRouteWeight",
    "GatewayFrontendClientCertificateValidation",
    "GatewayStaticAddresses",
    "GatewayWithAttachedRoutes",
    "HTTPRouteCORS",
    "HTTPRouteListenerHostnameMatching",
    "HTTPRouteMatching",
    "HTTPRouteReferenceGrant",
    "HTTPRouteRetry",
    "HTTPRouteSimpleSameNamespace",
    "HTTPRouteTimeoutBackendRequest",
    "HTTPRouteWeight",
    "ListenerSetHTTPRouting",
    "ListenerSetHostnameConflict",
    "ListenerSetReferenceGrant",
    "MeshBasic",
    "MeshConsumerRoute",
    "MeshGRPCRouteWeight",
    "MeshHTTPRouteMatching",
    "MeshHTTPRouteWeight",
    "MeshPorts",
    "MeshTrafficSplit",
    "TCPRouteWeightedRouting",
    "TLSRouteSimpleSameNamespace",
    "TLSRouteTerminateSimpleSameNamespace",
    "UDPRoute",
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
    let profiles = vec!["GATEWAY-HTTP", "GATEWAY-GRPC", "GATEWAY-TLS", "GATEWAY-TCP", "GATEWAY-UDP"];
    Declared { profiles, features: GATEWAYS.to_vec() }
}

/// Both, in one report.
pub(super) fn all() -> Declared {
    let Declared { mut profiles, mut features } = gateways();
    let mesh = mesh();
    profiles.extend(mesh.profiles);
    features.extend(mesh.features.into_iter().filter(|name| !GATEWAYS.contains(name)));
    Declared { profiles, features }
}

/// The tests that are left out of the short run, by the suite's sources (`tests`).
///
/// # Errors
/// Names of tests of the short run that the suite does not have.
pub(super) fn left_out<'a>(sources: &'a str) -> Result<Vec<&'a str>, Vec<&'static str>> {
    let named = |line: &'a str| line.split_once("ShortName:")?.1.split('"').nth(1);
    let all: Vec<&str> = sources.lines().filter_map(named).collect();
    let missing: Vec<&'static str> = SHORT.into_iter().filter(|name| !all.contains(name)).collect();
    match missing.is_empty() {
        true => Ok(all.into_iter().filter(|name| !SHORT.contains(name)).collect()),
        false => Err(missing),
    }
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
    fn nothing_is_declared_twice() {
        for mut features in [mesh().features, gateways().features, all().features] {
            let count = features.len();
            features.sort_unstable();
            features.dedup();
            assert_eq!(features.len(), count, "{features:?}");
        }
    }

    #[test]
    fn one_report_has_all_profiles() {
        let Declared { profiles, features } = all();
        assert_eq!(profiles.len(), 7, "{profiles:?}");
        for name in GATEWAYS.iter().chain(&MESH) {
            assert!(features.contains(name), "{name}");
        }
    }

    #[test]
    fn of_the_short_run_the_others_are_left_out() {
        let line = |name: &str| format!("\tShortName:   \"{name}\",\n\tDescription: \"x\",\n");
        let all: String = SHORT.into_iter().chain(["HTTPRouteLong", "MeshLong"]).map(line).collect();
        assert_eq!(left_out(&all), Ok(vec!["HTTPRouteLong", "MeshLong"]));
        let less = all.replace("\"MeshBasic\"", "\"MeshBasics\"");
        assert_eq!(left_out(&less), Err(vec!["MeshBasic"]));
    }

    #[test]
    fn a_name_that_the_suite_does_not_have_is_found() {
        let sources =
            "\tSupportMesh FeatureName = \"Mesh\"\n\tSupportMeshConsumerRoute FeatureName = \"MeshConsumerRoute\"\n";
        let declared = Declared { profiles: vec![], features: vec!["Mesh", "MeshConsumer", "MeshConsumerRoute"] };
        assert_eq!(unknown(&declared, sources), ["MeshConsumer"]);
    }
}
