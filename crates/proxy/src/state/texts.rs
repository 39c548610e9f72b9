//! Texts that workloads have in common are kept once: namespaces, nodes, clusters, accounts, places. Each would else be there
//! for each of thousands of pods.
//!
//! One task decodes what the control plane tells, so that its thread's memory of what came lately is enough: bounded, and without any
//! account of who still has what. Who finds a slot taken by another text takes it over; then the text is there twice, no more.

use karst_core::Identity;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, LazyLock},
};

/// Slots of each kind.
const SLOTS: usize = 512;

thread_local! {
    static TEXTS: RefCell<Lately<Arc<str>>> = RefCell::new(Lately::new());
    static IDENTITIES: RefCell<Lately<Identity>> = RefCell::new(Lately::new());
}

/// What came lately, by its text.
struct Lately<T>(Box<[Option<T>]>);

impl<T: Clone> Lately<T> {
    fn new() -> Self {
        Self(vec![None; SLOTS].into())
    }

    /// The one of a text if it is there (`is`), else a new one, which is there then.
    fn get(&mut self, text: &str, is: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> T {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let slot = &mut self.0[hasher.finish() as usize % SLOTS];
        // Another one's gives way.
        drop(slot.take_if(|one| !is(one)));
        slot.get_or_insert_with(make).clone()
    }
}

/// A text, with others that are the same where one of them came lately. What is empty is always there once.
pub(super) fn text(text: &str) -> Arc<str> {
    match text {
        "" => Arc::default(),
        _ => TEXTS.with_borrow_mut(|all| all.get(text, |one| **one == *text, || text.into())),
    }
}

/// The same for an identity.
pub(super) fn identity(new: Identity) -> Identity {
    IDENTITIES.with_borrow_mut(|all| all.get(new.as_str(), |one| *one == new, || new.clone()))
}

/// No labels.
pub(super) fn no_labels() -> Arc<BTreeMap<String, String>> {
    static NONE: LazyLock<Arc<BTreeMap<String, String>>> = LazyLock::new(Arc::default);
    NONE.clone()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_is_there_once_and_what_is_not_is_told_apart() {
        // More than there are slots: some are taken over.
        for round in 0..2 {
            for number in 0..3 * SLOTS {
                let name = format!("ns-{number}");
                assert_eq!(&*text(&name), name, "{round}");
                assert!(Arc::ptr_eq(&text(&name), &text(&name)));
                let of = || identity(Identity::new("cluster.local", &name, "default").unwrap());
                assert_eq!((of().namespace(), of().as_str().as_ptr()), (&*name, of().as_str().as_ptr()));
            }
        }
        assert!(text("").is_empty() && Arc::ptr_eq(&no_labels(), &no_labels()));
    }
}
