//! Filters of a gateway's listener (GEP-5224): each request passes all of them, once and in order, before one of the routes is chosen.

use super::*;

/// A listener for a name, with these filters.
fn listener(host: &str, filters: Vec<Option<ir::AuthzProvider>>) -> ir::Listener {
    let requests: Vec<_> = filters.into_iter().map(|authorization| ir::ListenerFilter { authorization }).collect();
    let flag = if requests.is_empty() { ir::ListenerFlag::None } else { ir::ListenerFlag::Filtered };
    ir::Listener {
        routes: "g".into(),
        port: 8000,
        hosts: vec![host.into()],
        protocol: flag as i32,
        filters: (!requests.is_empty()).then_some(ir::ListenerFilters { requests }),
        ..Default::default()
    }
}

fn with_listeners(listeners: Vec<ir::Listener>) -> Arc<Gateway> {
    Arc::new(Gateway::new(&ir::Gateway { listeners, ..Default::default() }).unwrap())
}

/// What a gateway listens on, with these filters.
fn listening(filters: Vec<Option<ir::AuthzProvider>>) -> Arc<Gateway> {
    with_listeners(vec![listener("*", filters)])
}

/// A gateway whose listener has these filters, and these rules for the host `s`.
fn filtered(filters: Vec<Option<ir::AuthzProvider>>, http: Vec<ir::HttpRule>) -> Mesh {
    let m = Mesh::new(1, AppProtocol::Http11, |s| {
        guarded(vec![], vec![])(s);
        let producer = Some(ir::Table { http, tcp: vec![] });
        let routes = Routes::new(&ir::Routes { producer, ..Default::default() }, None).unwrap();
        s.hosts.insert("g/s".into(), Arc::new(routes));
        s.gateway = Some(listening(filters));
    });
    m.listen(0, |_, _| status(200));
    m
}

/// The status of a request that comes to the gateway.
async fn enter(m: &Mesh, request: Request<Payload>) -> u16 {
    enter_by(m, None, request).await
}

/// The same by TLS with this name in the hello, if there is one.
async fn enter_by(m: &Mesh, hello: Option<&str>, request: Request<Payload>) -> u16 {
    let target = DownstreamTarget::Gateway(hello.map(Into::into));
    let downstream = Downstream { peer: None, target, port: 8000, ..m.downstream() };
    let (client, server) = tokio::io::duplex(64 << 10);
    let w = m.worker.clone();
    spawn(async move { requests::requests(&w, Rc::new(downstream), Io::memory(server), false).await });
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    spawn(conn);
    send.send_request(request).await.unwrap().status().as_u16()
}

/// A rule for all requests.
fn open() -> ir::HttpRule {
    let to = ir::Destination { service: KEY.into(), port: 80, weight: 1, ..Default::default() };
    ir::HttpRule { destinations: vec![to], ..Default::default() }
}

/// A rule for those of a tenant.
fn of_tenant(tenant: &str) -> ir::HttpRule {
    let value = Some(ir::Text { kind: Some(ir::text::Kind::Exact(tenant.into())) });
    let headers = vec![ir::Named { name: "x-tenant".into(), value, invert: false }];
    ir::HttpRule { r#match: Some(ir::Match { headers, ..Default::default() }), ..open() }
}

/// The same, which answers itself.
fn refuse_tenant(tenant: &str) -> ir::HttpRule {
    let response = Some(ir::DirectResponse { status: 418, ..Default::default() });
    ir::HttpRule { response, ..of_tenant(tenant) }
}

fn ask() -> Option<ir::AuthzProvider> {
    Some(provider(|_| {}))
}

#[test]
fn requests_go_by_what_the_filters_make_of_them() {
    run(async {
        let rules = vec![refuse_tenant("client"), refuse_tenant("first"), of_tenant("second")];
        let m = filtered(vec![ask(), ask()], rules);
        // Each is asked about what those before it have made of the request; one that is there twice, twice.
        let asked = authz(&m, true, |s| match question(s).headers.get("x-tenant").map(|tenant| &**tenant) {
            Some("first") => yes(|ok| ok.headers = vec![option("x-tenant", "second")]),
            _ => yes(|ok| ok.headers = vec![option("x-tenant", "first")]),
        });
        let got = enter(&m, with(&[("x-tenant", "client")], "/")).await;
        assert_eq!((got, asked.borrow().len(), m.count()), (200, 2, 1));
        assert_eq!(m.seen.borrow()[0].headers["x-tenant"], "second");
    });
}

#[test]
fn who_refuses_a_request_ends_it() {
    run(async {
        let m = filtered(vec![ask(), ask()], vec![open()]);
        let asked = authz(&m, true, |_| no(401, &[], "no"));
        assert_eq!((enter(&m, get("/")).await, asked.borrow().len(), m.count()), (401, 1, 0));
        assert!(logged(" 401 UAEX ext_authz_denied "));
        // Nobody answers.
        let m = filtered(vec![ask()], vec![open()]);
        assert_eq!((enter(&m, get("/")).await, m.count()), (403, 0));
    });
}

/// Whether there are routes for its host or not.
#[test]
fn all_requests_of_a_listener_pass_its_filters() {
    run(async {
        let elsewhere = || {
            let mut request = get("/");
            request.headers_mut().insert("host", HeaderValue::from_static("nobody"));
            request
        };
        for (filters, said, with_route, without) in
            [(vec![], 200, 200, 404), (vec![ask()], 200, 200, 404), (vec![ask()], 403, 403, 403)]
        {
            let count = filters.len();
            let m = filtered(filters, vec![open()]);
            let asked = authz(&m, true, move |_| if said == 200 { yes(|_| {}) } else { no(said, &[], "") });
            let got = [enter(&m, get("/")).await, enter(&m, elsewhere()).await];
            assert_eq!((got, asked.borrow().len()), ([with_route, without], 2 * count), "{count} {said}");
        }
    });
}

/// Both are executed: they are configured apart.
#[test]
fn a_rules_own_provider_is_asked_after_the_filters() {
    run(async {
        let rule = ir::HttpRule { authorization: Some(provider(|p| p.name = "rule".into())), ..of_tenant("a") };
        let m = filtered(vec![ask()], vec![rule]);
        let asked = authz(&m, true, |s| match question(s).headers.contains_key("x-tenant") {
            false => yes(|ok| ok.headers = vec![option("x-tenant", "a")]),
            true => no(403, &[], ""),
        });
        assert_eq!((enter(&m, get("/")).await, asked.borrow().len(), m.count()), (403, 2, 0));
    });
}

/// Who is to be asked is not there, or is asked in a way that this version does not know.
#[test]
fn a_filter_that_cannot_be_executed_lets_nobody_in() {
    run(async {
        let m = filtered(vec![ask(), None], vec![open()]);
        let asked = authz(&m, true, |_| yes(|_| {}));
        assert_eq!((enter(&m, get("/")).await, asked.borrow().len(), m.count()), (500, 1, 0));
    });
}

/// A request, and a change after so many milliseconds, while a provider is waited for.
async fn enter_during(m: &Mesh, after: u64, change: impl FnOnce(&mut Snapshot)) -> u16 {
    let change = async {
        tokio::time::sleep(Duration::from_millis(after)).await;
        m.tell(change);
    };
    let (status, ()) = tokio::join!(enter(m, get("/")), change);
    status
}

#[test]
fn filters_are_passed_once_whatever_comes_meanwhile() {
    run(async {
        let of = || {
            let m = filtered(vec![ask()], vec![open()]);
            let asked = authz(&m, true, |_| slowly(yes(|_| {})));
            (m, asked)
        };
        let (m, asked) = of();
        assert_eq!((enter_during(&m, 100, unrelated).await, asked.borrow().len()), (200, 1));
        // One more, and one that cannot be executed: they hold for who waits.
        let (m, asked) = of();
        let change = |s: &mut Snapshot| s.gateway = Some(listening(vec![ask(), ask()]));
        assert_eq!((enter_during(&m, 100, change).await, asked.borrow().len()), (200, 2));
        let (m, asked) = of();
        let change = |s: &mut Snapshot| s.gateway = Some(listening(vec![ask(), None]));
        assert_eq!((enter_during(&m, 100, change).await, asked.borrow().len(), m.count()), (500, 1, 0));
    });
}

/// It is asked after them, and may be waited for as long.
#[test]
fn a_filter_that_comes_while_the_provider_of_a_rule_is_waited_for_holds() {
    run(async {
        let of = |filters: Vec<Option<ir::AuthzProvider>>| {
            let rule = ir::HttpRule { authorization: Some(provider(|p| p.name = "rule".into())), ..open() };
            let m = filtered(filters, vec![rule]);
            let asked = authz(&m, true, |_| slowly(yes(|_| {})));
            (m, asked)
        };
        let (m, asked) = of(vec![]);
        let change = |s: &mut Snapshot| s.gateway = Some(listening(vec![ask()]));
        assert_eq!((enter_during(&m, 100, change).await, asked.borrow().len(), m.count()), (200, 2, 1));
        let (m, asked) = of(vec![]);
        let change = |s: &mut Snapshot| s.gateway = Some(listening(vec![None]));
        assert_eq!((enter_during(&m, 100, change).await, asked.borrow().len(), m.count()), (500, 1, 0));
        // What has been passed is not passed again.
        let (m, asked) = of(vec![ask()]);
        let change = |s: &mut Snapshot| s.gateway = Some(listening(vec![ask()]));
        assert_eq!((enter_during(&m, 700, change).await, asked.borrow().len(), m.count()), (200, 2, 1));
    });
}

/// A listener with filters that has come meanwhile, and that the name in the hello has not chosen: what is its own now goes past it by no
/// other one.
#[test]
fn who_waits_does_not_go_past_the_filters_of_a_listener_that_it_has_not_come_to() {
    run(async {
        let rule = ir::HttpRule { authorization: Some(provider(|p| p.name = "rule".into())), ..open() };
        for (host, want) in [("s", (421, 0)), ("others", (200, 1))] {
            let m = filtered(vec![], vec![rule.clone()]);
            let asked = authz(&m, true, |_| slowly(yes(|_| {})));
            let change = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let listeners = vec![listener("*", vec![]), listener(host, vec![None])];
                m.tell(|s| s.gateway = Some(with_listeners(listeners)));
            };
            let (status, ()) = tokio::join!(enter_by(&m, Some("another"), get("/")), change);
            assert_eq!(((status, m.count()), asked.borrow().len()), (want, 1), "{host}");
        }
    });
}
