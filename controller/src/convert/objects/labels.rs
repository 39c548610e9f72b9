//! Labels and the selectors of them.

use karst_manifest::kinds::*;

/// Do the labels hold all of the selector? An empty selector selects everything.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}
