//! Telemetry `tracing`, with the mesh configuration's `extensionProviders`, `defaultProviders.tracing` and `defaultConfig.tracing`,
//! as Istio reads them (`pilot/pkg/model/telemetry.go`, `Tracing()`): of each field the nearest Telemetry's counts; the first
//! provider is the one.

use crate::convert::{
    compilation::{
        expression::{ExpressionError, expression},
        provider::{SettingError, address, is_token, timeout},
    },
    objects::{FieldError, Objects},
};
use karst_api::route::{self as ir, custom_tag};
use karst_core::operators::{self, Fragment, Operator, OperatorError, Part};
use karst_manifest::{
    MeshConfig,
    mesh_config::{ExportHeader, ExtensionProvider, OpenTelemetryProvider, ZipkinProvider},
    telemetry::{CustomTag, Tracing},
};
use std::collections::BTreeMap;

/// Of requests about which nobody has decided, in per cent, where nothing is said (Istio's `PILOT_TRACE_SAMPLING`).
const SAMPLING: f64 = 1.0;
/// Where Zipkin takes spans.
const ZIPKIN_PATH: &str = "/api/v2/spans";
/// Zipkin's time for an export, in milliseconds (Istio's default).
const ZIPKIN_TIMEOUT: u64 = 5000;
/// Paths in tags are cut at latest here, in bytes.
const MAX_PATH: u32 = 65536;

/// Why a tag cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TagError {
    #[error("must have exactly one of literal, environment, header and formatter [KARST-0015]")]
    One,
    #[error("environment: specify the name of a variable [KARST-0010]")]
    Variable,
    #[error("header: {0:?} is not the name of a header [KARST-0024]")]
    Header(String),
    #[error("formatter: {0:?} {1}")]
    Operator(String, OperatorError),
    #[error(
        "formatter: {0:?} reads a header of the response, which is not kept: use %RESPONSE_CODE% or %CEL(…)% [KARST-0025]"
    )]
    Response(String),
    #[error("formatter: {0}")]
    Expression(#[from] ExpressionError),
}

/// Why a provider takes no spans.
#[derive(Debug, thiserror::Error)]
enum CollectorError {
    #[error("no such provider in extensionProviders of the mesh configuration: requests are not traced [KARST-0605]")]
    Missing,
    #[error(
        "takes no spans in this version: only providers of kind opentelemetry or zipkin do; requests are not traced [KARST-0605]"
    )]
    Kind,
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// What is wrong with one of a Telemetry's, by itself. `at`: its field.
pub(crate) fn problems(at: &str, tracing: &Tracing) -> Vec<FieldError> {
    let mut out = vec![];
    if let Some(percentage) = tracing.random_sampling_percentage.filter(|p| !(0.0..=100.0).contains(p)) {
        out.push((
            format!("{at}.randomSamplingPercentage"),
            format!("{percentage} is out of range: must be between 0 and 100 [KARST-0018]"),
        ));
    }
    let tags = tracing.custom_tags.iter();
    out.extend(
        tags.filter_map(|(name, tag)| Some((format!("{at}.customTags[{name}]"), value(tag).err()?.to_string()))),
    );
    out
}

/// What is wrong with the provider that one names. `at`: its field.
pub(crate) fn provider_problem(config: &MeshConfig, at: &str, tracing: &Tracing) -> Option<FieldError> {
    let name = &tracing.providers.first()?.name;
    let why = match collector(config, name) {
        Ok(_) => ignored(config, name)?,
        Err(why) => why.to_string(),
    };
    Some((format!("{at}.providers[0].name"), format!("{name:?}: {why}")))
}

/// What spans are made for a pod; none: it makes none. `said`: what the Telemetries for it say, the nearest last.
pub(crate) fn of_pod<'a>(objects: &Objects<'_>, said: impl Iterator<Item = &'a Tracing>) -> Option<ir::Tracing> {
    let config = objects.mesh_config;
    let defaults = &config.default_config.tracing;
    let mut provider = config.default_providers.tracing.first();
    let (mut sampling, mut tags) = (defaults.sampling, &defaults.custom_tags);
    let mut disabled = false;
    let mut out = ir::Tracing::default();
    for tracing in said {
        provider = tracing.providers.first().map(|p| &p.name).or(provider);
        sampling = tracing.random_sampling_percentage.filter(|p| (0.0..=100.0).contains(p)).or(sampling);
        disabled = tracing.disable_span_reporting.unwrap_or(disabled);
        if !tracing.custom_tags.is_empty() {
            tags = &tracing.custom_tags;
        }
        out.no_istio_tags = tracing.enable_istio_tags.map_or(out.no_istio_tags, |is| !is);
        out.ignore_request_id = tracing.use_request_id_for_trace_sampling.map_or(out.ignore_request_id, |is| !is);
        out.no_propagation = tracing.disable_context_propagation.unwrap_or(out.no_propagation);
    }
    if disabled {
        return None;
    }
    out.collector = Some(collector(config, provider?).ok()?);
    out.per_ten_thousand = (sampling.unwrap_or(SAMPLING) * 100.0).round() as u32;
    out.tags = compiled(tags);
    Some(out)
}

/// Those that can be made, by name.
fn compiled(tags: &BTreeMap<String, CustomTag>) -> Vec<ir::CustomTag> {
    let one =
        |(name, tag): (&String, &CustomTag)| Some(ir::CustomTag { name: name.clone(), value: Some(value(tag).ok()?) });
    tags.iter().filter_map(one).collect()
}

fn value(tag: &CustomTag) -> Result<custom_tag::Value, TagError> {
    match (&tag.literal, &tag.environment, &tag.header, &tag.formatter) {
        (Some(literal), None, None, None) => Ok(custom_tag::Value::Literal(literal.value.clone())),
        (None, Some(from), None, None) => {
            if from.name.is_empty() || from.name.contains(['=', '\0']) {
                return Err(TagError::Variable);
            }
            let source = ir::TagSource { name: from.name.clone(), or: from.default_value.clone() };
            Ok(custom_tag::Value::Environment(source))
        }
        (None, None, Some(from), None) => {
            if !is_token(&from.name) {
                return Err(TagError::Header(from.name.clone()));
            }
            let source = ir::TagSource { name: from.name.to_ascii_lowercase(), or: from.default_value.clone() };
            Ok(custom_tag::Value::Header(source))
        }
        (None, None, None, Some(format)) => {
            for fragment in operators::fragments(&format.value) {
                match fragment {
                    Fragment::Plain(text) => plain(text)?,
                    Fragment::Expression(text) => expression(text)?,
                }
            }
            Ok(custom_tag::Value::Format(format.value.clone()))
        }
        _ => Err(TagError::One),
    }
}

fn plain(text: &str) -> Result<(), TagError> {
    let parts = operators::parse(text).map_err(|e| TagError::Operator(text.into(), e))?;
    let kept = |part: &Part| match part {
        Part::Operator(Operator::Response(header), _) => header.name == ":status",
        Part::Operator(..) | Part::Text(_) => true,
    };
    if parts.iter().all(kept) { Ok(()) } else { Err(TagError::Response(text.into())) }
}

/// The provider of a name.
pub(crate) fn named<'a>(config: &'a MeshConfig, name: &str) -> Option<&'a ExtensionProvider> {
    config.extension_providers.iter().find(|p| p.name == name)
}

/// What of a provider has no effect.
fn ignored(config: &MeshConfig, name: &str) -> Option<String> {
    let named = named(config, name)?;
    if named.cache.is_some() {
        return Some("cache has no effect: it is for providers of external authorization [KARST-0030]".into());
    }
    let provider = named.opentelemetry.as_ref()?;
    let detectors = provider.resource_detectors.as_ref();
    let field = if provider.dynatrace_sampler.is_some() {
        "dynatraceSampler"
    } else if detectors.is_some_and(|d| d.dynatrace.is_some()) {
        "resourceDetectors.dynatrace"
    } else if !["", "ISTIO_CANONICAL"].contains(&provider.service_attribute_enrichment.as_str()) {
        "serviceAttributeEnrichment"
    } else {
        return None;
    };
    Some(format!("opentelemetry.{field} has no effect in this version [KARST-0030]"))
}

/// The collector that a provider is.
fn collector(config: &MeshConfig, name: &str) -> Result<ir::Collector, CollectorError> {
    let provider = named(config, name).ok_or(CollectorError::Missing)?;
    let mut out = match (&provider.opentelemetry, &provider.zipkin) {
        (Some(provider), None) => opentelemetry(provider)?,
        (None, Some(provider)) => zipkin(provider)?,
        _ => return Err(CollectorError::Kind),
    };
    if out.max_path == 0 {
        out.max_path = config.default_config.tracing.max_path_tag_length.unwrap_or_default();
    }
    out.max_path = out.max_path.min(MAX_PATH);
    Ok(out)
}

fn opentelemetry(provider: &OpenTelemetryProvider) -> Result<ir::Collector, SettingError> {
    let mut out = ir::Collector {
        environment: provider.resource_detectors.as_ref().is_some_and(|d| d.environment.is_some()),
        ..target(&provider.service, provider.port)?
    };
    out.max_path = provider.max_tag_length.unwrap_or_default();
    match (&provider.http, &provider.grpc) {
        (Some(_), Some(_)) => return Err(SettingError::HttpAndGrpc),
        (Some(http), None) => {
            out.set_protocol(ir::CollectorProtocol::OtlpHttp);
            out.path = path(&http.path)?;
            out.timeout_ms = timeout(&http.timeout)?;
            out.headers = headers(&http.headers)?;
        }
        (None, Some(grpc)) => {
            out.timeout_ms = timeout(&grpc.timeout)?;
            out.headers = headers(&grpc.initial_metadata)?;
        }
        (None, None) => {}
    }
    Ok(out)
}

fn zipkin(provider: &ZipkinProvider) -> Result<ir::Collector, SettingError> {
    let w3c = match provider.trace_context_option.as_str() {
        "" | "USE_B3" => false,
        "USE_B3_WITH_W3C_PROPAGATION" => true,
        other => return Err(SettingError::TraceContext(other.into())),
    };
    let mut out = ir::Collector {
        path: path(if provider.path.is_empty() { ZIPKIN_PATH } else { &provider.path })?,
        timeout_ms: if provider.timeout.is_empty() { ZIPKIN_TIMEOUT } else { timeout(&provider.timeout)? },
        headers: headers(&provider.headers)?,
        max_path: provider.max_tag_length.unwrap_or_default(),
        short_ids: provider.enable_64bit_trace_id,
        w3c,
        ..target(&provider.service, provider.port)?
    };
    out.set_protocol(ir::CollectorProtocol::Zipkin);
    Ok(out)
}

/// A collector that is a port of a service, called by gRPC unless more is said.
pub(crate) fn target(service: &str, port: u32) -> Result<ir::Collector, SettingError> {
    address(service, port)?;
    Ok(ir::Collector { service: service.into(), port, ..Default::default() })
}

fn path(path: &str) -> Result<String, SettingError> {
    let is_path = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&b));
    match path {
        "" => Ok("/".into()),
        path if is_path => Ok(path.into()),
        other => Err(SettingError::Path { field: "path", path: other.into() }),
    }
}

fn headers(all: &[ExportHeader]) -> Result<Vec<ir::CollectorHeader>, SettingError> {
    let one = |header: &ExportHeader| {
        let ExportHeader { name, value, env_name } = header;
        if !is_token(name) || value.bytes().any(|b| b != b'\t' && !(32..127).contains(&b)) {
            return Err(SettingError::Header(name.clone()));
        }
        if !value.is_empty() && !env_name.is_empty() {
            return Err(SettingError::HeaderTwice(name.clone()));
        }
        Ok(ir::CollectorHeader { name: name.clone(), value: value.clone(), environment: env_name.clone() })
    };
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
