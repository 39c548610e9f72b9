//! Traces: what endpoints are told, and what a collector in memory gets. The exporter is the product's ([`crate::spans::export`]).

use super::*;
use crate::{
    downstream::gateway::Gateway, spans::queue::Dropped, telemetry::rules::Telemetry, upstream::error::ConnectError,
};
use karst_api::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, Span, SpanKind, StatusCode, any_value::Value,
};
use prost::Message;
use std::{cell::Cell, collections::BTreeSet, sync::atomic::Ordering::Relaxed};

pub(super) const COLLECTOR: &str = "ns/collector.ns.svc.cluster.local";
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// A batch has been sent by then, and it is known what has become of it.
pub(super) const KNOWN: Duration = Duration::from_millis(1100);
/// A collector that has come back has been asked by then.
const LONGEST_PAUSE: Duration = Duration::from_millis(30_100);

fn collector_address() -> SocketAddr {
    ([10, 0, 0, 77], 4317).into()
}

/// A collector in the mesh.
pub(super) fn collector(s: &mut Snapshot) {
    let ip = collector_address().ip().to_string();
    let mut pod = testing::pod("collector", &ip, &[(COLLECTOR, &[(4317, 4317)])]);
    pod.tunnel_protocol = 0;
    let service = testing::service("collector", "10.96.0.9", &[(4317, 4317)]);
    let both = [
        (pod.uid.clone(), karst_api::workload::address::Type::Workload(pod)),
        (COLLECTOR.to_string(), karst_api::workload::address::Type::Service(service)),
    ];
    for (name, address) in both {
        let address = karst_api::workload::Address { r#type: Some(address) };
        s.mesh.put_address(&name, &address.encode_to_vec()).unwrap();
    }
}

/// The same, and a Telemetry that sends spans there.
fn traced(rate: u32, change: impl FnOnce(&mut ir::Tracing, &mut ir::Collector)) -> impl FnOnce(&mut Snapshot) {
    let mut to = ir::Collector { service: COLLECTOR.into(), port: 4317, ..Default::default() };
    let mut tracing = ir::Tracing { per_ten_thousand: rate, ..Default::default() };
    change(&mut tracing, &mut to);
    tracing.collector = Some(to);
    traced_so(tracing)
}

fn traced_so(tracing: ir::Tracing) -> impl FnOnce(&mut Snapshot) {
    let telemetry = Telemetry::new(&ir::Telemetry { tracing: Some(tracing), ..Default::default() }).unwrap();
    move |s| {
        collector(s);
        s.gateway = Some(Arc::new(Gateway { telemetry: Some(Arc::new(telemetry)), ..Default::default() }));
    }
}

/// What a collector has got: path, headers, body.
pub(super) type Exports = Rc<RefCell<Vec<(String, HeaderMap, Bytes)>>>;

/// A collector that takes everything, by HTTP/2 if it is gRPC that it speaks.
pub(super) fn collect(m: &Mesh, grpc: bool) -> Exports {
    let exports = Exports::default();
    let all = exports.clone();
    m.open(collector_address(), grpc, Rc::new(move |r| Box::pin(taken(r, grpc, all.clone()))));
    exports
}

async fn taken(r: Request<Incoming>, grpc: bool, all: Exports) -> io::Result<Response<Payload>> {
    let (parts, body) = r.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    all.borrow_mut().push((parts.uri.path().to_string(), parts.headers, body));
    let message = ExportTraceServiceResponse::default().encode_to_vec();
    let ok = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let frame = [&[0, 0, 0, 0, 0][..], &message].concat();
    let body = if grpc {
        Full::new(Bytes::from(frame)).with_trailers(async move { Some(Ok(ok)) }).boxed_unsync()
    } else {
        payload("")
    };
    Ok(Response::new(body))
}

/// What a collector does.
#[derive(Clone, Copy, Debug)]
enum Takes {
    All,
    /// It breaks off.
    Nothing,
    /// What has something in it is not answered.
    Questions,
    /// It reads, and answers with this status.
    Answers(u16),
}

/// A collector that does this, by HTTP/2 if it is gRPC that it speaks; what it reads whole is there afterwards.
fn collect_so(m: &Mesh, grpc: bool, exports: &Exports, does: &Rc<Cell<Takes>>) {
    let (all, does) = (exports.clone(), does.clone());
    let application = move |r| -> Answering { Box::pin(taken_so(r, grpc, all.clone(), does.get())) };
    m.open(collector_address(), grpc, Rc::new(application));
}

async fn taken_so(r: Request<Incoming>, grpc: bool, all: Exports, does: Takes) -> io::Result<Response<Payload>> {
    if let Takes::Nothing = does {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let before = all.borrow().len();
    let mut answer = taken(r, grpc, all.clone()).await?;
    let has_spans = all.borrow()[before].2.len() > 5;
    match does {
        Takes::Questions if has_spans => pending().await,
        Takes::Answers(status) => *answer.status_mut() = http::StatusCode::from_u16(status).unwrap(),
        Takes::All | Takes::Nothing | Takes::Questions => {}
    }
    Ok(answer)
}

/// How many spans a collector has taken.
fn exported_spans(m: &Mesh) -> u64 {
    m.worker.shared.metrics.spans.exported.load(Relaxed)
}

/// Until everything that has been asked for is exported.
pub(super) async fn exported() {
    tokio::time::sleep(Duration::from_secs(30)).await;
}

fn spans_of(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
}

fn grpc_spans(exports: &Exports) -> Vec<Span> {
    exports.borrow().iter().flat_map(|(_, _, body)| spans_of(&body[5..])).collect()
}

fn tag(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|kv| kv.key == key).and_then(|kv| kv.value.clone()?.value);
    match found {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(n)) => n.to_string(),
        _ => String::new(),
    }
}

fn with(name: &'static str, value: &'static str) -> Request<Payload> {
    let mut request = get("/path?q=1");
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

fn dropped(m: &Mesh) -> (u64, u64) {
    let counts = &m.worker.shared.metrics.spans;
    (counts.dropped(Dropped::QueueFull), counts.dropped(Dropped::ExportFailed))
}

#[test]
fn a_collector_gets_both_spans_in_order() {
    run(async {
        let tags = |t: &mut ir::Tracing, c: &mut ir::Collector| {
            let header = ir::TagSource { name: "x-user".into(), or: "nobody".into() };
            let format = "%CEL(response.code)% by %UPSTREAM_CLUSTER%".to_string();
            t.tags = vec![
                ir::CustomTag { name: "user".into(), value: Some(ir::custom_tag::Value::Header(header)) },
                ir::CustomTag { name: "end".into(), value: Some(ir::custom_tag::Value::Format(format)) },
                ir::CustomTag { name: "user_agent".into(), value: Some(ir::custom_tag::Value::Literal("own".into())) },
            ];
            c.headers = vec![ir::CollectorHeader { name: "x-token".into(), value: "t".into(), ..Default::default() }];
        };
        let m = Mesh::of(traced(10_000, tags), |_, _| status(503));
        let exports = collect(&m, true);
        assert_eq!(m.ask(with("traceparent", PARENT)).await.0, 503);
        exported().await;
        let (path, headers, _) = &exports.borrow()[0];
        assert_eq!(
            (&**path, &headers["content-type"], &headers["x-token"]),
            (EXPORT, &"application/grpc".parse().unwrap(), &"t".parse().unwrap())
        );
        let spans = grpc_spans(&exports);
        let [server, client] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((server.kind(), client.kind()), (SpanKind::Server, SpanKind::Client));
        assert_eq!(server.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
        assert_eq!(client.parent_span_id, server.span_id);
        assert!(
            server.trace_id == client.trace_id
                && server.trace_id == 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
        );
        assert!(server.start_time_unix_nano <= client.start_time_unix_nano);
        for span in [server, client] {
            assert_eq!(span.status.as_ref().unwrap().code(), StatusCode::Error);
            for (key, value) in [
                ("component", "proxy"),
                ("http.status_code", "503"),
                ("error", "true"),
                ("upstream_cluster", "inbound-vip|80|http|s.ns.svc.cluster.local"),
                ("istio.namespace", "ns"),
                ("istio.mesh_id", "cluster.local"),
                ("istio.destination_namespace", "ns"),
                ("istio.destination_instance_name", "p0"),
                ("http.response.status_code", "503"),
                ("user", "nobody"),
                ("end", "503 by inbound-vip|80|http|s.ns.svc.cluster.local"),
                ("user_agent", "own"),
            ] {
                assert_eq!(tag(span, key), value, "{key} of {}", span.name);
            }
            let keys: BTreeSet<&str> = span.attributes.iter().map(|kv| &*kv.key).collect();
            assert_eq!(keys.len(), span.attributes.len(), "each key stands once");
        }
        assert_eq!(server.name, "s.ns.svc.cluster.local:80/*");
        assert_eq!(
            (tag(server, "http.url"), tag(server, "peer.address")),
            ("http://s/path?q=1".into(), "10.0.0.99".into())
        );
        assert!(tag(server, "node_id").starts_with("waypoint~1.1.1.1~own.ns~"));
        assert_eq!(client.name, "router inbound-vip|80|http|s.ns.svc.cluster.local; egress");
        assert_eq!(tag(client, "peer.address"), "10.0.0.1:8080");
        // The endpoint goes on from the client span.
        let seen = &m.seen.borrow()[0].headers["traceparent"];
        let context = |span: &[u8]| span.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let wanted = format!("00-{}-{}-01", context(&client.trace_id), context(&client.span_id));
        assert_eq!(seen.to_str().unwrap(), wanted);
        assert_eq!(dropped(&m), (0, 0));
    });
}

#[test]
fn each_attempt_has_its_span() {
    run(async {
        let change = |s: &mut Snapshot| {
            retry(1, |r| (r.server_error, r.reset) = (true, true))(s);
            traced(10_000, |_, _| {})(s);
        };
        let m = Mesh::of(change, |n, _| if n == 0 { Does::Break } else { status(200) });
        let exports = collect(&m, true);
        let (code, _) = m.ask(get("/")).await;
        exported().await;
        let spans = grpc_spans(&exports);
        let [server, first, second] = &spans[..] else { panic!("{code} {spans:?}") };
        assert!(server.parent_span_id.is_empty(), "the trace begins here");
        assert!(first.parent_span_id == server.span_id && second.parent_span_id == server.span_id);
        assert_eq!(
            (tag(first, "error"), tag(first, "response_flags"), tag(first, "retry.count")),
            ("true".into(), "UC".into(), String::new())
        );
        assert_eq!(
            (tag(second, "error"), tag(second, "http.status_code"), tag(second, "retry.count")),
            (String::new(), "200".into(), "1".into())
        );
        assert!(server.status.is_none() && tag(server, "http.status_code") == "200");
        let seen = m.seen.borrow();
        assert_ne!(seen[0].headers["traceparent"], seen[1].headers["traceparent"]);
        assert_eq!(seen[0].headers["x-request-id"].as_bytes()[14], b'9', "the mark of sampling");
    });
}

#[test]
fn what_is_not_sampled_is_not_told() {
    run(async {
        let m = Mesh::of(traced(0, |_, _| {}), |_, _| status(200));
        let exports = collect(&m, true);
        let off = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        m.ask(with("traceparent", off)).await;
        m.ask(with("traceparent", "not-of-its-form")).await;
        m.ask(get("/")).await;
        m.ask(with("x-envoy-force-trace", "true")).await;
        exported().await;
        assert_eq!(grpc_spans(&exports).len(), 2, "the one that is forced");
        let seen = m.seen.borrow();
        let told = |n: usize| seen[n].headers["traceparent"].to_str().unwrap().to_string();
        assert_eq!((told(0), told(1)), (off.into(), "not-of-its-form".into()), "they pass as they are");
        assert!(told(2).ends_with("-00") && told(3).ends_with("-01"));
    });
}

#[test]
fn without_a_telemetry_headers_pass_as_they_are() {
    run(async {
        let m = Mesh::of(|_| {}, |_, _| status(200));
        m.ask(with("traceparent", PARENT)).await;
        m.ask(get("/")).await;
        let seen = m.seen.borrow();
        assert_eq!(seen[0].headers["traceparent"], PARENT);
        assert!(!seen[1].headers.contains_key("traceparent"));
    });
}

#[test]
fn a_dead_collector_fails_no_request() {
    run(async {
        // Nobody listens at its address: connections are refused.
        let m = Mesh::of(traced(10_000, |_, _| {}), |_, _| status(200));
        for _ in 0..20 {
            assert_eq!(m.ask(get("/")).await.0, 200);
        }
        exported().await;
        assert_eq!(dropped(&m), (0, 40));
        assert_eq!(exported_spans(&m), 0);
    });
}

/// Nobody listens at the collector's address. Its first batch finds that out; from then on spans are counted as their requests end, no
/// batch is made, and endpoints are told of traces as ever.
#[test]
fn while_a_collector_is_down_spans_are_only_counted() {
    run(async {
        let m = Mesh::of(traced(10_000, |_, _| {}), |_, _| status(200));
        m.ask(get("/")).await;
        assert_eq!(dropped(&m), (0, 0), "it is not known yet");
        tokio::time::sleep(KNOWN).await;
        assert_eq!(dropped(&m), (0, 2));
        for n in 1..=300 {
            assert_eq!(m.ask(with("traceparent", PARENT)).await.0, 200);
            assert_eq!(dropped(&m), (0, 2 + 2 * n), "at once: no batch is waited for");
        }
        let told = |n: usize| m.seen.borrow()[n].headers["traceparent"].to_str().unwrap().to_string();
        let spans: BTreeSet<String> = (1..=300).map(|n| told(n)[36..52].to_string()).collect();
        assert_eq!(spans.len(), 300, "each request has a span of its own");
        assert!((1..=300).all(|n| told(n).starts_with(&PARENT[..36]) && told(n).ends_with("-01")), "{spans:?}");
        assert!(told(0).ends_with("-01") && m.seen.borrow()[0].headers["x-request-id"].as_bytes()[14] == b'9');
    });
}

/// What waits when it dies is dropped, and counted once: a full batch that is on its way, and one that is being written.
#[test]
fn a_collector_that_dies_and_comes_back() {
    run(async {
        for protocol in [ir::CollectorProtocol::OtlpGrpc, ir::CollectorProtocol::OtlpHttp] {
            let m = Mesh::of(traced(10_000, move |_, c| c.set_protocol(protocol)), |_, _| status(200));
            let grpc = protocol == ir::CollectorProtocol::OtlpGrpc;
            let (exports, does) = (Exports::default(), Rc::new(Cell::new(Takes::All)));
            collect_so(&m, grpc, &exports, &does);
            m.ask(get("/")).await;
            tokio::time::sleep(KNOWN).await;
            assert_eq!((exported_spans(&m), dropped(&m)), (2, (0, 0)));
            does.set(Takes::Nothing);
            for _ in 0..300 {
                assert_eq!(m.ask(get("/")).await.0, 200);
            }
            // So long that the pauses are as long as they get.
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!((exported_spans(&m), dropped(&m)), (2, (0, 600)), "{protocol:?}");
            does.set(Takes::All);
            tokio::time::sleep(LONGEST_PAUSE).await;
            assert_eq!(exports.borrow().len(), 2, "it was asked once whether it takes something");
            m.ask(get("/")).await;
            tokio::time::sleep(KNOWN).await;
            assert_eq!((exported_spans(&m), dropped(&m)), (4, (0, 600)), "{protocol:?}");
            assert_eq!(exports.borrow().len(), 3);
        }
    });
}

#[test]
fn a_collector_that_is_down_is_asked_by_a_message_without_spans() {
    run(async {
        for (protocol, empty) in [
            (ir::CollectorProtocol::OtlpGrpc, &[0_u8; 5][..]),
            (ir::CollectorProtocol::OtlpHttp, &b""[..]),
            (ir::CollectorProtocol::Zipkin, &b"[]"[..]),
        ] {
            let m = Mesh::of(traced(10_000, move |_, c| c.set_protocol(protocol)), |_, _| status(200));
            m.ask(get("/")).await;
            tokio::time::sleep(KNOWN).await;
            assert_eq!(dropped(&m), (0, 2));
            let grpc = protocol == ir::CollectorProtocol::OtlpGrpc;
            let exports = collect(&m, grpc);
            // Nobody calls anything meanwhile: the first pause is at most a second.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let asked = exports.borrow().clone();
            let [(_, headers, body)] = &asked[..] else { panic!("{protocol:?}: {asked:?}") };
            assert_eq!(body, empty, "{protocol:?}");
            assert!(grpc || headers["content-length"] == empty.len().to_string(), "{protocol:?}: {headers:?}");
            m.ask(get("/")).await;
            tokio::time::sleep(KNOWN).await;
            assert_eq!((exported_spans(&m), dropped(&m)), (2, (0, 2)), "{protocol:?}");
        }
    });
}

#[test]
fn a_collector_that_stays_away_is_tried_ever_less_often() {
    run(async {
        let m = Mesh::of(traced(10_000, |_, _| {}), |_, _| status(200));
        let tries = Rc::new(Cell::new(0));
        let own = tries.clone();
        m.memory.fail(collector_address(), move || {
            own.set(own.get() + 1);
            ConnectError::Timeout
        });
        for _ in 0..600 {
            m.ask(get("/")).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // Its batch, five pauses that grow, and then one of 15 to 30 s after the other.
        assert!((20..=48).contains(&tries.get()), "{}", tries.get());
        assert_eq!(dropped(&m), (0, 1200));
    });
}

/// It takes connections and nothing else: a batch has its time, and so has each question after it.
#[test]
fn a_collector_that_never_answers_fails_no_request() {
    run(async {
        let m = Mesh::of(traced(10_000, |_, c| c.timeout_ms = 1000), |_, _| status(200));
        let held: Rc<RefCell<Vec<DuplexStream>>> = Rc::default();
        let own = held.clone();
        m.memory.listen(collector_address(), move |io| own.borrow_mut().push(io));
        for _ in 0..5 {
            assert_eq!(m.ask(get("/")).await.0, 200);
        }
        // The batch is sent after a second, and given up after another.
        tokio::time::sleep(KNOWN + Duration::from_secs(1)).await;
        assert_eq!(dropped(&m), (0, 10));
        m.ask(get("/")).await;
        assert_eq!(dropped(&m), (0, 12), "at once");
        exported().await;
        m.ask(get("/")).await;
        assert_eq!((dropped(&m), exported_spans(&m)), ((0, 14), 0), "it has not answered yet");
        let connections = held.borrow().len();
        assert!((5..=6).contains(&connections), "each question has another connection: {connections}");
        // Those that hang go on to hang, one of them for a second yet; another one is served.
        let exports = collect(&m, true);
        tokio::time::sleep(LONGEST_PAUSE + Duration::from_secs(1)).await;
        m.ask(get("/")).await;
        tokio::time::sleep(KNOWN).await;
        assert_eq!((grpc_spans(&exports).len(), dropped(&m)), (2, (0, 14)));
    });
}

/// It answers questions, and hangs as soon as there is something in a message.
#[test]
fn a_collector_that_takes_only_questions_is_sent_ever_less() {
    run(async {
        let m = Mesh::of(traced(10_000, |_, c| c.timeout_ms = 1000), |_, _| status(200));
        let (exports, does) = (Exports::default(), Rc::new(Cell::new(Takes::Questions)));
        collect_so(&m, true, &exports, &does);
        for _ in 0..600 {
            assert_eq!(m.ask(get("/")).await.0, 200);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(KNOWN + Duration::from_secs(1)).await;
        let batches = exports.borrow().iter().filter(|(_, _, body)| body.len() > 5).count();
        assert!((15..=45).contains(&batches), "{batches}");
        assert_eq!((exported_spans(&m), dropped(&m)), (0, (0, 1200)));
    });
}

/// One begins before its collector is known to be down, and has its spans when it is back; one begins meanwhile, and is counted.
#[test]
fn requests_that_outlast_the_trouble_of_their_collector() {
    run(async {
        let slow = |_: usize, seen: &Seen| match seen.uri.path() {
            "/slow" => Does::After(Duration::from_secs(10), Response::new(payload("ok"))),
            _ => status(200),
        };
        let m = Mesh::of(traced(10_000, |_, _| {}), slow);
        let meanwhile = async {
            m.ask(get("/")).await;
            tokio::time::sleep(KNOWN).await;
            assert_eq!(dropped(&m), (0, 2));
            let exports = collect(&m, true);
            m.ask(get("/slow")).await;
            tokio::time::sleep(KNOWN).await;
            assert_eq!((grpc_spans(&exports).len(), dropped(&m)), (2, (0, 4)));
        };
        tokio::join!(m.ask(get("/slow")), meanwhile);
    });
}

#[test]
fn a_batch_that_is_refused_says_nothing_of_the_next_one() {
    run(async {
        let http = |_: &mut ir::Tracing, c: &mut ir::Collector| c.set_protocol(ir::CollectorProtocol::OtlpHttp);
        let m = Mesh::of(traced(10_000, http), |_, _| status(200));
        let (exports, does) = (Exports::default(), Rc::new(Cell::new(Takes::Answers(400))));
        collect_so(&m, false, &exports, &does);
        m.ask(get("/")).await;
        tokio::time::sleep(KNOWN).await;
        assert_eq!((exports.borrow().len(), dropped(&m)), (1, (0, 2)));
        does.set(Takes::All);
        m.ask(get("/")).await;
        tokio::time::sleep(KNOWN).await;
        assert_eq!((exports.borrow().len(), exported_spans(&m), dropped(&m)), (2, 2, (0, 2)), "nobody has asked");
        // Whoever is not let in, or comes too often, is not with the next batch, either.
        does.set(Takes::Answers(429));
        m.ask(get("/")).await;
        tokio::time::sleep(KNOWN).await;
        m.ask(get("/")).await;
        assert_eq!(dropped(&m), (0, 6), "at once");
    });
}

#[test]
fn a_collector_that_is_not_known_is_counted() {
    run(async {
        let m = Mesh::of(traced(10_000, |_, c| c.service = "nobody.example.com".into()), |_, _| status(200));
        assert_eq!(m.ask(get("/")).await.0, 200);
        exported().await;
        assert_eq!(dropped(&m), (0, 2));
    });
}

#[test]
fn otlp_by_http() {
    run(async {
        let http = |_: &mut ir::Tracing, c: &mut ir::Collector| {
            c.set_protocol(ir::CollectorProtocol::OtlpHttp);
            c.path = "/v1/traces".into();
            // By its host alone, as Istio names it.
            c.service = "collector.ns.svc.cluster.local".into();
        };
        let m = Mesh::of(traced(10_000, http), |_, _| status(200));
        let exports = collect(&m, false);
        m.ask(get("/")).await;
        exported().await;
        let (path, headers, body) = &exports.borrow()[0];
        assert_eq!((&**path, &headers["content-type"]), ("/v1/traces", &"application/x-protobuf".parse().unwrap()));
        assert_eq!(headers["host"], "collector.ns.svc.cluster.local:4317");
        assert_eq!(spans_of(body).len(), 2);
        assert_eq!((dropped(&m), exported_spans(&m)), ((0, 0), 2));
    });
}

#[test]
fn zipkin_with_b3() {
    run(async {
        let zipkin = |_: &mut ir::Tracing, c: &mut ir::Collector| {
            c.set_protocol(ir::CollectorProtocol::Zipkin);
            c.path = "/api/v2/spans".into();
        };
        let m = Mesh::of(traced(0, zipkin), |_, _| status(200));
        let exports = collect(&m, false);
        m.ask(with("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1")).await;
        m.ask(with("b3", "0")).await;
        exported().await;
        let (path, headers, body) = &exports.borrow()[0];
        assert_eq!((&**path, &headers["content-type"]), ("/api/v2/spans", &"application/json".parse().unwrap()));
        let spans: serde_json::Value = serde_json::from_slice(body).unwrap();
        assert_eq!(spans.as_array().unwrap().len(), 2);
        let (server, client) = (&spans[0], &spans[1]);
        assert_eq!(
            (&server["traceId"], &server["parentId"]),
            (&"4bf92f3577b34da6a3ce929d0e0e4736".into(), &"00f067aa0ba902b7".into())
        );
        assert_eq!(
            (&client["parentId"], &client["kind"], &server["localEndpoint"]["serviceName"]),
            (&server["id"], &"CLIENT".into(), &"own.ns".into())
        );
        let seen = m.seen.borrow();
        assert_eq!(seen[0].headers["x-b3-spanid"].to_str().unwrap(), client["id"].as_str().unwrap());
        assert!(!seen[0].headers.contains_key("traceparent"));
        assert_eq!(seen[1].headers["b3"], "0");
    });
}

#[test]
fn a_denied_request_has_a_span_of_its_own() {
    run(async {
        let change = |s: &mut Snapshot| {
            s.access.insert(KEY.into(), Arc::new(crate::authz::access::Access::closed()));
            traced(10_000, |_, _| {})(s);
        };
        let m = Mesh::of(change, |_, _| status(200));
        let exports = collect(&m, true);
        assert_eq!(m.ask(get("/")).await.0, 403);
        exported().await;
        let spans = grpc_spans(&exports);
        let [server] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((tag(server, "http.status_code"), server.status.is_none()), ("403".into(), true));
        assert_eq!(m.count(), 0);
    });
}

#[test]
fn batches_wait_for_others_at_most_a_second() {
    run(async {
        let m = Mesh::of(traced(10_000, |_, _| {}), |_, _| status(200));
        let exports = collect(&m, true);
        let asked = Cell::new(0);
        for _ in 0..3 {
            m.ask(get("/")).await;
            asked.set(asked.get() + 1);
        }
        tokio::time::sleep(Duration::from_millis(1001)).await;
        assert_eq!((exports.borrow().len(), grpc_spans(&exports).len()), (1, 2 * asked.get()));
    });
}
