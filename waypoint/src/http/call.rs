//! A request that is under way: what all of its stages look at.

use crate::{
    downstream::context::Downstream,
    http::entry::{Authority, Entry},
    snapshot::Snapshot,
    worker::Worker,
};
use std::{rc::Rc, sync::Arc};

/// A request that is under way. (Its head and what is told of it are changed on the way, and go from hand to hand.)
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) downstream: &'a Rc<Downstream>,
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) entry: &'a Entry,
}

impl<'a> Call<'a> {
    /// What it calls the host.
    pub(super) fn authority(&self) -> &'a Authority {
        &self.entry.authority
    }
}
