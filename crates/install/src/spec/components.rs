//! From a spec to the values of each component's chart.
//!
//! Where Istio's values go: `values.global` to all charts; `values.pilot`, `values.cni`, `values.ztunnel` and
//! `values.gateways.NAME` to the top of the chart that they are of; `values.base` stays under its name; any other key to
//! all charts of the mesh itself that know it. A key that no chart knows is refused.

use super::{
    Spec, SpecError,
    operator::{self, COMPONENTS},
};
use crate::chart::{self, Chart, ChartError, Charts, nearest};
use serde_json::{Map, Value, json};

/// Parts of an installation, in the order in which they are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// CRDs.
    Base,
    /// The control plane.
    Pilot,
    /// The node agent.
    Cni,
    /// The node proxy.
    Ztunnel,
    /// A gateway into the mesh.
    Ingress,
    /// A gateway out of it.
    Egress,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Base, Self::Pilot, Self::Cni, Self::Ztunnel, Self::Ingress, Self::Egress];

    /// As the label `operator.istio.io/component` has it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Base => "Base",
            Self::Pilot => "Pilot",
            Self::Cni => "Cni",
            Self::Ztunnel => "Ztunnel",
            Self::Ingress => "IngressGateways",
            Self::Egress => "EgressGateways",
        }
    }

    /// As users read it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Base => "Istio core",
            Self::Pilot => "Istiod",
            Self::Cni => "CNI",
            Self::Ztunnel => "Ztunnel",
            Self::Ingress => "Ingress gateways",
            Self::Egress => "Egress gateways",
        }
    }

    /// Its key in `spec.components`.
    pub(crate) fn key(self) -> &'static str {
        let [base, pilot, cni, ztunnel, ingress, egress] = COMPONENTS;
        match self {
            Self::Base => base,
            Self::Pilot => pilot,
            Self::Cni => cni,
            Self::Ztunnel => ztunnel,
            Self::Ingress => ingress,
            Self::Egress => egress,
        }
    }

    fn chart(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Pilot => "istiod",
            Self::Cni => "cni",
            Self::Ztunnel => "ztunnel",
            Self::Ingress | Self::Egress => "gateway",
        }
    }
}

/// A component that is switched on.
#[derive(Debug, Clone)]
pub struct Component {
    /// Which.
    pub kind: Kind,
    /// The release's name: a gateway's own, else that of Istio's guide.
    pub name: String,
    /// Where it is installed.
    pub namespace: String,
    /// What it is rendered from.
    pub chart: Chart,
    /// Over the chart's own values.
    pub values: Map<String, Value>,
}

impl Spec {
    /// The components that are switched on, in the order of their installation.
    ///
    /// # Errors
    /// If a value belongs to none of them.
    pub fn components(&self, charts: &Charts) -> Result<Vec<Component>, SpecError> {
        of(self, charts)
    }
}

fn of(spec: &Spec, charts: &Charts) -> Result<Vec<Component>, SpecError> {
    let all = all_charts(charts)?;
    refuse_unknown(spec, &all)?;
    let mut components = Vec::new();
    for kind in Kind::ALL {
        let Some(chart) = all.iter().find(|(name, _)| *name == kind.chart()).map(|(_, chart)| chart) else { continue };
        let said = spec.spec.get("components").and_then(|components| components.get(kind.key()));
        let list = match said {
            Some(Value::Array(gateways)) => gateways.clone(),
            Some(one) => vec![one.clone()],
            None => Vec::new(),
        };
        for said in list.iter().filter(|said| said["enabled"] == Value::Bool(true)) {
            components.push(component(spec, kind, chart, said)?);
        }
    }
    Ok(components)
}

fn all_charts(charts: &Charts) -> Result<Vec<(&'static str, Chart)>, SpecError> {
    ["base", "istiod", "cni", "ztunnel", "gateway"]
        .into_iter()
        .map(|name| {
            let chart = charts
                .get(name)
                .map_err(|error| SpecError::Chart { component: name.into(), error: Box::new(error) })?;
            Ok((name, chart))
        })
        .collect()
}

fn component(spec: &Spec, kind: Kind, chart: &Chart, said: &Value) -> Result<Component, SpecError> {
    let name = said["name"].as_str().unwrap_or(match kind {
        Kind::Base => "istio-base",
        Kind::Pilot => "istiod",
        Kind::Cni => "istio-cni",
        Kind::Ztunnel => "ztunnel",
        Kind::Ingress => "istio-ingressgateway",
        Kind::Egress => "istio-egressgateway",
    });
    let mut values = common(spec, kind, chart);
    for source in ["values", "unvalidatedValues"] {
        let Some(given) = spec.spec.get(source) else { continue };
        let own = match kind {
            Kind::Base => Some(json!({"base": given["base"]})).filter(|_| given["base"].is_object()),
            Kind::Pilot | Kind::Cni | Kind::Ztunnel => given.get(kind.key()).cloned(),
            Kind::Ingress | Kind::Egress => given.get("gateways").and_then(|gateways| gateways.get(name)).cloned(),
        };
        if let Some(own) = own.filter(|own| !own.is_null()) {
            chart::merge(&mut values, operator::map(&format!("spec.{source}.{}", kind.key()), &own)?.clone());
        }
    }
    let mut global = Map::new();
    for key in ["hub", "tag"] {
        if let Some(value) = said.get(key).or_else(|| spec.spec.get(key)) {
            global.insert(key.into(), value.clone());
        }
    }
    if !global.is_empty() {
        chart::merge(&mut values, Map::from_iter([("global".to_string(), Value::Object(global))]));
    }
    let namespace = said["namespace"].as_str().unwrap_or(&spec.namespace).to_string();
    // A ztunnel elsewhere has to find istiod, and istiod has to know it.
    let is_apart =
        matches!(kind, Kind::Ingress | Kind::Egress) || (kind == Kind::Ztunnel && namespace != spec.namespace);
    if is_apart && !values.contains_key("istioNamespace") {
        values.insert("istioNamespace".into(), spec.namespace.as_str().into());
    }
    if let (Kind::Pilot, Some(apart)) = (kind, ztunnel_apart(spec))
        && !values.contains_key("trustedZtunnelNamespace")
    {
        values.insert("trustedZtunnelNamespace".into(), apart.into());
    }
    if let Some(labels) = said.get("label") {
        chart::merge(&mut values, Map::from_iter([("labels".to_string(), labels.clone())]));
    }
    kubernetes(&format!("spec.components.{}.k8s", kind.key()), said, &mut values)?;
    Ok(Component { kind, name: name.into(), namespace, chart: chart.clone(), values })
}

/// The namespace of ztunnel, if it is not istiod's.
fn ztunnel_apart(spec: &Spec) -> Option<&str> {
    let said = spec.spec.get("components")?.get(Kind::Ztunnel.key())?;
    said["namespace"].as_str().filter(|namespace| *namespace != spec.namespace)
}

/// What is for all charts, as far as this one knows it.
fn common(spec: &Spec, kind: Kind, chart: &Chart) -> Map<String, Value> {
    let mut values = Map::new();
    let gateway = matches!(kind, Kind::Ingress | Kind::Egress);
    for (key, value) in spec.spec.get("values").and_then(Value::as_object).into_iter().flatten() {
        let own = OWN.contains(&key.as_str());
        if key == "global" || (!own && !gateway && chart.knows(&[key])) {
            values.insert(key.clone(), value.clone());
        }
    }
    if !spec.revision.is_empty() && chart.knows(&["revision"]) {
        values.insert("revision".into(), spec.revision.as_str().into());
    }
    let mesh = spec.spec.get("meshConfig").and_then(Value::as_object);
    let mut config = Map::new();
    for (key, value) in mesh.into_iter().flatten() {
        // The control plane's chart has the last word; the others take what concerns them.
        if kind == Kind::Pilot || chart.knows(&["meshConfig", key]) {
            config.insert(key.clone(), value.clone());
        }
    }
    if !config.is_empty() {
        chart::merge(&mut values, Map::from_iter([("meshConfig".to_string(), Value::Object(config))]));
    }
    values
}

/// Keys of `values` that belong to one component.
const OWN: [&str; 5] = ["base", "pilot", "cni", "ztunnel", "gateways"];

fn refuse_unknown(spec: &Spec, charts: &[(&str, Chart)]) -> Result<(), SpecError> {
    let Some(values) = spec.spec.get("values") else { return Ok(()) };
    let mut known: Vec<&str> = OWN.to_vec();
    known.push("global");
    let own_charts = charts.iter().filter(|(name, _)| *name != "gateway");
    known.extend(own_charts.flat_map(|(_, chart)| chart.keys()));
    operator::keys("spec.values", operator::map("spec.values", values)?, &known)?;
    let Some(gateways) = values.get("gateways") else { return Ok(()) };
    let names: Vec<String> = gateway_names(spec);
    for name in operator::map("spec.values.gateways", gateways)?.keys() {
        if !names.contains(name) {
            return Err(SpecError::Key {
                at: format!("spec.values.gateways.{name}"),
                nearest: nearest(name, names.iter().map(String::as_str)).map(String::from),
                hint: "; it names a gateway of spec.components.ingressGateways or egressGateways".into(),
            });
        }
    }
    Ok(())
}

fn gateway_names(spec: &Spec) -> Vec<String> {
    let components = spec.spec.get("components").cloned().unwrap_or_default();
    ["ingressGateways", "egressGateways"]
        .iter()
        .flat_map(|kind| components[*kind].as_array().cloned().unwrap_or_default())
        .filter_map(|gateway| gateway["name"].as_str().map(String::from))
        .collect()
}

/// `k8s` of a component: what charts have a value for.
fn kubernetes(at: &str, said: &Value, values: &mut Map<String, Value>) -> Result<(), SpecError> {
    const SAME: [&str; 7] =
        ["resources", "replicaCount", "nodeSelector", "tolerations", "affinity", "podAnnotations", "service"];
    let Some(settings) = said.get("k8s").filter(|settings| !settings.is_null()) else { return Ok(()) };
    for (key, value) in operator::map(at, settings)? {
        match key.as_str() {
            "env" => {
                let mut variables = Map::new();
                for variable in value.as_array().into_iter().flatten() {
                    let name = variable["name"].as_str().unwrap_or_default();
                    let Some(text) = variable["value"].as_str() else {
                        let at = format!("{at}.env[{name}].value");
                        return Err(SpecError::Value {
                            at,
                            wanted: "a text is wanted",
                            got: variable["value"].to_string(),
                        });
                    };
                    variables.insert(name.into(), text.into());
                }
                chart::merge(values, Map::from_iter([("env".to_string(), Value::Object(variables))]));
            }
            same if SAME.contains(&same) => {
                chart::merge(values, Map::from_iter([(same.to_string(), value.clone())]));
            }
            other => {
                return Err(SpecError::Key {
                    at: format!("{at}.{other}"),
                    nearest: nearest(other, SAME).map(String::from),
                    hint: "; set the chart's value in spec.values instead (docs/values.md)".into(),
                });
            }
        }
    }
    Ok(())
}

impl Component {
    /// Renders its chart; gives the objects without labels of ours.
    ///
    /// # Errors
    /// If the chart refuses the values.
    pub fn render(&self, kubernetes: &str, upgrade: bool) -> Result<chart::Rendered, SpecError> {
        let release = chart::Release {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            upgrade,
            kubernetes: kubernetes.into(),
        };
        let failed = |error: ChartError| SpecError::Chart { component: self.name.clone(), error: Box::new(error) };
        self.chart.render(&release, self.values.clone()).map_err(failed)
    }
}
