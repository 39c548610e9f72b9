//! Jaeger in the cluster, as samples/addons/jaeger.yaml installs it; its image is built from Go modules.

use crate::{LONG, Pod, addon, get, kubectl, panels::encode, traces};
use karst_world::wait_for;
use serde_json::{Value, json};
use std::time::Duration;

const NAME: &str = "jaeger";
/// The image that `cargo xtask dashboards` loads into the nodes (`cargo xtask cluster jaeger`, too).
const IMAGE: &str = "registry.local/jaeger:1";

/// It runs.
pub struct Jaeger(Pod);

fn pod() -> Pod {
    Pod::by_label(addon::NAMESPACE, "app=jaeger")
}

fn scale(replicas: usize) {
    kubectl(&["-n", addon::NAMESPACE, "scale", "deploy/jaeger", &format!("--replicas={replicas}")]);
}

impl Jaeger {
    /// Installs it, and waits until it takes spans.
    pub fn install() -> Self {
        addon::install(NAME, IMAGE);
        Self(pod())
    }

    /// Removes it.
    pub fn remove(self) {
        addon::remove(NAME);
    }

    /// Stops it, and waits until it has gone.
    pub fn stop(self) {
        scale(0);
        wait_for("no Jaeger", LONG, || {
            std::thread::sleep(Duration::from_millis(200));
            get(&["pods", "-n", addon::NAMESPACE, "-l", "app=jaeger"])["items"].as_array()?.is_empty().then_some(())
        });
    }

    /// Starts it after [`Self::stop`]; it has forgotten everything.
    pub fn start() -> Self {
        scale(1);
        addon::rolled_out(NAME);
        Self(pod())
    }

    /// The trace with a span of this service and this user agent, as [`traces::tree`].
    ///
    /// # Errors
    /// There is none, there are several, or it is not whole yet.
    pub fn tree(&self, service: &str, agent: &str) -> Result<String, String> {
        let tags = encode(&json!({ "user_agent": agent }).to_string());
        let path = format!("/api/traces?service={}&tags={tags}", encode(service));
        let text = addon::page(&self.0, 16686, &path).map_err(|e| e.to_string())?;
        let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        match answer["data"].as_array().map(Vec::as_slice) {
            Some([trace]) => traces::tree(trace),
            Some(all) => Err(format!("{} traces with a span of {service} for {agent}", all.len())),
            None => Err(text),
        }
    }
}
