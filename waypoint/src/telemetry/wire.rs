//! How large heads are, for the metrics of sizes, which count whole messages as Envoy's do. hyper and h2 do not tell what was on the
//! wire: it is what HTTP/1.1 would write, of HTTP/2 too (so without its compression), and without what hyper itself adds to an answer
//! (`date`, framing).

use http::{HeaderMap, StatusCode, Version, request::Parts};

/// Bytes of a request's head, as it was received.
pub fn request_head(parts: &Parts) -> u64 {
    let uri = &parts.uri;
    // That of HTTP/2 would be a field of its own; in HTTP/1.1 it is a part of the target, if it is there.
    let authority = uri.authority().map_or(0, |authority| {
        let around = match parts.version {
            Version::HTTP_2 => "host: \r\n".len(),
            _ => uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len()),
        };
        authority.as_str().len() + around
    });
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let line = parts.method.as_str().len() + path + "  HTTP/1.1\r\n".len();
    (line + authority + fields(&parts.headers)) as u64
}

/// Bytes of an answer's head, as it is sent.
pub fn response_head(status: StatusCode, headers: &HeaderMap) -> u64 {
    let reason = status.canonical_reason().map_or(0, str::len);
    ("HTTP/1.1 200 \r\n".len() + reason + fields(headers)) as u64
}

/// The fields, and the empty line behind them.
fn fields(headers: &HeaderMap) -> usize {
    let size = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    size.sum::<usize>() + "\r\n".len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_head_is_as_large_as_http1_writes_it() {
        for (version, method, uri, fields, want) in [
            (
                Version::HTTP_11,
                "GET",
                "/a?b=c",
                &[("host", "a"), ("x", "")][..],
                "GET /a?b=c HTTP/1.1\r\nhost: a\r\nx: \r\n\r\n",
            ),
            (Version::HTTP_11, "OPTIONS", "*", &[], "OPTIONS * HTTP/1.1\r\n\r\n"),
            (Version::HTTP_11, "GET", "http://a/", &[("host", "b")], "GET http://a/ HTTP/1.1\r\nhost: b\r\n\r\n"),
            (Version::HTTP_11, "CONNECT", "a:80", &[], "CONNECT a:80 HTTP/1.1\r\n\r\n"),
            (
                Version::HTTP_2,
                "POST",
                "http://a:81/",
                &[("x", "1"), ("x", "2")],
                "POST / HTTP/1.1\r\nhost: a:81\r\nx: 1\r\nx: 2\r\n\r\n",
            ),
        ] {
            let mut request = http::Request::builder().version(version).method(method).uri(uri);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let parts = request.body(()).unwrap().into_parts().0;
            assert_eq!(request_head(&parts), want.len() as u64, "{want}");
        }
        let mut headers = HeaderMap::new();
        let odd = StatusCode::from_u16(299).unwrap();
        assert_eq!(response_head(odd, &headers), "HTTP/1.1 299 \r\n\r\n".len() as u64);
        headers.insert("content-length", HeaderValue::from_static("2"));
        let want = "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(response_head(StatusCode::NOT_FOUND, &headers), want.len() as u64);
    }
}
