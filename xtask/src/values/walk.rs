//! The charts do what the table says: with helm each honoured key changes the objects, each noted one is in the
//! notes, each refused one stops with its text. Notes are seen as part of the objects of a copy of the chart,
//! because `helm template` does not show them.

use super::table::{CHARTS, Quiet, Row, Table, Verdict, put};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// An object that holds the notes.
const NOTES: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  notes: {{ include (print $.Template.BasePath \"/NOTES.txt\") . | quote }}\n";
const NAMESPACE: &str = "istio-system";

/// Looks at all keys of all charts.
pub(super) fn run(table: &Table) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("karst-values-{}", std::process::id()));
    let mut faults = vec![];
    let mut runs = 0;
    for (chart, _) in CHARTS {
        copy(Path::new("charts").join(chart).as_path(), &directory.join(chart)).with_context(|| chart.to_string())?;
        fs::write(directory.join(chart).join("templates/zz-notes.yaml"), NOTES)?;
        let mut looked = Chart { path: directory.join(chart), plain: HashMap::new(), runs: 0 };
        faults.extend(looked.walk(chart, table)?);
        runs += looked.runs;
    }
    fs::remove_dir_all(&directory)?;
    println!("{} keys, {runs} runs of helm", table.0.iter().map(|row| row.charts.len()).sum::<usize>());
    ensure!(faults.is_empty(), "charts/values.tsv and the charts differ:\n{}", faults.join("\n"));
    Ok(())
}

/// What helm says against values.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Chart {
    path: PathBuf,
    /// What is rendered with what a key needs and without the key, by what it needs.
    plain: HashMap<String, String>,
    runs: usize,
}

impl Chart {
    fn walk(&mut self, chart: &str, table: &Table) -> Result<Vec<String>> {
        let mut faults = vec![];
        let nothing = json!({});
        let plain = self.render(&nothing)?.map_err(anyhow::Error::msg).with_context(|| format!("chart {chart}"))?;
        let of = |verdict| table.of(chart).filter(move |row| row.verdict == verdict);
        let line = |row: &Row| format!("- {}: {}", row.key, row.text);
        // All at once: a note or a refusal is a line of its own.
        let [mut noted, mut refused, mut quiet] = [json!({}), json!({}), json!({})];
        of(Verdict::Noted).for_each(|row| put(&mut noted, &row.key, &row.sample));
        of(Verdict::Refused).for_each(|row| put(&mut refused, &row.key, &row.sample));
        for row in of(Verdict::Noted).chain(of(Verdict::Refused)) {
            let Quiet::Except(values) = &row.quiet else { continue };
            let Some(value) = values.first().filter(|_| of(row.verdict).filter(|r| r.key == row.key).count() == 1)
            else {
                continue;
            };
            let value = if value == "@namespace" { NAMESPACE } else { value };
            let other = |other: &Row| other.key == row.key && other.verdict != row.verdict;
            if !table.of(chart).any(other) {
                put(&mut quiet, &row.key, &serde_json::from_str(value).unwrap_or_else(|_| json!(value)));
            }
        }
        let notes = self.render(&noted)?.map_err(|e| anyhow::anyhow!("chart {chart}, noted keys: {e}"))?;
        for row in of(Verdict::Noted) {
            let times = notes.matches(&escaped(&line(row))).count();
            if times != 1 || plain.contains(&escaped(&line(row))) {
                faults.push(format!("{chart}: {} is noted {times} times", row.key));
            }
        }
        if of(Verdict::Refused).next().is_some() {
            let Err(refusal) = self.render(&refused)? else { bail!("chart {chart}: refused keys are accepted") };
            let left_out = of(Verdict::Refused).filter(|row| !refusal.0.contains(&line(row)));
            faults.extend(left_out.map(|row| format!("{chart}: {} is not refused: {refusal}", row.key)));
        }
        match self.render(&quiet)? {
            Ok(text) => {
                let loud = of(Verdict::Noted).filter(|row| text.contains(&escaped(&line(row))));
                faults.extend(loud.map(|row| format!("{chart}: {} is noted with a value that says nothing", row.key)));
            }
            Err(error) => faults.push(format!("{chart}: values that say nothing are refused: {error}")),
        }
        for row in of(Verdict::Honoured) {
            faults.extend(self.honoured(chart, row)?);
        }
        Ok(faults)
    }

    /// What is wrong with an honoured key.
    fn honoured(&mut self, chart: &str, row: &Row) -> Result<Option<String>> {
        let mut given = json!({});
        row.given.iter().for_each(|(key, value)| put(&mut given, key, value));
        let key = given.to_string();
        let plain = match self.plain.get(&key) {
            Some(text) => text.clone(),
            None => {
                let text = self.render(&given)?.map_err(|e| anyhow::anyhow!("chart {chart}, {given}: {e}"))?;
                self.plain.insert(key, text.clone());
                text
            }
        };
        put(&mut given, &row.key, &row.sample);
        Ok(match self.render(&given)? {
            Err(error) => Some(format!("{chart}: {} is refused: {error}", row.key)),
            Ok(text) if objects(&text) == objects(&plain) => Some(format!("{chart}: {} changes nothing", row.key)),
            Ok(_) => None,
        })
    }

    /// What helm renders, or what it says against it.
    fn render(&mut self, values: &Value) -> Result<Result<String, Refusal>> {
        self.runs += 1;
        let file = self.path.with_extension("values.json");
        fs::write(&file, values.to_string())?;
        let out = Command::new(helm())
            .args(["template", "x", "--kube-version=1.34.0", "-n", NAMESPACE, "-f"])
            .arg(&file)
            .arg(&self.path)
            .output()
            .context("cannot start helm: `cargo xtask cluster up` builds it")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(if out.status.success() { Ok(text(&out.stdout)) } else { Err(Refusal(text(&out.stderr))) })
    }
}

/// The local cluster's helm, or the one that is installed.
fn helm() -> PathBuf {
    let built = Path::new("target/cluster/bin/helm");
    if built.exists() { built.into() } else { "helm".into() }
}

/// What is rendered without the notes: those may say of a value that it changes something.
fn objects(text: &str) -> String {
    text.split("---\n").filter(|object| !object.contains("/templates/zz-notes.yaml")).collect()
}

/// A line as it is in the object with the notes.
fn escaped(line: &str) -> String {
    line.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Copies a chart; links are followed.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        if path.is_dir() { copy(&path, &to.join(name))? } else { fs::copy(&path, to.join(name)).map(drop)? }
    }
    Ok(())
}
