#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
use super::*;
use crate::{Decision, Page, Reporter, Verdict, merge, path::ANY};
use karst_core::Identity;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account).unwrap()
}

/// A connection to port 80 of shop/web.
fn connection(identity: Option<&Identity>) -> Seen<'_> {
    Seen {
        reporter: Reporter::Ztunnel,
        identity,
        from: [10, 0, 0, 9].into(),
        namespace: "shop",
        workload: "web",
        service: "",
        to: ([10, 0, 0, 1], 80).into(),
        pod: "web-1",
        request: None,
        decision: Decision::Allowed,
    }
}

/// A request to the service shop/web.
fn request<'a>(identity: &'a Identity, method: &'a str, path: &'a str) -> Seen<'a> {
    Seen {
        reporter: Reporter::Waypoint,
        workload: "",
        service: "shop/web",
        pod: "",
        request: Some(Request { method, path, host: "web" }),
        ..connection(Some(identity))
    }
}

#[test]
fn what_is_alike_is_one_flow() {
    let (a, b) = (identity("a"), identity("b"));
    let mut book = Book::new(100);
    for (seen, now) in [
        (connection(Some(&a)), 1),
        (connection(Some(&a)), 5),
        (connection(Some(&b)), 6),
        (connection(None), 7),
        (Seen { from: [10, 0, 0, 200].into(), ..connection(None) }, 8),
        (Seen { from: [10, 0, 1, 1].into(), ..connection(None) }, 8),
        (Seen { decision: Decision::DeniedBy("shop/no"), ..connection(Some(&a)) }, 9),
        (Seen { decision: Decision::NotAllowed, ..connection(Some(&a)) }, 9),
        (request(&a, "GET", "/orders/17"), 10),
        (request(&a, "GET", "/orders/18"), 11),
        (request(&a, "PUT", "/orders/18"), 12),
        (request(&a, "GET", "/orders"), 13),
    ] {
        assert!(!book.note(&seen, now));
    }
    let told: Vec<String> = merge(book.flows().cloned())
        .iter()
        .map(|f| {
            format!(
                "{:?} {} {} {:?} {} {}",
                f.key.source, f.key.method, f.key.path, f.key.verdict, f.key.policy, f.count
            )
        })
        .collect();
    let who = |account: &str| format!("Identity(\"{}\")", identity(account));
    let wanted = [
        format!("{}   Allowed  2", who("a")),
        format!("{}   Denied shop/no 1", who("a")),
        format!("{}   NotAllowed  1", who("a")),
        format!("{}   Allowed  1", who("b")),
        "Addresses(\"10.0.0.0/24\")   Allowed  2".into(),
        "Addresses(\"10.0.1.0/24\")   Allowed  1".into(),
        format!("{} GET /orders Allowed  1", who("a")),
        format!("{} GET /orders/{{*}} Allowed  2", who("a")),
        format!("{} PUT /orders/{{*}} Allowed  1", who("a")),
    ];
    assert_eq!(told, wanted);
    let all = book.flows().collect::<Vec<_>>();
    let orders = all.iter().find(|f| f.key.path == "/orders/{*}" && f.key.method == "GET").unwrap();
    assert_eq!((orders.first, orders.last, &*orders.example.path), (10, 11, "/orders/17"));
}

#[test]
fn the_one_not_seen_for_the_longest_time_makes_room() {
    let all: Vec<Identity> = (0..5).map(|n| identity(&format!("a{n}"))).collect();
    let mut book = Book::new(3);
    let seen: Vec<bool> =
        [0, 1, 2, 0, 3, 0, 4].iter().zip(0..).map(|(n, now)| book.note(&connection(Some(&all[*n])), now)).collect();
    assert_eq!(seen, [false, false, false, false, true, false, true]);
    let left: Vec<_> = book.flows().map(|f| (f.key.source.clone(), f.count)).collect();
    let of = |n: usize, count| (Source::Identity(all[n].to_string()), count);
    assert_eq!(left, [of(4, 1), of(0, 3), of(3, 1)]);
    assert_eq!(book.evicted(), 2);
}

/// Random flows, and a table and a list that are as simple as can be.
#[test]
fn the_book_is_the_naive_one() {
    let mut random = StdRng::seed_from_u64(11);
    let all: Vec<Identity> = (0..40).map(|n| identity(&format!("a{n}"))).collect();
    for capacity in [1, 2, 7, 30, 100] {
        let mut book = Book::new(capacity);
        let (mut naive, mut evicted): (Vec<(Key, u64)>, u64) = (vec![], 0);
        for now in 0..3000 {
            let n = random.random_range(0..all.len());
            let seen = Seen { decision: [Decision::Allowed, Decision::NotAllowed][n % 2], ..connection(Some(&all[n])) };
            book.note(&seen, now);
            let key = Wanted::new(&seen, false).key();
            let before = naive.iter().position(|(k, _)| *k == key).map(|at| naive.remove(at).1);
            naive.insert(0, (key, before.unwrap_or_default() + 1));
            if naive.len() > capacity {
                naive.pop();
                evicted += 1;
            }
        }
        let told: Vec<_> = book.flows().map(|f| (f.key.clone(), f.count)).collect();
        assert_eq!((told, book.evicted()), (naive, evicted), "{capacity}");
    }
}

#[test]
fn the_paths_of_a_service_do_not_fill_the_book() {
    let (a, mut book) = (identity("a"), Book::new(10_000));
    book.note(&Seen { service: "shop/other", ..request(&a, "GET", "/x") }, 0);
    // No digits, so that each is a path of its own.
    let letters =
        |n: usize| [n / 676 % 26, n / 26 % 26, n % 26].map(|l| (b'a' + l as u8) as char).iter().collect::<String>();
    for n in 0..5000 {
        book.note(&request(&a, "GET", &format!("/{}", letters(n))), 1);
    }
    assert_eq!(book.flows().count(), limits::FLOWS_PER_SERVICE + 2);
    let any = book.flows().find(|f| f.key.path == ANY).unwrap();
    assert_eq!(any.count as usize, 5000 - limits::FLOWS_PER_SERVICE);
    assert_eq!(book.evicted(), 0);
}

/// With the longest of everything a flow has no more than its bytes, and what is longer is cut or not kept.
#[test]
fn a_flow_is_bounded() {
    let long = |n: usize| "x".repeat(n);
    let (account, name, path) = (long(253), long(limits::FLOW_NAME), format!("/{}", [&*long(48); 20].join("/")));
    let a = Identity::new(&long(255), &long(63), &account).unwrap();
    let (host, verb) = (long(2000), long(200));
    let seen = Seen {
        namespace: &name,
        workload: &name,
        service: &name,
        pod: &name,
        request: Some(Request { method: &verb, path: &path, host: &host }),
        decision: Decision::DeniedBy(&name),
        ..request(&a, "", "")
    };
    let mut book = Book::new(10);
    assert!(!book.note(&seen, 0));
    let flow = book.flows().next().unwrap();
    let (key, example) = (&flow.key, &flow.example);
    let Source::Identity(source) = &key.source else { panic!("{key:?}") };
    let texts = [
        &key.destination.namespace,
        &key.destination.workload,
        &key.destination.service,
        source,
        &key.method,
        &key.path,
        &key.policy,
        &example.pod,
        &example.host,
        &example.path,
    ];
    let own: usize = texts.iter().map(|text| text.capacity()).sum();
    // Its slot, its place in both tables, and the name of its service once more.
    let bytes = own + size_of::<Slot>() + 2 * (8 + 8) + 2 * (limits::FLOW_NAME + 32);
    assert!(bytes <= limits::FLOW_BYTES, "{bytes}");
    assert!(example.cut);
    let huge = long(limits::FLOW_NAME + 1);
    assert!(book.note(&Seen { workload: &huge, ..seen }, 0), "not kept, and counted");
    assert_eq!((book.flows().count(), book.evicted()), (1, 1));
}

#[test]
fn a_page_is_read_as_it_was_written() {
    let (a, mut book) = (identity("a"), Book::new(10));
    book.note(&request(&a, "GET", "/orders/17"), 3);
    book.note(&connection(None), 4);
    let page = Page { enabled: true, since: 1, capacity: 10, evicted: 0, flows: merge(book.flows().cloned()) };
    let text = serde_json::to_string(&page).unwrap();
    assert_eq!(serde_json::from_str::<Page>(&text).unwrap(), page, "{text}");
    assert!(text.contains(r#""source":{"addresses":"10.0.0.0/24"}"#), "{text}");
}

#[test]
fn books_are_merged_by_key() {
    let (a, b) = (identity("a"), identity("b"));
    let (mut one, mut two) = (Book::new(10), Book::new(10));
    one.note(&connection(Some(&a)), 5);
    two.note(&Seen { pod: "web-2", ..connection(Some(&a)) }, 3);
    two.note(&connection(Some(&b)), 9);
    let all = merge(one.flows().chain(two.flows()).cloned());
    let told: BTreeMap<_, _> =
        all.iter().map(|f| (f.key.source.clone(), (f.count, f.first, f.last, &*f.example.pod))).collect();
    assert_eq!(told[&Source::Identity(a.to_string())], (2, 3, 5, "web-2"));
    assert_eq!(told[&Source::Identity(b.to_string())], (1, 9, 9, "web-1"));
    assert!(all.iter().all(|f| f.key.verdict == Verdict::Allowed));
}
