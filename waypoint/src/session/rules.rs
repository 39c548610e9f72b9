//! How clients of a route or service are bound to endpoints: by which cookie or header, and for how long.

use http::{HeaderName, HeaderValue, header};
use karst_api::route as ir;
use std::sync::Arc;
use xxhash_rust::xxh64::Xxh64;

/// What carries a session's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A cookie of this name, and what follows its value.
    Cookie { name: String, attributes: String },
    /// A header of requests and answers.
    Header(HeaderName),
}

/// How clients are bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRules {
    pub carrier: Carrier,
    /// From its beginning, and since it was last told, milliseconds; 0: no end.
    pub absolute_ms: u64,
    pub idle_ms: u64,
    /// The cookie says when it ends.
    permanent: bool,
    /// It is Secure where the client has spoken TLS.
    strict: bool,
    scope: String,
    /// What its values are sealed for.
    used_for: Vec<u8>,
}

/// Why nobody can be bound.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    /// No header may be called so.
    #[error("{0:?} is not a valid header name")]
    Header(String),
    /// No cookie may be called so, or have such a path.
    #[error("cookie {0:?} with path {1:?}: not a valid cookie")]
    Cookie(String, String),
}

impl SessionRules {
    /// Compiles.
    ///
    /// # Errors
    /// What cannot be carried.
    pub fn new(session: &ir::Session) -> Result<Self, SessionError> {
        let ir::Session { name, path, strict, .. } = session;
        let (carrier, kind) = if session.in_header {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| SessionError::Header(name.clone()))?;
            (Carrier::Header(name), "header")
        } else {
            // A name is a token as that of a header is (RFC 6265 §4.1.1), in whatever case.
            let fits = HeaderName::from_bytes(name.as_bytes()).is_ok() && path.bytes().all(is_path);
            if !fits {
                return Err(SessionError::Cookie(name.clone(), path.clone()));
            }
            let path = if path.is_empty() { String::new() } else { format!("; Path={path}") };
            let same_site = if *strict { "; SameSite=Strict" } else { "" };
            (Carrier::Cookie { name: name.clone(), attributes: format!("{path}; HttpOnly{same_site}") }, "cookie")
        };
        Ok(Self {
            carrier,
            absolute_ms: session.absolute_ms,
            idle_ms: session.idle_ms,
            permanent: session.permanent,
            strict: *strict,
            scope: session.scope.clone(),
            used_for: format!("karst session {kind} {name}").into_bytes(),
        })
    }

    /// The same for a service; what cannot be carried binds nobody. (The controller has looked at it.)
    pub fn of_backend(backend: Option<&ir::Backend>) -> Option<Arc<Self>> {
        Self::new(backend?.session.as_ref()?).ok().map(Arc::new)
    }

    /// What its values are sealed for: those of one name go on from rule to rule, and every other one is foreign.
    pub fn used_for(&self) -> &[u8] {
        &self.used_for
    }

    /// Stands for a destination, as this scope's.
    pub fn destination(&self, service: &str, port: u16, subset: &str) -> u64 {
        let mut hash = Xxh64::new(0);
        for part in [self.scope.as_str(), service, subset] {
            hash.update(part.as_bytes());
            hash.update(&[0]);
        }
        hash.update(&port.to_be_bytes());
        hash.digest()
    }

    /// The header of an answer that tells a client a value. `left_ms`: until the session ends, if it does. `tls`: the client has
    /// spoken it.
    pub fn header(&self, value: &str, left_ms: u64, tls: bool) -> Option<(HeaderName, HeaderValue)> {
        match &self.carrier {
            Carrier::Header(name) => Some((name.clone(), HeaderValue::from_str(value).ok()?)),
            Carrier::Cookie { name, attributes } => {
                let secure = if self.strict && tls { "; Secure" } else { "" };
                let age = match self.permanent {
                    true => format!("; Max-Age={}", left_ms.div_ceil(1000)),
                    false => String::new(),
                };
                let cookie = HeaderValue::from_str(&format!("{name}={value}{age}{attributes}{secure}"));
                Some((header::SET_COOKIE, cookie.ok()?))
            }
        }
    }
}

/// May it be in the path of a cookie (RFC 6265 §4.1.1)?
fn is_path(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) && byte != b';'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(name: &str) -> ir::Session {
        ir::Session { name: name.into(), path: "/".into(), ..Default::default() }
    }

    #[test]
    fn cookies_are_written_as_they_are_meant() {
        let told = |s: ir::Session, tls| {
            let (name, value) = SessionRules::new(&s).unwrap().header("v", 1_001, tls).unwrap();
            format!("{name}: {}", value.to_str().unwrap())
        };
        let strict = || ir::Session { strict: true, ..session("Shop") };
        let permanent = || ir::Session { permanent: true, absolute_ms: 5_000, ..session("s") };
        assert_eq!(told(strict(), true), "set-cookie: Shop=v; Path=/; HttpOnly; SameSite=Strict; Secure");
        assert_eq!(told(strict(), false), "set-cookie: Shop=v; Path=/; HttpOnly; SameSite=Strict");
        assert_eq!(told(permanent(), true), "set-cookie: s=v; Max-Age=2; Path=/; HttpOnly", "no second too early");
        let no_path = ir::Session { path: String::new(), ..session("s") };
        assert_eq!(told(no_path, true), "set-cookie: s=v; HttpOnly");
        assert_eq!(told(ir::Session { in_header: true, ..session("X-Session") }, true), "x-session: v");
    }

    #[test]
    fn what_cannot_be_carried_is_refused() {
        for (name, path) in [("", "/"), ("a b", "/"), ("a;b", "/"), ("a=b", "/"), ("a", "/;x"), ("a", "/\n")] {
            let s = ir::Session { path: path.into(), ..session(name) };
            assert!(SessionRules::new(&s).is_err(), "{name:?} {path:?}");
        }
        assert!(SessionRules::new(&ir::Session { in_header: true, ..session("a b") }).is_err());
        let backend = ir::Backend { session: Some(session("a b")), ..Default::default() };
        assert_eq!(SessionRules::of_backend(Some(&backend)), None);
    }

    #[test]
    fn a_destination_is_that_of_one_scope_service_port_and_subset() {
        let of = |scope: &str| SessionRules::new(&ir::Session { scope: scope.into(), ..session("s") }).unwrap();
        let one = of("a").destination("ns/s", 80, "");
        assert_eq!(one, of("a").destination("ns/s", 80, ""), "the same in every process");
        for other in [
            of("b").destination("ns/s", 80, ""),
            of("a").destination("ns/t", 80, ""),
            of("a").destination("ns/s", 81, ""),
            of("a").destination("ns/s", 80, "v1"),
            of("").destination("ans/s", 80, ""),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn values_are_for_one_carrier() {
        let cookie = SessionRules::new(&session("s")).unwrap();
        let header = SessionRules::new(&ir::Session { in_header: true, ..session("s") }).unwrap();
        let scoped = SessionRules::new(&ir::Session { scope: "x".into(), ..session("s") }).unwrap();
        assert_ne!(cookie.used_for(), header.used_for());
        assert_eq!(cookie.used_for(), scoped.used_for());
    }
}
