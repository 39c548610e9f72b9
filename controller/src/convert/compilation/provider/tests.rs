//! From CUSTOM policies and mesh configuration to what waypoints and gateways are told, and what is told to users.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{
    convert::{check, compile, tests::mesh},
    model::Model,
};
use karst_api::route::{self as ir, authz_cache_key::Key};
use karst_manifest::{MeshConfig, Problem, State, code, parse};
use std::sync::Arc;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}\n";
/// A gateway's pod, what it listens on, and a route.
const INGRESS: &str = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: gw, namespace: a, labels: {app: ingress}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: 'True'}]}\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: a}\nspec: {selector: {app: ingress}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: a}\nspec: {hosts: [shop.example.com], gateways: [g], http: [{route: [{destination: {host: s}}]}]}\n";
const PROVIDERS: &str = "
extensionProviders:
- name: opa
  envoyExtAuthzGrpc: {service: opa.authz.svc.cluster.local, port: 9191, timeout: 250ms, failOpen: true, statusOnError: '503', clearRouteCache: true, includeRequestBodyInCheck: {maxRequestBytes: 8192, allowPartialMessage: true, packAsBytes: true}}
  cache: {ttl: 5s, keys: [{type: Header, name: authorization}, {type: Path}, {type: Query, name: tenant}]}
- name: login
  envoyExtAuthzHttp: {service: authz/login.example.com, port: 4180, pathPrefix: /auth, includeRequestHeadersInCheck: [cookie, 'x-auth-*'], includeHeadersInCheck: [x-old], includeAdditionalHeadersInCheck: {x-mesh: karst}, headersToUpstreamOnAllow: [authorization], headersToDownstreamOnAllow: [set-cookie], headersToDownstreamOnDeny: ['*-reason']}
- name: otel
  opentelemetry: {service: jaeger, port: 4317}
";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec: {spec}\n"
    )
}

fn told(config: &str, text: &str) -> (Model, Vec<Problem>) {
    let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(Arc::new).collect();
    let mesh_config = Arc::new(MeshConfig::read(config).unwrap());
    compile(&State { objects, mesh_config, ..State::default() }, &mesh())
}

/// A CUSTOM policy for the service.
fn custom(name: &str, provider: &str) -> String {
    let target = "targetRefs: [{group: '', kind: Service, name: s}]";
    policy(
        name,
        &format!(
            "{{{target}, action: CUSTOM, provider: {{name: {provider}}}, rules: [{{to: [{{operation: {{paths: [/a]}}}}]}}]}}"
        ),
    )
}

fn access(model: &Model) -> &ir::Access {
    &model.access["a/s.a.svc.cluster.local"]
}

#[test]
fn a_waypoint_is_told_whom_to_ask() {
    let text = [SERVICE, &custom("one", "opa"), &custom("two", "login"), &custom("three", "opa")].concat();
    let (model, problems) = told(PROVIDERS, &text);
    assert!(problems.is_empty(), "{problems:?}");
    let access = access(&model);
    let said: Vec<_> = access.policies.iter().map(|p| (p.action(), &*p.provider, p.rules.len())).collect();
    let custom = ir::AccessAction::Custom;
    assert_eq!(said, [(custom, "opa", 1), (custom, "login", 1), (custom, "opa", 1)]);
    let [login, opa] = &access.providers[..] else { panic!("{:?}", access.providers) };
    assert_eq!((&*opa.name, &*opa.service, opa.port), ("opa", "opa.authz.svc.cluster.local", 9191));
    assert_eq!((opa.protocol(), opa.timeout_ms), (ir::AuthzProtocol::AuthzGrpc, 250));
    assert_eq!((opa.fail_open, opa.status_on_error), (true, 503));
    let body = ir::CheckBody { max_bytes: 8192, allow_partial: true, as_bytes: true };
    assert_eq!(opa.body.as_ref(), Some(&body));
    let keys = [Key::Header("authorization".into()), Key::Path(true), Key::Parameter("tenant".into())];
    let keys = keys.map(|key| ir::AuthzCacheKey { key: Some(key) }).to_vec();
    assert_eq!((opa.cache.as_ref(), &login.cache), (Some(&ir::AuthzCache { ttl_ms: 5000, keys }), &None));
    assert_eq!((&*login.name, &*login.service, login.port), ("login", "authz/login.example.com", 4180));
    assert_eq!((login.protocol(), login.timeout_ms), (ir::AuthzProtocol::AuthzHttp, 0));
    assert_eq!((login.fail_open, login.status_on_error, &*login.path_prefix), (false, 0, "/auth"));
    assert_eq!(login.request_headers, ["cookie", "x-auth-*", "x-old"]);
    assert_eq!((&*login.additional_headers[0].name, &*login.additional_headers[0].value), ("x-mesh", "karst"));
    assert_eq!(login.upstream_on_allow, ["authorization"]);
    assert_eq!((&*login.downstream_on_allow[0], &*login.downstream_on_deny[0]), ("set-cookie", "*-reason"));
    assert!(!format!("{login:?}").contains("karst"), "it may be a token");
}

#[test]
fn a_gateway_whose_pods_are_selected_asks() {
    let spec = "{selector: {matchLabels: {app: ingress}}, action: CUSTOM, provider: {name: opa}, rules: [{}]}";
    let (model, _) = told(PROVIDERS, &[SERVICE, INGRESS, &policy("p", spec)].concat());
    let access = model.gateways["a/gw"].access.as_ref().unwrap();
    assert_eq!((access.policies[0].action(), access.providers.len()), (ir::AccessAction::Custom, 1));
    // And ztunnel, which cannot, denies.
    let at_node = &model.policies["a/p"];
    assert_eq!((at_node.action, at_node.rules.len()), (karst_policy::Action::Deny, 1));
}

/// Whatever is wrong with a provider: what the policy selects is denied, and the user is told.
#[test]
fn a_provider_that_cannot_be_asked_closes_and_is_told() {
    let grpc = |fields: &str| {
        format!("extensionProviders: [{{name: p, envoyExtAuthzGrpc: {{service: s, port: 1, {fields}}}}}]")
    };
    let http = |fields: &str| {
        format!("extensionProviders: [{{name: p, envoyExtAuthzHttp: {{service: s, port: 1, {fields}}}}}]")
    };
    let raw = |fields: &str| format!("extensionProviders: [{{name: p, {fields}}}]");
    let cached = |fields: &str| raw(&format!("envoyExtAuthzGrpc: {{service: s, port: 1}}, cache: {{{fields}}}"));
    for (config, number, says) in [
        ("extensionProviders: [{name: q}]".to_string(), 131, "no such provider"),
        (raw("opentelemetry: {service: s, port: 1}"), 131, "decides about no requests"),
        (raw("envoyExtAuthzGrpc: {service: s, port: 1}, envoyExtAuthzHttp: {service: s, port: 1}"), 14, "cannot be combined"),
        (
            "extensionProviders: [{name: p, envoyExtAuthzGrpc: {service: a, port: 1}}, {name: p, envoyExtAuthzGrpc: {service: b, port: 1}}]".into(),
            13,
            "is duplicated",
        ),
        (raw("envoyExtAuthzGrpc: {port: 1}"), 22, "envoyExtAuthzGrpc.service"),
        (raw("envoyExtAuthzGrpc: {service: 'a b', port: 1}"), 22, "envoyExtAuthzGrpc.service"),
        (raw("envoyExtAuthzHttp: {service: s}"), 19, "envoyExtAuthzHttp.port"),
        (raw("envoyExtAuthzHttp: {service: s, port: 70000}"), 19, "envoyExtAuthzHttp.port"),
        (grpc("timeout: soon"), 20, "envoyExtAuthzGrpc.timeout"),
        (grpc("statusOnError: '200'"), 26, "statusOnError"),
        (grpc("statusOnError: Forbidden"), 26, "statusOnError"),
        (grpc("includeRequestBodyInCheck: {}"), 17, "maxRequestBytes"),
        (grpc("includeRequestBodyInCheck: {maxRequestBytes: 10485761}"), 17, "maxRequestBytes"),
        (http("pathPrefix: check"), 22, "pathPrefix"),
        (http("pathPrefix: '/a?b'"), 22, "pathPrefix"),
        (http("includeRequestHeadersInCheck: ['*']"), 24, "includeRequestHeadersInCheck"),
        (http("includeHeadersInCheck: ['a*b']"), 24, "includeHeadersInCheck"),
        (http("includeAdditionalHeadersInCheck: {Host: a}"), 24, "includeAdditionalHeadersInCheck"),
        (http("includeAdditionalHeadersInCheck: {x-a: \"1\\n2\"}"), 24, "includeAdditionalHeadersInCheck"),
        (http("headersToUpstreamOnAllow: ['a b']"), 24, "headersToUpstreamOnAllow"),
        (http("headersToDownstreamOnAllow: ['']"), 24, "headersToDownstreamOnAllow"),
        (http("headersToDownstreamOnDeny: ['**']"), 24, "headersToDownstreamOnDeny"),
        (grpc("failopen: false"), 1, "envoyExtAuthzGrpc.failopen: unknown field"),
        (grpc("pathPrefix: /a"), 1, "envoyExtAuthzGrpc.pathPrefix: unknown field"),
        (http("headersToUpstream: [x-a]"), 1, "envoyExtAuthzHttp.headersToUpstream: unknown field"),
        (
            http("includeRequestBodyInCheck: {maxRequestBytes: 1, maxBytes: 2}"),
            1,
            "includeRequestBodyInCheck.maxBytes: unknown field",
        ),
        (cached("keys: [{type: Path}]"), 20, "cache.ttl"),
        (cached("ttl: 61m, keys: [{type: Path}]"), 17, "cache.ttl: \"61m\" is out of range"),
        (cached("ttl: 0s, keys: [{type: Path}]"), 17, "cache.ttl"),
        (cached("ttl: 1s"), 17, "cache.keys: 0 keys"),
        (cached(&format!("ttl: 1s, keys: [{}]", ["{type: Path}"; 9].join(", "))), 17, "cache.keys: 9 keys"),
        (cached("ttl: 1s, keys: [{type: Paths}]"), 16, "cache.keys[0].type: unsupported value \"Paths\""),
        (cached("ttl: 1s, keys: [{type: Path, name: a}]"), 14, "cache.keys[0].name"),
        (cached("ttl: 1s, keys: [{type: Path}, {type: Header}]"), 24, "cache.keys[1].name"),
        (cached("ttl: 1s, keys: [{type: Path, key: a}]"), 1, "cache.keys[0].key: unknown field"),
        (cached("ttl: 1s, keys: [{type: Path}], negative: 1s"), 1, "cache.negative: unknown field"),
    ] {
        let (model, problems) = told(&config, &[SERVICE, &custom("x", "p")].concat());
        let [problem] = &problems[..] else { panic!("{config}: {problems:?}") };
        assert_eq!((&*problem.field, code::of(&problem.message)), ("spec.provider.name", Some(number)), "{config}");
        assert!(problem.message.contains(says), "{config}: {}", problem.message);
        let access = access(&model);
        let said: Vec<_> = access.policies.iter().map(|p| (p.action(), &*p.provider, p.rules.len())).collect();
        assert_eq!((said, access.providers.len()), (vec![(ir::AccessAction::Deny, "", 1)], 0), "{config}");
    }
}

/// It is told, and the provider is asked all the same.
#[test]
fn what_of_a_provider_has_no_effect_is_told() {
    let config = "extensionProviders: [{name: p, envoyExtAuthzHttp: {service: s, port: 1, includeRequestBodyInCheck: {maxRequestBytes: 1, packAsBytes: true}}}]";
    let (model, problems) = told(config, &[SERVICE, &custom("x", "p")].concat());
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!((&*problem.field, code::of(&problem.message)), ("spec.provider.name", Some(30)));
    assert_eq!(access(&model).providers.len(), 1);
    let (_, problems) = told(&config.replace("packAsBytes: true", "packAsBytes: false"), &custom("x", "p"));
    assert!(problems.iter().all(|p| code::of(&p.message) != Some(30)), "{problems:?}");
}

#[test]
fn at_admission_nobody_knows_the_providers() {
    let policy = parse::file("t.yaml".as_ref(), &custom("x", "p")).unwrap().remove(0);
    assert!(check::problems(policy.object, &mesh()).is_empty());
    let (model, problems) = told("", &[SERVICE, &custom("x", "p")].concat());
    assert!(problems.is_empty());
    assert_eq!(access(&model).policies[0].action(), ir::AccessAction::Deny);
}

/// Gateway API's ExternalAuth.
#[test]
fn a_rule_of_a_route_asks_or_is_closed() {
    let rule = |filter: &str| {
        let route = format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: a}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: s}}], rules: [{{filters: [{{type: ExternalAuth, externalAuth: {filter}}}], backendRefs: [{{name: s, port: 80}}]}}]}}\n"
        );
        let (model, problems) = told("", &[SERVICE, &route].concat());
        let routes = model.routes["a/s.a.svc.cluster.local"].producer.clone().unwrap();
        (routes.http[0].clone(), problems)
    };
    let to = "backendRef: {name: s, port: 80}";
    let (http, problems) = rule(&format!(
        "{{protocol: HTTP, {to}, http: {{path: /check, allowedHeaders: [x-a], allowedResponseHeaders: [x-b]}}, forwardBody: {{maxSize: 10}}}}"
    ));
    let asked = http.authorization.unwrap();
    assert!(problems.is_empty() && http.response.is_none(), "{problems:?}");
    assert_eq!(
        (asked.protocol(), &*asked.service, asked.port),
        (ir::AuthzProtocol::AuthzHttp, "a/s.a.svc.cluster.local", 80)
    );
    assert_eq!(
        (&*asked.path_prefix, &*asked.request_headers[0], &*asked.upstream_on_allow[0]),
        ("/check", "x-a", "x-b")
    );
    assert_eq!((asked.all_upstream_on_allow, asked.body.map(|body| body.max_bytes)), (false, Some(10)));
    let (grpc, _) = rule(&format!("{{protocol: GRPC, {to}, grpc: {{}}}}"));
    assert_eq!(grpc.authorization.unwrap().protocol(), ir::AuthzProtocol::AuthzGrpc);
    let (all, _) = rule(&format!("{{protocol: HTTP, {to}, http: {{}}}}"));
    assert!(all.authorization.unwrap().all_upstream_on_allow);
    for wrong in [
        format!("{{protocol: TCP, {to}}}"),
        format!("{{protocol: HTTP, {to}, grpc: {{}}}}"),
        format!("{{protocol: GRPC, {to}, http: {{}}}}"),
        format!("{{protocol: HTTP, {to}, http: {{path: check}}}}"),
        format!("{{protocol: HTTP, {to}, http: {{allowedHeaders: ['*']}}}}"),
        format!("{{protocol: HTTP, {to}, forwardBody: {{maxSize: 10485761}}}}"),
    ] {
        let (rule, problems) = rule(&wrong);
        assert_eq!(rule.response.map(|response| response.status), Some(500), "{wrong}");
        assert_eq!((problems.len(), rule.authorization), (1, None), "{wrong}: {problems:?}");
    }
    // Of these the route's status tells, as of other backends.
    for nobody in ["name: nobody, port: 80", "name: s, port: 81", "name: s", "name: s, namespace: b, port: 80"] {
        let (rule, problems) = rule(&format!("{{protocol: HTTP, backendRef: {{{nobody}}}}}"));
        assert_eq!(rule.response.map(|response| response.status), Some(500), "{nobody}");
        assert_eq!((problems.len(), rule.authorization), (0, None), "{nobody}: {problems:?}");
    }
}
