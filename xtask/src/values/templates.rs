//! The templates that note and refuse: `CHART.notes` (what stands in the place of values that have no effect),
//! `CHART.elsewhere` (values that other charts use) and `CHART.refused`. Each takes the values and the namespace,
//! and gives a line for each key. Only plain functions of templates are used: hasKey, index, toString, toJson, ne,
//! and, has, list.

use super::table::{ELSEWHERE, Quiet, Row, Table, Verdict, is_empty};
use anyhow::Result;
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write};

/// Variables that any program's libraries read.
const GENERAL: [&str; 2] = ["RUST_BACKTRACE", "TZ"];
const LEVELS: &str = r#"(list "" "trace" "debug" "info" "warn" "error")"#;

#[derive(Default)]
struct Node<'a> {
    rows: Vec<&'a Row>,
    below: BTreeMap<&'a str, Node<'a>>,
}

/// The file of a chart. `variables`: those that its program reads.
pub(super) fn of(table: &Table, chart: &str, variables: &[String]) -> Result<String> {
    let mut out = String::from("{{/* Written by `cargo xtask values` from charts/values.tsv: change it there. */}}\n");
    let is_elsewhere = |row: &Row| row.text.starts_with(ELSEWHERE);
    let noted = |row: &&Row| row.verdict == Verdict::Noted;
    let groups: [(&str, Vec<&Row>); 3] = [
        ("notes", table.of(chart).filter(noted).filter(|row| !is_elsewhere(row)).collect()),
        ("elsewhere", table.of(chart).filter(noted).filter(|row| is_elsewhere(row)).collect()),
        ("refused", table.of(chart).filter(|row| row.verdict == Verdict::Refused).collect()),
    ];
    for (name, rows) in groups {
        let mut root = Node::default();
        for row in rows {
            let mut node = &mut root;
            for part in row.key.split('.') {
                node = node.below.entry(part).or_default();
            }
            node.rows.push(row);
        }
        writeln!(
            out,
            "\n{{{{- define \"{chart}.{name}\" -}}}}\n{{{{- $namespace := .Namespace }}}}\n{{{{- with .Values }}}}"
        )?;
        root.write(&mut out)?;
        if name == "notes" && !variables.is_empty() {
            environment(&mut out, variables)?;
        }
        out.push_str("{{- end }}\n{{- end }}\n");
    }
    Ok(out)
}

impl Node<'_> {
    fn write(&self, out: &mut String) -> Result<()> {
        for (name, node) in &self.below {
            let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let field = if is_word { format!(".{name}") } else { format!("(index . {name:?})") };
            for row in &node.rows {
                writeln!(
                    out,
                    "{{{{- if hasKey . {name:?} }}}}{{{{- if {} }}}}\n- {}: {}\n{{{{- end }}}}{{{{- end }}}}",
                    condition(row, &field),
                    row.key,
                    row.text
                )?;
            }
            if !node.below.is_empty() {
                writeln!(out, "{{{{- with {field} }}}}")?;
                node.write(out)?;
                out.push_str("{{- end }}\n");
            }
        }
        Ok(())
    }
}

/// When something is said of a value.
fn condition(row: &Row, field: &str) -> String {
    let except = match &row.quiet {
        Quiet::Only(values) => {
            let all: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
            return format!("has (toString {field}) (list {})", all.join(" "));
        }
        Quiet::Except(values) => values,
    };
    let mut parts = vec![];
    // What is empty asks for nothing, unless it is the empty value that means something.
    if !is_empty(&row.sample) {
        parts.push(field.to_string());
    }
    for value in except {
        parts.push(match serde_json::from_str::<Value>(value) {
            Ok(json @ (Value::Array(_) | Value::Object(_))) => format!("(ne (toJson {field}) {:?})", json.to_string()),
            _ if value == "@namespace" => format!("(ne (toString {field}) $namespace)"),
            _ => format!("(ne (toString {field}) {value:?})"),
        });
    }
    match &parts[..] {
        [] => "true".into(),
        [only] => only.trim_start_matches('(').trim_end_matches(')').into(),
        all => format!("and {}", all.join(" ")),
    }
}

/// What is said of variables that the program does not read, and of log levels of Istio's scopes.
fn environment(out: &mut String, variables: &[String]) -> Result<()> {
    let all: Vec<String> =
        variables.iter().map(String::as_str).chain(GENERAL).map(|name| format!("{name:?}")).collect();
    writeln!(out, "{{{{- $read := list {} }}}}", all.join(" "))?;
    out.push_str("{{- range $name, $_ := .env }}{{- if not (has $name $read) }}\n- env.{{ $name }}: the program does not read this variable.\n{{- end }}{{- end }}\n");
    writeln!(
        out,
        "{{{{- with .global }}}}{{{{- with .logging }}}}{{{{- with .level }}}}{{{{- if not (has (. | trimPrefix \"default:\" | trimPrefix \"all:\") {LEVELS}) }}}}\n- global.logging.level: levels of single scopes are passed over, because the scopes are Istio's: set logLevel.\n{{{{- end }}}}{{{{- end }}}}{{{{- end }}}}{{{{- end }}}}"
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_is_said_of_values_that_ask_for_something() -> Result<()> {
        for (quiet, sample, wanted) in [
            ("", "\"a\"", ".k"),
            ("", "false", "true"),
            ("true", "false", "ne (toString .k) \"true\""),
            ("a|b", "\"c\"", "and .k (ne (toString .k) \"a\") (ne (toString .k) \"b\")"),
            ("@namespace", "\"c\"", "and .k (ne (toString .k) $namespace)"),
            ("{\"b\": 1, \"a\": 2}", "{\"c\": 3}", "and .k (ne (toJson .k) \"{\\\"a\\\":2,\\\"b\\\":1}\")"),
            ("=x|y", "\"x\"", "has (toString .k) (list \"x\" \"y\")"),
        ] {
            let text = format!(
                "charts\tkey\tverdict\ttype\tquiet\tgiven\tsample\ttext\nbase\tk\tnoted\tany\t{quiet}\t\t{sample}\twhy."
            );
            let Table(rows) = Table::read(&text)?;
            assert_eq!(rows.iter().map(|row| condition(row, ".k")).collect::<Vec<_>>(), [wanted], "{quiet} {sample}");
        }
        Ok(())
    }
}
