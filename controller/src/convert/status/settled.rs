//! Which routes have been told what there is to tell: of thousands only those are looked at that may be told something else.
//!
//! What a route is told follows from itself and from objects that are neither routes nor pods. Where these have not changed, and it is
//! the same object, it is told the same; and it is attached to the same listeners.

use crate::convert::objects::address;
use karst_manifest::parse::Located;
use std::{collections::HashMap, sync::Arc};

/// Routes whose statuses are as they should be.
#[derive(Default)]
pub(crate) struct Settled {
    /// Number of the compilation of everything that this was found with.
    compilation: u64,
    /// Counts how often all were looked at.
    look: u64,
    /// By [`address`], which stands for one object as long as that is kept here.
    routes: HashMap<usize, Route>,
}

struct Route {
    _object: Arc<Located>,
    /// What it is attached to: places among all listeners.
    listeners: Box<[usize]>,
    /// The last look that has found it among the objects.
    look: u64,
}

impl Settled {
    /// All are about to be looked at. What was found with another compilation of everything is forgotten.
    pub(crate) fn begin(&mut self, compilation: u64) {
        if self.compilation != compilation {
            self.routes.clear();
        }
        (self.compilation, self.look) = (compilation, self.look + 1);
    }

    /// Is the status of this one as it should be?
    pub(crate) fn has(&mut self, route: &Located) -> bool {
        let Some(known) = self.routes.get_mut(&address(route)) else { return false };
        known.look = self.look;
        true
    }

    /// What those are attached to that this look has found here ([`Settled::has`]).
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &[usize]> {
        self.routes.values().filter(|one| one.look == self.look).map(|one| &*one.listeners)
    }

    /// The look is over. `found`: those that were not here and whose statuses are as they should be, by [`address`], with what they are
    /// attached to. Who was not found among the objects is not kept.
    pub(crate) fn end(&mut self, objects: &[Arc<Located>], mut found: HashMap<usize, Box<[usize]>>) {
        let look = self.look;
        self.routes.retain(|_, one| one.look == look);
        if found.is_empty() {
            return;
        }
        for object in objects {
            let at = address(&**object);
            if let Some(listeners) = found.remove(&at) {
                self.routes.insert(at, Route { _object: object.clone(), listeners, look });
            }
        }
    }
}
