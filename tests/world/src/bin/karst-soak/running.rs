//! A fault that goes on.

use crate::{shared::Shared, site::Site};
use anyhow::Result;
use std::sync::Arc;

/// What goes on beside other faults, and so never waits: it is asked again and again.
pub trait Running {
    /// Does what can be done now. True: all is as it was before, and it is not asked again. `is_over`: its time has passed.
    fn poll(&mut self, site: &mut Site, shared: &Arc<Shared>, is_over: bool) -> Result<bool>;

    /// What it waits for beside its time.
    fn awaits(&self) -> &'static str;
}

/// What lasts for its time and is undone then.
struct Outage<F>(Option<F>);

/// A fault that has begun already, and what ends it.
pub fn outage(undo: impl FnOnce(&mut Site) -> Result<()> + 'static) -> Box<dyn Running> {
    Box::new(Outage(Some(undo)))
}

impl<F: FnOnce(&mut Site) -> Result<()>> Running for Outage<F> {
    fn poll(&mut self, site: &mut Site, _shared: &Arc<Shared>, is_over: bool) -> Result<bool> {
        if is_over && let Some(undo) = self.0.take() {
            undo(site)?;
        }
        Ok(is_over)
    }

    fn awaits(&self) -> &'static str {
        "nothing"
    }
}
