//! Codes of refusals and warnings. A text ends in its code, `… [KARST-0042]`: the wording may improve, the code stays. It says what
//! is wrong, not where: many texts have the same. A code is never given to another meaning; one that is not used any more is listed
//! in [`RETIRED`]. `every_code_is_used_and_documented` (controller) compares the list with the sources and docs/refused.md.

const START: &str = "[KARST-";

/// All codes and their meanings, in their order.
pub const CODES: &[(u16, &str)] = &[
    (1, "the object does not match its schema: an unknown field, or a value of another type"),
    (2, "a document has no apiVersion or no kind"),
    (3, "a file contains a List"),
    (4, "the name is not a DNS name"),
    (5, "the object is defined twice in the manifests"),
    (6, "a manifest cannot be read"),
    (7, "a kind of Istio's that this mesh cannot honour"),
    (8, "a kind of Istio's that has no effect in this mesh"),
    (10, "a required field is missing or empty"),
    (12, "a list contains an empty value"),
    (13, "a value is duplicated"),
    (14, "fields that exclude each other are set"),
    (15, "exactly one of several fields must be set"),
    (16, "the value is not one of the supported ones"),
    (17, "a number, time or length is out of range"),
    (18, "a percentage is out of range"),
    (19, "not a port"),
    (20, "not a duration"),
    (21, "neither an IP address nor a CIDR range"),
    (22, "not a host name or address"),
    (23, "not a regular expression (RE2 syntax)"),
    (24, "not the name or value of a header"),
    (25, "an operator (%...%) in the value of a header is invalid or unsupported"),
    (26, "not a status code"),
    (27, "not base64"),
    (28, "the path of a file where a Secret is needed"),
    (
        29,
        "the field is not supported in this version, and ignoring it would change what is allowed or where traffic goes",
    ),
    (30, "the field has no effect in this version"),
    (31, "the field's name is deprecated"),
    (32, "not the name of a service account, or not a locality"),
    (102, "a DENY or CUSTOM policy without rules"),
    (103, "not a value of istio.io/dry-run"),
    (104, "the target's kind or group is not supported"),
    (105, "a GatewayClass is a target outside of the root namespace"),
    (106, "the target is in another namespace"),
    (107, "a selector contains a wildcard"),
    (108, "not a service account"),
    (109, "a source, operation or condition is empty"),
    (110, "the key of a condition is unknown"),
    (111, "a '*' is where it cannot be matched"),
    (112, "not a path template"),
    (113, "no path can match the value"),
    (114, "ztunnel cannot evaluate the rule's HTTP conditions"),
    (115, "the policy is in dry-run mode"),
    (116, "portLevelMtls without a selector, or in the root namespace"),
    (117, "AUDIT has no effect at ztunnel"),
    (120, "a RequestAuthentication without a target has no effect at waypoints"),
    (121, "jwksUri is invalid, or its server is not trusted"),
    (122, "not a usable key set"),
    (123, "jwksUri leads to an address that is not allowed"),
    (124, "not the name of a trust domain"),
    (125, "the discovery document of an issuer cannot be used"),
    (130, "ztunnel cannot ask a provider of external authorization"),
    (131, "the provider is not in extensionProviders, or decides about no requests"),
    (132, "a provider of external authorization is asked before tokens are verified"),
    (133, "a route asks about claims, and no RequestAuthentication verifies tokens"),
    (201, "wildcard hosts do not fit the resolution"),
    (202, "address ranges do not fit the resolution"),
    (203, "endpoints do not fit the resolution"),
    (204, "an endpoint has a port that the ServiceEntry does not have"),
    (205, "a Unix socket cannot be reached through the mesh"),
    (206, "exportTo names single namespaces, which are not distinguished"),
    (207, "hosts that cannot be told apart"),
    (208, "the protocol does not fit resolution DYNAMIC_DNS"),
    (209, "resolution DYNAMIC_DNS without a waypoint"),
    (210, "an older ServiceEntry has the same host"),
    (211, "an address that no endpoint can have, such as one of loopback"),
    (301, "the host \"*\" is not supported within the mesh"),
    (302, "a delegate delegates"),
    (303, "all weights are 0"),
    (304, "the condition of a retry is unknown"),
    (307, "a Service, host or filter is not found"),
    (308, "a Service or host does not have the port"),
    (309, "a reference to another namespace is not permitted"),
    (310, "the kind of a reference is not supported"),
    (312, "the Gateway has no such listener"),
    (313, "no listener allows the route"),
    (314, "no listener has a host name of the route"),
    (316, "no Gateway accepts a host of the VirtualService"),
    (317, "exportTo excludes the gateways"),
    (319, "the route cannot be read"),
    (320, "an older policy applies to the same target"),
    (321, "a Service of type ExternalName is not supported as a backend, parent or target"),
    (322, "endpoints of a UDPRoute require mutual TLS"),
    (323, "endpoints of a UDPRoute are gateways"),
    (401, "not a locality"),
    (402, "the weights of localities do not add up to 100"),
    (403, "not a failover"),
    (404, "not a size of a Maglev table"),
    (501, "TLS settings do not fit the protocol"),
    (502, "the TLS version is not supported"),
    (503, "a Secret, ConfigMap or ClusterTrustBundle is not found"),
    (504, "a Secret, ConfigMap or ClusterTrustBundle lacks a key, or none is named"),
    (505, "a certificate or key cannot be used"),
    (506, "client certificates are not supported by this listener"),
    (507, "a port is used with another protocol"),
    (508, "listeners conflict"),
    (509, "no Service has the port"),
    (510, "the Gateway's Service or pods are not ready"),
    (511, "an object of the same name is not managed by Karst"),
    (512, "the kind of route is not supported by the listener"),
    (513, "the type of address is not supported"),
    (514, "listeners of the Gateway are not valid"),
    (518, "the Gateway does not take the ListenerSet"),
    (601, "not a CEL expression that can be evaluated"),
    (602, "not the name of a label"),
    (603, "REMOVE with a value"),
    (604, "the metric is not reported by waypoints and gateways"),
    (605, "the provider is not in extensionProviders, or takes no spans"),
    (606, "the provider is not in extensionProviders, or takes no access log"),
    (701, "the service uses no waypoint"),
    (702, "the waypoint does not exist or is not ready"),
    (703, "the waypoint does not accept this traffic"),
    (704, "the waypoint does not allow the namespace"),
    (705, "a waypoint cannot have the listener"),
    (706, "the canary waypoint cannot be used"),
    (707, "istio-injection has no effect"),
    (708, "parameters of a Gateway cannot be read"),
    (709, "parameters of a Gateway grant a privilege"),
    (710, "the mesh configuration cannot be used"),
    (711, "the object is for another revision of the control plane"),
    (712, "the mesh configuration has an unknown field, which has no effect"),
    (721, "no webhook judges objects without the label istio.io/rev"),
    (722, "no webhook judges objects with a tag as the label istio.io/rev"),
    (801, "the time of karst explain --at is neither a time nor an age"),
    (802, "the time of karst explain --at is in the future"),
    (803, "the configuration of a time is not kept any more, or not yet"),
    (900, "the object is always rejected: a probe of the webhook"),
    (911, "the head of a request is larger than it may be"),
    (912, "the body of a request is larger than it may be"),
    (913, "the body of a gRPC-Web request is not base64"),
];

/// Codes that were given once, and are not used any more.
pub const RETIRED: &[u16] = &[101];

/// The code at the end of a text; or within it, where something is said after it (the last one counts).
pub fn of(text: &str) -> Option<u16> {
    let (_, rest) = text.rsplit_once(START)?;
    let (digits, _) = rest.split_once(']')?;
    if digits.len() == 4 { digits.parse().ok() } else { None }
}

/// A text of somebody else's (a parser's) with this code, unless it has one.
pub(crate) fn with(code: u16, text: String) -> String {
    if of(&text).is_some() { text } else { format!("{text} {START}{code:04}]") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_order() {
        let all: Vec<u16> = CODES.iter().map(|(c, _)| *c).collect();
        assert!(all.windows(2).all(|w| w[0] < w[1]) && all.iter().all(|c| (1..=9999).contains(c)), "{all:?}");
        assert!(RETIRED.iter().all(|r| !all.contains(r)), "a code is never used again");
        assert!(CODES.iter().all(|(_, meaning)| !meaning.is_empty() && !meaning.contains(['\n', '[', ']'])));
    }

    #[test]
    fn a_text_has_one_code() {
        assert_eq!(of("is empty [KARST-0010]"), Some(10));
        assert_eq!(of("is empty [KARST-0010]; it is not enforced"), Some(10));
        for none in ["is empty", "KARST-0010", "[KARST-10]", "[KARST-001x]", "[KARST-0010", "[KARST-00100]"] {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(with(1, "unknown field".into()), "unknown field [KARST-0001]");
        assert_eq!(with(1, "invalid port [KARST-0019]".into()), "invalid port [KARST-0019]");
    }
}
