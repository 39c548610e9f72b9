//! Which of two objects is the older one.

use karst_manifest::kinds::Meta;

/// Oldest first; those without a time last, then by name.
pub(crate) type Age = (bool, String, String, String);

pub(crate) fn age(meta: &Meta) -> Age {
    let t = meta.creation_timestamp.clone();
    (t.is_none(), t.unwrap_or_default(), meta.namespace.clone(), meta.name.clone())
}
