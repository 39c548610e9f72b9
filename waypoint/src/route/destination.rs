//! Where requests go, and who gets copies of them.

use crate::route::{
    change::{HeaderChange, Rewrite},
    error::CompileError,
    sequence::Sequence,
};
use karst_api::route as ir;
use std::sync::Arc;

/// Who gets copies of requests.
#[derive(Debug)]
pub struct Mirror {
    pub to: Destination,
    /// Of a million requests, this many.
    pub per_million: u32,
    pub turns: Sequence,
}

/// Where requests go.
#[derive(Debug)]
pub struct Destination {
    /// Key of the service.
    pub service: Arc<str>,
    /// 0: the port that was called.
    pub port: u16,
    pub subset: Arc<str>,
    pub weight: u32,
    pub request: Option<Box<HeaderChange>>,
    pub answer: Option<Box<HeaderChange>>,
    pub rewrite: Option<Box<Rewrite>>,
    /// Answer this instead.
    pub refuse: Option<http::StatusCode>,
    pub timeout_ms: u64,
}

impl Destination {
    pub(super) fn new(destination: &ir::Destination) -> Result<Self, CompileError> {
        Ok(Self {
            service: destination.service.as_str().into(),
            port: u16::try_from(destination.port).map_err(|_| CompileError::Port(destination.port))?,
            // What is empty is shared.
            subset: if destination.subset.is_empty() { Arc::default() } else { destination.subset.as_str().into() },
            weight: destination.weight,
            request: HeaderChange::new(destination.request.as_ref())?,
            answer: HeaderChange::new(destination.answer.as_ref())?,
            rewrite: destination.rewrite.as_ref().map(Rewrite::new).transpose()?.map(Box::new),
            refuse: match destination.refuse_status {
                0 => None,
                n => Some(status(n)?),
            },
            timeout_ms: destination.timeout_ms,
        })
    }

    /// The service that was called.
    pub fn same(service: &Arc<str>) -> Self {
        Self {
            service: service.clone(),
            port: 0,
            subset: "".into(),
            weight: 1,
            request: None,
            answer: None,
            rewrite: None,
            refuse: None,
            timeout_ms: 0,
        }
    }
}

/// A status code.
///
/// # Errors
/// If it is none.
pub fn status(n: u32) -> Result<http::StatusCode, CompileError> {
    u16::try_from(n).ok().and_then(|n| http::StatusCode::from_u16(n).ok()).ok_or(CompileError::Status(n))
}
