//! docs/options.md: every option that has an environment variable, from the programs' own declarations.

use anyhow::{Context, Result, bail, ensure};
use std::{fmt::Write, fs};

/// Title, and where the options are declared.
const PROGRAMS: [(&str, &str); 5] = [
    ("Controller (istiod)", "controller/src/config.rs"),
    ("Node agent (istio-cni-node)", "cni/src/config.rs"),
    ("ztunnel", "ztunnel/src/config.rs"),
    ("Waypoints and gateways", "waypoint/src/config.rs"),
    ("ztunnel, waypoints and gateways", "crates/proxy/src/options.rs"),
];

/// Where the constants are that are defaults.
const CONSTANTS: [&str; 4] =
    ["crates/core/src/limits.rs", "cni/src/events.rs", "crates/api/src/lib.rs", "waypoint/src/http/codec.rs"];

const HEAD: &str = "# Options and environment variables

Written by `cargo xtask values` from the programs' declarations. Every option is a flag and an environment variable; names are
Istio's where Istio has one, the others begin with `KARST_`. In a cluster they are set by `env` in the values of each chart:

```sh
helm upgrade ambient charts/ambient -n istio-system --reuse-values --set ztunnel.env.RUST_LOG=debug
```

What the charts set by keys of their own is in [Values of the charts](values.md). `--help` of each program has the same list.
Waypoints and gateways that are deployed for Gateways get variables by a [ConfigMap with
parameters](kubernetes.md#waypoints).
";

/// An option, as it is declared.
#[derive(Debug, PartialEq, Eq)]
struct Declared {
    variable: String,
    flag: String,
    default: Preset,
    meaning: String,
}

/// What an option is if nobody sets it.
#[derive(Debug, PartialEq, Eq)]
enum Preset {
    Unset,
    Text(String),
    /// The path of a constant.
    Constant(String),
}

/// The page.
pub(super) fn page() -> Result<String> {
    let mut out = String::from(HEAD);
    for (title, path) in PROGRAMS {
        let text = fs::read_to_string(path).context(path)?;
        let mut all = declared(&text);
        let expected = text.matches("env = \"").count();
        ensure!(all.len() == expected, "{path}: {} of {expected} options can be read", all.len());
        all.sort_by(|one, other| one.variable.cmp(&other.variable));
        let _ = write!(out, "\n## {title}\n\n| variable | flag | default | meaning |\n|---|---|---|---|\n");
        for Declared { variable, flag, default, meaning } in all {
            let meaning = meaning.replace('|', "\\|");
            let _ = writeln!(out, "| `{variable}` | `--{flag}` | {} | {meaning} |", shown(&default)?);
        }
    }
    Ok(out)
}

/// The options of a file: a doc comment, `#[arg(…)]`, a field.
fn declared(source: &str) -> Vec<Declared> {
    let mut found = vec![];
    let mut meaning: Vec<&str> = vec![];
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("///") {
            meaning.push(text.trim());
        } else if line.starts_with("#[arg(") {
            let mut attribute = line.to_string();
            while !attribute.ends_with(")]") {
                let Some(next) = lines.next() else { break };
                attribute.push(' ');
                attribute.push_str(next);
            }
            let field = lines.by_ref().find(|line| !line.starts_with("#[")).unwrap_or_default();
            found.extend(option(&attribute, field, meaning.join(" ")));
            meaning.clear();
        } else if !line.starts_with("#[") {
            meaning.clear();
        }
    }
    found
}

fn option(attribute: &str, field: &str, meaning: String) -> Option<Declared> {
    let variable = between(attribute, "env = \"", "\"")?.to_string();
    let name = between(field, "pub ", ":").or_else(|| field.split(':').next())?.replace('_', "-");
    let flag = between(attribute, "long = \"", "\"").map_or(name, String::from);
    let text = between(attribute, "default_value = \"", "\"").map(|text| Preset::Text(text.to_string()));
    let value = || {
        let (_, rest) = attribute.split_once("default_value_t = ").or(attribute.split_once("default_value = "))?;
        if let Some(parts) = rest.strip_prefix("concat!(\"") {
            return Some(Preset::Text(format!("{}VERSION", parts.split('"').next()?)));
        }
        let value = rest.split([',', ')', ' ']).next()?.to_string();
        let number = value.starts_with(|letter: char| letter.is_ascii_digit()).then(|| value.replace('_', ""));
        Some(match number {
            Some(number) => Preset::Text(number),
            None if value.contains("::") => Preset::Constant(value),
            None => Preset::Text(value),
        })
    };
    let default = text.or_else(value).unwrap_or(Preset::Unset);
    Some(Declared { variable, flag, default, meaning })
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    Some(text.split_once(before)?.1.split_once(after)?.0)
}

/// A default as users write it; of a constant, its value.
fn shown(default: &Preset) -> Result<String> {
    let path = match default {
        Preset::Unset => return Ok(String::new()),
        Preset::Text(text) if text.is_empty() => return Ok(String::new()),
        Preset::Text(text) => return Ok(format!("`{}`", text.replace('|', "\\|"))),
        Preset::Constant(path) => path,
    };
    // Of a time: its seconds.
    let name = path.rsplit("::").next().unwrap_or_default().trim_end_matches(".as_secs(");
    for file in CONSTANTS {
        let text = fs::read_to_string(file).context(file)?;
        let value = between(&text, &format!("pub const {name}: "), ";");
        if let Some((_, value)) = value.and_then(|rest| rest.split_once(" = ")) {
            return Ok(format!("`{}`", evaluated(value)));
        }
    }
    bail!(
        "the default {path} is a constant that is not found: name its file in CONSTANTS of xtask/src/values/options.rs"
    )
}

/// The value of a constant: a text, a number, a number shifted, or a time in seconds.
fn evaluated(value: &str) -> String {
    if let Some(seconds) = between(value, "Duration::from_secs(", ")") {
        return seconds.into();
    }
    let shifted = value.split_once(" << ").and_then(|(number, by)| {
        let by: u32 = by.parse().ok()?;
        number.parse::<u64>().ok()?.checked_shl(by)
    });
    shifted.map_or_else(|| value.trim_matches('"').to_string(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_read_with_its_flag_and_default() {
        let source = "/// A struct.\npub struct C {\n /// Where\n /// it is.\n #[arg(long, env = \"A_B\", default_value = \"x,y\")]\n pub a_b: String,\n #[arg(long)]\n pub other: u8,\n /// Long.\n #[arg(\n  long = \"name\",\n  env = \"N\",\n  default_value_t = 7_000\n )]\n #[serde(skip)]\n pub n: u8,\n}";
        let of = |variable: &str, flag: &str, default: &str, meaning: &str| Declared {
            variable: variable.into(),
            flag: flag.into(),
            default: Preset::Text(default.into()),
            meaning: meaning.into(),
        };
        let of_parts =
            option("#[arg(env = \"I\", default_value = concat!(\"x:\", env!(\"V\")))]", "i: u8,", String::new());
        assert_eq!(of_parts, Some(of("I", "i", "x:VERSION", "")));
        assert_eq!([evaluated("4 << 20"), evaluated("\"a\""), evaluated("7")], ["4194304", "a", "7"]);
        assert_eq!(declared(source), [of("A_B", "a-b", "x,y", "Where it is."), of("N", "name", "7000", "Long.")]);
    }
}
