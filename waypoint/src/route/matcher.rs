//! Matching of one text, compiled once.

use crate::route::error::CompileError;
use karst_api::route::{self as ir, text::Kind};
use regex::Regex;
use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, Weak},
};

/// How a text must be.
#[derive(Clone, Debug)]
pub enum StringMatcher {
    Exact(Box<str>),
    Prefix(Box<str>),
    /// The path itself, or with a slash after it; without a slash at its end.
    PathSegments(Box<str>),
    Regex(Arc<Regex>),
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
            Some(Kind::Regex(s)) => StringMatcher::Regex(compiled(s, ignore_case)?),
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

/// Regular expressions that rules have.
#[derive(Default)]
struct Known {
    all: HashMap<Box<str>, Weak<Regex>>,
    /// So many are looked through for those that nobody has any more.
    most: usize,
}

impl Known {
    /// Notes one.
    fn note(&mut self, pattern: &str, one: &Arc<Regex>) {
        /// Fewer are not looked through.
        const FEW: usize = 64;
        if self.all.len() >= self.most.max(FEW) {
            self.all.retain(|_, one| one.strong_count() > 0);
            self.most = 2 * self.all.len();
        }
        self.all.insert(pattern.into(), Arc::downgrade(one));
    }
}

/// See [`regex()`]. Some rule may have it already: thousands of routes that ask for the same have it once, and if one rule of a host is
/// changed, what the others have is not compiled again. (One thread compiles all rules.)
fn compiled(pattern: &str, ignore_case: bool) -> Result<Arc<Regex>, CompileError> {
    thread_local! {
        /// Those that heed the case, and those that do not.
        static KNOWN: RefCell<[Known; 2]> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        let known = &mut known[usize::from(ignore_case)];
        if let Some(one) = known.all.get(pattern).and_then(Weak::upgrade) {
            return Ok(one);
        }
        let one = Arc::new(regex(pattern, ignore_case)?);
        known.note(pattern, &one);
        Ok(one)
    })
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
    fn a_pattern_of_many_rules_is_compiled_once_and_not_kept_for_nobody() {
        let one = compiled("a+", false).unwrap();
        assert!(Arc::ptr_eq(&one, &compiled("a+", false).unwrap()));
        let other = compiled("a+", true).unwrap();
        assert!(!one.is_match("A") && other.is_match("A"), "the case is heeded or not");
        assert!(compiled("(", false).is_err() && compiled("(", false).is_err());
        let gone = Arc::downgrade(&one);
        drop(one);
        assert!(gone.upgrade().is_none());
        let mut known = Known::default();
        let kept: Vec<_> = (0..1000)
            .filter_map(|n| {
                let (pattern, one) = (format!("{n}"), Arc::new(Regex::new("x").unwrap()));
                known.note(&pattern, &one);
                (n % 100 == 0).then_some(one)
            })
            .collect();
        assert!((kept.len()..100).contains(&known.all.len()), "{}", known.all.len());
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
