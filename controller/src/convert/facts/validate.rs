//! What is wrong with ServiceEntries, WorkloadEntries and Istio's Gateways by themselves. Rules: Istio's validation (reference
//! control-plane §9), texts our own.

use crate::convert::objects::FieldError;
use karst_core::{
    Cidr, addr,
    tls::{CipherSuite, Unsupported, Version},
};
use karst_manifest::{
    Resolution, ServerTlsMode,
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
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    !host.is_empty() && host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
}

fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// Is it an address that no endpoint can have: it would be whoever calls it, nobody or many? Such an endpoint is left out, too.
pub(crate) fn is_nobodys(text: &str) -> bool {
    text.parse().is_ok_and(|ip: IpAddr| !addr::is_host(ip))
}

/// What is wrong with an endpoint's address; an empty one is found elsewhere.
pub(crate) fn address(text: &str, at: &str) -> Option<FieldError> {
    if is_nobodys(text) {
        return Some(bad(
            at,
            format!(
                "{text:?} is a loopback, unspecified, multicast or broadcast address, which no endpoint can have: use the address of a host [KARST-0211]"
            ),
        ));
    }
    if text.is_empty() || text.parse::<IpAddr>().is_ok() || is_host(text) {
        return None;
    }
    if text.starts_with("unix:") {
        return Some(bad(
            at,
            format!(
                "Unix socket {text:?} cannot be reached through the mesh: use an IP address or a host name [KARST-0205]"
            ),
        ));
    }
    Some(bad(at, format!("{text:?} is neither an IP address nor a host name [KARST-0022]")))
}

pub(crate) fn service_entry(entry: &ServiceEntry) -> Vec<FieldError> {
    let spec = &entry.spec;
    let mut out = vec![];
    let mut hosts = BTreeSet::new();
    for (i, host) in spec.hosts.iter().enumerate() {
        let at = format!("spec.hosts[{i}]");
        if host == "*" {
            continue; // found where hosts are compiled
        }
        if !is_host(host.strip_prefix("*.").unwrap_or(host)) {
            out.push(bad(
                &at,
                format!("{host:?} is neither a DNS name nor a wildcard such as *.example.com [KARST-0022]"),
            ));
        } else if !hosts.insert(host) {
            out.push(bad(&at, format!("{host:?} is duplicated [KARST-0013]")));
        }
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        if port.number == 0 {
            out.push(bad(format!("spec.ports[{index}].number"), "invalid port 0: use 1 to 65535 [KARST-0019]"));
        }
        if !names.insert(&port.name) {
            out.push(bad(format!("spec.ports[{index}].name"), format!("{:?} is duplicated [KARST-0013]", port.name)));
        }
        if !numbers.insert(port.number) {
            out.push(bad(format!("spec.ports[{index}].number"), format!("{} is duplicated [KARST-0013]", port.number)));
        }
        let protocol = port.protocol.to_ascii_uppercase();
        if !protocol.is_empty() && !PROTOCOLS.contains(&protocol.as_str()) {
            out.push(bad(
                format!("spec.ports[{index}].protocol"),
                format!("unsupported value {:?}: use one of {} [KARST-0016]", port.protocol, PROTOCOLS.join(", ")),
            ));
        }
    }
    for (index, entry) in spec.endpoints.iter().enumerate() {
        for name in entry.ports.keys().filter(|n| !names.contains(n)) {
            out.push(bad(
                format!("spec.endpoints[{index}].ports[{name}]"),
                "is not the name of a port in spec.ports [KARST-0204]",
            ));
        }
    }
    out.extend(resolution(spec));
    out
}

fn resolution(spec: &ServiceEntrySpec) -> Vec<FieldError> {
    let mut out = vec![];
    let kind = spec.resolution();
    let range = spec.addresses.iter().position(|a| a.parse::<Cidr>().is_ok_and(|c| !c.is_single()));
    if let Some(index) = range
        && !matches!(kind, Resolution::None | Resolution::Static)
    {
        out.push(bad(
            format!("spec.addresses[{index}]"),
            format!("range {:?} cannot be combined with resolution {}: specify single addresses, or use NONE or STATIC [KARST-0202]", spec.addresses[index], spec.resolution),
        ));
    }
    for (i, e) in spec.endpoints.iter().enumerate() {
        // What is no IP address is found elsewhere, if it must be one.
        if kind != Resolution::Static || is_nobodys(&e.address) {
            out.extend(address(&e.address, &format!("spec.endpoints[{i}].address")));
        }
    }
    let wildcard = spec.hosts.iter().position(|h| h != "*" && is_wildcard(h));
    let selects = spec.workload_selector.is_some();
    match kind {
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if let Some(index) = wildcard
                && spec.endpoints.is_empty()
                && !selects
            {
                out.push(bad(format!("spec.hosts[{index}]"), format!("wildcard {:?} cannot be resolved: specify endpoints, or use resolution NONE or DYNAMIC_DNS [KARST-0201]", spec.hosts[index])));
            }
            if kind == Resolution::DnsRoundRobin && spec.endpoints.len() > 1 {
                out.push(bad(
                    "spec.endpoints",
                    "has more than one endpoint, but resolution DNS_ROUND_ROBIN supports only one: use DNS [KARST-0203]",
                ));
            }
        }
        Resolution::DynamicDns => {
            if let Some(index) = spec.hosts.iter().position(|h| !is_wildcard(h)) {
                out.push(bad(
                    format!("spec.hosts[{index}]"),
                    format!(
                        "{:?} is not a wildcard, which resolution DYNAMIC_DNS requires: use DNS [KARST-0201]",
                        spec.hosts[index]
                    ),
                ));
            }
            if !spec.endpoints.is_empty() {
                out.push(bad(
                    "spec.endpoints",
                    "must be empty with resolution DYNAMIC_DNS, which resolves the host of each request [KARST-0203]",
                ));
            }
            for (index, port) in spec.ports.iter().enumerate() {
                if !matches!(port.protocol.to_ascii_uppercase().as_str(), "HTTP" | "HTTP2" | "GRPC" | "HTTPS" | "TLS") {
                    out.push(bad(
                        format!("spec.ports[{index}].protocol"),
                        format!("protocol {:?} carries no host name, which resolution DYNAMIC_DNS requires: use HTTP or TLS [KARST-0208]", port.protocol),
                    ));
                }
            }
        }
        Resolution::None | Resolution::Static | Resolution::Unknown(_) => {}
    }
    if spec.hosts.len() > 1 && spec.addresses.is_empty() {
        let tcp = spec
            .ports
            .iter()
            .position(|p| matches!(p.protocol.to_ascii_uppercase().as_str(), "TCP" | "MONGO" | "REDIS" | "MYSQL"));
        if let Some(index) = tcp
            && kind == Resolution::None
        {
            out.push(bad(format!("spec.ports[{index}].protocol"), format!("protocol {:?} carries no host name, so several hosts cannot be distinguished without spec.addresses: specify addresses, or create one ServiceEntry per host [KARST-0207]", spec.ports[index].protocol)));
        }
    }
    out
}

/// Protocols of servers of a gateway.
const SERVER_PROTOCOLS: [&str; 8] = ["HTTP", "HTTPS", "HTTP2", "GRPC", "GRPC-WEB", "TCP", "TLS", "MONGO"];

/// What is wrong with Istio's Gateway.
pub(crate) fn istio_gateway(spec: &IstioGatewaySpec) -> Vec<FieldError> {
    if spec.servers.is_empty() {
        return vec![bad("spec.servers", "is empty: specify at least one server [KARST-0010]")];
    }
    spec.servers.iter().enumerate().flat_map(|(i, x)| server(x, &format!("spec.servers[{i}]"))).collect()
}

/// What is wrong with one of its servers.
pub(crate) fn server(server: &GwServer, at: &str) -> Vec<FieldError> {
    let mut out = vec![];
    if server.port.number == 0 {
        out.push(bad(format!("{at}.port.number"), "invalid port 0: use 1 to 65535 [KARST-0019]"));
    }
    let protocol = server.port.protocol.to_ascii_uppercase();
    if !SERVER_PROTOCOLS.contains(&protocol.as_str()) {
        let text = format!(
            "unsupported value {:?}: use one of {} [KARST-0016]",
            server.port.protocol,
            SERVER_PROTOCOLS.join(", ")
        );
        out.push(bad(format!("{at}.port.protocol"), text));
    }
    if server.hosts.is_empty() {
        out.push(bad(format!("{at}.hosts"), "is empty: specify at least one host, or \"*\" [KARST-0010]"));
    }
    for (index, host) in server.hosts.iter().enumerate() {
        let name = host.split_once('/').map_or(host.as_str(), |(_, n)| n);
        if name != "*" && !is_host(name.strip_prefix("*.").unwrap_or(name)) {
            let text = format!("invalid host {host:?}: use NAME, *.DOMAIN, \"*\" or NAMESPACE/NAME [KARST-0022]");
            out.push(bad(format!("{at}.hosts[{index}]"), text));
        }
    }
    if !server.bind.is_empty() {
        out.push(bad(
            format!("{at}.bind"),
            "is not supported in this version: gateways listen on all their addresses [KARST-0029]",
        ));
    }
    let secure = matches!(protocol.as_str(), "HTTPS" | "TLS");
    let Some(tls) = &server.tls else {
        if secure {
            out.push(bad(format!("{at}.tls"), format!("is missing: protocol {protocol} requires it [KARST-0010]")));
        }
        return out;
    };
    out.extend(server_tls(tls, &protocol, &format!("{at}.tls")));
    out
}

fn server_tls(tls: &GwTls, protocol: &str, at: &str) -> Vec<FieldError> {
    let mut out = vec![];
    if matches!(protocol, "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB") {
        if tls.mode.is_some() {
            out.push(bad(
                format!("{at}.mode"),
                format!("cannot be combined with protocol {protocol}: use HTTPS [KARST-0501]"),
            ));
        }
        return out;
    }
    match tls.mode() {
        ServerTlsMode::Passthrough => return out,
        ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual => {}
        ServerTlsMode::Unknown(other) => {
            let text = format!(
                "{other} is not supported in this version: use SIMPLE, MUTUAL, OPTIONAL_MUTUAL or PASSTHROUGH [KARST-0016]"
            );
            out.push(bad(format!("{at}.mode"), text));
        }
    }
    for (there, field) in [
        (!tls.server_certificate.is_empty(), "serverCertificate"),
        (!tls.private_key.is_empty(), "privateKey"),
        (!tls.ca_certificates.is_empty(), "caCertificates"),
        (!tls.tls_certificates.is_empty(), "tlsCertificates"),
        (!tls.ca_crl.is_empty(), "caCrl"),
    ] {
        if there {
            out.push(bad(format!("{at}.{field}"), "file paths are not supported: use credentialName [KARST-0028]"));
        }
    }
    // Leaving them out would let more in than was meant.
    for (there, field) in [
        (!tls.verify_certificate_spki.is_empty(), "verifyCertificateSpki"),
        (!tls.verify_certificate_hash.is_empty(), "verifyCertificateHash"),
    ] {
        if there {
            out.push(bad(format!("{at}.{field}"), "is not supported in this version; remove it [KARST-0029]"));
        }
    }
    if tls.credential_name.is_empty() && tls.credential_names.is_empty() {
        let text = "is empty: specify a Secret in the namespace of the gateway's pods [KARST-0010]";
        out.push(bad(format!("{at}.credentialName"), text));
    }
    out.extend(versions(tls, at));
    for (index, suite) in tls.cipher_suites.iter().enumerate().filter(|(_, s)| CipherSuite::named(s).is_none()) {
        let known = CipherSuite::ALL.map(CipherSuite::name).join(", ");
        let text = format!("unsupported cipher suite {suite:?}: use {known} [KARST-0016]");
        out.push(bad(format!("{at}.cipherSuites[{index}]"), text));
    }
    out
}

/// What is wrong with the versions of TLS that a server may speak.
fn versions(tls: &GwTls, at: &str) -> Vec<FieldError> {
    let mut out = vec![];
    let mut named = |version: &Option<String>, field: &str| {
        let name = version.as_deref().unwrap_or_default();
        Version::named(name).unwrap_or_else(|Unsupported| {
            let text = format!("unsupported TLS version {name:?}: TLSV1_2 and TLSV1_3 are supported [KARST-0502]");
            out.push(bad(format!("{at}.{field}"), text));
            None
        })
    };
    let min = named(&tls.min_protocol_version, "minProtocolVersion");
    let max = named(&tls.max_protocol_version, "maxProtocolVersion");
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        let text = format!("{} is above maxProtocolVersion {} [KARST-0014]", min.name(), max.name());
        out.push(bad(format!("{at}.minProtocolVersion"), text));
    }
    out
}

pub(crate) fn workload_entry(entry: &WorkloadEntrySpec, at: &str) -> Vec<FieldError> {
    let mut out: Vec<FieldError> = address(&entry.address, &format!("{at}.address")).into_iter().collect();
    for (name, port) in &entry.ports {
        if *port == 0 {
            out.push(bad(format!("{at}.ports[{name}]"), "invalid port 0: use 1 to 65535 [KARST-0019]"));
        }
    }
    if !entry.service_account.is_empty() && !is_host(&entry.service_account) {
        out.push(bad(
            format!("{at}.serviceAccount"),
            format!("invalid service account name {:?} [KARST-0032]", entry.service_account),
        ));
    }
    if entry.locality.split('/').count() > 3 || (!entry.locality.is_empty() && entry.locality.starts_with('/')) {
        out.push(bad(
            format!("{at}.locality"),
            format!("invalid locality {:?}: use REGION/ZONE/SUBZONE [KARST-0032]", entry.locality),
        ));
    }
    out
}
