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
    /// A `/` in the name of a trust domain.
    Domain,
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
                "may contain only one '*', as its first or last character: use for example x*, *x or * [KARST-0111]"
            }
            ValueError::PathStar => {
                "may contain only one '*', as its first or last character: use {*} for one segment, {**} for any number of segments [KARST-0111]"
            }
            ValueError::NoStar => "must not contain '*', because only whole values are compared: list each value [KARST-0111]",
            ValueError::Domain => "must not contain '/', because it is the name of a trust domain, such as cluster.local: use source.principal for more than that [KARST-0124]",
            ValueError::Braces => "contains '{' or '}' that is not part of {*} or {**} as a whole segment: use one of these [KARST-0112]",
            ValueError::NotLast => "contains an operator after {**}, which must be the last one: remove one of them [KARST-0112]",
            ValueError::Literal => "contains a character that is not allowed in a path template: percent-encode it [KARST-0112]",
            ValueError::Relative => "must begin with '/' or '*', because every path begins with '/' [KARST-0113]",
            ValueError::Query => "contains '?' or '#', which are never part of a path: remove the query or fragment [KARST-0113]",
        })
    }
}

impl std::error::Error for ValueError {}
