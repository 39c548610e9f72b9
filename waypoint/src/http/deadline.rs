//! When a request must be over.

use crate::{http::names, route::rule::Rule};
use http::request::Parts;
use std::time::Duration;
use tokio::time::Instant;

/// When the whole request must be over: the route's timeout, or what a gRPC client asks for, if that is sooner.
pub(super) fn deadline(rule: Option<&Rule>, parts: &Parts) -> Option<Instant> {
    let own = rule.map_or(0, |r| r.timeout_ms);
    let asked = parts.headers.get(names::GRPC_TIMEOUT).and_then(|v| grpc_timeout(v.to_str().ok()?));
    let ms = match (own, asked) {
        (0, None) => return None,
        (0, Some(a)) => a,
        (o, None) => o,
        (o, Some(a)) => a.min(o),
    };
    Some(Instant::now() + Duration::from_millis(ms))
}

/// Milliseconds of a `grpc-timeout` (at most eight digits and a unit).
fn grpc_timeout(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => number * 3_600_000,
        "M" => number * 60_000,
        "S" => number * 1000,
        "m" => number,
        "u" => number.div_ceil(1000),
        "n" => number.div_ceil(1_000_000),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_grpc_are_read() {
        for (t, want) in [
            ("1S", Some(1000)),
            ("100m", Some(100)),
            ("1u", Some(1)),
            ("2H", Some(7_200_000)),
            ("S", None),
            ("", None),
            ("1x", None),
            ("123456789S", None),
        ] {
            assert_eq!(grpc_timeout(t), want, "{t}");
        }
    }
}
