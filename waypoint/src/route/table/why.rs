//! Why a rule does not match: for `karst explain`. Each condition is asked as the look-up asks it.

use super::{RareConditions, RouteInput, Rule, StringMatcher, Table, TcpRouteInput, TcpRule, covers, header};

impl Table {
    /// The rules for a port that come before the one that matches (all, if none does), and of each the first condition that
    /// does not hold.
    pub fn passed_over(&self, port: u16, input: &RouteInput<'_>) -> Vec<(String, String)> {
        let before = self.rules(port).iter().take_while(|rule| !rule.matches(input, true));
        before.map(|rule| (rule.origin.clone(), rule.failing(input))).collect()
    }

    /// The same of rules for connections.
    pub fn passed_over_tcp(&self, input: &TcpRouteInput<'_>) -> Vec<(String, String)> {
        let chosen = self.find_tcp(input);
        let before = self.tcp.iter().take_while(|rule| !chosen.is_some_and(|found| std::ptr::eq(found, *rule)));
        before.map(|rule| (rule.origin.clone(), rule.failing(input))).collect()
    }
}

impl Rule {
    /// The first condition that does not hold, in words; empty if all hold.
    fn failing(&self, input: &RouteInput<'_>) -> String {
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

impl TcpRule {
    /// The first condition that does not hold, in words; empty if all hold.
    fn failing(&self, input: &TcpRouteInput<'_>) -> String {
        if !self.ports.is_empty() && !self.ports.contains(&u32::from(input.port)) {
            return format!("port {} is not one of {:?}", input.port, self.ports);
        }
        if !self.namespace.is_empty() && self.namespace != input.namespace {
            return format!("the caller's namespace is not {}", self.namespace);
        }
        if let Some((key, value)) = self.labels.iter().find(|(key, value)| input.labels.get(*key) != Some(value)) {
            return format!("the caller has no label {key}={value}");
        }
        let named = input.sni.is_some_and(|name| self.sni.iter().any(|host| covers(host, name)));
        match self.sni.is_empty() || named {
            true => String::new(),
            false => format!("the name in the TLS hello is not one of {}", self.sni.join(", ")),
        }
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
