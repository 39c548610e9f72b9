//! Reads charts, from the program or from a folder.

use super::error::ChartError;
use crate::documents;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/charts.rs"));
}

/// Charts by name.
#[derive(Debug, Clone)]
pub struct Charts {
    /// Files of each chart, by path in it.
    files: BTreeMap<String, BTreeMap<String, String>>,
}

/// One chart, with those that it depends on.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Its name.
    pub name: String,
    /// Chart.yaml.
    pub metadata: Value,
    /// values.yaml.
    pub values: Map<String, Value>,
    pub(super) schema: Option<Value>,
    pub(super) templates: BTreeMap<String, String>,
    pub(super) crds: BTreeMap<String, String>,
    pub(super) files: BTreeMap<String, String>,
    pub(super) dependencies: Vec<Chart>,
}

impl Charts {
    /// Those of this release, which are in the program.
    pub fn embedded() -> Self {
        let mut charts = Self { files: BTreeMap::new() };
        for (path, text) in embedded::FILES {
            charts.add(path, (*text).to_string());
        }
        charts
    }

    /// Those of a folder.
    ///
    /// # Errors
    /// If it, or a file in it, cannot be read.
    pub fn folder(root: &Path) -> Result<Self, ChartError> {
        let mut charts = Self { files: BTreeMap::new() };
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            let failed = |path: &Path| {
                let path = path.to_path_buf();
                move |error| ChartError::Folder { path, error }
            };
            for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
                let entry = entry.map_err(failed(&folder))?;
                let path = entry.path();
                let kind = entry.file_type().map_err(failed(&path))?;
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file() {
                    let text = fs::read_to_string(&path).map_err(failed(&path))?;
                    let relative: PathBuf = path.strip_prefix(root).unwrap_or(&path).into();
                    charts.add(&relative.to_string_lossy(), text);
                }
            }
        }
        charts.files.retain(|_, files| files.contains_key("Chart.yaml"));
        if charts.files.is_empty() {
            let error = std::io::Error::other("no chart is in it");
            return Err(ChartError::Folder { path: root.into(), error });
        }
        Ok(charts)
    }

    fn add(&mut self, path: &str, text: String) {
        if let Some((chart, file)) = path.split_once('/') {
            self.files.entry(chart.into()).or_default().insert(file.into(), text);
        }
    }

    /// Names of all charts.
    pub fn names(&self) -> Vec<&str> {
        self.files.iter().filter(|(_, files)| files.contains_key("Chart.yaml")).map(|(name, _)| name.as_str()).collect()
    }

    /// A chart, ready to be rendered.
    ///
    /// # Errors
    /// If there is none of this name, or one of its files is not YAML.
    pub fn get(&self, name: &str) -> Result<Chart, ChartError> {
        self.within(name, 0)
    }

    fn within(&self, name: &str, depth: usize) -> Result<Chart, ChartError> {
        const DEEPEST: usize = 5;
        let Some(files) = self.files.get(name).filter(|files| files.contains_key("Chart.yaml")) else {
            return Err(ChartError::Unknown { name: name.into(), known: self.names().join(", ") });
        };
        let read = |file: &str| {
            let text = files.get(file).map(String::as_str).unwrap_or_default();
            documents::read_one(text).map_err(|error| ChartError::File { chart: name.into(), file: file.into(), error })
        };
        let below = |folder: &str| -> BTreeMap<String, String> {
            files.iter().filter(|(path, _)| path.starts_with(folder)).map(|(p, t)| (p.clone(), t.clone())).collect()
        };
        let metadata = read("Chart.yaml")?;
        let mut dependencies = Vec::new();
        for dependency in metadata["dependencies"].as_array().into_iter().flatten() {
            let wanted = dependency["name"].as_str().unwrap_or_default();
            if depth >= DEEPEST || !self.files.contains_key(wanted) {
                return Err(ChartError::Dependency { chart: name.into(), dependency: wanted.into() });
            }
            dependencies.push(self.within(wanted, depth + 1)?);
        }
        let own = ["Chart.yaml", "values.yaml", "values.schema.json"];
        Ok(Chart {
            name: metadata["name"].as_str().unwrap_or(name).into(),
            values: match read("values.yaml")? {
                Value::Object(values) => values,
                _ => Map::new(),
            },
            schema: files.contains_key("values.schema.json").then(|| read("values.schema.json")).transpose()?,
            templates: below("templates/"),
            crds: below("crds/"),
            files: files
                .iter()
                .filter(|(path, _)| {
                    !own.contains(&path.as_str())
                        && !["templates/", "crds/"].iter().any(|folder| path.starts_with(folder))
                })
                .map(|(path, text)| (path.clone(), text.clone()))
                .collect(),
            metadata,
            dependencies,
        })
    }
}

impl Chart {
    /// The keys at the top of its values.
    pub fn keys(&self) -> Vec<&str> {
        let properties = self.schema.as_ref().and_then(|schema| schema["properties"].as_object());
        let described = properties.into_iter().flat_map(|known| known.keys());
        self.values.keys().chain(described).map(String::as_str).collect()
    }

    /// Whether its values or their schema have this path.
    pub fn knows(&self, path: &[&str]) -> bool {
        let mut described = self.schema.as_ref();
        for key in path {
            described = described.and_then(|schema| schema["properties"].get(*key));
        }
        let mut default = path.split_first().and_then(|(first, _)| self.values.get(*first));
        for key in path.iter().skip(1) {
            default = default.and_then(|value| value.get(*key));
        }
        described.is_some() || default.is_some()
    }
}
