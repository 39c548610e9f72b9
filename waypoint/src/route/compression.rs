//! Which answers are compressed, as a rule says.

use karst_api::route as ir;

/// Smallest body where nothing is said of it, bytes: what is smaller is one packet in any case.
const MIN_BYTES: u64 = 1024;
/// Content types where nothing is said of them (Envoy's, and RFC 9239's): text, of which half is gained. Not those of streams.
const TEXT: [&str; 9] = [
    "application/javascript",
    "application/json",
    "application/xhtml+xml",
    "image/svg+xml",
    "text/css",
    "text/html",
    "text/javascript",
    "text/plain",
    "text/xml",
];

/// Which answers are compressed.
#[derive(Debug)]
pub struct Compression {
    /// Bytes of the smallest body.
    pub min_bytes: u64,
    types: Vec<String>,
}

impl Compression {
    /// Compiles.
    pub fn new(rule: &ir::Compression) -> Self {
        let min_bytes = if rule.min_bytes == 0 { MIN_BYTES } else { u64::from(rule.min_bytes) };
        let types = match rule.content_types.is_empty() {
            true => TEXT.map(String::from).to_vec(),
            false => rule.content_types.clone(),
        };
        Self { min_bytes, types }
    }

    /// Is it for answers of this content type?
    pub fn covers(&self, content_type: &[u8]) -> bool {
        let plain = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        self.types.iter().any(|own| plain.eq_ignore_ascii_case(own.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_are_compared_without_parameters() {
        let standard = Compression::new(&ir::Compression::default());
        assert_eq!(standard.min_bytes, 1024);
        for (kind, want) in [
            ("text/html", true),
            ("Text/HTML; charset=utf-8", true),
            ("application/json ;x=y", true),
            ("text/event-stream", false),
            ("application/grpc", false),
            ("image/png", false),
            ("text/htmlx", false),
            ("", false),
        ] {
            assert_eq!(standard.covers(kind.as_bytes()), want, "{kind}");
        }
        let own = ir::Compression { min_bytes: 10, content_types: vec!["text/event-stream".into()] };
        let own = Compression::new(&own);
        assert!(own.min_bytes == 10 && own.covers(b"text/event-stream") && !own.covers(b"text/html"));
    }
}
