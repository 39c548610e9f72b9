//! `x internal-debug` and `x envoy-stats`: pages as they are.

use crate::{
    cluster::PodName,
    known::{ADMIN, MONITORING},
    problem::Problem,
    session::Session,
};
use clap::Args;

/// Options of `x internal-debug`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst x internal-debug                 which pages there are
  karst x internal-debug syncz
  karst x internal-debug ambientz")]
pub struct InternalDebug {
    /// Page below /debug
    #[arg(default_value = "")]
    page: String,
    /// Of every pod of the control plane
    #[arg(long)]
    all: bool,
}

/// Options of `x envoy-stats`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  karst x envoy-stats waypoint-6d5f-abcde.shop")]
pub struct Stats {
    /// POD or POD.NAMESPACE of a waypoint or gateway
    pod: String,
}

impl InternalDebug {
    /// Prints the page.
    ///
    /// # Errors
    /// If there is no control plane, or no such page.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let pods = cluster.control_plane().await?;
        let wanted = if self.all { pods.len() } else { 1 };
        let page = self.page.trim_start_matches('/').trim_start_matches("debug/");
        for pod in pods.iter().take(wanted).map(PodName::from) {
            if self.all {
                session.line(format!("{pod}:"))?;
            }
            let text = cluster.get(&pod, MONITORING, format!("/debug/{page}").trim_end_matches('/')).await?;
            session.line(text.trim_end())?;
        }
        Ok(())
    }
}

impl Stats {
    /// Prints the metrics.
    ///
    /// # Errors
    /// If there is no such proxy.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let pod = PodName::from(&cluster.pod(&self.pod).await?);
        let text = cluster.get(&pod, ADMIN, "/stats/prometheus").await?;
        session.line(text.trim_end())
    }
}
