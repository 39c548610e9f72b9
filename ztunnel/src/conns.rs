//! The open connections of one worker: for balancing, for the access log and metrics, and so that a policy that comes
//! later can close what it forbids. A connection is registered before it is authorized, so no change falls between.

use crate::{
    conn::Conn,
    inpod::LocalPod,
    metrics::{Metrics, Reporter},
    outcome::Outcome,
    state::Snapshot,
    tapped,
};
use karst_policy::{Action, Policy, Verdict, Would, authorize, dry_run};
use karst_proxy::{dry_run::summary, tap::Taps, traffic::Traffic};
use karst_rt::{
    clock,
    limited::Limited,
    log::{self, Cause, Format},
};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fmt::Write,
    ops::Deref,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio::sync::Notify;

struct Open {
    conn: Rc<Conn>,
    closing: RefCell<Option<Verdict>>,
    notify: Notify,
    traffic: RefCell<Option<Arc<Traffic>>>,
    flushed: Cell<(u64, u64)>,
    /// What policies in dry run would do to it, as it is logged and counted.
    told: RefCell<Vec<(Arc<str>, Would)>>,
}

/// Connections that are judged anew in one go; then others of the worker have their turn.
const AT_ONCE: usize = 64;

/// The connections of one worker.
pub struct Conns {
    open: RefCell<HashMap<u64, Rc<Open>>>,
    loads: RefCell<HashMap<Arc<str>, u64>>,
    next: Cell<u64>,
    metrics: Arc<Metrics>,
    taps: Arc<Taps>,
    access_log: bool,
    refusals: RefCell<Limited>,
    /// Who causes lines of the log: the pods that are served, by `namespace/name`, and what has been found so far, by workload.
    pods: RefCell<HashMap<String, Arc<Cause>>>,
    causes: RefCell<HashMap<Arc<str>, Arc<Cause>>>,
}

/// A registered connection; dropping it without [`Guard::end`] counts it as drained.
pub struct Guard {
    all: Rc<Conns>,
    id: u64,
    open: Rc<Open>,
    ended: bool,
}

impl Conns {
    /// An empty registry.
    pub fn new(metrics: Arc<Metrics>, taps: Arc<Taps>, access_log: bool) -> Rc<Self> {
        let (open, loads, next, refusals) = (RefCell::default(), RefCell::default(), Cell::new(0), RefCell::default());
        let (pods, causes) = (RefCell::default(), RefCell::default());
        Rc::new(Self { open, loads, next, metrics, taps, access_log, refusals, pods, causes })
    }
    /// From now on a pod's lines of the log are its own.
    pub fn serve(&self, pod: &LocalPod) {
        self.pods.borrow_mut().insert(pod.key.clone(), pod.usage.log.clone());
        self.causes.borrow_mut().clear();
    }
    /// A pod is not served any more.
    pub fn leave(&self, pod: &LocalPod) {
        self.pods.borrow_mut().retain(|_, cause| !Arc::ptr_eq(cause, &pod.usage.log));
        self.causes.borrow_mut().clear();
    }
    /// Writes a line about a connection, as one of its pod's.
    fn write(&self, conn: &Conn, text: String) {
        let own = match conn.reporter {
            Reporter::Source => &conn.source,
            Reporter::Destination => &conn.destination,
        };
        let Some(own) = own else { return log::line(text) };
        let mut causes = self.causes.borrow_mut();
        if let Some(cause) = causes.get(&own.uid) {
            return log::line_of(cause, text);
        }
        let pod = self.pods.borrow().get(&format!("{}/{}", own.namespace, own.name)).cloned();
        // None: it has left, and what is open ends.
        let Some(cause) = pod else { return log::line(text) };
        log::line_of(&cause, text);
        causes.insert(own.uid.clone(), cause);
    }
    /// May a refusal be logged? Then: how many of the reason were left out before it. Whoever connects again and again must not fill
    /// the log.
    pub fn logs_refusal(&self, reason: &'static str) -> Option<u64> {
        self.refusals.borrow_mut().pass(reason, clock::Instant::now())
    }
    /// Registers a connection.
    pub fn add(self: &Rc<Self>, conn: Conn) -> Guard {
        let id = self.next.get();
        self.next.set(id + 1);
        if let Some(workload) = &conn.destination {
            *self.loads.borrow_mut().entry(workload.uid.clone()).or_default() += 1;
        }
        self.gauge(conn.reporter, 1);
        let open = Rc::new(Open {
            conn: Rc::new(conn),
            closing: RefCell::default(),
            notify: Notify::new(),
            traffic: RefCell::default(),
            flushed: Cell::default(),
            told: RefCell::default(),
        });
        self.open.borrow_mut().insert(id, open.clone());
        Guard { all: self.clone(), id, open, ended: false }
    }
    fn gauge(&self, reporter: Reporter, by: i64) {
        match reporter {
            Reporter::Source => &self.metrics.open_source,
            Reporter::Destination => &self.metrics.open_destination,
        }
        .fetch_add(by, Relaxed);
    }
    /// Open connections to a workload.
    pub fn load(&self, uid: &str) -> u64 {
        self.loads.borrow().get(uid).copied().unwrap_or(0)
    }
    /// Logs (in one line) and counts what policies in dry run would do to a connection, and what is not told yet.
    fn tell(&self, open: &Open, all: &[(&Policy, Would)]) {
        let before = open.told.take();
        let (mut now, mut new) = (Vec::with_capacity(all.len()), Vec::new());
        for (policy, would) in all {
            let one = (Arc::<str>::from(policy.key()), *would);
            if !before.contains(&one) {
                self.metrics.dry_runs.count(&one.0, policy.action == Action::Deny, *would);
                new.push(one.clone());
            }
            now.push(one);
        }
        open.told.replace(now);
        let Some((would, policies)) = summary(new.iter().map(|(k, w)| (&**k, *w))) else { return };
        if self.access_log {
            let more = [("dry_run.policy", policies.as_str()), ("dry_run.result", would.result())];
            self.line(&open.conn, tracing::Level::INFO, would.text(), &more);
        }
    }
    /// After a change: closes what is no longer allowed, a few connections at a time, each by the newest of what is known then. (A
    /// change meanwhile means another pass for those that have been judged already.)
    pub async fn recheck<S: Deref<Target = Snapshot>>(&self, newest: impl Fn() -> S) {
        let all: Vec<u64> = self.open.borrow().keys().copied().collect();
        let mut rest = all.chunks(AT_ONCE).peekable();
        while let Some(some) = rest.next() {
            self.recheck_some(some, &newest());
            if rest.peek().is_some() {
                tokio::task::yield_now().await;
            }
        }
    }
    fn recheck_some(&self, some: &[u64], snapshot: &Snapshot) {
        let mut of = HashMap::new();
        for id in some {
            let Some(open) = self.open.borrow().get(id).cloned() else { continue };
            let (Some(check), Some(pod)) = (&open.conn.check, &open.conn.pod) else { continue };
            // Those of the pod as it is known now: its list of policies may be what changed. One that has not arrived is on its
            // way: the connection was allowed before, and will be checked again. (The pod is held, so that no other one can be
            // where it was.)
            let (_, policies) =
                of.entry(Arc::as_ptr(pod)).or_insert_with(|| (pod.clone(), snapshot.policies_of_own(&pod.own()).ok()));
            let Some(policies) = policies else { continue };
            self.tell(&open, &dry_run(policies.iter().copied(), check));
            let verdict = authorize(policies.iter().copied(), check);
            if !verdict.is_allow() {
                self.metrics.closed_by_policy.fetch_add(1, Relaxed);
                *open.closing.borrow_mut() = Some(verdict);
                open.notify.notify_one();
            }
        }
    }
    /// Adds what was carried since the last time to the metrics, so that long connections are seen.
    pub fn flush(&self) {
        for open in self.open.borrow().values() {
            open.flush();
        }
    }
    /// For the admin page.
    pub fn dump(&self) -> Vec<serde_json::Value> {
        let now = Instant::now();
        let one = |o: &Rc<Open>| {
            let conn = &o.conn;
            serde_json::json!({
                "direction": if conn.reporter == Reporter::Source { "outbound" } else { "inbound" },
                "src": conn.source_addr.to_string(),
                "originalDst": conn.destination_addr.to_string(),
                "actualDst": conn.hbone_addr.unwrap_or(conn.destination_addr).to_string(),
                "pod": conn.local_pod(),
                "srcIdentity": conn.source_identity.as_ref().map(|i| i.to_string()),
                "dstWorkload": conn.destination.as_ref().map(|w| w.uid.to_string()),
                "protocol": if conn.mtls { "HBONE" } else { "TCP" },
                "bytesFromClient": conn.counts.from_client.get(),
                "bytesToClient": conn.counts.to_client.get(),
                "ageMs": now.duration_since(conn.started).as_millis() as u64,
            })
        };
        self.open.borrow().values().map(one).collect()
    }
}

impl Open {
    fn flush(&self) {
        if let Some(traffic) = &*self.traffic.borrow() {
            let now = (self.conn.counts.from_client.get(), self.conn.counts.to_client.get());
            let before = self.flushed.replace(now);
            traffic.received.fetch_add(now.0 - before.0, Relaxed);
            traffic.sent.fetch_add(now.1 - before.1, Relaxed);
        }
    }
}

impl Guard {
    /// The connection.
    pub fn conn(&self) -> &Rc<Conn> {
        &self.open.conn
    }
    /// Who looks at the traffic of this process.
    pub fn taps(&self) -> &Arc<Taps> {
        &self.all.taps
    }
    /// It has come about: it counts as opened.
    pub fn established(&self) {
        let traffic = self.open.conn.series(&self.all.metrics, "-");
        traffic.opened.fetch_add(1, Relaxed);
        *self.open.traffic.borrow_mut() = Some(traffic);
        self.all.taps.tell(|| tapped::opened(self.conn()));
        if self.all.access_log && tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            self.all.line(self.conn(), tracing::Level::DEBUG, "connection opened", &[]);
        }
    }
    /// It goes on, though the process that carried it was killed.
    pub fn resumed(&self) {
        if self.all.access_log {
            self.all.line(self.conn(), tracing::Level::INFO, "connection resumed after a crash", &[]);
        }
    }
    /// Policies in dry run would have done this to it.
    pub fn dry_run(&self, all: &[(&Policy, Would)]) {
        self.all.tell(&self.open, all);
    }
    /// Waits until a policy forbids it.
    pub async fn forbidden(&self) -> Verdict {
        loop {
            if let Some(v) = self.open.closing.borrow().clone() {
                return v;
            }
            self.open.notify.notified().await;
        }
    }
    /// Records its end, once.
    pub fn end(mut self, outcome: &Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: &Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let conn = self.open.conn.clone();
        self.all.open.borrow_mut().remove(&self.id);
        if let Some(workload) = &conn.destination {
            let mut loads = self.all.loads.borrow_mut();
            if let Some(load) = loads.get_mut(&workload.uid) {
                *load -= 1;
                if *load == 0 {
                    loads.remove(&workload.uid);
                }
            }
        }
        self.all.gauge(conn.reporter, -1);
        if let Some(watch) = conn.counts.watch() {
            watch.closed();
        }
        self.open.flush();
        match &*self.open.traffic.borrow() {
            Some(t) => {
                t.closed.fetch_add(1, Relaxed);
                t.touch();
            }
            None => {
                let traffic = conn.series(&self.all.metrics, outcome.flag());
                traffic.failed.fetch_add(1, Relaxed);
                traffic.touch();
            }
        }
        self.all.metrics.ends.note(conn.reporter, outcome.reason());
        self.all.taps.tell(|| tapped::ended(&conn, outcome));
        if self.all.access_log {
            let Some(error) = outcome.text() else {
                let message = match outcome {
                    Outcome::HandedOver => "connection handed over",
                    _ => "connection complete",
                };
                return self.all.line(&conn, tracing::Level::INFO, message, &[]);
            };
            let (level, message) = match outcome.failed() {
                true => (tracing::Level::WARN, "connection failed"),
                false => (tracing::Level::ERROR, "connection complete"),
            };
            let may_log = if outcome.failed() { self.all.logs_refusal(outcome.reason()) } else { Some(0) };
            let Some(left_out) = may_log else { return };
            let left_out = (left_out > 0).then(|| left_out.to_string());
            let policy = outcome.policy().map(|policy| ("policy", policy));
            let rule = outcome.rule().map(|rule| rule.to_string());
            let rule = rule.as_deref().map(|rule| ("rule", rule));
            let left_out = left_out.as_deref().map(|count| ("left_out", count));
            let more = [Some(("error", error.as_str())), Some(("reason", outcome.reason())), policy, rule, left_out];
            self.all.line(&conn, level, message, &more.into_iter().flatten().collect::<Vec<_>>());
        }
    }
}

/// A field's value in the access log.
enum Value<'a> {
    /// Text that needs no escapes.
    Name(&'a str),
    Shown(&'a dyn std::fmt::Display),
}

impl Conns {
    /// Writes one record of the access log.
    fn line(&self, conn: &Conn, level: tracing::Level, message: &str, more: &[(&str, &str)]) {
        self.write(conn, Self::text(conn, level, message, more, log::format() == Format::Json));
    }

    /// One record of the access log, in Istio's order of fields.
    fn text(conn: &Conn, level: tracing::Level, message: &str, more: &[(&str, &str)], json: bool) -> String {
        let mut out = String::with_capacity(640);
        let time = log::timestamp(clock::wall());
        let level = match level {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::DEBUG => "debug",
            _ => "info",
        };
        let _ = if json {
            write!(out, "{{\"level\":\"{level}\",\"time\":\"{time}\",\"scope\":\"access\",\"message\":\"{message}\"")
        } else {
            write!(out, "{time}\t{level}\taccess\t{message}\t")
        };
        let mut first = !json;
        // Two lines of each connection are made here: names are put in as they are, and only what is none is formatted.
        let mut put = |key: &str, value: Value<'_>, quote: bool| {
            let quote = match json {
                true => {
                    out.push_str(",\"");
                    out.push_str(key);
                    out.push_str("\":\"");
                    true
                }
                false => {
                    if !std::mem::take(&mut first) {
                        out.push(' ');
                    }
                    out.push_str(key);
                    out.push_str(if quote { "=\"" } else { "=" });
                    quote
                }
            };
            match value {
                Value::Name(name) => out.push_str(name),
                Value::Shown(value) => drop(write!(out, "{value}")),
            }
            if quote {
                out.push('"');
            }
        };
        let name = |text| Value::Name(text);
        put("src.addr", Value::Shown(&conn.source_addr), false);
        if let Some(workload) = &conn.source {
            put("src.workload", name(&workload.name), true);
            put("src.namespace", name(&workload.namespace), true);
        }
        if let Some(identity) = &conn.source_identity {
            put("src.identity", name(identity.as_str()), true);
        }
        if let Some(workload) = &conn.source {
            put("src.cluster", name(&workload.cluster), true);
        }
        put("dst.addr", Value::Shown(&conn.destination_addr), false);
        if let Some(address) = &conn.hbone_addr {
            put("dst.hbone_addr", Value::Shown(address), false);
        }
        if let Some(service) = &conn.service {
            put("dst.service", name(&service.hostname), true);
        }
        if let Some(workload) = &conn.destination {
            put("dst.workload", name(&workload.name), true);
            put("dst.namespace", name(&workload.namespace), true);
            if conn.mtls {
                put("dst.identity", name(workload.identity.as_str()), true);
            }
            put("dst.cluster", name(&workload.cluster), true);
        }
        put("direction", name(if conn.reporter == Reporter::Source { "outbound" } else { "inbound" }), true);
        // From the point of view of the application that is served (reference ztunnel §4.6).
        put("bytes_sent", Value::Shown(&conn.counts.to_client.get()), false);
        put("bytes_recv", Value::Shown(&conn.counts.from_client.get()), false);
        put("duration", Value::Shown(&format_args!("{}ms", conn.started.elapsed().as_millis())), true);
        if let Some(trace) = conn.trace.get() {
            put("trace_id", Value::Shown(&trace.trace_id()), true);
            put("span_id", Value::Shown(&trace.span_id()), true);
        }
        for &(key, value) in more {
            put(key, Value::Shown(&karst_core::untrusted::Untrusted(value)), true);
        }
        if json {
            out.push('}');
        }
        out
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.finish(&Outcome::Drained);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_hbone::copy::Counts;
    use karst_policy::{Connection, Scope};
    use karst_proxy::{
        testing::{pod, snapshot},
        trace::SpanContext,
    };
    use std::{
        cell::OnceCell,
        net::SocketAddr,
        pin::pin,
        task::{Context, Waker},
    };

    /// A change of policies, with few connections.
    fn recheck(conns: &Conns, snapshot: &Snapshot) {
        assert!(pin!(conns.recheck(|| snapshot)).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    /// What is told of a pod decides nothing about connections of the one that has had its name before.
    #[test]
    fn connections_are_checked_by_their_own_pods_policies() {
        let conns = Conns::new(Arc::new(Metrics::default()), Taps::new(""), false);
        let check = Connection {
            source_identity: None,
            source_ip: [10, 0, 0, 9].into(),
            destination_ip: [10, 0, 0, 1].into(),
            destination_port: 80,
        };
        let told = |policy: Option<&str>| {
            let mut w = pod("a", "10.0.0.1", &[]);
            w.authorization_policies = policy.into_iter().map(Into::into).collect();
            snapshot(vec![w], vec![])
        };
        let open = |account: &str| {
            conns.add(Conn {
                reporter: Reporter::Destination,
                source_addr: ([10, 0, 0, 9], 1).into(),
                destination_addr: ([10, 0, 0, 1], 80).into(),
                hbone_addr: None,
                source: None,
                destination: told(None).workload([10, 0, 0, 1].into()).cloned(),
                service: None,
                mtls: false,
                source_identity: None,
                check: Some(check.clone()),
                pod: Some(LocalPod::test("a", account, "1")),
                counts: Counts::default(),
                started: Instant::now(),
                trace: OnceCell::new(),
            })
        };
        let deny = |name: &str, scope: Scope| Policy {
            name: name.into(),
            namespace: "ns".into(),
            scope,
            action: Action::Allow,
            rules: vec![],
            dry_run: false,
        };
        let (present, before) = (open("a"), open("before"));
        let is_closing = |g: &Guard| g.open.closing.borrow().is_some();
        let mut s = told(Some("ns/mine"));
        s.put_policy("ns/mine", deny("mine", Scope::WorkloadSelector));
        recheck(&conns, &s);
        assert!(is_closing(&present), "its policy forbids it");
        assert!(!is_closing(&before), "whether it is for that pod is not known");
        s.remove_policy("ns/mine");
        s.put_policy("ns/wide", deny("wide", Scope::Namespace));
        recheck(&conns, &s);
        assert!(is_closing(&before), "it is for all of the namespace");
        // Of many connections a few are judged at a time.
        let many: Vec<_> = (0..4 * AT_ONCE).map(|_| open("before")).collect();
        let closing = || many.iter().filter(|g| is_closing(g)).count();
        // Nothing forbids them when the pass begins; a policy that comes meanwhile judges the rest at once.
        let newest = RefCell::new(Arc::new(told(None)));
        let mut f = pin!(conns.recheck(|| newest.borrow().clone()));
        let mut turn = || f.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(!turn() && closing() == 0, "others have their turn");
        newest.replace(Arc::new(s));
        assert!(!turn() && (1..=AT_ONCE).contains(&closing()), "{}", closing());
        assert!((0..4 * AT_ONCE).any(|_| turn()));
        let left = many.len() - closing();
        assert!((1..=AT_ONCE).contains(&left), "{left} were judged before it came, in the first turn");
        // That it has come means another pass.
        let s = newest.borrow().clone();
        let mut f = pin!(conns.recheck(|| s.clone()));
        assert!((0..4 * AT_ONCE).any(|_| f.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()));
        assert_eq!(closing(), many.len());
    }

    #[test]
    fn an_open_connection_is_told_of_each_dry_run_once_and_goes_on() {
        let mut w = pod("a", "10.0.0.1", &[]);
        w.karst_dry_run_policies = vec!["ns/p".into()];
        let mut s = snapshot(vec![w], vec![]);
        let m = Arc::new(Metrics::default());
        let conns = Conns::new(m.clone(), Taps::new(""), false);
        let (from, to) = (SocketAddr::from(([10, 0, 0, 9], 4000)), SocketAddr::from(([10, 0, 0, 1], 80)));
        let check = Connection {
            source_identity: None,
            source_ip: from.ip(),
            destination_ip: to.ip(),
            destination_port: to.port(),
        };
        let guard = conns.add(Conn {
            reporter: Reporter::Destination,
            source_addr: from,
            destination_addr: to,
            hbone_addr: None,
            source: None,
            destination: s.workload(to.ip()).cloned(),
            service: None,
            mtls: false,
            source_identity: None,
            check: Some(check),
            pod: Some(LocalPod::test("a", "a", "1")),
            counts: Counts::default(),
            started: Instant::now(),
            trace: OnceCell::new(),
        });
        let policy = |dry_run: bool| Policy {
            name: "p".into(),
            namespace: "ns".into(),
            scope: Scope::WorkloadSelector,
            action: Action::Allow,
            rules: vec![],
            dry_run,
        };
        let counted = || {
            let page = karst_rt::exposition::page(|page| m.dry_runs.render(page, |_| true));
            page.lines().filter(|l| !l.starts_with('#')).map(String::from).collect::<Vec<_>>()
        };
        let one = "karst_authz_dry_run_total{policy=\"ns/p\",authz_dry_run_action=\"allow\",authz_dry_run_result=\"denied\"} 1";
        let closed = || guard.open.closing.borrow().is_some();
        s.put_policy("ns/p", policy(true));
        for _ in 0..3 {
            recheck(&conns, &s);
            assert_eq!((counted(), closed()), (vec![one.to_string()], false));
        }
        s.put_policy("ns/p", policy(false));
        recheck(&conns, &s);
        assert_eq!((counted(), closed()), (vec![one.to_string()], true));
        // In dry run again: it would be told again.
        s.put_policy("ns/p", policy(true));
        recheck(&conns, &s);
        assert!(counted()[0].ends_with(" 2"));
    }

    #[test]
    fn the_trace_of_a_connect_is_in_the_line() {
        let conn = |trace: OnceCell<Box<SpanContext>>| Conn {
            reporter: Reporter::Destination,
            source_addr: ([10, 0, 0, 9], 1).into(),
            destination_addr: ([10, 0, 0, 1], 80).into(),
            hbone_addr: None,
            source: None,
            destination: None,
            service: None,
            mtls: false,
            source_identity: None,
            check: None,
            pod: None,
            counts: Counts::default(),
            started: Instant::now(),
            trace,
        };
        let text =
            |conn: &Conn, json| Conns::text(conn, tracing::Level::INFO, "connection complete", &[("error", "e")], json);
        let (traced, plain) = (conn(OnceCell::new()), conn(OnceCell::new()));
        traced.trace.set(Box::new(SpanContext { trace: 0xab, span: 0xcd })).unwrap();
        let ids = ["000000000000000000000000000000ab", "00000000000000cd"];
        let line = text(&traced, false);
        let want = format!("ms\" trace_id=\"{}\" span_id=\"{}\" error=\"e\"", ids[0], ids[1]);
        assert!(line.ends_with(&want), "{line}");
        let fields: serde_json::Value = serde_json::from_str(&text(&traced, true)).unwrap();
        assert_eq!(["trace_id", "span_id"].map(|k| fields[k].as_str().unwrap()), ids);
        for json in [false, true] {
            assert!(!text(&plain, json).contains("trace_id"), "there is none");
        }
    }
}
