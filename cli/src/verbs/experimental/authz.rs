//! `x authz check`: the policies that are enforced for a pod, as the proxies have them.

use crate::{
    output::{Format, Table},
    problem::Problem,
    session::Session,
    verbs::{proxy_config, ztunnel_config},
};
use clap::{Args, Subcommand};
use kube::ResourceExt;
use serde::Serialize;

/// The verbs of `x authz`.
#[derive(Debug, Subcommand)]
pub enum Authz {
    /// Print the policies of a pod: of a waypoint or gateway its own, of any other those that its ztunnel enforces
    Check(Check),
}

/// Options of `x authz check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst x authz check web-0.shop
  karst x authz check waypoint-6d5f-abcde -n shop")]
pub struct Check {
    /// POD or POD.NAMESPACE
    pod: String,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A policy.
#[derive(Debug, Serialize)]
struct Row {
    action: String,
    policy: String,
    rules: usize,
}

impl Authz {
    /// Prints them.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let Self::Check(asked) = self;
        let cluster = session.cluster().await?;
        let pod = cluster.pod(&asked.pod).await?;
        let rows: Vec<Row> = if pod.labels().contains_key("gateway.networking.k8s.io/gateway-name") {
            let dump = proxy_config::of_pod(session, &asked.pod).await?;
            let row = |one: proxy_config::Enforced| Row { action: one.action, policy: one.policy, rules: one.rules };
            proxy_config::rules(&dump).into_iter().map(row).collect()
        } else {
            let found = ztunnel_config::policies_of(session, &asked.pod).await?;
            found.into_iter().map(|(action, policy, rules)| Row { action, policy, rules }).collect()
        };
        let mut table = Table::new(&["ACTION", "AuthorizationPolicy", "RULES"]);
        for row in &rows {
            table.row([row.action.clone().into(), row.policy.clone().into(), row.rules.to_string().into()]);
        }
        session.show(asked.output, &table, &rows)
    }
}
