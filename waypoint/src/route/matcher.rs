//! Matching of one text, compiled once.

use crate::route::error::CompileError;
use karst_api::route::{self as ir, text::Kind};
use regex::Regex;

/// How a text must be.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    Exact(Box<str>),
    Prefix(Box<str>),
    /// The path itself, or with a slash after it; without a slash at its end.
    PathSegments(Box<str>),
    Regex(Box<Regex>),
    Present,
}

impl StringMatcher {
    /// Compiles.
    ///
    /// # Errors
    /// For a regular expression that is none, and for a kind that is not known.
    pub fn new(t: &ir::Text, ignore_case: bool) -> Result<Self, CompileError> {
        let case = |s: &String| if ignore_case { s.to_lowercase() } else { s.clone() };
        Ok(match &t.kind {
            Some(Kind::Exact(s)) => StringMatcher::Exact(case(s).into()),
            Some(Kind::Prefix(s)) => StringMatcher::Prefix(case(s).into()),
            Some(Kind::Segments(s)) => StringMatcher::PathSegments(case(s).trim_end_matches('/').into()),
            Some(Kind::Regex(s)) => StringMatcher::Regex(Box::new(regex(s, ignore_case)?)),
            Some(Kind::Present(true)) => StringMatcher::Present,
            Some(Kind::Present(false)) | None => return Err(CompileError::MatchKind),
        })
    }

    /// Does it match?
    pub fn matches(&self, text: &str) -> bool {
        match self {
            StringMatcher::Exact(e) => **e == *text,
            StringMatcher::Prefix(p) => text.starts_with(&**p),
            StringMatcher::PathSegments(p) => {
                text.strip_prefix(&**p).is_some_and(|r| r.is_empty() || r.starts_with('/'))
            }
            StringMatcher::Regex(r) => r.is_match(text),
            StringMatcher::Present => true,
        }
    }

    /// As [`StringMatcher::matches`], of a header's value, which need not be text. A regular expression takes what is none for U+FFFD, as
    /// Envoy's (RE2) does.
    pub fn matches_bytes(&self, b: &[u8]) -> bool {
        match self {
            StringMatcher::Exact(e) => e.as_bytes() == b,
            StringMatcher::Prefix(p) => b.starts_with(p.as_bytes()),
            StringMatcher::PathSegments(_) | StringMatcher::Regex(_) => self.matches(&String::from_utf8_lossy(b)),
            StringMatcher::Present => true,
        }
    }
}

/// A regular expression that must match the whole.
///
/// # Errors
/// If it is none.
pub fn regex(s: &str, ignore_case: bool) -> Result<Regex, CompileError> {
    regex::RegexBuilder::new(&format!("^(?:{s})$"))
        .case_insensitive(ignore_case)
        .build()
        .map_err(|e| CompileError::Regex(s.into(), e))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn segments_match_as_a_whole_and_patterns_the_whole_text() {
        let text = |k| StringMatcher::new(&ir::Text { kind: Some(k) }, false).unwrap();
        let seg = text(Kind::Segments("/foo/".into()));
        assert!(seg.matches("/foo") && seg.matches("/foo/") && seg.matches("/foo/x") && !seg.matches("/foox"));
        assert!(text(Kind::Segments("/".into())).matches("/anything"));
        let re = text(Kind::Regex("a|ab".into()));
        assert!(re.matches("ab") && re.matches("a") && !re.matches("abc"), "the whole must match, by any branch");
        assert!(StringMatcher::new(&ir::Text { kind: Some(Kind::Regex("(".into())) }, false).is_err());
        assert!(StringMatcher::new(&ir::Text { kind: None }, false).is_err());
    }

    #[test]
    fn values_that_are_no_text_are_compared_as_they_are() {
        let text = |k| StringMatcher::new(&ir::Text { kind: Some(k) }, false).unwrap();
        let latin = b"Andr\xe9";
        assert!(text(Kind::Exact("Zoë".into())).matches_bytes("Zoë".as_bytes()));
        assert!(!text(Kind::Exact("André".into())).matches_bytes(latin));
        assert!(text(Kind::Prefix("Andr".into())).matches_bytes(latin));
        assert!(text(Kind::Present(true)).matches_bytes(latin));
        assert!(text(Kind::Regex("Andr.".into())).matches_bytes(latin));
        assert!(!text(Kind::Regex("[a-z]+".into())).matches_bytes(latin));
    }
}
