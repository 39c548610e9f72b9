//! Statements as messages: level, code, object, text. The code is Istio's where the meaning is.

use karst_controller::analysis::{Sort, Statement};
use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum Level {
    /// To be known.
    #[value(alias = "info")]
    Info,
    /// Hardly what was meant.
    #[value(alias = "warning", alias = "Warn", alias = "warn")]
    Warning,
    /// Refused, or not in force.
    #[value(alias = "error")]
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        }
    }
}

/// One message, with the names that istioctl's JSON has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `IST0101`, or `KARST-0701` where Istio has no such code.
    pub code: String,
    /// How bad it is.
    pub level: Level,
    /// `Kind namespace/name`.
    pub origin: String,
    /// `file:line`; empty for an object of the cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reference: String,
    /// Field, what is wrong, the fix.
    pub message: String,
}

impl From<&Statement> for Message {
    fn from(statement: &Statement) -> Self {
        let (code, level) = judge(statement);
        let reference = if statement.file.as_os_str().is_empty() {
            String::new()
        } else {
            format!("{}:{}", statement.file.display(), statement.line)
        };
        let origin = statement.object.clone();
        Self { code, level, origin, reference, message: statement.message.clone() }
    }
}

/// Code and level. Istio's level goes with Istio's code.
fn judge(statement: &Statement) -> (String, Level) {
    let kind = statement.object.split(' ').next().unwrap_or_default();
    let istio = |code: &str, level| (code.to_owned(), level);
    match (statement.code(), kind, statement.sort) {
        (Some(307), "DestinationRule", Sort::NoEffect(_)) => istio("IST0174", Level::Warning),
        (Some(307 | 308), _, Sort::NoEffect(_) | Sort::Problem) => istio("IST0101", Level::Error),
        (Some(503..=505), "Gateway", _) => istio("IST0161", Level::Error),
        (Some(503), ..) => istio("IST0101", Level::Error),
        (Some(316), ..) => istio("IST0132", Level::Warning),
        (Some(508), "Gateway", _) => istio("IST0145", Level::Error),
        (Some(509), "Gateway", _) => istio("IST0162", Level::Warning),
        (Some(117 | 120), _, Sort::Warning | Sort::NoEffect(_)) => istio("IST0167", Level::Warning),
        (Some(1..=6 | 10..=28 | 32), _, Sort::Problem) | (None, _, Sort::Problem) => istio("IST0106", Level::Error),
        (Some(31), ..) => istio("IST0002", Level::Warning),
        (Some(8), "Sidecar", _) => istio("IST0167", Level::Warning),
        (Some(707), ..) => istio("IST0123", Level::Warning),
        (Some(number), _, Sort::Problem) => (format!("KARST-{number:04}"), Level::Error),
        (Some(number), _, Sort::Warning | Sort::NoEffect(_)) => (format!("KARST-{number:04}"), Level::Warning),
        (None, _, Sort::Warning | Sort::NoEffect(_)) => istio("IST0133", Level::Warning),
    }
}

/// Istio's codes that a code of ours may be shown as.
pub fn shown_as(number: u16) -> &'static [&'static str] {
    match number {
        1..=6 | 10..=28 | 32 => &["IST0106"],
        8 | 117 | 120 => &["IST0167"],
        31 => &["IST0002"],
        307 => &["IST0101", "IST0174"],
        308 => &["IST0101"],
        316 => &["IST0132"],
        503 => &["IST0101", "IST0161"],
        504 | 505 => &["IST0161"],
        508 => &["IST0145"],
        509 => &["IST0162"],
        707 => &["IST0123"],
        _ => &[],
    }
}

/// A message as a line.
pub fn table_line(message: &Message) -> String {
    let Message { code, level, origin, reference, message } = message;
    let place = match (origin.is_empty(), reference.is_empty()) {
        (true, true) => String::new(),
        (true, false) => format!(" ({reference})"),
        (false, true) => format!(" ({origin})"),
        (false, false) => format!(" ({origin} {reference})"),
    };
    format!("{} [{code}]{place} {message}", level.name())
}

/// `-S CODE=RESOURCE`: not to be told of. The resource is `Kind name.namespace`, with `*` for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppression {
    code: String,
    resource: String,
}

/// Not a suppression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write CODE=RESOURCE, for example \"IST0101=VirtualService web.shop\" or \"KARST-0701=*\"")]
pub struct SuppressionError;

impl std::str::FromStr for Suppression {
    type Err = SuppressionError;
    fn from_str(text: &str) -> Result<Self, SuppressionError> {
        match text.split_once('=') {
            Some((code, resource)) if !code.is_empty() && !resource.is_empty() => {
                Ok(Self { code: code.into(), resource: resource.into() })
            }
            _ => Err(SuppressionError),
        }
    }
}

impl Suppression {
    /// Whether it is of this message.
    pub fn covers(&self, message: &Message) -> bool {
        let istio = match message.origin.split_once(' ') {
            Some((kind, path)) => match path.split_once('/') {
                Some((namespace, name)) => format!("{kind} {name}.{namespace}"),
                None => message.origin.clone(),
            },
            None => message.origin.clone(),
        };
        self.code == message.code && (fits(&self.resource, &istio) || fits(&self.resource, &message.origin))
    }
}

/// Whether a pattern with `*` fits a text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(object: &str, sort: Sort, message: &str) -> Message {
        let statement =
            Statement { sort, object: object.into(), file: "a.yaml".into(), line: 3, message: message.into() };
        Message::from(&statement)
    }

    #[test]
    fn codes_are_istios_where_the_meaning_is() {
        let told = |object, sort, message| {
            let message = statement(object, sort, message);
            (message.code, message.level)
        };
        let none = Sort::NoEffect("HostNotFound");
        assert_eq!(told("VirtualService a/b", none, "x [KARST-0307]"), ("IST0101".into(), Level::Error));
        assert_eq!(told("DestinationRule a/b", none, "x [KARST-0307]"), ("IST0174".into(), Level::Warning));
        assert_eq!(told("Gateway a/b", Sort::Problem, "x [KARST-0001]"), ("IST0106".into(), Level::Error));
        assert_eq!(told("HTTPRoute a/b", none, "x [KARST-0701]"), ("KARST-0701".into(), Level::Warning));
        assert_eq!(
            told("AuthorizationPolicy a/b", Sort::Problem, "x [KARST-0108]"),
            ("KARST-0108".into(), Level::Error)
        );
    }

    #[test]
    fn what_is_shown_is_what_is_listed() {
        for (number, _) in karst_manifest::code::CODES {
            for kind in ["Gateway", "DestinationRule", "VirtualService", "Sidecar"] {
                for sort in [Sort::Problem, Sort::Warning, Sort::NoEffect("HostNotFound")] {
                    let code = statement(&format!("{kind} a/b"), sort, &format!("x [KARST-{number:04}]")).code;
                    assert!(!code.starts_with("IST") || shown_as(*number).contains(&code.as_str()), "{number}: {code}");
                }
            }
        }
    }

    #[test]
    fn a_line_has_level_code_object_place_and_text() {
        let message = statement("VirtualService shop/web", Sort::Problem, "spec.http: is empty [KARST-0010]");
        let expected = "Error [IST0106] (VirtualService shop/web a.yaml:3) spec.http: is empty [KARST-0010]";
        assert_eq!(table_line(&message), expected);
    }

    #[test]
    fn suppressions_are_of_a_code_and_a_resource() {
        let message = statement("VirtualService shop/web", Sort::Problem, "x [KARST-0010]");
        let covers = |text: &str| text.parse::<Suppression>().map(|one| one.covers(&message));
        assert_eq!(covers("IST0106=VirtualService web.shop"), Ok(true));
        assert_eq!(covers("IST0106=VirtualService *.shop"), Ok(true));
        assert_eq!(covers("IST0106=*"), Ok(true));
        assert_eq!(covers("IST0106=Gateway *"), Ok(false));
        assert_eq!(covers("IST0101=*"), Ok(false));
        assert_eq!(covers("IST0106"), Err(SuppressionError));
    }
}
