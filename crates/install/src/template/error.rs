//! What can be wrong with a template, and where.

/// A fault at a place: `NAME:LINE: what`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}:{line}: {fault}")]
pub struct TemplateError {
    /// The template's path, beginning with its chart.
    pub name: String,
    /// Counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is wrong, wherever it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The template's text is none.
    #[error("{0}")]
    Syntax(String),
    /// A function that there is not.
    #[error("function {0:?} is not defined; see the functions in crates/install/src/template/functions")]
    UnknownFunction(String),
    /// A variable that is not declared there.
    #[error("variable {0} is not declared; write {0} := first")]
    UnknownVariable(String),
    /// A template that no file defines.
    #[error("no template {0:?} is defined")]
    UnknownTemplate(String),
    /// A function was called with too few or too many arguments.
    #[error("{function} takes {wanted} arguments, not {got}")]
    Arguments {
        /// Its name.
        function: String,
        /// How many it takes.
        wanted: &'static str,
        /// How many there were.
        got: usize,
    },
    /// A value of the wrong kind.
    #[error("{function} wants {wanted}, and got {got}")]
    Kind {
        /// What was to be done.
        function: String,
        /// What it needs.
        wanted: &'static str,
        /// What it was given.
        got: &'static str,
    },
    /// A field of something that has none.
    #[error("cannot read .{field} of {of}: set the value that it belongs to")]
    NoField {
        /// The field.
        field: String,
        /// What was there instead of a map.
        of: &'static str,
    },
    /// `fail` and `required`: the chart's author refuses the values.
    #[error("{0}")]
    Refused(String),
    /// One of the limits.
    #[error("more than {limit} {what}: templates of this size are refused")]
    TooMuch {
        /// Of what there is too much.
        what: &'static str,
        /// How much there may be.
        limit: usize,
    },
    /// An error inside of a template that was included.
    #[error("{0}")]
    Inside(Box<TemplateError>),
}
