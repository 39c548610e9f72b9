//! What an endpoint says when it has too much to do, and for how long: 429 (RFC 6585 §4), 503 with Retry-After (RFC 9110 §15.6.4),
//! RESOURCE_EXHAUSTED of gRPC with its `grpc-retry-pushback-ms` (gRFC A6). Pure; [`super::balance`] sends it less for that time.

use http::{HeaderMap, HeaderName, StatusCode, header};
use std::time::Duration;

/// Where it does not say how long.
const PAUSE: Duration = Duration::from_secs(1);
/// However long it says: it must not take itself out for an hour.
const LONGEST: Duration = Duration::from_secs(60);
/// gRPC's RESOURCE_EXHAUSTED.
const EXHAUSTED: u16 = 8;
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
/// Of a limit that a proxy enforces: the endpoint has not said it.
const BY_A_PROXY: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// For how long an endpoint that answers with this head is to be sent less. None: it does not say that it has too much to do.
pub fn of_head(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if headers.contains_key(BY_A_PROXY) {
        return None;
    }
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some(retry_after(headers).unwrap_or(PAUSE)),
        StatusCode::SERVICE_UNAVAILABLE => retry_after(headers),
        _ => of_trailers(headers),
    }
}

/// The same of a call of gRPC, by its trailers (or by a head that has them).
pub fn of_trailers(trailers: &HeaderMap) -> Option<Duration> {
    let status: u16 = number(trailers, GRPC_STATUS)?;
    // A negative pushback is "do not try again", and says nothing of how long.
    let pushback = || number(trailers, PUSHBACK).map(|ms| Duration::from_millis(ms).min(LONGEST));
    (status == EXHAUSTED).then(|| pushback().unwrap_or(PAUSE))
}

/// A number of seconds, or a date (which is taken for one that does not say how long: clocks differ).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?;
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
    Some(seconds.map_or(PAUSE, Duration::from_secs).min(LONGEST))
}

fn number<T: std::str::FromStr>(headers: &HeaderMap, name: HeaderName) -> Option<T> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn an_endpoint_says_for_how_long_it_has_too_much_to_do() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (status, headers, wanted) in [
            (429, vec![], ms(1000)),
            (429, vec![("retry-after", "7")], ms(7000)),
            (429, vec![("retry-after", "0")], ms(0)),
            (429, vec![("retry-after", "86400")], ms(60_000)),
            (429, vec![("retry-after", "99999999999999999999999")], ms(1000)),
            (429, vec![("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")], ms(1000)),
            (429, vec![("retry-after", "7"), ("x-envoy-ratelimited", "true")], None),
            (503, vec![("retry-after", "2")], ms(2000)),
            (503, vec![], None),
            (500, vec![("retry-after", "2")], None),
            (200, vec![("retry-after", "2")], None),
            (200, vec![("grpc-status", "8")], ms(1000)),
            (200, vec![("grpc-status", "8"), ("grpc-retry-pushback-ms", "250")], ms(250)),
            (200, vec![("grpc-status", "8"), ("grpc-retry-pushback-ms", "-1")], ms(1000)),
            (200, vec![("grpc-status", "8"), ("grpc-retry-pushback-ms", "3600000")], ms(60_000)),
            (200, vec![("grpc-status", "14"), ("grpc-retry-pushback-ms", "250")], None),
            (200, vec![("grpc-status", "eight")], None),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in &headers {
                map.insert(*name, HeaderValue::from_static(value));
            }
            let status = StatusCode::from_u16(status).unwrap_or_default();
            assert_eq!(of_head(status, &map), wanted, "{status} {headers:?}");
        }
    }
}
