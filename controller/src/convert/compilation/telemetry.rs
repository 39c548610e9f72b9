//! Istio's Telemetry: what waypoints and gateways write into their metrics, where their access logs go ([`logs`]), and which requests
//! they trace ([`traces`]).
//!
//! The one of the mesh (root namespace), of the pod's namespace and of the pod (by selector or `targetRefs`) are laid over each
//! other, the nearest last: a field that it has replaces what was said before (Istio's order). Of several of one rank the
//! oldest counts.

use crate::convert::{
    compilation::{
        expression::{ExpressionError, expression},
        logs, traces,
    },
    facts::attached::{self, Attached},
    objects::{FieldError, Objects, age, problem},
};
use karst_api::route as ir;
use karst_manifest::{MeshConfig, Problem, kinds::*, telemetry::*};
use std::{borrow::Cow, collections::BTreeMap};

/// What serves the proxy's metrics. Others cannot be configured.
const METRICS: &str = "prometheus";
/// Metrics of waypoints and gateways that can be changed, by Istio's names and by their own.
const KNOWN: [(&str, &str, ir::Metric); 4] = [
    ("REQUEST_COUNT", "istio_requests_total", ir::Metric::RequestCount),
    ("REQUEST_DURATION", "istio_request_duration_milliseconds", ir::Metric::RequestDuration),
    ("REQUEST_SIZE", "istio_request_bytes", ir::Metric::RequestSize),
    ("RESPONSE_SIZE", "istio_response_bytes", ir::Metric::ResponseSize),
];
/// Those that are told as they are, or not at all: an override of theirs changes nothing.
const OTHERS: [&str; 6] = [
    "TCP_OPENED_CONNECTIONS",
    "TCP_CLOSED_CONNECTIONS",
    "TCP_SENT_BYTES",
    "TCP_RECEIVED_BYTES",
    "GRPC_REQUEST_MESSAGES",
    "GRPC_RESPONSE_MESSAGES",
];
const MODES: [&str; 4] = ["", "CLIENT_AND_SERVER", "CLIENT", "SERVER"];

/// Those that are for somebody, without what is wrong in them; that is reported. Expressions are looked at here, once, and not for
/// each pod.
pub(crate) fn effective<'a>(objects: &Objects<'a>, reported: &mut Vec<Problem>) -> Vec<Cow<'a, Telemetry>> {
    let mut out = vec![];
    // At admission, and where objects are read from files, there is none to judge providers by.
    let is_configured = *objects.mesh_config != MeshConfig::default();
    for (at, telemetry) in &objects.telemetry {
        let bad = problems(objects, telemetry);
        for (i, t) in telemetry.spec.tracing.iter().enumerate().filter(|_| is_configured) {
            let found = traces::provider_problem(objects.mesh_config, &format!("spec.tracing[{i}]"), t);
            reported.extend(found.map(|(field, text)| problem(at, field, text)));
        }
        for (i, l) in telemetry.spec.access_logging.iter().enumerate().filter(|_| is_configured) {
            let found = logs::provider_problems(objects.mesh_config, &format!("spec.accessLogging[{i}]"), l);
            reported.extend(found.into_iter().map(|(field, text)| problem(at, field, text)));
        }
        if bad.is_empty() {
            out.push(Cow::Borrowed(*telemetry));
        } else if ineffective_reason(objects, telemetry).is_none() {
            let mut telemetry = Telemetry::clone(telemetry);
            for l in &mut telemetry.spec.access_logging {
                l.filter.take_if(|f| expression(&f.expression).is_err());
            }
            for o in telemetry.spec.metrics.iter_mut().flat_map(|m| &mut m.overrides) {
                o.tag_overrides.retain(|tag, t| tag_override(tag, t).is_ok());
            }
            out.push(Cow::Owned(telemetry));
        }
        reported.extend(bad.into_iter().map(|(field, text)| problem(at, field, text)));
    }
    out
}

/// What a waypoint's or gateway's pod is told; none if nothing is said. `all`: the usable ones; `own`: its Gateway; `client`: it is
/// no waypoint.
pub(crate) fn of_pod(
    objects: &Objects<'_>,
    all: &[Cow<'_, Telemetry>],
    pod: &Pod,
    own: Option<&Gateway>,
    client: bool,
) -> Option<ir::Telemetry> {
    let (ns, root) = (&pod.metadata.namespace, &objects.mesh.root_namespace);
    let all = all.iter().map(|t| &**t);
    let mut applied: Vec<&Telemetry> = all.filter(|t| attached::applies(objects, pod, own, *t)).collect();
    // What the mesh configuration says comes before all of them.
    let config = objects.mesh_config;
    if applied.is_empty() && !objects.has_mesh_wide_telemetry() {
        return None;
    }
    let rank = |t: &Telemetry| match t.spec.selector.is_some() || t.is_attached() {
        true => 2,
        false => u8::from(t.metadata.namespace == *ns && ns != root),
    };
    applied.sort_by_key(|t| (rank(t), age(&t.metadata)));
    applied.dedup_by_key(|t| rank(t));
    let ours = |mode: &str| MODES[..2].contains(&mode) || (mode == "CLIENT") == client;
    let mut out = ir::Telemetry::default();
    let logging = applied.iter().flat_map(|t| &t.spec.access_logging);
    logs::tell(config, logging.filter(|l| ours(l.matched.as_ref().map_or("", |m| &m.mode))), &mut out);
    let mut shapes: BTreeMap<ir::Metric, ir::Shape> = BTreeMap::new();
    for spec in applied.iter().map(|t| &t.spec) {
        for change in spec.metrics.iter().filter(|m| provided(&m.providers, METRICS)).flat_map(|m| &m.overrides) {
            if ours(change.matched.as_ref().map_or("", |m| &m.mode)) {
                for m in metrics(change.matched.as_ref()) {
                    let one = shapes.entry(m).or_insert_with(|| ir::Shape { metric: m as i32, ..Default::default() });
                    lay_over(one, change);
                }
            }
        }
    }
    out.metrics = shapes.into_values().collect();
    let tracing = applied.iter().flat_map(|t| &t.spec.tracing);
    out.tracing = traces::of_pod(objects, tracing.filter(|t| ours(t.matched.as_ref().map_or("", |m| &m.mode))));
    Some(out)
}

fn provided(named: &[Provider], ours: &str) -> bool {
    named.is_empty() || named.iter().any(|p| p.name == ours)
}

/// The metrics that are meant.
fn metrics(matching: Option<&MetricMatch>) -> Vec<ir::Metric> {
    let known = |name: &str| KNOWN.iter().filter(|(n, c, _)| *n == name || *c == name).map(|(_, _, m)| *m).collect();
    match matching {
        Some(m) if !m.custom_metric.is_empty() => known(&m.custom_metric),
        Some(m) if !["", "ALL_METRICS"].contains(&m.metric.as_str()) => known(&m.metric),
        _ => KNOWN.map(|(_, _, m)| m).into(),
    }
}

fn lay_over(shape: &mut ir::Shape, change: &MetricsOverride) {
    shape.disabled = change.disabled.unwrap_or(shape.disabled);
    for (tag, tag_override) in &change.tag_overrides {
        shape.remove.retain(|r| r != tag);
        shape.set.remove(tag);
        if tag_override.operation == "REMOVE" {
            shape.remove.push(tag.clone());
        } else {
            shape.set.insert(tag.clone(), tag_override.value.clone());
        }
    }
}

/// Why a label cannot be set or removed.
#[derive(Debug, thiserror::Error)]
enum TagError {
    #[error("is not a valid label name: use letters, digits and '_' [KARST-0602]")]
    Name,
    #[error("{0}")]
    Expression(#[from] ExpressionError),
    #[error("operation REMOVE takes no value: remove value [KARST-0603]")]
    RemovedWithValue,
    #[error("unsupported operation {0:?}: use UPSERT or REMOVE [KARST-0016]")]
    Operation(String),
}

fn tag_override(tag: &str, change: &TagOverride) -> Result<(), TagError> {
    let mut rest = tag.chars();
    let begins = rest.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !begins || !rest.all(|c| c.is_ascii_alphanumeric() || c == '_') || tag == "le" {
        return Err(TagError::Name);
    }
    match change.operation.as_str() {
        "" | "UPSERT" => Ok(expression(&change.value)?),
        "REMOVE" if change.value.is_empty() => Ok(()),
        "REMOVE" => Err(TagError::RemovedWithValue),
        other => Err(TagError::Operation(other.into())),
    }
}

/// Why it is for nobody, if it is not.
fn ineffective_reason(objects: &Objects<'_>, telemetry: &Telemetry) -> Option<FieldError> {
    attached::ineffective_reason(objects, telemetry)
        .or_else(|| attached::selector(telemetry.spec.selector.as_ref()?).err())
}

/// What is wrong with it.
fn problems(objects: &Objects<'_>, telemetry: &Telemetry) -> Vec<FieldError> {
    let mut out: Vec<FieldError> = ineffective_reason(objects, telemetry).into_iter().collect();
    let mut mode = |at: String, mode: &str| {
        if !MODES.contains(&mode) {
            out.push((at, format!("unsupported value {mode:?}: use CLIENT, SERVER or CLIENT_AND_SERVER [KARST-0016]")));
        }
    };
    let spec = &telemetry.spec;
    for (i, l) in spec.access_logging.iter().enumerate() {
        mode(format!("spec.accessLogging[{i}].match.mode"), l.matched.as_ref().map_or("", |m| &m.mode));
    }
    for (i, l) in spec.tracing.iter().enumerate() {
        mode(format!("spec.tracing[{i}].match.mode"), l.matched.as_ref().map_or("", |m| &m.mode));
    }
    let overrides = spec.metrics.iter().enumerate().flat_map(|(i, m)| {
        m.overrides.iter().enumerate().map(move |(j, o)| (format!("spec.metrics[{i}].overrides[{j}]"), o))
    });
    for (at, o) in overrides.clone() {
        mode(format!("{at}.match.mode"), o.matched.as_ref().map_or("", |m| &m.mode));
    }
    for (i, l) in spec.access_logging.iter().enumerate() {
        if let Some(Err(e)) = l.filter.as_ref().map(|f| expression(&f.expression)) {
            out.push((format!("spec.accessLogging[{i}].filter.expression"), e.to_string()));
        }
    }
    for (i, t) in spec.tracing.iter().enumerate() {
        out.extend(traces::problems(&format!("spec.tracing[{i}]"), t));
    }
    for (at, change) in overrides {
        if let Some(matching) = &change.matched {
            let names = KNOWN.map(|(n, ..)| n);
            let known = ["", "ALL_METRICS"].into_iter().chain(names).chain(OTHERS).any(|k| k == matching.metric);
            if !known {
                out.push((
                    format!("{at}.match.metric"),
                    format!(
                        "unsupported value {:?}: use ALL_METRICS, {} or {} [KARST-0016]",
                        matching.metric,
                        names.join(", "),
                        OTHERS.join(", ")
                    ),
                ));
            }
            if !matching.metric.is_empty() && !matching.custom_metric.is_empty() {
                out.push((
                    format!("{at}.match.customMetric"),
                    "cannot be combined with metric: remove one of them [KARST-0014]".into(),
                ));
            }
        }
        for (tag, telemetry) in &change.tag_overrides {
            if let Err(e) = tag_override(tag, telemetry) {
                out.push((format!("{at}.tagOverrides[{tag}]"), e.to_string()));
            }
        }
    }
    out
}

/// What has no effect.
pub(crate) fn warnings(telemetry: &Telemetry) -> Vec<String> {
    let (spec, mut out) = (&telemetry.spec, vec![]);
    for (path, target) in spec.targets().filter(|(_, r)| r.kind.starts_with("Service")) {
        out.push(format!(
            "{path}: {} has no effect in this version: specify the Gateway of its waypoint [KARST-0030]",
            target.kind
        ));
    }
    for (i, m) in spec.metrics.iter().enumerate() {
        for provider in m.providers.iter().filter(|p| p.name != METRICS) {
            out.push(format!(
                "spec.metrics[{i}].providers: {:?} is not supported in this version: only {METRICS} is [KARST-0030]",
                provider.name
            ));
        }
    }
    for (i, t) in spec.tracing.iter().enumerate().filter(|(_, t)| t.providers.len() > 1) {
        let first = t.providers.first().map_or("", |p| &p.name);
        out.push(format!("spec.tracing[{i}].providers: only the first, {first:?}, takes spans [KARST-0030]"));
    }
    for (index, m) in spec.metrics.iter().enumerate() {
        for (j, o) in m.overrides.iter().enumerate() {
            if o.matched.as_ref().is_some_and(|m| metrics(Some(m)).is_empty()) {
                out.push(format!("spec.metrics[{index}].overrides[{j}].match: waypoints and gateways do not report this metric [KARST-0604]"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::convert::{compile, tests::mesh};
    use karst_manifest::{State, parse};
    use std::sync::Arc;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: w, namespace: app, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: app}\nspec: {gatewayClassName: CLASS, listeners: []}\n";

    fn told(objects: &[(&str, &str, &str)], client: bool) -> Option<ir::Telemetry> {
        let one = |(ns, name, spec): &(&str, &str, &str)| {
            format!(
                "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: {name}, namespace: {ns}}}\nspec: {spec}\n"
            )
        };
        let text = POD.replace("CLASS", if client { "istio" } else { "istio-waypoint" });
        let text = text + &objects.iter().map(one).collect::<String>();
        let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
        let (model, problems) = compile(&State { objects, ..State::default() }, &mesh());
        assert!(problems.is_empty(), "{problems:?}");
        model.gateways.get("app/w")?.telemetry.clone()
    }

    /// `accessLogFile` of the mesh configuration is what holds before any Telemetry.
    #[test]
    fn the_mesh_configuration_comes_first() {
        let told = |file: Option<&str>, telemetry: &str| {
            let text = POD.replace("CLASS", "istio-waypoint")
                + &format!(
                    "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: app}}\nspec: {telemetry}\n"
                );
            let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
            let config = karst_manifest::MeshConfig { access_log_file: file.map(String::from), ..Default::default() };
            let state = State { objects, mesh_config: Arc::new(config), ..State::default() };
            compile(&state, &mesh()).0.gateways.get("app/w").and_then(|g| g.telemetry.as_ref().map(|t| t.no_log))
        };
        assert_eq!(told(None, "{metrics: []}"), Some(false));
        assert_eq!(told(Some("/dev/stdout"), "{metrics: []}"), Some(false));
        assert_eq!(told(Some(""), "{metrics: []}"), Some(true));
        assert_eq!(told(Some(""), "{accessLogging: [{providers: [{name: envoy}]}]}"), Some(false), "who asks for one");
        assert_eq!(told(Some("/dev/stdout"), "{accessLogging: [{disabled: true}]}"), Some(true));
    }

    #[test]
    fn the_nearest_counts_field_by_field() {
        assert_eq!(told(&[], false), None);
        let mesh = ("istio-system", "m", "{accessLogging: [{disabled: true}]}");
        assert!(told(&[mesh], false).unwrap().no_log);
        let ns = ("app", "n", "{accessLogging: [{filter: {expression: response.code >= 400}}]}");
        let t = told(&[mesh, ns], false).unwrap();
        assert!(t.no_log && t.log_filter == "response.code >= 400", "{t:?}");
        let own = (
            "app",
            "a",
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}], accessLogging: [{disabled: false}]}",
        );
        let t = told(&[own, ns, mesh], false).unwrap();
        assert!(!t.no_log && t.log_filter == "response.code >= 400", "the order of objects means nothing: {t:?}");
        assert_eq!(told(&[("other", "o", "{accessLogging: [{disabled: true}]}")], false), None);
        let client = ("app", "c", "{accessLogging: [{match: {mode: CLIENT}, disabled: true}]}");
        assert_eq!([true, false].map(|c| told(&[client], c).unwrap().no_log), [true, false]);
        let elsewhere = ("app", "e", "{accessLogging: [{providers: [{name: otel}], disabled: true}]}");
        assert!(!told(&[elsewhere], false).unwrap().no_log, "it says nothing of our log");
    }

    #[test]
    fn metrics_are_shaped() {
        let mesh = (
            "istio-system",
            "m",
            "{metrics: [{overrides: [{match: {metric: ALL_METRICS}, tagOverrides: {source_app: {operation: REMOVE}, host: {value: request.host}}}, {match: {metric: REQUEST_SIZE}, disabled: true}]}]}",
        );
        let t = told(&[mesh], false).unwrap();
        assert_eq!(t.metrics.len(), 4);
        for m in &t.metrics {
            assert_eq!((&m.remove[..], m.set["host"].as_str()), (&["source_app".to_string()][..], "request.host"));
            assert_eq!(m.disabled, m.metric() == ir::Metric::RequestSize);
        }
        let ns = (
            "app",
            "n",
            "{metrics: [{overrides: [{match: {customMetric: istio_request_bytes}, disabled: false, tagOverrides: {host: {operation: REMOVE}}}]}]}",
        );
        let t = told(&[mesh, ns], false).unwrap();
        let m = t.metrics.iter().find(|m| m.metric() == ir::Metric::RequestSize).unwrap();
        assert!(!m.disabled && m.set.is_empty() && m.remove == ["source_app", "host"], "{m:?}");
    }
}
