//! Verbs of istioctl that have nothing to do here: each says why, and what does it instead.

use crate::{problem::Problem, session::Session};
use clap::Args;

/// Whatever is written after such a verb.
#[derive(Debug, Args)]
pub struct Absent {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    words: Vec<String>,
}

/// Which verb it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `create-remote-secret`, `remote-clusters`.
    Multicluster,
    /// `operator`.
    Operator,
    /// `x workload`.
    VirtualMachines,
    /// `x check-inject`, `x injector`.
    Injection,
    /// `x metrics`.
    Metrics,
    /// `x config`.
    Defaults,
}

impl Absent {
    /// Why there is no such verb.
    ///
    /// # Errors
    /// Always.
    pub fn run(&self, session: &Session<'_>, verb: Verb) -> Result<(), Problem> {
        let (what, next) = match verb {
            Verb::Multicluster => (
                "meshes of several clusters are not supported in this version",
                "install a mesh in each cluster, and connect them by gateways".to_owned(),
            ),
            Verb::Operator => (
                "there is no operator",
                format!("`{} install -f FILE` takes the same IstioOperator files", session.program),
            ),
            Verb::VirtualMachines => (
                "virtual machines cannot join this mesh",
                "name them in a ServiceEntry, or a WorkloadEntry with their addresses".to_owned(),
            ),
            Verb::Injection => (
                "nothing is injected: this mesh has no sidecars",
                format!("`{} x describe pod NAME` says whether a pod is in the mesh, and why", session.program),
            ),
            Verb::Metrics => (
                "this program does not ask Prometheus",
                format!("`{} dashboard grafana` shows rates and latencies of each workload", session.program),
            ),
            Verb::Defaults => (
                "there is no file of defaults",
                format!("set ISTIOCTL_NAMESPACE and the like: `{} options` lists them", session.program),
            ),
        };
        let typed = if self.words.is_empty() { String::new() } else { format!("{}: ", self.words.join(" ")) };
        Err(Problem::usage(format!("{typed}{what}"), next))
    }
}
