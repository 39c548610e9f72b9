//! Renders a chart into objects.

use super::{Chart, ChartError, schema, values};
use crate::{
    documents,
    template::{Templates, Value},
};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;

/// What a chart is rendered for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `.Release.Name`.
    pub name: String,
    /// `.Release.Namespace`.
    pub namespace: String,
    /// `.Release.IsUpgrade`, and the opposite of IsInstall.
    pub upgrade: bool,
    /// Kubernetes' version, as `v1.34.0`.
    pub kubernetes: String,
}

/// What comes of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rendered {
    /// The objects of `crds` and of the templates, in the order of their files.
    pub objects: Vec<Json>,
    /// NOTES.txt.
    pub notes: String,
}

impl Chart {
    /// Renders it with these values over its own. Hooks of tests (`helm.sh/hook: test`) are left out.
    ///
    /// # Errors
    /// If the values do not fit the schema, or a template fails.
    pub fn render(&self, release: &Release, given: Map<String, Json>) -> Result<Rendered, ChartError> {
        let values = values::coalesce(self, given);
        self.check(&values)?;
        let mut run = Rendering { templates: Templates::default(), files: BTreeMap::new(), crds: Vec::new() };
        run.gather(self, &self.name, &Value::from_json(&Json::Object(values)), release)?;
        let mut rendered = Rendered::default();
        for (file, text) in &run.crds {
            rendered.objects.extend(self.objects(file, text)?);
        }
        for (file, dot) in &run.files {
            let base = file.rsplit('/').next().unwrap_or(file);
            if base.starts_with('_') {
                continue;
            }
            let text = run
                .templates
                .render(file, dot.clone())
                .map_err(|error| ChartError::Template { chart: self.name.clone(), error })?;
            if base == "NOTES.txt" {
                // Helm shows the notes of the chart that was asked for.
                if file.matches('/').count() == 2 {
                    rendered.notes = text;
                }
                continue;
            }
            rendered.objects.extend(self.objects(file, &text)?.into_iter().filter(|object| !is_test(object)));
        }
        Ok(rendered)
    }

    fn check(&self, values: &Map<String, Json>) -> Result<(), ChartError> {
        if let Some(schema) = &self.schema {
            let faults = schema::check(schema, &Json::Object(values.clone()));
            if !faults.is_empty() {
                return Err(ChartError::Values { chart: self.name.clone(), faults });
            }
        }
        for dependency in &self.dependencies {
            if let Some(Json::Object(values)) = values.get(&dependency.name) {
                dependency.check(values)?;
            }
        }
        Ok(())
    }

    fn objects(&self, file: &str, text: &str) -> Result<Vec<Json>, ChartError> {
        let wrong = |error: String| ChartError::Rendered { chart: self.name.clone(), file: file.into(), error };
        let documents = documents::read_all(text).map_err(|error| wrong(error.to_string()))?;
        for document in &documents {
            let named = document["metadata"]["name"].as_str().is_some_and(|name| !name.is_empty());
            if !named || !document["kind"].is_string() || !document["apiVersion"].is_string() {
                return Err(wrong("apiVersion, kind or metadata.name is missing".into()));
            }
        }
        Ok(documents)
    }
}

fn is_test(object: &Json) -> bool {
    object["metadata"]["annotations"]["helm.sh/hook"].as_str().is_some_and(|hooks| hooks.contains("test"))
}

struct Rendering {
    templates: Templates,
    /// Each template, and its dot.
    files: BTreeMap<String, Value>,
    crds: Vec<(String, String)>,
}

impl Rendering {
    /// Adds a chart's files and its dependencies'; gives its dot, which has theirs under Subcharts.
    fn gather(&mut self, chart: &Chart, path: &str, values: &Value, release: &Release) -> Result<Value, ChartError> {
        self.crds.extend(chart.crds.iter().map(|(file, text)| (format!("{path}/{file}"), text.clone())));
        let mut below = BTreeMap::new();
        for dependency in &chart.dependencies {
            let own = match values {
                Value::Map(entries) => entries.borrow().get(&dependency.name).cloned().unwrap_or_default(),
                _ => Value::Nil,
            };
            let dot = self.gather(dependency, &format!("{path}/charts/{}", dependency.name), &own, release)?;
            below.insert(dependency.name.clone(), dot);
        }
        let common = dot(chart, values, release, below);
        for (file, text) in &chart.templates {
            let name = format!("{path}/{file}");
            self.templates
                .add(&name, text)
                .map_err(|error| ChartError::Template { chart: chart.name.clone(), error })?;
            let mut own = common.clone();
            let template = [("Name", name.as_str()), ("BasePath", &format!("{path}/templates"))];
            own.insert(
                "Template".into(),
                Value::map(template.map(|(key, text)| (key.to_string(), Value::text(text))).into()),
            );
            self.files.insert(name, Value::map(own));
        }
        Ok(Value::map(common))
    }
}

fn dot(chart: &Chart, values: &Value, release: &Release, below: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let text = |text: &str| Value::text(text);
    let map = |entries: Vec<(&str, Value)>| {
        Value::map(entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect())
    };
    // Go's names of the fields: Chart.AppVersion for appVersion.
    let metadata = chart.metadata.as_object().into_iter().flatten().map(|(key, value)| {
        let mut letters = key.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        (first.into_iter().chain(letters).collect::<String>(), Value::from_json(value))
    });
    let mut numbers = release.kubernetes.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let entries = vec![
        ("Subcharts", Value::map(below)),
        ("Values", values.clone()),
        ("Chart", Value::map(metadata.collect())),
        ("Files", Value::Files(chart.files.clone().into())),
        (
            "Release",
            map(vec![
                ("Name", text(&release.name)),
                ("Namespace", text(&release.namespace)),
                ("Service", text("Helm")),
                ("IsInstall", Value::Bool(!release.upgrade)),
                ("IsUpgrade", Value::Bool(release.upgrade)),
                ("Revision", Value::Int(1)),
            ]),
        ),
        (
            "Capabilities",
            map(vec![
                (
                    "KubeVersion",
                    map(vec![
                        ("Version", text(&release.kubernetes)),
                        ("GitVersion", text(&release.kubernetes)),
                        ("Major", text(major)),
                        ("Minor", text(minor)),
                    ]),
                ),
                ("APIVersions", Value::list(Vec::new())),
            ]),
        ),
    ];
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
