//! The question and its answer.

use crate::{
    answer::{Explanation, Verdict},
    call::Call,
    diagnosis, fix,
    parties::PartyError,
    walk::walk,
    world::World,
};

/// What becomes of a call.
///
/// # Errors
/// A party of the call is not known.
pub fn explain(world: &World, call: &Call) -> Result<Explanation, PartyError> {
    let mut way = walk(world, call)?;
    // What would help, and what has no effect, is said by the objects: of another time it is not known.
    if world.is_past {
        return Ok(way.answer);
    }
    if way.answer.verdict == Verdict::Refused {
        way.answer.fix = fix::find(world, call, &way);
    }
    diagnosis::diagnose(world, call, &mut way);
    way.finish(call);
    Ok(way.answer)
}
