//! Who says whose a token is, and what its user may read: the API server, or a test in its place.

use crate::problem::Problem;
use std::{collections::BTreeMap, pin::Pin};

/// Who has shown a token, as the API server names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Identifier; a name that comes again has another.
    pub uid: String,
    /// The groups that it is in.
    pub groups: Vec<String>,
    /// What else authorizers may look at.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why nothing is said.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The token is nobody's.
    #[error("the API server does not accept the token")]
    Refused,
    /// The API server cannot be asked.
    #[error(transparent)]
    Unreachable(#[from] Problem),
}

/// An answer that is waited for.
pub type Judged<'a, T> = Pin<Box<dyn Future<Output = Result<T, JudgeError>> + 'a>>;

/// Who decides.
pub trait Judge {
    /// Whose token is it?
    fn user<'a>(&'a self, token: &'a str) -> Judged<'a, User>;
    /// May they list the pods of a namespace (None: of all)?
    fn may_list_pods<'a>(&'a self, user: &'a User, namespace: Option<&'a str>) -> Judged<'a, bool>;
}
