//! Who may read answers across origins.

use crate::route::{error::CompileError, matcher::StringMatcher};
use http::HeaderValue;
use karst_api::route as ir;

/// Cross-origin requests.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<StringMatcher>,
    /// What matches `*` stands for every origin, whichever kind of match it is (Envoy).
    is_for_all: bool,
    pub ir: ir::Cors,
}

impl Cors {
    pub(super) fn new(c: &ir::Cors) -> Result<Self, CompileError> {
        let origins = c.origins.iter().map(|t| StringMatcher::new(t, false)).collect::<Result<Vec<_>, _>>()?;
        let is_for_all = origins.iter().any(|t| t.matches("*"));
        Ok(Self { origins, is_for_all, ir: c.clone() })
    }

    /// May this origin?
    pub fn admits(&self, origin: &HeaderValue) -> bool {
        self.is_for_all || self.origins.iter().any(|t| t.matches_bytes(origin.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use ir::text::Kind;

    #[test]
    fn what_matches_a_star_stands_for_every_origin() {
        for (kind, all) in [
            (Kind::Exact("*".into()), true),
            (Kind::Prefix("*".into()), true),
            (Kind::Prefix(String::new()), true),
            (Kind::Regex(".*".into()), true),
            (Kind::Regex("https://.*".into()), false),
            (Kind::Prefix("https://*".into()), false),
            (Kind::Exact("https://a".into()), false),
        ] {
            let origins = vec![ir::Text { kind: Some(kind.clone()) }];
            let c = Cors::new(&ir::Cors { origins, ..Default::default() }).unwrap();
            let admits = |o| c.admits(&HeaderValue::from_static(o));
            assert_eq!([admits("http://b"), admits("null")], [all; 2], "{kind:?}");
        }
    }
}
