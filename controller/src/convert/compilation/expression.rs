//! Expressions in CEL over the attributes that proxies have, as Telemetry has them.

use karst_api::{ATTRIBUTES, MAX_EXPRESSION};

/// Why an expression cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExpressionError {
    #[error("is empty: specify a CEL expression such as response.code >= 400 [KARST-0010]")]
    Empty,
    #[error("is longer than {MAX_EXPRESSION} bytes: shorten it [KARST-0017]")]
    TooLong,
    #[error("invalid CEL expression {text:?}: {why} [KARST-0601]")]
    Invalid { text: String, why: String },
    #[error("unknown variable {0:?}: use {all} [KARST-0601]", all = ATTRIBUTES.join(", "))]
    Unknown(String),
}

/// Is it CEL, over attributes that proxies have?
pub(crate) fn expression(text: &str) -> Result<(), ExpressionError> {
    if text.is_empty() {
        return Err(ExpressionError::Empty);
    }
    if text.len() > MAX_EXPRESSION {
        return Err(ExpressionError::TooLong);
    }
    let program = cel::Program::compile(text).map_err(|e| {
        let first = e.to_string().lines().next().unwrap_or_default().to_string();
        let first = first.split(" expecting ").next().unwrap_or_default();
        ExpressionError::Invalid { text: text.into(), why: first.trim_start_matches("ERROR: ").into() }
    })?;
    let unknown = program.references().variables().into_iter().find(|v| !ATTRIBUTES.contains(v)).map(String::from);
    unknown.map_or(Ok(()), |name| Err(ExpressionError::Unknown(name)))
}
