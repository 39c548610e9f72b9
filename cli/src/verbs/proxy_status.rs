//! `proxy-status`: the proxies that are connected, and what each has acknowledged.

use crate::{
    cluster::{PodName, is_ready},
    known::{CLIENT, MONITORING},
    output::{Cell, Format, Table, Tone},
    problem::Problem,
    session::Session,
    syncz::{Proxy, State},
};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeSet;

/// Options of `proxy-status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  karst proxy-status
  karst proxy-status -v 1            a column for each type of resource, with its state
  karst proxy-status waypoint-1.shop only that proxy
  karst proxy-status -o json")]
pub struct ProxyStatus {
    /// Only this proxy: POD or POD.NAMESPACE
    pod: Option<String>,
    /// 1: a column for each type of resource
    #[arg(short, long, default_value_t = 0)]
    verbosity: u8,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A proxy, and the pod of the control plane that it is connected to.
#[derive(Serialize)]
struct Connected {
    istiod: String,
    #[serde(flatten)]
    proxy: Proxy,
}

impl ProxyStatus {
    /// Asks every pod of the control plane.
    ///
    /// # Errors
    /// If there is none, none answers, or the named proxy is connected to none.
    pub async fn run(self, session: &mut Session<'_>) -> Result<(), Problem> {
        let cluster = session.cluster().await?;
        let mut all = vec![];
        for pod in cluster.control_plane().await?.iter().filter(|pod| is_ready(pod)) {
            let name = PodName::from(pod);
            let page: Value = cluster.page(&name, MONITORING, "/debug/syncz").await?;
            let connected = |proxy| Connected { istiod: name.name.clone(), proxy };
            all.extend(Proxy::list(page)?.into_iter().map(connected));
        }
        if let Some(pod) = &self.pod {
            let wanted = cluster.pod_name(pod).to_string();
            // A name alone is of any namespace: proxies are in those of the mesh and of the waypoints.
            let is_it = |name: &str| name == wanted || name.split_once('.').is_some_and(|(bare, _)| bare == pod);
            all.retain(|connected| is_it(&connected.proxy.name()));
            if all.is_empty() {
                return Err(Problem::new(format!("proxy {wanted} is connected to no control plane"))
                    .next(format!("`{} proxy-status` lists those that are; look at the pod's log", session.program)));
            }
        }
        let table = if self.verbosity > 0 { by_type(&all) } else { plain(&all) };
        session.show(self.output, &table, &all)
    }
}

fn head(connected: &Connected) -> [Cell; 4] {
    let proxy = &connected.proxy;
    let tone = if proxy.istio_version == CLIENT { Tone::Plain } else { Tone::Warning };
    let version = Cell::new(proxy.istio_version.clone(), tone);
    [proxy.name().into(), proxy.cluster_id.clone().into(), connected.istiod.clone().into(), version]
}

fn plain(all: &[Connected]) -> Table {
    let mut table = Table::new(&["NAME", "CLUSTER", "ISTIOD", "VERSION", "SUBSCRIBED TYPES"]);
    for connected in all {
        let types = connected.proxy.types();
        let names: Vec<&str> = types.iter().map(|(name, _)| name.as_str()).collect();
        let wrong = types.iter().any(|(_, state)| *state == State::Error);
        let text = if names.is_empty() { String::new() } else { format!("{} ({})", names.len(), names.join(",")) };
        table.row(head(connected).into_iter().chain([Cell::new(text, if wrong { Tone::Bad } else { Tone::Plain })]));
    }
    table.sort();
    table
}

fn by_type(all: &[Connected]) -> Table {
    // The known columns in istioctl's order; other types are in -o json.
    const ORDER: [&str; 8] = ["CDS", "LDS", "EDS", "RDS", "ECDS", "SDS", "WDS", "WADS"];
    let used: BTreeSet<String> = all.iter().flat_map(|c| c.proxy.types()).map(|(name, _)| name).collect();
    let columns: Vec<&'static str> = ORDER.into_iter().filter(|name| used.contains(*name)).collect();
    let mut table = Table::new(&[&["NAME", "CLUSTER", "ISTIOD", "VERSION"], &columns[..]].concat());
    for connected in all {
        let types = connected.proxy.types();
        let cell = |column: &&str| match types.iter().find(|(name, _)| name == column) {
            Some((_, state)) => Cell::new(state.name(), tone(*state)),
            None => Cell::from("IGNORED"),
        };
        table.row(head(connected).into_iter().chain(columns.iter().map(cell)));
    }
    table.sort();
    table
}

fn tone(state: State) -> Tone {
    match state {
        State::Synced => Tone::Good,
        State::Stale => Tone::Warning,
        State::NotSent => Tone::Plain,
        State::Error => Tone::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn all() -> Vec<Connected> {
        let page = json!([
            { "proxy": "ztunnel-1.istio-system", "cluster_id": "Kubernetes", "istio_version": "1", "resources": {
                "type.googleapis.com/istio.workload.Address": { "sent": "7", "acked": "7" } } },
            { "proxy": "way-1.shop", "cluster_id": "Kubernetes", "istio_version": "1", "resources": {} },
        ]);
        Proxy::list(page).unwrap().into_iter().map(|proxy| Connected { istiod: "istiod-1".into(), proxy }).collect()
    }

    #[test]
    fn columns_are_istios() {
        let expected = "\
NAME                     CLUSTER      ISTIOD     VERSION   SUBSCRIBED TYPES
way-1.shop               Kubernetes   istiod-1   1         -
ztunnel-1.istio-system   Kubernetes   istiod-1   1         1 (WDS)
";
        assert_eq!(plain(&all()).render(false), expected);
    }

    #[test]
    fn verbose_has_a_column_for_each_type_in_use() {
        let text = by_type(&all()).render(false);
        assert!(text.starts_with("NAME                     CLUSTER      ISTIOD     VERSION   WDS\n"), "{text}");
        assert!(text.contains("way-1.shop               Kubernetes   istiod-1   1         IGNORED\n"), "{text}");
    }
}
