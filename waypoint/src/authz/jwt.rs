//! Tokens of requests (Istio's RequestAuthentication; JWT, RFC 7519): who has issued them, and whether that is true. A request
//! without a token goes on, without a principal; one with a token that is not good does not.

use crate::authz::{
    error::AccessError,
    generations::{Key as CacheKey, key},
    token_cache::{Outcome, TokenCache},
};
use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    errors::ErrorKind,
    jwk::{AlgorithmParameters, Jwk, JwkSet},
};
use karst_api::route as ir;
use prost::Message;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Clocks may differ by so many seconds (Envoy).
const SKEW: u64 = 60;
/// Longest token that is looked at, bytes.
const LONGEST: usize = 16 << 10;
/// What stands for a value that is no text: a token, and not a good one.
const NO_TEXT: &str = "\u{fffd}";

/// Tokens that a worker has verified lately: the number of the rule, of those that looked for it, and what the token says.
pub type Cache = TokenCache<(usize, Arc<Token>)>;

/// Whose tokens are taken, compiled.
#[derive(Debug, Default)]
pub struct Tokens {
    rules: Vec<Rule>,
    /// The hash of all that they say; without rules, none.
    hash: CacheKey,
}

/// A token that was good, for who judges it again when others are taken: a stream may be open for days.
pub struct Shown {
    text: Box<str>,
    /// The hash of the rules that it was judged by last.
    rules: CacheKey,
    /// What it says. None: nobody knows its issuer any more.
    token: Option<Arc<Token>>,
}

impl Shown {
    /// What it says.
    pub fn token(&self) -> Option<Arc<Token>> {
        self.token.clone()
    }
}

struct Rule {
    issuer: String,
    audiences: Vec<String>,
    keys: Result<Vec<Key>, KeysError>,
    headers: Vec<(HeaderName, String)>,
    params: Vec<String>,
    cookies: Vec<String>,
    payload: Option<HeaderName>,
    forward: bool,
    claims: Vec<(HeaderName, Vec<String>)>,
    spaced: Arc<[String]>,
    /// The hash of all that the rule says, its keys too.
    hash: CacheKey,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {:?}", self.issuer, self.audiences, self.keys.as_ref().map(Vec::len))
    }
}

struct Key {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// A token that is good.
#[derive(Debug)]
pub struct Token {
    /// Issuer and subject.
    pub principal: String,
    claims: Map<String, Value>,
    /// Claims that are lists, written with spaces.
    spaced: Arc<[String]>,
}

/// Why a request with a token is not to go on, in Envoy's words.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// It does not look like one.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// It is longer than any is.
    #[error("Jwt is too long")]
    TooLong,
    /// Nobody is known who is called as its issuer is.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// The issuer's keys are not known.
    #[error("Jwks remote fetch is failed")]
    NoKeys,
    /// Its header cannot be read.
    #[error("Jwt header is not valid")]
    Header,
    /// None of the issuer's keys is for it.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    /// It is for others.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// Its time is over.
    #[error("Jwt is expired")]
    Expired,
    /// Its time has not come.
    #[error("Jwt not yet valid")]
    Early,
    /// The issuer has not signed it.
    #[error("Jwt verification fails")]
    Signature,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum KeysError {
    /// The control plane could not fetch them.
    #[error("{0}")]
    Broken(String),
    /// They are no set of keys.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// What came of a request's tokens.
struct Good<'a> {
    token: Arc<Token>,
    /// As it was sent, base64url; only where it goes on.
    payload: Option<String>,
    /// By which it is good.
    rule: &'a Rule,
    /// Headers that held it.
    places: Vec<HeaderName>,
}

impl Tokens {
    /// Compiles.
    ///
    /// # Errors
    /// If the message is not of this version; then nobody is to use it.
    pub fn new(all: &[ir::Jwt]) -> Result<Self, AccessError> {
        let rules: Vec<Rule> = all.iter().map(Rule::new).collect::<Result<_, _>>()?;
        let mut context = digest::Context::new(&digest::SHA256);
        rules.iter().for_each(|rule| context.update(&rule.hash));
        let hash = if rules.is_empty() { CacheKey::default() } else { key(&context.finish()) };
        Ok(Self { rules, hash })
    }

    /// The token by which a request is judged, if it has one: of those that are looked for, the first.
    pub fn shown<'a>(&'a self, headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
        self.rules.iter().find_map(|rule| rule.tokens(headers, uri).next()).map(|(text, _)| text)
    }

    /// Keeps one that was good.
    pub fn kept(&self, text: &str, token: Arc<Token>) -> Shown {
        Shown { text: text.into(), rules: self.hash, token: Some(token) }
    }

    /// Judges one again that was good by other rules. Its time is not looked at again: who was let in may outlive it. One whose issuer
    /// nobody knows any more stands for nobody.
    ///
    /// # Errors
    /// Its issuer is known, and it is not good.
    pub fn judge_again(&self, shown: &mut Shown) -> Result<(), TokenError> {
        if shown.rules == self.hash {
            return Ok(());
        }
        let issuer = peek(&shown.text)?;
        let mut judged = Ok(None);
        for rule in self.rules.iter().filter(|rule| rule.issuer == issuer) {
            judged = rule.read(&shown.text, false).map(|token| Some(Arc::new(token)));
            if judged.is_ok() {
                break;
            }
        }
        (shown.token, shown.rules) = (judged?, self.hash);
        Ok(())
    }

    /// The headers that hold tokens, and those that are made of them.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> + Clone {
        self.rules.iter().flat_map(|r| {
            let made = r.payload.iter().chain(r.claims.iter().map(|(h, _)| h));
            made.chain(r.headers.iter().map(|(h, _)| h))
        })
    }

    /// The request's token, if there is one; headers that only we write are made.
    ///
    /// # Errors
    /// Why the request is not to go on, in Envoy's words.
    pub fn verify(&self, parts: &mut Parts, cache: &mut Cache) -> Result<Option<Arc<Token>>, TokenError> {
        if self.rules.is_empty() {
            return Ok(None);
        }
        let now = jsonwebtoken::get_current_timestamp();
        let found = self.found(&parts.headers, &parts.uri, (cache, now))?;
        // A client's own would pass for what was verified.
        for rule in &self.rules {
            for name in rule.payload.iter().chain(rule.claims.iter().map(|(name, _)| name)) {
                parts.headers.remove(name);
            }
        }
        let Some(Good { token, payload, rule, places }) = found else { return Ok(None) };
        if let Some(name) = &rule.payload
            && let Some(Ok(v)) = payload.map(|payload| HeaderValue::from_str(&payload))
        {
            parts.headers.insert(name, v);
        }
        for (name, path) in &rule.claims {
            let text = token.at(path).and_then(as_header).filter(|text| !text.is_empty());
            if let Some(v) = text.and_then(|t| HeaderValue::from_str(&t).ok()) {
                parts.headers.insert(name, v);
            }
        }
        if !rule.forward {
            for name in places {
                parts.headers.remove(name);
            }
        }
        Ok(Some(token))
    }

    /// The token that one with these claims would be, were it signed by its issuer. None: no rule would take it.
    pub fn assume(&self, claims: &Map<String, Value>) -> Option<Token> {
        let issuer = claims.get("iss")?.as_str()?;
        let rule = self.rules.iter().find(|r| r.issuer == issuer && r.is_for_us(claims))?;
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let principal = format!("{issuer}/{subject}");
        Some(Token { principal, claims: claims.clone(), spaced: rule.spaced.clone() })
    }

    fn found(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        (cache, now): (&mut Cache, u64),
    ) -> Result<Option<Good<'_>>, TokenError> {
        let mut good: Option<Good<'_>> = None;
        let mut seen: Vec<&str> = vec![];
        for r in &self.rules {
            for (text, header) in r.tokens(headers, uri) {
                if seen.contains(&text) {
                    // The same one once more: it does not go on there either.
                    good.iter_mut().for_each(|g| g.places.extend(header.cloned()));
                    continue;
                }
                let (token, rule) = match self.known_or_verified(text, (headers, uri), (&mut *cache, now)) {
                    Ok(found) => found,
                    Err(e) => {
                        cache.counts.count(Outcome::Refused);
                        return Err(e);
                    }
                };
                seen.push(text);
                // Every one that is there must be good; the first says who it is.
                match &mut good {
                    None => {
                        let payload = rule.payload.as_ref().and_then(|_| text.split('.').nth(1)).map(String::from);
                        good = Some(Good { token, payload, rule, places: header.cloned().into_iter().collect() });
                    }
                    Some(g) => g.places.extend(header.cloned()),
                }
            }
        }
        Ok(good)
    }

    /// A token, and the rule by which it is good: of those that look for it here, and know its issuer, the first that takes it. All that
    /// this follows from is in the key under which it is kept.
    fn known_or_verified(
        &self,
        text: &str,
        (headers, uri): (&HeaderMap, &Uri),
        (cache, now): (&mut Cache, u64),
    ) -> Result<(Arc<Token>, &Rule), TokenError> {
        if text.len() > LONGEST {
            return Err(TokenError::TooLong);
        }
        let here: Vec<&Rule> =
            self.rules.iter().filter(|rule| rule.tokens(headers, uri).any(|(other, _)| other == text)).collect();
        let key = cache_key(&here, text);
        if let Some((at, token)) = cache.get(&key, now)
            && let Some(rule) = here.get(*at).copied()
        {
            let token = token.clone();
            cache.counts.count(Outcome::Cached);
            return Ok((token, rule));
        }
        let issuer = peek(text)?;
        // Whose it says it is decides by whose keys it is looked at.
        let mut last = TokenError::Issuer;
        for (at, rule) in here.iter().copied().enumerate().filter(|(_, rule)| rule.issuer == issuer) {
            match rule.verify(text) {
                Ok(token) => {
                    let token = Arc::new(token);
                    if let Some(valid) = token.valid() {
                        cache.put(key, (at, token.clone()), text.len(), valid);
                    }
                    cache.counts.count(Outcome::Verified);
                    return Ok((token, rule));
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

/// A claim as a header has it (Envoy): what is no single value as JSON in base64.
fn as_header(claim: &Value) -> Option<String> {
    match claim {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        Value::Bool(b) => Some(b.to_string()),
        Value::Number(n) => Some(match n.as_f64() {
            // 1.0 is 1.
            Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 1e15 => format!("{f:.0}"),
            _ => n.to_string(),
        }),
        Value::Array(_) | Value::Object(_) => Some(STANDARD.encode(claim.to_string())),
    }
}

/// The hash of a token and of the rules that look for it.
fn cache_key(rules: &[&Rule], text: &str) -> CacheKey {
    let mut context = digest::Context::new(&digest::SHA256);
    // The length first, so that no two of them are written alike.
    context.update(&(text.len() as u64).to_be_bytes());
    context.update(text.as_bytes());
    rules.iter().for_each(|rule| context.update(&rule.hash));
    key(&context.finish())
}

/// The issuer, as the token says; nothing is verified yet.
fn peek(token: &str) -> Result<String, TokenError> {
    if token.split('.').count() != 3 {
        return Err(TokenError::Form);
    }
    let json = jsonwebtoken::dangerous::insecure_decode::<Value>(token).map_err(|_| TokenError::Form)?;
    Ok(json.claims.get("iss").and_then(Value::as_str).unwrap_or_default().to_string())
}

impl Rule {
    fn new(jwt: &ir::Jwt) -> Result<Self, AccessError> {
        let name = |n: &str| {
            HeaderName::from_bytes(n.as_bytes())
                .map_err(|_| AccessError::Header { rule: jwt.name.clone(), header: n.into() })
        };
        let mut headers = jwt
            .headers
            .iter()
            .map(|h| Ok((name(&h.name)?, h.prefix.clone())))
            .collect::<Result<Vec<_>, AccessError>>()?;
        let mut params = jwt.params.clone();
        if headers.is_empty() && params.is_empty() && jwt.cookies.is_empty() {
            headers.push((header::AUTHORIZATION, "Bearer ".into()));
            params.push("access_token".into());
        }
        let claim = |c: &ir::ClaimHeader| Ok((name(&c.header)?, c.claim.split('.').map(String::from).collect()));
        Ok(Self {
            issuer: jwt.issuer.clone(),
            audiences: jwt.audiences.clone(),
            keys: if jwt.broken.is_empty() { keys(&jwt.jwks) } else { Err(KeysError::Broken(jwt.broken.clone())) },
            headers,
            params,
            cookies: jwt.cookies.clone(),
            payload: (!jwt.payload_header.is_empty()).then(|| name(&jwt.payload_header)).transpose()?,
            forward: jwt.forward,
            claims: jwt.claim_headers.iter().map(claim).collect::<Result<_, AccessError>>()?,
            spaced: jwt.space_delimited.clone().into(),
            hash: key(&digest::digest(&digest::SHA256, &jwt.encode_to_vec())),
        })
    }

    /// The tokens where this rule looks for them, and the header if it is one.
    fn tokens<'a>(
        &'a self,
        header_map: &'a HeaderMap,
        uri: &'a Uri,
    ) -> impl Iterator<Item = (&'a str, Option<&'a HeaderName>)> {
        let headers = self.headers.iter().flat_map(|(n, prefix)| {
            let all = header_map.get_all(n).iter().map(HeaderValue::as_bytes);
            all.filter_map(move |v| Some((text(v.strip_prefix(prefix.as_bytes())?), Some(n))))
        });
        let query = uri.query().unwrap_or_default();
        let params = self.params.iter().flat_map(move |p| {
            query.split('&').filter_map(move |x| {
                let (k, v) = x.split_once('=')?;
                (k == p).then_some((v, None))
            })
        });
        let cookies = self.cookies.iter().flat_map(|c| {
            let all = header_map.get_all(header::COOKIE).iter().flat_map(|v| v.as_bytes().split(|b| *b == b';'));
            all.filter_map(move |x| {
                let v = x.trim_ascii().strip_prefix(c.as_bytes())?.strip_prefix(b"=")?;
                Some((text(v), None))
            })
        });
        headers.chain(params).chain(cookies).filter(|(t, _)| !t.is_empty())
    }

    fn verify(&self, token: &str) -> Result<Token, TokenError> {
        self.read(token, true)
    }

    /// `in_time`: it must hold at the moment.
    fn read(&self, token: &str, in_time: bool) -> Result<Token, TokenError> {
        let keys = self.keys.as_ref().map_err(|_| TokenError::NoKeys)?;
        let head = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Header)?;
        let mut validation = Validation::new(head.alg);
        validation.leeway = SKEW;
        (validation.validate_exp, validation.validate_nbf) = (in_time, in_time);
        // A token that does not end is the issuer's business (Envoy).
        validation.required_spec_claims.clear();
        validation.set_issuer(&[&self.issuer]);
        // Below: as Envoy does, schemes and a last slash do not count.
        validation.validate_aud = false;
        let fits = |k: &&Key| {
            let id = head.kid.is_none() || k.id.is_none() || k.id == head.kid;
            id && k.algorithms.contains(&head.alg)
        };
        let mut last = TokenError::NoKey;
        for key in keys.iter().filter(fits) {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation) {
                Ok(t) if !self.is_for_us(&t.claims) => return Err(TokenError::Audience),
                Ok(t) => {
                    let subject = t.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
                    let principal = format!("{}/{subject}", self.issuer);
                    return Ok(Token { principal, claims: t.claims, spaced: self.spaced.clone() });
                }
                Err(e) => {
                    last = match e.kind() {
                        ErrorKind::ExpiredSignature => TokenError::Expired,
                        ErrorKind::ImmatureSignature => TokenError::Early,
                        _ => TokenError::Signature,
                    };
                }
            }
        }
        Err(last)
    }

    /// Is one of the audiences ours?
    fn is_for_us(&self, claims: &Map<String, Value>) -> bool {
        let ours = |v: &Value| v.as_str().is_some_and(|a| self.audiences.iter().any(|o| audience(o) == audience(a)));
        match claims.get("aud") {
            _ if self.audiences.is_empty() => true,
            Some(Value::Array(all)) => all.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        }
    }
}

/// An audience as it is compared: without scheme and last slash (Envoy).
fn audience(a: &str) -> &str {
    let a = a.strip_prefix("https://").or_else(|| a.strip_prefix("http://")).unwrap_or(a);
    a.strip_suffix('/').unwrap_or(a)
}

/// A value of a header as text.
fn text(b: &[u8]) -> &str {
    std::str::from_utf8(b.trim_ascii()).unwrap_or(NO_TEXT)
}

/// The keys of a set, those that can verify.
fn keys(jwks: &str) -> Result<Vec<Key>, KeysError> {
    let set: JwkSet = serde_json::from_str(jwks)?;
    let usable = |k: &Jwk| {
        let algorithms = algorithms(k);
        let key = DecodingKey::from_jwk(k).ok()?;
        (!algorithms.is_empty()).then(|| Key { id: k.common.key_id.clone(), algorithms, key })
    };
    Ok(set.keys.iter().filter_map(usable).collect())
}

/// What a key may have signed by: what it says, else what its type can.
fn algorithms(jwk: &Jwk) -> Vec<Algorithm> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    let can: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(_) => &[ES256, ES384],
        AlgorithmParameters::OctetKeyPair(_) => &[EdDSA],
        // A secret, with which every proxy that is told of it could sign (as Istio's can).
        _ => &[],
    };
    let says = jwk.common.key_algorithm.map(|a| a.to_string());
    can.iter().filter(|a| says.as_ref().is_none_or(|s| *s == format!("{a:?}"))).copied().collect()
}

impl Token {
    /// One that is good.
    #[cfg(test)]
    pub(crate) fn test(principal: &str, claims: Value) -> Self {
        let claims = claims.as_object().cloned().unwrap_or_default();
        Self { principal: principal.into(), claims, spaced: Arc::new([]) }
    }

    fn at(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.claims.get(first)?, |v, p| v.get(p))
    }

    /// The values of a claim: text, or a list of texts. (Others are not compared, as in Istio.)
    pub fn claim(&self, path: &[String]) -> Vec<&str> {
        let mut all = vec![];
        self.has_claim(path, |text| {
            all.push(text);
            false
        });
        all
    }

    /// Does this hold for one of the values of a claim?
    pub fn has_claim<'a>(&'a self, path: &[String], mut holds: impl FnMut(&'a str) -> bool) -> bool {
        match self.at(path) {
            Some(Value::String(s)) if path.len() == 1 && self.spaced.iter().any(|c| *c == path[0]) => {
                s.split(' ').filter(|x| !x.is_empty()).any(holds)
            }
            Some(Value::String(s)) => holds(s),
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).any(holds),
            _ => false,
        }
    }

    /// From when until when it holds, in seconds since 1970, with what clocks may differ by. None: that is written in a way that
    /// is not read here.
    fn valid(&self) -> Option<(u64, u64)> {
        let time = |name, none| self.claims.get(name).map_or(Some(none), Value::as_u64);
        Some((time("nbf", 0)?.saturating_sub(SKEW), time("exp", u64::MAX)?.saturating_add(SKEW)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use rcgen::KeyPair;
    use serde_json::json;
    use std::sync::LazyLock;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());
    static OTHER: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().unwrap());

    fn base64(b: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(b)
    }

    fn jwks() -> String {
        let point = KEY.public_key_raw();
        let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
        // A secret is no key for a proxy: whoever holds it signs what he likes.
        json!({ "keys": [
            { "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "a", "x": x, "y": y },
            { "kty": "oct", "kid": "s", "k": base64(SECRET) },
        ] })
        .to_string()
    }

    fn rule() -> ir::Jwt {
        ir::Jwt {
            name: "r".into(),
            issuer: "me".into(),
            jwks: jwks(),
            space_delimited: vec!["scope".into()],
            ..Default::default()
        }
    }

    fn signed(claims: &Value, key: &KeyPair) -> String {
        let head = Header { kid: Some("a".into()), ..Header::new(Algorithm::ES256) };
        encode(&head, claims, &EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap()).unwrap()
    }

    fn secretly(claims: &Value, kid: &str) -> String {
        let head = Header { kid: Some(kid.into()), ..Header::new(Algorithm::HS256) };
        encode(&head, claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    fn request(headers: &[(&str, &str)], path: &str) -> Parts {
        let mut r = http::Request::get(path);
        for (k, v) in headers {
            r = r.header(*k, *v);
        }
        r.body(()).unwrap().into_parts().0
    }

    /// The principal, or why not.
    fn ask(rules: &[ir::Jwt], p: &mut Parts) -> Result<Option<String>, Box<str>> {
        ask_with(&mut Cache::default(), rules, p)
    }

    fn ask_with(cache: &mut Cache, rules: &[ir::Jwt], p: &mut Parts) -> Result<Option<String>, Box<str>> {
        let verified = Tokens::new(rules).unwrap().verify(p, cache).map_err(|e| e.to_string())?;
        Ok(verified.map(|t| t.principal.clone()))
    }

    #[test]
    fn only_good_tokens_pass() {
        let now = jsonwebtoken::get_current_timestamp();
        let fine = json!({ "iss": "me", "sub": "you", "exp": now + 600, "aud": ["x", "y"] });
        let with = |k: &str, v: Value| {
            let mut c = fine.clone();
            c[k] = v;
            c
        };
        let bearer = |t: &str| request(&[("authorization", &format!("Bearer {t}"))], "/");
        let hs = |c: &Value| signed(c, &KEY);
        let good = Ok(Some("me/you".to_string()));
        assert_eq!(ask(&[rule()], &mut request(&[], "/")), Ok(None), "without a token it goes on");
        assert_eq!(ask(&[rule()], &mut request(&[("authorization", "Basic x")], "/")), Ok(None));
        assert_eq!(ask(&[rule()], &mut bearer(&hs(&fine))), good);
        assert_eq!(ask(&[rule()], &mut request(&[], &format!("/?a=b&access_token={}", hs(&fine)))), good);
        let none = json!({ "iss": "me", "sub": "you" });
        assert_eq!(ask(&[rule()], &mut bearer(&hs(&none))), good, "one that does not end");
        let head = base64(br#"{"alg":"none","typ":"JWT"}"#);
        let unsigned = format!("{head}.{}.", base64(fine.to_string().as_bytes()));
        for (token, why) in [
            ("opaque".to_string(), "Jwt is not in the form"),
            (unsigned, "Jwt "),
            (hs(&with("iss", json!("other"))), "Jwt issuer is not configured"),
            (hs(&json!({})), "Jwt issuer is not configured"),
            (hs(&with("exp", json!(now - 120))), "Jwt is expired"),
            (hs(&with("nbf", json!(now + 120))), "Jwt not yet valid"),
            (signed(&fine, &OTHER), "Jwt verification fails"),
            (secretly(&fine, "a"), "Jwks doesn't have key"),
            (secretly(&fine, "s"), "Jwks doesn't have key"),
            (hs(&fine).replace('.', "x"), "Jwt is not in the form"),
            ("x".repeat(LONGEST + 1), "Jwt is too long"),
        ] {
            let e = ask(&[rule()], &mut bearer(&token)).unwrap_err();
            assert!(e.starts_with(why), "{token}: {e}");
        }
        let of = |audience: &str| ir::Jwt { audiences: vec![audience.into()], ..rule() };
        assert_eq!(ask(&[of("y")], &mut bearer(&hs(&fine))), good);
        // As in Envoy, schemes and a last slash do not count.
        for (sent, configured, fits) in [
            ("https://api.example/", "api.example", true),
            ("api.example", "https://api.example/", true),
            ("http://api.example", "https://api.example/", true),
            ("api.example/v1/", "api.example/v1", true),
            ("https://api.example/v1", "https://api.example", false),
            ("https://api.example//", "https://api.example", false),
            ("ftp://api.example", "api.example", false),
            ("API.example", "api.example", false),
        ] {
            for aud in [json!(sent), json!(["x", sent])] {
                let got = ask(&[of(configured)], &mut bearer(&hs(&with("aud", aud))));
                assert_eq!(got.is_ok(), fits, "{sent} for {configured}: {got:?}");
            }
        }
        for c in [&fine, &none] {
            assert_eq!(ask(&[of("z")], &mut bearer(&hs(c))), Err("Audiences in Jwt are not allowed".into()));
        }
        // What is no text is a token that is not good, and hides none.
        let with_bytes = |name: &'static str, value: &[u8]| {
            let mut p = request(&[], "/");
            p.headers.insert(name, HeaderValue::from_bytes(value).unwrap());
            p
        };
        let e = ask(&[rule()], &mut with_bytes("authorization", b"Bearer \xe9")).unwrap_err();
        assert!(e.starts_with("Jwt is not in the form"), "{e}");
        let in_cookie = ir::Jwt { cookies: vec!["t".into()], ..rule() };
        let cookies = |token: &str| with_bytes("cookie", &[&b"a=\xe9; t="[..], token.as_bytes()].concat());
        assert_eq!(ask(std::slice::from_ref(&in_cookie), &mut cookies(&hs(&fine))), good);
        assert!(ask(std::slice::from_ref(&in_cookie), &mut cookies("opaque")).is_err());
        // Of two rules of one issuer one is enough; of two tokens each must be good.
        assert_eq!(ask(&[of("z"), of("y")], &mut bearer(&hs(&fine))), good);
        let mut two = request(
            &[("authorization", &format!("Bearer {}", hs(&fine)))],
            &format!("/?access_token={}", hs(&with("exp", json!(1)))),
        );
        assert_eq!(ask(&[rule()], &mut two), Err("Jwt is expired".into()));
        // No keys: nobody's token is taken.
        let broken = ir::Jwt { broken: "no keys".into(), ..rule() };
        assert!(ask(&[broken], &mut bearer(&hs(&fine))).is_err());
    }

    /// What was verified is not verified again: by the same rules, in the same places, while it is valid.
    #[test]
    fn a_token_is_verified_once() {
        let now = jsonwebtoken::get_current_timestamp();
        let token = signed(&json!({ "iss": "me", "sub": "you", "exp": now + 600, "aud": "y" }), &KEY);
        let bearer = || request(&[("authorization", &format!("Bearer {token}"))], "/");
        let (mut cache, good) = (Cache::default(), Ok(Some("me/you".to_string())));
        let mut outcomes = |rules: &[ir::Jwt], p: &mut Parts, wanted: &Result<Option<String>, Box<str>>| {
            let before = [Outcome::Cached, Outcome::Verified, Outcome::Refused].map(|o| cache.counts.of(o));
            assert_eq!(&ask_with(&mut cache, rules, p), wanted);
            let after = [Outcome::Cached, Outcome::Verified, Outcome::Refused].map(|o| cache.counts.of(o));
            [0, 1, 2].map(|i| after[i] - before[i])
        };
        assert_eq!(outcomes(&[rule()], &mut bearer(), &good), [0, 1, 0]);
        assert_eq!(outcomes(&[rule()], &mut bearer(), &good), [1, 0, 0], "compiled anew, the same rule");
        // Other keys, audiences, or rules before it: it is looked at again.
        let other_keys = ir::Jwt { jwks: r#"{"keys": []}"#.into(), ..rule() };
        let none = Err("Jwks doesn't have key to match kid or alg from Jwt".into());
        assert_eq!(outcomes(&[other_keys], &mut bearer(), &none), [0, 0, 1]);
        let of = |audience: &str| ir::Jwt { audiences: vec![audience.into()], ..rule() };
        let not_ours = Err("Audiences in Jwt are not allowed".into());
        assert_eq!(outcomes(&[of("z")], &mut bearer(), &not_ours), [0, 0, 1]);
        assert_eq!(outcomes(&[of("z")], &mut bearer(), &not_ours), [0, 0, 1], "what is refused is not kept");
        let two = [of("z"), of("y")];
        assert_eq!(outcomes(&two, &mut bearer(), &good), [0, 1, 0]);
        assert_eq!(outcomes(&two, &mut bearer(), &good), [1, 0, 0]);
        // Where another of the rules looks for it, that one decides.
        let in_header = |audience: &str, name: &str| ir::Jwt {
            headers: vec![ir::JwtHeader { name: name.into(), prefix: String::new() }],
            ..of(audience)
        };
        let apart = [in_header("z", "x-z"), in_header("y", "x-y")];
        assert_eq!(outcomes(&apart, &mut request(&[("x-y", &token)], "/"), &good), [0, 1, 0]);
        assert_eq!(outcomes(&apart, &mut request(&[("x-z", &token)], "/"), &not_ours), [0, 0, 1]);
        assert_eq!(outcomes(&apart, &mut request(&[("x-y", &token)], "/"), &good), [1, 0, 0]);
        // A byte more is another token.
        let mut longer = request(&[("authorization", &format!("Bearer {token}A"))], "/");
        assert!(ask_with(&mut cache, &[rule()], &mut longer).is_err());
        // Its time: by the clock, not by the cache.
        let (tokens, mut p) = (Tokens::new(&[rule()]).unwrap(), bearer());
        let mut at = |now| tokens.found(&p.headers, &p.uri, (&mut cache, now)).unwrap().is_some();
        assert!(at(now + 660));
        let verified = |cache: &Cache| cache.counts.of(Outcome::Verified);
        let before = verified(&cache);
        assert!(tokens.found(&p.headers, &p.uri, (&mut cache, now + 661)).unwrap().is_some());
        assert_eq!(verified(&cache), before + 1, "it was looked at again, by the real clock");
        // One that says its end in another way is not kept.
        let token = signed(&json!({ "iss": "me", "sub": "you", "exp": (now + 600) as f64 + 0.5 }), &KEY);
        p = request(&[("authorization", &format!("Bearer {token}"))], "/");
        for _ in 0..2 {
            let before = cache.counts.of(Outcome::Cached);
            let _ = tokens.found(&p.headers, &p.uri, (&mut cache, now));
            assert_eq!(cache.counts.of(Outcome::Cached), before);
        }
    }

    #[test]
    fn a_token_is_judged_again_by_other_rules_and_by_no_others() {
        let token = signed(&json!({ "iss": "me", "sub": "you", "exp": 1, "aud": "y" }), &KEY);
        let point = OTHER.public_key_raw();
        let (x, y) = (base64(&point[1..33]), base64(&point[33..]));
        let others = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": x, "y": y }] }).to_string();
        let changed = |change: fn(&mut ir::Jwt)| {
            let mut rule = rule();
            change(&mut rule);
            vec![rule]
        };
        let both = {
            let mut keys: Value = serde_json::from_str(&jwks()).unwrap();
            let more: Value = serde_json::from_str(&others).unwrap();
            keys["keys"].as_array_mut().unwrap().push(more["keys"][0].clone());
            vec![ir::Jwt { jwks: keys.to_string(), ..rule() }]
        };
        let (known, unknown) = (Ok(Some("me/you".to_string())), Ok(None));
        for (rules, wanted) in [
            (vec![rule()], known.clone()),
            // Keys come and go.
            (both, known.clone()),
            (changed(|r| r.audiences = vec!["y".into()]), known.clone()),
            (vec![changed(|r| r.audiences = vec!["z".into()]).remove(0), rule()], known),
            (vec![ir::Jwt { jwks: others, ..rule() }], Err(TokenError::Signature)),
            (changed(|r| r.audiences = vec!["z".into()]), Err(TokenError::Audience)),
            (changed(|r| r.broken = "no keys".into()), Err(TokenError::NoKeys)),
            (changed(|r| r.issuer = "else".into()), unknown.clone()),
            (vec![], unknown),
        ] {
            let first = Tokens::new(&[rule()]).unwrap();
            let p = request(&[("authorization", &format!("Bearer {token}"))], "/");
            let text = first.shown(&p.headers, &p.uri).unwrap();
            assert_eq!(text, token);
            let said = Token { principal: "me/you".into(), claims: Map::new(), spaced: Arc::new([]) };
            let mut shown = first.kept(text, Arc::new(said));
            let judged = Tokens::new(&rules).unwrap().judge_again(&mut shown);
            assert_eq!(judged.map(|()| shown.token().map(|t| t.principal.clone())), wanted, "{rules:?}");
        }
        let mut p = request(&[("authorization", "Basic x")], "/");
        assert!(Tokens::new(&[rule()]).unwrap().shown(&p.headers, &p.uri).is_none());
        p.headers.clear();
        assert!(Tokens::default().shown(&p.headers, &p.uri).is_none());
    }

    /// What the cache is for. Measured on two cores, ES256: see what it prints (`--nocapture`).
    #[test]
    fn a_known_token_costs_far_less() {
        const ROUNDS: u32 = 200;
        let tokens = Tokens::new(&[rule()]).unwrap();
        let token = signed(&json!({ "iss": "me", "sub": "you", "groups": ["a", "b", "c"] }), &KEY);
        let p = request(&[("authorization", &format!("Bearer {token}"))], "/");
        let cost = |anew: bool| {
            let mut cache = Cache::default();
            let began = std::time::Instant::now();
            for _ in 0..ROUNDS {
                if anew {
                    cache = Cache::default();
                }
                assert!(tokens.found(&p.headers, &p.uri, (&mut cache, 0)).unwrap().is_some());
            }
            began.elapsed() / ROUNDS
        };
        let (anew, known) = (cost(true), cost(false));
        println!("a token: {anew:?} to verify, {known:?} where it is known");
        assert!(known * 3 < anew, "{known:?} {anew:?}");
    }

    #[test]
    fn headers_and_claims() {
        let claims = json!({ "iss": "me", "sub": "you", "scope": "read write", "groups": ["a", "b"], "in": { "ner": "x" }, "n": 7, "whole": 2.0, "empty": "" });
        let token = signed(&claims, &KEY);
        let own = |h: &str, c: &str| ir::ClaimHeader { header: h.into(), claim: c.into() };
        let r = ir::Jwt {
            headers: vec![ir::JwtHeader { name: "x-token".into(), prefix: String::new() }],
            cookies: vec!["t".into()],
            payload_header: "x-payload".into(),
            claim_headers: vec![
                own("x-sub", "sub"),
                own("x-n", "n"),
                own("x-inner", "in.ner"),
                own("x-none", "none"),
                own("x-groups", "groups"),
                own("x-in", "in"),
                own("x-whole", "whole"),
                own("x-empty", "empty"),
            ],
            ..rule()
        };
        let forged = [("x-payload", "forged"), ("x-none", "forged"), ("x-sub", "forged")];
        let mut p = request(&[&[("x-token", token.as_str())], &forged[..]].concat(), "/");
        let t = Tokens::new(std::slice::from_ref(&r)).unwrap().verify(&mut p, &mut Cache::default()).unwrap().unwrap();
        let get = |p: &Parts, n: &str| p.headers.get(n).map(|v| v.to_str().unwrap().to_string());
        let payload = token.split('.').nth(1).map(String::from);
        assert_eq!(
            ["x-sub", "x-n", "x-inner", "x-none", "x-payload", "x-token"].map(|n| get(&p, n)),
            [Some("you".into()), Some("7".into()), Some("x".into()), None, payload, None]
        );
        // What is no single value is base64 of JSON (Envoy).
        assert_eq!(
            ["x-groups", "x-in", "x-whole", "x-empty"].map(|n| get(&p, n)),
            [Some(STANDARD.encode(r#"["a","b"]"#)), Some(STANDARD.encode(r#"{"ner":"x"}"#)), Some("2".into()), None]
        );
        let claim = |path: &[&str]| t.claim(&path.iter().map(ToString::to_string).collect::<Vec<_>>()).join("|");
        assert_eq!(
            [&["scope"][..], &["groups"], &["in", "ner"], &["n"], &["in"], &["none", "x"]].map(claim),
            ["read|write", "a|b", "x", "", "", ""]
        );
        // Nor are they a client's own where there is no token; the token stays where that is asked for.
        let mut p = request(&forged, "/");
        assert_eq!(ask(std::slice::from_ref(&r), &mut p), Ok(None));
        assert!(forged.iter().all(|(n, _)| get(&p, n).is_none()));
        // In two places, the same: in neither it goes on.
        let both = ir::Jwt {
            headers: ["x-token", "x-other"].map(|n| ir::JwtHeader { name: n.into(), prefix: String::new() }).into(),
            ..r.clone()
        };
        let mut p = request(&[("x-token", &token), ("x-other", &token)], "/");
        assert_eq!(ask(&[both], &mut p), Ok(Some("me/you".into())));
        assert_eq!(["x-token", "x-other"].map(|n| get(&p, n)), [None, None]);
        let mut p = request(&[("cookie", &format!("a=b; t={token}")), ("x-token", &token)], "/");
        let kept = ir::Jwt { forward: true, ..r };
        assert_eq!(ask(&[kept], &mut p), Ok(Some("me/you".into())));
        assert!(get(&p, "x-token").is_some());
    }
}
