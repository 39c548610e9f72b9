//! Where the access log goes: Telemetry `accessLogging` with the mesh configuration's `accessLogFile`, `defaultProviders.accessLogging`
//! and `extensionProviders` of kind `envoyOtelAls`. Who names no provider means those that were named before; of each provider and each
//! field the nearest Telemetry's counts. A provider is switched off by its own name alone: who names a collector keeps the proxy's
//! output (`envoy`), which in Istio ends by that.

use crate::convert::{
    compilation::{
        provider::SettingError,
        traces::{named, target},
    },
    objects::FieldError,
};
use karst_api::route as ir;
use karst_manifest::{
    MeshConfig,
    telemetry::{AccessLogging, Provider},
};
use std::collections::BTreeMap;

/// The proxy's output.
pub(crate) const OUTPUT: &str = "envoy";
/// The name of a log where nothing is said (Istio's).
const LOG_NAME: &str = "otel_envoy_accesslog";

/// Why a provider takes no log.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("no such provider in extensionProviders of the mesh configuration: the log is not sent [KARST-0606]")]
    Missing,
    #[error(
        "takes no access log in this version: name envoy, the proxy's output, or a provider of kind envoyOtelAls [KARST-0606]"
    )]
    Kind,
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// What is said of a provider.
#[derive(Default)]
struct Said {
    off: bool,
    filter: String,
    /// By a Telemetry.
    is_named: bool,
}

/// Writes what a pod is told. `said`: what the Telemetries for it say, the nearest last.
pub(crate) fn tell<'a>(config: &'a MeshConfig, said: impl Iterator<Item = &'a AccessLogging>, out: &mut ir::Telemetry) {
    let defaults: Vec<&str> = config.default_providers.access_logging.iter().map(String::as_str).collect();
    let mut meant = if defaults.is_empty() { vec![OUTPUT] } else { defaults.clone() };
    let mut all: BTreeMap<&str, Said> = meant.iter().map(|name| (*name, Said::default())).collect();
    let output = all.entry(OUTPUT).or_default();
    output.off =
        if defaults.is_empty() { config.access_log_file.as_deref() == Some("") } else { !defaults.contains(&OUTPUT) };
    for logging in said {
        if !logging.providers.is_empty() {
            meant = logging.providers.iter().map(|provider| provider.name.as_str()).collect();
        }
        for name in &meant {
            let said = all.entry(*name).or_default();
            // Who asks for a log gets one, though the mesh writes none.
            said.off = logging.disabled.unwrap_or(said.is_named && said.off);
            said.is_named = true;
            if let Some(filter) = &logging.filter {
                said.filter.clone_from(&filter.expression);
            }
        }
    }
    if let Some(output) = all.remove(OUTPUT) {
        (out.no_log, out.log_filter) = (output.off, output.filter);
    }
    let exports = all.into_iter().filter(|(_, said)| !said.off);
    out.log_exports = exports
        .filter_map(|(name, said)| Some(ir::LogExport { filter: said.filter, ..export(config, name).ok()? }))
        .collect();
}

/// What is wrong with the providers that one names. `at`: its field.
pub(crate) fn provider_problems(config: &MeshConfig, at: &str, logging: &AccessLogging) -> Vec<FieldError> {
    let problem = |(index, Provider { name }): (usize, &Provider)| {
        let why = match export(config, name) {
            Ok(_) => ignored(config, name)?,
            Err(why) => why.to_string(),
        };
        Some((format!("{at}.providers[{index}].name"), format!("{name:?}: {why}")))
    };
    logging.providers.iter().enumerate().filter(|(_, provider)| provider.name != OUTPUT).filter_map(problem).collect()
}

/// What of a provider has no effect.
fn ignored(config: &MeshConfig, name: &str) -> Option<String> {
    named(config, name)?.envoy_otel_als.as_ref()?.log_format.as_ref()?;
    Some("envoyOtelAls.logFormat has no effect in this version: a record has all fields of the log [KARST-0030]".into())
}

/// The collector that a provider is.
fn export(config: &MeshConfig, name: &str) -> Result<ir::LogExport, ExportError> {
    let provider = named(config, name).ok_or(ExportError::Missing)?.envoy_otel_als.as_ref().ok_or(ExportError::Kind)?;
    let collector = Some(target(&provider.service, provider.port)?);
    let name = if provider.log_name.is_empty() { LOG_NAME } else { &provider.log_name };
    Ok(ir::LogExport { collector, name: name.into(), filter: String::new() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::convert::{check, compile, tests::mesh};
    use karst_manifest::{Problem, State, parse};
    use std::sync::Arc;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: w, namespace: app, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: app}\nspec: {gatewayClassName: istio-waypoint, listeners: []}\n";
    const PROVIDERS: &str = "
extensionProviders:
- name: otel
  envoyOtelAls: {service: observability/collector.example.com, port: 4317}
- name: named
  envoyOtelAls: {service: collector.observability.svc.cluster.local, port: 4318, logName: mesh}
- name: shaped
  envoyOtelAls: {service: collector.observability.svc.cluster.local, port: 4317, logFormat: {text: a}}
- name: file
  envoyFileAccessLog: {path: /dev/stdout}
- name: wrong
  envoyOtelAls: {service: 'a b', port: 4317}
";

    fn object(ns: &str, spec: &str) -> String {
        format!(
            "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: {ns}}}\nspec: {spec}\n"
        )
    }

    /// What a waypoint is told, and what is reported. `config`: besides the providers.
    fn told(config: &str, telemetries: &[(&str, &str)]) -> (ir::Telemetry, Vec<Problem>) {
        let text = POD.to_string() + &telemetries.iter().map(|(ns, spec)| object(ns, spec)).collect::<String>();
        let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(Arc::new).collect();
        let config = MeshConfig::read(&format!("{PROVIDERS}{config}")).unwrap();
        let state = State { objects, mesh_config: Arc::new(config), ..State::default() };
        let (model, problems) = compile(&state, &mesh());
        let gateway = model.gateways.get("app/w");
        (gateway.and_then(|gateway| gateway.telemetry.clone()).unwrap_or_default(), problems)
    }

    /// Is there a log at the output, and to which ports of collectors does it go?
    fn ways(config: &str, telemetries: &[(&str, &str)]) -> (bool, Vec<u32>) {
        let (telemetry, problems) = told(config, telemetries);
        assert!(problems.is_empty(), "{problems:?}");
        let ports = telemetry.log_exports.iter().filter_map(|export| Some(export.collector.as_ref()?.port));
        (!telemetry.no_log, ports.collect())
    }

    #[test]
    fn who_names_a_collector_sends_the_log_there_too() {
        let (telemetry, problems) = told("", &[("app", "{accessLogging: [{providers: [{name: otel}]}]}")]);
        assert!(problems.is_empty() && !telemetry.no_log, "{problems:?}");
        let [export] = &telemetry.log_exports[..] else { panic!("{telemetry:?}") };
        let collector = export.collector.as_ref().unwrap();
        assert_eq!((&*collector.service, collector.port), ("observability/collector.example.com", 4317));
        assert_eq!(collector.protocol(), ir::CollectorProtocol::OtlpGrpc);
        assert_eq!((&*export.name, &*export.filter), (LOG_NAME, ""));
        let both = "{accessLogging: [{providers: [{name: named}, {name: otel}]}]}";
        assert_eq!(ways("", &[("app", both)]), (true, vec![4318, 4317]), "by their names");
        assert_eq!(told("", &[("app", both)]).0.log_exports[0].name, "mesh");
        assert_eq!(ways("", &[]), (true, vec![]));
    }

    #[test]
    fn defaults_come_first_and_the_nearest_counts() {
        let only = "defaultProviders: {accessLogging: [otel]}";
        assert_eq!(ways(only, &[]), (false, vec![4317]), "as in Istio");
        assert_eq!(ways("defaultProviders: {accessLogging: [otel, envoy]}", &[]), (true, vec![4317]));
        assert_eq!(ways(only, &[("app", "{accessLogging: [{disabled: true}]}")]), (false, vec![]));
        assert_eq!(ways(only, &[("app", "{accessLogging: [{providers: [{name: envoy}]}]}")]), (true, vec![4317]));
        let mesh = ("istio-system", "{accessLogging: [{providers: [{name: otel}]}]}");
        let near = ("app", "{accessLogging: [{filter: {expression: response.code >= 400}}]}");
        let (telemetry, _) = told("", &[near, mesh]);
        assert_eq!((&*telemetry.log_exports[0].filter, &*telemetry.log_filter), ("response.code >= 400", ""));
        let off = ("app", "{accessLogging: [{providers: [{name: otel}], disabled: true}]}");
        assert_eq!(ways("accessLogFile: ''", &[mesh, off]), (false, vec![]));
        assert_eq!(ways("accessLogFile: ''", &[mesh]), (false, vec![4317]));
        let gateways = ("app", "{accessLogging: [{match: {mode: CLIENT}, providers: [{name: otel}]}]}");
        assert_eq!(ways("", &[gateways]), (true, vec![]), "this is a waypoint");
    }

    #[test]
    fn a_provider_that_cannot_be_used_is_reported() {
        for (name, says) in [
            ("none", "no such provider"),
            ("file", "takes no access log in this version: name envoy"),
            ("wrong", "is not [NAMESPACE/]HOST"),
            ("shaped", "logFormat has no effect"),
        ] {
            let spec = format!("{{accessLogging: [{{providers: [{{name: envoy}}, {{name: {name}}}]}}]}}");
            let (telemetry, problems) = told("", &[("app", &spec)]);
            assert_eq!(
                (telemetry.no_log, telemetry.log_exports.len()),
                (false, usize::from(name == "shaped")),
                "{name}"
            );
            let text = format!("{problems:?}");
            assert!(text.contains("spec.accessLogging[0].providers[1].name") && text.contains(says), "{name}: {text}");
        }
        // At admission the mesh configuration is not known.
        let text = object("app", "{accessLogging: [{providers: [{name: none}]}]}");
        let one = parse::file("t.yaml".as_ref(), &text).unwrap().remove(0);
        assert!(check::problems(one.object, &mesh()).is_empty());
    }
}
