//! What is behind an answer: objects of those whom the call concerns that have no effect, and what makes a policy refuse that was
//! hardly meant so. The verdict does not change by it.

mod authorization;
mod concern;
mod gateway;

use crate::{
    answer::{Cause, Outcome, Stage},
    call::Call,
    l4::step,
    walk::outside_of_mesh,
    way::Way,
    world::World,
};

/// Adds what is known beside the decisions.
pub(crate) fn diagnose(world: &World, call: &Call, way: &mut Way) {
    match way.answer.cause {
        Some(Cause::NotAllowedByAnyPolicy) => authorization::not_allowed(world, call, way),
        Some(Cause::DeniedByPolicy) => authorization::denied(world, way),
        Some(Cause::StrictMtlsOutsider) => {
            let why = outside_of_mesh(world, &way.source.workload.clone());
            way.explain_refusal(Cause::StrictMtlsOutsider, &why);
        }
        Some(Cause::NoRouteForHost | Cause::NoListener) => gateway::not_taken(world, call, way),
        Some(_) | None => {}
    }
    for (object, why) in concern::statements(world, way) {
        way.push(step(Stage::Configuration, Outcome::Warn, object, why));
    }
}
