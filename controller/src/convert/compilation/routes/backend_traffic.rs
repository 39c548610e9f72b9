//! Gateway API's XBackendTrafficPolicy (GEP-3388, of the experimental channel): how many retries a Service takes, and how its clients
//! come back to the same endpoint.

use crate::convert::{
    compilation::routes::{
        scalar::{gateway_api_duration, per_million},
        session,
    },
    facts::{hosts::Hosts, service},
    objects::{FieldError, Objects, age},
};
use karst_api::route as ir;
use karst_manifest::{
    gatewayapi::{BackendTrafficSpec, PolicyTarget, RequestRate, RetryConstraint, RetryPart, XBackendTrafficPolicy},
    parse::Located,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
};

/// Gateway API's defaults.
const PERCENT: i64 = 20;
const INTERVAL: u64 = 10 * SECOND;
const COUNT: i64 = 10;
const COUNT_INTERVAL: u64 = SECOND;
/// Most retries that there may always be (Gateway API).
const MOST: i64 = 1_000_000;
/// In milliseconds.
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
/// A reason of Gateway API.
pub(crate) const ACCEPTED: &str = "Accepted";

/// A reason of Gateway API, and the words.
type ReasonMessage = (&'static str, String);

/// What comes of a policy.
pub(crate) struct Verdict<'a> {
    at: &'a Located,
    pub(crate) policy: &'a XBackendTrafficPolicy,
    /// Its targets, and whether it is in force there.
    pub(crate) targets: Vec<(&'a PolicyTarget, ReasonMessage)>,
    retries: Option<ir::RetryRate>,
    bad: Vec<FieldError>,
}

/// Judges all of them, old before new: of two for the same Service the older one counts.
pub(crate) fn evaluate<'a>(objects: &Objects<'a>) -> Vec<Verdict<'a>> {
    let mut all = objects.backend_traffic.clone();
    all.sort_by_key(|(_, policy)| age(&policy.metadata));
    let mut taken = BTreeSet::new();
    all.into_iter().map(|(at, policy)| one(objects, at, policy, &mut taken)).collect()
}

/// The Services that have one, by namespace and name.
type Taken<'a> = BTreeSet<(&'a str, &'a str)>;

fn one<'a>(
    objects: &Objects<'a>,
    at: &'a Located,
    policy: &'a XBackendTrafficPolicy,
    taken: &mut Taken<'a>,
) -> Verdict<'a> {
    let (retries, wrong) = match settings(&policy.spec) {
        Ok(retries) => (retries, None),
        Err(wrong) => (None, Some(wrong)),
    };
    let mut verdict = Verdict { at, policy, targets: vec![], retries, bad: vec![] };
    for (i, target) in policy.spec.target_refs.iter().enumerate() {
        let said = match (found(objects, &policy.metadata.namespace, target, taken), &wrong) {
            (Err((reason, text)), _) => {
                let field = format!("spec.targetRefs[{i}]");
                let message = format!("{field}: {text}");
                verdict.bad.push((field, text));
                (reason, message)
            }
            (Ok(()), Some((field, text))) => ("Invalid", format!("{field}: {text}")),
            (Ok(()), None) => (ACCEPTED, "Policy was accepted".into()),
        };
        verdict.targets.push((target, said));
    }
    verdict.bad.extend(wrong);
    verdict
}

/// Takes a target, if it may be one and nobody has it.
fn found<'a>(
    objects: &Objects<'a>,
    ns: &'a str,
    target: &'a PolicyTarget,
    taken: &mut Taken<'a>,
) -> Result<(), ReasonMessage> {
    let name = target.name.as_str();
    let lost = |text: String| Err(("TargetNotFound", text));
    if !matches!((target.group.as_str(), target.kind.as_str()), ("" | "core", "Service")) {
        return lost(format!("unsupported target kind {:?}: use Service [KARST-0104]", target.kind));
    }
    match objects.service(ns, name) {
        None => return lost(format!("Service {ns}/{name} not found [KARST-0307]")),
        Some(found) if service::is_alias(found) => return lost(service::alias_text(found, "target", ns)),
        Some(_) => {}
    }
    if !taken.insert((ns, name)) {
        let text = format!("an older XBackendTrafficPolicy already applies to Service {ns}/{name} [KARST-0320]");
        return Err(("Conflicted", text));
    }
    Ok(())
}

/// What it says of retries, if all that it says can be done.
fn settings(spec: &BackendTrafficSpec) -> Result<Option<ir::RetryRate>, FieldError> {
    if spec.is_unread {
        return Err(("spec".into(), "cannot be read: see the controller's log for the reason [KARST-0001]".into()));
    }
    if let Some(persistence) = &spec.session_persistence {
        // What can be wrong is the same for each Service.
        session::of_rule(persistence, String::new(), SESSION)?;
    }
    spec.retry_constraint.as_ref().map(retry_rate).transpose()
}

const SESSION: &str = "spec.sessionPersistence";

fn retry_rate(constraint: &RetryConstraint) -> Result<ir::RetryRate, FieldError> {
    let RetryConstraint { budget, min_retry_rate } = constraint;
    let RetryPart { percent, interval } = budget.clone().unwrap_or_default();
    let RequestRate { count, interval: count_interval } = min_retry_rate.clone().unwrap_or_default();
    let field = |name: &str| format!("spec.retryConstraint.{name}");
    let count = count.unwrap_or(COUNT);
    let at_least = u32::try_from(count).ok().filter(|_| (1..=MOST).contains(&count)).ok_or_else(|| {
        let text = format!("{count} is out of range: must be between 1 and {MOST} [KARST-0017]");
        (field("minRetryRate.count"), text)
    })?;
    Ok(ir::RetryRate {
        per_million: per_million(percent.unwrap_or(PERCENT) as f64, &field("budget.percent"))?,
        interval_ms: match interval {
            Some(text) => duration(&text, SECOND..=HOUR, "1s", field("budget.interval"))?,
            None => INTERVAL,
        },
        at_least,
        at_least_ms: match count_interval {
            Some(text) => duration(&text, 1..=HOUR, "1ms", field("minRetryRate.interval"))?,
            None => COUNT_INTERVAL,
        },
    })
}

/// Milliseconds. `shortest`: the range's start, in words.
fn duration(text: &str, range: RangeInclusive<u64>, shortest: &str, at: String) -> Result<u64, FieldError> {
    match gateway_api_duration(text) {
        Err(e) => Err((at, e.to_string())),
        Ok(ms) if range.contains(&ms) => Ok(ms),
        Ok(_) => Err((at, format!("{text:?} is out of range: must be between {shortest} and 1h [KARST-0017]"))),
    }
}

/// Adds what they say to the backends, before what labels say of the same Service; gives back what is wrong with which.
pub(crate) fn compile<'a>(
    objects: &Objects<'a>,
    hosts: &Hosts,
    backends: &mut BTreeMap<String, Arc<ir::Backend>>,
) -> Vec<(&'a Located, FieldError)> {
    let mut bad = vec![];
    for verdict in evaluate(objects) {
        let (ns, persistence) = (&verdict.policy.metadata.namespace, &verdict.policy.spec.session_persistence);
        for (target, (reason, _)) in &verdict.targets {
            if *reason != ACCEPTED || (verdict.retries.is_none() && persistence.is_none()) {
                continue;
            }
            let Some(key) = hosts.service(&target.name, ns) else { continue };
            let backend = Arc::make_mut(backends.entry(key.to_string()).or_default());
            backend.retry_rate = verdict.retries;
            // A session is one Service's, also where a policy is for several.
            let scope = || format!("Service {ns}/{}", target.name);
            let session = persistence.as_ref().and_then(|own| session::of_rule(own, scope(), SESSION).ok());
            backend.session = session.or(backend.session.take());
        }
        bad.extend(verdict.bad.into_iter().map(|wrong| (verdict.at, wrong)));
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(constraint: &str) -> Result<Option<ir::RetryRate>, String> {
        let spec = format!("{{retryConstraint: {constraint}}}");
        let spec = serde_yaml_ng::from_str::<BackendTrafficSpec>(&spec).unwrap();
        settings(&spec).map_err(|(field, text)| format!("{field}: {text}"))
    }

    #[test]
    fn what_is_left_out_is_gateway_apis_default() {
        let rate = |percent: u32, interval_ms, at_least, at_least_ms| {
            Ok(Some(ir::RetryRate { per_million: percent * 10_000, interval_ms, at_least, at_least_ms }))
        };
        for (constraint, want) in [
            ("null", Ok(None)),
            ("{}", rate(20, 10_000, 10, 1000)),
            ("{budget: {percent: 0}}", rate(0, 10_000, 10, 1000)),
            ("{budget: {percent: 100, interval: 1h}}", rate(100, 3_600_000, 10, 1000)),
            ("{budget: {interval: 1s}, minRetryRate: {count: 1}}", rate(20, 1000, 1, 1000)),
            ("{minRetryRate: {count: 1000000, interval: 1m30s500ms}}", rate(20, 10_000, 1_000_000, 90_500)),
            ("{minRetryRate: {interval: 1ms}}", rate(20, 10_000, 10, 1)),
        ] {
            assert_eq!(of(constraint), want, "{constraint}");
        }
    }

    #[test]
    fn what_is_out_of_range_is_told_where_it_stands() {
        for (constraint, want) in [
            ("{budget: {percent: 101}}", "budget.percent: 101 is out of range: must be between 0 and 100 [KARST-0018]"),
            ("{budget: {percent: -1}}", "budget.percent: -1 is out of range: must be between 0 and 100 [KARST-0018]"),
            (
                "{budget: {interval: 999ms}}",
                r#"budget.interval: "999ms" is out of range: must be between 1s and 1h [KARST-0017]"#,
            ),
            (
                "{budget: {interval: 1h1ms}}",
                r#"budget.interval: "1h1ms" is out of range: must be between 1s and 1h [KARST-0017]"#,
            ),
            ("{budget: {interval: 1.5s}}", r#"budget.interval: invalid duration "1.5s": "#),
            (
                "{minRetryRate: {count: 0}}",
                "minRetryRate.count: 0 is out of range: must be between 1 and 1000000 [KARST-0017]",
            ),
            ("{minRetryRate: {count: 1000001}}", "minRetryRate.count: 1000001 is out of range: "),
            ("{minRetryRate: {count: 4294967297}}", "minRetryRate.count: 4294967297 is out of range: "),
            (
                "{minRetryRate: {interval: 0s}}",
                r#"minRetryRate.interval: "0s" is out of range: must be between 1ms and 1h [KARST-0017]"#,
            ),
            ("{minRetryRate: {interval: soon}}", r#"minRetryRate.interval: invalid duration "soon": "#),
        ] {
            let text = of(constraint).unwrap_err();
            assert!(text.starts_with(&format!("spec.retryConstraint.{want}")), "{constraint}: {text}");
        }
    }
}
