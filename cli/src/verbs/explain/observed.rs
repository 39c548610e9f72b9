//! The pages of the proxies that have a say in a call: of the cluster's own, by the port-forward, or saved in files.

use crate::{
    cluster::{Cluster, PodName, node_of},
    input,
    known::ADMIN,
    problem::{Exit, Problem},
    session::Session,
};
use karst_explain::{Explanation, ObservedError, Proxy, ProxyKind, World};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A saved page, and whose it is, as far as that was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    whose: String,
    file: PathBuf,
}

impl std::str::FromStr for Saved {
    type Err = std::convert::Infallible;

    /// `[NAME=]FILE`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = text.split_once('=').filter(|(name, _)| !name.contains('/') || name.split('/').count() == 2);
        let (whose, file) = named.filter(|_| !Path::new(text).exists()).unwrap_or(("", text));
        Ok(Self { whose: whose.into(), file: file.into() })
    }
}

fn unusable(what: &dyn std::fmt::Display, error: &ObservedError) -> Problem {
    Problem::new(format!("{what}: cannot be used")).because(error).exit(Exit::Unknown)
}

fn page(saved: &Saved) -> Result<Value, Problem> {
    let file = saved.file.display();
    serde_json::from_str(&input::read(&saved.file)?).map_err(|e| {
        let what = Problem::new(format!("{file}: not a page of a proxy")).because(e);
        what.next("save ztunnel's /config_dump, or /config_dump/karst?resources of a waypoint").exit(Exit::Unknown)
    })
}

/// Takes in saved pages.
pub(super) fn read(world: &mut World, ztunnels: &[Saved], proxies: &[Saved]) -> Result<(), Problem> {
    for saved in ztunnels {
        world.observe_ztunnel(&saved.whose, page(saved)?).map_err(|e| unusable(&saved.file.display(), &e))?;
    }
    for saved in proxies {
        let page = page(saved)?;
        let own = page["pod"].as_str().unwrap_or_default().to_string();
        let whose = if saved.whose.is_empty() { &own } else { &saved.whose };
        world.observe_proxy(whose, &page).map_err(|e| unusable(&saved.file.display(), &e))?;
    }
    Ok(())
}

/// Asks the proxies of the cluster that have a say, those that were not asked before. Whoever cannot be asked is noted, and is taken
/// to know what the objects say. True: one was asked.
pub(super) async fn ask(session: &Session<'_>, cluster: &Cluster, world: &mut World, answer: &Explanation) -> bool {
    let mut asked = false;
    let unasked: Vec<Proxy> = answer.proxies.iter().filter(|proxy| !world.has_observed(proxy)).cloned().collect();
    for proxy in unasked {
        let done = match proxy.kind {
            ProxyKind::Ztunnel => of_ztunnel(cluster, world, &proxy.name).await,
            ProxyKind::Waypoint | ProxyKind::Gateway => of_pod(cluster, world, &proxy.name).await,
        };
        match done {
            Ok(()) => asked = true,
            Err(problem) => {
                session.note(format!("note: {} is taken to know what the objects say: {problem}", proxy.name))
            }
        }
    }
    asked
}

async fn of_ztunnel(cluster: &Cluster, world: &mut World, node: &str) -> Result<(), Problem> {
    let all = cluster.ztunnels().await?;
    let Some(ztunnel) = all.iter().find(|pod| node_of(pod) == node) else {
        return Err(Problem::new(format!("no ztunnel is running on node {node}")).next("check the DaemonSet ztunnel"));
    };
    let page = cluster.page(&PodName::from(ztunnel), ADMIN, "/config_dump").await?;
    world.observe_ztunnel(node, page).map_err(|e| unusable(&format!("the ztunnel of node {node}"), &e))
}

async fn of_pod(cluster: &Cluster, world: &mut World, pod: &str) -> Result<(), Problem> {
    let page: Value = cluster.page(&cluster.pod_name(pod), ADMIN, "/config_dump/karst?resources").await?;
    world.observe_proxy(pod, &page).map_err(|e| unusable(&format!("pod {pod}"), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_say_whose_it_is() {
        let saved = |text: &str| text.parse::<Saved>().map(|one| (one.whose, one.file));
        let is = |whose: &str, file: &str| Ok((whose.to_string(), PathBuf::from(file)));
        assert_eq!(saved("dump.json"), is("", "dump.json"));
        assert_eq!(saved("node-1=dump.json"), is("node-1", "dump.json"));
        assert_eq!(saved("shop/w-1=/tmp/dump.json"), is("shop/w-1", "/tmp/dump.json"));
        assert_eq!(saved("/tmp/a=b/dump.json"), is("", "/tmp/a=b/dump.json"));
    }
}
