//! What the bench is told.

use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, path::PathBuf};

/// Options and their defaults, each given as --NAME=VALUE; `cargo xtask bench gateway-api --help` explains them.
const NUMBERS: [(&str, usize); 11] = [
    ("attached-routes", 1000),
    ("probe-routes", 3000),
    ("changes", 20),
    ("namespaces", 50),
    ("apps", 100),
    ("load-changes", 1000),
    ("set-namespaces", 10),
    ("sets", 50),
    ("set-routes", 2),
    ("rounds", 5),
    ("secs", 22),
];

/// How to measure.
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// Reads what is given.
    ///
    /// # Errors
    /// It is no option, or no number where one is needed.
    pub fn new(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut given = BTreeMap::new();
        for arg in args {
            let (name, value) = arg.strip_prefix("--").and_then(|a| a.split_once('=')).context("use --NAME=VALUE")?;
            let is_number = NUMBERS.iter().any(|(number, _)| *number == name);
            ensure!(is_number || ["only", "report", "envoy"].contains(&name), "there is no option --{name}");
            ensure!(!is_number || value.parse::<usize>().is_ok(), "--{name}={value} is no number");
            given.insert(name.to_string(), value.to_string());
        }
        Ok(Self(given))
    }

    /// A number.
    pub fn number(&self, name: &str) -> usize {
        let default = NUMBERS.iter().find(|(number, _)| *number == name).map_or(0, |(_, default)| *default);
        self.0.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// Is this test to be run?
    pub fn runs(&self, test: &str) -> bool {
        self.0.get("only").is_none_or(|only| test.contains(only.as_str()))
    }

    /// Where the rows are to be written.
    pub fn report(&self) -> Option<PathBuf> {
        self.0.get("report").map(PathBuf::from)
    }

    /// The Envoy that is measured beside the gateway.
    pub fn envoy(&self) -> Option<PathBuf> {
        self.0.get("envoy").map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_and_numbers_are_numbers() {
        let new = |args: &[&str]| Options::new(args.iter().map(ToString::to_string));
        let options = new(&["--rounds=2", "--only=attached"]).unwrap();
        assert_eq!((options.number("rounds"), options.number("secs")), (2, 22));
        assert!(options.runs("attached routes together") && !options.runs("traffic") && options.envoy().is_none());
        for bad in ["--rounds=x", "--round=2", "rounds=2", "--rounds"] {
            assert!(new(&[bad]).is_err(), "{bad}");
        }
    }
}
