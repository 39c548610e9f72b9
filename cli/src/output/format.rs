//! `-o json|yaml`.

use crate::problem::Problem;
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A table.
    #[default]
    #[value(alias = "short", alias = "log")]
    Table,
    /// JSON, indented.
    Json,
    /// YAML.
    Yaml,
}

impl Format {
    /// The value as text, ending in a newline; none where a table is wanted.
    ///
    /// # Errors
    /// If the value has keys that the format cannot write.
    pub fn encode(self, value: &impl Serialize) -> Result<Option<String>, Problem> {
        let failed = |why: String| Problem::new("cannot encode the answer").because(why).next("use -o table");
        Ok(match self {
            Self::Table => None,
            Self::Json => Some(serde_json::to_string_pretty(value).map_err(|e| failed(e.to_string()))? + "\n"),
            Self::Yaml => Some(serde_yaml_ng::to_string(value).map_err(|e| failed(e.to_string()))?),
        })
    }
}
