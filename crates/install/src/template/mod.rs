//! Go's text/template with the functions of sprig that charts use, as Helm renders them.
//!
//! Charts are input: a malformed one is an error with a name and a line, never a panic, and time, depth and output are
//! bounded ([`eval::Limits`]). `tests/helm.rs` renders our charts by Helm, too, and compares.

mod error;
mod eval;
mod format;
mod functions;
mod lex;
mod parse;
#[cfg(test)]
mod tests;
mod value;
mod yaml;

pub use error::{Fault, TemplateError};
pub use value::{Map, Value};
pub use yaml::to_yaml;

use parse::Block;
use std::collections::BTreeMap;

/// All templates of a chart and of its dependencies, by name.
#[derive(Debug, Default)]
pub struct Templates {
    named: BTreeMap<String, Defined>,
}

#[derive(Debug, Clone)]
struct Defined {
    block: Block,
    /// The file that it is in, for messages.
    file: String,
}

impl Templates {
    /// Adds a file, and what it defines; a name that is defined again has its last definition.
    ///
    /// # Errors
    /// If it is no template; with its line.
    pub fn add(&mut self, file: &str, source: &str) -> Result<(), TemplateError> {
        let parsed = parse::parse(source).map_err(|(line, fault)| TemplateError { name: file.into(), line, fault })?;
        for (name, block) in parsed.defined {
            self.named.insert(name, Defined { block, file: file.into() });
        }
        self.named.insert(file.into(), Defined { block: parsed.main, file: file.into() });
        Ok(())
    }

    /// Renders a file with `value` as its dot.
    ///
    /// # Errors
    /// What went wrong, with file and line.
    pub fn render(&self, file: &str, value: Value) -> Result<String, TemplateError> {
        eval::render(self, file, value)
    }
}
