//! T1D: 100,000 random policy sets and connections, judged by the product and by an evaluator written
//! independently, straight from the sentences of the specification, with no short cuts. Any disagreement fails.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_core::Identity;
use karst_policy::{model::CidrText, *};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::net::IpAddr;

const NS: [&str; 4] = ["a", "b", "ab", "prod"];
const SA: [&str; 3] = ["x", "y", "xy"];
const TD: [&str; 2] = ["td", "cluster.local"];
const IPS: [&str; 6] = ["10.0.0.1", "10.0.1.1", "192.168.0.1", "fd00::1", "fd00:1::1", "::ffff:10.0.0.1"];
const NETS: [&str; 7] = ["10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::/32", "192.168.0.1", "fd00::1"];
const PORTS: [u16; 4] = [80, 443, 8080, 15008];

/// Three-valued on purpose: a field can be absent, which is neither true nor false.
fn naive(policies: &[Policy], c: &Connection) -> bool {
    let mut denied = false;
    let mut allow_policies = 0;
    let mut allowed = false;
    for p in policies {
        if p.dry_run {
            continue;
        }
        let mut hit = false;
        for r in &p.rules {
            let mut all = true;
            for cl in &r.clauses {
                let mut some = cl.matches.is_empty();
                for m in &cl.matches {
                    let fields = naive_fields(m, c);
                    let fires = if m.unknown {
                        p.action == Action::Deny
                    } else {
                        let set: Vec<bool> = fields.iter().flatten().copied().collect();
                        !set.is_empty() && set.iter().all(|b| *b)
                    };
                    some = some || fires;
                }
                all = all && some;
            }
            hit = hit || all;
        }
        match p.action {
            Action::Deny => denied = denied || hit,
            Action::Allow => {
                allow_policies += 1;
                allowed = allowed || hit;
            }
        }
    }
    !denied && (allow_policies == 0 || allowed)
}

fn naive_fields(m: &Match, c: &Connection) -> Vec<Option<bool>> {
    let parts = c.source_identity.as_ref().map(|i| {
        let text = i.to_string();
        let bare = text.trim_start_matches("spiffe://").to_string();
        let p: Vec<String> = bare.split('/').map(String::from).collect();
        (bare, p[2].clone(), p[4].clone())
    });
    let strings = |v: &[StringMatch], s: Option<String>| -> bool {
        let Some(s) = s else { return false };
        v.iter().any(|x| match x {
            StringMatch::Exact(e) => s == **e,
            StringMatch::Prefix(e) => s.len() >= e.len() && s[..e.len()] == **e,
            StringMatch::Suffix(e) => s.len() >= e.len() && s[s.len() - e.len()..] == **e,
            StringMatch::Presence => !s.is_empty(),
        })
    };
    let nets = |v: &[CidrText], ip: IpAddr| -> bool {
        v.iter().any(|n| {
            let (text, len) = (n.0.base(), n.0.prefix_len() as usize);
            let bits = |ip: IpAddr| -> Vec<u8> {
                let bytes = match ip.to_canonical() {
                    IpAddr::V4(a) => a.octets().to_vec(),
                    IpAddr::V6(a) => a.octets().to_vec(),
                };
                bytes.iter().flat_map(|b| (0..8).rev().map(move |i| b >> i & 1)).collect()
            };
            let (a, b) = (bits(text), bits(ip));
            a.len() == b.len() && a[..len] == b[..len]
        })
    };
    let accounts = |v: &[ServiceAccountMatch]| -> bool {
        parts.as_ref().is_some_and(|(_, ns, sa)| v.iter().any(|x| *x.namespace == **ns && *x.service_account == **sa))
    };
    let pos = |empty: bool, v: bool| if empty { None } else { Some(v) };
    let neg = |empty: bool, v: bool| if empty { None } else { Some(!v) };
    let ns = || parts.as_ref().map(|p| p.1.clone());
    let pr = || parts.as_ref().map(|p| p.0.clone());
    vec![
        pos(m.namespaces.is_empty(), strings(&m.namespaces, ns())),
        neg(m.not_namespaces.is_empty(), strings(&m.not_namespaces, ns())),
        pos(m.principals.is_empty(), strings(&m.principals, pr())),
        neg(m.not_principals.is_empty(), strings(&m.not_principals, pr())),
        pos(m.source_ips.is_empty(), nets(&m.source_ips, c.source_ip)),
        neg(m.not_source_ips.is_empty(), nets(&m.not_source_ips, c.source_ip)),
        pos(m.destination_ips.is_empty(), nets(&m.destination_ips, c.destination_ip)),
        neg(m.not_destination_ips.is_empty(), nets(&m.not_destination_ips, c.destination_ip)),
        pos(m.destination_ports.is_empty(), m.destination_ports.contains(&c.destination_port)),
        neg(m.not_destination_ports.is_empty(), m.not_destination_ports.contains(&c.destination_port)),
        pos(m.service_accounts.is_empty(), accounts(&m.service_accounts)),
        neg(m.not_service_accounts.is_empty(), accounts(&m.not_service_accounts)),
    ]
}

fn some<T>(r: &mut StdRng, chance: f64, mut f: impl FnMut(&mut StdRng) -> T) -> Vec<T> {
    if r.random_bool(chance) { (0..r.random_range(1..3)).map(|_| f(r)).collect() } else { vec![] }
}
fn string(r: &mut StdRng, words: &[String]) -> StringMatch {
    let w = words.choose(r).unwrap();
    match r.random_range(0..4) {
        0 => StringMatch::Exact(w.as_str().into()),
        1 => StringMatch::Prefix(w[..r.random_range(0..=w.len())].into()),
        2 => StringMatch::Suffix(w[r.random_range(0..=w.len())..].into()),
        _ => StringMatch::Presence,
    }
}
fn random_match(r: &mut StdRng) -> Match {
    let ns: Vec<String> = NS.iter().map(|s| s.to_string()).collect();
    let pr: Vec<String> = (0..4)
        .map(|_| format!("{}/ns/{}/sa/{}", TD.choose(r).unwrap(), NS.choose(r).unwrap(), SA.choose(r).unwrap()))
        .collect();
    let net = |r: &mut StdRng| CidrText(NETS.choose(r).unwrap().parse().unwrap());
    let sa = |r: &mut StdRng| ServiceAccountMatch {
        namespace: (*NS.choose(r).unwrap()).into(),
        service_account: (*SA.choose(r).unwrap()).into(),
    };
    Match {
        namespaces: some(r, 0.2, |r| string(r, &ns)),
        not_namespaces: some(r, 0.1, |r| string(r, &ns)),
        principals: some(r, 0.2, |r| string(r, &pr)),
        not_principals: some(r, 0.1, |r| string(r, &pr)),
        source_ips: some(r, 0.2, net),
        not_source_ips: some(r, 0.1, net),
        destination_ips: some(r, 0.1, net),
        not_destination_ips: some(r, 0.1, net),
        destination_ports: some(r, 0.2, |r| *PORTS.choose(r).unwrap()),
        not_destination_ports: some(r, 0.1, |r| *PORTS.choose(r).unwrap()),
        service_accounts: some(r, 0.1, sa),
        not_service_accounts: some(r, 0.1, sa),
        unknown: r.random_bool(0.03),
    }
}

#[test]
fn product_agrees_with_naive_evaluator() {
    let seed: u64 = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut r = StdRng::seed_from_u64(seed);
    let (mut allowed, mut denied) = (0, 0);
    for n in 0..100_000 {
        let policies: Vec<Policy> = (0..r.random_range(0..4))
            .map(|i| Policy {
                name: format!("p{i}").into(),
                namespace: "ns".into(),
                scope: Scope::Namespace,
                action: if r.random_bool(0.5) { Action::Allow } else { Action::Deny },
                rules: (0..r.random_range(0..3))
                    .map(|_| Rule {
                        clauses: (0..r.random_range(0..3))
                            .map(|_| Clause {
                                matches: (0..r.random_range(0..3)).map(|_| random_match(&mut r)).collect(),
                            })
                            .collect(),
                    })
                    .collect(),
                dry_run: r.random_bool(0.05),
            })
            .collect();
        let c = Connection {
            source_identity: r.random_bool(0.8).then(|| {
                Identity::new(TD.choose(&mut r).unwrap(), NS.choose(&mut r).unwrap(), SA.choose(&mut r).unwrap())
                    .unwrap()
            }),
            source_ip: IPS.choose(&mut r).unwrap().parse::<IpAddr>().unwrap(),
            destination_ip: IPS.choose(&mut r).unwrap().parse::<IpAddr>().unwrap(),
            destination_port: *PORTS.choose(&mut r).unwrap(),
        };
        let (got, want) = (authorize(policies.iter(), &c).is_allow(), naive(&policies, &c));
        assert_eq!(got, want, "case {n}, seed {seed}: {policies:#?} {c:?}");
        if got { allowed += 1 } else { denied += 1 }
    }
    println!("T1D cases=100000 disagreements=0 allowed={allowed} denied={denied} seed={seed}");
    assert!(allowed > 20_000 && denied > 20_000, "the generator must exercise both verdicts");
}
