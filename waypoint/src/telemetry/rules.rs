//! What is told of requests, where it differs from the standard: Istio's Telemetry, with expressions in CEL over Envoy's
//! attributes. Costs nothing where nobody has asked for it.

use crate::{
    logs::rules::{Export, ExportError},
    spans::rules::{Tracing, TracingError},
    telemetry::{
        expression::{ExpressionError, evaluate, program, text},
        stream_info::StreamInfo,
    },
};
use cel::{Program, Value};
use karst_api::route as ir;
use karst_proxy::labels::{Labels, put};
use std::sync::Arc;

/// How many metrics of requests there are: [`ir::Metric`] counts them.
pub const METRICS: usize = 4;

/// Labels of each metric, by [`ir::Metric`]; none for one that is not told.
pub type AllLabels = [Option<Arc<str>>; METRICS];

/// A Telemetry, compiled.
pub struct Telemetry {
    /// Lines of the access log are written,
    log: bool,
    /// where this is true.
    filter: Option<Program>,
    shapes: [Shape; METRICS],
    /// What gives values of labels.
    values: Vec<Program>,
    /// An expression reads headers: they are kept for the end of the request.
    pub wants_headers: bool,
    /// Which requests are traced; none: the headers of traces pass as they are.
    pub tracing: Option<Arc<Tracing>>,
    /// Where the access log goes besides the proxy's output.
    pub exports: Vec<Export>,
    /// What it was made from, but for traces and exports.
    said: ir::Telemetry,
}

#[derive(Debug, Default)]
struct Shape {
    disabled: bool,
    remove: Vec<String>,
    /// Labels, and which of the values they have.
    set: Vec<(String, usize)>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("log", &self.log).field("shapes", &self.shapes).finish_non_exhaustive()
    }
}

/// What cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// An expression that cannot be evaluated.
    #[error(transparent)]
    Expression(#[from] ExpressionError),
    /// What is said of traces.
    #[error("tracing: {0}")]
    Tracing(#[from] TracingError),
    /// A collector of the access log.
    #[error("access log: {0}")]
    Export(#[from] ExportError),
    /// A metric of a later version.
    #[error("metric {0}")]
    Metric(i32),
}

impl Telemetry {
    /// Compiles.
    ///
    /// # Errors
    /// For what is no CEL, and for a metric that is not known.
    pub fn new(telemetry: &ir::Telemetry) -> Result<Self, TelemetryError> {
        let mut texts: Vec<&str> = vec![];
        let mut shapes: [Shape; METRICS] = Default::default();
        for s in &telemetry.metrics {
            let shape = shapes.get_mut(s.metric as usize).ok_or(TelemetryError::Metric(s.metric))?;
            (shape.disabled, shape.remove) = (s.disabled, s.remove.clone());
            for (label, text) in &s.set {
                let at = texts.iter().position(|t| t == text).unwrap_or_else(|| {
                    texts.push(text);
                    texts.len() - 1
                });
                shape.set.push((label.clone(), at));
            }
        }
        let values = texts.iter().map(|t| program(t)).collect::<Result<_, ExpressionError>>()?;
        let filter = if telemetry.log_filter.is_empty() { None } else { Some(program(&telemetry.log_filter)?) };
        texts.push(&telemetry.log_filter);
        texts.extend(telemetry.log_exports.iter().map(|export| export.filter.as_str()));
        let wants_headers = texts.iter().any(|t| t.contains("headers"));
        let tracing = telemetry.tracing.as_ref().map(Tracing::new).transpose()?.map(Arc::new);
        let exports = telemetry.log_exports.iter().map(Export::new).collect::<Result<_, _>>()?;
        // What is said of traces and exports changes no series.
        let said = ir::Telemetry { tracing: None, log_exports: vec![], ..telemetry.clone() };
        Ok(Self { log: !telemetry.no_log, filter, shapes, values, wants_headers, tracing, exports, said })
    }

    /// Collectors that another has named in the same way stay its own: what is known of them is known still, and their batches go on.
    pub fn keep_collectors(&mut self, before: &Self) {
        let tracing = self.tracing.as_mut().and_then(Arc::get_mut);
        if let (Some(new), Some(old)) = (tracing, &before.tracing)
            && new.collector.is_same(&old.collector)
        {
            new.collector = old.collector.clone();
        }
        for new in &mut self.exports {
            // A batch has the name of its log.
            let is_same = |old: &&Export| old.name == new.name && old.collector.is_same(&new.collector);
            if let Some(old) = before.exports.iter().find(is_same) {
                new.collector = old.collector.clone();
            }
        }
    }

    /// Does it say the same of metrics and logs as another?
    pub fn same(a: Option<&Self>, b: Option<&Self>) -> bool {
        a.map(|t| &t.said) == b.map(|t| &t.said)
    }

    /// Is there to be a line of the access log?
    pub fn logs(&self, info: &StreamInfo, sent: u64) -> bool {
        self.log && self.filter.as_ref().is_none_or(|f| matches!(evaluate(f, info, sent), Some(Value::Bool(true))))
    }

    /// The values of labels that are asked for. An expression that has none (a header that is not there) gives an empty one.
    pub fn values(&self, info: &StreamInfo, sent: u64) -> Vec<String> {
        self.values.iter().map(|p| evaluate(p, info, sent).map(text).unwrap_or_default()).collect()
    }

    /// Labels of each metric; none for one that is switched off.
    pub fn labels(&self, standard: &[(String, String)], values: &[String]) -> AllLabels {
        let one = |shape: &Shape| {
            if shape.disabled {
                return None;
            }
            let mut out = String::with_capacity(900);
            let replaced = |k: &String| shape.remove.contains(k) || shape.set.iter().any(|(l, _)| l == k);
            for (k, v) in standard.iter().filter(|(k, _)| !replaced(k)) {
                out.add(k, v);
            }
            for (k, at) in &shape.set {
                put(&mut out, k, values.get(*at).map_or("", String::as_str));
            }
            Some(Arc::from(out))
        };
        self.shapes.each_ref().map(one)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use ir::Metric;

    #[test]
    fn labels_are_shaped() {
        let shape = |m: Metric, remove: &[&str], set: &[(&str, &str)]| ir::Shape {
            metric: m as i32,
            disabled: m == Metric::RequestSize,
            remove: remove.iter().map(ToString::to_string).collect(),
            set: set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        let metrics = vec![
            shape(Metric::RequestCount, &["a"], &[("b", "request.host"), ("new", "request.path")]),
            shape(Metric::RequestSize, &[], &[]),
            shape(Metric::ResponseSize, &[], &[("new", "request.host")]),
        ];
        let t = Telemetry::new(&ir::Telemetry { metrics, ..Default::default() }).unwrap();
        assert_eq!(t.values.len(), 2, "the same expression is evaluated once");
        let standard = ["a", "b", "c"].map(|k| (k.to_string(), k.to_uppercase()));
        let labels = t.labels(&standard, &["host".into(), String::new()]);
        let wanted = [
            Some(r#"c="C",b="host",new="unknown""#),
            Some(r#"a="A",b="B",c="C""#),
            None,
            Some(r#"a="A",b="B",c="C",new="host""#),
        ];
        assert_eq!(labels.each_ref().map(|l| l.as_deref()), wanted);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let filter = |f: &str| Telemetry::new(&ir::Telemetry { log_filter: f.into(), ..Default::default() });
        assert!(filter("response.code ==").is_err() && filter(&"a".repeat(2000)).is_err());
        assert!(filter(&"(".repeat(1000)).is_err(), "and the stack stands it");
        assert!(filter("'x-a' in request.headers").unwrap().wants_headers);
        assert!(!filter("response.code == 500").unwrap().wants_headers);
        let metrics = vec![ir::Shape { metric: 9, ..Default::default() }];
        assert!(Telemetry::new(&ir::Telemetry { metrics, ..Default::default() }).is_err());
        let same = |a, b| Telemetry::same(filter(a).ok().as_ref(), filter(b).ok().as_ref());
        assert!(same("true", "true") && !same("true", "false") && !Telemetry::same(filter("true").ok().as_ref(), None));
    }

    #[test]
    fn what_is_known_of_collectors_outlasts_a_change() {
        let collector = |port| Some(ir::Collector { service: "ns/c".into(), port, ..Default::default() });
        let export =
            |name: &str, port| ir::LogExport { collector: collector(port), name: name.into(), ..Default::default() };
        let telemetry = |port, exports: &[(&str, u32)]| {
            let tracing = ir::Tracing { collector: collector(port), ..Default::default() };
            let log_exports = exports.iter().map(|(name, port)| export(name, *port)).collect();
            let said = ir::Telemetry { tracing: Some(tracing), log_exports, ..Default::default() };
            Telemetry::new(&said).unwrap()
        };
        let is_down = |telemetry: &Telemetry| {
            let tracing = telemetry.tracing.as_ref().unwrap().collector.health.is_down();
            (tracing, telemetry.exports.iter().map(|export| export.collector.health.is_down()).collect::<Vec<_>>())
        };
        let before = telemetry(1, &[("a", 1), ("b", 1)]);
        before.tracing.as_ref().unwrap().collector.health.fail();
        before.exports[1].collector.health.fail();
        // In another order, one of another port, and one of another name.
        let mut after = telemetry(1, &[("b", 1), ("a", 1), ("b", 2), ("c", 1)]);
        assert_eq!(is_down(&after), (false, vec![false; 4]));
        after.keep_collectors(&before);
        assert_eq!(is_down(&after), (true, vec![true, false, false, false]));
        assert!(Arc::ptr_eq(&after.exports[1].collector, &before.exports[0].collector));
        let mut other = telemetry(2, &[]);
        other.keep_collectors(&before);
        assert_eq!(is_down(&other), (false, vec![]));
    }

    #[test]
    fn collectors_of_the_log_change_no_series() {
        let collector = ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
        let export = |filter: &str| ir::LogExport {
            collector: Some(collector.clone()),
            filter: filter.into(),
            ..Default::default()
        };
        let with = |log_exports| Telemetry::new(&ir::Telemetry { log_exports, ..Default::default() }).unwrap();
        let (none, one) = (with(vec![]), with(vec![export("request.headers['a'] == 'b'")]));
        assert!(Telemetry::same(Some(&none), Some(&one)));
        assert_eq!((none.exports.len(), one.exports.len(), none.wants_headers, one.wants_headers), (0, 1, false, true));
        assert!(Telemetry::new(&ir::Telemetry { log_exports: vec![export("(")], ..Default::default() }).is_err());
    }
}
