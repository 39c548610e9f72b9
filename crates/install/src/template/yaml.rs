//! `toYaml`, in the form that Go's library writes: keys in order, lists at their parent's indentation, quotes where a
//! plain text would be read as something else.

use serde_json::Value;

/// A value as YAML, without the last line's end.
pub fn to_yaml(value: &Value) -> String {
    let mut output = String::new();
    match value {
        Value::Object(entries) if !entries.is_empty() => write(value, 0, &mut output),
        Value::Array(items) if !items.is_empty() => write(value, 0, &mut output),
        scalar => output.push_str(&inline(scalar, 0)),
    }
    output.truncate(output.trim_end_matches('\n').len());
    output
}

fn write(value: &Value, indent: usize, output: &mut String) {
    let margin = " ".repeat(indent);
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                output.push_str(&format!("{margin}{}:", text(key, None)));
                child(value, indent, output);
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(entries) if !entries.is_empty() => nested(item, &margin, indent, output),
                    Value::Array(inner) if !inner.is_empty() => nested(item, &margin, indent, output),
                    scalar => output.push_str(&format!("{margin}- {}\n", inline(scalar, indent + 2))),
                }
            }
        }
        scalar => output.push_str(&format!("{margin}{}\n", inline(scalar, indent))),
    }
}

/// What is in a list: its first line is after the dash.
fn nested(item: &Value, margin: &str, indent: usize, output: &mut String) {
    let mut inner = String::new();
    write(item, indent + 2, &mut inner);
    output.push_str(&format!("{margin}- {}", inner.trim_start_matches(' ')));
}

fn child(value: &Value, indent: usize, output: &mut String) {
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            output.push('\n');
            write(value, indent + 2, output);
        }
        Value::Array(items) if !items.is_empty() => {
            output.push('\n');
            write(value, indent, output);
        }
        scalar => output.push_str(&format!(" {}\n", inline(scalar, indent + 2))),
    }
}

fn inline(value: &Value, indent: usize) -> String {
    match value {
        Value::String(string) => text(string, Some(indent)),
        Value::Array(_) => "[]".into(),
        Value::Object(_) => "{}".into(),
        other => other.to_string(),
    }
}

/// A string; with an indentation, of several lines, as a literal block.
fn text(string: &str, indent: Option<usize>) -> String {
    if string.chars().any(|c| c.is_control() && c != '\n') || string == "\n" {
        return Value::from(string).to_string();
    }
    match indent {
        Some(indent) if string.contains('\n') && !string.starts_with([' ', '\n']) => block(string, indent),
        _ if string.contains('\n') => Value::from(string).to_string(),
        _ if is_something_else(string) => format!("\"{string}\""),
        _ if is_plain(string) => string.into(),
        _ => format!("'{}'", string.replace('\'', "''")),
    }
}

fn block(string: &str, indent: usize) -> String {
    let body = string.trim_end_matches('\n');
    let ends = string.len() - body.len();
    let mut output = String::from(match ends {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    let margin = " ".repeat(indent.max(2));
    for line in body.split('\n') {
        output.push('\n');
        if !line.is_empty() {
            output.push_str(&margin);
            output.push_str(line);
        }
    }
    output.push_str(&"\n".repeat(ends.saturating_sub(1)));
    output
}

/// Whether a reader of YAML 1.1 would take it for a number, a truth value, a date or nothing.
fn is_something_else(string: &str) -> bool {
    let lower = string.to_ascii_lowercase();
    let word = matches!(lower.as_str(), "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | "null" | "~" | "");
    let begins = lower.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    let number = lower.replace('_', "");
    let number = number.trim_start_matches(['-', '+']);
    let numeric = number.parse::<f64>().is_ok()
        || [("0x", 16), ("0o", 8), ("0b", 2)].iter().any(|(prefix, radix)| {
            number.strip_prefix(prefix).is_some_and(|digits| i64::from_str_radix(digits, *radix).is_ok())
        })
        || matches!(number, ".inf" | ".nan");
    let sexagesimal = number.contains(':') && number.chars().all(|c| c.is_ascii_digit() || matches!(c, ':' | '.'));
    let date = number.len() >= 8
        && number.starts_with(|c: char| c.is_ascii_digit())
        && number.matches('-').count() == 2
        && number.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | ':' | '.' | 't' | 'z' | ' ' | '+'));
    word || (begins && (numeric || sexagesimal || date))
}

fn is_plain(string: &str) -> bool {
    let first = string.chars().next().unwrap_or(' ');
    let indicator = "!&*%@`\"'#,[]{}|> \t".contains(first);
    let dash = matches!(first, '-' | '?' | ':') && matches!(string[1..].chars().next(), None | Some(' '));
    let starts = !indicator && !dash;
    let inside = !string.contains(": ") && !string.contains(" #") && !string.ends_with([':', ' ']);
    starts && inside && !string.starts_with("---") && !string.starts_with("...") && string != "=" && string != "<<"
}
