//! Functions of lists and maps.

use super::arguments::Arguments;
use crate::template::format;
use crate::template::{Fault, Value};
use std::collections::BTreeMap;

pub(super) fn call(arguments: &Arguments<'_>) -> Option<Result<Value, Fault>> {
    Some(match arguments.function {
        "list" | "tuple" => Ok(Value::list(arguments.values.to_vec())),
        "dict" => dict(arguments),
        "get" => key(arguments).map(|found| found.unwrap_or_else(|| Value::text(""))),
        "hasKey" => key(arguments).map(|found| Value::Bool(found.is_some())),
        "set" => set(arguments),
        "unset" => unset(arguments),
        "keys" => keys(arguments),
        "values" => arguments.map(0).map(|map| Value::list(map.borrow().values().cloned().collect())),
        "pick" => choose(arguments, true),
        "omit" => choose(arguments, false),
        "dig" => dig(arguments),
        "merge" => merge(arguments, false),
        "mergeOverwrite" | "mustMergeOverwrite" => merge(arguments, true),
        "deepCopy" | "mustDeepCopy" => arguments.borrowed(0).map(Value::deep_copy),
        "len" => length(arguments),
        "index" => index(arguments),
        "first" => arguments.list(0).map(|items| items.first().cloned().unwrap_or_default()),
        "last" => arguments.list(0).map(|items| items.last().cloned().unwrap_or_default()),
        "rest" => arguments.list(0).map(|items| Value::list(items.get(1..).unwrap_or_default().to_vec())),
        "initial" => {
            arguments.list(0).map(|items| Value::list(items.split_last().map_or(Vec::new(), |(_, rest)| rest.to_vec())))
        }
        "append" | "push" => {
            arguments.list(0).and_then(|items| Ok(Value::list([items, &[arguments.get(1)?]].concat())))
        }
        "prepend" => arguments.list(0).and_then(|items| Ok(Value::list([&[arguments.get(1)?], items].concat()))),
        "concat" => (0..arguments.values.len())
            .map(|at| arguments.list(at))
            .collect::<Result<Vec<_>, _>>()
            .map(|lists| Value::list(lists.concat())),
        "has" => has(arguments),
        "without" => without(arguments),
        "uniq" => arguments.list(0).map(|items| Value::list(unique(items))),
        "compact" => {
            arguments.list(0).map(|items| Value::list(items.iter().filter(|item| item.is_true()).cloned().collect()))
        }
        "reverse" => arguments.list(0).map(|items| Value::list(items.iter().rev().cloned().collect())),
        "sortAlpha" => arguments.list(0).map(|items| {
            let mut words: Vec<String> = items.iter().map(format::plain).collect();
            words.sort();
            Value::list(words.into_iter().map(Value::text).collect())
        }),
        _ => return None,
    })
}

fn dict(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let mut entries = BTreeMap::new();
    for pair in arguments.values.chunks(2) {
        if let [key, rest @ ..] = pair {
            entries.insert(format::plain(key), rest.first().cloned().unwrap_or_else(|| Value::text("")));
        }
    }
    Ok(Value::map(entries))
}

fn key(arguments: &Arguments<'_>) -> Result<Option<Value>, Fault> {
    arguments.exactly(2, "2")?;
    Ok(arguments.map(0)?.borrow().get(arguments.text(1)?).cloned())
}

fn set(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(3, "3")?;
    let (key, value) = (arguments.text(1)?.to_string(), arguments.get(2)?);
    arguments.map(0)?.borrow_mut().insert(key, value);
    arguments.get(0)
}

fn unset(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    arguments.map(0)?.borrow_mut().remove(arguments.text(1)?);
    arguments.get(0)
}

fn keys(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let mut names = Vec::new();
    for at in 0..arguments.values.len() {
        names.extend(arguments.map(at)?.borrow().keys().map(|key| Value::text(key.as_str())));
    }
    Ok(Value::list(names))
}

fn choose(arguments: &Arguments<'_>, named: bool) -> Result<Value, Fault> {
    let names = (1..arguments.values.len()).map(|at| arguments.text(at)).collect::<Result<Vec<_>, _>>()?;
    let map = arguments.map(0)?.borrow();
    let chosen = map.iter().filter(|(key, _)| names.contains(&key.as_str()) == named);
    Ok(Value::map(chosen.map(|(key, value)| (key.clone(), value.clone())).collect()))
}

/// `dig "a" "b" DEFAULT MAP`.
fn dig(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let [path @ .., default, from] = arguments.values else { return Err(arguments.count("at least 3")) };
    let mut found = from.clone();
    for at in 0..path.len() {
        let next = match &found {
            Value::Map(entries) => entries.borrow().get(arguments.text(at)?).cloned(),
            other => return Err(arguments.kind("maps down to the last key", other)),
        };
        match next {
            Some(value) => found = value,
            None => return Ok(default.clone()),
        }
    }
    Ok(found)
}

/// Sprig's merge fills the first map, also where it has empty values; with `overwrite` the later ones win.
fn merge(arguments: &Arguments<'_>, overwrite: bool) -> Result<Value, Fault> {
    for at in 1..arguments.values.len() {
        arguments.map(at)?;
        into(arguments.borrowed(0)?, &arguments.get(at)?.deep_copy(), overwrite, 0)?;
    }
    arguments.map(0)?;
    arguments.get(0)
}

fn into(target: &Value, source: &Value, overwrite: bool, depth: usize) -> Result<(), Fault> {
    const DEEPEST: usize = 100;
    if depth > DEEPEST {
        return Err(Fault::TooMuch { what: "levels of a map", limit: DEEPEST });
    }
    let (Value::Map(entries), Value::Map(added)) = (target, source) else { return Ok(()) };
    for (key, value) in added.borrow().iter() {
        let known = entries.borrow().get(key).cloned().unwrap_or_default();
        match (&known, value) {
            (Value::Map(_), Value::Map(_)) => into(&known, value, overwrite, depth + 1)?,
            (known, value) => {
                if (overwrite && value.is_true()) || !known.is_true() {
                    entries.borrow_mut().insert(key.clone(), value.clone());
                }
            }
        }
    }
    Ok(())
}

fn length(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let count = match arguments.borrowed(0)? {
        Value::Str(text) => text.len(),
        Value::List(items) => items.len(),
        Value::Map(entries) => entries.borrow().len(),
        Value::Files(files) => files.len(),
        other => return Err(arguments.kind("a text, a list or a map", other)),
    };
    Ok(Value::Int(i64::try_from(count).unwrap_or(i64::MAX)))
}

fn index(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let mut found = arguments.get(0)?;
    for step in arguments.values.get(1..).unwrap_or_default() {
        found = match (&found, step) {
            (Value::Map(entries), Value::Str(key)) => entries.borrow().get(key.as_ref()).cloned().unwrap_or_default(),
            (Value::List(items), Value::Int(at)) => usize::try_from(*at)
                .ok()
                .and_then(|at| items.get(at).cloned())
                .ok_or_else(|| Fault::Refused(format!("index: {at} of a list of {}", items.len())))?,
            (other, _) => return Err(arguments.kind("a list and numbers, or a map and texts", other)),
        };
    }
    Ok(found)
}

fn same(left: &Value, right: &Value) -> bool {
    left.kind() == right.kind() && left.to_json() == right.to_json()
}

fn has(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    let wanted = arguments.borrowed(0)?;
    Ok(Value::Bool(arguments.list(1)?.iter().any(|item| same(item, wanted))))
}

fn without(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    let unwanted = arguments.values.get(1..).unwrap_or_default();
    let kept = arguments.list(0)?.iter().filter(|item| !unwanted.iter().any(|value| same(value, item)));
    Ok(Value::list(kept.cloned().collect()))
}

fn unique(items: &[Value]) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for item in items {
        if !kept.iter().any(|known| same(known, item)) {
            kept.push(item.clone());
        }
    }
    kept
}
