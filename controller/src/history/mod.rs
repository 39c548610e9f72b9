//! The configuration as it was: versions of the last day, for `karst explain --at` (`/debug/history`).
//!
//! It is what this controller told proxies, and not what they had: whether and when one had taken a version in is not kept. What must
//! always hold is that the state of any moment that is kept is the one of then, to the byte, and that all of it takes no more memory
//! than its bound: `kept::tests::any_moment_is_told_as_it_was`, `kept::tests::no_more_than_the_bound_is_kept`. Private keys are in
//! none of it (`change::tests::keys_are_not_kept`).
//!
//! `moment` is the time, `change` the difference of two versions, `kept` all that are kept, `page` what is told of them.

mod change;
mod kept;
mod moment;
pub(crate) mod page;

pub(crate) use kept::History;
pub use moment::{AtError, Moment, When};
pub use page::{Page, PageError, Summary};
