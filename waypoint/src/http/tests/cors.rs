//! Requests of pages of other origins, by the sentences of Gateway API's HTTPCORSFilter.

use super::*;

const A: &str = "https://a.example.com";
const ORIGIN: &str = "access-control-allow-origin";

fn of_rule(change: impl FnOnce(&mut ir::Cors)) -> ir::Cors {
    let origin = ir::Text { kind: Some(ir::text::Kind::Exact(A.into())) };
    let mut cors = ir::Cors { origins: vec![origin], max_age_s: Some(5), ..Default::default() };
    change(&mut cors);
    cors
}

fn list(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn request(method: Method, headers: &[(&'static str, &str)]) -> Request<Payload> {
    let mut r = get("/");
    *r.method_mut() = method;
    for (name, value) in headers {
        r.headers_mut().insert(*name, value.parse().unwrap());
    }
    r
}

fn said<'a>(a: &'a Response<Incoming>, name: &str) -> Option<&'a str> {
    a.headers().get(name).map(|v| v.to_str().unwrap())
}

/// Does an answer say anything of origins?
fn is_silent(a: &Response<Incoming>) -> bool {
    !a.headers().keys().any(|name| name.as_str().starts_with("access-control-"))
}

#[test]
fn a_preflight_is_answered_with_what_the_rule_allows() {
    type Row = (
        Option<bool>,
        &'static [&'static str],
        &'static [&'static str],
        Option<&'static str>,
        [Option<&'static str>; 3],
    );
    run(async {
        let table: [Row; 6] = [
            (None, &["GET", "PUT"], &["x-a", "x-b"], Some("x-a"), [Some("GET, PUT"), Some("x-a, x-b"), None]),
            (Some(false), &[], &[], None, [None, None, None]),
            // A wildcard is never sent where there are credentials: what was asked for is; nothing, if nothing was.
            (Some(true), &["*"], &["*"], Some("x-a, x-b"), [Some("PUT"), Some("x-a, x-b"), Some("true")]),
            (Some(true), &["*"], &["*"], None, [Some("PUT"), None, Some("true")]),
            (Some(true), &["GET", "*"], &["x-a", "*"], Some("x-b"), [Some("PUT"), Some("x-b"), Some("true")]),
            (None, &["*"], &["*"], Some("x-a"), [Some("PUT"), Some("x-a"), None]),
        ];
        for (credentials, methods, headers, asked, want) in table {
            let cors = of_rule(|c| {
                (c.credentials, c.methods, c.headers) = (credentials, list(methods), list(headers));
            });
            let m = Mesh::of(route(|r| r.cors = Some(cors)), |_, _| status(200));
            let mut all = vec![("origin", A), ("access-control-request-method", "PUT")];
            all.extend(asked.map(|names| ("access-control-request-headers", names)));
            let a = m.send(request(Method::OPTIONS, &all)).await;
            assert_eq!((a.status().as_u16(), m.count()), (200, 0), "the application is not asked");
            let names =
                ["access-control-allow-methods", "access-control-allow-headers", "access-control-allow-credentials"];
            assert_eq!(names.map(|name| said(&a, name)), want, "{credentials:?} {methods:?} {headers:?} {asked:?}");
            assert_eq!((said(&a, ORIGIN), said(&a, "access-control-max-age")), (Some(A), Some("5")));
        }
    });
}

#[test]
fn another_origin_is_told_nothing() {
    run(async {
        let cors = of_rule(|c| (c.credentials, c.methods, c.expose) = (Some(true), list(&["*"]), list(&["x-a"])));
        let m = Mesh::of(route(|r| r.cors = Some(cors)), |_, _| status(200));
        let asks = ("access-control-request-method", "GET");
        for other in ["https://b.example.com", "https://a.example.com.evil.com", "https://a.example.com:8443", "null"] {
            let a = m.send(request(Method::OPTIONS, &[("origin", other), asks])).await;
            assert!(a.status() == 200 && is_silent(&a), "{other}: {:?}", a.headers());
        }
        assert_eq!(m.count(), 0);
        // What is no preflight is the application's.
        let a = m.send(request(Method::GET, &[("origin", "https://b.example.com"), asks])).await;
        assert!(a.status() == 200 && is_silent(&a) && m.count() == 1, "{:?}", a.headers());
        let a = m.send(request(Method::OPTIONS, &[("origin", A)])).await;
        assert_eq!((said(&a, ORIGIN), said(&a, "access-control-allow-methods"), m.count()), (Some(A), None, 2));
        let a = m.send(request(Method::OPTIONS, &[asks])).await;
        assert!(is_silent(&a) && m.count() == 3);
    });
}

#[test]
fn headers_that_pages_may_read_are_named() {
    run(async {
        for (credentials, expose, want) in [
            (None, &["x-b", "x-c"][..], Some("x-b, x-c")),
            (None, &["*"][..], Some("*")),
            (Some(true), &["x-b"][..], Some("x-b")),
            (None, &[] as &[&str], None),
        ] {
            let cors = of_rule(|c| (c.credentials, c.expose) = (credentials, list(expose)));
            let m = Mesh::of(route(|r| r.cors = Some(cors)), |_, _| status(200));
            let a = m.send(request(Method::GET, &[("origin", A)])).await;
            assert_eq!(said(&a, "access-control-expose-headers"), want, "{credentials:?} {expose:?}");
        }
        // With credentials a wildcard would be the name of a header.
        let cors = of_rule(|c| (c.credentials, c.expose) = (Some(true), list(&["*", "x-b"])));
        let m = Mesh::of(route(|r| r.cors = Some(cors)), |_, _| {
            let answer = Response::builder().header("x-seen", "1").header("set-cookie", "a=b");
            Does::Answer(answer.body(payload("ok")).unwrap())
        });
        let a = m.send(request(Method::GET, &[("origin", A)])).await;
        let names: Vec<&str> = said(&a, "access-control-expose-headers").unwrap().split(", ").collect();
        assert!(names.contains(&"x-seen") && names.contains(&"x-b"), "{names:?}");
        let hidden = |name: &&str| *name == "*" || *name == "set-cookie" || name.starts_with("access-control-");
        assert!(!names.iter().any(hidden), "{names:?}");
    });
}

/// A page may read why its request was refused, and follow a redirect.
#[test]
fn what_is_answered_here_can_be_read_by_pages_of_the_origin_too() {
    run(async {
        let redirect = || Some(ir::Redirect { code: 302, authority: "b".into(), ..Default::default() });
        let change = |at: usize, r: &mut ir::HttpRule| match at {
            0 => r.redirect = redirect(),
            1 => r.response = Some(ir::DirectResponse { status: 403, body: vec![] }),
            2 => r.destinations[0].refuse_status = 500,
            _ => r.fault = Some(ir::Fault { abort_status: 503, abort_per_million: 1_000_000, ..Default::default() }),
        };
        for (at, want) in [302, 403, 500, 503].into_iter().enumerate() {
            for (origin, told) in [(A, Some(A)), ("https://b.example.com", None)] {
                let rule = |r: &mut ir::HttpRule| {
                    r.cors = Some(of_rule(|_| {}));
                    change(at, r);
                };
                let m = Mesh::of(route(rule), |_, _| status(200));
                let a = m.send(request(Method::GET, &[("origin", origin)])).await;
                assert_eq!((a.status().as_u16(), said(&a, ORIGIN), m.count()), (want, told, 0), "{origin}");
            }
        }
    });
}

/// What names an origin is that origin's alone, and what names none is no page's of another.
#[test]
fn caches_are_told_that_answers_depend_on_the_origin() {
    run(async {
        let m = Mesh::of(route(|r| r.cors = Some(of_rule(|_| {}))), |n, _| {
            let answer = Response::builder();
            let answer = if n < 3 { answer } else { answer.header("vary", "Cookie, Origin") };
            Does::Answer(answer.body(payload("ok")).unwrap())
        });
        for headers in [&[("origin", A)][..], &[("origin", "https://b.example.com")], &[]] {
            assert_eq!(said(&m.send(request(Method::GET, headers)).await, "vary"), Some("origin"), "{headers:?}");
        }
        let a = m.send(request(Method::GET, &[("origin", A)])).await;
        assert_eq!(a.headers().get_all("vary").iter().collect::<Vec<_>>(), ["Cookie, Origin"]);
        // Where no rule speaks of origins, nothing depends on them.
        let m = Mesh::of(route(|_| {}), |_, _| status(200));
        assert_eq!(said(&m.send(request(Method::GET, &[("origin", A)])).await, "vary"), None);
    });
}
