//! `--set PATH=VALUE`, in Helm's syntax, and with IstioOperator's `[name:VALUE]` for a member of a list.

use super::SpecError;
use crate::template;
use serde_json::{Map, Value};

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
    /// The member of a list whose key has this value.
    Member(String, String),
}

/// Sets what the text says: several assignments are parted by commas, `\` takes the meaning from what follows it.
///
/// # Errors
/// If it is in another form, or goes through a value that is no map or list.
pub fn set(spec: &mut Map<String, Value>, text: &str) -> Result<(), SpecError> {
    for assignment in split(text, ',') {
        let (path, value) = cut(&assignment).ok_or_else(|| fault(text, "= is missing"))?;
        let steps = steps(text, &path)?;
        let mut root = Value::Object(std::mem::take(spec));
        let done = assign(text, &mut root, &steps, parse(&value));
        if let Value::Object(root) = root {
            *spec = root;
        }
        done?;
    }
    Ok(())
}

fn fault(text: &str, fault: &'static str) -> SpecError {
    SpecError::Set { text: text.into(), fault }
}

/// At separators that are neither escaped nor in braces or brackets; escapes stay.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut escaped, mut depth) = (false, 0_usize);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            c if c == separator && depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

fn cut(assignment: &str) -> Option<(String, String)> {
    let mut parts = split(assignment, '=').into_iter();
    let path = parts.next()?;
    let rest: Vec<String> = parts.collect();
    (!rest.is_empty()).then(|| (path, rest.join("=")))
}

fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        plain.push(if c == '\\' { letters.next().unwrap_or('\\') } else { c });
    }
    plain
}

fn steps(text: &str, path: &str) -> Result<Vec<Step>, SpecError> {
    const DEEPEST: usize = 40;
    let mut steps = Vec::new();
    for part in split(path.trim(), '.') {
        let (key, mut rest) = match part.find('[') {
            Some(at) if !part[..at].ends_with('\\') => part.split_at(at),
            _ => (part.as_str(), ""),
        };
        if key.is_empty() && (steps.is_empty() || rest.is_empty()) {
            return Err(fault(text, "a key is empty"));
        }
        if !key.is_empty() {
            steps.push(Step::Key(unescape(key)));
        }
        while let Some((inside, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            steps.push(match (inside.split_once(':'), inside.parse::<usize>()) {
                (Some((key, value)), _) => Step::Member(key.into(), value.into()),
                (None, Ok(at)) if at < 1000 => Step::Index(at),
                _ => return Err(fault(text, "in brackets is a number below 1000, or name:VALUE")),
            });
            rest = after;
        }
        if !rest.is_empty() {
            return Err(fault(text, "a bracket is not closed"));
        }
    }
    if steps.len() > DEEPEST { Err(fault(text, "the path is too deep")) } else { Ok(steps) }
}

/// Helm's reading of a value: null, truth values and integers; `{a,b}` is a list; all else is text.
fn parse(text: &str) -> Value {
    if let Some(inside) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let items = split(inside, ',');
        return if inside.is_empty() {
            Value::Array(Vec::new())
        } else {
            items.iter().map(|item| parse(item)).collect()
        };
    }
    match text {
        "null" => return Value::Null,
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    let leading_zero = text.len() > 1 && text.trim_start_matches('-').starts_with('0');
    match text.parse::<i64>() {
        Ok(number) if !leading_zero => template::integer(number),
        _ => unescape(text).into(),
    }
}

fn assign(text: &str, place: &mut Value, steps: &[Step], value: Value) -> Result<(), SpecError> {
    let Some((step, rest)) = steps.split_first() else {
        *place = value;
        return Ok(());
    };
    match step {
        Step::Key(key) => {
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(entries) = place else { return Err(fault(text, "a key of what is no map")) };
            assign(text, entries.entry(key.clone()).or_insert(Value::Null), rest, value)
        }
        Step::Index(at) => {
            let items = list(text, place)?;
            while items.len() <= *at {
                items.push(Value::Null);
            }
            match items.get_mut(*at) {
                Some(item) => assign(text, item, rest, value),
                None => Ok(()),
            }
        }
        Step::Member(key, wanted) => {
            let items = list(text, place)?;
            if !items.iter().any(|item| item[key.as_str()] == wanted.as_str()) {
                items.push(Value::Object(Map::from_iter([(key.clone(), wanted.as_str().into())])));
            }
            match items.iter_mut().find(|item| item[key.as_str()] == wanted.as_str()) {
                Some(item) => assign(text, item, rest, value),
                None => Ok(()),
            }
        }
    }
}

fn list<'v>(text: &str, place: &'v mut Value) -> Result<&'v mut Vec<Value>, SpecError> {
    if place.is_null() {
        *place = Value::Array(Vec::new());
    }
    match place {
        Value::Array(items) => Ok(items),
        _ => Err(fault(text, "an index of what is no list")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(texts: &[&str]) -> Value {
        let mut spec = Map::new();
        for text in texts {
            set(&mut spec, text).unwrap();
        }
        Value::Object(spec)
    }

    #[test]
    fn paths_and_values_are_helms() {
        let spec = result(&[
            "profile=demo,values.pilot.replicaCount=2",
            "values.a[1].b=x",
            r"values.annotations.example\.com/x=a\,b",
            "values.list={a,2,true}",
            "meshConfig.n=null,values.zero=007,values.url=a=b",
        ]);
        let expected = json!({"profile": "demo", "meshConfig": {"n": null}, "values": {
            "pilot": {"replicaCount": 2}, "a": [null, {"b": "x"}], "annotations": {"example.com/x": "a,b"},
            "list": ["a", 2, true], "zero": "007", "url": "a=b"}});
        assert_eq!(spec, expected);
    }

    #[test]
    fn members_of_lists_are_found_by_name() {
        let spec = result(&["c.g[name:in].enabled=true", "c.g[name:out].enabled=true", "c.g[name:in].enabled=false"]);
        assert_eq!(spec, json!({"c": {"g": [{"name": "in", "enabled": false}, {"name": "out", "enabled": true}]}}));
    }

    #[test]
    fn what_is_no_assignment_is_refused() {
        for text in ["", "a", "=1", "a..b=1", "a[=1", "a[x]=1", "a[99999]=1", "[0]=1", "a=1,a.b=2", "a=1,a[0]=2"] {
            assert!(set(&mut Map::new(), text).is_err(), "{text}");
        }
    }
}
