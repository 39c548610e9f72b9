//! Session persistence: who comes back to which endpoint, and what clients are told.

use super::*;
use crate::{
    downstream::gateway::Gateway,
    session::{
        keys::tests::keys,
        rules::SessionRules,
        token::{Place, Token},
    },
};
use karst_rt::clock;
use std::collections::BTreeSet;

const OTHER: &str = "ns/t.ns.svc.cluster.local";

fn session() -> ir::Session {
    let (name, scope) = ("s".into(), "HTTPRoute ns/r".into());
    ir::Session { name, path: "/".into(), scope, strict: true, ..Default::default() }
}

/// A waypoint with keys that are made of these bytes.
fn with_keys(bytes: &'static [u8], change: impl FnOnce(&mut Snapshot)) -> impl FnOnce(&mut Snapshot) {
    move |s| {
        change(s);
        s.gateway = Some(Arc::new(Gateway { session_keys: keys(bytes), ..Default::default() }));
    }
}

fn sticky(session: ir::Session) -> impl FnOnce(&mut Snapshot) {
    with_keys(&[1], route(|r| r.session = Some(session)))
}

/// Endpoints that answer everything, but for those that answer with a failure.
fn mesh(endpoints: usize, failing: &[usize], change: impl FnOnce(&mut Snapshot)) -> Mesh {
    let m = Mesh::new(endpoints, AppProtocol::Http11, change);
    (0..endpoints).for_each(|n| answers(&m, n, if failing.contains(&n) { 503 } else { 200 }));
    m
}

fn answers(m: &Mesh, endpoint: usize, code: u16) {
    m.listen(endpoint, move |_, _| status(code));
}

/// The endpoint that has answered, and the cookie that the client is told.
async fn visit(m: &Mesh, cookie: &str) -> (usize, Option<String>) {
    let mut request = get("/");
    if !cookie.is_empty() {
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
    }
    let answer = m.send(request).await;
    assert_eq!(answer.status(), 200);
    let told = answer.headers().get("set-cookie").map(|v| v.to_str().unwrap().to_string());
    let endpoint = m.seen.borrow().last().map(|seen| seen.endpoint);
    (endpoint.unwrap(), told)
}

/// What a client sends back.
fn kept(told: Option<String>) -> String {
    told.unwrap().split(';').next().unwrap().to_string()
}

/// A client that is at an endpoint for so long, and was told so so long ago, in milliseconds.
fn client(session: &ir::Session, endpoint: usize, began: u64, seen: u64) -> String {
    let rules = SessionRules::new(session).unwrap();
    let now = clock::since_epoch().as_millis() as u64;
    let mut token = Token::default();
    token.put(Place {
        destination: rules.destination(KEY, 80, ""),
        endpoint: xxhash_rust::xxh64::xxh64(format!("Kubernetes//Pod/ns/p{endpoint}").as_bytes(), 0),
        began: now - began,
        seen: now - seen,
    });
    format!("{}={}", session.name, keys(&[1]).seal(&token.write(), rules.used_for()).unwrap())
}

/// The endpoints of many visits with one cookie.
async fn endpoints(m: &Mesh, cookie: &str) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    for _ in 0..30 {
        all.insert(visit(m, cookie).await.0);
    }
    all
}

#[test]
fn a_client_comes_back_to_its_endpoint_after_a_restart_and_through_other_replicas() {
    run(async {
        let (one, other) = (mesh(5, &[], sticky(session())), mesh(5, &[], sticky(session())));
        let mut all = BTreeSet::new();
        for _ in 0..20 {
            let (endpoint, told) = visit(&one, "").await;
            assert!(told.as_ref().is_some_and(|t| t.ends_with("; Path=/; HttpOnly; SameSite=Strict")), "{told:?}");
            all.insert(endpoint);
            let cookie = kept(told);
            for m in [&other, &one, &other] {
                assert_eq!(visit(m, &cookie).await, (endpoint, None));
                assert_eq!(m.seen.borrow().last().unwrap().headers["cookie"], cookie.as_str(), "it goes on");
            }
        }
        assert!(all.len() > 1, "new clients are balanced");
    });
}

#[test]
fn what_was_changed_or_is_anothers_binds_nobody_and_is_replaced() {
    run(async {
        let m = mesh(5, &[], sticky(session()));
        let good = client(&session(), 4, 0, 0);
        assert_eq!(endpoints(&m, &good).await, [4].into());
        let letter = if &good[20..21] == "x" { "y" } else { "x" };
        let changed = format!("{}{letter}{}", &good[..20], &good[21..]);
        let name = ir::Session { name: "t".into(), ..session() };
        let renamed = client(&name, 4, 0, 0).replace("t=", "s=");
        let scope = ir::Session { scope: "HTTPRoute ns/other".into(), ..session() };
        let foreign = client(&scope, 4, 0, 0);
        for bad in [changed, renamed, foreign, good.replace("s=", "S="), good[..40].into(), "s=".into(), "s=p4".into()]
        {
            let (_, told) = visit(&m, &bad).await;
            assert!(told.is_some(), "{bad}");
            assert!(endpoints(&m, &bad).await.len() > 1, "{bad}");
        }
        let theirs = mesh(5, &[], with_keys(&[2], route(|r| r.session = Some(session()))));
        assert!(visit(&theirs, &good).await.1.is_some() && endpoints(&theirs, &good).await.len() > 1);
    });
}

#[test]
fn clients_keep_their_endpoints_when_the_keys_change() {
    run(async {
        let rotated = |bytes| mesh(5, &[], with_keys(bytes, route(|r| r.session = Some(session()))));
        let old = client(&session(), 3, 1_000, 1_000);
        let (endpoint, told) = visit(&rotated(&[2, 1]), &old).await;
        assert_eq!(endpoint, 3, "the former key is still taken");
        let new = kept(told);
        assert_eq!(visit(&rotated(&[2]), &new).await, (3, None));
        assert_eq!(visit(&rotated(&[3, 2]), &new).await.0, 3);
        assert!(visit(&rotated(&[3]), &new).await.1.is_some());
    });
}

#[test]
fn without_keys_nobody_is_bound() {
    run(async {
        let m = mesh(5, &[], route(|r| r.session = Some(session())));
        assert_eq!(visit(&m, "").await.1, None);
        let m = mesh(5, &[], with_keys(&[], route(|r| r.session = Some(session()))));
        let cookie = client(&session(), 4, 0, 0);
        assert!(visit(&m, &cookie).await.1.is_none() && endpoints(&m, &cookie).await.len() > 1);
    });
}

#[test]
fn where_an_endpoint_is_gone_the_session_goes_on_at_another() {
    run(async {
        let cookie = client(&session(), 2, 60_000, 0);
        let m = mesh(2, &[], sticky(session()));
        let (endpoint, told) = visit(&m, &cookie).await;
        let new = kept(told);
        assert_eq!(endpoints(&m, &new).await, [endpoint].into());
        assert_eq!(visit(&m, &new).await.1, None, "told once");
    });
}

#[test]
fn an_endpoint_that_fails_is_not_tried_again_and_again() {
    run(async {
        // Nobody listens at one; the other says that it cannot.
        for (same_host, attempts) in [(false, 1), (true, 60)] {
            let change = |r: &mut ir::HttpRule| {
                let retry = ir::Retry {
                    attempts,
                    backoff_ms: 1,
                    connect_failure: true,
                    server_error: true,
                    same_host,
                    ..Default::default()
                };
                (r.retry, r.session) = (Some(retry), Some(session()));
            };
            let m = mesh(3, &[2], with_keys(&[1], route(change)));
            let (endpoint, told) = visit(&m, &client(&session(), 2, 0, 0)).await;
            assert_eq!(m.seen.borrow()[0].endpoint, 2, "where it was");
            assert_ne!(endpoint, 2);
            assert_eq!(visit(&m, &kept(told)).await, (endpoint, None));
            let m = Mesh::new(2, AppProtocol::Http11, with_keys(&[1], route(change)));
            m.listen(0, |_, _| status(200));
            let (endpoint, told) = visit(&m, &client(&session(), 1, 0, 0)).await;
            assert_eq!((endpoint, visit(&m, &kept(told)).await), (0, (0, None)));
        }
    });
}

fn pod(n: usize, key: &str) -> karst_api::workload::Workload {
    let mut pod = testing::pod(&format!("p{n}"), &address(n).ip().to_string(), &[(key, &[(80, PORT.into())])]);
    pod.tunnel_protocol = 0;
    pod
}

#[test]
fn who_is_at_an_endpoint_that_is_about_to_end_stays_and_nobody_else_is_sent_there() {
    run(async {
        let change = sticky(session());
        let m = mesh(3, &[], |s| {
            change(s);
            let mut pods = vec![pod(0, KEY), pod(1, KEY), pod(2, KEY), testing::pod("own", "10.0.1.1", &[])];
            pods[2].status = karst_api::workload::WorkloadStatus::Unhealthy as i32;
            pods[2].extensions.push(karst_api::draining());
            let mut service = testing::service("s", "10.96.0.1", &[(80, PORT.into())]);
            service.ports[0].app_protocol = AppProtocol::Http11 as i32;
            s.mesh = testing::snapshot(pods, vec![service]);
        });
        let bound = client(&session(), 2, 0, 0);
        assert_eq!((endpoints(&m, &bound).await, visit(&m, &bound).await), ([2].into(), (2, None)));
        assert_eq!(endpoints(&m, "").await, [0, 1].into());
        // It has ended.
        let m = mesh(2, &[], sticky(session()));
        assert!(visit(&m, &bound).await.1.is_some());
    });
}

/// Two services with two endpoints each.
fn two(s: &mut Snapshot) {
    let pod = |n: usize| pod(n, if n < 2 { KEY } else { OTHER });
    let service = |(name, vip)| {
        let mut service = testing::service(name, vip, &[(80, PORT.into())]);
        service.ports[0].app_protocol = AppProtocol::Http11 as i32;
        service
    };
    let pods = (0..4).map(pod).chain([testing::pod("own", "10.0.1.1", &[])]).collect();
    s.mesh = testing::snapshot(pods, [("s", "10.96.0.1"), ("t", "10.96.0.2")].map(service).into());
}

#[test]
fn weights_decide_and_a_client_has_a_place_at_each_destination() {
    run(async {
        let change = |r: &mut ir::HttpRule| {
            let to = |service: &str, weight| ir::Destination { service: service.into(), weight, ..Default::default() };
            (r.destinations, r.session) = (vec![to(KEY, 70), to(OTHER, 30)], Some(session()));
        };
        let change = route(change);
        let m = mesh(
            4,
            &[],
            with_keys(&[1], |s| {
                two(s);
                change(s);
            }),
        );
        for _ in 0..5 {
            let (mut cookie, mut all, mut changes) = (String::new(), vec![], 0);
            for _ in 0..100 {
                let (endpoint, told) = visit(&m, &cookie).await;
                all.push(endpoint);
                if told.is_some() {
                    changes += 1;
                    cookie = kept(told);
                }
            }
            let first = all.iter().filter(|endpoint| **endpoint < 2).count();
            assert!((67..=73).contains(&first), "{first}");
            let places: BTreeSet<usize> = all.into_iter().collect();
            assert_eq!((places.len(), changes), (2, 2), "{places:?}");
        }
    });
}

#[test]
fn a_session_ends_by_either_time() {
    run(async {
        let absolute = || ir::Session { absolute_ms: 600_000, ..session() };
        let m = mesh(5, &[], sticky(absolute()));
        let young = client(&absolute(), 4, 500_000, 500_000);
        assert_eq!((visit(&m, &young).await, endpoints(&m, &young).await), ((4, None), [4].into()));
        let old = client(&absolute(), 4, 600_001, 0);
        assert!(visit(&m, &old).await.1.is_some() && endpoints(&m, &old).await.len() > 1);
        let idle = || ir::Session { idle_ms: 600_000, ..session() };
        let m = mesh(5, &[], sticky(idle()));
        let busy = client(&idle(), 4, 6_000_000, 500_000);
        assert_eq!(endpoints(&m, &busy).await, [4].into());
        assert!(visit(&m, &busy).await.1.is_some_and(|told| !told.contains(&busy)), "each request is told");
        assert!(endpoints(&m, &client(&idle(), 4, 600_001, 600_001)).await.len() > 1);
    });
}

#[test]
fn a_permanent_cookie_says_when_it_ends() {
    run(async {
        let permanent = || ir::Session { permanent: true, absolute_ms: 600_000, ..session() };
        let m = mesh(5, &[], sticky(permanent()));
        let (_, told) = visit(&m, "").await;
        assert!(told.as_ref().is_some_and(|t| t.contains("; Max-Age=600;")), "{told:?}");
        // What is told anew ends with the session.
        let m = mesh(5, &[], with_keys(&[2, 1], route(|r| r.session = Some(permanent()))));
        let (endpoint, told) = visit(&m, &client(&permanent(), 3, 500_000, 500_000)).await;
        assert_eq!(endpoint, 3);
        let left = told.as_ref().and_then(|t| t.split("Max-Age=").nth(1)?.split(';').next()?.parse::<u64>().ok());
        assert!(left.is_some_and(|left| (60..=100).contains(&left)), "{told:?}");
        assert!(!visit(&mesh(1, &[], sticky(session())), "").await.1.unwrap().contains("Max-Age"));
    });
}

/// A gateway before the waypoint has said how the client has come.
#[test]
fn a_cookie_is_secure_where_the_client_has_spoken_tls() {
    run(async {
        let m = mesh(1, &[], sticky(session()));
        for (proto, want) in [("https", "; SameSite=Strict; Secure"), ("http", "; SameSite=Strict")] {
            let mut request = get("/");
            request.headers_mut().insert("x-forwarded-proto", proto.parse().unwrap());
            let answer = m.send(request).await;
            let told = answer.headers()["set-cookie"].to_str().unwrap();
            assert!(told.ends_with(want), "{told}");
        }
    });
}

#[test]
fn a_session_is_found_among_a_thousand_cookies() {
    run(async {
        let m = mesh(5, &[], sticky(session()));
        let good = client(&session(), 4, 0, 0);
        let others: String = (0..1000).map(|n| format!("c{n}=s; ")).collect();
        assert_eq!(visit(&m, &format!("{others}{good}")).await, (4, None));
        // Those of other paths have the same name: some are looked at.
        let stale = client(&session(), 9, 0, 0);
        assert_eq!(visit(&m, &format!("s=x; {stale}; s=y; {good}")).await, (4, None));
        let (_, told) = visit(&m, &format!("{}{good}", "s=x; ".repeat(1000))).await;
        assert!(told.is_some(), "and no thousand");
    });
}

#[test]
fn a_header_is_told_with_each_answer_by_grpc_too() {
    run(async {
        let in_header = || ir::Session { name: "x-session".into(), in_header: true, ..session() };
        let m = Mesh::new(5, AppProtocol::Grpc, sticky(in_header()));
        (0..5).for_each(|n| m.listen(n, |_, _| status(200)));
        let call = async |value: &str| {
            let request = Request::post("http://s/s/m").header("content-type", "application/grpc");
            let mut request = request.body(payload("message")).unwrap();
            if !value.is_empty() {
                request.headers_mut().insert("x-session", value.parse().unwrap());
            }
            let answer = m.send_two(request).await;
            assert!(!answer.headers().contains_key("set-cookie"));
            let told = answer.headers()["x-session"].to_str().unwrap().to_string();
            let endpoint = m.seen.borrow().last().map(|seen| seen.endpoint);
            (endpoint.unwrap(), told)
        };
        let (endpoint, value) = call("").await;
        for _ in 0..20 {
            assert_eq!(call(&value).await, (endpoint, value.clone()));
        }
        assert_eq!(m.seen.borrow().last().unwrap().headers["x-session"], value.as_str(), "it goes on");
        let cookie = client(&ir::Session { name: "x-session".into(), ..session() }, endpoint, 0, 0);
        let taken_over = cookie.trim_start_matches("x-session=");
        assert_ne!(call(taken_over).await.1, taken_over, "a cookie's value is none of a header's");
    });
}

/// Affinity by a cookie (consistentHash of a DestinationRule), which keeps no session.
#[test]
fn an_affinity_cookie_has_its_path_and_lifetime() {
    run(async {
        for (ttl_ms, path, want) in [
            (0, "", Some("; HttpOnly")),
            (60_000, "/shop", Some("; Max-Age=60; Path=/shop; HttpOnly")),
            (500, "/", Some("; Max-Age=1; Path=/; HttpOnly")),
            (0, "/", None),
        ] {
            let cookie = ir::Cookie { name: "user".into(), path: path.into(), ttl_ms, generate: want.is_some() };
            let hash = Some(ir::HashOn { key: Some(ir::hash_on::Key::Cookie(cookie)) });
            let balance =
                Some(ir::Balance { method: ir::Method::RingHash as i32, hash, ring_size: 1024, ..Default::default() });
            let m = mesh(5, &[], |s| policy(s, ir::Policy { balance, ..Default::default() }));
            let (endpoint, told) = visit(&m, "").await;
            let Some(want) = want else {
                assert_eq!(told, None);
                continue;
            };
            assert!(told.as_ref().is_some_and(|t| t.starts_with("user=\"") && t.ends_with(want)), "{told:?}");
            let cookie = format!("a=b; {}; c=d", kept(told));
            assert_eq!((endpoints(&m, &cookie).await, visit(&m, &cookie).await.1), ([endpoint].into(), None));
        }
    });
}

#[test]
fn a_service_binds_its_clients_unless_a_rule_does() {
    run(async {
        let of_service = || ir::Session { strict: false, scope: String::new(), ..session() };
        let bound = |s: &mut Snapshot| {
            let backend = ir::Backend { session: Some(of_service()), ..Default::default() };
            s.backends.insert(KEY.into(), Arc::new(backend));
        };
        let m = mesh(5, &[], with_keys(&[1], bound));
        let (endpoint, told) = visit(&m, "").await;
        assert!(told.as_ref().is_some_and(|t| t.starts_with("s=") && t.ends_with("; Path=/; HttpOnly")), "{told:?}");
        assert_eq!(endpoints(&m, &kept(told)).await, [endpoint].into());
        let rule = route(|r| r.session = Some(ir::Session { name: "r".into(), ..session() }));
        let both = |s: &mut Snapshot| {
            bound(s);
            rule(s);
        };
        let m = mesh(5, &[], with_keys(&[1], both));
        let answer = m.send(get("/")).await;
        let told: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
        assert!(told.len() == 1 && told[0].to_str().unwrap().starts_with("r="), "{told:?}");
    });
}
