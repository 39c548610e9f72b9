//! Single values as both APIs write them: durations, parts, regular expressions, headers.

use crate::convert::objects::FieldError;
use karst_api::route as ir;
use karst_core::operators;

pub(crate) const MILLION: u32 = 1_000_000;

/// A text that is no duration.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid duration {0:?}: use for example 1.5s, 250ms or 1m [KARST-0020]")]
pub(crate) struct InvalidDuration(String);

/// A duration as Istio's API (`1.5s`, `100ms`, `1h30m`) and Gateway API write it, in milliseconds.
pub(crate) fn duration(text: &str) -> Result<u64, InvalidDuration> {
    let wrong = || InvalidDuration(text.into());
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let n: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |e| digits + e);
        total += n * match &rest[digits..unit] {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1000.0,
            "ms" => 1.0,
            "us" => 0.001,
            "ns" => 0.000_001,
            _ => return Err(wrong()),
        };
        rest = &rest[unit..];
    }
    // Ten years: more is a slip.
    if total > 3.2e11 { Err(wrong()) } else { Ok(total.ceil() as u64) }
}

/// A text that is none of Gateway API's.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "invalid duration {0:?}: use up to four whole numbers, each with h, m, s or ms, for example 10s, 500ms or 1m30s [KARST-0020]"
)]
pub(crate) struct InvalidGatewayApiDuration(String);

/// A duration as Gateway API has it (GEP-2257: `^([0-9]{1,5}(h|m|s|ms)){1,4}$`), in milliseconds.
pub(crate) fn gateway_api_duration(text: &str) -> Result<u64, InvalidGatewayApiDuration> {
    let wrong = || InvalidGatewayApiDuration(text.into());
    let (mut rest, mut parts, mut total) = (text, 0, 0);
    while parts == 0 || !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| (1..=5).contains(n)).ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(digits);
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let found = units.into_iter().find_map(|(name, ms)| Some((unit.strip_prefix(name)?, ms)));
        let (after, ms) = found.ok_or_else(wrong)?;
        total += number.parse::<u64>().map_err(|_| wrong())? * ms;
        (rest, parts) = (after, parts + 1);
    }
    if parts > 4 { Err(wrong()) } else { Ok(total) }
}

/// An optional duration; a field that is not there is 0.
pub(crate) fn optional_duration(text: Option<&str>, field: impl Fn() -> String) -> Result<u64, FieldError> {
    text.map_or(Ok(0), duration).map_err(|e| (field(), e.to_string()))
}

/// A part of a million from a percentage.
pub(crate) fn per_million(percent: f64, field: &str) -> Result<u32, FieldError> {
    if (0.0..=100.0).contains(&percent) {
        return Ok((percent * 10_000.0).round() as u32);
    }
    Err((field.into(), format!("{percent} is out of range: must be between 0 and 100 [KARST-0018]")))
}

pub(crate) fn regex(text: &str, field: impl Into<String>) -> Result<String, FieldError> {
    match regex::Regex::new(&format!("^(?:{text})$")) {
        Ok(_) => Ok(text.to_string()),
        Err(e) => {
            let e = e.to_string();
            let last = e.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Err((field.into(), format!("invalid regular expression {text:?} (RE2 syntax): {last} [KARST-0023]")))
        }
    }
}

pub(crate) fn header_name(name: &str, field: impl Into<String>) -> Result<String, FieldError> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(n) => Ok(n.as_str().to_string()),
        Err(_) => Err((field.into(), format!("invalid header name {name:?} [KARST-0024]"))),
    }
}

pub(crate) fn header(name: &str, value: &str, field: impl Into<String>) -> Result<ir::Header, FieldError> {
    let field = field.into();
    let name = header_name(name, field.clone())?;
    if http::HeaderValue::from_str(value).is_err() {
        return Err((field, format!("invalid header value {value:?} [KARST-0024]")));
    }
    match operators::parse(value) {
        Ok(_) => Ok(ir::Header { name, value: value.into() }),
        Err(e) => Err((field, format!("{value:?} {e}"))),
    }
}

pub(crate) fn exact(text: impl Into<String>) -> ir::Text {
    ir::Text { kind: Some(ir::text::Kind::Exact(text.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_gateway_api_have_few_whole_numbers() {
        for (t, ms) in [("10s", 10_000), ("500ms", 500), ("1h30m", 5_400_000), ("0s", 0), ("1h1m1s1ms", 3_661_001)] {
            assert_eq!(gateway_api_duration(t), Ok(ms), "{t}");
        }
        for t in ["", "5", "s", "1x", "1.5s", "-1s", " 1s", "1us", "100000s", "1s1s1s1s1s", "1m s"] {
            assert!(gateway_api_duration(t).is_err(), "{t:?}");
        }
    }

    #[test]
    fn durations_are_read_as_in_go() {
        for (t, ms) in [("1.5s", 1500), ("100ms", 100), ("1h30m", 5_400_000), ("0s", 0), ("2s", 2000), ("0.5s", 500)] {
            assert_eq!(duration(t), Ok(ms), "{t}");
        }
        for t in ["", "5", "s", "1x", "1.2.3s", "-1s", "9999999h"] {
            assert!(duration(t).is_err(), "{t}");
        }
    }
}
