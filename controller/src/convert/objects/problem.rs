//! What is wrong with an object, and where.

use karst_manifest::{Problem, kinds::api_kind, parse::Located};

/// What is wrong with an object: the field, and what and the fix.
pub(crate) type FieldError = (String, String);

/// A problem of a located object.
pub(crate) fn problem(at: &Located, field: impl Into<String>, message: impl Into<String>) -> Problem {
    let meta = at.object.meta();
    Problem {
        file: at.file.clone(),
        line: at.line,
        object: format!("{} {}/{}", api_kind(at.object.kind()), meta.namespace, meta.name),
        field: field.into(),
        message: message.into(),
    }
}
