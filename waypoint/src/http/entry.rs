//! The entry: what a client has sent becomes the canonical request, once. Routes, policies, tokens, logs and the application all see
//! that one. In this order: what concerns the client's connection is taken out, before anything that we write is there or is
//! trusted; then what only proxies write, and names that an application may take for others; cookies become one field; the
//! authority and the path get their canonical forms. A request that is canonical already costs no allocation (of HTTP/2, one:
//! its authority as a header).

use crate::http::codec::{HeadLimits, MAX_FIELDS};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{self, CONNECTION, UPGRADE},
    request::Parts,
};
use hyper::ext::Protocol;
use karst_core::authority;
use std::borrow::Cow;

/// Headers that concern one connection only (RFC 9110 §7.6.1).
static HOP: [HeaderName; 6] = [
    CONNECTION,
    header::TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Headers that only proxies write: a client's own would pass for one of ours.
static FORGED: [HeaderName; 5] = [
    HeaderName::from_static("x-forwarded-client-cert"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-envoy-internal"),
    HeaderName::from_static("x-envoy-external-address"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
];

/// What a proxy or the protocol itself writes: an application that reads `_` as `-` must get it from nobody else.
const WRITTEN: [&str; 3] = ["content-length", "transfer-encoding", "x-request-id"];
/// The same, of all names that begin so.
const WRITTEN_PREFIXES: [&str; 2] = ["x-envoy-", "x-forwarded-"];

/// Does a head that was changed on the way have no more fields than one that comes in may have, and no more bytes?
pub fn fits(headers: &HeaderMap, limits: HeadLimits) -> bool {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    headers.len() <= limits.fields && bytes <= limits.bytes as usize
}

/// The one protocol that a connection may change to (RFC 6455).
const WEBSOCKET: &[u8] = b"websocket";

/// What of a request is not in its head any more.
pub struct Entry {
    pub authority: Authority,
    /// It asks for WebSocket.
    pub websocket: bool,
    /// By an extended CONNECT of HTTP/2 (RFC 8441).
    pub is_extended: bool,
}

/// Why a head cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It asks for a tunnel.
    Connect,
    /// It asks for one in which something else than WebSocket would be spoken.
    Protocol,
    /// It does not say which host it calls.
    NoHost,
    /// That is no authority, or there are two.
    Authority,
    /// Its path has no plain form.
    Path,
    /// It has more fields than it may have.
    Fields,
}

impl Unfit {
    /// The answer.
    pub fn status(self) -> StatusCode {
        match self {
            Unfit::Connect => StatusCode::METHOD_NOT_ALLOWED,
            // RFC 9220 §3.
            Unfit::Protocol => StatusCode::NOT_IMPLEMENTED,
            Unfit::NoHost | Unfit::Authority | Unfit::Path => StatusCode::BAD_REQUEST,
            Unfit::Fields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }

    /// Envoy's response code details.
    pub fn details(self) -> &'static str {
        match self {
            Unfit::Connect => "http.connect_not_supported",
            Unfit::Protocol => "upgrade_failed",
            Unfit::NoHost => "missing_host_header",
            Unfit::Authority => "http.invalid_authority",
            Unfit::Path => "path_normalization_failed",
            Unfit::Fields => "http2.too_many_headers",
        }
    }
}

/// What the fields of a head call for, found by one look at each: most heads call for nothing. (What is taken out meanwhile may make
/// less of it, never more.)
#[derive(Default)]
struct Fields {
    /// Fields of this name.
    cookies: usize,
    /// Some concern one connection only.
    of_connection: bool,
    /// Some pass for ours.
    forged: bool,
    /// Some have names with `_`.
    underscores: bool,
}

impl Fields {
    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for name in headers.iter().map(|(name, _)| name) {
            if *name == header::COOKIE {
                found.cookies += 1;
            } else if concerns_connection(name) {
                found.of_connection = true;
            } else if FORGED.contains(name) {
                found.forged = true;
            } else {
                found.underscores |= has_underscore(name);
            }
        }
        found
    }
}

/// Makes the head canonical.
///
/// # Errors
/// It cannot be taken.
pub fn canonical(parts: &mut Parts) -> Result<Entry, Unfit> {
    canonical_within(parts, MAX_FIELDS)
}

/// The same, of a head that may have so many fields.
///
/// # Errors
/// It cannot be taken.
pub fn canonical_within(parts: &mut Parts, most: usize) -> Result<Entry, Unfit> {
    let is_extended = parts.method == Method::CONNECT;
    if is_extended {
        as_upgrade(parts)?;
    }
    let found = Fields::of(&parts.headers);
    // Before anything is done for each of them.
    if parts.headers.len() - found.cookies + usize::from(found.cookies > 0) > most {
        return Err(Unfit::Fields);
    }
    let websocket = is_extended || found.of_connection && asks_for_websocket(parts);
    if found.of_connection {
        strip_found(&mut parts.headers);
    }
    if found.forged {
        for name in &FORGED {
            parts.headers.remove(name);
        }
    }
    if found.underscores {
        drop_doubles(&mut parts.headers);
    }
    if found.cookies > 1 {
        join_cookies(&mut parts.headers);
    }
    let (authority, differs) = Authority::read(parts).ok_or_else(|| {
        let is_named = parts.uri.authority().is_some() || parts.headers.contains_key(header::HOST);
        if is_named { Unfit::Authority } else { Unfit::NoHost }
    })?;
    if differs {
        parts.headers.insert(header::HOST, authority.value().clone());
    }
    // No application expects this; some end the path there.
    if parts.uri.path().contains("%00") {
        return Err(Unfit::Path);
    }
    if let Cow::Owned(plain) = plain_path(parts.uri.path()) {
        let whole = parts.uri.query().map_or_else(|| plain.clone(), |q| format!("{plain}?{q}"));
        parts.uri = Uri::try_from(whole).map_err(|_| Unfit::Path)?;
    }
    Ok(Entry { authority, websocket, is_extended })
}

/// A CONNECT is what HTTP/1.1 would have asked by an upgrade, if it asks for WebSocket: policies and routes see a GET (as Envoy's do).
fn as_upgrade(parts: &mut Parts) -> Result<(), Unfit> {
    let protocol = parts.extensions.remove::<Protocol>().ok_or(Unfit::Connect)?;
    if !protocol.as_ref().eq_ignore_ascii_case(WEBSOCKET) {
        return Err(Unfit::Protocol);
    }
    parts.method = Method::GET;
    Ok(())
}

/// What a request calls the host, in its canonical form.
#[derive(Clone, Debug)]
pub struct Authority {
    value: HeaderValue,
    /// Length of the host in it.
    host: usize,
    port: Option<u16>,
}

impl Authority {
    /// Of a request: exactly one answer, or none. True: its `Host` is there, and is written in another way.
    fn read(parts: &Parts) -> Option<(Self, bool)> {
        let mut fields = parts.headers.get_all(header::HOST).iter();
        let (field, None) = (fields.next(), fields.next()) else { return None };
        let Some(own) = parts.uri.authority() else {
            let (field, read) = (field?, authority::Authority::parse(field?.as_bytes()).ok()?);
            return match read.is_canonical() {
                true => Some((Self { value: field.clone(), host: read.host().len(), port: read.port() }, false)),
                false => Some((Self::new(&read)?, true)),
            };
        };
        let read = authority::Authority::parse(own.as_str().as_bytes()).ok()?;
        // Of HTTP/2 both may be there, and then they must say the same (RFC 9113 §8.3.1). In HTTP/1.1 the target counts
        // (RFC 9112 §3.2.2).
        let other =
            field.filter(|_| parts.version == Version::HTTP_2).map(|f| authority::Authority::parse(f.as_bytes()));
        let authority = match other {
            Some(Ok(o)) if (o.host(), o.port()) != (read.host(), read.port()) => return None,
            Some(Err(_)) => return None,
            Some(Ok(_)) | None => Self::new(&read)?,
        };
        let differs = field.is_some_and(|f| *f != authority.value);
        Some((authority, differs))
    }

    fn new(read: &authority::Authority<'_>) -> Option<Self> {
        let value = match read.port() {
            None => HeaderValue::from_str(read.host()),
            Some(_) => HeaderValue::try_from(read.to_string()),
        };
        Some(Self { value: value.ok()?, host: read.host().len(), port: read.port() })
    }

    /// As a header.
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// As it is compared.
    pub fn as_str(&self) -> &str {
        self.value.to_str().unwrap_or_default()
    }

    /// Without the port.
    pub fn host(&self) -> &str {
        self.as_str().get(..self.host).unwrap_or_default()
    }

    /// The port, if it is named.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// The members of a header that is a list.
fn members(h: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    h.get_all(name).iter().flat_map(|v| v.as_bytes().split(|b| *b == b',')).map(<[u8]>::trim_ascii)
}

/// Is WebSocket asked for? Every other protocol is one in which nothing would be judged any more; a client that offers one (h2c:
/// Java's, Apache's) goes on in HTTP/1.1.
fn asks_for_websocket(p: &Parts) -> bool {
    p.version == Version::HTTP_11
        && p.method == Method::GET
        && names_websocket(&p.headers)
        && members(&p.headers, CONNECTION).any(|m| m.eq_ignore_ascii_case(b"upgrade"))
}

/// Does a head name WebSocket as the protocol to change to?
pub fn names_websocket(h: &HeaderMap) -> bool {
    members(h, UPGRADE).any(|m| m.eq_ignore_ascii_case(WEBSOCKET))
}

/// Says that the connection is to change to WebSocket.
pub fn upgrade(h: &mut HeaderMap) {
    h.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    h.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Takes out what concerns one connection only, and what `Connection` names besides. `TE: trailers` stays: gRPC asks for it end to
/// end.
pub fn strip(headers: &mut HeaderMap) {
    if headers.keys().any(concerns_connection) {
        strip_found(headers);
    }
}

/// Does a field of this name concern one connection only, or may it?
pub fn concerns_connection(name: &HeaderName) -> bool {
    *name == header::TE || HOP.contains(name)
}

fn strip_found(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        // Most name only what is taken out in any case.
        let is_other = |n: &&[u8]| !HOP.iter().any(|hop| n.eq_ignore_ascii_case(hop.as_str().as_bytes()));
        let named = members(headers, CONNECTION).filter(is_other);
        let named: Vec<HeaderName> = named.filter_map(|n| HeaderName::from_bytes(n).ok()).collect();
        for name in named.iter().filter(|name| **name != header::TE) {
            headers.remove(name);
        }
    }
    for name in &HOP {
        headers.remove(name);
    }
    if headers.get(header::TE).is_some_and(|v| v != "trailers") {
        headers.remove(header::TE);
    }
}

/// Are these the same name to an application that reads `_` as `-` (CGI, WSGI, PHP)?
fn alike(a: &str, b: &str) -> bool {
    looked_at_one();
    let dash = |b: u8| if b == b'_' { b'-' } else { b };
    a.len() == b.len() && a.bytes().map(dash).eq(b.bytes().map(dash))
}

fn has_underscore(n: &HeaderName) -> bool {
    n.as_str().bytes().any(|b| b == b'_')
}

/// As an application has it that reads `_` as `-`.
fn dashed(n: &HeaderName) -> String {
    looked_at_one();
    n.as_str().replace('_', "-")
}

/// A name has been read, alone or beside another one: tests count the work, which a client's head decides about.
#[cfg(not(test))]
fn looked_at_one() {}
#[cfg(test)]
fn looked_at_one() {
    tests::LOOKS.with(|looks| looks.set(looks.get() + 1));
}

/// Takes out names with `_` that an application may take for another that is there, or for one that we write.
fn drop_doubles(headers: &mut HeaderMap) {
    if !headers.keys().any(has_underscore) {
        return;
    }
    let written = |n: &str| {
        WRITTEN.iter().any(|w| alike(w, n))
            || WRITTEN_PREFIXES.iter().any(|w| n.get(..w.len()).is_some_and(|start| alike(w, start)))
    };
    let mut all: Vec<String> = headers.keys().map(dashed).collect();
    all.sort_unstable();
    let twice = |n: &HeaderName| {
        let n = dashed(n);
        let at = all.partition_point(|x| *x < n);
        all.get(at + 1).is_some_and(|x| *x == n)
    };
    drop_where(headers, |n| written(n.as_str()) || twice(n));
}

/// Takes out those of the names with `_`.
fn drop_where(headers: &mut HeaderMap, double: impl Fn(&HeaderName) -> bool) {
    let doubles: Vec<HeaderName> = headers.keys().filter(|n| has_underscore(n) && double(n)).cloned().collect();
    for n in doubles {
        headers.remove(n);
    }
}

/// Names of headers that we judge or write, compiled: whether one is taken for them costs no look at each.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// In order.
    own: Box<[HeaderName]>,
    /// As an application has them that reads `_` as `-`, in order. Empty: so they are written.
    dashed: Box<[Box<str>]>,
}

impl<'a> FromIterator<&'a HeaderName> for Names {
    fn from_iter<I: IntoIterator<Item = &'a HeaderName>>(all: I) -> Self {
        let mut own: Vec<HeaderName> = all.into_iter().cloned().collect();
        own.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        own.dedup();
        let mut read: Vec<Box<str>> = vec![];
        if own.iter().any(has_underscore) {
            read.extend(own.iter().map(|n| dashed(n).into_boxed_str()));
            read.sort_unstable();
        }
        Self { own: own.into(), dashed: read.into() }
    }
}

impl Names {
    /// Is it one of them?
    pub fn contains(&self, n: &HeaderName) -> bool {
        self.has(n.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.own.binary_search_by(|own| own.as_str().cmp(name)).is_ok()
    }

    /// May an application take it for one of them?
    fn is_read_as_one(&self, n: &HeaderName) -> bool {
        let n = dashed(n);
        match self.dashed.is_empty() {
            true => self.has(&n),
            false => self.dashed.binary_search_by(|read| (**read).cmp(&*n)).is_ok(),
        }
    }

    /// Takes out names with `_` that an application may take for one of these. (What is meant itself is not taken for another.)
    pub fn drop_alike(&self, h: &mut HeaderMap) {
        if h.keys().any(has_underscore) {
            drop_where(h, |n| !self.contains(n) && self.is_read_as_one(n));
        }
    }
}

/// The value of a header: several lines of it are one, joined by commas (RFC 9110 §5.3). None: it is not there.
pub fn joined<'a>(h: &'a HeaderMap, n: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut all = h.get_all(n).iter().map(HeaderValue::as_bytes);
    let first = all.next()?;
    let Some(second) = all.next() else { return Some(first.into()) };
    let all: Vec<&[u8]> = [first, second].into_iter().chain(all).collect();
    Some(all.join(&b","[..]).into())
}

/// A path without `.` and `..` (Istio's pathNormalization BASE).
pub fn plain_path(path: &str) -> Cow<'_, str> {
    let dotted = path.contains("/.") || path.contains("/%2e") || path.contains("/%2E");
    if !dotted && !path.contains('\\') {
        return Cow::Borrowed(path);
    }
    let path = path.replace("%2e", ".").replace("%2E", ".").replace('\\', "/");
    let mut out: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(segment) = parts.next() {
        let last = parts.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    out.pop();
                }
                if last {
                    out.push("");
                }
            }
            segment => out.push(segment),
        }
    }
    Cow::Owned(format!("/{}", out.join("/")))
}

/// HTTP/2 may split cookies (RFC 9113 §8.2.3); applications of HTTP/1.1 expect one field.
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    let (Some(_), Some(_)) = (all.next(), all.next()) else { return };
    let all: Vec<&[u8]> =
        headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).filter(|v| !v.is_empty()).collect();
    if let Ok(one) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// How often names of this thread's heads have been read.
        pub(super) static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    fn head(version: Version, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut r = http::Request::builder().version(version).uri(uri);
        for (k, v) in headers {
            r = r.header(*k, *v);
        }
        r.body(()).unwrap().into_parts().0
    }

    /// What is left of a request of HTTP/1.1, and whether it asks for WebSocket.
    fn left(headers: &[(&str, &str)]) -> (Vec<String>, bool) {
        let mut p = head(Version::HTTP_11, "/", &[headers, &[("host", "a")]].concat());
        let entry = canonical(&mut p).unwrap();
        let mut all: Vec<String> = p
            .headers
            .iter()
            .map(|(k, v)| format!("{k}={}", v.to_str().unwrap_or("?")))
            .filter(|s| s != "host=a")
            .collect();
        all.sort_unstable();
        (all, entry.websocket)
    }

    #[test]
    fn what_concerns_the_connection_is_taken_out_first() {
        let given = [
            ("connection", "Keep-Alive, X-Hop,te"),
            ("connection", "x-forwarded-for"),
            ("x-hop", "1"),
            ("x-forwarded-for", "1.2.3.4"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("x", "y"),
        ];
        assert_eq!(left(&given).0, ["te=trailers", "x=y"]);
    }

    #[test]
    fn only_websocket_is_a_protocol_to_change_to() {
        let h2c = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABk")];
        assert_eq!(left(&h2c), (vec![], false));
        assert_eq!(left(&[("http2-settings", "AAMAAABk")]), (vec![], false));
        assert_eq!(left(&[("connection", "upgrade"), ("upgrade", "TLS/1.0")]), (vec![], false));
        assert_eq!(left(&[("connection", "keep-alive"), ("upgrade", "websocket")]), (vec![], false));
        assert_eq!(left(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]), (vec![], true));
        assert_eq!(left(&[("connection", "upgrade"), ("upgrade", "h2c, websocket")]), (vec![], true));
        let mut post =
            head(Version::HTTP_11, "/", &[("host", "a"), ("connection", "upgrade"), ("upgrade", "websocket")]);
        post.method = Method::POST;
        assert!(!canonical(&mut post).unwrap().websocket);
    }

    #[test]
    fn names_that_an_application_takes_for_others_are_dropped() {
        let given = [
            ("x-user", "me"),
            ("x_user", "admin"),
            ("x-forwarded_for", "1.2.3.4"),
            ("x_forwarded_client_cert", "forged"),
            ("x_request_id", "1"),
            ("content_length", "5"),
            ("a_b-c", "1"),
            ("a-b_c", "2"),
            ("api_key", "stays"),
        ];
        assert_eq!(left(&given).0, ["api_key=stays", "x-user=me"]);
        let mut h = head(Version::HTTP_11, "/", &[("x_role", "admin"), ("own_name", "1"), ("other_one", "1")]).headers;
        let names = ["x-role", "own_name", "own-name"].map(HeaderName::from_static);
        names.iter().collect::<Names>().drop_alike(&mut h);
        let mut left: Vec<&str> = h.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["other_one", "own_name"]);
    }

    /// Once each name with `_` was compared with every other: 1,396 of them took a worker for tens of milliseconds.
    #[test]
    fn fields_are_limited_by_whichever_version_and_compared_in_no_square() {
        let names: Vec<String> = (0..1400).map(|i| format!("aaaaaaaa_{i:04}")).collect();
        let many = |version, n: usize, cookies: usize| {
            let fields = names.iter().take(n).map(|n| (n.as_str(), "1"));
            let all: Vec<_> = fields.chain([("host", "a")]).chain((0..cookies).map(|_| ("cookie", "a=1"))).collect();
            canonical(&mut head(version, "http://a/", &all)).err()
        };
        for version in [Version::HTTP_11, Version::HTTP_2] {
            assert_eq!([many(version, 99, 0), many(version, 98, 300)], [None; 2], "{version:?}");
            for (n, cookies) in [(100, 0), (99, 1), (1400, 0)] {
                let why = many(version, n, cookies).unwrap();
                assert_eq!((why.status().as_u16(), why), (431, Unfit::Fields), "{version:?} {n} {cookies}");
            }
        }
        let mut h = HeaderMap::new();
        for n in 0..20_000 {
            h.insert(HeaderName::try_from(format!("aaaaaaaa_{n:05}")).unwrap(), HeaderValue::from_static("1"));
        }
        h.insert("aaaaaaaa-00007", HeaderValue::from_static("1"));
        LOOKS.with(|looks| looks.set(0));
        drop_doubles(&mut h);
        let all: Vec<HeaderName> = h.keys().cloned().collect();
        all.iter().collect::<Names>().drop_alike(&mut h);
        assert_eq!((h.len(), h.contains_key("aaaaaaaa_00007")), (20_000, false));
        // Each of them a few times, and no two of them with one another.
        let looks = LOOKS.with(Cell::get);
        assert!(looks < 40 * 20_000, "{looks}");
    }

    #[test]
    fn lines_of_a_header_are_joined() {
        let mut h = HeaderMap::new();
        let of =
            |h: &HeaderMap| joined(h, &HeaderName::from_static("x")).map(|v| String::from_utf8_lossy(&v).into_owned());
        assert_eq!(of(&h), None);
        for (line, wanted) in [("a", "a"), ("b", "a,b"), ("", "a,b,")] {
            h.append("x", line.parse().unwrap());
            assert_eq!(of(&h).as_deref(), Some(wanted));
        }
    }

    #[test]
    fn cookies_are_one_field() {
        assert_eq!(left(&[("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "")]).0, ["cookie=a=1; b=2; c=3"]);
        assert_eq!(left(&[("cookie", "a=1;b=2")]).0, ["cookie=a=1;b=2"]);
    }

    #[test]
    fn paths_are_made_plain() {
        for (p, want) in [
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/../../etc/passwd", "/etc/passwd"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/..", "/"),
            ("/a/b/.", "/a/b/"),
            ("/a/...", "/a/..."),
            ("/a\\..\\b", "/b"),
            ("/.hidden", "/.hidden"),
            ("/a//b", "/a//b"),
            ("*", "*"),
        ] {
            assert_eq!(plain_path(p), want, "{p}");
        }
    }

    #[test]
    fn there_is_one_authority() {
        use Version as V;
        let (one, two) = (V::HTTP_11, V::HTTP_2);
        type Row<'a> = (Version, &'a str, &'a [&'a str], Option<(&'a str, &'a str)>);
        let table: [Row<'_>; 14] = [
            (one, "/", &["shop:80"], Some(("shop:80", "shop"))),
            (one, "/", &["Admin.Example.com."], Some(("admin.example.com", "admin.example.com"))),
            (one, "/", &["admin.example.com.:8080"], Some(("admin.example.com:8080", "admin.example.com"))),
            (one, "/", &["[0::1]:80"], Some(("[::1]:80", "[::1]"))),
            (one, "/", &["a", "a"], None),
            (one, "/", &[], None),
            (one, "/", &[""], None),
            (one, "/", &["a b"], None),
            (one, "/", &["user@a"], None),
            (one, "http://a.example/", &["b"], Some(("a.example", "a.example"))),
            (two, "http://A.example/", &[], Some(("a.example", "a.example"))),
            (two, "http://a.example:81/", &["A.example.:81"], Some(("a.example:81", "a.example"))),
            (two, "http://a.example/", &["b"], None),
            (two, "http://u@a.example/", &[], None),
        ];
        for (version, uri, hosts, want) in table {
            let hosts: Vec<(&str, &str)> = hosts.iter().map(|h| ("host", *h)).collect();
            let mut p = head(version, uri, &hosts);
            let entry = canonical(&mut p);
            let got = entry.as_ref().ok().map(|e| (e.authority.as_str(), e.authority.host()));
            assert_eq!(got, want, "{version:?} {uri} {hosts:?}");
            if let (Ok(e), Some(h)) = (&entry, p.headers.get(header::HOST)) {
                assert_eq!(h, e.authority.value(), "the field says the same");
            }
        }
    }

    #[test]
    fn what_cannot_be_taken_has_envoys_words() {
        let why = |method: Method, uri: &str, hosts: &[(&str, &str)]| {
            let mut p = head(Version::HTTP_11, uri, hosts);
            p.method = method;
            let why = canonical(&mut p).err().unwrap();
            (why.status().as_u16(), why.details())
        };
        let host = [("host", "a")];
        assert_eq!(why(Method::CONNECT, "a:80", &host), (405, "http.connect_not_supported"));
        assert_eq!(why(Method::GET, "/", &[]), (400, "missing_host_header"));
        assert_eq!(why(Method::GET, "/", &[("host", "a"), ("host", "a")]), (400, "http.invalid_authority"));
        assert_eq!(why(Method::GET, "http://u@a/", &[]), (400, "http.invalid_authority"));
        assert_eq!(why(Method::GET, "/a%00", &host), (400, "path_normalization_failed"));
    }

    /// Most requests are canonical: theirs is not written anew.
    #[test]
    fn a_canonical_authority_is_the_clients_own() {
        let mut p = head(Version::HTTP_11, "/a?b", &[("host", "shop.app:80"), ("cookie", "a=1"), ("x", "y")]);
        let at = |h: &HeaderValue| h.as_bytes().as_ptr();
        let before = at(&p.headers[header::HOST]);
        let entry = canonical(&mut p).unwrap();
        assert_eq!((at(entry.authority.value()), at(&p.headers[header::HOST])), (before, before));
        assert_eq!(p.uri, "/a?b");
    }
}
