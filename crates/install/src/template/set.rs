//! The templates of a chart, parsed.

use super::{
    error::TemplateError,
    parse::{self, Block},
};
use std::collections::BTreeMap;

/// All templates of a chart and of its dependencies, by name.
#[derive(Debug, Default)]
pub struct Templates {
    pub(super) named: BTreeMap<String, Defined>,
}

#[derive(Debug, Clone)]
pub(super) struct Defined {
    pub(super) block: Block,
    /// The file that it is in, for messages.
    pub(super) file: String,
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
}
