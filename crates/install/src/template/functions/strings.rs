//! Functions of text.

use super::arguments::Arguments;
use crate::template::format;
use crate::template::{Fault, Value, limits::Limits};

pub(super) fn call(arguments: &Arguments<'_>) -> Option<Result<Value, Fault>> {
    let text = |at| arguments.text(at);
    Some(match arguments.function {
        "quote" => Ok(quoted(arguments.values, |value| format::quote(&format::plain(value)))),
        "squote" => Ok(quoted(arguments.values, |value| format!("'{}'", format::plain(value)))),
        "upper" => text(0).map(|text| Value::text(text.to_uppercase())),
        "lower" => text(0).map(|text| Value::text(text.to_lowercase())),
        "title" => text(0).map(|text| Value::text(title(text))),
        "trim" => text(0).map(|text| Value::text(text.trim())),
        "trimAll" => two(arguments, |cut, text| text.trim_matches(|c| cut.contains(c)).to_string()),
        "trimPrefix" => two(arguments, |prefix, text| text.strip_prefix(prefix).unwrap_or(text).to_string()),
        "trimSuffix" => two(arguments, |suffix, text| text.strip_suffix(suffix).unwrap_or(text).to_string()),
        "nospace" => text(0).map(|text| Value::text(text.split_whitespace().collect::<String>())),
        "contains" => test(arguments, |part, text| text.contains(part)),
        "hasPrefix" => test(arguments, |prefix, text| text.starts_with(prefix)),
        "hasSuffix" => test(arguments, |suffix, text| text.ends_with(suffix)),
        "indent" => indent(arguments).map(Value::text),
        "nindent" => indent(arguments).map(|text| Value::text(format!("\n{text}"))),
        "trunc" => truncate(arguments),
        "substr" => substring(arguments),
        "repeat" => repeat(arguments),
        "replace" => replace(arguments),
        "split" => split(arguments),
        "splitList" => two_to_list(arguments),
        "join" => join(arguments),
        "cat" => {
            let words: Vec<String> =
                arguments.values.iter().filter(|value| !matches!(value, Value::Nil)).map(format::plain).collect();
            Ok(Value::text(words.join(" ")))
        }
        "toString" => arguments.borrowed(0).map(|value| Value::text(format::plain(value))),
        "regexMatch" => regex(arguments).and_then(|regex| Ok(Value::Bool(regex.is_match(arguments.text(1)?)))),
        "regexReplaceAll" => regex(arguments).and_then(|regex| {
            let with = arguments.text(2)?;
            Ok(Value::text(regex.replace_all(arguments.text(1)?, with).into_owned()))
        }),
        _ => return None,
    })
}

fn quoted(values: &[Value], quote: impl Fn(&Value) -> String) -> Value {
    let words: Vec<String> = values.iter().filter(|value| !matches!(value, Value::Nil)).map(quote).collect();
    Value::text(words.join(" "))
}

fn two(arguments: &Arguments<'_>, make: impl Fn(&str, &str) -> String) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    Ok(Value::text(make(arguments.text(0)?, arguments.text(1)?)))
}

fn test(arguments: &Arguments<'_>, holds: impl Fn(&str, &str) -> bool) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    Ok(Value::Bool(holds(arguments.text(0)?, arguments.text(1)?)))
}

fn title(text: &str) -> String {
    let mut begins = true;
    text.chars()
        .map(|c| {
            let made = if begins { c.to_ascii_uppercase() } else { c };
            begins = !(c.is_alphanumeric() || c == '_' || c == '\'');
            made
        })
        .collect()
}

fn indent(arguments: &Arguments<'_>) -> Result<String, Fault> {
    arguments.exactly(2, "2")?;
    let margin = " ".repeat(arguments.size(0)?.min(1000));
    let text = arguments.text(1)?;
    let lines = text.matches('\n').count() + 1;
    if lines.saturating_mul(margin.len()) > Limits::OUTPUT {
        return Err(Fault::TooMuch { what: "bytes in a text", limit: Limits::OUTPUT });
    }
    Ok(margin.clone() + &text.replace('\n', &format!("\n{margin}")))
}

/// Sprig counts bytes; a cut within a character leaves the whole character out.
fn truncate(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    let count = arguments.int(0)?;
    let text = arguments.text(1)?;
    let length = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    if length >= text.len() {
        return Ok(Value::text(text));
    }
    Ok(Value::text(if count >= 0 {
        &text[..text.floor_char_boundary(length)]
    } else {
        &text[text.ceil_char_boundary(text.len() - length)..]
    }))
}

fn substring(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(3, "3")?;
    let text = arguments.text(2)?;
    let start = arguments.size(0)?.min(text.len());
    let end = match arguments.int(1)? {
        negative if negative < 0 => text.len(),
        end => usize::try_from(end).unwrap_or(usize::MAX).min(text.len()),
    };
    let (start, end) = (text.floor_char_boundary(start), text.floor_char_boundary(end));
    Ok(Value::text(text.get(start..end).unwrap_or_default()))
}

fn repeat(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    let (count, text) = (arguments.size(0)?, arguments.text(1)?);
    if count.saturating_mul(text.len()) > Limits::OUTPUT {
        return Err(Fault::TooMuch { what: "bytes in a text", limit: Limits::OUTPUT });
    }
    Ok(Value::text(text.repeat(count)))
}

fn replace(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(3, "3")?;
    let (old, new, text) = (arguments.text(0)?, arguments.text(1)?, arguments.text(2)?);
    if text.matches(old).count().saturating_mul(new.len()) > Limits::OUTPUT {
        return Err(Fault::TooMuch { what: "bytes in a text", limit: Limits::OUTPUT });
    }
    Ok(Value::text(text.replace(old, new)))
}

/// A map with the keys _0, _1, and so on.
fn split(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    let parts = arguments.text(1)?.split(arguments.text(0)?);
    Ok(Value::map(parts.enumerate().map(|(at, part)| (format!("_{at}"), Value::text(part))).collect()))
}

fn two_to_list(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    Ok(Value::list(arguments.text(1)?.split(arguments.text(0)?).map(Value::text).collect()))
}

fn join(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    let separator = arguments.text(0)?;
    Ok(Value::text(match arguments.borrowed(1)? {
        Value::List(items) => {
            let words: Vec<String> =
                items.iter().filter(|item| !matches!(item, Value::Nil)).map(format::plain).collect();
            words.join(separator)
        }
        other => format::plain(other),
    }))
}

fn regex(arguments: &Arguments<'_>) -> Result<regex::Regex, Fault> {
    let pattern = arguments.text(0)?;
    regex::Regex::new(pattern).map_err(|_| Fault::Refused(format!("{pattern:?} is no regular expression")))
}
