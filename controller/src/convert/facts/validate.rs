//! What is wrong with ServiceEntries, WorkloadEntries and Istio's Gateways by themselves. Rules: Istio's validation (reference
//! control-plane §9), texts our own.

use crate::convert::objects::FieldError;
use karst_core::Cidr;
use karst_manifest::{
    kinds::*,
    traffic::{GwServer, GwTls, IstioGatewaySpec},
};
use std::{collections::BTreeSet, net::IpAddr};

/// Protocols of ports (Istio's list).
const PROTOCOLS: [&str; 13] = [
    "HTTP",
    "HTTPS",
    "HTTP2",
    "GRPC",
    "GRPC-WEB",
    "TCP",
    "TLS",
    "UDP",
    "MONGO",
    "REDIS",
    "MYSQL",
    "HBONE",
    "HTTP_PROXY",
];

fn bad(field: impl Into<String>, text: impl Into<String>) -> FieldError {
    (field.into(), text.into())
}

/// A DNS name, as host names are written; underscores are in use.
fn is_host(s: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    !s.is_empty() && s.len() <= 253 && s.strip_suffix('.').unwrap_or(s).split('.').all(label)
}

fn is_wildcard(s: &str) -> bool {
    s.starts_with('*')
}

/// What is wrong with an endpoint's address; an empty one is found elsewhere.
pub(crate) fn address(a: &str, at: &str) -> Option<FieldError> {
    if a.is_empty() || a.parse::<IpAddr>().is_ok() || is_host(a) {
        return None;
    }
    if a.starts_with("unix:") {
        return Some(bad(
            at,
            format!(
                "Unix socket {a:?} cannot be reached through the mesh: use an IP address or a host name [KARST-0205]"
            ),
        ));
    }
    Some(bad(at, format!("{a:?} is neither an IP address nor a host name [KARST-0022]")))
}

pub(crate) fn service_entry(e: &ServiceEntry) -> Vec<FieldError> {
    let s = &e.spec;
    let mut out = vec![];
    let mut hosts = BTreeSet::new();
    for (i, h) in s.hosts.iter().enumerate() {
        let at = format!("spec.hosts[{i}]");
        if h == "*" {
            continue; // found where hosts are compiled
        }
        if !is_host(h.strip_prefix("*.").unwrap_or(h)) {
            out.push(bad(
                &at,
                format!("{h:?} is neither a DNS name nor a wildcard such as *.example.com [KARST-0022]"),
            ));
        } else if !hosts.insert(h) {
            out.push(bad(&at, format!("{h:?} is duplicated [KARST-0013]")));
        }
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (i, p) in s.ports.iter().enumerate() {
        if p.number == 0 {
            out.push(bad(format!("spec.ports[{i}].number"), "invalid port 0: use 1 to 65535 [KARST-0019]"));
        }
        if !names.insert(&p.name) {
            out.push(bad(format!("spec.ports[{i}].name"), format!("{:?} is duplicated [KARST-0013]", p.name)));
        }
        if !numbers.insert(p.number) {
            out.push(bad(format!("spec.ports[{i}].number"), format!("{} is duplicated [KARST-0013]", p.number)));
        }
        let protocol = p.protocol.to_ascii_uppercase();
        if !protocol.is_empty() && !PROTOCOLS.contains(&protocol.as_str()) {
            out.push(bad(
                format!("spec.ports[{i}].protocol"),
                format!("unsupported value {:?}: use one of {} [KARST-0016]", p.protocol, PROTOCOLS.join(", ")),
            ));
        }
    }
    for (i, e) in s.endpoints.iter().enumerate() {
        for name in e.ports.keys().filter(|n| !names.contains(n)) {
            out.push(bad(
                format!("spec.endpoints[{i}].ports[{name}]"),
                "is not the name of a port in spec.ports [KARST-0204]",
            ));
        }
    }
    out.extend(resolution(s));
    out
}

fn resolution(s: &ServiceEntrySpec) -> Vec<FieldError> {
    let mut out = vec![];
    let kind = match s.resolution.as_str() {
        "" => "NONE",
        k => k,
    };
    let range = s.addresses.iter().position(|a| a.parse::<Cidr>().is_ok_and(|c| !c.is_single()));
    if let Some(i) = range
        && !matches!(kind, "NONE" | "STATIC")
    {
        out.push(bad(
            format!("spec.addresses[{i}]"),
            format!("range {:?} cannot be combined with resolution {kind}: specify single addresses, or use NONE or STATIC [KARST-0202]", s.addresses[i]),
        ));
    }
    for (i, e) in s.endpoints.iter().enumerate() {
        if kind != "STATIC" {
            out.extend(address(&e.address, &format!("spec.endpoints[{i}].address")));
        }
    }
    let wildcard = s.hosts.iter().position(|h| h != "*" && is_wildcard(h));
    let selects = s.workload_selector.is_some();
    match kind {
        "DNS" | "DNS_ROUND_ROBIN" => {
            if let Some(i) = wildcard
                && s.endpoints.is_empty()
                && !selects
            {
                out.push(bad(format!("spec.hosts[{i}]"), format!("wildcard {:?} cannot be resolved: specify endpoints, or use resolution NONE or DYNAMIC_DNS [KARST-0201]", s.hosts[i])));
            }
            if kind == "DNS_ROUND_ROBIN" && s.endpoints.len() > 1 {
                out.push(bad(
                    "spec.endpoints",
                    "has more than one endpoint, but resolution DNS_ROUND_ROBIN supports only one: use DNS [KARST-0203]",
                ));
            }
        }
        "DYNAMIC_DNS" => {
            if let Some(i) = s.hosts.iter().position(|h| !is_wildcard(h)) {
                out.push(bad(
                    format!("spec.hosts[{i}]"),
                    format!(
                        "{:?} is not a wildcard, which resolution DYNAMIC_DNS requires: use DNS [KARST-0201]",
                        s.hosts[i]
                    ),
                ));
            }
            if !s.endpoints.is_empty() {
                out.push(bad(
                    "spec.endpoints",
                    "must be empty with resolution DYNAMIC_DNS, which resolves the host of each request [KARST-0203]",
                ));
            }
            for (i, p) in s.ports.iter().enumerate() {
                if !matches!(p.protocol.to_ascii_uppercase().as_str(), "HTTP" | "HTTP2" | "GRPC" | "HTTPS" | "TLS") {
                    out.push(bad(
                        format!("spec.ports[{i}].protocol"),
                        format!("protocol {:?} carries no host name, which resolution DYNAMIC_DNS requires: use HTTP or TLS [KARST-0208]", p.protocol),
                    ));
                }
            }
        }
        _ => {}
    }
    if s.hosts.len() > 1 && s.addresses.is_empty() {
        let tcp = s
            .ports
            .iter()
            .position(|p| matches!(p.protocol.to_ascii_uppercase().as_str(), "TCP" | "MONGO" | "REDIS" | "MYSQL"));
        if let Some(i) = tcp
            && kind == "NONE"
        {
            out.push(bad(format!("spec.ports[{i}].protocol"), format!("protocol {:?} carries no host name, so several hosts cannot be distinguished without spec.addresses: specify addresses, or create one ServiceEntry per host [KARST-0207]", s.ports[i].protocol)));
        }
    }
    out
}

/// Protocols of servers of a gateway.
const SERVER_PROTOCOLS: [&str; 8] = ["HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TCP", "TLS", "MONGO"];

/// What is wrong with Istio's Gateway.
pub(crate) fn istio_gateway(s: &IstioGatewaySpec) -> Vec<FieldError> {
    if s.servers.is_empty() {
        return vec![bad("spec.servers", "is empty: specify at least one server [KARST-0010]")];
    }
    s.servers.iter().enumerate().flat_map(|(i, x)| server(x, &format!("spec.servers[{i}]"))).collect()
}

/// What is wrong with one of its servers.
pub(crate) fn server(s: &GwServer, at: &str) -> Vec<FieldError> {
    let mut out = vec![];
    if s.port.number == 0 {
        out.push(bad(format!("{at}.port.number"), "invalid port 0: use 1 to 65535 [KARST-0019]"));
    }
    let protocol = s.port.protocol.to_ascii_uppercase();
    if !SERVER_PROTOCOLS.contains(&protocol.as_str()) {
        let text =
            format!("unsupported value {:?}: use one of {} [KARST-0016]", s.port.protocol, SERVER_PROTOCOLS.join(", "));
        out.push(bad(format!("{at}.port.protocol"), text));
    }
    if s.hosts.is_empty() {
        out.push(bad(format!("{at}.hosts"), "is empty: specify at least one host, or \"*\" [KARST-0010]"));
    }
    for (i, h) in s.hosts.iter().enumerate() {
        let name = h.split_once('/').map_or(h.as_str(), |(_, n)| n);
        if name != "*" && !is_host(name.strip_prefix("*.").unwrap_or(name)) {
            let text = format!("invalid host {h:?}: use NAME, *.DOMAIN, \"*\" or NAMESPACE/NAME [KARST-0022]");
            out.push(bad(format!("{at}.hosts[{i}]"), text));
        }
    }
    if !s.bind.is_empty() {
        out.push(bad(
            format!("{at}.bind"),
            "is not supported in this version: gateways listen on all their addresses [KARST-0029]",
        ));
    }
    let secure = matches!(protocol.as_str(), "HTTPS" | "TLS");
    let Some(t) = &s.tls else {
        if secure {
            out.push(bad(format!("{at}.tls"), format!("is missing: protocol {protocol} requires it [KARST-0010]")));
        }
        return out;
    };
    out.extend(server_tls(t, &protocol, &format!("{at}.tls")));
    out
}

fn server_tls(t: &GwTls, protocol: &str, at: &str) -> Vec<FieldError> {
    let mut out = vec![];
    let mode = t.mode.as_deref();
    if matches!(protocol, "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB") {
        if mode.is_some() {
            out.push(bad(
                format!("{at}.mode"),
                format!("cannot be combined with protocol {protocol}: use HTTPS [KARST-0501]"),
            ));
        }
        return out;
    }
    match mode.unwrap_or("PASSTHROUGH") {
        "PASSTHROUGH" => return out,
        "SIMPLE" | "MUTUAL" | "OPTIONAL_MUTUAL" => {}
        other => {
            let text = format!(
                "{other} is not supported in this version: use SIMPLE, MUTUAL, OPTIONAL_MUTUAL or PASSTHROUGH [KARST-0016]"
            );
            out.push(bad(format!("{at}.mode"), text));
        }
    }
    for (there, field) in [
        (!t.server_certificate.is_empty(), "serverCertificate"),
        (!t.private_key.is_empty(), "privateKey"),
        (!t.ca_certificates.is_empty(), "caCertificates"),
        (!t.tls_certificates.is_empty(), "tlsCertificates"),
    ] {
        if there {
            out.push(bad(format!("{at}.{field}"), "file paths are not supported: use credentialName [KARST-0028]"));
        }
    }
    // Leaving them out would let more in than was meant.
    for (there, field) in [
        (!t.ca_crl.is_empty(), "caCrl"),
        (!t.verify_certificate_spki.is_empty(), "verifyCertificateSpki"),
        (!t.verify_certificate_hash.is_empty(), "verifyCertificateHash"),
        (!t.cipher_suites.is_empty(), "cipherSuites"),
    ] {
        if there {
            out.push(bad(format!("{at}.{field}"), "is not supported in this version; remove it [KARST-0029]"));
        }
    }
    if t.credential_name.is_empty() && t.credential_names.is_empty() {
        let text = "is empty: specify a Secret in the namespace of the gateway's pods [KARST-0010]";
        out.push(bad(format!("{at}.credentialName"), text));
    }
    for (v, field) in [(&t.min_protocol_version, "minProtocolVersion"), (&t.max_protocol_version, "maxProtocolVersion")]
    {
        let fine = match v.as_deref() {
            None | Some("TLS_AUTO") => true,
            Some("TLSV1_2") => field == "minProtocolVersion",
            Some("TLSV1_3") => true,
            Some(_) => false,
        };
        if !fine {
            let text = format!(
                "unsupported TLS version {:?}: TLSV1_2 and TLSV1_3 are supported [KARST-0502]",
                v.as_deref().unwrap_or_default()
            );
            out.push(bad(format!("{at}.{field}"), text));
        }
    }
    out
}

pub(crate) fn workload_entry(e: &WorkloadEntrySpec, at: &str) -> Vec<FieldError> {
    let mut out: Vec<FieldError> = address(&e.address, &format!("{at}.address")).into_iter().collect();
    for (name, port) in &e.ports {
        if *port == 0 {
            out.push(bad(format!("{at}.ports[{name}]"), "invalid port 0: use 1 to 65535 [KARST-0019]"));
        }
    }
    if !e.service_account.is_empty() && !is_host(&e.service_account) {
        out.push(bad(
            format!("{at}.serviceAccount"),
            format!("invalid service account name {:?} [KARST-0032]", e.service_account),
        ));
    }
    if e.locality.split('/').count() > 3 || (!e.locality.is_empty() && e.locality.starts_with('/')) {
        out.push(bad(
            format!("{at}.locality"),
            format!("invalid locality {:?}: use REGION/ZONE/SUBZONE [KARST-0032]", e.locality),
        ));
    }
    out
}
