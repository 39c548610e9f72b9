//! `waypoint list`, `status` and `delete`.

use super::gateway::{self, FOR, GATEWAY, REVISION, condition, duration, label};
use crate::{
    output::{Cell, Format, Table, Tone},
    problem::Problem,
    session::Session,
};
use clap::Args;
use kube::{ResourceExt, api::DynamicObject};
use std::time::Duration;

/// Options of `waypoint list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  karst waypoint list\n  karst waypoint list -A -o yaml")]
pub struct List {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Options of `waypoint status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  karst waypoint status -n shop              waits until all of them are programmed
  karst waypoint status waypoint --wait=false")]
pub struct Status {
    /// Only these
    names: Vec<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Wait until they are programmed
    #[arg(
        long,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        require_equals = true
    )]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "90s", value_parser = duration, value_name = "DURATION")]
    waypoint_timeout: Duration,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Options of `waypoint delete`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  karst waypoint delete waypoint -n shop\n  karst waypoint delete --all -n shop")]
pub struct Delete {
    /// Which
    #[arg(required_unless_present_any = ["all", "revision"], conflicts_with = "all")]
    names: Vec<String>,
    /// All of the namespace
    #[arg(long)]
    all: bool,
    /// All of the namespace with this revision
    #[arg(short, long, value_name = "NAME")]
    revision: Option<String>,
}

impl List {
    /// Prints them.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let namespace = (!self.all_namespaces).then_some(cluster.namespace.as_str());
        let all = gateway::all(&cluster, namespace).await?;
        if all.is_empty() && self.output == Format::Table {
            let place = namespace.map_or("any namespace".into(), |name| format!("namespace {name}"));
            return session.line(format!("No waypoints in {place}."));
        }
        session.show(self.output, &listed(&all, self.all_namespaces), &all)
    }
}

fn listed(all: &[DynamicObject], has_namespace: bool) -> Table {
    let head = ["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"];
    let mut table = Table::new(head.get(usize::from(!has_namespace)..).unwrap_or_default());
    for one in all {
        let or = |text: &str, otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { text.to_owned() };
        let programmed = condition(one, "Programmed").map_or("Unknown", |[status, ..]| status);
        let cells = [
            one.namespace().unwrap_or_default().into(),
            one.name_any().into(),
            or(label(one, REVISION), "default").into(),
            or(label(one, FOR), "service").into(),
            Cell::new(programmed, if programmed == "True" { Tone::Good } else { Tone::Bad }),
        ];
        table.row(cells.into_iter().skip(usize::from(!has_namespace)));
    }
    table.sort();
    table
}

impl Status {
    /// Prints them, and fails if one is not programmed.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let namespace = (!self.all_namespaces).then_some(cluster.namespace.as_str());
        let wanted = |one: &DynamicObject| self.names.is_empty() || self.names.contains(&one.name_any());
        let mut all = gateway::all(&cluster, namespace).await?;
        all.retain(wanted);
        if let Some(missing) = self.names.iter().find(|name| all.iter().all(|one| one.name_any() != **name)) {
            return Err(Problem::new(format!("waypoint {missing} does not exist in namespace {}", cluster.namespace))
                .next("`karst waypoint list -A` lists all"));
        }
        if all.is_empty() {
            return session.line("No waypoints found.");
        }
        let mut late = None;
        if self.wait {
            for one in &all {
                let place = one.namespace().unwrap_or_default();
                late = gateway::wait(&cluster, &place, &one.name_any(), self.waypoint_timeout).await.err().or(late);
            }
            all = gateway::all(&cluster, namespace).await?;
            all.retain(wanted);
        }
        session.show(self.output, &states(&all, self.all_namespaces), &all)?;
        late.map_or(Ok(()), Err)
    }
}

fn states(all: &[DynamicObject], has_namespace: bool) -> Table {
    let head = ["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"];
    let mut table = Table::new(head.get(usize::from(!has_namespace)..).unwrap_or_default());
    for one in all {
        let [status, reason, message] = condition(one, "Programmed").unwrap_or(["Unknown", "", ""]);
        let tone = if status == "True" { Tone::Good } else { Tone::Bad };
        let cells = [
            one.namespace().unwrap_or_default().into(),
            one.name_any().into(),
            Cell::new(status, tone),
            "Programmed".into(),
            reason.into(),
            message.into(),
        ];
        table.row(cells.into_iter().skip(usize::from(!has_namespace)));
    }
    table.sort();
    table
}

impl Delete {
    /// Deletes them.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let place = cluster.namespace.clone();
        let all = gateway::all(&cluster, Some(&place)).await?;
        let fits = |one: &&DynamicObject| {
            (self.all || self.names.is_empty() || self.names.contains(&one.name_any()))
                && self.revision.as_deref().is_none_or(|revision| label(one, REVISION) == revision)
        };
        let chosen: Vec<String> = all.iter().filter(fits).map(ResourceExt::name_any).collect();
        for name in &chosen {
            cluster.delete(GATEWAY, Some(&place), name).await?;
            session.line(format!("waypoint {place}/{name} deleted"))?;
        }
        let missing: Vec<&str> = self.names.iter().filter(|name| !chosen.contains(name)).map(String::as_str).collect();
        if !missing.is_empty() {
            return Err(Problem::new(format!("no such waypoint in namespace {place}: {}", missing.join(", ")))
                .next("`karst waypoint list -A` lists all"));
        }
        if chosen.is_empty() {
            session.line(format!("No waypoints in namespace {place}: nothing was deleted."))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_are_istios() {
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": { "name": "waypoint", "namespace": "shop", "labels": { "istio.io/waypoint-for": "all" } },
            "spec": { "gatewayClassName": "istio-waypoint" },
            "status": { "conditions": [{ "type": "Programmed", "status": "False", "reason": "Pending", "message": "no pod" }] },
        });
        let all: Vec<DynamicObject> = vec![serde_json::from_value(gateway).unwrap()];
        let expected = "NAMESPACE   NAME       REVISION   TRAFFIC TYPE   PROGRAMMED\nshop        waypoint   default    all            False\n";
        assert_eq!(listed(&all, true).render(false), expected);
        let expected =
            "NAME       STATUS   TYPE         REASON    MESSAGE\nwaypoint   False    Programmed   Pending   no pod\n";
        assert_eq!(states(&all, false).render(false), expected);
    }
}
