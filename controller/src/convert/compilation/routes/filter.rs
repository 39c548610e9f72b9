//! Karst's own HTTPFilter: faults, limits of rate and size, and compression, for all requests of services or for the routes that name
//! it.

use crate::{
    convert::{
        compilation::routes::{scalar::duration, virtual_service},
        facts::hosts::Hosts,
        objects::{FieldError, OWN_GROUP, Objects},
    },
    model::Model,
};
use karst_api::route as ir;
use karst_manifest::{
    extension::{Compression, HTTPFilter, RateLimit},
    gatewayapi::ExtensionRef,
    kinds::TargetRef,
};
use std::ops::RangeInclusive;

const REQUESTS: RangeInclusive<u32> = 1..=1_000_000;
/// Milliseconds: up to a day.
const PER: RangeInclusive<u64> = 1..=86_400_000;
/// Bytes of a request's body.
const BODY: RangeInclusive<u64> = 1..=1 << 40;
/// Bytes of the smallest body that is compressed.
const SMALLEST: RangeInclusive<u64> = 1..=1 << 30;

/// What a filter does.
#[derive(Default)]
pub(crate) struct Compiled {
    pub fault: Option<ir::Fault>,
    pub limits: Vec<ir::RateLimit>,
    /// 0: it says nothing of it.
    pub max_body_bytes: u64,
    pub compression: Option<ir::Compression>,
}

/// The filter of this namespace that a route names.
pub(crate) fn find<'a>(objects: &Objects<'a>, ns: &str, reference: &ExtensionRef) -> Option<&'a HTTPFilter> {
    objects.filter_named.get(&(ns, reference.name.as_str())).copied().filter(|_| is_one(reference))
}

/// Is it a filter of ours that is named?
pub(crate) fn is_one(reference: &ExtensionRef) -> bool {
    reference.group == OWN_GROUP && reference.kind == "HTTPFilter"
}

pub(crate) fn compile(filter: &HTTPFilter) -> Result<Compiled, FieldError> {
    let s = &filter.spec;
    let fault = s.fault.as_ref().map(|x| virtual_service::fault(x, "spec")).transpose()?;
    let limits = s.rate_limits.iter().enumerate().map(|(i, l)| {
        let name = format!("{}/{} {i}", filter.metadata.namespace, filter.metadata.name);
        limit(l, name, &format!("spec.rateLimits[{i}]"))
    });
    let limits = limits.collect::<Result<_, _>>()?;
    let max_body_bytes = s.max_request_bytes.map_or(Ok(0), |most| within(most, &BODY, "spec.maxRequestBytes"))?;
    let compression = s.compression.as_ref().map(|rule| compression(rule, "spec.compression")).transpose()?;
    Ok(Compiled { fault, limits, max_body_bytes, compression })
}

/// The smaller of two limits, of which 0 is none.
pub(crate) fn smaller(a: u64, b: u64) -> u64 {
    [a, b].into_iter().filter(|limit| *limit > 0).min().unwrap_or(0)
}

fn within(n: u64, range: &RangeInclusive<u64>, at: &str) -> Result<u64, FieldError> {
    match range.contains(&n) {
        true => Ok(n),
        false => Err((
            at.into(),
            format!("{n} is out of range: must be between {} and {} [KARST-0017]", range.start(), range.end()),
        )),
    }
}

fn compression(rule: &Compression, at: &str) -> Result<ir::Compression, FieldError> {
    let min_bytes = rule.min_bytes.map_or(Ok(0), |n| within(n.into(), &SMALLEST, &format!("{at}.minBytes")))?;
    for (index, kind) in rule.content_types.iter().enumerate() {
        let at = || format!("{at}.contentTypes[{index}]");
        let is_token = |s: &str| !s.contains('*') && http::HeaderName::from_bytes(s.as_bytes()).is_ok();
        if !kind.split_once('/').is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype)) {
            let text = format!(
                "{kind:?} is not a content type: use TYPE/SUBTYPE without parameters, for example text/html [KARST-0024]"
            );
            return Err((at(), text));
        }
        if kind.to_ascii_lowercase().starts_with("application/grpc") {
            let text =
                format!("{kind:?} is not supported, because gRPC compresses its own messages: remove it [KARST-0016]");
            return Err((at(), text));
        }
    }
    let content_types = rule.content_types.iter().map(|kind| kind.to_ascii_lowercase()).collect();
    Ok(ir::Compression { min_bytes: min_bytes as u32, content_types })
}

fn limit(limit: &RateLimit, name: String, at: &str) -> Result<ir::RateLimit, FieldError> {
    let count = |n: u32, field: &str| match REQUESTS.contains(&n) {
        true => Ok(n),
        false => Err((
            format!("{at}.{field}"),
            format!("{n} is out of range: must be between 1 and {} [KARST-0017]", REQUESTS.end()),
        )),
    };
    let requests = count(limit.requests, "requests")?;
    let per = limit.per.as_deref().unwrap_or("1s");
    let per_ms = duration(per).map_err(|e| (format!("{at}.per"), e.to_string()))?;
    if !PER.contains(&per_ms) {
        return Err((
            format!("{at}.per"),
            format!("{per:?} is out of range: must be between 1ms and 24h [KARST-0017]"),
        ));
    }
    let by_caller = match limit.by.as_deref().unwrap_or("All") {
        "All" => false,
        "Caller" => true,
        other => {
            return Err((format!("{at}.by"), format!("unsupported value {other:?}: use All or Caller [KARST-0016]")));
        }
    };
    Ok(ir::RateLimit { name, requests, per_ms, burst: count(limit.burst.unwrap_or(requests), "burst")?, by_caller })
}

/// Adds a filter to the services that it names.
pub(crate) fn attach(filter: &HTTPFilter, hosts: &Hosts, model: &mut Model) -> Vec<FieldError> {
    let ns = &filter.metadata.namespace;
    let compiled = match compile(filter) {
        Ok(c) => c,
        Err(b) => return vec![b],
    };
    let mut bad = vec![];
    for (index, target_ref) in filter.spec.target_refs.iter().enumerate() {
        if let Some(b) = target(target_ref, ns, &format!("spec.targetRefs[{index}]")) {
            bad.push(b);
            continue;
        }
        // A service that is not there has no requests.
        let Some(key) = hosts.service(&target_ref.name, ns) else { continue };
        if model.services.get(&**key).is_some_and(|s| s.waypoint.is_none()) {
            let text = format!(
                "Service {} uses no waypoint, so this has no effect: label it istio.io/use-waypoint [KARST-0701]",
                target_ref.name
            );
            bad.push((format!("spec.targetRefs[{index}]"), text));
        }
        let mut routes = model.routes.get(&**key).map(|r| (**r).clone()).unwrap_or_default();
        routes.limits.extend(compiled.limits.iter().cloned());
        routes.fault = routes.fault.or(compiled.fault);
        routes.max_body_bytes = smaller(routes.max_body_bytes, compiled.max_body_bytes);
        routes.compression = routes.compression.or_else(|| compiled.compression.clone());
        model.routes.insert(key.to_string(), routes.into());
    }
    bad
}

fn target(target: &TargetRef, ns: &str, at: &str) -> Option<FieldError> {
    if !matches!(target.group.as_str(), "" | "core") || target.kind != "Service" {
        let text = format!(
            "unsupported target kind {:?}: use Service, or refer to this filter by an ExtensionRef in a route [KARST-0104]",
            target.kind
        );
        return Some((format!("{at}.kind"), text));
    }
    let other = target.namespace.as_deref().filter(|n| *n != ns)?;
    Some((
        format!("{at}.namespace"),
        format!("{other:?} is another namespace: create the filter in the namespace of its Service [KARST-0106]"),
    ))
}
