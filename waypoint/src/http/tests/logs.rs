//! The access log for collectors: what one in memory gets. The exporter is the product's ([`crate::spans::export`]).

use super::{
    traces::{COLLECTOR, Exports, KNOWN, collect, collector, exported},
    *,
};
use crate::{downstream::gateway::Gateway, spans::queue::Dropped, telemetry::rules::Telemetry};
use karst_api::otlp::{ExportLogsServiceRequest, ExportTraceServiceRequest, LogRecord, ResourceLogs, any_value::Value};
use prost::Message;
use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

const EXPORT: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

fn to_collector() -> ir::Collector {
    ir::Collector { service: COLLECTOR.into(), port: 4317, ..Default::default() }
}

/// A collector in the mesh, and a Telemetry that sends it the log of requests for which this holds.
fn exporting(filter: &str, change: impl FnOnce(&mut ir::Telemetry)) -> impl FnOnce(&mut Snapshot) {
    let export = ir::LogExport { collector: Some(to_collector()), filter: filter.into(), name: "mesh".into() };
    let mut telemetry = ir::Telemetry { log_exports: vec![export], ..Default::default() };
    change(&mut telemetry);
    let telemetry = Telemetry::new(&telemetry).unwrap();
    move |s| {
        collector(s);
        s.gateway = Some(Arc::new(Gateway { telemetry: Some(Arc::new(telemetry)), ..Default::default() }));
    }
}

fn logs(exports: &Exports) -> Vec<ResourceLogs> {
    let exports = exports.borrow();
    let bodies = exports.iter().filter(|(path, ..)| path == EXPORT).map(|(_, _, body)| &body[5..]);
    bodies.flat_map(|body| ExportLogsServiceRequest::decode(body).unwrap().resource_logs).collect()
}

fn records(exports: &Exports) -> Vec<LogRecord> {
    logs(exports).into_iter().flat_map(|logs| logs.scope_logs).flat_map(|scope| scope.log_records).collect()
}

/// Texts as they are, numbers with a #.
fn attributes(record: &LogRecord) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => format!("#{number}"),
        other => panic!("{other:?}"),
    };
    let all = record.attributes.iter().map(|kv| (kv.key.clone(), text(kv.value.clone().unwrap().value)));
    let all: BTreeMap<_, _> = all.collect();
    assert_eq!(all.len(), record.attributes.len(), "each key stands once");
    all
}

#[test]
fn a_collector_gets_the_line_its_fields_and_its_trace() {
    run(async {
        let traced = |telemetry: &mut ir::Telemetry| {
            let collector = Some(to_collector());
            telemetry.tracing = Some(ir::Tracing { collector, per_ten_thousand: 10_000, ..Default::default() });
        };
        let m = Mesh::of(exporting("", traced), |_, _| status(503));
        let exports = collect(&m, true);
        let mut request = get("/path?q=1");
        request.headers_mut().insert("user-agent", "a \"browser\"".parse().unwrap());
        assert_eq!(m.ask(request).await.0, 503);
        exported().await;
        let all = records(&exports);
        let [record] = &all[..] else { panic!("{exports:?}") };
        let seen = attributes(record);
        for (name, value) in [
            ("method", "GET"),
            ("path", "/path?q=1"),
            ("protocol", "HTTP/1.1"),
            ("response_code", "#503"),
            ("response_flags", "-"),
            ("response_code_details", "via_upstream"),
            ("bytes_received", "#0"),
            ("bytes_sent", "#2"),
            ("user_agent", "a \"browser\""),
            ("authority", "s"),
            ("upstream_host", "10.0.0.1:8080"),
            ("upstream_cluster", "inbound-vip|80|http|s.ns.svc.cluster.local"),
            ("downstream_remote_address", "10.0.0.99:1234"),
            ("downstream_peer", "spiffe://cluster.local/ns/app/sa/web"),
        ] {
            assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name} of {seen:?}");
        }
        assert!(!seen.contains_key("connection_termination_details"), "nothing is not told: {seen:?}");
        let Some(Value::StringValue(line)) = record.body.clone().unwrap().value else { panic!("{record:?}") };
        assert!(LINES.with_borrow(|lines| lines.contains(&line)), "{line}");
        assert!(record.time_unix_nano > 0 && record.observed_time_unix_nano >= record.time_unix_nano);
        // By its span it is found from the trace.
        let of_spans = |path: &str| path.ends_with("TraceService/Export");
        let body = exports.borrow().iter().find(|(path, ..)| of_spans(path)).unwrap().2.clone();
        let spans = ExportTraceServiceRequest::decode(&body[5..]).unwrap();
        let server = spans.resource_spans[0].scope_spans[0].spans[0].clone();
        assert_eq!((&record.trace_id, &record.span_id, record.flags), (&server.trace_id, &server.span_id, 1));
        // Who tells of it.
        let resource = logs(&exports)[0].resource.clone().unwrap();
        let resource = attributes(&LogRecord { attributes: resource.attributes, ..Default::default() });
        assert_eq!((&*resource["service.name"], &*resource["log_name"]), ("own.ns", "mesh"));
        let counts = &m.worker.shared.metrics.logs;
        assert_eq!((counts.exported.load(Relaxed), counts.dropped(Dropped::ExportFailed)), (1, 0));
    });
}

#[test]
fn only_what_is_asked_for_is_sent_and_the_output_may_be_off() {
    run(async {
        let filter = "response.code >= 400 && request.headers['x-tenant'] == 'a'";
        let m = Mesh::of(exporting(filter, |t| t.no_log = true), |n, _| status(if n == 0 { 200 } else { 503 }));
        let exports = collect(&m, true);
        for (path, tenant) in [("/quiet/0", "a"), ("/quiet/1", "a"), ("/quiet/2", "b")] {
            let mut request = get(path);
            request.headers_mut().insert("x-tenant", tenant.parse().unwrap());
            m.ask(request).await;
        }
        exported().await;
        let paths: Vec<String> = records(&exports).iter().map(|record| attributes(record)["path"].clone()).collect();
        assert_eq!(paths, ["/quiet/1"]);
        assert!(!logged("/quiet/"));
        assert_eq!(records(&exports)[0].trace_id.len(), 0, "it is of no trace");
    });
}

/// Each of several collectors gets what has come in a second at once, and not a message for each request; and each gets all that it has
/// asked for, though a record is written once.
#[test]
fn several_collectors_get_batches() {
    run(async {
        let export = |name: usize| ir::LogExport {
            collector: Some(to_collector()),
            name: format!("log {name}"),
            filter: if name == 0 { "response.code >= 400" } else { "" }.into(),
        };
        let more = |telemetry: &mut ir::Telemetry| telemetry.log_exports = (0..6).map(export).collect();
        let m = Mesh::of(exporting("", more), |_, s| status(if s.uri.path() == "/1" { 503 } else { 200 }));
        let exports = collect(&m, true);
        for path in ["/0", "/1", "/2"] {
            m.ask(get(path)).await;
        }
        exported().await;
        let path = |record: &LogRecord| attributes(record)["path"].clone();
        let paths = |of_one: ResourceLogs| of_one.scope_logs[0].log_records.iter().map(path).collect::<Vec<_>>();
        let mut all: Vec<Vec<String>> = logs(&exports).into_iter().map(paths).collect();
        all.sort_by_key(Vec::len);
        assert_eq!((all.len(), &all[0][..]), (6, &["/1".to_string()][..]));
        assert!(all[1..].iter().all(|paths| *paths == ["/0", "/1", "/2"]), "{all:?}");
    });
}

#[test]
fn a_refused_request_says_by_which_policy_and_rule() {
    run(async {
        let test = ir::AccessTest {
            attribute: ir::Attribute::Path as i32,
            values: vec!["/denied".into()],
            ..Default::default()
        };
        let clause = ir::AccessClause { matches: vec![ir::AccessMatch { tests: vec![test] }] };
        let policy = ir::AccessPolicy {
            name: "ns/deny".into(),
            action: ir::AccessAction::Deny as i32,
            rules: vec![ir::AccessRule { clauses: vec![clause] }],
            ..Default::default()
        };
        let access = crate::authz::access::Access::new(&ir::Access { policies: vec![policy], ..Default::default() });
        let change = |s: &mut Snapshot| {
            s.access.insert(KEY.into(), Arc::new(access.unwrap()));
            exporting("", |_| {})(s);
        };
        let m = Mesh::of(change, |_, _| status(200));
        let exports = collect(&m, true);
        assert_eq!(m.ask(get("/denied")).await.0, 403);
        exported().await;
        let seen = attributes(&records(&exports)[0]);
        let details = "rbac_access_denied_matched_policy[ns[ns]-policy[deny]-rule[0]]";
        assert_eq!((&*seen["response_code"], &*seen["response_code_details"]), ("#403", details));
    });
}

#[test]
fn a_dead_collector_fails_no_request() {
    run(async {
        // Nobody listens at its address: connections are refused.
        let m = Mesh::of(exporting("", |_| {}), |_, _| status(200));
        for _ in 0..20 {
            assert_eq!(m.ask(get("/")).await.0, 200);
        }
        exported().await;
        let counts = &m.worker.shared.metrics.logs;
        assert_eq!((counts.exported.load(Relaxed), counts.dropped(Dropped::ExportFailed)), (0, 20));
        assert_eq!(m.worker.shared.metrics.spans.dropped(Dropped::ExportFailed), 0, "each counts its own");
    });
}

/// One of two collectors is not there: the other one gets every record, and gets it in time.
#[test]
fn a_dead_collector_holds_up_no_other() {
    run(async {
        let two = |telemetry: &mut ir::Telemetry| {
            let dead = ir::Collector { service: "nobody.example.com".into(), port: 4317, ..Default::default() };
            let export = ir::LogExport { collector: Some(dead), name: "dead".into(), ..Default::default() };
            telemetry.log_exports.push(export);
        };
        let m = Mesh::of(exporting("", two), |_, _| status(200));
        let exports = collect(&m, true);
        for n in 0..100 {
            m.ask(get(&format!("/{n}"))).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(KNOWN).await;
        let paths: Vec<String> = records(&exports).iter().map(|record| attributes(record)["path"].clone()).collect();
        assert_eq!(paths, (0..100).map(|n| format!("/{n}")).collect::<Vec<_>>());
        let counts = &m.worker.shared.metrics.logs;
        let dropped = [Dropped::QueueFull, Dropped::ExportFailed].map(|why| counts.dropped(why));
        assert_eq!((counts.exported.load(Relaxed), dropped), (100, [0, 100]));
    });
}
