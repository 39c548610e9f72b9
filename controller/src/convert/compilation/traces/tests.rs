//! From Telemetry and mesh configuration to what waypoints and gateways are told of traces.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::convert::{check, compile, tests::mesh};
use karst_api::route::{self as ir, CollectorProtocol, custom_tag};
use karst_manifest::{MeshConfig, Problem, State, parse};
use std::sync::Arc;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: w, namespace: app, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: app}\nspec: {gatewayClassName: CLASS, listeners: []}\n";
const PROVIDERS: &str = "
extensionProviders:
- name: otel
  opentelemetry: {service: jaeger.observability.svc.cluster.local, port: 4317}
- name: otlp-http
  opentelemetry: {service: observability/c.example.com, port: 4318, maxTagLength: 100, http: {path: /v1/traces, timeout: 3s, headers: [{name: x-token, envName: TOKEN}]}, resourceDetectors: {environment: {}}}
- name: zipkin
  zipkin: {service: zipkin.observability.svc.cluster.local, port: 9411, enable64bitTraceId: true, traceContextOption: USE_B3_WITH_W3C_PROPAGATION}
- name: dd
  datadog: {service: dd.svc, port: 8126}
- name: wrong
  opentelemetry: {service: 'a b', port: 4317}
";

fn object(ns: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}\n"
    )
}

/// What a waypoint (or a gateway) is told, and what is reported. `config`: besides the providers.
fn told(config: &str, telemetries: &[(&str, &str, &str)], gateway: bool) -> (Option<ir::Tracing>, Vec<Problem>) {
    let text = POD.replace("CLASS", if gateway { "istio" } else { "istio-waypoint" });
    let text = text + &telemetries.iter().map(|(ns, name, spec)| object(ns, name, spec)).collect::<String>();
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
    let config = MeshConfig::read(&format!("{PROVIDERS}{config}")).unwrap();
    let state = State { objects, mesh_config: Arc::new(config), ..State::default() };
    let (model, problems) = compile(&state, &mesh());
    let telemetry = model.gateways.get("app/w").and_then(|gateway| gateway.telemetry.clone());
    (telemetry.and_then(|t| t.tracing), problems)
}

fn by(telemetry: &str) -> Option<ir::Tracing> {
    let (tracing, problems) = told("", &[("istio-system", "m", telemetry)], false);
    assert!(problems.is_empty(), "{problems:?}");
    tracing
}

#[test]
fn who_names_a_provider_is_traced() {
    assert_eq!(told("", &[], false).0, None);
    assert_eq!(by("{tracing: [{randomSamplingPercentage: 100}]}"), None, "there is no provider");
    let tracing = by("{tracing: [{providers: [{name: otel}], randomSamplingPercentage: 12.5}]}").unwrap();
    let collector = tracing.collector.as_ref().unwrap();
    assert_eq!((tracing.per_ten_thousand, collector.port), (1250, 4317));
    assert_eq!(collector.service, "jaeger.observability.svc.cluster.local");
    assert_eq!(collector.protocol(), CollectorProtocol::OtlpGrpc);
    assert!(!tracing.no_istio_tags && !tracing.ignore_request_id && !tracing.no_propagation);
    assert_eq!(by("{tracing: [{providers: [{name: otel}]}]}").unwrap().per_ten_thousand, 100, "Istio's one per cent");
}

#[test]
fn the_mesh_configuration_comes_first() {
    let defaults = "defaultProviders: {tracing: [zipkin, otel]}\ndefaultConfig: {tracing: {sampling: 5, customTags: {a: {literal: {value: b}}}}}";
    let tracing = told(defaults, &[], false).0.unwrap();
    assert_eq!((tracing.per_ten_thousand, tracing.tags.len()), (500, 1));
    let collector = tracing.collector.unwrap();
    assert_eq!(
        (collector.protocol(), &*collector.path, collector.timeout_ms),
        (CollectorProtocol::Zipkin, "/api/v2/spans", 5000)
    );
    assert!(collector.short_ids && collector.w3c);
    let off = ("app", "n", "{tracing: [{disableSpanReporting: true}]}");
    assert_eq!(told(defaults, &[off], false).0, None);
    assert_eq!(told("enableTracing: true", &[], false).0, None, "as in Istio");
}

#[test]
fn the_nearest_counts_field_by_field() {
    let mesh = (
        "istio-system",
        "m",
        "{tracing: [{providers: [{name: otel}], randomSamplingPercentage: 1, customTags: {a: {literal: {value: b}}, h: {header: {name: X-User, defaultValue: nobody}}}}]}",
    );
    let near = ("app", "n", "{tracing: [{randomSamplingPercentage: 50, enableIstioTags: false}]}");
    let tracing = told("", &[near, mesh], false).0.unwrap();
    assert_eq!((tracing.per_ten_thousand, tracing.no_istio_tags, tracing.tags.len()), (5000, true, 2));
    let user = ir::TagSource { name: "x-user".into(), or: "nobody".into() };
    assert_eq!(tracing.tags[1].value, Some(custom_tag::Value::Header(user)));
    let own = (
        "app",
        "o",
        "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}], tracing: [{providers: [{name: otlp-http}], customTags: {c: {formatter: {value: '%CEL(response.code)% %UPSTREAM_CLUSTER%'}}}, useRequestIdForTraceSampling: false, disableContextPropagation: true}]}",
    );
    let tracing = told("", &[near, mesh, own], false).0.unwrap();
    assert_eq!((tracing.per_ten_thousand, tracing.tags.len(), &*tracing.tags[0].name), (5000, 1, "c"));
    assert!(tracing.ignore_request_id && tracing.no_propagation);
    let collector = tracing.collector.unwrap();
    let header = ir::CollectorHeader { name: "x-token".into(), environment: "TOKEN".into(), ..Default::default() };
    assert_eq!(
        (collector.protocol(), &*collector.path, collector.timeout_ms),
        (CollectorProtocol::OtlpHttp, "/v1/traces", 3000)
    );
    assert_eq!((collector.max_path, collector.environment, &collector.headers[..]), (100, true, &[header][..]));
    for (mode, at_waypoint, at_gateway) in
        [("CLIENT", false, true), ("SERVER", true, false), ("CLIENT_AND_SERVER", true, true)]
    {
        let spec = format!("{{tracing: [{{match: {{mode: {mode}}}, providers: [{{name: otel}}]}}]}}");
        let is = |gateway| told("", &[("app", "t", &spec)], gateway).0.is_some();
        assert_eq!((is(false), is(true)), (at_waypoint, at_gateway), "{mode}");
    }
}

#[test]
fn a_provider_that_cannot_be_used_is_reported() {
    for (name, says) in [("none", "no such provider"), ("dd", "takes no spans"), ("wrong", "is not [NAMESPACE/]HOST")] {
        let spec = format!("{{tracing: [{{providers: [{{name: {name}}}]}}]}}");
        let (tracing, problems) = told("", &[("app", "t", &spec)], false);
        assert_eq!(tracing, None, "{name}");
        let text = format!("{problems:?}");
        assert!(text.contains("spec.tracing[0].providers[0].name") && text.contains(says), "{name}: {text}");
    }
    // At admission, and of files, the mesh configuration is not known.
    let text = object("app", "t", "{tracing: [{providers: [{name: none}]}]}");
    let one = parse::file("t.yaml".as_ref(), &text).unwrap().remove(0);
    assert!(check::problems(one.object, &mesh()).is_empty());
    let text = POD.replace("CLASS", "istio-waypoint") + &text;
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
    let (_, problems) = compile(&State { objects, ..State::default() }, &mesh());
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn tags_that_cannot_be_made_are_refused_and_left_out() {
    for (tag, says) in [
        ("{}", "exactly one of"),
        ("{literal: {value: a}, header: {name: b}}", "exactly one of"),
        ("{header: {name: 'a b'}}", "not the name of a header"),
        ("{environment: {}}", "the name of a variable"),
        ("{formatter: {value: '%NOPE%'}}", "unsupported operator NOPE"),
        ("{formatter: {value: '%RESP(x)%'}}", "not kept"),
        ("{formatter: {value: '%CEL(nope.code)%'}}", "unknown variable"),
    ] {
        let spec = format!(
            "{{tracing: [{{providers: [{{name: otel}}], customTags: {{t: {tag}, good: {{literal: {{value: x}}}}}}}}]}}"
        );
        let (tracing, problems) = told("", &[("app", "t", &spec)], false);
        let text = format!("{problems:?}");
        assert!(text.contains("spec.tracing[0].customTags[t]") && text.contains(says), "{tag}: {text}");
        assert_eq!(tracing.unwrap().tags.len(), 1, "{tag}");
    }
}
