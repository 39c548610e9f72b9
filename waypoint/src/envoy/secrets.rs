//! Certificates: `proxy-config secret` and `rootca-compare`. Chains and roots only.

use super::View;
use base64::{Engine, prelude::BASE64_STANDARD};
use karst_hbone::certificate::{CertificateSummary, summaries};
use serde_json::{Value, json};

/// The name that istioctl compares roots by.
const ROOT: &str = "ROOTCA";
/// The name of a proxy's own certificate in Istio.
const OWN: &str = "default";

/// A certificate chain, or roots, in PEM.
struct Secret {
    name: String,
    root: bool,
    pem: String,
}

fn all(view: &View<'_>) -> Vec<Secret> {
    let mut out = vec![];
    for (identity, credentials) in view.certificates {
        let own = identity == view.identity;
        let Some((roots, chain)) = credentials.pem.split_last() else { continue };
        let name = if own { OWN.into() } else { identity.to_string() };
        out.push(Secret { name, root: false, pem: chain.concat() });
        if own {
            out.push(Secret { name: ROOT.into(), root: true, pem: roots.clone() });
        }
    }
    let ports = view.snapshot.gateway.iter().flat_map(|gateway| gateway.ports.values());
    for listener in ports.flat_map(|port| port.listeners()) {
        for chain in listener.chains() {
            let pem = String::from_utf8_lossy(chain).into_owned();
            out.push(Secret { name: listener.origin.clone(), root: false, pem });
        }
    }
    out
}

/// The section of the dump.
pub fn section(view: &View<'_>) -> Value {
    let one = |secret: Secret| {
        let leaf = summaries(&secret.pem).into_iter().next();
        // The PEM of certificates alone, whatever else stands in the file.
        let pem: String = summaries(&secret.pem).into_iter().map(|certificate| certificate.pem).collect();
        let data = json!({ "inline_bytes": BASE64_STANDARD.encode(pem) });
        let mut content = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": secret.name,
        });
        match secret.root {
            true => content["validation_context"] = json!({ "trusted_ca": data }),
            false => content["tls_certificate"] = json!({ "certificate_chain": data }),
        }
        json!({
            "name": secret.name, "version_info": leaf.map(|leaf| leaf.serial_number).unwrap_or_default(),
            "secret": content,
        })
    };
    json!({
        "@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump",
        "dynamic_active_secrets": all(view).into_iter().map(one).collect::<Vec<_>>(),
    })
}

/// `/certs`.
pub fn certs(view: &View<'_>) -> Value {
    let detail = |certificate: CertificateSummary| {
        json!({
            "serial_number": certificate.serial_number,
            "valid_from": karst_rt::log::timestamp(certificate.not_before),
            "expiration_time": karst_rt::log::timestamp(certificate.not_after),
        })
    };
    let one = |secret: Secret| {
        let details: Vec<Value> = summaries(&secret.pem).into_iter().map(detail).collect();
        let (ca, chain) = if secret.root { (details, vec![]) } else { (vec![], details) };
        json!({ "ca_cert": ca, "cert_chain": chain })
    };
    json!({ "certificates": all(view).into_iter().map(one).collect::<Vec<_>>() })
}
