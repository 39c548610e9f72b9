//! 100,000 random policy sets and calls: the product's controller compiles AuthorizationPolicies as the API server
//! gives them, into what proxies are told; ztunnel's evaluation, a waypoint's and a gateway's judge by that. An
//! evaluator that shares nothing with them ([`karst_differential::naive`]) must say the same, as must be what policies
//! say that only tell.
//!
//! A path that applications may read in several ways is let in only if the evaluator lets it in whichever way it is
//! read.
//!
//! `SEED=n` and `CASES=n` for another run. A case that fails is printed with as little of the policies as it takes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{Request as HttpRequest, StatusCode, request::Parts};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use karst_controller::fuzz::{Controller, Resource};
use karst_core::Identity;
use karst_differential::{
    cases, meshes,
    naive::{self, Facts, Judgement, Place},
    random, readings, seed,
    shrink::shrink,
};
use karst_policy::{Connection, authorize, dry_run};
use karst_proxy::state::Snapshot;
use karst_waypoint::fuzz::{Caller, Judge, Judged};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write};

/// Calls for each set of policies.
const CALLS: usize = 20;
const PLACES: [Place; 3] = [Place::Pod, Place::Service, Place::Gateway];

/// What is called: a pod, its service with its waypoint, a gateway.
/// The mesh, and the beginning of another object.
fn mesh() -> String {
    [meshes::SHOP, meshes::GATEWAYS, "---\n"].concat()
}

/// Tokens of the issuers, some of each.
struct Tokens {
    claims: Vec<Value>,
    signed: Vec<String>,
    manifest: String,
}

impl Tokens {
    fn new(r: &mut StdRng) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let point = key.public_key_raw();
        let [x, y] = [&point[1..33], &point[33..]].map(|part| URL_SAFE_NO_PAD.encode(part));
        let jwks = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y }] }).to_string();
        let rules: Vec<Value> = random::ISSUERS.iter().map(|i| json!({ "issuer": i, "jwks": jwks })).collect();
        let targets = [naive::WAYPOINT, naive::GATEWAY]
            .map(|name| json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name }));
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
            "metadata": { "name": "tokens", "namespace": naive::HOME },
            "spec": { "targetRefs": targets, "jwtRules": rules },
        });
        let claims: Vec<Value> = (0..40).map(|_| random::claims(r)).collect();
        let signer = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
        let signed = claims.iter().map(|c| encode(&Header::new(Algorithm::ES256), c, &signer).unwrap()).collect();
        Self { claims, signed, manifest: object.to_string() }
    }
}

/// The proxies, told of some policies.
struct Proxies {
    pod: Snapshot,
    service: Judge,
    gateway: Judge,
}

impl Proxies {
    fn told(all: &[Resource]) -> Self {
        let mut pod = Snapshot::new("");
        for (type_url, name, bytes) in all {
            match *type_url {
                karst_api::ADDRESS_TYPE => pod.put_address(name, bytes).unwrap(),
                karst_api::AUTHORIZATION_TYPE => pod.put_policy(name, karst_api::convert::policy(bytes).unwrap()),
                _ => {}
            }
        }
        let one = |type_url: &str, name: &str| {
            all.iter().find(|(t, n, _)| *t == type_url && n == name).map(|(.., bytes)| bytes.as_slice())
        };
        Self {
            pod,
            service: Judge::service(one(karst_api::ACCESS_TYPE, "app/shop.app.svc.cluster.local")).unwrap(),
            gateway: Judge::gateway(one(karst_api::GATEWAY_TYPE, "app/edge-1").unwrap()).unwrap(),
        }
    }

    /// What the product says, and the path as the application is sent it.
    fn judge(&self, facts: &Facts, place: Place, tokens: &Tokens) -> (Judgement, String) {
        let peer = facts.identity.as_ref().map(|[domain, ns, account]| Identity::new(domain, ns, account).unwrap());
        let (source, destination, port) = (facts.source, facts.destination, facts.port);
        let judge = match place {
            Place::Pod => {
                let connection = Connection {
                    source_identity: peer,
                    source_ip: source,
                    destination_ip: destination,
                    destination_port: port,
                };
                let pod = &self.pod.workloads["Kubernetes//Pod/app/shop-1"];
                let policies = self.pod.policies_of(pod).expect("every policy has been told");
                let is_allowed = authorize(policies.iter().copied(), &connection).is_allow();
                let told = dry_run(policies.iter().copied(), &connection);
                let told = told.into_iter().map(|(p, would)| (p.key(), would.result())).collect();
                return (Judgement { is_allowed, told }, String::new());
            }
            Place::Service => &self.service,
            Place::Gateway => &self.gateway,
        };
        let caller = Caller { peer, source, destination, port, sni: facts.sni.clone() };
        let answer = |judged: Judged| {
            let is_allowed = judged.refused.is_none();
            assert!(matches!(judged.refused, None | Some(StatusCode::FORBIDDEN)), "{judged:?}: {facts:?}");
            Judgement { is_allowed, told: judged.told.into_iter().collect::<BTreeSet<_>>() }
        };
        let Some(request) = &facts.request else { return (answer(judge.bytes(&caller)), String::new()) };
        let mut head = head(request, tokens);
        let answer = answer(judge.request(&caller, &mut head));
        (answer, head.uri.path().to_string())
    }
}

fn head(request: &naive::Request, tokens: &Tokens) -> Parts {
    let mut r = HttpRequest::builder().method(request.method.as_str()).uri(&request.path).header("host", &request.host);
    for (name, value) in &request.headers {
        r = r.header(name, value);
    }
    if let Some(i) = request.claims.as_ref().and_then(|c| tokens.claims.iter().position(|x| x == c)) {
        r = r.header("authorization", format!("Bearer {}", tokens.signed[i]));
    }
    r.body(()).unwrap_or_else(|e| panic!("{e}: {request:?}")).into_parts().0
}

/// What the product says; or how the evaluator differs.
fn agreed(
    policies: &[Value],
    proxies: &Proxies,
    facts: &Facts,
    place: Place,
    tokens: &Tokens,
) -> Result<Judgement, String> {
    let (got, sent) = proxies.judge(facts, place, tokens);
    // At the pod nobody looks at the path.
    if place == Place::Pod || facts.request.as_ref().is_none_or(|r| random::is_plain(&r.path)) {
        let wanted = naive::judge(policies, facts, place, &sent);
        let text = || format!("{place:?}: the product says {got:?}, the evaluator {wanted:?}");
        return if got == wanted { Ok(got) } else { Err(text()) };
    }
    for (name, read) in readings::PATHS {
        let run = read(&sent);
        if got.is_allowed && !naive::judge(policies, facts, place, &run).is_allowed {
            return Err(format!("{place:?}: {sent:?} is let in, and one who takes it {name} runs {run:?}"));
        }
    }
    Ok(got)
}

/// A small case.
fn report(policies: &[Value], controller: &Controller, facts: &Facts, place: Place, tokens: &Tokens) -> String {
    let differs = |p: &[Value]| agreed(p, &Proxies::told(&controller.told(p)), facts, place, tokens).err();
    let small = shrink(policies.to_vec(), |p| differs(p).is_some());
    let mut out = differs(&small).unwrap_or_default();
    let _ = write!(out, "\n{facts:#?}\n");
    for p in small {
        let _ = writeln!(out, "--- {p}");
    }
    out
}

/// Allowed, denied, told of.
type Counts = [usize; 3];

/// The calls of a set of policies, which is made of its number and the seed alone; by place.
fn try_set(set: usize, tokens: &Tokens, controllers: &[Controller; 2]) -> [Counts; 3] {
    let seed = seed();
    let mut r = StdRng::seed_from_u64(seed.wrapping_mul(1 << 32).wrapping_add(set as u64));
    let policies: Vec<Value> = (0..r.random_range(1..5)).map(|i| random::policy(&mut r, &format!("p{i}"))).collect();
    let is_verified = r.random_bool(0.7);
    let controller = &controllers[usize::from(is_verified)];
    let proxies = Proxies::told(&controller.told(&policies));
    let used = random::Used::of(&policies);
    let mut seen = [[0; 3]; 3];
    for call in 0..CALLS {
        // What nobody verifies says nothing.
        let facts = random::facts(&mut r, &used, if is_verified { &tokens.claims } else { &[] });
        for (place, seen) in PLACES.into_iter().zip(&mut seen) {
            let Ok(got) = agreed(&policies, &proxies, &facts, place, tokens) else {
                let text = report(&policies, controller, &facts, place, tokens);
                panic!("SEED={seed}, set {set}, call {call}: {text}");
            };
            seen[usize::from(!got.is_allowed)] += 1;
            seen[2] += usize::from(!got.told.is_empty());
        }
    }
    seen
}

#[test]
fn ztunnel_waypoint_and_gateway_agree_with_a_naive_evaluator() {
    println!("SEED={}", seed());
    let tokens = Tokens::new(&mut StdRng::seed_from_u64(seed()));
    let controllers = [mesh(), mesh() + &tokens.manifest].map(|text| Controller::new(&text).unwrap());
    let sets = cases().div_ceil(CALLS);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seen: Vec<[Counts; 3]> = std::thread::scope(|s| {
        let (tokens, controllers) = (&tokens, &controllers);
        let some = move |first: usize| {
            (first..sets).step_by(threads).map(|set| try_set(set, tokens, controllers)).collect::<Vec<_>>()
        };
        let all: Vec<_> = (0..threads).map(|first| s.spawn(move || some(first))).collect();
        all.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let sum = |place: usize, what: usize| seen.iter().map(|s| s[place][what]).sum::<usize>();
    let seen = [0, 1, 2].map(|place| [0, 1, 2].map(|what| sum(place, what)));
    println!("cases={} [allowed, denied, told of] at pod, service, gateway: {seen:?}", cases());
    let least = [cases() / 8, cases() / 8, cases() / 100];
    assert!(seen.iter().all(|s| s.iter().zip(least).all(|(n, least)| *n > least)), "all must be exercised: {seen:?}");
}

/// One that is added to the product's table must be told to the evaluator, or nobody would try it.
#[test]
fn the_evaluator_knows_every_key() {
    for k in karst_policy::attribute::KEYS {
        let named = |key: &&str| key.strip_prefix(k.key).is_some_and(|rest| rest.starts_with('[') == k.is_named());
        assert!(naive::KEYS.iter().any(|key| named(key) && (k.is_named() || *key == k.key)), "{}", k.key);
    }
}
