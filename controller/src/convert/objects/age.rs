//! Which of two objects is the older one.

use karst_manifest::kinds::Meta;

/// Oldest first; those without a time last, then by name.
pub(crate) type Age = (bool, String, String, String);

pub(crate) fn age(m: &Meta) -> Age {
    let t = m.creation_timestamp.clone();
    (t.is_none(), t.unwrap_or_default(), m.namespace.clone(), m.name.clone())
}
