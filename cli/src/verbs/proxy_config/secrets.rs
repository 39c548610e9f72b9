//! Certificates in istioctl's columns.

use super::envoy::{Dump, text};
use crate::output::{Cell, Table, Tone};
use base64::{Engine, prelude::BASE64_STANDARD};
use karst_rt::clock;
use serde_json::Value;
use x509_parser::pem::Pem;

/// Of a secret: the field with its certificates, and what istioctl calls it.
const FORMS: [(&str, &str); 2] = [
    ("/secret/tls_certificate/certificate_chain/inline_bytes", "Cert Chain"),
    ("/secret/validation_context/trusted_ca/inline_bytes", "CA"),
];

/// A row for each secret, by its first certificate.
pub fn table(dump: &Dump) -> Table {
    let head = ["RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"];
    let mut table = Table::new(&head);
    for secret in dump.secrets() {
        table.row(row(secret));
    }
    table
}

/// The root certificates, as they are written in the dump.
pub fn root(dump: &Dump) -> Option<&str> {
    let (pointer, _) = FORMS.get(1)?;
    dump.secrets().find_map(|secret| secret.pointer(pointer)?.as_str())
}

fn row(secret: &Value) -> Vec<Cell> {
    let name = text(secret, "/name");
    let form = FORMS.iter().find_map(|(pointer, kind)| Some((secret.pointer(pointer)?.as_str()?, *kind)));
    let Some((encoded, kind)) = form else {
        return vec![name.into(), "".into(), Cell::new("WARMING", Tone::Warning), Cell::new("false", Tone::Bad)];
    };
    let mut cells = vec![name.into(), kind.into(), Cell::new("ACTIVE", Tone::Good)];
    let decoded = BASE64_STANDARD.decode(encoded).unwrap_or_default();
    let pem = Pem::iter_from_buffer(&decoded).next().and_then(Result::ok);
    let parsed = pem.as_ref().and_then(|pem| pem.parse_x509().ok());
    match parsed {
        Some(certificate) => {
            let validity = certificate.validity();
            let now = i64::try_from(clock::since_epoch().as_secs()).unwrap_or(i64::MAX);
            let is_valid = validity.not_before.timestamp() <= now && now < validity.not_after.timestamp();
            cells.push(Cell::new(is_valid.to_string(), if is_valid { Tone::Good } else { Tone::Bad }));
            cells.push(format!("{:x}", certificate.serial).into());
            cells.push(rfc3339(validity.not_after.to_datetime()).into());
            cells.push(rfc3339(validity.not_before.to_datetime()).into());
        }
        None => cells.push(Cell::new("false", Tone::Bad)),
    }
    cells
}

fn rfc3339(time: time::OffsetDateTime) -> String {
    time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
