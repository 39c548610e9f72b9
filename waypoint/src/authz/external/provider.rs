//! Who is asked, and how: the providers of external authorization that policies name, compiled.

use crate::{
    authz::generations::{Key, key},
    http::entry,
};
use aws_lc_rs::digest;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, HOST},
    uri::PathAndQuery,
};
use karst_api::route::{self as ir, AuthzProtocol};
use prost::Message;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// A question takes at most this long where nothing is said (Istio's default).
const TIMEOUT: Duration = Duration::from_secs(600);
/// Questions of policies in dry run that wait at a time; beyond, nobody is asked for them.
const TRIALS: usize = 100;
/// Most bytes of a request's body that are kept for a question.
pub const MAX_BODY: u32 = 10 << 20;

/// Who is asked.
#[derive(Debug)]
pub struct Provider {
    pub name: Arc<str>,
    /// `HOST` or `NAMESPACE/HOST` of a service.
    pub service: Arc<str>,
    pub port: u16,
    /// Of one question.
    pub timeout: Duration,
    /// Without an answer the request goes on.
    pub fail_open: bool,
    /// The answer to requests where there is none.
    pub status_on_error: StatusCode,
    /// None: the body is not sent.
    pub body: Option<BodyRule>,
    pub protocol: Protocol,
    /// None: an answer is for one request.
    pub cache: Option<CacheRule>,
    /// Places of questions that nobody waits for.
    pub trials: Arc<Semaphore>,
}

/// What of a request's body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyRule {
    pub max: usize,
    /// Of a larger one the start.
    pub allow_partial: bool,
    /// Of gRPC: as bytes and not as text.
    pub as_bytes: bool,
}

/// How long an answer is for all requests that have the same values of these, in milliseconds.
#[derive(Debug, PartialEq, Eq)]
pub struct CacheRule {
    pub ttl: u64,
    pub keys: Vec<CacheKey>,
    /// A hash of all that is told of the provider: another one has other answers.
    pub provider: Key,
}

/// What of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum CacheKey {
    Method,
    Host,
    Path,
    /// All of it.
    Query,
    /// A parameter of the query, each time that it is there.
    Parameter(String),
    Header(HeaderName),
    /// Of the client.
    SourceAddress,
    /// Its identity; if it has none, its address, and the certificate that it has shown to the gateway.
    Caller,
}

/// What it speaks.
#[derive(Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc(GrpcRules),
    Http(Box<HttpRules>),
}

/// Of one that is asked by gRPC.
#[derive(Debug, PartialEq, Eq)]
pub struct GrpcRules {
    /// Headers of the request that are sent; none: all.
    pub request: Vec<NamePattern>,
}

/// Of one that is asked by HTTP.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpRules {
    /// Before the request's path.
    pub path_prefix: String,
    /// Headers of the request that are sent.
    pub request: Vec<NamePattern>,
    /// Sent in place of what the request has.
    pub additional: HeaderMap,
    /// Headers of the answer that the request goes on with. None: all.
    pub upstream_on_allow: Option<Vec<NamePattern>>,
    /// Headers of the answer that the client gets with that of the service.
    pub downstream_on_allow: Vec<NamePattern>,
    /// Headers of the answer that the client gets with it; none: all.
    pub downstream_on_deny: Vec<NamePattern>,
}

/// A name of headers, or the beginning or end of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    Exact(HeaderName),
    Prefix(String),
    Suffix(String),
}

/// What cannot be asked.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProviderError {
    #[error("service {0:?}")]
    Service(String),
    #[error("port {0}")]
    Port(u32),
    #[error("protocol {0}")]
    Protocol(i32),
    #[error("status {0}")]
    Status(u32),
    #[error("path {0:?}")]
    Path(String),
    #[error("header {0:?}")]
    Header(String),
    #[error("a body of up to {0} bytes")]
    Body(u32),
}

impl Provider {
    /// Compiles.
    ///
    /// # Errors
    /// If the message is not of this version; then nobody is to use it.
    pub fn new(said: &ir::AuthzProvider) -> Result<Self, ProviderError> {
        let port = u16::try_from(said.port).ok().filter(|port| *port > 0).ok_or(ProviderError::Port(said.port))?;
        if said.service.is_empty() {
            return Err(ProviderError::Service(said.service.clone()));
        }
        let protocol =
            match AuthzProtocol::try_from(said.protocol).map_err(|_| ProviderError::Protocol(said.protocol))? {
                AuthzProtocol::AuthzGrpc => Protocol::Grpc(GrpcRules { request: patterns(&said.request_headers)? }),
                AuthzProtocol::AuthzHttp => Protocol::Http(Box::new(HttpRules::new(said)?)),
            };
        let body = said.body.as_ref().filter(|body| body.max_bytes > 0);
        if let Some(body) = body.filter(|body| body.max_bytes > MAX_BODY) {
            return Err(ProviderError::Body(body.max_bytes));
        }
        Ok(Self {
            name: said.name.as_str().into(),
            service: said.service.as_str().into(),
            port,
            timeout: if said.timeout_ms == 0 { TIMEOUT } else { Duration::from_millis(said.timeout_ms) },
            fail_open: said.fail_open,
            status_on_error: match said.status_on_error {
                0 => StatusCode::FORBIDDEN,
                // None of success: who asks for one has written something else than was meant.
                number => status(number).filter(|s| s.as_u16() >= 400).ok_or(ProviderError::Status(number))?,
            },
            body: body.map(|body| BodyRule {
                max: body.max_bytes as usize,
                allow_partial: body.allow_partial,
                as_bytes: body.as_bytes,
            }),
            protocol,
            cache: CacheRule::new(said),
            trials: Arc::new(Semaphore::new(TRIALS)),
        })
    }

    /// Would another one, of a later state, be asked the same, and at the same place?
    pub fn is_same(&self, other: &Self) -> bool {
        let place = |p: &Self| (p.name.clone(), p.service.clone(), p.port, p.body);
        place(self) == place(other) && self.protocol == other.protocol
    }
}

impl CacheRule {
    /// None: nothing is to be kept, or by what this version does not know.
    fn new(said: &ir::AuthzProvider) -> Option<Self> {
        let rule = said.cache.as_ref().filter(|rule| rule.ttl_ms > 0 && !rule.keys.is_empty())?;
        let keys = rule.keys.iter().map(CacheKey::new).collect::<Option<_>>()?;
        let provider = key(&digest::digest(&digest::SHA256, &said.encode_to_vec()));
        Some(Self { ttl: rule.ttl_ms, keys, provider })
    }
}

impl CacheKey {
    fn new(said: &ir::AuthzCacheKey) -> Option<Self> {
        use ir::authz_cache_key::Key;
        Some(match said.key.as_ref()? {
            Key::Method(_) => Self::Method,
            Key::Host(_) => Self::Host,
            Key::Path(_) => Self::Path,
            Key::Query(_) => Self::Query,
            Key::Parameter(name) => Self::Parameter(name.clone()),
            Key::Header(name) => match HeaderName::from_bytes(name.as_bytes()).ok()? {
                HOST => Self::Host,
                name => Self::Header(name),
            },
            Key::SourceAddress(_) => Self::SourceAddress,
            Key::Caller(_) => Self::Caller,
        })
    }
}

/// A number that an answer may have as its status.
pub fn status(number: u32) -> Option<StatusCode> {
    let is_final = (200..=599).contains(&number);
    u16::try_from(number).ok().filter(|_| is_final).and_then(|number| StatusCode::from_u16(number).ok())
}

impl HttpRules {
    fn new(said: &ir::AuthzProvider) -> Result<Self, ProviderError> {
        let mut additional = HeaderMap::new();
        for header in &said.additional_headers {
            let wrong = || ProviderError::Header(header.name.clone());
            let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| wrong())?;
            if name == HOST || name == CONTENT_LENGTH || entry::concerns_connection(&name) {
                return Err(wrong());
            }
            let mut value = HeaderValue::from_str(&header.value).map_err(|_| wrong())?;
            // It may be a token.
            value.set_sensitive(true);
            additional.insert(name, value);
        }
        let prefix = &said.path_prefix;
        let is_path = |p: &str| p.starts_with('/') && !p.contains(['?', '#']) && PathAndQuery::try_from(p).is_ok();
        if !prefix.is_empty() && !is_path(prefix) {
            return Err(ProviderError::Path(prefix.clone()));
        }
        Ok(Self {
            // Paths of requests begin with a slash.
            path_prefix: prefix.strip_suffix('/').unwrap_or(prefix).into(),
            request: patterns(&said.request_headers)?,
            additional,
            upstream_on_allow: match said.all_upstream_on_allow {
                true => None,
                false => Some(patterns(&said.upstream_on_allow)?),
            },
            downstream_on_allow: patterns(&said.downstream_on_allow)?,
            downstream_on_deny: patterns(&said.downstream_on_deny)?,
        })
    }
}

fn patterns(all: &[String]) -> Result<Vec<NamePattern>, ProviderError> {
    all.iter().map(|text| NamePattern::new(text).ok_or_else(|| ProviderError::Header(text.clone()))).collect()
}

impl NamePattern {
    /// Reads `name`, `start*` or `*end`. None: it is none of them.
    pub fn new(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        // What stands in names.
        let part = |part: &str| HeaderName::from_bytes(part.as_bytes()).ok().filter(|_| !part.contains('*'));
        match (lower.strip_suffix('*'), lower.strip_prefix('*')) {
            (Some(start), _) => part(start).map(|_| Self::Prefix(start.into())),
            (None, Some(end)) => part(end).map(|_| Self::Suffix(end.into())),
            (None, None) => part(&lower).map(Self::Exact),
        }
    }

    fn matches(&self, name: &HeaderName) -> bool {
        match self {
            Self::Exact(own) => own == name,
            Self::Prefix(start) => name.as_str().starts_with(start.as_str()),
            Self::Suffix(end) => name.as_str().ends_with(end.as_str()),
        }
    }

    /// Does one of them stand for a name?
    pub fn any(all: &[Self], name: &HeaderName) -> bool {
        all.iter().any(|pattern| pattern.matches(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn patterns_of_names() {
        for (text, matching, other) in [
            ("X-User", "x-user", "x-user-id"),
            ("x-auth-*", "x-auth-user", "x-aut"),
            ("*-id", "x-request-id", "x-id-a"),
        ] {
            let pattern = NamePattern::new(text).unwrap();
            let is = |name: &'static str| pattern.matches(&HeaderName::from_static(name));
            assert!(is(matching) && !is(other), "{text}");
        }
        for none in ["", "*", "**", "a*b", "*a*", "a b", ":path"] {
            assert_eq!(NamePattern::new(none), None, "{none}");
        }
    }

    #[test]
    fn answers_are_kept_only_by_what_is_known() {
        use ir::authz_cache_key::Key;
        let rule = |ttl_ms: u64, keys: &[Option<Key>]| {
            let keys = keys.iter().map(|key| ir::AuthzCacheKey { key: key.clone() }).collect();
            let cache = Some(ir::AuthzCache { ttl_ms, keys });
            Provider::new(&ir::AuthzProvider { service: "s".into(), port: 80, cache, ..Default::default() })
                .unwrap()
                .cache
        };
        let (path, header) = (Some(Key::Path(true)), Some(Key::Header("X-User".into())));
        let kept = rule(10, &[path.clone(), header.clone()]).unwrap();
        let keys = [CacheKey::Path, CacheKey::Header(HeaderName::from_static("x-user"))];
        assert_eq!((kept.ttl, &kept.keys[..]), (10, &keys[..]));
        assert_ne!(kept.provider, rule(11, &[path.clone(), header]).unwrap().provider);
        for none in [
            rule(0, std::slice::from_ref(&path)),
            rule(10, &[]),
            rule(10, &[path.clone(), None]),
            rule(10, &[path, Some(Key::Header("not a name".into()))]),
        ] {
            assert_eq!(none, None);
        }
    }

    #[test]
    fn what_is_not_of_this_version_is_refused() {
        let good = || ir::AuthzProvider { name: "p".into(), service: "s".into(), port: 80, ..Default::default() };
        let p = Provider::new(&good()).unwrap();
        assert_eq!((p.timeout, p.fail_open, p.status_on_error.as_u16()), (TIMEOUT, false, 403));
        let http = |change: fn(&mut ir::AuthzProvider)| {
            let mut p = ir::AuthzProvider { protocol: AuthzProtocol::AuthzHttp as i32, ..good() };
            change(&mut p);
            Provider::new(&p).unwrap_err()
        };
        for (error, wanted) in [
            (http(|p| p.port = 0), ProviderError::Port(0)),
            (http(|p| p.port = 70_000), ProviderError::Port(70_000)),
            (http(|p| p.service.clear()), ProviderError::Service(String::new())),
            (http(|p| p.protocol = 2), ProviderError::Protocol(2)),
            (http(|p| p.status_on_error = 200), ProviderError::Status(200)),
            (http(|p| p.status_on_error = 600), ProviderError::Status(600)),
            (http(|p| p.path_prefix = "x".into()), ProviderError::Path("x".into())),
            (http(|p| p.path_prefix = "/x?y".into()), ProviderError::Path("/x?y".into())),
            (http(|p| p.request_headers = vec!["*".into()]), ProviderError::Header("*".into())),
            (http(|p| p.upstream_on_allow = vec!["a b".into()]), ProviderError::Header("a b".into())),
            (
                http(|p| p.additional_headers = vec![ir::CheckHeader { name: "a".into(), value: "\n".into() }]),
                ProviderError::Header("a".into()),
            ),
            (
                http(|p| p.additional_headers = vec![ir::CheckHeader { name: "Host".into(), value: "a".into() }]),
                ProviderError::Header("Host".into()),
            ),
            (
                http(|p| p.body = Some(ir::CheckBody { max_bytes: MAX_BODY + 1, ..Default::default() })),
                ProviderError::Body(MAX_BODY + 1),
            ),
        ] {
            assert_eq!(error, wanted);
        }
    }
}
