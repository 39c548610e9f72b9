//! Whom trusted proxies name: random lines of X-Forwarded-For, read by the product and by Envoy's way
//! ([`karst_differential::forwarded`]). `SEED=n` and `CASES=n` for another run.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use http::HeaderValue;
use karst_differential::{cases, forwarded, seed};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// What lines are made of.
const PIECES: [&str; 18] = [
    "192.0.2.1",
    "198.51.100.2",
    "10.0.0.1",
    "255.255.255.255",
    "2001:db8::1",
    "::1",
    "::ffff:192.0.2.1",
    "256.0.0.1",
    "01.2.3.4",
    "1.2.3",
    "1.2.3.4.5",
    "[::1]",
    "192.0.2.1:80",
    "unknown",
    "_hidden",
    "fe80::1%1",
    "1.2.3.4 5",
    "",
];
/// What comes between them.
const BETWEEN: [&str; 6] = [",", ", ", ",", " ,\t", ",,", ""];

#[test]
fn the_client_is_whom_envoy_would_take() {
    let seed = seed();
    println!("SEED={seed}");
    let mut r = StdRng::seed_from_u64(seed);
    let mut named = 0;
    for case in 0..cases() {
        let line = |r: &mut StdRng| -> String {
            let mut line = String::new();
            for _ in 0..r.random_range(0..5) {
                line.push_str(PIECES.choose(r).unwrap());
                line.push_str(BETWEEN.choose(r).unwrap());
            }
            line.push_str(PIECES.choose(r).unwrap());
            line
        };
        let count = r.random_range(0..4);
        let lines: Vec<String> = (0..count).map(|_| line(&mut r)).collect();
        // As a parser of HTTP gives them on: without white space around.
        let lines: Vec<String> = lines.iter().map(|l| l.trim_matches([' ', '\t']).to_string()).collect();
        let values: Vec<HeaderValue> = lines.iter().map(|l| l.parse().unwrap()).collect();
        let trusted = r.random_range(0..5);
        let (got, want) = (karst_waypoint::fuzz::client(&values, trusted), forwarded::client(&lines, trusted));
        assert_eq!(got, want, "case {case}, seed {seed}: {lines:?}, {trusted} trusted");
        named += usize::from(got.is_some());
    }
    println!("cases={} named={named} seed={seed}", cases());
    assert!(named > cases() / 10, "the generator must exercise it");
}
