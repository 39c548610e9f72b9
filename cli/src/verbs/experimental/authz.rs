//! `x authz check`: the policies that are enforced for a pod, as the proxies have them.

use super::conditions;
use crate::{
    cluster::{Cluster, Resource},
    output::{Format, Table},
    problem::Problem,
    session::Session,
    verbs::{proxy_config, ztunnel_config},
};
use clap::{Args, Subcommand};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;

const AUTHORIZATION: Resource =
    Resource::new("security.istio.io", "v1", "AuthorizationPolicy", "authorizationpolicies");

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
  karst x authz check waypoint-6d5f-abcde -n shop

Conditions are ztunnel's own; those of a waypoint or gateway are as its policies are stored.")]
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
    /// A text for each rule.
    conditions: Vec<String>,
}

impl Authz {
    /// Prints them.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let Self::Check(asked) = self;
        let cluster = session.cluster().await?;
        let pod = cluster.pod(&asked.pod).await?;
        let rows: Vec<Row> = if pod.labels().contains_key("gateway.networking.k8s.io/gateway-name") {
            let dump = proxy_config::of_pod(session, &asked.pod).await?;
            let mut rows = vec![];
            for proxy_config::Enforced { action, policy, rules } in proxy_config::rules(&dump) {
                let conditions = stored(&cluster, &policy).await?;
                rows.push(Row { action, policy, rules, conditions });
            }
            rows
        } else {
            let found = ztunnel_config::policies_of(session, &asked.pod).await?;
            let row = |(action, policy, rules): (String, String, Vec<Value>)| Row {
                action,
                policy,
                rules: rules.len(),
                conditions: rules.iter().map(conditions::of_dump).collect(),
            };
            found.into_iter().map(row).collect()
        };
        let mut table = Table::new(&["ACTION", "AuthorizationPolicy", "RULES", "CONDITIONS"]);
        for row in &rows {
            table.row([
                row.action.clone().into(),
                row.policy.clone().into(),
                row.rules.to_string().into(),
                row.conditions.join(" | ").into(),
            ]);
        }
        session.show(asked.output, &table, &rows)
    }
}

/// The rules of a policy (`name.namespace`) as it is stored.
///
/// # Errors
/// If the API server refuses it.
async fn stored(cluster: &Cluster, policy: &str) -> Result<Vec<String>, Problem> {
    let (name, namespace) = policy.split_once('.').unwrap_or((policy, ""));
    let found = cluster.object(AUTHORIZATION, Some(namespace), name).await?;
    let rules = found.as_ref().and_then(|found| found.data.pointer("/spec/rules")).and_then(Value::as_array);
    Ok(rules.into_iter().flatten().map(conditions::of_object).collect())
}
