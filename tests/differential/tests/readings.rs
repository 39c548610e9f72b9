//! What is judged is what is sent on: random paths and authorities, as a client writes them, through the entry and the
//! policies of a waypoint; then three small oracles each ([`karst_differential::readings`]) read what is sent on as
//! applications and servers do.
//!
//! A DENY must hold for whoever reads the path as the denied one, and an ALLOW only if all read it as the allowed one.
//! A host is read by all as it was judged, or the answer is 400. `SEED=n` and `CASES=n` for another run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use http::{HeaderValue, Request, StatusCode, Uri, Version, header, request::Parts};
use karst_api::ACCESS_TYPE;
use karst_controller::fuzz::Controller;
use karst_differential::{
    cases,
    readings::{AUTHORITIES, HostPort, PATHS, ReadAuthority},
    seed,
};
use karst_waypoint::fuzz::{Caller, Judge, Judged};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

const MESH: &str = "
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: app}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
";

/// A waypoint with one policy.
fn judge(action: &str, operation: &Value) -> Judge {
    let policy = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "app" },
        "spec": {
            "targetRefs": [{ "group": "", "kind": "Service", "name": "shop" }], "action": action,
            "rules": [{ "to": [{ "operation": operation }] }],
        },
    });
    let all = Controller::new(MESH).unwrap().told(&[policy]);
    let access = all.iter().find(|(t, ..)| *t == ACCESS_TYPE).map(|(.., bytes)| bytes.as_slice());
    Judge::service(Some(access.unwrap())).unwrap()
}

fn caller() -> Caller {
    let ip = "10.0.0.1".parse().unwrap();
    Caller { peer: None, source: ip, destination: ip, port: 80, sni: None }
}

fn head(version: Version, uri: Uri, host: Option<HeaderValue>) -> Parts {
    let mut head = Request::builder().version(version).uri(uri).body(()).unwrap().into_parts().0;
    head.headers.extend(host.map(|h| (header::HOST, h)));
    head
}

/// Some of these pieces, one after the other.
fn pieces(r: &mut StdRng, most: usize, all: &[&str]) -> String {
    (0..r.random_range(0..=most)).map(|_| *all.choose(r).unwrap()).collect()
}

/// One `*`, at an end, or none.
fn like(value: &str, text: &str) -> bool {
    match value.split_once('*') {
        None => value == text,
        Some((start, end)) => text.len() >= value.len() - 1 && text.starts_with(start) && text.ends_with(end),
    }
}

#[test]
fn a_path_is_judged_as_every_application_reads_it() {
    const VALUES: [&str; 8] = ["/admin", "/admin/*", "/a/b", "/a*", "*/b", "/b/*", "/", "/b"];
    const PIECES: [&str; 28] = [
        "/", "/", "//", "a", "b", "admin", "/admin", "/a/b", "..", "/..", ".", "/.", "%2f", "%2F", "%2e", "%2E%2e",
        "%61", "%41", ";x", "/;", "%3b", "\\", "%5c", "%25", "%252f", "%", "%e9", "/..;/",
    ];
    let seed = seed();
    println!("SEED={seed}");
    let mut r = StdRng::seed_from_u64(seed);
    let judges: Vec<(&str, [Judge; 4])> = VALUES
        .into_iter()
        .map(|v| {
            let (yes, no) = (json!({ "paths": [v] }), json!({ "notPaths": [v] }));
            (v, [judge("DENY", &yes), judge("ALLOW", &yes), judge("DENY", &no), judge("ALLOW", &no)])
        })
        .collect();
    let (mut sent_on, mut denied, mut disguised) = (0, 0, 0);
    for case in 0..cases() {
        let path = format!("/{}", pieces(&mut r, 7, &PIECES));
        // What a parser of HTTP refuses has no path.
        let Ok(uri) = path.parse::<Uri>() else { continue };
        let (value, judges) = judges.choose(&mut r).unwrap();
        let mut heads = judges.each_ref().map(|j| {
            let mut head = head(Version::HTTP_11, uri.clone(), Some(HeaderValue::from_static("shop")));
            let judged = j.request(&caller(), &mut head);
            (judged, head)
        });
        if heads.iter().any(|(j, _)| j.refused == Some(StatusCode::BAD_REQUEST)) {
            continue;
        }
        sent_on += 1;
        let sent = heads[0].1.uri.path().to_string();
        assert!(heads.iter_mut().all(|(_, h)| h.uri.path() == sent), "policies do not change what is sent");
        let [deny, allow, deny_others, allow_others] = heads.each_ref().map(|(j, _)| j.refused.is_none());
        for (name, read) in PATHS {
            let run = read(&sent);
            let hit = like(value, &run);
            let of = |what: &str| {
                format!("SEED={seed}, case {case}: {what} lets {path:?} in, sent as {sent:?}; {name} it is {run:?}")
            };
            assert!(!deny || !hit, "{}", of(&format!("DENY {value}")));
            assert!(!allow || hit, "{}", of(&format!("ALLOW {value}")));
            assert!(!deny_others || hit, "{}", of(&format!("DENY all but {value}")));
            assert!(!allow_others || !hit, "{}", of(&format!("ALLOW all but {value}")));
        }
        // Nor is all refused: what all read in one way, and is written so, goes by that.
        let hit = like(value, &sent);
        if sent.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b))
            && PATHS.iter().all(|(_, f)| f(&sent) == sent)
        {
            assert_eq!([deny, allow, deny_others, allow_others], [!hit, hit, hit, !hit], "{value} {sent}");
        }
        denied += usize::from(!deny);
        disguised += usize::from(!deny && !hit);
    }
    println!("paths={} sent on={sent_on} denied={denied} of these for another reading={disguised}", cases());
    let n = cases();
    assert!(sent_on > n / 2 && denied > n / 10 && disguised > n / 100, "the generator must exercise it");
}

/// What a client may write for a host.
fn authority(r: &mut StdRng) -> String {
    const WHOLE: [&str; 14] = [
        "shop",
        "admin.example.com",
        "Admin.Example.COM",
        "admin.example.com.",
        "10.0.0.1",
        "[::1]",
        "[2001:DB8:0::1]",
        "[::ffff:10.0.0.1]",
        "[fe80::1%25eth0]",
        "[v1.a]",
        "a_b",
        "xn--bcher-kva.example",
        "user@shop",
        "*.example.com",
    ];
    const PORTS: [&str; 12] =
        ["", ":", ":80", ":0080", ":0", ":65535", ":65536", ":+80", ":80:80", ":a", ".:80", ":80."];
    const PIECES: [&str; 26] = [
        "shop", "admin", "example", "com", ".", ".", "..", ":", "80", "443", "[", "]", "::1", "[::1]", "@", "%2e",
        "%41", "-", "_", ",", " ", "/", "\\", "*", "#", "\u{e9}",
    ];
    if r.random_bool(0.5) {
        return format!("{}{}", WHOLE.choose(r).unwrap(), PORTS.choose(r).unwrap());
    }
    pieces(r, 6, &PIECES)
}

/// A name of DNS or an address, and a port: what no server may refuse.
fn is_usual(host: &str) -> bool {
    let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    host.starts_with('[') || (host.len() <= 253 && host.split('.').all(label))
}

#[test]
fn a_host_is_judged_as_every_server_reads_it_or_refused() {
    const DENIED: &str = "admin.example.com";
    let seed = seed();
    println!("SEED={seed}");
    let mut r = StdRng::seed_from_u64(seed);
    let deny = judge("DENY", &json!({ "hosts": [DENIED] }));
    let allow = judge("ALLOW", &json!({ "hosts": ["shop", "10.0.0.1", "[::1]"] }));
    let (mut sent_on, mut refused, mut denied, mut allowed) = (0, 0, 0, 0);
    for case in 0..cases() {
        let text = authority(&mut r);
        let Ok(field) = HeaderValue::from_bytes(text.as_bytes()) else { continue };
        // As HTTP/1.1 has it, in the target of a proxy's client, and as HTTP/2 has it, with or without a field.
        let in_target = || Uri::builder().scheme("http").authority(text.as_str()).path_and_query("/").build().ok();
        let other = || HeaderValue::from_str(&authority(&mut StdRng::seed_from_u64(case as u64))).ok();
        let form = r.random_range(0..5);
        let given = match form {
            0 | 1 => Some((Version::HTTP_11, Uri::from_static("/"), Some(field))),
            2 => in_target().map(|uri| (Version::HTTP_11, uri, other())),
            3 => in_target().map(|uri| (Version::HTTP_2, uri, None)),
            _ => in_target().map(|uri| (Version::HTTP_2, uri, other())),
        };
        let Some((version, uri, field)) = given else { continue };
        let ask = |judge: &Judge| {
            let mut head = head(version, uri.clone(), field.clone());
            (judge.request(&caller(), &mut head), head)
        };
        let (judged, head) = ask(&deny);
        let read: Vec<(&str, ReadAuthority, Option<HostPort>)> =
            AUTHORITIES.into_iter().map(|(name, read)| (name, read, read(&text))).collect();
        let case = format!("SEED={seed}, case {case}: {text:?} ({version:?}, {uri}, {field:?})");
        if judged.refused == Some(StatusCode::BAD_REQUEST) {
            refused += 1;
            // Two may say two things.
            let agreed = read[0].2.clone().filter(|first| read.iter().all(|(.., r)| r.as_ref() == Some(first)));
            let good = agreed.is_some_and(|(host, port)| is_usual(&host) && port != Some(0));
            assert!(!good || form > 1, "{case}: refused, and all read it alike: {read:?}");
            continue;
        }
        sent_on += 1;
        let Judged { authority: Some(authority), .. } = &judged else { panic!("{case}: no host was judged") };
        let judged_as = authority.to_str().unwrap();
        let sent = head.headers.get_all(header::HOST).iter().collect::<Vec<_>>();
        assert!(field.is_none() || sent == [authority], "{case}: judged {authority:?}, sent {sent:?}");
        let (_, first, _) = read[0];
        let wanted = first(judged_as).unwrap_or_else(|| panic!("{case}: judged as {judged_as:?}, which is none"));
        for (name, oracle, of_text) in &read {
            assert_eq!(oracle(judged_as).as_ref(), Some(&wanted), "{case}: {name} reads what is sent, {judged_as:?}");
            if let Some(of_text) = of_text {
                assert_eq!(of_text, &wanted, "{case}: {name} reads what was written, judged as {judged_as:?}");
            }
        }
        // A rule holds for every spelling.
        let is_denied = judged.refused == Some(StatusCode::FORBIDDEN);
        assert_eq!(is_denied, wanted.0 == DENIED, "{case}: DENY {DENIED}, judged as {judged_as:?}");
        let is_allowed = ask(&allow).0.refused.is_none();
        assert_eq!(is_allowed, ["shop", "10.0.0.1", "[::1]"].contains(&wanted.0.as_str()), "{case}: ALLOW");
        denied += usize::from(is_denied);
        allowed += usize::from(is_allowed);
    }
    println!("authorities={} sent on={sent_on} refused={refused} denied={denied} allowed={allowed}", cases());
    let n = cases();
    assert!([sent_on, refused, denied, allowed].iter().all(|x| *x > n / 50), "the generator must exercise it");
}
