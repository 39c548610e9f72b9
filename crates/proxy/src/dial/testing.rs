//! What several files' tests here need.

use super::candidate::Endpoint;
use std::cell::Cell;

/// What is learnt of the one endpoint.
#[derive(Default)]
pub(super) struct Learnt(pub(super) Cell<bool>);

impl Endpoint for Learnt {
    fn avoid(&self) {
        self.0.set(true);
    }
}
