//! Prometheus in the cluster, as samples/addons/prometheus.yaml installs it; its image is built from Go modules.

use crate::{Pod, addon, panels};
use serde_json::Value;

const NAME: &str = "prometheus";
/// The image that `cargo xtask dashboards` loads into the nodes (`cargo xtask cluster prometheus`, too).
const IMAGE: &str = "registry.local/prometheus:1";

/// It runs.
pub struct Prometheus(Pod);

/// A pod that is scraped.
#[derive(Debug)]
pub struct Target {
    /// Its namespace and name.
    pub pod: String,
    /// Why it cannot be scraped; empty: it can, or it has not been tried.
    pub error: String,
    /// `up`, `down` or `unknown` (not tried).
    pub health: String,
}

/// An alert's rule.
#[derive(Debug)]
pub struct Rule {
    /// The alert's name.
    pub name: String,
    /// `ok`, `err` or `unknown` (not evaluated).
    pub health: String,
    /// `inactive`, `pending` or `firing`.
    pub state: String,
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

impl Prometheus {
    /// Installs it, and waits until it answers.
    pub fn install() -> Self {
        addon::install(NAME, IMAGE);
        Self(Pod::by_label(addon::NAMESPACE, "app.kubernetes.io/name=prometheus"))
    }

    /// Removes it.
    pub fn remove(self) {
        addon::remove(NAME);
    }

    /// How many series it has for a query now.
    ///
    /// # Errors
    /// What it complains about, or that it does not answer.
    pub fn series(&self, query: &str) -> Result<usize, String> {
        panels::series(&self.get(&format!("/api/v1/query?query={}", panels::encode(query))).map_err(|e| e.to_string())?)
    }

    /// Pods that it has found by their annotations.
    pub fn targets(&self) -> Vec<Target> {
        let text = self.get("/api/v1/targets?state=active").unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        let all = answer["data"]["activeTargets"].as_array().unwrap();
        let pods = all.iter().filter(|one| one["labels"]["job"] == "kubernetes-pods");
        pods.map(|one| Target {
            pod: format!("{}/{}", word(&one["labels"]["namespace"]), word(&one["labels"]["pod"])),
            error: word(&one["lastError"]),
            health: word(&one["health"]),
        })
        .collect()
    }

    /// Its alerts.
    pub fn rules(&self) -> Vec<Rule> {
        let text = self.get("/api/v1/rules?type=alert").unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        let groups = answer["data"]["groups"].as_array().unwrap();
        let all = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
        all.map(|rule| Rule { name: word(&rule["name"]), health: word(&rule["health"]), state: word(&rule["state"]) })
            .collect()
    }

    /// A page, from inside of its pod.
    fn get(&self, path: &str) -> std::io::Result<String> {
        addon::page(&self.0, 9090, path)
    }
}
