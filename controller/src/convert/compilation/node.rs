//! Nodes to the ranges that their pods have addresses from: ztunnels hold what goes to an address there that they have not been
//! told of, because it may be a member's.

use crate::{
    convert::objects::{Objects, problem},
    model::Model,
};
use karst_api::route::PodRanges;
use karst_core::Cidr;
use karst_manifest::Problem;

pub(crate) fn compile(objects: &Objects<'_>, model: &mut Model, problems: &mut Vec<Problem>) {
    for (at, node) in &objects.nodes_at {
        let mut ranges = Vec::new();
        for (index, text) in node.spec.pod_cidrs.iter().enumerate() {
            match text.parse::<Cidr>() {
                Ok(c) => ranges.push(c.to_string()),
                Err(e) => problems.push(problem(at, format!("spec.podCIDRs[{index}]"), e.to_string())),
            }
        }
        if !ranges.is_empty() {
            model.pod_ranges.insert(node.metadata.name.clone(), PodRanges { ranges });
        }
    }
}
