//! What can be set in the charts: `charts/values.tsv` says of each key, Istio's among them, whether it is honoured,
//! accepted with a note, or refused, and why. From it are written the charts' schemas, the templates that note and
//! refuse (`templates/_values.tpl`), and docs/values.md; [`walk`] sees that the charts do what the table says, with
//! helm itself, and [`istio`] that no key of Istio's charts is left out. [`options`] writes docs/options.md, from the programs' sources.

mod istio;
mod options;
mod page;
mod schema;
mod table;
mod templates;
mod walk;

use anyhow::{Context, Result, ensure};
use std::{collections::BTreeMap, fs};
use table::{CHARTS, Table};

/// What is done with the table.
#[derive(clap::Args)]
pub(crate) struct What {
    /// Write nothing: see that what is written is what the table says, that the charts do it, and that the table has all keys of Istio's.
    #[arg(long)]
    check: bool,
}

/// Runs the command.
pub(crate) fn run(what: &What) -> Result<()> {
    if what.check {
        return check();
    }
    for (path, text) in generated()? {
        fs::write(&path, text).with_context(|| path.clone())?;
        println!("{path}");
    }
    Ok(())
}

/// What is written is what the table says, and helm does it.
pub(crate) fn check() -> Result<()> {
    for (path, text) in generated()? {
        let is = fs::read_to_string(&path).unwrap_or_default();
        ensure!(is == text, "{path} is not what charts/values.tsv says: run `cargo xtask values`");
    }
    let table = table()?;
    istio::run(&table)?;
    walk::run(&table)
}

fn table() -> Result<Table> {
    let path = "charts/values.tsv";
    Table::read(&fs::read_to_string(path).context(path)?).context(path)
}

/// Files and what they are to hold.
fn generated() -> Result<BTreeMap<String, String>> {
    let table = table()?;
    let mut out = BTreeMap::new();
    for (chart, sources) in CHARTS {
        let schema = serde_json::to_string_pretty(&schema::of(&table, chart)?)? + "\n";
        out.insert(format!("charts/{chart}/values.schema.json"), schema);
        out.insert(
            format!("charts/{chart}/templates/_values.tpl"),
            templates::of(&table, chart, &variables(sources)?)?,
        );
    }
    out.insert("docs/values.md".into(), page::of(&table));
    out.insert("docs/options.md".into(), options::page()?);
    Ok(out)
}

/// Environment variables that a program reads: its options say so.
fn variables(sources: &[&'static str]) -> Result<Vec<String>> {
    let mut all = vec![];
    for path in sources {
        let text = fs::read_to_string(path).context(*path)?;
        let found: Vec<String> =
            text.split("env = \"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_string())).collect();
        ensure!(!found.is_empty(), "{path} has no options with environment variables");
        all.extend(found);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schemas, notes, refusals and the page follow from the table, and from the variables that the programs read.
    #[test]
    fn what_is_generated_is_what_the_table_says() -> Result<()> {
        std::env::set_current_dir(crate::root())?;
        for (path, text) in generated()? {
            let is = fs::read_to_string(&path).context(path.clone())?;
            ensure!(is == text, "{path} is not what charts/values.tsv says: run `cargo xtask values`");
        }
        Ok(())
    }
}
