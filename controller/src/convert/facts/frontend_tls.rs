//! Whether clients of listeners that end TLS are to show certificates, and whose count: `spec.tls.frontend` of Gateway API's Gateways
//! (GEP-91). It is of a port, so that all listeners of one ask the same: a connection may carry requests for several host names.

use crate::convert::{
    facts::{
        ca_certificates::{Authorities, CaError, authorities, is_bundle},
        grant::granted,
    },
    objects::{GATEWAY, Objects},
};
use karst_api::route as ir;
use karst_manifest::kinds::*;
use std::{collections::HashMap, sync::Arc};

/// The reasons of Gateway API.
const BAD_REFERENCE: &str = "InvalidCACertificateRef";
const BAD_KIND: &str = "InvalidCACertificateKind";
const NO_CERTIFICATE: &str = "NoValidCACertificate";
/// Whatever clients show is taken.
const FALLBACK: &str = "AllowInsecureFallback";

/// What is asked of clients at the ports of one Gateway, each looked at once: ListenerSets may add thousands of listeners to one.
#[derive(Default)]
pub(crate) struct Ports(HashMap<u16, ClientValidation>);

impl Ports {
    /// At one port of the Gateway.
    pub(crate) fn at(&mut self, objects: &Objects<'_>, gateway: &Gateway, port: u16) -> ClientValidation {
        self.0.entry(port).or_insert_with(|| at_port(objects, gateway, port)).clone()
    }
}

/// What is asked of clients at a port.
#[derive(Clone, Default)]
pub(crate) struct ClientValidation {
    pub(crate) client: ir::ClientCertificate,
    /// Whose certificates count.
    pub(crate) authorities: Arc<Authorities>,
    /// Why it cannot be asked, so that nobody is served: a reason of Gateway API and the words.
    pub(crate) refused: Option<(&'static str, String)>,
    /// Why some of what is referred to cannot be used.
    pub(crate) unresolved: Option<(&'static str, String)>,
}

/// Of a Gateway at a port.
fn at_port(objects: &Objects<'_>, gateway: &Gateway, port: u16) -> ClientValidation {
    let mut out = ClientValidation::default();
    let (at, config) = config(gateway, port);
    let Some(validation) = &config.validation else { return out };
    out.client = match validation.mode.as_str() {
        "" | "AllowValidOnly" => ir::ClientCertificate::Required,
        FALLBACK => ir::ClientCertificate::Unverified,
        other => {
            let text = format!("{at}.mode: unsupported value {other:?}: use AllowValidOnly or {FALLBACK} [KARST-0016]");
            out.refused = Some(("UnsupportedValue", text));
            ir::ClientCertificate::Required
        }
    };
    if validation.ca_certificate_refs.is_empty() {
        let text = format!(
            "{at}.caCertificateRefs: is empty: specify a ConfigMap with ca.crt, or a ClusterTrustBundle [KARST-0010]"
        );
        out.unresolved = Some((BAD_REFERENCE, text));
    }
    let mut all = Authorities::default();
    for (index, reference) in validation.ca_certificate_refs.iter().enumerate() {
        match referenced(objects, &gateway.metadata.namespace, reference) {
            Ok(found) => {
                all.roots.extend(found.roots);
                all.lists.extend(found.lists);
            }
            Err((reason, text)) => {
                out.unresolved = Some((reason, format!("{at}.caCertificateRefs[{index}]: {text}")));
            }
        }
    }
    // One that can be used is enough; with none nobody could be told from anybody.
    if all.roots.is_empty() && out.refused.is_none() {
        out.refused = out.unresolved.as_ref().map(|(_, text)| (NO_CERTIFICATE, text.clone()));
    }
    out.authorities = Arc::new(all);
    out
}

/// Does a Gateway say somewhere that whatever clients show is taken?
pub(crate) fn has_fallback(gateway: &Gateway) -> bool {
    let frontend = &gateway.spec.tls.frontend;
    let mut all = frontend.per_port.iter().map(|p| &p.tls).chain([&frontend.default]);
    all.any(|config| config.validation.as_ref().is_some_and(|v| v.mode == FALLBACK))
}

/// What counts at a port, and its field.
fn config(gateway: &Gateway, port: u16) -> (String, &FrontendTlsConfig) {
    let frontend = &gateway.spec.tls.frontend;
    match frontend.per_port.iter().enumerate().find(|(_, p)| p.port == port) {
        Some((index, of_port)) => (format!("spec.tls.frontend.perPort[{index}].tls.validation"), &of_port.tls),
        None => ("spec.tls.frontend.default.validation".into(), &frontend.default),
    }
}

/// The certificates and lists of a reference, or a reason of Gateway API and the words.
fn referenced(
    objects: &Objects<'_>,
    ns: &str,
    reference: &CaCertificateRef,
) -> Result<Authorities, (&'static str, String)> {
    let (kind, name) = (reference.kind.as_str(), reference.name.as_str());
    let of = reference.namespace.as_deref().unwrap_or(ns);
    if is_bundle(&reference.group, kind) && reference.namespace.is_some() {
        let text = format!("namespace: cannot be combined with kind {kind}, which has none: remove it [KARST-0014]");
        return Err((BAD_REFERENCE, text));
    }
    let is_core = matches!(reference.group.as_str(), "" | "core") && matches!(kind, "ConfigMap" | "Secret");
    if is_core && of != ns && !granted(objects, GATEWAY, ns, (of, "", kind, name)) {
        let text = format!(
            "reference to {kind} {of}/{name} is not permitted: create a ReferenceGrant in its namespace [KARST-0309]"
        );
        return Err(("RefNotPermitted", text));
    }
    authorities(objects, of, (&reference.group, kind, name)).map_err(|e| match e {
        CaError::Kind(text) => (BAD_KIND, text),
        CaError::Reference(text) => (BAD_REFERENCE, text),
    })
}
