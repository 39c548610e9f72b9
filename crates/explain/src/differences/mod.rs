//! What running proxies know beside what the objects compile to: where one says otherwise of those whom a call concerns, it has not
//! heard yet, or refuses what it was told.

mod difference;
mod mesh;
mod resources;

pub use difference::Difference;

use crate::{answer::Explanation, world::World};
use serde::Serialize;

/// What one proxy knows otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// `the ztunnel of node n`, `pod ns/name`.
    pub proxy: String,
    /// In what; empty: it knows the same.
    pub differences: Vec<Difference>,
}

/// Where the proxies that were observed ([`World::observe_ztunnel`], [`World::observe_proxy`]) differ, in what decides about this
/// call.
pub fn compare(world: &World, answer: &Explanation) -> Vec<Comparison> {
    let of_ztunnel = world.observed.ztunnels().map(|(node, ztunnel)| Comparison {
        proxy: if node.is_empty() { "the ztunnel".into() } else { format!("the ztunnel of node {node}") },
        differences: mesh::of_ztunnel(world, answer, &ztunnel.page),
    });
    let of_proxy = world.observed.proxies().map(|(pod, proxy)| {
        let mut differences = mesh::of_mesh(world, answer, &proxy.page);
        differences.extend(resources::of_proxy(world, answer, pod, &proxy.told));
        Comparison { proxy: format!("pod {pod}"), differences }
    });
    of_ztunnel.chain(of_proxy).collect()
}
