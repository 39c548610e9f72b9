//! External authorization: what providers in memory are asked, and what becomes of requests by what they say, or do not say.

mod filters;

use super::*;
use crate::{
    authz::{access::Access, external::counts::Outcome},
    downstream::{context::Entered, gateway::Gateway},
};
use http::{HeaderName, HeaderValue};
use karst_api::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue as PbValue, HeaderValueOption, HttpRequest,
    HttpStatus, OkHttpResponse, QueryParameter, RpcStatus, check_response::HttpResponse,
};
use karst_proxy::xds::ApplyResource;
use prost::Message;

const AUTHZ: &str = "ns/authz.ns.svc.cluster.local";
/// Of questions, where a test does not say otherwise.
const TIMEOUT: u64 = 1000;

fn authz_address(last: u8) -> SocketAddr {
    ([10, 0, 0, last], 9000).into()
}

fn provider(change: impl FnOnce(&mut ir::AuthzProvider)) -> ir::AuthzProvider {
    let service = AUTHZ.into();
    let mut provider =
        ir::AuthzProvider { name: "p".into(), service, port: 9000, timeout_ms: TIMEOUT, ..Default::default() };
    change(&mut provider);
    provider
}

fn by_http(change: impl FnOnce(&mut ir::AuthzProvider)) -> ir::AuthzProvider {
    provider(|p| {
        p.set_protocol(ir::AuthzProtocol::AuthzHttp);
        change(p);
    })
}

/// One that matches everything, or a path.
fn policy_of(action: ir::AccessAction, name: &str, path: Option<&str>) -> ir::AccessPolicy {
    let test = |path: &str| {
        let attribute = ir::Attribute::Path as i32;
        let tests = vec![ir::AccessTest { attribute, values: vec![path.into()], ..Default::default() }];
        ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }
    };
    let rules = vec![ir::AccessRule { clauses: path.map(test).into_iter().collect() }];
    let mut out = ir::AccessPolicy { name: name.into(), rules, ..Default::default() };
    out.set_action(action);
    out
}

fn custom(provider: &str, path: Option<&str>) -> ir::AccessPolicy {
    let name = format!("ns/ask-{provider}");
    ir::AccessPolicy { provider: provider.into(), ..policy_of(ir::AccessAction::Custom, &name, path) }
}

/// These policies, and the service of the providers with two endpoints.
fn guarded(providers: Vec<ir::AuthzProvider>, policies: Vec<ir::AccessPolicy>) -> impl FnOnce(&mut Snapshot) {
    let access = Access::new(&ir::Access { policies, providers, ..Default::default() }).unwrap();
    move |s| {
        s.access.insert(KEY.into(), Arc::new(access));
        let service = testing::service("authz", "10.96.0.8", &[(9000, 9000)]);
        let mut all = vec![(AUTHZ.to_string(), karst_api::workload::address::Type::Service(service))];
        for last in [88, 89] {
            let ip = authz_address(last).ip().to_string();
            let mut pod = testing::pod(&format!("authz{last}"), &ip, &[(AUTHZ, &[(9000, 9000)])]);
            pod.tunnel_protocol = 0;
            all.push((pod.uid.clone(), karst_api::workload::address::Type::Workload(pod)));
        }
        for (name, address) in all {
            let address = karst_api::workload::Address { r#type: Some(address) };
            s.mesh.put_address(&name, &address.encode_to_vec()).unwrap();
        }
    }
}

fn asked_by(provider: ir::AuthzProvider) -> impl FnOnce(&mut Snapshot) {
    guarded(vec![provider], vec![custom("p", None)])
}

/// Both endpoints of the providers' service do this.
fn authz(m: &Mesh, grpc: bool, does: impl Fn(&Seen) -> Does + 'static) -> All {
    both(m, grpc, Rc::new(move |_, s| does(s)))
}

fn both(m: &Mesh, grpc: bool, does: Behaviour) -> All {
    let seen = All::default();
    for last in [88, 89] {
        m.serve(authz_address(last), (last.into(), grpc), seen.clone(), does.clone());
    }
    seen
}

fn grpc_bytes(bytes: Vec<u8>, status: &'static str) -> Response<Payload> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse::<HeaderName>().unwrap(), status.parse().unwrap())]);
    Response::new(Full::new(Bytes::from(bytes)).with_trailers(async move { Some(Ok(trailers)) }).boxed_unsync())
}

fn grpc(code: i32, response: Option<HttpResponse>) -> Does {
    let status = Some(RpcStatus { code, message: String::new() });
    let message = CheckResponse { status, http_response: response }.encode_to_vec();
    Does::Answer(grpc_bytes([&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat(), "0"))
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    let header = PbValue { key: key.into(), value: value.into(), raw_value: vec![] };
    HeaderValueOption { header: Some(header), ..Default::default() }
}

fn yes(change: impl FnOnce(&mut OkHttpResponse)) -> Does {
    let mut ok = OkHttpResponse::default();
    change(&mut ok);
    grpc(0, Some(HttpResponse::OkResponse(ok)))
}

fn no(status: i32, headers: &[(&str, &str)], body: &str) -> Does {
    let headers = headers.iter().map(|(key, value)| option(key, value)).collect();
    let denied = DeniedHttpResponse { status: Some(HttpStatus { code: status }), headers, body: body.into() };
    grpc(7, Some(HttpResponse::DeniedResponse(denied)))
}

fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> Does {
    let head = headers.iter().fold(Response::builder().status(status), |head, (k, v)| head.header(*k, *v));
    Does::Answer(head.body(payload(body)).unwrap())
}

/// What was asked by gRPC.
fn question(seen: &Seen) -> HttpRequest {
    let check = CheckRequest::decode(&seen.body[5..]).unwrap();
    check.attributes.unwrap().request.unwrap().http.unwrap()
}

fn count(m: &Mesh, outcome: Outcome) -> u64 {
    m.worker.shared.metrics.external.of("p", false, outcome)
}

fn with(headers: &[(&'static str, &'static str)], path: &str) -> Request<Payload> {
    let mut request = get(path);
    for &(name, value) in headers {
        request.headers_mut().append(name, HeaderValue::from_static(value));
    }
    request
}

#[test]
fn what_is_asked_is_what_is_sent_on_with_the_providers_changes() {
    run(async {
        let m = Mesh::of(asked_by(provider(|_| {})), |_, _| status(200));
        let asked = authz(&m, true, |_| {
            yes(|ok| {
                ok.headers = vec![option("x-user", "alice")];
                ok.headers_to_remove = vec!["authorization".into()];
                ok.query_parameters_to_set = vec![QueryParameter { key: "tenant".into(), value: "a".into() }];
                ok.query_parameters_to_remove = vec!["token".into()];
                ok.response_headers_to_add = vec![option("x-checked", "yes")];
            })
        });
        let sent = [("x-user", "mallory"), ("x_user", "mallory"), ("authorization", "Bearer t"), ("x-keep", "1")];
        let response = m.send(with(&sent, "/shop/../admin?token=t&q=1")).await;
        assert_eq!((response.status().as_u16(), &response.headers()["x-checked"]), (200, &"yes".parse().unwrap()));
        let (asked, seen) = (asked.borrow(), m.seen.borrow());
        assert_eq!(asked[0].uri.path(), "/envoy.service.auth.v3.Authorization/Check");
        assert_eq!(
            (&asked[0].headers["te"], &asked[0].headers["grpc-timeout"]),
            (&"trailers".parse().unwrap(), &"1000m".parse().unwrap())
        );
        let http = question(&asked[0]);
        assert_eq!((&*http.method, &*http.path, &*http.host), ("GET", "/admin?token=t&q=1", "s"));
        assert_eq!(http.headers["x-user"], "mallory");
        assert_eq!(http.id, seen[0].headers["x-request-id"].to_str().unwrap(), "one id for both");
        let check = CheckRequest::decode(&asked[0].body[5..]).unwrap().attributes.unwrap();
        assert_eq!(check.source.unwrap().principal, "spiffe://cluster.local/ns/app/sa/web");
        assert_eq!(seen[0].uri.to_string(), "/admin?q=1&tenant=a");
        let is = |name: &str| seen[0].headers.get(name).map(|v| v.to_str().unwrap().to_string());
        assert_eq!((is("x-user"), is("x-keep")), (Some("alice".into()), Some("1".into())));
        assert_eq!((is("x_user"), is("authorization")), (None, None));
        assert_eq!(count(&m, Outcome::Allowed), 1);
    });
}

#[test]
fn a_refusal_reaches_the_client() {
    run(async {
        let m = Mesh::of(asked_by(provider(|_| {})), |_, _| status(200));
        let login = [("location", "/login"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("content-length", "99")];
        authz(&m, true, move |_| no(302, &login, "log in"));
        let response = m.send(get("/")).await;
        assert_eq!((response.status().as_u16(), &response.headers()["location"]), (302, &"/login".parse().unwrap()));
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "log in");
        assert!(logged(" 302 UAEX ext_authz_denied "));
        // To gRPC in its own form.
        let mut call = get("/");
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let response = m.send(call).await;
        assert_eq!((response.status().as_u16(), response.headers().contains_key("grpc-status")), (200, true));
        assert_eq!((m.count(), count(&m, Outcome::Denied)), (0, 2));
    });
}

#[test]
fn a_provider_is_asked_by_http() {
    run(async {
        let m = Mesh::of(
            asked_by(by_http(|p| {
                p.path_prefix = "/check".into();
                p.request_headers = vec!["x-ext-*".into()];
                p.additional_headers = vec![ir::CheckHeader { name: "x-mesh".into(), value: "karst".into() }];
                p.upstream_on_allow = vec!["x-user".into()];
                p.downstream_on_allow = vec!["set-cookie".into()];
            })),
            |_, _| status(200),
        );
        let asked = authz(&m, false, |s| match s.headers.contains_key("x-ext-ok") {
            true => answer(200, &[("x-user", "alice"), ("x-other", "1"), ("set-cookie", "s=1")], "body"),
            false => answer(401, &[("www-authenticate", "Basic"), ("x-why", "none")], "who are you?"),
        });
        let response = m.send(with(&[("x-ext-ok", "1"), ("x-user", "mallory"), ("x-secret", "1")], "/a?b=c")).await;
        assert_eq!((response.status().as_u16(), &response.headers()["set-cookie"]), (200, &"s=1".parse().unwrap()));
        let response = m.send(get("/a")).await;
        let told = ["www-authenticate", "x-why"].map(|name| response.headers().contains_key(name));
        assert_eq!((response.status().as_u16(), told), (401, [true, true]));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "who are you?");
        let (asked, seen) = (asked.borrow(), m.seen.borrow());
        assert_eq!((&asked[0].method, asked[0].uri.path()), (&Method::GET, "/check/a"));
        assert_eq!((asked[0].uri.query(), &asked[0].headers["host"]), (Some("b=c"), &"s".parse().unwrap()));
        let got = ["x-ext-ok", "x-mesh", "x-user", "x-secret"].map(|name| asked[0].headers.contains_key(name));
        assert_eq!((got, &asked[0].headers["content-length"]), ([true, true, false, false], &"0".parse().unwrap()));
        assert_eq!((seen.len(), &seen[0].headers["x-user"]), (1, &"alice".parse().unwrap()));
        assert!(!seen[0].headers.contains_key("x-other"));
    });
}

type Headers = &'static [(&'static str, &'static str)];

fn keeping(keys: &[ir::authz_cache_key::Key]) -> Option<ir::AuthzCache> {
    let keys = keys.iter().map(|key| ir::AuthzCacheKey { key: Some(key.clone()) }).collect();
    Some(ir::AuthzCache { ttl_ms: 5000, keys })
}

/// What follows from some values of a request is asked once for all requests that have them.
#[test]
fn an_answer_is_kept_for_its_time_by_its_keys() {
    use ir::authz_cache_key::Key;
    run(async {
        let cache =
            keeping(&[Key::Method(true), Key::Path(true), Key::Header("X-User".into()), Key::Parameter("t".into())]);
        let m = Mesh::of(asked_by(provider(|p| p.cache = cache)), |_, _| status(200));
        let asked = authz(&m, true, |s| match question(s).headers.get("x-user") {
            Some(user) => yes(|ok| ok.headers = vec![option("x-checked", user)]),
            None => no(401, &[("x-why", "none")], "who are you?"),
        });
        const ALICE: Headers = &[("x-user", "alice")];
        let all: [(Headers, &str, u16, usize); 13] = [
            (ALICE, "/a", 200, 1),
            (ALICE, "/a", 200, 1),
            (ALICE, "/a?q=1", 200, 1),
            (ALICE, "/a?t=1", 200, 2),
            (ALICE, "/a?t=1&t=2", 200, 3),
            // Both are no text.
            (ALICE, "/a?t=%FE", 200, 4),
            (ALICE, "/a?%74=%FF", 200, 5),
            (ALICE, "/b", 200, 6),
            (&[("x-user", "bob")], "/a", 200, 7),
            (&[("x-user", "bob"), ("x-user", "alice")], "/a", 200, 8),
            // Who is asked by HTTP gets lines apart, and may look at one of them.
            (&[("x-user", "bob,alice")], "/a", 200, 9),
            (&[], "/a", 401, 10),
            (&[("x-checked", "alice")], "/a", 401, 10),
        ];
        for (headers, path, code, questions) in all {
            let response = m.send(with(headers, path)).await;
            assert_eq!((response.status().as_u16(), asked.borrow().len()), (code, questions), "{headers:?} {path}");
            if code == 401 {
                assert_eq!(response.headers()["x-why"], "none");
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "who are you?");
            }
        }
        let mut post = with(ALICE, "/a");
        *post.method_mut() = Method::POST;
        assert_eq!((m.ask(post).await.0.as_u16(), asked.borrow().len()), (200, 11));
        assert!(m.seen.borrow().iter().all(|s| s.headers.contains_key("x-checked")));
        let counts = [Outcome::Allowed, Outcome::AllowedCached, Outcome::Denied, Outcome::DeniedCached];
        assert_eq!(counts.map(|outcome| count(&m, outcome)), [10, 2, 1, 1]);
        tokio::time::sleep(Duration::from_millis(5001)).await;
        assert_eq!((m.ask(with(ALICE, "/a")).await.0.as_u16(), asked.borrow().len()), (200, 12));
    });
}

#[test]
fn of_a_question_that_has_no_answer_nothing_is_kept() {
    use ir::authz_cache_key::Key;
    run(async {
        let m = Mesh::of(asked_by(provider(|p| p.cache = keeping(&[Key::Path(true)]))), |_, _| status(200));
        let asked = std::cell::Cell::new(0);
        authz(&m, true, move |_| match asked.replace(asked.get() + 1) {
            0 => Does::Answer(grpc_bytes(vec![], "13")),
            1 => yes(|ok| ok.response_headers_to_add = vec![option("set-cookie", "alice=1")]),
            _ => yes(|_| {}),
        });
        let mut all = vec![];
        for _ in 0..4 {
            let response = m.send(get("/a")).await;
            all.push((response.status().as_u16(), response.headers().contains_key("set-cookie")));
        }
        assert_eq!(all, [(403, false), (200, true), (200, false), (200, false)]);
        assert_eq!((count(&m, Outcome::Allowed), count(&m, Outcome::AllowedCached)), (2, 1));
    });
}

#[test]
fn what_is_sent_of_a_body_is_part_of_the_key() {
    use ir::authz_cache_key::Key;
    run(async {
        let change = |p: &mut ir::AuthzProvider| {
            p.cache = keeping(&[Key::Path(true)]);
            p.body = Some(ir::CheckBody { max_bytes: 100, ..Default::default() });
        };
        let m = Mesh::of(asked_by(provider(change)), |_, _| status(200));
        let asked = authz(&m, true, |s| if question(s).body == "good" { yes(|_| {}) } else { no(403, &[], "") });
        for (body, code, questions) in [("good", 200, 1), ("bad", 403, 2), ("good", 200, 2), ("bad", 403, 2)] {
            assert_eq!((m.ask(post(body)).await.0.as_u16(), asked.borrow().len()), (code, questions), "{body}");
        }
    });
}

/// By method and path it is a request like others.
#[test]
fn an_answer_to_a_request_opens_no_websocket() {
    use ir::authz_cache_key::Key;
    run(async {
        let cache = keeping(&[Key::Method(true), Key::Path(true)]);
        let m = Mesh::of(asked_by(provider(|p| p.cache = cache)), |_, _| status(200));
        let asked =
            authz(
                &m,
                true,
                |s| if question(s).headers.contains_key("upgrade") { no(403, &[], "") } else { yes(|_| {}) },
            );
        const PLAIN: Headers = &[];
        const UPGRADE: Headers = &[("connection", "upgrade"), ("upgrade", "websocket")];
        for (headers, code, questions) in [(PLAIN, 200, 1), (UPGRADE, 403, 2), (UPGRADE, 403, 2), (PLAIN, 200, 2)] {
            let got = m.send(with(headers, "/a")).await.status().as_u16();
            assert_eq!((got, asked.borrow().len()), (code, questions), "{headers:?}");
        }
    });
}

/// A gateway with these policies, and a rule that this provider is asked for.
fn gateway(access: Option<ir::Access>, authorization: Option<ir::AuthzProvider>) -> Mesh {
    let m = Mesh::new(1, AppProtocol::Http11, |s| {
        guarded(vec![], vec![])(s);
        let to = ir::Destination { service: KEY.into(), port: 80, weight: 1, ..Default::default() };
        let http = vec![ir::HttpRule { destinations: vec![to], authorization, ..Default::default() }];
        let producer = Some(ir::Table { http, tcp: vec![] });
        let routes = Routes::new(&ir::Routes { producer, ..Default::default() }, None).unwrap();
        s.hosts.insert("g/*".into(), Arc::new(routes));
        let hosts = vec!["*".into()];
        let listener = ir::Listener { routes: "g".into(), port: 8000, hosts, ..Default::default() };
        let gateway = ir::Gateway { listeners: vec![listener], access, ..Default::default() };
        s.gateway = Some(Arc::new(Gateway::new(&gateway).unwrap()));
    });
    m.listen(0, |_, _| status(200));
    m
}

/// A gateway whose provider's answers are kept by this.
fn gateway_keeping(key: ir::authz_cache_key::Key) -> Mesh {
    let providers = vec![provider(|p| p.cache = keeping(&[key]))];
    gateway(Some(ir::Access { policies: vec![custom("p", None)], providers, ..Default::default() }), None)
}

/// The status of a request that comes to the gateway from this address. `certificate`: as the application is told of it.
async fn at_gateway(m: &Mesh, client: [u8; 4], certificate: Option<&'static str>) -> u16 {
    let certificate = certificate.map(HeaderValue::from_static);
    let downstream = Downstream {
        peer: None,
        from: (client, 1234).into(),
        target: DownstreamTarget::Gateway(None),
        port: 8000,
        to: Ipv4Addr::new(10, 0, 1, 1).into(),
        entered: Entered { certificate, ..Default::default() },
        ..m.downstream()
    };
    let (client, server) = tokio::io::duplex(64 << 10);
    let w = m.worker.clone();
    spawn(async move { requests::requests(&w, Rc::new(downstream), Io::memory(server), false).await });
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    spawn(conn);
    send.send_request(get("/")).await.unwrap().status().as_u16()
}

/// What a gateway writes of a client counts as the provider gets it: clients that say nothing of themselves are not all one.
#[test]
fn at_a_gateway_an_answer_is_kept_by_what_the_provider_is_told() {
    run(async {
        let m = gateway_keeping(ir::authz_cache_key::Key::Header("x-forwarded-for".into()));
        let asked = authz(&m, true, |s| match &*question(s).headers["x-forwarded-for"] {
            "192.0.2.9" => yes(|_| {}),
            _ => no(403, &[], ""),
        });
        for (last, code, questions) in [(9, 200, 1), (66, 403, 2), (9, 200, 2), (66, 403, 2)] {
            let got = at_gateway(&m, [192, 0, 2, last], None).await;
            assert_eq!((got, asked.borrow().len()), (code, questions), "{last}");
        }
    });
}

/// Who is asked for a rule is asked once the gateway has written who has come: that does not stand there twice, or of trusted proxies
/// the wrong one would be counted.
#[test]
fn a_rules_provider_is_told_of_the_client_once() {
    run(async {
        let m = gateway(None, Some(provider(|_| {})));
        let asked = authz(&m, true, |_| yes(|_| {}));
        assert_eq!(at_gateway(&m, [192, 0, 2, 9], None).await, 200);
        assert_eq!(question(&asked.borrow()[0]).headers["x-forwarded-for"], "192.0.2.9");
        assert_eq!(m.seen.borrow()[0].headers["x-forwarded-for"], "192.0.2.9");
    });
}

/// Who has no identity in the mesh may have a certificate, and share its address with others.
#[test]
fn callers_of_one_address_are_told_apart_by_their_certificates() {
    run(async {
        let m = gateway_keeping(ir::authz_cache_key::Key::Caller(true));
        let asked = authz(&m, true, |s| match question(s).headers.get("x-forwarded-client-cert") {
            Some(told) if told.contains("alice") => yes(|_| {}),
            _ => no(403, &[], ""),
        });
        for (certificate, code, questions) in [
            (Some("DNS=alice.example"), 200, 1),
            (Some("DNS=eve.example"), 403, 2),
            (None, 403, 3),
            (Some("DNS=alice.example"), 200, 3),
        ] {
            let got = at_gateway(&m, [192, 0, 2, 9], certificate).await;
            assert_eq!((got, asked.borrow().len()), (code, questions), "{certificate:?}");
        }
    });
}

/// A provider that does not answer, answers late, or says what cannot be; true: by gRPC.
type NoAnswer = (&'static str, bool, fn() -> Does);

fn no_answers() -> Vec<NoAnswer> {
    let all: &[NoAnswer] = &[
        ("never answers", true, || Does::Never),
        ("answers late", true, || match yes(|_| {}) {
            Does::Answer(response) => Does::After(Duration::from_secs(2), response),
            other => other,
        }),
        ("closes the connection", true, || Does::Break),
        ("is unavailable", true, || Does::Answer(grpc_bytes(vec![], "14"))),
        ("says nothing", true, || Does::Answer(grpc_bytes(vec![0, 0, 0, 0, 0], "0"))),
        ("has no such method", true, || answer(404, &[], "")),
        ("says nothing of gRPC", true, || answer(200, &[], "yes")),
        ("breaks off", true, || Does::Answer(grpc_bytes(vec![0, 0, 0, 0, 9, 1], "0"))),
        ("speaks another language", true, || Does::Answer(grpc_bytes(vec![0, 0, 0, 0, 2, 10, 127], "0"))),
        ("makes it another request", true, || yes(|ok| ok.headers = vec![option(":path", "/admin")])),
        ("calls another host", true, || yes(|ok| ok.headers = vec![option("host", "other")])),
        ("splits a header", true, || yes(|ok| ok.headers = vec![option("x-a", "1\r\nx-b: 2")])),
        ("says too much", true, || yes(|ok| ok.headers = vec![option("x-a", "1"); 200])),
        ("says far too much", true, || yes(|ok| ok.headers = vec![option("x-a", &"1".repeat(2 << 20))])),
        ("never answers by HTTP", false, || Does::Never),
        ("closes a connection of HTTP", false, || Does::Break),
        ("fails", false, || answer(500, &[], "")),
        ("is overloaded", false, || answer(503, &[], "")),
        ("takes the host away", false, || answer(200, &[("x-envoy-auth-headers-to-remove", "host")], "")),
    ];
    all.to_vec()
}

#[test]
fn without_an_answer_nothing_goes_on_unless_it_is_said() {
    run(async {
        for (name, grpc, does) in no_answers() {
            for (fail_open, on_error, wanted) in [(false, 0, 403), (false, 503, 503), (true, 0, 200)] {
                let make = |p: &mut ir::AuthzProvider| (p.fail_open, p.status_on_error) = (fail_open, on_error);
                let provider = if grpc { provider(make) } else { by_http(make) };
                let m = Mesh::of(asked_by(provider), |_, _| status(200));
                authz(&m, grpc, move |_| does());
                let began = Instant::now();
                let (code, _) = m.ask(get("/")).await;
                assert_eq!(code.as_u16(), wanted, "{name}");
                assert!(began.elapsed().as_millis() <= u128::from(TIMEOUT), "{name}");
                assert_eq!(m.count(), usize::from(fail_open), "{name}");
                let outcome = if fail_open { Outcome::FailedOpen } else { Outcome::Error };
                assert_eq!(count(&m, outcome), 1, "{name}");
                if !fail_open {
                    assert!(logged(&format!(" {wanted} UAEX ext_authz_error ")), "{name}");
                }
            }
        }
    });
}

#[test]
fn a_slow_provider_is_waited_for_to_the_millisecond() {
    run(async {
        let m = Mesh::of(asked_by(provider(|p| p.timeout_ms = 250)), |_, _| status(200));
        authz(&m, true, |_| Does::Never);
        let began = Instant::now();
        assert_eq!(m.ask(get("/")).await.0, 403);
        assert_eq!(began.elapsed().as_millis(), 250);
    });
}

#[test]
fn a_provider_that_is_not_there_closes() {
    run(async {
        // Nobody listens; no such service; no such port.
        let changes: [fn(&mut ir::AuthzProvider); 3] =
            [|_| {}, |p| p.service = "nobody.example.com".into(), |p| p.port = 1];
        for change in changes {
            for fail_open in [false, true] {
                let provider = provider(|p| {
                    change(p);
                    p.fail_open = fail_open;
                });
                let m = Mesh::of(asked_by(provider), |_, _| status(200));
                assert_eq!(m.ask(get("/")).await.0, if fail_open { 200 } else { 403 });
            }
        }
    });
}

#[test]
fn another_endpoint_of_the_provider_is_tried() {
    run(async {
        let m = Mesh::of(asked_by(provider(|_| {})), |_, _| status(200));
        // Of two endpoints one listens.
        let seen = All::default();
        m.serve(authz_address(88), (0, true), seen.clone(), Rc::new(|_, _| yes(|_| {})));
        for _ in 0..10 {
            assert_eq!(m.ask(get("/")).await.0, 200);
        }
        assert_eq!(seen.borrow().len(), 10);
    });
}

/// It may count what it is asked, or use up a token that the request has.
#[test]
fn a_question_that_a_provider_may_have_read_is_not_asked_again() {
    run(async {
        for grpc in [true, false] {
            let provider = if grpc { provider(|_| {}) } else { by_http(|_| {}) };
            let m = Mesh::of(asked_by(provider), |_, _| status(200));
            let asked = authz(&m, grpc, |_| Does::Break);
            assert_eq!((m.ask(get("/")).await.0.as_u16(), asked.borrow().len()), (403, 1), "by gRPC: {grpc}");
            assert_eq!(count(&m, Outcome::Error), 1);
        }
    });
}

#[test]
fn a_provider_is_not_asked_more_than_its_circuit_breaker_allows() {
    run(async {
        let limits = ir::Limits { max_requests: 1, ..Default::default() };
        let rules = ir::Backend {
            policy: Some(ir::Policy { limits: Some(limits), ..Default::default() }),
            ..Default::default()
        };
        let change = |s: &mut Snapshot| {
            asked_by(provider(|_| {}))(s);
            s.backends.insert(AUTHZ.into(), Arc::new(rules));
        };
        let m = Mesh::of(change, |_, _| status(200));
        authz(&m, true, |_| match yes(|_| {}) {
            Does::Answer(response) => Does::After(Duration::from_millis(500), response),
            other => other,
        });
        let (first, second) = tokio::join!(m.ask(get("/")), m.ask(get("/")));
        let mut both = [first.0.as_u16(), second.0.as_u16()];
        both.sort_unstable();
        assert_eq!(both, [200, 403]);
    });
}

#[test]
fn rules_say_who_is_asked_about_and_deny_and_allow_follow() {
    run(async {
        let policies = || {
            vec![
                custom("p", Some("/admin*")),
                policy_of(ir::AccessAction::Deny, "ns/deny", Some("/admin/secret")),
                policy_of(ir::AccessAction::Allow, "ns/allow", Some("/admin*")),
            ]
        };
        for (says, path, wanted, asked) in [
            ("yes", "/admin/a", 200, 1),
            ("no", "/admin/a", 401, 1),
            ("yes", "/admin/secret", 403, 1),
            ("yes", "/other", 403, 0),
            // In whichever way an application may read it; to grant it is not enough.
            ("no", "/%61dmin/a", 401, 1),
            ("no", "//admin", 401, 1),
        ] {
            let m = Mesh::of(guarded(vec![provider(|_| {})], policies()), |_, _| status(200));
            let seen = authz(&m, true, move |_| if says == "yes" { yes(|_| {}) } else { no(401, &[], "") });
            assert_eq!(m.ask(get(path)).await.0, wanted, "{says} {path}");
            assert_eq!(seen.borrow().len(), asked, "{says} {path}");
        }
        assert!(logged(" rbac_access_denied_matched_policy[ns[ns]-policy[deny]-rule[0]] "));
    });
}

#[test]
fn policies_judge_what_the_provider_has_made_of_the_request() {
    run(async {
        let attribute = ir::Attribute::Header as i32;
        let tests = vec![ir::AccessTest {
            attribute,
            name: "x-role".into(),
            values: vec!["guest".into()],
            ..Default::default()
        }];
        let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
        let deny = ir::AccessPolicy {
            rules: vec![ir::AccessRule { clauses }],
            ..policy_of(ir::AccessAction::Deny, "ns/guests", None)
        };
        let m = Mesh::of(guarded(vec![provider(|_| {})], vec![custom("p", None), deny]), |_, _| status(200));
        authz(&m, true, |s| {
            let role = if question(s).path == "/guest" { "guest" } else { "user" };
            yes(|ok| ok.headers = vec![option("x-role", role)])
        });
        assert_eq!(m.ask(with(&[("x-role", "user")], "/guest")).await.0, 403);
        assert_eq!(m.ask(with(&[("x-role", "guest")], "/user")).await.0, 200);
    });
}

#[test]
fn several_providers_are_asked_in_the_order_of_their_names() {
    run(async {
        let second = || ir::AuthzProvider { name: "q".into(), ..provider(|_| {}) };
        let change = || {
            let policies = vec![custom("q", None), custom("p", None), custom("p", Some("/a"))];
            guarded(vec![second(), provider(|_| {})], policies)
        };
        let m = Mesh::of(change(), |_, _| status(200));
        let asked = authz(&m, true, |s| match question(s).headers.get("x-first") {
            None => yes(|ok| ok.headers = vec![option("x-first", "1")]),
            Some(_) => yes(|ok| ok.headers = vec![option("x-second", "2")]),
        });
        assert_eq!(m.ask(get("/a")).await.0, 200);
        let got = ["x-first", "x-second"].map(|name| m.seen.borrow()[0].headers.contains_key(name));
        assert_eq!((asked.borrow().len(), got), (2, [true, true]), "each once, the second after the first");
        let m = Mesh::of(change(), |_, _| status(200));
        let asked = authz(&m, true, |_| no(403, &[], ""));
        assert_eq!((m.ask(get("/a")).await.0.as_u16(), asked.borrow().len()), (403, 1));
    });
}

#[test]
fn bodies_are_sent_as_far_as_asked_for_and_go_on_whole() {
    run(async {
        const SIZE: usize = 100 << 10;
        let whole = Bytes::from(vec![b'x'; SIZE]);
        for (max, partial, fail_open, wanted, sent) in [
            (SIZE as u32, false, false, 200, Some((SIZE, "false"))),
            (10, true, false, 200, Some((10, "true"))),
            (SIZE as u32 - 1, false, false, 413, None),
            (10, false, true, 413, None),
        ] {
            for grpc in [true, false] {
                let body = ir::CheckBody { max_bytes: max, allow_partial: partial, as_bytes: true };
                let make = |p: &mut ir::AuthzProvider| (p.fail_open, p.body) = (fail_open, Some(body));
                let provider = if grpc { provider(make) } else { by_http(make) };
                let m = Mesh::of(asked_by(provider), |_, _| status(200));
                let asked = authz(&m, grpc, move |_| if grpc { yes(|_| {}) } else { answer(200, &[], "") });
                assert_eq!(m.ask(post(whole.clone())).await.0, wanted, "{max} {partial}");
                let got = asked.borrow().first().map(|seen| match grpc {
                    true => {
                        let http = question(seen);
                        (http.raw_body.len(), http.headers["x-envoy-auth-partial-body"].clone())
                    }
                    false => (seen.body.len(), seen.headers["x-envoy-auth-partial-body"].to_str().unwrap().to_string()),
                });
                assert_eq!(got, sent.map(|(size, partial)| (size, partial.to_string())));
                match wanted {
                    200 => assert!(m.seen.borrow()[0].body == whole),
                    _ => assert_eq!((m.count(), count(&m, Outcome::TooLarge)), (0, 1)),
                }
            }
        }
    });
}

#[test]
fn dry_runs_are_asked_and_nobody_waits_for_them() {
    run(async {
        let dry = ir::AccessPolicy { dry_run: true, ..custom("p", None) };
        let m = Mesh::of(guarded(vec![provider(|_| {})], vec![dry]), |_, _| status(200));
        let asked = authz(&m, true, |s| match &*question(s).path {
            "/slow" => Does::Never,
            _ => no(403, &[], ""),
        });
        let began = Instant::now();
        for path in ["/slow", "/denied"] {
            assert_eq!(m.ask(get(path)).await.0, 200);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(asked.borrow().len(), 2);
        let of = |outcome| m.worker.shared.metrics.external.of("p", true, outcome);
        assert_eq!((of(Outcome::Denied), of(Outcome::Error)), (1, 1));
        let page = karst_rt::exposition::page(|page| m.worker.shared.metrics.dry_runs.render(page, |_| true));
        assert!(
            page.contains("policy=\"ns/ask-p\",authz_dry_run_action=\"deny\",authz_dry_run_result=\"denied\"} 2"),
            "{page}"
        );
    });
}

#[test]
fn one_policy_in_earnest_is_enough() {
    run(async {
        let dry = ir::AccessPolicy { dry_run: true, ..custom("p", None) };
        let m = Mesh::of(guarded(vec![provider(|_| {})], vec![dry, custom("p", Some("/a"))]), |_, _| status(200));
        authz(&m, true, |_| no(403, &[], ""));
        assert_eq!((m.ask(get("/a")).await.0.as_u16(), m.ask(get("/b")).await.0.as_u16()), (403, 200));
    });
}

/// Gateway API's ExternalAuth.
#[test]
fn a_rule_asks_a_provider_of_its_own() {
    run(async {
        let guarded_rule = || {
            |s: &mut Snapshot| {
                guarded(vec![], vec![])(s);
                route(|r| r.authorization = Some(by_http(|p| p.all_upstream_on_allow = true)))(s);
            }
        };
        let m = Mesh::of(guarded_rule(), |_, _| status(200));
        let asked = authz(&m, false, |s| match s.uri.path() {
            "/yes" => answer(200, &[("x-user", "alice"), ("content-type", "text/html")], ""),
            _ => answer(401, &[], "no"),
        });
        let mut request = with(&[("x-user", "mallory"), ("content-type", "application/json")], "/yes");
        request.headers_mut().insert("origin", HeaderValue::from_static("http://a"));
        assert_eq!(m.ask(request).await.0, 200);
        assert_eq!(m.ask(get("/no")).await, (StatusCode::UNAUTHORIZED, "no".into()));
        assert_eq!((asked.borrow().len(), m.count()), (2, 1));
        {
            let seen = m.seen.borrow();
            assert_eq!(
                (&seen[0].headers["x-user"], &seen[0].headers["content-type"]),
                (&"alice".parse().unwrap(), &"application/json".parse().unwrap())
            );
        }
        assert!(logged(" 401 UAEX ext_authz_denied "));
        // Nobody is there to be asked.
        let m = Mesh::of(guarded_rule(), |_, _| status(200));
        assert_eq!(m.ask(get("/yes")).await.0, 403);
    });
}

/// What is to be answered after a while, in which something may change.
fn slowly(does: Does) -> Does {
    match does {
        Does::Answer(response) => Does::After(Duration::from_millis(500), response),
        other => other,
    }
}

/// Asks, and tells of a change while the provider is waited for.
async fn ask_during(m: &Mesh, change: impl FnOnce(&mut Snapshot)) -> u16 {
    let change = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        m.tell(change);
    };
    let (answered, ()) = tokio::join!(m.ask(get("/")), change);
    answered.0.as_u16()
}

/// A policy that denies what has a header that a provider writes.
fn deny_written() -> ir::AccessPolicy {
    let attribute = ir::Attribute::Header as i32;
    let (name, values) = ("x-role".into(), vec!["guest".into()]);
    let tests = vec![ir::AccessTest { attribute, name, values, ..Default::default() }];
    let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
    let rules = vec![ir::AccessRule { clauses }];
    ir::AccessPolicy { rules, ..policy_of(ir::AccessAction::Deny, "ns/guests", None) }
}

/// A change that concerns neither policies nor routes.
fn unrelated(s: &mut Snapshot) {
    s.backends.insert("ns/other.ns.svc.cluster.local".into(), Arc::default());
}

#[test]
fn a_policy_that_comes_while_a_provider_is_waited_for_holds() {
    run(async {
        let deny = || policy_of(ir::AccessAction::Deny, "ns/deny", None);
        let with = |more: Vec<ir::AccessPolicy>| {
            guarded(vec![provider(|_| {})], [custom("p", None)].into_iter().chain(more).collect())
        };
        let of = || {
            let m = Mesh::of(with(vec![]), |_, _| status(200));
            let asked = authz(&m, true, |_| slowly(yes(|_| {})));
            (m, asked)
        };
        let (m, asked) = of();
        assert_eq!((ask_during(&m, with(vec![deny()])).await, m.count()), (403, 0));
        assert_eq!(asked.borrow().len(), 1, "what it was asked it is not asked again");
        assert!(logged(" rbac_access_denied_matched_policy[ns[ns]-policy[deny]-rule[0]] "));
        // One that forbids something else, and what is no policy.
        let (m, asked) = of();
        assert_eq!((ask_during(&m, with(vec![deny_written()])).await, m.count()), (200, 1));
        assert_eq!((ask_during(&m, unrelated).await, m.count(), asked.borrow().len()), (200, 2, 2));
        // One that asks somebody else, and the same provider at another place: what was said does not count for that.
        for second in ["q", "p"] {
            let (m, asked) = of();
            let change = |s: &mut Snapshot| {
                let other = by_http(|p| (p.name, p.status_on_error) = (second.into(), 503));
                let first = provider(|_| {});
                let providers = if second == "q" { vec![first, other] } else { vec![other] };
                guarded(providers, vec![custom("p", None), custom(second, None)])(s);
            };
            // Who answers speaks another protocol: it is asked, and nothing of that can be used.
            assert_eq!((ask_during(&m, change).await, m.count()), (503, 0), "{second}");
            assert_eq!(asked.borrow().len(), 1, "{second}");
        }
    });
}

#[test]
fn a_policy_that_comes_while_the_provider_of_a_rule_is_waited_for_holds() {
    run(async {
        let of = |policies: Vec<ir::AccessPolicy>| {
            let change = |s: &mut Snapshot| {
                guarded(vec![], policies)(s);
                route(|r| r.authorization = Some(by_http(|p| p.all_upstream_on_allow = true)))(s);
            };
            let m = Mesh::of(change, |_, _| status(200));
            let asked = authz(&m, false, |s| match s.uri.path() {
                "/by-policy/" => answer(401, &[], ""),
                _ => slowly(answer(200, &[("x-role", "guest")], "")),
            });
            (m, asked)
        };
        let deny = || policy_of(ir::AccessAction::Deny, "ns/deny", None);
        let (m, asked) = of(vec![]);
        assert_eq!((ask_during(&m, guarded(vec![], vec![deny()])).await, m.count()), (403, 0));
        assert_eq!(asked.borrow().len(), 1);
        // What the provider has written was judged by nobody, and is not because something else has changed.
        let (m, asked) = of(vec![deny_written()]);
        assert_eq!((ask_during(&m, unrelated).await, m.count(), asked.borrow().len()), (200, 1, 1));
        // One that asks: that holds, too.
        let (m, asked) = of(vec![]);
        let other = by_http(|p| p.path_prefix = "/by-policy".into());
        assert_eq!((ask_during(&m, guarded(vec![other], vec![custom("p", None)])).await, m.count()), (401, 0));
        assert_eq!(asked.borrow().len(), 2);
    });
}

/// A newer controller and an older proxy.
#[test]
fn a_rule_whose_provider_is_not_understood_lets_nobody_in_and_the_others_go_on() {
    run(async {
        let rule = |origin: &str, path: &str| {
            let path = Some(ir::Text { kind: Some(ir::text::Kind::Prefix(path.into())) });
            let to = ir::Destination { service: KEY.into(), weight: 1, ..Default::default() };
            let r#match = Some(ir::Match { path, ..Default::default() });
            ir::HttpRule { origin: origin.into(), r#match, destinations: vec![to], ..Default::default() }
        };
        let later = Some(provider(|p| p.protocol = 99));
        let guarded_rule = ir::HttpRule { authorization: later, ..rule("guarded", "/guarded") };
        let table = ir::Table { http: vec![guarded_rule, rule("open", "/")], tcp: vec![] };
        let routes = ir::Routes { producer: Some(table), ..Default::default() }.encode_to_vec();
        let change = |s: &mut Snapshot| {
            let wrong = s.put(karst_api::ROUTES_TYPE, KEY, &routes).unwrap_err().to_string();
            assert!(wrong.starts_with("guarded: external authorization: protocol 99; "), "{wrong}");
        };
        let m = Mesh::of(change, |_, _| status(200));
        assert_eq!((m.ask(get("/guarded/a")).await.0.as_u16(), m.count()), (500, 0));
        assert_eq!((m.ask(get("/other")).await.0.as_u16(), m.count()), (200, 1));
    });
}
