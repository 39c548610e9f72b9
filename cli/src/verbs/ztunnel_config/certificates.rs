//! Certificates in istioctl's columns.

use super::dump::text;
use crate::output::{Cell, Table, Tone};
use karst_rt::clock;
use serde_json::Value;
use std::time::SystemTime;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A row for each certificate of each chain, the leaf first, the roots last.
pub fn table(certificates: &[Value]) -> Table {
    at(certificates, clock::wall())
}

fn at(certificates: &[Value], now: SystemTime) -> Table {
    let now = OffsetDateTime::from(now);
    let mut table =
        Table::new(&["CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"]);
    let mut sorted: Vec<&Value> = certificates.iter().collect();
    sorted.sort_by_key(|one| text(one, "identity"));
    for one in sorted {
        for (index, link) in links(one, "certChain").enumerate() {
            table.row(row(one, link, if index == 0 { "Leaf" } else { "Intermediate" }, now));
        }
        for root in links(one, "rootCerts") {
            table.row(row(one, root, "Root", now));
        }
    }
    table
}

fn links<'a>(one: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    one.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn row(one: &Value, link: &Value, kind: &str, now: OffsetDateTime) -> [Cell; 7] {
    let time = |field: &str| OffsetDateTime::parse(text(link, field), &Rfc3339).ok();
    let valid = match (time("validFrom"), time("expirationTime")) {
        (Some(from), Some(until)) => from <= now && now < until,
        _ => false,
    };
    let state = text(one, "state");
    [
        text(one, "identity").into(),
        kind.into(),
        Cell::new(state, if state == "Available" { Tone::Good } else { Tone::Bad }),
        Cell::new(valid.to_string(), if valid { Tone::Good } else { Tone::Bad }),
        text(link, "serialNumber").into(),
        text(link, "expirationTime").into(),
        text(link, "validFrom").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn a_chain_is_leaf_intermediate_and_root() {
        let link = |serial: &str, until: &str| json!({ "pem": "", "serialNumber": serial, "validFrom": "2020-01-01T00:00:00Z", "expirationTime": until });
        let one = json!({
            "identity": "spiffe://td/ns/a/sa/b", "state": "Available",
            "certChain": [link("1", "2030-01-01T00:00:00.000001Z"), link("2", "2021-01-01T00:00:00Z")],
            "rootCerts": [link("3", "soon")],
        });
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
        let expected = "\
CERTIFICATE NAME        TYPE           STATUS      VALID CERT   SERIAL NUMBER   NOT AFTER                     NOT BEFORE
spiffe://td/ns/a/sa/b   Leaf           Available   true         1               2030-01-01T00:00:00.000001Z   2020-01-01T00:00:00Z
spiffe://td/ns/a/sa/b   Intermediate   Available   false        2               2021-01-01T00:00:00Z          2020-01-01T00:00:00Z
spiffe://td/ns/a/sa/b   Root           Available   false        3               soon                          2020-01-01T00:00:00Z
";
        assert_eq!(at(&[one], now).render(false), expected);
    }
}
