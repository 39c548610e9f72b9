//! The certificate that a gateway shows to backends: `spec.tls.backend` of Gateway API's Gateways (GEP-3155). It is shown only where
//! a BackendTLSPolicy makes TLS; where it cannot be, those backends are not connected to.

use crate::convert::{
    facts::secret::{ReferenceError, referenced},
    objects::{GATEWAY, Objects},
};
use karst_api::route as ir;
use karst_manifest::kinds::*;

/// The field.
pub(crate) const FIELD: &str = "spec.tls.backend.clientCertificateRef";

/// Of a Gateway, or a reason of Gateway API and the words. None: it shows none.
pub(crate) fn of(objects: &Objects<'_>, gateway: &Gateway) -> Option<Result<ir::KeyPair, (&'static str, String)>> {
    let reference = gateway.spec.tls.backend.client_certificate_ref.as_ref()?;
    let found = referenced(objects, (GATEWAY, &gateway.metadata.namespace), reference);
    Some(found.map_err(|e| match e {
        ReferenceError::NotPermitted(text) => ("RefNotPermitted", text),
        ReferenceError::Invalid(text) => ("InvalidClientCertificateRef", text),
    }))
}

/// As its pods are told of it.
pub(crate) fn told(objects: &Objects<'_>, gateway: &Gateway) -> Option<ir::BackendCertificate> {
    let name = || format!("Gateway {}/{}", gateway.metadata.namespace, gateway.metadata.name);
    Some(match of(objects, gateway)? {
        Ok(pair) => ir::BackendCertificate { pair: Some(pair), broken: String::new() },
        Err((_, text)) => ir::BackendCertificate { pair: None, broken: format!("{}: {FIELD}: {text}", name()) },
    })
}
