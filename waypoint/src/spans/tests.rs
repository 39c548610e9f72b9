//! The spans of requests word for word, in both forms, and a worker's batches.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{
    spans::{
        batches::{Batches, OPEN},
        common::{Common, Own},
        encode::{Message, Producer},
        names::is_standard,
        queue::{Batch, CAPACITY, Counts, Dropped, Queue, Signal},
        recorder::{Recorder, flush_in_time},
        request::{Origin, RequestSpans, RequestTrace, begin},
        rules::Tracing,
        tags::{self, Ended},
    },
    telemetry::{
        flag::ResponseFlag,
        stream_info::{Chosen, StreamInfo},
    },
    testing::{run_paused as run, spawn},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use karst_api::{
    otlp::{ExportTraceServiceRequest, Span, SpanKind, StatusCode, any_value::Value},
    route::{self as ir, CollectorProtocol, custom_tag},
    workload::{self as pb, Locality},
};
use karst_proxy::{
    state::{Snapshot, Workload},
    testing::{pod, service, snapshot},
};
use prost::Message as _;
use std::{
    borrow::Cow,
    cell::Cell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::mpsc, time::Instant};

const KEY: &str = "ns/s.ns.svc.cluster.local";
const ID: &str = "00000000-5b6f-9d0f-8f5b-5cd6c1f3a7f4";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// The same as B3.
const B3: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1";
const TOOK: Duration = Duration::from_millis(20);

/// Who this proxy is in these tests.
const OWN: [(&str, &str); 5] = [
    ("istio.canonical_revision", "v1"),
    ("istio.canonical_service", "way"),
    ("istio.mesh_id", "cluster.local"),
    ("istio.namespace", "ns"),
    ("istio.cluster_id", "Kubernetes"),
];

fn named(name: &str, ip: &str, app: &str, revision: &str) -> pb::Workload {
    pb::Workload {
        workload_name: app.into(),
        canonical_name: app.into(),
        canonical_revision: revision.into(),
        locality: Some(Locality { zone: "z1".into(), ..Default::default() }),
        ..pod(name, ip, &[(KEY, &[(80, 8080)])])
    }
}

fn mesh() -> Snapshot {
    let pods = vec![
        named("own", "10.0.1.1", "way", "v1"),
        named("client-1", "10.0.2.1", "client", "latest"),
        named("p-1", "10.0.0.1", "p", "v2"),
        named("q-1", "10.0.0.2", "q", "v3"),
    ];
    snapshot(pods, vec![service("s", "10.96.0.1", &[(80, 8080)])])
}

fn at(mesh: &Snapshot, ip: [u8; 4]) -> Arc<Workload> {
    mesh.workload(ip.into()).unwrap().clone()
}

fn own(is_gateway: bool) -> Own {
    Own {
        node_id: "waypoint~1.1.1.1~own.ns~ns.svc.cluster.local".into(),
        mesh_id: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        namespace: "ns".into(),
        hostname: "own".into(),
        account: "account".into(),
        is_gateway,
    }
}

fn tracing(change: impl FnOnce(&mut ir::Tracing, &mut ir::Collector)) -> Tracing {
    let mut collector = ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
    let mut said = ir::Tracing { per_ten_thousand: 10_000, ..Default::default() };
    change(&mut said, &mut collector);
    Tracing::new(&ir::Tracing { collector: Some(collector), ..said }).unwrap()
}

fn literal(name: &str, value: &str) -> ir::CustomTag {
    ir::CustomTag { name: name.into(), value: Some(custom_tag::Value::Literal(value.into())) }
}

/// A request for a path of the service `s`, which p-1 has answered.
fn info(mesh: &Snapshot) -> StreamInfo {
    let service = mesh.services.get(KEY).unwrap().clone();
    let chosen = Chosen { service: service.clone(), port: 80, subset: "".into(), is_told: true };
    StreamInfo {
        started: Instant::now().into_std(),
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
        method: Method::GET,
        path: Some("/path?q=1".parse().unwrap()),
        authority: Some(HeaderValue::from_static("shop:80")),
        protocol: "HTTP/1.1",
        is_grpc: false,
        user_agent: Some(HeaderValue::from_static("curl/8")),
        request_id: Some(HeaderValue::from_static(ID)),
        forwarded_for: None,
        from: ([10, 0, 2, 1], 40000).into(),
        to: ([10, 96, 0, 1], 80).into(),
        sni: None,
        source: Some(at(mesh, [10, 0, 2, 1])),
        principal: None,
        called: Some(service),
        at_gateway: false,
        destination: Some(Rc::new(chosen)),
        workload: Some((at(mesh, [10, 0, 0, 1]), ([10, 0, 0, 1], 8080).into())),
        route: String::new(),
        answered: 200,
        grpc: None,
        flag: ResponseFlag::None,
        details: Cow::Borrowed(""),
        error: String::new(),
        upstream_ms: None,
        received: Rc::new(Cell::new(3)),
        request_head: 0,
        response_head: 0,
        headers: None,
        carried: None,
        trace: None,
    }
}

/// A request that is traced, whose caller has a span; without attempts.
fn begun(tracing: &Tracing) -> RequestTrace {
    let is_zipkin = tracing.collector.protocol == CollectorProtocol::Zipkin;
    let mut headers = HeaderMap::new();
    let (name, value) = if is_zipkin { ("b3", B3) } else { ("traceparent", PARENT) };
    headers.insert(name, HeaderValue::from_static(value));
    begin(tracing, Origin { scheme: "http", is_external: false }, &mut headers, |_| 0x41, || Ok(())).unwrap()
}

/// The same, with the attempt that was answered.
fn answered(tracing: &Tracing, info: &StreamInfo) -> Box<RequestSpans> {
    let mut trace = begun(tracing);
    trace.attempt(false, Instant::from_std(info.started) + Duration::from_millis(5), 7, &mut HeaderMap::new());
    trace.answered(info.answered, info.grpc, None);
    trace.spans.unwrap()
}

fn written(common: &mut Common, own: &Own, mesh: &Snapshot, ended: Ended<'_>) -> Bytes {
    let producer = Producer { service: "way.ns".into(), attributes: vec![] };
    let mut message = Message::begin(ended.tracing.collector.protocol, &producer, vec![]);
    let workload = at(mesh, [10, 0, 1, 1]);
    tags::write(&mut message, common, (own, Some(&workload)), ended);
    message.finish()
}

fn decoded(message: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(message).unwrap();
    request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
}

/// The spans of a request, by a proxy that has told of nothing before.
fn spans(tracing: &Tracing, info: &StreamInfo, spans: &RequestSpans) -> Vec<Span> {
    let ended = Ended { info, tracing, spans, sent: 5, took: TOOK };
    decoded(&written(&mut Common::default(), &own(false), &mesh(), ended)[5..])
}

/// Tags in their order; numbers with a `#`.
fn tags_of(span: &Span) -> Vec<(String, String)> {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => format!("#{number}"),
        other => format!("{other:?}"),
    };
    span.attributes.iter().map(|kv| (kv.key.clone(), text(kv.value.clone().unwrap().value.unwrap()))).collect()
}

fn tag(span: &Span, key: &str) -> Option<String> {
    tags_of(span).into_iter().find(|(k, _)| k == key).map(|(_, value)| value)
}

fn texts(all: &[&[(&str, &str)]]) -> Vec<(String, String)> {
    all.concat().iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

/// One end of a call.
fn side(side: &str, app: &str, revision: &str, name: &str) -> Vec<(String, String)> {
    let all = [
        ("workload", app),
        ("namespace", "ns"),
        ("cluster_id", "Kubernetes"),
        ("canonical_service", app),
        ("canonical_revision", revision),
        ("workload_type", "deployment"),
        ("instance_name", name),
    ];
    all.iter().map(|(key, value)| (format!("istio.{side}_{key}"), value.to_string())).collect()
}

/// What the spans of [`info`] say.
fn wanted() -> [Vec<(String, String)>; 2] {
    let cluster = "inbound-vip|80|http|s.ns.svc.cluster.local";
    let outcome = [
        ("upstream_cluster", cluster),
        ("upstream_cluster.name", cluster),
        ("http.status_code", "200"),
        ("response_flags", "-"),
        ("http.response.status_code", "#200"),
    ];
    let sides = [side("source", "client", "latest", "client-1"), side("destination", "p", "v2", "p-1")].concat();
    let server = [
        ("component", "proxy"),
        ("node_id", "waypoint~1.1.1.1~own.ns~ns.svc.cluster.local"),
        ("zone", "z1"),
        ("guid:x-request-id", ID),
        ("http.url", "http://shop:80/path?q=1"),
        ("http.method", "GET"),
        ("http.protocol", "HTTP/1.1"),
        ("downstream_cluster", "-"),
        ("user_agent", "curl/8"),
        ("request_size", "3"),
        ("response_size", "5"),
        ("peer.address", "10.0.2.1"),
    ];
    let server_semantics = [
        ("http.request.method", "GET"),
        ("url.scheme", "http"),
        ("url.path", "/path"),
        ("url.query", "q=1"),
        ("server.address", "shop"),
        ("server.port", "#80"),
        ("client.address", "10.0.2.1"),
        ("network.peer.address", "10.0.2.1"),
        ("network.peer.port", "#40000"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "curl/8"),
    ];
    let client = [
        ("component", "proxy"),
        ("http.protocol", "HTTP/1.1"),
        ("peer.address", "10.0.0.1:8080"),
        ("upstream_address", "10.0.0.1:8080"),
    ];
    let client_semantics = [
        ("http.request.method", "GET"),
        ("server.address", "s.ns.svc.cluster.local"),
        ("server.port", "#80"),
        ("url.full", "http://shop:80/path?q=1"),
        ("network.peer.address", "10.0.0.1"),
        ("network.peer.port", "#8080"),
        ("network.protocol.version", "1.1"),
    ];
    let upstream = [("upstream_address", "10.0.0.1:8080")];
    let server = texts(&[&server, &outcome, &upstream, &OWN]);
    let client = texts(&[&client, &outcome, &OWN]);
    [
        [server, sides.clone(), texts(&[&server_semantics])].concat(),
        [client, sides, texts(&[&client_semantics])].concat(),
    ]
}

#[test]
fn the_spans_of_a_request_word_for_word() {
    let (mesh, tracing) = (mesh(), tracing(|_, _| {}));
    let info = info(&mesh);
    let all = spans(&tracing, &info, &answered(&tracing, &info));
    let [server, client] = &all[..] else { unreachable!("{all:?}") };
    assert_eq!([tags_of(server), tags_of(client)], wanted());
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes();
    let second = 1000 * 1_000_000_000;
    let times = |span: &Span| (span.start_time_unix_nano - second, span.end_time_unix_nano - second);
    assert_eq!((&server.name, server.kind()), (&"s.ns.svc.cluster.local:80/*".into(), SpanKind::Server));
    assert_eq!(
        (&client.name, client.kind()),
        (&"router inbound-vip|80|http|s.ns.svc.cluster.local; egress".into(), SpanKind::Client)
    );
    assert_eq!((times(server), times(client)), ((0, 20_000_000), (5_000_000, 20_000_000)));
    assert_eq!((&server.trace_id[..], &client.trace_id[..]), (&trace[..], &trace[..]));
    assert_eq!(server.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    assert_eq!((&client.parent_span_id, &client.span_id[..]), (&server.span_id, &7_u64.to_be_bytes()[..]));
    assert!(server.status.is_none() && client.status.is_none() && server.flags == 1 && client.flags == 1);
    let names = [server, client].into_iter().flat_map(tags_of).map(|(key, _)| key);
    names.for_each(|name| assert!(is_standard(&name), "{name} is not in names.rs"));
}

#[test]
fn both_forms_say_the_same() {
    let (mesh, zipkin) = (mesh(), tracing(|_, c| c.set_protocol(CollectorProtocol::Zipkin)));
    let info = info(&mesh);
    let ended = Ended { info: &info, tracing: &zipkin, spans: &answered(&zipkin, &info), sent: 5, took: TOOK };
    let message = written(&mut Common::default(), &own(false), &mesh, ended);
    let all: Vec<serde_json::Value> = serde_json::from_slice(&message).unwrap();
    let tags = |span: &serde_json::Value| -> BTreeMap<String, String> {
        serde_json::from_value(span["tags"].clone()).unwrap()
    };
    let text = |(key, value): (String, String)| (key, value.trim_start_matches('#').to_string());
    let wanted = wanted().map(|all| all.into_iter().map(text).collect::<BTreeMap<_, _>>());
    assert_eq!([tags(&all[0]), tags(&all[1])], wanted);
    let of = |n: usize| ["traceId", "parentId", "name", "kind"].map(|key| all[n][key].as_str().unwrap().to_string());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    assert_eq!(of(0), [trace, "00f067aa0ba902b7", "s.ns.svc.cluster.local:80/*", "SERVER"]);
    let parent = all[0]["id"].as_str().unwrap();
    assert_eq!(of(1), [trace, parent, "router inbound-vip|80|http|s.ns.svc.cluster.local; egress", "CLIENT"]);
    let times = |n: usize| ["timestamp", "duration"].map(|key| all[n][key].as_u64().unwrap());
    assert_eq!((times(0), times(1)), ([1_000_000_000, 20_000], [1_000_005_000, 15_000]));
}

#[test]
fn attempts_and_their_ends() {
    let (mesh, tracing) = (mesh(), tracing(|_, _| {}));
    let info = StreamInfo { is_grpc: true, grpc: Some(14), protocol: "HTTP/2", ..info(&mesh) };
    let mut request = begun(&tracing);
    let after = |ms: u64| Instant::from_std(info.started) + Duration::from_millis(ms);
    request.leave(None);
    request.attempt(true, after(1), 7, &mut HeaderMap::new());
    request.failed(ResponseFlag::Reset, after(3));
    request.leave(Some((at(&mesh, [10, 0, 0, 2]), ([10, 0, 0, 2], 8080).into())));
    request.attempt(true, after(4), 8, &mut HeaderMap::new());
    request.answered(200, None, None);
    let all = spans(&tracing, &info, &request.spans.unwrap());
    let [server, first, second] = &all[..] else { unreachable!("{all:?}") };
    let tags = |span: &Span, keys: [&str; 9]| keys.map(|key| tag(span, key).unwrap_or_default());
    let keys = [
        "upstream_address",
        "istio.destination_instance_name",
        "http.status_code",
        "grpc.status_code",
        "response_flags",
        "error.type",
        "retry.count",
        "http.request.resend_count",
        "network.protocol.version",
    ];
    assert_eq!(tags(server, keys), ["10.0.0.1:8080", "p-1", "200", "14", "-", "14", "", "", "2"]);
    assert_eq!(tags(first, keys), ["10.0.0.2:8080", "q-1", "0", "", "UC", "UC", "", "", "2"]);
    assert_eq!(tags(second, keys), ["10.0.0.1:8080", "p-1", "200", "14", "-", "14", "1", "#1", "2"]);
    assert_eq!(tag(first, "http.response.status_code"), None);
    assert_eq!(
        (tag(server, "grpc.path"), tag(server, "grpc.authority")),
        (Some("/path?q=1".into()), Some("shop:80".into()))
    );
    let errors = all.iter().map(|span| span.status.as_ref().map(|status| status.code()));
    assert!(errors.eq([Some(StatusCode::Error); 3]));
    let times =
        |span: &Span| (span.start_time_unix_nano / 1_000_000 % 1000, span.end_time_unix_nano / 1_000_000 % 1000);
    assert_eq!([times(server), times(first), times(second)], [(0, 20), (1, 3), (4, 20)]);
    let names = all.iter().flat_map(tags_of).map(|(key, _)| key);
    names.for_each(|name| assert!(is_standard(&name), "{name} is not in names.rs"));
}

#[test]
fn a_request_that_has_gone_nowhere() {
    let (mesh, tracing) = (mesh(), tracing(|t, _| t.no_istio_tags = true));
    let mut info = info(&mesh);
    (info.destination, info.workload, info.called, info.source) = (None, None, None, None);
    (info.answered, info.user_agent) = (0, None);
    info.authority = Some(HeaderValue::from_bytes(b"\xff[::1]:x").unwrap());
    info.forwarded_for = Some(HeaderValue::from_static(" 198.51.100.7 , 10.0.0.9"));
    info.from = SocketAddr::from(([0x2001_u16, 0xdb8, 0, 0, 0, 0, 0, 1], 4000));
    let mut request = begun(&tracing).spans.unwrap();
    request.client = Some(HeaderValue::from_static("mine"));
    let all = spans(&tracing, &info, &request);
    let [server] = &all[..] else { unreachable!("{all:?}") };
    assert_eq!((&*server.name, server.status.as_ref().unwrap().code()), ("GET", StatusCode::Error));
    for (key, value) in [
        ("upstream_cluster", Some("-")),
        ("upstream_address", None),
        ("istio.namespace", None),
        ("istio.source_workload", None),
        ("istio.destination_workload", None),
        ("user_agent", Some("-")),
        ("user_agent.original", None),
        ("http.status_code", Some("0")),
        ("http.response.status_code", None),
        ("error", Some("true")),
        ("error.type", Some("-")),
        ("guid:x-client-trace-id", Some("mine")),
        ("http.url", Some("http://\u{fffd}[::1]:x/path?q=1")),
        ("server.address", Some("\u{fffd}[::1]:x")),
        ("client.address", Some("198.51.100.7")),
        ("peer.address", Some("2001:db8::1")),
        ("network.peer.address", Some("2001:db8::1")),
    ] {
        assert_eq!(tag(server, key).as_deref(), value, "{key}");
    }
}

#[test]
fn at_a_gateway_the_caller_is_the_gateway() {
    let (mesh, tracing) = (mesh(), tracing(|_, c| c.max_path = 3));
    let info = StreamInfo { at_gateway: true, source: None, ..info(&mesh) };
    let all = spans(&tracing, &info, &answered(&tracing, &info));
    for span in &all {
        assert_eq!(tag(span, "istio.source_instance_name").as_deref(), Some("own"));
        assert_eq!(tag(span, "upstream_cluster").as_deref(), Some("outbound|80||s.ns.svc.cluster.local"));
    }
    let cut = [(0, "http.url", "http://shop:80/pa"), (0, "url.path", "/pa"), (1, "url.full", "http://shop:80/pa")];
    for (n, key, value) in cut {
        assert_eq!(tag(&all[n], key).as_deref(), Some(value));
    }
}

#[test]
fn a_users_tag_stands_in_place_of_the_proxys() {
    let mesh = mesh();
    let said = [
        ("istio.destination_workload", "mine"),
        ("zone", ""),
        ("new", "a"),
        ("upstream_address", "there"),
        ("new", "b"),
        ("url.full", "x"),
    ];
    for protocol in [CollectorProtocol::OtlpGrpc, CollectorProtocol::Zipkin] {
        let tracing = tracing(|t, c| {
            t.tags = said.iter().map(|(name, value)| literal(name, value)).collect();
            c.set_protocol(protocol);
        });
        let info = info(&mesh);
        // What was written for others is not used for this, and the other way round.
        let mut common = Common::default();
        let plain = self::tracing(|_, c| c.set_protocol(protocol));
        for tracing in [&plain, &tracing, &plain] {
            let ended = Ended { info: &info, tracing, spans: &answered(tracing, &info), sent: 5, took: TOOK };
            let message = written(&mut common, &own(false), &mesh, ended);
            let all: Vec<BTreeMap<String, String>> = match protocol {
                CollectorProtocol::Zipkin => {
                    let all: Vec<serde_json::Value> = serde_json::from_slice(&message).unwrap();
                    all.into_iter().map(|mut span| serde_json::from_value(span["tags"].take()).unwrap()).collect()
                }
                CollectorProtocol::OtlpGrpc | CollectorProtocol::OtlpHttp => decoded(&message[5..])
                    .iter()
                    .map(|span| {
                        let tags = tags_of(span);
                        let map: BTreeMap<_, _> = tags.iter().cloned().collect();
                        assert_eq!(map.len(), tags.len(), "each name stands once");
                        map
                    })
                    .collect(),
            };
            for span in &all {
                let of = |name: &str| span.get(name).map(String::as_str);
                let is_plain = std::ptr::eq(tracing, &plain);
                let wanted = if is_plain { ("p", None) } else { ("mine", Some("b")) };
                assert_eq!((of("istio.destination_workload").unwrap(), of("new")), wanted);
                assert_eq!(of("upstream_address"), Some(if is_plain { "10.0.0.1:8080" } else { "there" }));
            }
            assert_eq!(all[1].get("zone").map(String::as_str), (!std::ptr::eq(tracing, &plain)).then_some(""));
        }
    }
}

#[test]
fn what_is_kept_follows_the_configuration() {
    let (mesh, tracing) = (mesh(), tracing(|_, _| {}));
    let mut common = Common::default();
    let first = info(&mesh);
    let mut say = |info: &StreamInfo| {
        let ended = Ended { info, tracing: &tracing, spans: &answered(&tracing, info), sent: 5, took: TOOK };
        let all = decoded(&written(&mut common, &own(false), &mesh, ended)[5..]);
        let [server, client] = &all[..] else { unreachable!("{all:?}") };
        ["istio.source_workload", "istio.destination_workload", "upstream_cluster", "upstream_address"].map(|key| {
            assert_eq!(tag(server, key), tag(client, key));
            tag(server, key).unwrap()
        })
    };
    let cluster = "inbound-vip|80|http|s.ns.svc.cluster.local";
    for _ in 0..2 {
        assert_eq!(say(&first), ["client", "p", cluster, "10.0.0.1:8080"]);
    }
    // The same pods by other names, another subset: each is another object.
    let renamed = |of: &Arc<Workload>| Arc::new(Workload { workload_name: "new".into(), ..(**of).clone() });
    let (to, address) = first.workload.clone().unwrap();
    let chosen = first.destination.as_ref().unwrap();
    let subset = Chosen { service: chosen.service.clone(), port: 80, subset: "v2".into(), is_told: true };
    let second = StreamInfo {
        source: first.source.as_ref().map(renamed),
        workload: Some((renamed(&to), address)),
        destination: Some(Rc::new(subset)),
        ..info(&mesh)
    };
    let third = StreamInfo { workload: Some((to, ([10, 0, 0, 1], 9090).into())), ..info(&mesh) };
    let subset = "inbound-vip|80|http/v2|s.ns.svc.cluster.local";
    for _ in 0..2 {
        assert_eq!(say(&second), ["new", "new", subset, "10.0.0.1:8080"]);
        assert_eq!(say(&third), ["client", "p", cluster, "10.0.0.1:9090"]);
        assert_eq!(say(&first), ["client", "p", cluster, "10.0.0.1:8080"]);
    }
}

#[test]
fn what_is_kept_is_bounded() {
    let (mesh, tracing) = (mesh(), tracing(|_, _| {}));
    let mut common = Common::default();
    let endpoint = at(&mesh, [10, 0, 0, 1]);
    let before = Arc::strong_count(&endpoint);
    for port in 1..=1000 {
        let info = StreamInfo { workload: Some((endpoint.clone(), ([10, 0, 0, 1], port).into())), ..info(&mesh) };
        let ended = Ended { info: &info, tracing: &tracing, spans: &answered(&tracing, &info), sent: 5, took: TOOK };
        let all = decoded(&written(&mut common, &own(false), &mesh, ended)[5..]);
        assert_eq!(tag(&all[0], "upstream_address"), Some(format!("10.0.0.1:{port}")));
        assert!(Arc::strong_count(&endpoint) - before <= 256 + 1, "{port}");
    }
    common.forget();
    assert_eq!(Arc::strong_count(&endpoint), before, "nothing of an old state is kept");
}

/// A worker's recorder, and what it hands over.
struct Recorded {
    recorder: Rc<Recorder>,
    queue: mpsc::Receiver<Batch>,
    counts: Arc<Counts>,
    mesh: Snapshot,
}

impl Recorded {
    fn new(is_gateway: bool) -> Self {
        let counts = Arc::<Counts>::default();
        let (sender, queue) = Queue::new(counts.clone());
        Self { recorder: Rc::new(Recorder::new(sender, own(is_gateway))), queue, counts, mesh: mesh() }
    }

    /// A request ends: two spans.
    fn request(&self, tracing: &Tracing) {
        let info = info(&self.mesh);
        let ended = Ended { info: &info, tracing, spans: &answered(tracing, &info), sent: 5, took: TOOK };
        self.recorder.add(Some(&at(&self.mesh, [10, 0, 1, 1])), false, ended);
    }

    fn dropped(&self) -> u64 {
        self.counts.dropped(Dropped::QueueFull)
    }
}

#[test]
fn a_batch_is_handed_over_when_it_is_full() {
    run(async {
        let (mut r, tracing) = (Recorded::new(false), tracing(|_, c| c.set_protocol(CollectorProtocol::OtlpHttp)));
        (0..256).for_each(|_| r.request(&tracing));
        assert!(r.queue.is_empty(), "it has 512 spans, and room for no more");
        r.request(&tracing);
        let batch = r.queue.try_recv().unwrap();
        assert_eq!((batch.count, decoded(&batch.message).len(), r.queue.is_empty()), (512, 512, true));
        assert!(batch.message.len() < 2 << 20, "{} bytes", batch.message.len());
        let request = ExportTraceServiceRequest::decode(&batch.message[..]).unwrap();
        let resource = request.resource_spans[0].resource.clone().unwrap().attributes;
        let service = resource.iter().find(|kv| kv.key == "service.name").unwrap().value.clone().unwrap().value;
        assert_eq!(service, Some(Value::StringValue("account.ns".into())));
        let contexts: Vec<(Vec<u8>, Vec<u8>)> =
            decoded(&batch.message).into_iter().take(2).map(|s| (s.span_id, s.parent_span_id)).collect();
        assert_eq!(contexts[1].1, contexts[0].0, "the spans of one request follow one another");
    });
}

#[test]
fn spans_wait_for_others_at_most_a_second() {
    run(async {
        let (mut r, tracing) = (Recorded::new(true), tracing(|_, c| c.set_protocol(CollectorProtocol::OtlpHttp)));
        spawn(flush_in_time(r.recorder.clone()));
        for _ in 0..2 {
            let began = Instant::now();
            r.request(&tracing);
            tokio::time::sleep(Duration::from_millis(900)).await;
            r.request(&tracing);
            let batch = r.queue.recv().await.unwrap();
            assert_eq!((batch.count, began.elapsed().as_millis() / 10), (4, 100));
            let text = String::from_utf8_lossy(&batch.message).into_owned();
            assert!(text.contains("way.ns"), "a gateway is called by its own name");
            // Nothing is left over, and nothing comes of it.
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(r.queue.is_empty());
        }
    });
}

#[test]
fn beyond_a_full_queue_spans_are_dropped_and_nobody_waits() {
    run(async {
        let (mut r, tracing) = (Recorded::new(false), tracing(|_, _| {}));
        spawn(flush_in_time(r.recorder.clone()));
        (0..256 * (CAPACITY + 1) - 1).for_each(|_| r.request(&tracing));
        assert_eq!(r.recorder.takes(&tracing.collector), Ok(()), "the worker's own batch has room");
        r.request(&tracing);
        assert_eq!((r.queue.len(), r.dropped()), (CAPACITY, 0), "one more is the worker's");
        assert_eq!(r.recorder.takes(&tracing.collector), Err(Dropped::QueueFull), "the next ones are not even begun");
        (0..10).for_each(|_| r.request(&tracing));
        assert_eq!(r.dropped(), 20);
        // What was due stays while there is no place.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!((r.queue.len(), r.dropped()), (CAPACITY, 20));
        r.queue.try_recv().unwrap();
        assert_eq!(r.recorder.takes(&tracing.collector), Ok(()));
        r.request(&tracing);
        assert_eq!((r.queue.len(), r.dropped()), (CAPACITY, 20));
    });
}

#[test]
fn for_a_collector_that_is_down_nothing_is_written() {
    run(async {
        let (mut r, tracing) = (Recorded::new(false), tracing(|_, _| {}));
        spawn(flush_in_time(r.recorder.clone()));
        r.request(&tracing);
        assert!(tracing.collector.health.fail());
        assert_eq!(r.recorder.takes(&tracing.collector), Err(Dropped::ExportFailed));
        r.request(&tracing);
        let failed = |r: &Recorded| r.counts.dropped(Dropped::ExportFailed);
        assert_eq!(failed(&r), 2);
        let (queue, _receiver) = Queue::new(r.counts.clone());
        let batches = Batches::new(Signal::Logs, queue);
        batches.add(&tracing.collector, 3, || unreachable!("no batch is begun"), |_| unreachable!("no item is made"));
        assert_eq!(failed(&r), 5);
        assert_eq!(r.queue.recv().await.unwrap().count, 2, "what was written before is the exporter's to count");
        tracing.collector.health.answer();
        assert_eq!(r.recorder.takes(&tracing.collector), Ok(()));
        r.request(&tracing);
        assert_eq!((r.queue.recv().await.unwrap().count, failed(&r)), (2, 5));
    });
}

#[test]
fn a_worker_that_ends_hands_over_what_it_has() {
    run(async {
        let (r, tracing) = (Recorded::new(false), tracing(|_, _| {}));
        r.request(&tracing);
        let Recorded { recorder, mut queue, counts, .. } = r;
        drop(recorder);
        assert_eq!(queue.try_recv().map(|batch| batch.count).ok(), Some(2));
        let r = Recorded::new(false);
        r.request(&tracing);
        let Recorded { recorder, queue, counts: gone, .. } = r;
        drop(queue);
        drop(recorder);
        assert_eq!([counts, gone].map(|counts| counts.dropped(Dropped::QueueFull)), [0, 2]);
    });
}

#[test]
fn each_collector_has_its_batch_and_old_ones_are_not_kept_open() {
    run(async {
        let mut r = Recorded::new(false);
        let all: Vec<Tracing> = (0..OPEN + 2).map(|_| tracing(|_, _| {})).collect();
        all.iter().for_each(|tracing| (0..2).for_each(|_| r.request(tracing)));
        // So many are open; the two that were opened first have left.
        for tracing in &all[..2] {
            let batch = r.queue.try_recv().unwrap();
            assert!(Arc::ptr_eq(&batch.collector, &tracing.collector) && batch.count == 4);
        }
        assert!(r.queue.is_empty());
    });
}

#[test]
fn a_buffer_that_comes_back_is_used_again() {
    run(async {
        let (mut r, tracing) = (Recorded::new(false), tracing(|_, _| {}));
        let full = async |r: &mut Recorded| {
            (0..257).for_each(|_| r.request(&tracing));
            r.queue.recv().await.unwrap()
        };
        let batch = full(&mut r).await;
        let buffer: Vec<u8> = Vec::with_capacity(4 << 20);
        let memory = buffer.as_ptr()..buffer.as_ptr().wrapping_add(4 << 20);
        batch.buffers.try_send(buffer).unwrap();
        assert!(batch.buffers.try_send(vec![]).is_err(), "one is kept");
        // The batch that was open goes first.
        let (second, third) = (full(&mut r).await, full(&mut r).await);
        assert!(!memory.contains(&second.message.as_ptr()) && memory.contains(&third.message.as_ptr()));
    });
}
