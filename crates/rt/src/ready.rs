//! Readiness as named blockers: the probe's answer lists what is still missing.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The set of things that a process still waits for.
#[derive(Clone, Debug, Default)]
pub struct Ready(Arc<Mutex<BTreeSet<String>>>);

/// Keeps the process unready until it is dropped.
#[derive(Debug)]
pub struct Blocker(Ready, String);

impl Ready {
    /// Adds something to wait for.
    pub fn block(&self, what: &str) -> Blocker {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(what.to_string());
        Blocker(self.clone(), what.to_string())
    }
    /// What is still missing; empty when ready.
    pub fn missing(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for Blocker {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}
