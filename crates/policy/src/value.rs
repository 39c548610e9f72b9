//! Values of policies that cannot be compared, and why: refused where they are applied, and closed where they arrive.

use std::fmt;

/// Why a value cannot be compared. To be read after the value: `"a*b" may have only one '*', …`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueError {
    /// A `*` inside, or more than one.
    Star,
    /// The same in a path, where templates are the way out.
    PathStar,
    /// A `*` where nothing but the whole value is compared.
    NoStar,
    /// `{name}`, or an operator that is not a whole segment.
    Braces,
    /// An operator after `{**}`.
    NotLast,
    /// A text between operators that no path may have as it is.
    Literal,
    /// A path that begins with something else than a slash.
    Relative,
    /// What is not part of a path.
    Query,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ValueError::Star => {
                "may have only one '*', as its first or last character: use a value such as x*, *x or *"
            }
            ValueError::PathStar => {
                "may have only one '*', as its first or last character: use {*} for one segment, {**} for any number"
            }
            ValueError::NoStar => "cannot have a '*', only whole values are compared: give each value",
            ValueError::Braces => "has '{' or '}' other than in {*} or {**} as a whole segment: use one of these",
            ValueError::NotLast => "has an operator after {**}, which must be the last one: remove one of them",
            ValueError::Literal => "has a character that a path template cannot have as it is: percent-encode it",
            ValueError::Relative => "does not begin with '/' or '*', as no path does: add it",
            ValueError::Query => "has a '?' or '#', which no path has: remove the query or fragment",
        })
    }
}

impl std::error::Error for ValueError {}
