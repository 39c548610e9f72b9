//! Why a rule does not match: for `karst explain`. Each condition is asked as the look-up asks it.

use super::{RareConditions, Rule, header};
use crate::route::{input::RouteInput, matcher::StringMatcher};

impl Rule {
    /// The first condition that does not hold, in words; empty if all hold.
    pub(in crate::route) fn failing(&self, input: &RouteInput<'_>) -> String {
        let fails = |t: &Option<StringMatcher>, s: &str| t.as_ref().filter(|t| !t.matches(s)).map(words);
        let path = match self.ignore_case {
            true => input.path.to_lowercase(),
            false => input.path.to_string(),
        };
        if let Some(wanted) = fails(&self.path, &path) {
            return format!("path {} {wanted}", input.path);
        }
        if let Some(wanted) = fails(&self.method, input.method) {
            return format!("method {} {wanted}", input.method);
        }
        let rare = self.rare.as_deref();
        if let Some(wanted) = rare.and_then(|rare| fails(&rare.scheme, input.scheme)) {
            return format!("scheme {} {wanted}", input.scheme);
        }
        if let Some(wanted) = rare.and_then(|rare| fails(&rare.authority, input.authority)) {
            return format!("host {} {wanted}", input.authority);
        }
        let failing =
            |(name, wanted, invert): &&(_, StringMatcher, bool)| header(input, name, wanted, *invert) == *invert;
        if let Some((name, wanted, invert)) = self.headers.iter().find(failing) {
            return match invert {
                true => format!("header {name} must not be so: it is excluded"),
                false => format!("header {name} {}", words(wanted)),
            };
        }
        rare.map(|rare| rare.failing(input)).unwrap_or_default()
    }
}

impl RareConditions {
    /// As [`Rule::failing`], of those that come after the headers.
    fn failing(&self, input: &RouteInput<'_>) -> String {
        if let Some(claim) = self.claims.iter().find(|claim| !claim.holds(input.token)) {
            let name = claim.path.join(".");
            return match (claim.invert, input.token) {
                (true, _) => format!("claim {name} must not be so: it is excluded"),
                (false, None) => format!("claim {name} is not there: no token was verified"),
                (false, Some(_)) => format!("claim {name} {}", words(&claim.value)),
            };
        }
        let has = |name: &String, wanted: &StringMatcher| {
            input.parameters().iter().any(|(key, value)| key == name && wanted.matches(value))
        };
        if let Some((name, wanted, _)) = self.query.iter().find(|(n, t, invert)| has(n, t) == *invert) {
            return format!("query parameter {name} {}", words(wanted));
        }
        if !self.namespace.is_empty() && self.namespace != input.namespace {
            return format!("the caller's namespace is not {}", self.namespace);
        }
        let label = self.labels.iter().find(|(key, value)| input.labels.get(*key) != Some(value));
        label.map(|(key, value)| format!("the caller has no label {key}={value}")).unwrap_or_default()
    }
}

/// What a condition wants, after the value that does not have it.
fn words(wanted: &StringMatcher) -> String {
    match wanted {
        StringMatcher::Exact(text) => format!("is not {text:?}"),
        StringMatcher::Prefix(text) => format!("does not begin with {text:?}"),
        StringMatcher::PathSegments(text) => format!("is not below {:?}", if text.is_empty() { "/" } else { text }),
        StringMatcher::Regex(pattern) => format!("does not match the regular expression {:?}", pattern.as_str()),
        StringMatcher::Present => "is not there".into(),
    }
}
