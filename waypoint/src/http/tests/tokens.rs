//! Tokens: routes by their claims, and how often they are verified.

use super::*;
use crate::authz::{access::Access, token_cache::Outcome};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderValue, header};
use ir::text::Kind;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use karst_core::claims;
use rcgen::KeyPair;
use serde_json::{Value, json};
use std::sync::atomic::AtomicU64;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn signed(key: &KeyPair, claims: &Value) -> String {
    let secret = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    encode(&Header::new(Algorithm::ES256), claims, &secret).unwrap()
}

fn with_token(token: &str) -> Request<Payload> {
    let mut request = get("/");
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    request.headers_mut().insert(header::AUTHORIZATION, value);
    request
}

/// A rule that answers with a status where a claim is so, or is not.
fn answers(status: u32, path: &[&str], kind: Kind, invert: bool) -> ir::HttpRule {
    let name = claims::name(&path.iter().map(ToString::to_string).collect::<Vec<_>>());
    let headers = vec![ir::Named { name, value: Some(ir::Text { kind: Some(kind) }), invert }];
    ir::HttpRule {
        origin: format!("answers {status}"),
        r#match: Some(ir::Match { headers, ..Default::default() }),
        response: Some(ir::DirectResponse { status, ..Default::default() }),
        ..Default::default()
    }
}

/// Tokens that one of these keys has signed are taken.
fn issuer(keys: &[&KeyPair]) -> ir::Jwt {
    let key = |key: &&KeyPair| {
        let point = key.public_key_raw();
        let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
        json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y })
    };
    let jwks = json!({ "keys": keys.iter().map(key).collect::<Vec<_>>() }).to_string();
    ir::Jwt { name: "r".into(), issuer: "me".into(), jwks, ..Default::default() }
}

/// Tokens of this key's are taken, and routes are chosen by them.
fn by_claims(key: &KeyPair) -> impl FnOnce(&mut Snapshot) + use<> {
    let rule = ir::Jwt { space_delimited: vec!["scope".to_string()], ..issuer(&[key]) };
    let access = Access::new(&ir::Access { tokens: vec![rule], ..Default::default() }).unwrap();
    let exact = |text: &str| Kind::Exact(text.into());
    let http = vec![
        answers(201, &["groups"], exact("staff"), false),
        answers(202, &["sub"], Kind::Present(true), true),
        answers(203, &["realm", "roles"], Kind::Prefix("adm".into()), false),
        answers(204, &["scope"], exact("write"), false),
        answers(206, &["https://example.com/tier"], Kind::Regex("gold|silver".into()), false),
        answers(226, &["level"], Kind::Present(true), false),
        answers(208, &["groups"], exact("guests"), true),
    ];
    let table = ir::Table { http, tcp: vec![] };
    let routes = Routes::new(&ir::Routes { producer: Some(table), ..Default::default() }, None).unwrap();
    move |s| {
        s.routes.insert(KEY.into(), Arc::new(routes));
        s.access.insert(KEY.into(), Arc::new(access));
    }
}

#[test]
fn routes_are_chosen_by_claims_of_verified_tokens() {
    run(async {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let m = Mesh::of(by_claims(&key), |_, _| status(200));
        assert_eq!(m.ask(get("/")).await.0, 202, "without a token there is no claim, and an inverted condition holds");
        for (claims, wanted) in [
            (json!({ "sub": "a", "groups": ["x", "staff"] }), 201),
            (json!({ "sub": "a", "groups": "staff" }), 201),
            (json!({ "groups": "none" }), 202),
            (json!({ "sub": "a", "realm": { "roles": ["user", "admin"] } }), 203),
            (json!({ "sub": "a", "realm": "adm" }), 208),
            (json!({ "sub": "a", "scope": "read write" }), 204),
            (json!({ "sub": "a", "scope": "read writer" }), 208),
            (json!({ "sub": "a", "https://example.com/tier": "gold" }), 206),
            (json!({ "sub": "a", "https://example.com/tier": "golden" }), 208),
            // Numbers are not compared (Istio).
            (json!({ "sub": "a", "level": 3 }), 208),
            (json!({ "sub": "a", "groups": ["guests"] }), 404),
        ] {
            let mut claims = claims;
            claims["iss"] = "me".into();
            assert_eq!(m.ask(with_token(&signed(&key, &claims))).await.0.as_u16(), wanted, "{claims}");
        }
        // A claim that nobody has verified chooses nothing.
        let forged = signed(&other, &json!({ "iss": "me", "sub": "a", "groups": "staff" }));
        assert_eq!(m.ask(with_token(&forged)).await.0, 401);
    });
}

/// Each organization has its own bucket; who has no token shares one with others who have none.
#[test]
fn a_limit_counts_by_a_claim() {
    use ir::rate_limit_key::Key;
    run(async {
        let key = KeyPair::generate().unwrap();
        let claim = ir::RateLimitKey { key: Some(Key::Claim("realm][org".into())) };
        let limit = ir::RateLimit {
            name: "l".into(),
            requests: 1,
            per_ms: 10_000,
            burst: 1,
            keys: vec![claim],
            ..Default::default()
        };
        let limited = ir::Routes { limits: vec![limit], ..Default::default() };
        let by_claims = by_claims(&key);
        let m = Mesh::of(
            |s| {
                by_claims(s);
                s.routes.insert(KEY.into(), Arc::new(Routes::new(&limited, None).unwrap()));
            },
            |_, _| status(200),
        );
        let of = |org: &str| signed(&key, &json!({ "iss": "me", "sub": org, "realm": { "org": org } }));
        let (one, other) = (of("a"), of("b"));
        let again = signed(&key, &json!({ "iss": "me", "sub": "else", "realm": { "org": "a" } }));
        for (token, wanted) in [(&one, 200), (&one, 429), (&again, 429), (&other, 200)] {
            assert_eq!(m.ask(with_token(token)).await.0.as_u16(), wanted);
        }
        assert_eq!((m.ask(get("/")).await.0.as_u16(), m.ask(get("/")).await.0.as_u16()), (200, 429));
    });
}

#[test]
fn a_token_is_verified_once_for_all_requests_of_a_worker() {
    run(async {
        let key = KeyPair::generate().unwrap();
        let m = Mesh::of(by_claims(&key), |_, _| status(200));
        let token = signed(&key, &json!({ "iss": "me", "sub": "a", "groups": "staff" }));
        for _ in 0..10 {
            assert_eq!(m.ask(with_token(&token)).await.0, 201);
        }
        assert_eq!(m.ask(with_token("opaque")).await.0, 401);
        let counts = &m.worker.shared.metrics.tokens;
        assert_eq!([Outcome::Verified, Outcome::Cached, Outcome::Refused].map(|o| counts.of(o)), [1, 9, 1]);
        let page = karst_rt::exposition::page(|page| counts.render(page));
        assert!(page.contains("karst_jwt_verifications_total{outcome=\"cached\"} 9\n"), "{page}");
    });
}

/// An endpoint that changes to WebSocket and sends back what it gets, and a client's open one.
async fn websocket(m: &Mesh, token: &str) -> DuplexStream {
    m.memory.listen(address(0), |mut io| {
        spawn(async move {
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                head.push(io.read_u8().await.unwrap());
            }
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            io.write_all(answer).await.unwrap();
            let (mut from, mut to) = tokio::io::split(io);
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
    });
    let mut io = m.connect(false);
    let asked = format!(
        "GET / HTTP/1.1\r\nhost: s\r\nauthorization: Bearer {token}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    io.write_all(asked.as_bytes()).await.unwrap();
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    io
}

/// As by policies that come later: what its issuer's rules would not let in any more does not stay.
#[test]
fn an_open_websocket_ends_with_what_its_token_is_good_by() {
    run(async {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let tests = vec![ir::AccessTest {
            attribute: ir::Attribute::RequestPrincipal as i32,
            values: vec!["me/*".into()],
            ..Default::default()
        }];
        let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
        let rules = vec![ir::AccessRule { clauses }];
        let known_only = ir::AccessPolicy { name: "ns/known".into(), rules, ..Default::default() };
        let access = |tokens: Vec<ir::Jwt>, policies: &[ir::AccessPolicy]| {
            let access = ir::Access { tokens, policies: policies.to_vec(), ..Default::default() };
            Some(Arc::new(Access::new(&access).unwrap()))
        };
        let token = signed(&key, &json!({ "iss": "me", "sub": "you" }));
        let known_only = [known_only];
        for (what, later, stays) in [
            ("the same", access(vec![issuer(&[&key])], &known_only), true),
            ("another key beside it", access(vec![issuer(&[&other, &key])], &known_only), true),
            ("another key in its place", access(vec![issuer(&[&other])], &[]), false),
            ("nobody's tokens, who is known", access(vec![], &known_only), false),
            ("nobody's tokens, anybody", access(vec![], &[]), true),
            ("nothing", None, true),
        ] {
            let first = access(vec![issuer(&[&key])], &[]).unwrap();
            let m = Mesh::new(1, AppProtocol::Http11, |s| drop(s.access.insert(KEY.into(), first)));
            let mut io = websocket(&m, &token).await;
            let mut s = (*m.worker.snapshot()).clone();
            s.access.remove(KEY);
            if let Some(later) = later {
                s.access.insert(KEY.into(), later);
            }
            LINES.take();
            m.worker.conns.recheck(|| &s, &AtomicU64::new(0)).await;
            let _ = io.write_all(b"hello").await;
            let mut back = [0; 5];
            assert_eq!(io.read_exact(&mut back).await.is_ok(), stays, "{what}");
            drop(io);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(logged("jwt_authn_access_denied{"), what == "another key in its place", "{what}");
        }
    });
}
