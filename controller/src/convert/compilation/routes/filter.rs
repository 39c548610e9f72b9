//! Karst's own HTTPFilter: faults, limits of rate and size, and compression, for all requests of services or VirtualServices, or for
//! the routes that name it.

use crate::{
    convert::{
        compilation::routes::{
            fault,
            scalar::{duration, header_name},
        },
        facts::hosts::Hosts,
        objects::{FieldError, OWN_GROUP, Objects},
    },
    model::Model,
};
use karst_api::route::{self as ir, rate_limit_key::Key};
use karst_core::claims;
use karst_manifest::{
    extension::{Compression, FilterTargetRef, HTTPFilter, RateLimit, RateLimitKey},
    gatewayapi::ExtensionRef,
};
use std::ops::RangeInclusive;

const REQUESTS: RangeInclusive<u32> = 1..=1_000_000;
/// Answered where a filter cannot be executed.
const UNEXECUTED: u32 = 500;
/// Most keys of a limit.
const KEYS: usize = 8;
const VIRTUAL_SERVICE: &str = "VirtualService";
const ISTIO_GROUP: &str = "networking.istio.io";
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
    if s.is_unread {
        return Err(("spec".into(), "cannot be read: requests that it is for are refused [KARST-0001]".into()));
    }
    let fault = s.fault.as_ref().map(|x| fault::compile(x, "spec")).transpose()?;
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
    if limit.by.is_some() && !limit.keys.is_empty() {
        return Err((format!("{at}.by"), "must not be set together with keys: use the key Caller [KARST-0014]".into()));
    }
    if limit.keys.len() > KEYS {
        let text = format!("{} keys are out of range: use at most {KEYS} [KARST-0017]", limit.keys.len());
        return Err((format!("{at}.keys"), text));
    }
    let keys = limit.keys.iter().enumerate().map(|(i, k)| key(k, &format!("{at}.keys[{i}]")));
    let keys = keys.map(|key| key.map(|key| ir::RateLimitKey { key: Some(key) })).collect::<Result<_, _>>()?;
    let burst = count(limit.burst.unwrap_or(requests), "burst")?;
    let shared = match limit.scope.as_deref().unwrap_or("Replica") {
        "Replica" => String::new(),
        "Shared" => name.clone(),
        other => {
            let text = format!("unsupported value {other:?}: use Replica or Shared [KARST-0016]");
            return Err((format!("{at}.scope"), text));
        }
    };
    Ok(ir::RateLimit { name, requests, per_ms, burst, by_caller, keys, shared })
}

/// What tells buckets apart.
fn key(key: &RateLimitKey, at: &str) -> Result<Key, FieldError> {
    let named = |what: &str| match key.name.is_empty() {
        true => Err((format!("{at}.name"), format!("is empty: specify the name of a {what} [KARST-0010]"))),
        false => Ok(key.name.clone()),
    };
    let unnamed = |key_of: Key| match key.name.is_empty() {
        true => Ok(key_of),
        false => Err((format!("{at}.name"), format!("must not be set for {} [KARST-0014]", key.r#type))),
    };
    match key.r#type.as_str() {
        "Header" => header_name(&named("header")?, format!("{at}.name")).map(Key::Header),
        "Query" => named("parameter").map(Key::Query),
        "Claim" => claim(&named("claim")?, at).map(Key::Claim),
        "Path" => unnamed(Key::Path(true)),
        "SourceAddress" => unnamed(Key::SourceAddress(true)),
        "Caller" => unnamed(Key::Caller(true)),
        other => Err((
            format!("{at}.type"),
            format!(
                "unsupported value {other:?}: use Header, Query, Claim, Path, SourceAddress or Caller [KARST-0016]"
            ),
        )),
    }
}

/// Names of claims as routes have them, without what those begin with.
fn claim(name: &str, at: &str) -> Result<String, FieldError> {
    let dot = if name.starts_with('[') { "" } else { "." };
    match claims::path(&format!("@request.auth.claims{dot}{name}")) {
        Some(Ok(path)) => Ok(path.join("][")),
        Some(Err(_)) | None => Err((
            format!("{at}.name"),
            format!(
                "{name:?} is not the name of a claim: use for example groups or [realm_access][roles] [KARST-0024]"
            ),
        )),
    }
}

/// The filters for a route of a VirtualService. What is wrong with one is told where it stands.
pub(crate) fn of_virtual_service<'a>(
    objects: &Objects<'a>,
    (ns, name, route): (&str, &str, &str),
) -> impl Iterator<Item = &'a HTTPFilter> {
    let all = objects.filters_of.get(ns).and_then(|here| here.get(name)).map_or(&[][..], Vec::as_slice);
    let is_for = move |t: &FilterTargetRef| {
        let is_here = t.name == name && t.namespace.as_deref().is_none_or(|other| other == ns);
        is_virtual_service(t) && is_here && t.section_name.as_deref().is_none_or(|section| section == route)
    };
    all.iter().copied().filter(move |f| f.spec.target_refs.iter().any(is_for))
}

/// Is a VirtualService meant?
pub(crate) fn is_virtual_service(target: &FilterTargetRef) -> bool {
    target.kind == VIRTUAL_SERVICE && target.group == ISTIO_GROUP
}

/// A rule with its filters. None: one of them cannot be read, and requests do not go on without it.
pub(crate) fn extended(mut rule: ir::HttpRule, filters: &[&HTTPFilter]) -> Option<ir::HttpRule> {
    for filter in filters {
        let compiled = compile(filter).ok()?;
        // A delegate, and who delegates to it, may both be targets.
        let new = compiled.limits.into_iter().filter(|limit| !rule.limits.contains(limit)).collect::<Vec<_>>();
        rule.limits.extend(new);
        rule.fault = rule.fault.or(compiled.fault);
        rule.max_body_bytes = smaller(rule.max_body_bytes, compiled.max_body_bytes);
        rule.compression = rule.compression.take().or(compiled.compression);
    }
    Some(rule)
}

/// Adds a filter to the services that it names; one that cannot be read refuses their requests.
pub(crate) fn attach(objects: &Objects<'_>, filter: &HTTPFilter, hosts: &Hosts, model: &mut Model) -> Vec<FieldError> {
    let ns = &filter.metadata.namespace;
    let compiled = compile(filter);
    let mut bad: Vec<FieldError> = compiled.as_ref().err().cloned().into_iter().collect();
    for (index, target_ref) in filter.spec.target_refs.iter().enumerate() {
        if let Some(b) = target(target_ref, ns, &format!("spec.targetRefs[{index}]")) {
            bad.push(b);
            continue;
        }
        // Its rules have it already.
        if is_virtual_service(target_ref) {
            bad.extend(no_section(objects, target_ref, ns, &format!("spec.targetRefs[{index}]")));
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
        match &compiled {
            Ok(compiled) => add(&mut routes, compiled, key),
            Err(_) => close(&mut routes, &format!("HTTPFilter {ns}/{}", filter.metadata.name)),
        }
        model.routes.insert(key.to_string(), routes.into());
    }
    bad
}

/// Adds a filter to the routes of a service.
fn add(routes: &mut ir::Routes, compiled: &Compiled, key: &str) {
    // Each service has its own.
    routes.limits.extend(compiled.limits.iter().cloned().map(|mut limit| {
        if !limit.shared.is_empty() {
            limit.shared = format!("{} {key}", limit.shared);
        }
        limit
    }));
    routes.fault = routes.fault.or(compiled.fault);
    routes.max_body_bytes = smaller(routes.max_body_bytes, compiled.max_body_bytes);
    routes.compression = routes.compression.take().or_else(|| compiled.compression.clone());
}

/// Answers all requests to a service as Gateway API has it for a rule whose filter cannot be executed. (Connections have no filters.)
fn close(routes: &mut ir::Routes, origin: &str) {
    let response = Some(ir::DirectResponse { status: UNEXECUTED, body: vec![] });
    let all = Some(ir::Match::default());
    let rule = ir::HttpRule { origin: origin.into(), r#match: all, response, ..Default::default() };
    let consumers = routes.consumers.iter_mut().map(|consumer| &mut consumer.table);
    for table in consumers.chain([&mut routes.producer]) {
        table.get_or_insert_default().http = vec![rule.clone()];
    }
}

/// A VirtualService without a route of the name that a target has. (One that is not there has no requests.)
fn no_section(objects: &Objects<'_>, target: &FilterTargetRef, ns: &str, at: &str) -> Option<FieldError> {
    let section = target.section_name.as_deref()?;
    let mut all = objects.virtual_services.iter().map(|(_, v)| v);
    let named = all.find(|v| v.metadata.namespace == ns && v.metadata.name == target.name)?;
    let is_there = named.spec.http.iter().any(|route| route.name == section);
    let text = format!("VirtualService {} has no HTTP route with the name {section:?} [KARST-0307]", target.name);
    (!is_there).then(|| (format!("{at}.sectionName"), text))
}

fn target(target: &FilterTargetRef, ns: &str, at: &str) -> Option<FieldError> {
    let is_service = matches!(target.group.as_str(), "" | "core") && target.kind == "Service";
    if !is_service && !is_virtual_service(target) {
        let text = format!(
            "unsupported target kind {:?}: use Service, or VirtualService of {ISTIO_GROUP}, or refer to this filter by an ExtensionRef in a route [KARST-0104]",
            target.kind
        );
        return Some((format!("{at}.kind"), text));
    }
    if is_service && target.section_name.is_some() {
        let text =
            "is supported only for a VirtualService: refer to this filter by an ExtensionRef in a route [KARST-0029]";
        return Some((format!("{at}.sectionName"), text.into()));
    }
    let other = target.namespace.as_deref().filter(|n| *n != ns)?;
    Some((
        format!("{at}.namespace"),
        format!(
            "{other:?} is another namespace: create the filter in the namespace of its {} [KARST-0106]",
            target.kind
        ),
    ))
}
