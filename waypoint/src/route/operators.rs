//! Values of headers that a rule makes of a request (`%REQ(x-user)%`).

use crate::route::error::CompileError;
use http::{HeaderMap, HeaderValue};
use karst_core::operators::{self, Operator, Part};

/// A value of a header.
#[derive(Clone, Debug)]
pub enum Value {
    /// Always the same.
    Fixed(HeaderValue),
    /// Made anew for each request.
    Made(Vec<Part>),
}

/// What operators stand for.
pub trait Values {
    /// Adds what one stands for; nothing, if that is not there. `headers`: those that are being changed.
    fn write(&self, operator: &Operator, headers: &HeaderMap, out: &mut Vec<u8>);
}

impl Value {
    /// Compiles one.
    ///
    /// # Errors
    /// It is no header's value, or has an operator that is not known.
    pub fn new(text: &str) -> Result<Self, CompileError> {
        let parts = operators::parse(text).map_err(|e| CompileError::Operator(text.into(), e))?;
        // The operators are made of signs that every value may have.
        let fixed = |t: &str| HeaderValue::from_str(t).map_err(|_| CompileError::HeaderValue(text.into()));
        match &parts[..] {
            [] => fixed("").map(Self::Fixed),
            [Part::Text(t)] => fixed(t).map(Self::Fixed),
            _ => fixed(text).map(|_| Self::Made(parts)),
        }
    }

    /// The value for a request. None: what it is made of is not there, and the header is left as it is (Envoy).
    pub fn make(&self, values: &dyn Values, headers: &HeaderMap) -> Option<HeaderValue> {
        let parts = match self {
            Self::Fixed(v) => return Some(v.clone()),
            Self::Made(parts) => parts,
        };
        let mut out = Vec::with_capacity(64);
        for p in parts {
            match p {
                Part::Text(t) => out.extend_from_slice(t.as_bytes()),
                Part::Operator(operator, longest) => {
                    let start = out.len();
                    values.write(operator, headers, &mut out);
                    if let Some(n) = longest {
                        out.truncate(start.saturating_add(*n));
                    }
                }
            }
        }
        if out.is_empty() { None } else { HeaderValue::from_bytes(&out).ok() }
    }
}
