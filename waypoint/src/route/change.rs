//! What a rule changes: headers of requests and answers, paths and authorities.

use crate::{
    http::entry,
    route::{
        error::CompileError,
        matcher::StringMatcher,
        operators::{Value, Values},
    },
};
use http::{HeaderMap, HeaderName, HeaderValue};
use karst_api::route as ir;

/// All of them, in no more memory than they need: a vector that is collected from results has room for four.
pub(super) fn exactly<T, U>(all: &[T], one: impl Fn(&T) -> Result<U, CompileError>) -> Result<Vec<U>, CompileError> {
    let mut out = Vec::with_capacity(all.len());
    for x in all {
        out.push(one(x)?);
    }
    Ok(out)
}

pub(super) fn header_name(s: &str) -> Result<HeaderName, CompileError> {
    HeaderName::from_bytes(s.as_bytes()).map_err(|_| CompileError::HeaderName(s.into()))
}

/// Changes of headers.
#[derive(Debug)]
pub struct HeaderChange {
    pub(super) set: Vec<(HeaderName, Value)>,
    pub(super) add: Vec<(HeaderName, Value)>,
    pub(super) remove: Vec<HeaderName>,
    names: entry::Names,
}

impl HeaderChange {
    pub(super) fn new(change: Option<&ir::HeaderChange>) -> Result<Option<Box<Self>>, CompileError> {
        let Some(change) = change else { return Ok(None) };
        let pair = |h: &ir::Header| Ok::<_, CompileError>((header_name(&h.name)?, Value::new(&h.value)?));
        let mut out = Self {
            set: exactly(&change.set, pair)?,
            add: exactly(&change.add, pair)?,
            remove: exactly(&change.remove, |n| header_name(n))?,
            names: entry::Names::default(),
        };
        out.names = out.remove.iter().chain(out.set.iter().chain(&out.add).map(|(n, _)| n)).collect();
        Ok(Some(Box::new(out)))
    }

    /// The headers that are changed.
    pub fn names(&self) -> &entry::Names {
        &self.names
    }

    /// Changes headers; `values`: what operators stand for. No value is made of another that is made here (Envoy).
    pub fn apply(&self, headers: &mut HeaderMap, values: &dyn Values) {
        for n in &self.remove {
            headers.remove(n);
        }
        let all = self.set.iter().chain(&self.add).filter(|(_, v)| matches!(v, Value::Made(_)));
        let made: Vec<Option<HeaderValue>> = all.map(|(_, v)| v.make(values, headers)).collect();
        let mut made = made.into_iter();
        let mut next = |v: &Value| match v {
            Value::Fixed(v) => Some(v.clone()),
            Value::Made(_) => made.next().flatten(),
        };
        for (n, v) in &self.set {
            if let Some(v) = next(v) {
                headers.insert(n, v);
            }
        }
        for (n, v) in &self.add {
            if let Some(v) = next(v) {
                headers.append(n, v);
            }
        }
    }
}

/// Changes of path and authority.
#[derive(Debug)]
pub struct Rewrite {
    pub authority: Option<HeaderValue>,
    path: Option<PathChange>,
}

#[derive(Debug)]
enum PathChange {
    Prefix(String),
    Full(String),
    Regex(Box<(regex::Regex, String)>),
}

impl Rewrite {
    pub(super) fn new(rewrite: &ir::Rewrite) -> Result<Self, CompileError> {
        use ir::rewrite::Path;
        let authority = match rewrite.authority.as_str() {
            "" => None,
            a => Some(HeaderValue::from_str(a).map_err(|_| CompileError::Authority(a.into()))?),
        };
        let path = match &rewrite.path {
            None => None,
            Some(Path::Prefix(p)) => Some(PathChange::Prefix(p.clone())),
            Some(Path::Full(p)) => Some(PathChange::Full(p.clone())),
            Some(Path::Regex(x)) => {
                let pattern =
                    regex::Regex::new(&x.r#match).map_err(|e| CompileError::RewriteRegex(x.r#match.clone(), e))?;
                Some(PathChange::Regex(Box::new((pattern, braces(&x.rewrite)))))
            }
        };
        Ok(Self { authority, path })
    }

    /// The new path of a request whose path was matched by this; None: as it is.
    pub fn path(&self, path: &str, matched: Option<&StringMatcher>) -> Option<String> {
        Some(match self.path.as_ref()? {
            PathChange::Full(p) => p.clone(),
            PathChange::Prefix(p) => replace_prefix(path, matched, p),
            PathChange::Regex(by) => by.0.replace_all(path, by.1.as_str()).into_owned(),
        })
    }
}

/// `\1` as the regex crate writes it.
fn braces(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 4);
    let mut chars = s.chars().peekable();
    while let Some(character) = chars.next() {
        match (character, chars.peek()) {
            ('\\', Some(d)) if d.is_ascii_digit() => {
                out.push_str(&format!("${{{d}}}"));
                chars.next();
            }
            ('\\', Some('\\')) => {
                out.push('\\');
                chars.next();
            }
            ('$', _) => out.push_str("$$"),
            _ => out.push(character),
        }
    }
    out
}

/// Puts `to` in place of the part that was matched.
pub fn replace_prefix(path: &str, matched: Option<&StringMatcher>, to: &str) -> String {
    match matched {
        // Whole segments: exactly one slash between what is new and what follows.
        Some(StringMatcher::PathSegments(p)) => {
            let rest = path.get(p.len()..).unwrap_or("").trim_start_matches('/');
            let head = to.trim_end_matches('/');
            if rest.is_empty() && !path.ends_with('/') {
                return if to.is_empty() { "/".into() } else { to.into() };
            }
            format!("{head}/{rest}")
        }
        Some(StringMatcher::Prefix(p)) => absolute(format!("{to}{}", path.get(p.len()..).unwrap_or(""))),
        // Nothing was asked of the path: its first slash is what it begins with.
        None => absolute(format!("{to}{}", path.strip_prefix('/').unwrap_or(path))),
        Some(StringMatcher::Exact(_) | StringMatcher::Regex(_) | StringMatcher::Present) => to.into(),
    }
}

fn absolute(s: String) -> String {
    if s.starts_with('/') { s } else { format!("/{s}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn headers_are_changed_and_made() {
        use karst_core::operators::Operator;
        /// Knows the header that is asked for.
        struct Own;
        impl Values for Own {
            fn write(&self, o: &Operator, headers: &HeaderMap, out: &mut Vec<u8>) {
                if let Operator::Request(h) = o {
                    out.extend_from_slice(headers.get(&h.name).map_or(&b""[..], HeaderValue::as_bytes));
                }
            }
        }
        let header = |(name, value): (&str, &str)| ir::Header { name: name.into(), value: value.into() };
        let change = |set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]| ir::HeaderChange {
            set: set.iter().copied().map(header).collect(),
            add: add.iter().copied().map(header).collect(),
            remove: remove.iter().map(ToString::to_string).collect(),
        };
        let set =
            [("a", "<%REQ(user)%>"), ("user", "other"), ("kept", "%REQ(none)%"), ("per-cent", "5%%"), ("fixed", "x")];
        let c = change(&set, &[("a", "%REQ(user):2%"), ("b", "%REQ(gone)%"), ("c", "%REQ(none)%")], &["gone"]);
        let c = HeaderChange::new(Some(&c)).unwrap().unwrap();
        let mut h = HeaderMap::new();
        for (k, v) in [("user", "jason"), ("kept", "as it was"), ("gone", "1")] {
            h.insert(k, HeaderValue::from_static(v));
        }
        c.apply(&mut h, &Own);
        let mut all: Vec<String> = h.iter().map(|(k, v)| format!("{k}={}", v.to_str().unwrap())).collect();
        all.sort_unstable();
        assert_eq!(all, ["a=<jason>", "a=ja", "fixed=x", "kept=as it was", "per-cent=5%", "user=other"]);
        for bad in ["%FOO%", "50%", "a\nb", "%REQ(a)%\n"] {
            assert!(HeaderChange::new(Some(&change(&[("a", bad)], &[], &[]))).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixes_are_replaced() {
        let seg = |p: &str| StringMatcher::PathSegments(p.trim_end_matches('/').into());
        for (path, matched, to, want) in [
            ("/foo/bar", Some(seg("/foo")), "/xyz", "/xyz/bar"),
            ("/foo/bar", Some(seg("/foo")), "/xyz/", "/xyz/bar"),
            ("/foo", Some(seg("/foo")), "/xyz", "/xyz"),
            ("/foo/", Some(seg("/foo")), "/xyz", "/xyz/"),
            ("/foo/bar", Some(seg("/foo")), "/", "/bar"),
            ("/foo", Some(seg("/foo")), "/", "/"),
            ("/foo", Some(seg("/foo")), "", "/"),
            ("/foo/bar", Some(seg("/foo")), "", "/bar"),
            ("/bar", Some(seg("/")), "/v1", "/v1/bar"),
            ("/ratings/1", Some(StringMatcher::Prefix("/ratings".into())), "/v1/r", "/v1/r/1"),
            ("/x", None, "/y/", "/y/x"),
            ("/x", Some(StringMatcher::Exact("/x".into())), "/y", "/y"),
        ] {
            assert_eq!(replace_prefix(path, matched.as_ref(), to), want, "{path} {to}");
        }
        let r = ir::Regex { r#match: "^/v(\\d+)/(.*)$".into(), rewrite: "/\\2/\\1$".into() };
        let r =
            Rewrite::new(&ir::Rewrite { authority: String::new(), path: Some(ir::rewrite::Path::Regex(r)) }).unwrap();
        assert_eq!(r.path("/v2/x", None).unwrap(), "/x/2$");
    }
}
