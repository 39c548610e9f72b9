#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
use super::*;
use crate::{
    Decision, Destination, Key, Page, Reporter, Request, Source, Verdict, merge,
    path::{ANY, template},
};
use karst_core::Identity;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

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
    let told: Vec<String> = merge(book.flows())
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
    let left: Vec<_> = book.flows().map(|f| (f.key.source, f.count)).collect();
    let of = |n: usize, count| (Source::Identity(all[n].to_string()), count);
    assert_eq!(left, [of(4, 1), of(0, 3), of(3, 1)]);
    assert_eq!(book.evicted(), 2);
}

/// What is noted, said in words: as its key is read.
fn key(seen: &Seen<'_>) -> Key {
    let from = match seen.from {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    };
    let (verdict, policy) = match seen.decision {
        Decision::Allowed => (Verdict::Allowed, ""),
        Decision::DeniedBy(policy) => (Verdict::Denied, policy),
        Decision::NotAllowed => (Verdict::NotAllowed, ""),
    };
    Key {
        reporter: seen.reporter,
        destination: Destination {
            namespace: seen.namespace.into(),
            workload: seen.workload.into(),
            service: seen.service.into(),
        },
        port: seen.to.port(),
        source: seen.identity.map_or(Source::Addresses(from), |identity| Source::Identity(identity.to_string())),
        method: seen.request.map_or_else(String::new, |request| request.method.into()),
        path: seen.request.map_or_else(String::new, |request| template(request.path)),
        verdict,
        policy: policy.into(),
    }
}

/// A list, those seen last first, that is looked through from its beginning.
#[derive(Default)]
struct Naive {
    capacity: usize,
    flows: Vec<Flow>,
    evicted: u64,
}

impl Naive {
    fn note(&mut self, seen: &Seen<'_>, now: u64) -> bool {
        let mut key = key(seen);
        let has_path = |flow: &&Flow| flow.key.destination.service == seen.service && !flow.key.path.is_empty();
        let is_known = self.flows.iter().any(|flow| flow.key == key);
        let paths = self.flows.iter().filter(has_path).count();
        if !is_known && seen.request.is_some() && paths >= limits::FLOWS_PER_SERVICE {
            key.path = ANY.into();
        }
        let flow = match self.flows.iter().position(|flow| flow.key == key) {
            Some(at) => {
                let mut flow = self.flows.remove(at);
                (flow.count, flow.first, flow.last) = (flow.count + 1, flow.first.min(now), now);
                flow
            }
            None => Flow { key, count: 1, first: now, last: now, example: Example::of(seen) },
        };
        self.flows.insert(0, flow);
        let evicts = self.flows.len() > self.capacity;
        if evicts {
            self.flows.pop();
            self.evicted += 1;
        }
        evicts
    }
}

/// Random requests and connections, one after the other and many times the same, in books in which many have to make room and in
/// one in which the paths of a service are too many.
#[test]
fn the_book_is_the_naive_one() {
    let mut random = StdRng::seed_from_u64(11);
    let all: Vec<Identity> = (0..6).map(|n| identity(&format!("a{n}"))).collect();
    let words: Vec<String> =
        (b'a'..=b'z').flat_map(|a| (b'a'..=b'i').map(move |b| [a, b].map(char::from).iter().collect())).collect();
    let addresses: [IpAddr; 4] = [
        [10, 0, 0, 1].into(),
        [10, 0, 0, 2].into(),
        [10, 0, 1, 1].into(),
        Ipv6Addr::new(0xfd00, 0, 0, 0, 1, 0, 0, 1).into(),
    ];
    for capacity in [1, 2, 7, 30, 100, 1000] {
        let (mut book, mut naive) = (Book::new(capacity), Naive { capacity, ..Naive::default() });
        let (mut path, mut other) = (String::new(), 0);
        for now in 0..4000 {
            // Often only one thing is another than before.
            if random.random_bool(0.5) {
                path = match random.random_range(0..6) {
                    0 => "/".into(),
                    1 => format!("/orders/{}", random.random_range(0..1000)),
                    2 => "*".into(),
                    3 => ANY.into(),
                    _ => format!(
                        "/{}/{}",
                        words[random.random_range(0..words.len())],
                        ["x", "17"][random.random_range(0..2)]
                    ),
                };
            }
            if random.random_bool(0.3) {
                other = random.random_range(0..64);
            }
            let who = &all[other % all.len()];
            let seen = match other {
                0..40 => request(who, ["GET", "PUT"][other % 2], &path),
                40..50 => connection(Some(who)),
                _ => connection(None),
            };
            let seen = Seen {
                decision: [Decision::Allowed, Decision::NotAllowed, Decision::DeniedBy("shop/no")][other / 3 % 3],
                from: addresses[other % addresses.len()],
                ..seen
            };
            // The time of day may go back.
            let now = if now % 10 == 0 { now / 2 } else { now };
            assert_eq!(book.note(&seen, now), naive.note(&seen, now), "{capacity}: {seen:?}");
        }
        let told: Vec<Flow> = book.flows().collect();
        assert_eq!((told, book.evicted()), (naive.flows, naive.evicted), "{capacity}");
        assert_eq!(book.by_hash.len(), book.slots.len(), "{capacity}");
        if capacity == 1000 {
            assert!(book.flows().any(|flow| flow.key.path == ANY), "there were paths enough");
        }
    }
}

/// What is seen twice needs no look-up the second time: whatever one thing is another, it is another flow.
#[test]
fn one_other_thing_is_another_flow() {
    let (a, b) = (identity("a"), identity("b"));
    let base = request(&a, "GET", "/orders/17");
    let of = |path: &'static str| Some(Request { method: "GET", path, host: "web" });
    let others = [
        Seen { reporter: Reporter::Gateway, ..base },
        Seen { identity: Some(&b), ..base },
        Seen { identity: None, ..base },
        Seen { identity: None, from: [10, 0, 1, 9].into(), ..base },
        Seen { namespace: "other", ..base },
        Seen { workload: "web", ..base },
        Seen { service: "shop/web2", ..base },
        Seen { service: "", ..base },
        Seen { to: ([10, 0, 0, 1], 81).into(), ..base },
        Seen { request: None, ..base },
        Seen { request: of("/orders"), ..base },
        Seen { request: of("/orders/17/items"), ..base },
        Seen { request: of("*"), ..base },
        Seen { request: Some(Request { method: "PUT", path: "/orders/17", host: "web" }), ..base },
        Seen { decision: Decision::NotAllowed, ..base },
        Seen { decision: Decision::DeniedBy("shop/no"), ..base },
        Seen { decision: Decision::DeniedBy("shop/never"), ..base },
        // The same letters, divided otherwise.
        Seen { namespace: "sho", workload: "p", ..base },
        Seen { namespace: "shops", service: "hop/web", ..base },
    ];
    // The same of it: another pod, host, address of a caller with an identity, and number in the path.
    let like_base = Seen {
        from: [10, 0, 7, 7].into(),
        to: ([10, 0, 0, 2], 80).into(),
        pod: "web-2",
        request: Some(Request { method: "GET", path: "/orders/18", host: "web.shop" }),
        ..base
    };
    let mut book = Book::new(100);
    for other in &others {
        for seen in [&base, other, &like_base, other, other] {
            assert!(!book.note(seen, 1));
        }
    }
    let counts: BTreeMap<Key, u64> = book.flows().map(|flow| (flow.key, flow.count)).collect();
    let wanted: BTreeMap<Key, u64> =
        others.iter().map(|other| (key(other), 3)).chain([(key(&base), 2 * others.len() as u64)]).collect();
    assert_eq!((counts.len(), &counts), (others.len() + 1, &wanted));
}

/// A connection whose requests go on while policies change: each is counted by what was decided about it.
#[test]
fn a_policy_that_changes_between_two_requests_is_another_flow_and_back() {
    let a = identity("a");
    let of = |decision| Seen { decision, ..request(&a, "GET", "/orders/17") };
    let (allowed, denied) = (of(Decision::Allowed), of(Decision::DeniedBy("shop/no")));
    let mut book = Book::new(100);
    for (now, seen) in [allowed, allowed, denied, allowed, denied, denied].iter().enumerate() {
        book.note(seen, now as u64);
    }
    let told: Vec<_> = book.flows().map(|f| (f.key.verdict, f.key.policy, f.count, f.first, f.last)).collect();
    assert_eq!(told, [(Verdict::Denied, "shop/no".into(), 3, 2, 5), (Verdict::Allowed, String::new(), 3, 0, 3)]);
}

/// Who has taken another's place is not counted for it, nor the other for it when it comes again.
#[test]
fn a_flow_that_has_made_room_begins_anew() {
    let (a, b) = (identity("a"), identity("b"));
    let (one, other) = (request(&a, "GET", "/orders/17"), request(&b, "GET", "/orders/17"));
    let mut book = Book::new(1);
    for (seen, now, evicts, count) in
        [(&one, 1, false, 1), (&one, 2, false, 2), (&other, 3, true, 1), (&one, 4, true, 1), (&one, 5, false, 2)]
    {
        assert_eq!(book.note(seen, now), evicts, "{now}");
        let told: Vec<_> = book.flows().map(|f| (f.key, f.count, f.last)).collect();
        assert_eq!(told, [(key(seen), count, now)]);
    }
    assert_eq!(book.evicted(), 2);
}

/// A request that has waited for its decision is of the time at which it came, and so may be told after one that came later.
#[test]
fn the_first_is_never_after_the_last() {
    let (a, mut book) = (identity("a"), Book::new(10));
    for now in [50, 40, 60, 45] {
        book.note(&request(&a, "GET", "/"), now);
    }
    let flow = book.flows().next().unwrap();
    assert_eq!((flow.count, flow.first, flow.last), (4, 40, 45));
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
    // One that is written as all of them are is not all of them.
    book.note(&Seen { service: "shop/other", ..request(&a, "GET", ANY) }, 2);
    assert!(book.flows().next().is_some_and(|f| (&*f.key.path, f.count) == ("/{*}", 1)));
}

/// What each request pays for the book, in ns; its budget is one per cent of what a request costs a waypoint (docs/performance.md).
#[test]
#[ignore = "measures: cargo test --release -p karst-flows -- --ignored --nocapture"]
fn a_known_flow_costs_less_than_its_budget() {
    const ROUNDS: usize = 400_000;
    const BUDGET: f64 = 500.0;
    let callers: Vec<Identity> = (0..8).map(|n| identity(&format!("caller-{n}"))).collect();
    let service = "shop/reviews.shop.svc.cluster.local";
    let static_paths = ["/", "/health", "/api/v1/reviews", "/api/v1/reviews/mine", "/a", "/b", "/c", "/d"];
    let with_ids: Vec<String> =
        (0..8).map(|n| format!("/api/v1/orders/{n}50e8400-e29b-41d4-a716-446655440000/items")).collect();
    // No digits, so that each is a path of its own.
    let letters =
        |n: usize| [n / 676 % 26, n / 26 % 26, n % 26].map(|l| (b'a' + l as u8) as char).iter().collect::<String>();
    let endless: Vec<String> = (0..5000).map(|n| format!("/articles/{}-and-how", letters(n))).collect();
    let cost = |what: &str, path: &dyn Fn(usize) -> usize, caller: &dyn Fn(usize) -> usize, paths: &[&str]| {
        let mut book = Book::new(4096);
        let mut note = |n: usize| {
            let seen = request(&callers[caller(n) % callers.len()], "GET", paths[path(n) % paths.len()]);
            book.note(&Seen { service, ..seen }, 1_700_000_000)
        };
        let mut evictions = (0..paths.len() * callers.len()).filter(|n| note(*n)).count();
        let began = std::time::Instant::now();
        evictions += (0..ROUNDS).filter(|n| note(*n)).count();
        let each = began.elapsed().as_secs_f64() * 1e9 / ROUNDS as f64;
        println!("{what}: {each:.0} ns");
        assert_eq!(evictions, 0, "{what}");
        assert!(each < BUDGET, "{what}: {each:.0} ns");
    };
    let with_ids: Vec<&str> = with_ids.iter().map(String::as_str).collect();
    let endless: Vec<&str> = endless.iter().map(String::as_str).collect();
    cost("one flow", &|_| 1, &|_| 0, &static_paths);
    cost("64 flows in turn", &|n| n, &|n| n / 8, &static_paths);
    cost("8 flows in turn, UUIDs in their paths", &|n| n, &|n| n, &with_ids);
    cost("paths that have no end", &|n| n, &|_| 0, &endless);
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
    assert_eq!(book.flows().next().unwrap().key, Key { method: verb[..limits::FLOW_METHOD].into(), ..key(&seen) });
    let slot = &book.slots[0];
    let texts = [&slot.example.pod, &slot.example.host, &slot.example.path];
    let own = slot.text.len() + texts.iter().map(|text| text.capacity()).sum::<usize>();
    // Its slot and example, its place in both tables, and the name of its service once more.
    let bytes = own + size_of::<Slot>() + size_of::<Example>() + 2 * (4 + 1) + 2 * (limits::FLOW_NAME + 32);
    assert!(bytes <= limits::FLOW_BYTES, "{bytes}");
    assert!(slot.example.cut);
    let huge = long(limits::FLOW_NAME + 1);
    assert!(book.note(&Seen { workload: &huge, ..seen }, 0), "not kept, and counted");
    assert_eq!((book.flows().count(), book.evicted()), (1, 1));
}

#[test]
fn a_page_is_read_as_it_was_written() {
    let (a, mut book) = (identity("a"), Book::new(10));
    book.note(&request(&a, "GET", "/orders/17"), 3);
    book.note(&connection(None), 4);
    let page = Page { enabled: true, since: 1, capacity: 10, evicted: 0, flows: merge(book.flows()) };
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
    let all = merge(one.flows().chain(two.flows()));
    let told: BTreeMap<_, _> =
        all.iter().map(|f| (f.key.source.clone(), (f.count, f.first, f.last, &*f.example.pod))).collect();
    assert_eq!(told[&Source::Identity(a.to_string())], (2, 3, 5, "web-2"));
    assert_eq!(told[&Source::Identity(b.to_string())], (1, 9, 9, "web-1"));
    assert!(all.iter().all(|f| f.key.verdict == Verdict::Allowed));
}
