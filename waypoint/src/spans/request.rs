//! A request that is traced, from its head to its end: what its caller has decided, what upstreams are told, and its attempts. Upstreams
//! are told the same whether anybody takes its spans or not; what these say is kept only if somebody does.

use crate::{
    spans::{
        context::{self, Incoming, SpanContext, TRACEPARENT, TRACESTATE},
        queue::Dropped,
        rules::{Collector, Tracing},
        sampling::{self, Asked, Decision, WHOLE},
    },
    telemetry::flag::ResponseFlag,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use karst_api::route::CollectorProtocol;
use karst_proxy::{state::Workload, trace::header};
use karst_rt::clock::Instant;
use std::{net::SocketAddr, sync::Arc};

/// Asks for a trace; only within the mesh.
const FORCE: HeaderName = HeaderName::from_static("x-envoy-force-trace");
/// Asks for a trace, by whoever sends it.
pub const CLIENT: HeaderName = HeaderName::from_static("x-client-trace-id");
/// What tells a request from others in logs.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// More attempts than these have no span.
const MAX_ATTEMPTS: usize = 16;
/// Longest `tracestate` of a span, in bytes: what everybody must be able to pass on (W3C).
const MAX_TRACE_STATE: usize = 512;

/// A request that is traced. What telemetry says of it, its record has.
pub struct RequestTrace {
    propagation: Propagation,
    /// Of the request here: the parent of its attempts.
    pub context: SpanContext,
    /// The span of the attempt that goes on. None: there is none, or it has no span.
    current: Option<u64>,
    /// Attempts that have a span.
    attempts: usize,
    /// What its spans say; or why nobody takes them.
    pub spans: Result<Box<RequestSpans>, Dropped>,
}

/// What the spans of a request say.
pub struct RequestSpans {
    /// Of the request here: the parent of its attempts.
    pub context: SpanContext,
    /// The caller's span.
    pub parent: Option<u64>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// What the client has sent as `x-client-trace-id`.
    pub client: Option<HeaderValue>,
    /// The caller's `tracestate`, in one line.
    pub trace_state: String,
    pub attempts: Attempts,
}

/// The attempts of a request. Mostly there is one, which needs no place of its own.
#[derive(Default)]
pub struct Attempts {
    first: Option<AttemptSpan>,
    more: Vec<AttemptSpan>,
}

/// One attempt at an endpoint.
pub struct AttemptSpan {
    pub span: u64,
    pub began: Instant,
    /// None: it ends with the request.
    pub ended: Option<Instant>,
    /// None: the endpoint that the request has come to at last.
    pub to: Option<(Arc<Workload>, SocketAddr)>,
    pub http2: bool,
    /// None: there was no answer.
    pub status: Option<u16>,
    pub grpc: Option<u16>,
    pub flag: ResponseFlag,
}

impl Attempts {
    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &AttemptSpan> {
        self.first.iter().chain(&self.more)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// The last one.
    pub fn last(&self) -> Option<&AttemptSpan> {
        self.more.last().or(self.first.as_ref())
    }

    fn last_mut(&mut self) -> Option<&mut AttemptSpan> {
        self.more.last_mut().or(self.first.as_mut())
    }

    fn push(&mut self, attempt: AttemptSpan) {
        match self.first {
            None => self.first = Some(attempt),
            Some(_) => self.more.push(attempt),
        }
    }
}

/// Where a request has come from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// From outside of the mesh.
    pub is_external: bool,
}

/// In which forms upstreams are told of a span.
#[derive(Clone, Copy)]
struct Propagation {
    b3: bool,
    w3c: bool,
}

impl Propagation {
    fn of(tracing: &Tracing) -> Self {
        let (is_told, collector) = (tracing.propagates, &tracing.collector);
        let is_zipkin = collector.protocol == CollectorProtocol::Zipkin;
        Self { b3: is_told && is_zipkin, w3c: is_told && (!is_zipkin || collector.w3c) }
    }

    fn is_any(self) -> bool {
        self.b3 || self.w3c
    }

    /// Tells upstreams of a span that is theirs to go on from.
    fn tell(self, context: SpanContext, parent: Option<u64>, headers: &mut HeaderMap) {
        if self.b3 {
            context::write_b3(context, parent, true, headers);
        }
        if self.w3c {
            headers.insert(TRACEPARENT, context.to_traceparent(true));
        }
    }
}

/// Takes a request in: decides whether it is traced, and tells upstreams so. None: it is not. `random`: a number below another; `takes`:
/// does anybody take its spans?
pub fn begin(
    tracing: &Tracing,
    from: Origin,
    headers: &mut HeaderMap,
    random: impl Fn(u64) -> u64,
    takes: impl FnOnce() -> Result<(), Dropped>,
) -> Option<RequestTrace> {
    if from.is_external {
        headers.remove(FORCE);
    }
    let collector = &*tracing.collector;
    let (caller, sampled) = match incoming(collector, headers) {
        Incoming::Malformed => return None,
        Incoming::Absent => (None, None),
        Incoming::Known { caller, sampled } => (caller, sampled),
    };
    let is_otlp = collector.protocol != CollectorProtocol::Zipkin;
    if is_otlp && caller.is_none() && tracing.propagates {
        // Of a trace that nobody has named: it does not go with the one that begins here.
        headers.remove(TRACESTATE);
    }
    let is_decided = sampled.is_some();
    let sampled = sampled.unwrap_or_else(|| decide(tracing, from, headers, &random));
    let id = |bound: u64| random(bound - 1) + 1;
    if !sampled {
        // What the caller has decided goes on as it is: nothing is written anew.
        if tracing.propagates && !is_decided {
            tell_unsampled(collector, caller, headers, id);
        }
        return None;
    }
    let trace = caller.map_or_else(|| new_trace(collector, id), |caller| caller.trace);
    let context = SpanContext { trace, span: id(u64::MAX) };
    let (propagation, parent) = (Propagation::of(tracing), caller.map(|caller| caller.span));
    propagation.tell(context, parent, headers);
    let spans = takes().map(|()| {
        Box::new(RequestSpans {
            context,
            parent,
            scheme: from.scheme,
            client: headers.get(CLIENT).cloned(),
            trace_state: if is_otlp && caller.is_some() { trace_state(headers) } else { String::new() },
            attempts: Attempts::default(),
        })
    });
    Some(RequestTrace { propagation, context, current: None, attempts: 0, spans })
}

/// What vendors say of a trace, in one line. None of it, if that is long.
fn trace_state(headers: &HeaderMap) -> String {
    let lines: Vec<&str> = headers.get_all(TRACESTATE).iter().filter_map(|line| line.to_str().ok()).collect();
    let all = lines.join(",");
    if all.len() <= MAX_TRACE_STATE { all } else { String::new() }
}

fn new_trace(collector: &Collector, id: impl Fn(u64) -> u64) -> u128 {
    let high = if collector.short_ids && collector.protocol == CollectorProtocol::Zipkin { 0 } else { id(u64::MAX) };
    u128::from(high) << 64 | u128::from(id(u64::MAX))
}

fn incoming(collector: &Collector, headers: &HeaderMap) -> Incoming {
    if collector.protocol != CollectorProtocol::Zipkin {
        return context::w3c(headers);
    }
    match context::b3(headers) {
        Incoming::Absent if collector.w3c => context::w3c(headers),
        found => found,
    }
}

/// Decides where the caller has not, and marks the request's id.
fn decide(tracing: &Tracing, from: Origin, headers: &mut HeaderMap, random: impl Fn(u64) -> u64) -> bool {
    let id = headers.get(REQUEST_ID);
    let decision = sampling::decide(Asked {
        id: id.map_or(&b""[..], HeaderValue::as_bytes),
        // A client's own mark is nobody's decision.
        reads_mark: tracing.reads_mark && !from.is_external,
        client: headers.contains_key(CLIENT),
        force: headers.contains_key(FORCE),
        rate: tracing.rate,
        chance: random(WHOLE.into()) as u32,
    });
    match decision {
        Decision::No => false,
        Decision::Marked => true,
        Decision::Yes(reason) => {
            if let Some(marked) = id.and_then(|id| sampling::marked(id.as_bytes(), reason)) {
                headers.insert(REQUEST_ID, header(marked));
            }
            true
        }
    }
}

/// Tells upstreams that a request is not traced: they do not decide again.
fn tell_unsampled(
    collector: &Collector,
    caller: Option<SpanContext>,
    headers: &mut HeaderMap,
    id: impl Fn(u64) -> u64,
) {
    let is_zipkin = collector.protocol == CollectorProtocol::Zipkin;
    if is_zipkin {
        match caller {
            // Its trace may be told in one header, where a decision has its place.
            Some(caller) if headers.contains_key(context::B3) => context::write_b3(caller, None, false, headers),
            _ => drop(headers.insert(context::B3_SAMPLED, HeaderValue::from_static("0"))),
        }
    }
    if !is_zipkin || collector.w3c {
        let new = || SpanContext { trace: new_trace(collector, &id), span: id(u64::MAX) };
        headers.insert(TRACEPARENT, caller.unwrap_or_else(new).to_traceparent(false));
    }
}

impl RequestTrace {
    /// How many spans it has: its own, and those of its attempts.
    pub fn count(&self) -> usize {
        1 + self.attempts
    }

    /// Another attempt follows: `before` is where the last one has gone.
    pub fn leave(&mut self, before: Option<(Arc<Workload>, SocketAddr)>) {
        if let Ok(spans) = &mut self.spans
            && let Some(last) = spans.attempts.last_mut()
            && last.to.is_none()
        {
            last.to = before;
        }
    }

    /// An attempt begins; its request's headers tell of it. `span`: its id, not 0.
    pub fn attempt(&mut self, http2: bool, began: Instant, span: u64, headers: &mut HeaderMap) {
        if self.attempts >= MAX_ATTEMPTS {
            return;
        }
        self.attempts += 1;
        self.current = Some(span);
        self.propagation.tell(SpanContext { span, ..self.context }, Some(self.context.span), headers);
        if let Ok(spans) = &mut self.spans {
            let (status, grpc, flag) = (None, None, ResponseFlag::None);
            spans.attempts.push(AttemptSpan { span, began, ended: None, to: None, http2, status, grpc, flag });
        }
    }

    /// The attempt that goes on, for the CONNECT that it may open. None: it has no span, or upstreams are not told.
    pub fn current(&self) -> Option<SpanContext> {
        let span = self.current.filter(|_| self.propagation.is_any())?;
        Some(SpanContext { span, ..self.context })
    }

    /// The last attempt that has begun was answered. `ended`: there is another, and the answer is nobody's.
    pub fn answered(&mut self, status: u16, grpc: Option<u16>, ended: Option<Instant>) {
        if let Some(last) = self.last() {
            (last.status, last.grpc, last.ended) = (Some(status), grpc, ended);
        }
        if ended.is_some() {
            self.current = None;
        }
    }

    /// The last attempt that has begun has no answer.
    pub fn failed(&mut self, flag: ResponseFlag, ended: Instant) {
        if let Some(last) = self.last() {
            (last.flag, last.ended) = (flag, Some(ended));
        }
        self.current = None;
    }

    /// The last attempt, while it has not ended: those beyond [`MAX_ATTEMPTS`] have no span.
    fn last(&mut self) -> Option<&mut AttemptSpan> {
        self.spans.as_mut().ok()?.attempts.last_mut().filter(|last| last.ended.is_none())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::spans::context::{B3, B3_SAMPLED, B3_TRACE};
    use karst_api::route as ir;
    use karst_proxy::testing::{pod, snapshot};

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const ID: &str = "00000000-5b6f-4d0f-8f5b-5cd6c1f3a7f4";
    const INSIDE: Origin = Origin { scheme: "http", is_external: false };
    const OUTSIDE: Origin = Origin { scheme: "https", is_external: true };

    fn tracing(rate: u32, change: impl FnOnce(&mut ir::Collector)) -> Arc<Tracing> {
        let mut collector = ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
        change(&mut collector);
        Arc::new(
            Tracing::new(&ir::Tracing { collector: Some(collector), per_ten_thousand: rate, ..Default::default() })
                .unwrap(),
        )
    }

    fn zipkin(collector: &mut ir::Collector) {
        collector.protocol = ir::CollectorProtocol::Zipkin as i32;
    }

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    fn lowest(_: u64) -> u64 {
        0
    }

    /// Somebody takes its spans.
    fn begin(
        tracing: &Tracing,
        from: Origin,
        headers: &mut HeaderMap,
        random: impl Fn(u64) -> u64,
    ) -> Option<RequestTrace> {
        super::begin(tracing, from, headers, random, || Ok(()))
    }

    #[test]
    fn the_callers_decision_goes_on() {
        let mut h = headers(&[("traceparent", PARENT), ("tracestate", "a=b"), ("x-request-id", ID)]);
        let spans = begin(&tracing(0, |_| {}), INSIDE, &mut h, lowest).unwrap().spans.unwrap();
        assert_eq!(spans.context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((spans.parent, spans.context.span), (Some(0x00f0_67aa_0ba9_02b7), 1));
        assert_eq!(h["traceparent"], "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000001-01");
        assert_eq!((&h["tracestate"], &h["x-request-id"]), (&"a=b".parse().unwrap(), &ID.parse().unwrap()));
        let off = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        for untouched in [off, "00-what-is-this"] {
            let mut h = headers(&[("traceparent", untouched), ("x-envoy-force-trace", "1")]);
            let before = h.clone();
            assert!(begin(&tracing(WHOLE, |_| {}), INSIDE, &mut h, lowest).is_none(), "{untouched}");
            assert_eq!(h, before);
        }
    }

    #[test]
    fn who_decides_first_tells_the_others() {
        let mut h = headers(&[("x-request-id", ID)]);
        assert!(begin(&tracing(0, |_| {}), INSIDE, &mut h, lowest).is_none());
        assert_eq!(h["traceparent"], "00-00000000000000010000000000000001-0000000000000001-00");
        assert_eq!(h["x-request-id"], ID);
        let mut h = headers(&[("x-request-id", ID)]);
        assert!(begin(&tracing(1, |_| {}), INSIDE, &mut h, lowest).is_some());
        assert_eq!(h["x-request-id"], ID.replace("-4d0f", "-9d0f"));
        assert!(h["traceparent"].to_str().unwrap().ends_with("-01"));
        // The next proxy has only the mark.
        h.remove(TRACEPARENT);
        assert!(begin(&tracing(0, |_| {}), INSIDE, &mut h, lowest).is_some());
        h.remove(TRACEPARENT);
        assert!(begin(&tracing(0, |_| {}), OUTSIDE, &mut h, lowest).is_none(), "a client's own mark");
    }

    #[test]
    fn only_the_mesh_may_force_a_trace() {
        let forced = || headers(&[("x-envoy-force-trace", "1"), ("x-request-id", ID)]);
        assert!(begin(&tracing(0, |_| {}), INSIDE, &mut forced(), lowest).is_some());
        let mut h = forced();
        assert!(begin(&tracing(0, |_| {}), OUTSIDE, &mut h, lowest).is_none());
        assert!(!h.contains_key(FORCE));
        let mut h = headers(&[("x-client-trace-id", "mine"), ("x-request-id", ID)]);
        let spans = begin(&tracing(0, |_| {}), OUTSIDE, &mut h, lowest).unwrap().spans.unwrap();
        assert_eq!(
            (spans.client.unwrap(), &h["x-request-id"].as_bytes()[14..15]),
            ("mine".parse().unwrap(), &b"b"[..])
        );
    }

    #[test]
    fn b3_in_its_own_form() {
        let one = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1";
        let mut h = headers(&[("b3", one), ("traceparent", PARENT)]);
        let spans = begin(&tracing(0, zipkin), INSIDE, &mut h, lowest).unwrap().spans.unwrap();
        assert_eq!(spans.parent, Some(0x00f0_67aa_0ba9_02b7));
        assert_eq!(h[B3], "4bf92f3577b34da6a3ce929d0e0e4736-0000000000000001-1-00f067aa0ba902b7");
        assert_eq!((&h[B3_TRACE], &h[TRACEPARENT]), (&one[..32].parse().unwrap(), &PARENT.parse().unwrap()));
        let mut h = HeaderMap::new();
        assert!(begin(&tracing(0, zipkin), INSIDE, &mut h, lowest).is_none());
        assert_eq!((h.len(), &h[B3_SAMPLED]), (1, &"0".parse().unwrap()));
        // Undecided: we decide.
        let mut h = headers(&[("b3", &one[..49]), ("x-request-id", ID)]);
        assert!(begin(&tracing(0, zipkin), INSIDE, &mut h, lowest).is_none());
        assert!(h[B3].as_bytes().ends_with(b"-0"));
        let mut h = headers(&[("traceparent", PARENT)]);
        let both = tracing(0, |c| {
            zipkin(c);
            c.w3c = true;
        });
        assert!(begin(&both, INSIDE, &mut h, lowest).is_some());
        assert!(h.contains_key(B3_TRACE) && h[TRACEPARENT] != PARENT);
        let mut h = HeaderMap::new();
        assert!(begin(&both, INSIDE, &mut h, lowest).is_none());
        assert!(h[B3_SAMPLED] == "0" && h[TRACEPARENT].as_bytes().ends_with(b"-00"), "both are told: {h:?}");
        let short = tracing(WHOLE, |c| {
            zipkin(c);
            c.short_ids = true;
        });
        let mut h = HeaderMap::new();
        assert_eq!(begin(&short, INSIDE, &mut h, lowest).unwrap().context.trace, 1);
        assert_eq!(h[B3_TRACE], "0000000000000001");
    }

    #[test]
    fn what_vendors_say_goes_with_its_trace() {
        let mut h = headers(&[("traceparent", PARENT), ("tracestate", "a=b")]);
        h.append(TRACESTATE, HeaderValue::from_static("c=d"));
        let spans = begin(&tracing(0, |_| {}), INSIDE, &mut h, lowest).unwrap().spans.unwrap();
        assert_eq!((&*spans.trace_state, h.get_all(TRACESTATE).iter().count()), ("a=b,c=d", 2));
        h.append(TRACESTATE, HeaderValue::from_bytes(&[b'e'; MAX_TRACE_STATE]).unwrap());
        let spans = begin(&tracing(0, |_| {}), INSIDE, &mut h, lowest).unwrap().spans.unwrap();
        assert_eq!((&*spans.trace_state, h.get_all(TRACESTATE).iter().count()), ("", 3), "it passes all the same");
        for rate in [0, WHOLE] {
            let mut h = headers(&[("tracestate", "a=b")]);
            let trace = begin(&tracing(rate, |_| {}), INSIDE, &mut h, lowest);
            assert!(trace.is_none_or(|trace| trace.spans.unwrap().trace_state.is_empty()), "{rate}");
            assert!(h.contains_key(TRACEPARENT) && !h.contains_key(TRACESTATE), "of no trace that is known: {rate}");
        }
    }

    #[test]
    fn a_connect_is_told_of_the_attempt_that_opens_it() {
        let now = Instant::now();
        let mut h = headers(&[("traceparent", PARENT)]);
        let mut trace = begin(&tracing(0, |_| {}), INSIDE, &mut h, lowest).unwrap();
        assert_eq!(trace.current(), None, "nothing is sent yet");
        trace.attempt(false, now, 7, &mut h);
        assert_eq!(trace.current(), Some(SpanContext { span: 7, ..trace.context }));
        assert_eq!(h["traceparent"], trace.current().unwrap().to_traceparent(true), "as the request itself");
        trace.failed(ResponseFlag::ConnectFailure, now);
        assert_eq!(trace.current(), None);
        for span in 0..MAX_ATTEMPTS as u64 {
            trace.attempt(false, now, 8 + span, &mut h);
            trace.answered(503, None, Some(now));
        }
        trace.attempt(false, now, 99, &mut h);
        assert_eq!(trace.current(), None, "it has no span");
        assert_eq!((trace.count(), trace.spans.unwrap().attempts.len()), (1 + MAX_ATTEMPTS, MAX_ATTEMPTS));
        let said = ir::Collector { service: "c".into(), port: 1, ..Default::default() };
        let quiet =
            ir::Tracing { collector: Some(said), per_ten_thousand: WHOLE, no_propagation: true, ..Default::default() };
        let mut h = HeaderMap::new();
        let mut trace = begin(&Tracing::new(&quiet).unwrap(), INSIDE, &mut h, lowest).unwrap();
        trace.attempt(false, now, 7, &mut h);
        assert!(trace.count() == 2 && trace.current().is_none() && h.is_empty(), "nobody is told");
    }

    #[test]
    fn each_attempt_keeps_where_it_has_gone() {
        let mesh = snapshot(vec![pod("p", "10.0.0.1", &[]), pod("q", "10.0.0.2", &[])], vec![]);
        let to = |n: u8| {
            let ip = [10, 0, 0, n];
            Some((mesh.workload(ip.into()).unwrap().clone(), SocketAddr::from((ip, 80))))
        };
        let mut h = headers(&[("traceparent", PARENT)]);
        let mut trace = begin(&tracing(0, |_| {}), INSIDE, &mut h, lowest).unwrap();
        // As the first attempt begins, nothing was tried.
        trace.leave(None);
        for span in 1..=MAX_ATTEMPTS as u64 {
            trace.attempt(span == 2, Instant::now(), span, &mut h);
            trace.answered(503, None, Some(Instant::now()));
            trace.leave(to(if span == 1 { 1 } else { 2 }));
        }
        // One that has no span.
        trace.attempt(false, Instant::now(), 99, &mut h);
        trace.leave(to(1));
        let spans = trace.spans.unwrap();
        let names = spans.attempts.iter().map(|a| (a.span, a.http2, &*a.to.as_ref().unwrap().0.name));
        let wanted = (1..=MAX_ATTEMPTS as u64).map(|n| (n, n == 2, if n == 1 { "p" } else { "q" }));
        assert!(names.eq(wanted));
        assert_eq!(spans.attempts.last().map(|last| last.span), Some(MAX_ATTEMPTS as u64));
    }

    /// The trace goes on through a proxy whose collector is down, as if it were there.
    #[test]
    fn upstreams_are_told_the_same_where_nobody_takes_the_spans() {
        let cases: [&[(&'static str, &'static str)]; 5] = [
            &[],
            &[("x-request-id", ID)],
            &[("x-request-id", ID), ("x-client-trace-id", "mine")],
            &[("traceparent", PARENT), ("tracestate", "a=b")],
            &[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1")],
        ];
        let collectors: [fn(&mut ir::Collector); 3] = [
            |_| {},
            zipkin,
            |c| {
                zipkin(c);
                c.w3c = true;
            },
        ];
        for (case, collector) in cases.iter().flat_map(|case| collectors.map(|collector| (case, collector))) {
            let now = Instant::now();
            let told = |takes: Result<(), Dropped>| {
                let mut h = headers(case);
                let trace = super::begin(&tracing(WHOLE, collector), INSIDE, &mut h, lowest, || takes);
                let mut trace = trace.unwrap();
                assert_eq!(trace.spans.as_ref().err().copied(), takes.err());
                let mut said = vec![(trace.current(), h.clone())];
                for span in 1..=MAX_ATTEMPTS as u64 + 1 {
                    trace.leave(None);
                    trace.attempt(true, now, span, &mut h);
                    said.push((trace.current(), h.clone()));
                    match span % 2 {
                        0 => trace.answered(503, None, Some(now)),
                        _ => trace.failed(ResponseFlag::Reset, now),
                    }
                    said.push((trace.current(), h.clone()));
                }
                (trace.context, trace.count(), said)
            };
            let wanted = told(Ok(()));
            assert_eq!(wanted.1, 1 + MAX_ATTEMPTS);
            for why in [Dropped::QueueFull, Dropped::ExportFailed] {
                assert_eq!(told(Err(why)), wanted, "{case:?}");
            }
        }
    }

    #[test]
    fn attempts_tell_of_themselves() {
        let said = ir::Collector { service: "c".into(), port: 1, ..Default::default() };
        let quiet =
            ir::Tracing { collector: Some(said), per_ten_thousand: WHOLE, no_propagation: true, ..Default::default() };
        let mut h = HeaderMap::new();
        let spans = begin(&Arc::new(Tracing::new(&quiet).unwrap()), INSIDE, &mut h, lowest);
        assert!(spans.is_some() && h.is_empty(), "nobody is told");
    }
}
