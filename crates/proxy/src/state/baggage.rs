//! The `baggage` header that describes a workload.

use http::HeaderValue;
use std::sync::OnceLock;

/// The header, made when it is first wanted: a proxy says it of the pods that it serves, and knows thousands.
#[derive(Clone, Debug, Default)]
pub struct Baggage(OnceLock<Option<Box<HeaderValue>>>);

/// It follows from the rest of the workload.
impl PartialEq for Baggage {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Baggage {
    /// Nothing is said.
    pub(super) fn none() -> Self {
        Self(OnceLock::from(None))
    }

    /// The header that is made of these, but for those that are empty.
    pub(super) fn get(&self, pairs: &[(&str, &str)]) -> Option<&HeaderValue> {
        self.0.get_or_init(|| header(pairs).map(Box::new)).as_deref()
    }
}

fn header(pairs: &[(&str, &str)]) -> Option<HeaderValue> {
    let mut out = String::new();
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(key);
        out.push('=');
        out.push_str(value);
    }
    HeaderValue::try_from(out).ok()
}
