//! `waypoint`: the Gateways of class istio-waypoint.

mod apply;
mod gateway;
mod list;

use crate::{cluster::Cluster, problem::Problem, session::Session};
use clap::Subcommand;

/// The verbs of `waypoint`.
#[derive(Debug, Subcommand)]
pub enum Waypoint {
    /// Create or change a waypoint
    Apply(apply::Apply),
    /// Print the Gateway that `apply` would create
    Generate(apply::Generate),
    /// List waypoints
    List(list::List),
    /// Print whether waypoints are programmed
    Status(list::Status),
    /// Delete waypoints
    Delete(list::Delete),
}

impl Waypoint {
    /// Does it.
    ///
    /// # Errors
    /// If the API server refuses, or a waypoint is not ready in time.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        match self {
            Self::Apply(verb) => verb.run(session).await,
            Self::Generate(verb) => verb.run(session),
            Self::List(verb) => verb.run(session).await,
            Self::Status(verb) => verb.run(session).await,
            Self::Delete(verb) => verb.run(session).await,
        }
    }
}

/// Gateways of this mesh's classes that are not programmed: namespace, name, why.
///
/// # Errors
/// If the API server refuses or cannot be reached.
pub async fn gateways_without_program(cluster: &Cluster) -> Result<Vec<(String, String, String)>, Problem> {
    gateway::not_programmed(cluster).await
}
