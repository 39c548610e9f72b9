//! Comparison, defaults, refusals, and questions of kind.

use super::arguments::Arguments;
use crate::template::format;
use crate::template::{Fault, Value};
use std::cmp::Ordering;

pub(super) fn call(arguments: &Arguments<'_>) -> Option<Result<Value, Fault>> {
    Some(match arguments.function {
        "not" => arguments.borrowed(0).map(|value| Value::Bool(!value.is_true())),
        "empty" => arguments.borrowed(0).map(|value| Value::Bool(!value.is_true())),
        "eq" => equal(arguments).map(Value::Bool),
        "ne" => equal(arguments).map(|same| Value::Bool(!same)),
        "lt" => order(arguments).map(|order| Value::Bool(order == Ordering::Less)),
        "le" => order(arguments).map(|order| Value::Bool(order != Ordering::Greater)),
        "gt" => order(arguments).map(|order| Value::Bool(order == Ordering::Greater)),
        "ge" => order(arguments).map(|order| Value::Bool(order != Ordering::Less)),
        "default" => default(arguments),
        "coalesce" => Ok(arguments.values.iter().find(|value| value.is_true()).cloned().unwrap_or_default()),
        "ternary" => ternary(arguments),
        "required" => required(arguments),
        "fail" => arguments.text(0).and_then(|text| Err(Fault::Refused(text.into()))),
        "kindOf" => arguments.borrowed(0).map(|value| Value::text(value.kind())),
        "kindIs" => kind_is(arguments),
        "typeOf" => arguments.borrowed(0).map(|value| Value::text(type_of(value))),
        "typeIs" => arguments.borrowed(1).and_then(|value| Ok(Value::Bool(arguments.text(0)? == type_of(value)))),
        "deepEqual" => deep_equal(arguments),
        "print" => Ok(Value::text(print(arguments.values))),
        "printf" => arguments
            .text(0)
            .and_then(|text| format::printf(text, arguments.values.get(1..).unwrap_or_default()))
            .map(Value::text),
        "println" => {
            let words: Vec<String> = arguments.values.iter().map(format::plain).collect();
            Ok(Value::text(words.join(" ") + "\n"))
        }
        _ => return None,
    })
}

fn default(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    match arguments.values {
        [default] => Ok(default.clone()),
        [default, given] => Ok(if given.is_true() { given.clone() } else { default.clone() }),
        _ => Err(arguments.count("1 or 2")),
    }
}

fn ternary(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(3, "3")?;
    match arguments.last()? {
        Value::Bool(true) => arguments.get(0),
        Value::Bool(false) => arguments.get(1),
        other => Err(arguments.kind("true or false as its last argument", other)),
    }
}

fn required(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    match arguments.last()? {
        Value::Nil => Err(Fault::Refused(arguments.text(0)?.into())),
        Value::Str(text) if text.is_empty() => Err(Fault::Refused(arguments.text(0)?.into())),
        value => Ok(value.clone()),
    }
}

fn kind_is(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    Ok(Value::Bool(arguments.text(0)? == arguments.last()?.kind()))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Nil => "<nil>",
        Value::List(_) => "[]interface {}",
        Value::Map(_) | Value::Files(_) => "map[string]interface {}",
        Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => value.kind(),
    }
}

fn deep_equal(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    let (left, right) = (arguments.borrowed(0)?, arguments.borrowed(1)?);
    Ok(Value::Bool(left.kind() == right.kind() && left.to_json() == right.to_json()))
}

fn equal(arguments: &Arguments<'_>) -> Result<bool, Fault> {
    let Some((left, others)) = arguments.values.split_first() else { return Err(arguments.count("at least 2")) };
    if others.is_empty() {
        return Err(arguments.count("at least 2"));
    }
    for right in others {
        let same = match (left, right) {
            (Value::Nil, Value::Nil) => true,
            (Value::Nil, _) | (_, Value::Nil) => false,
            (Value::Bool(left), Value::Bool(right)) => left == right,
            (Value::Int(left), Value::Int(right)) => left == right,
            (Value::Float(left), Value::Float(right)) => left == right,
            (Value::Str(left), Value::Str(right)) => left == right,
            (left, right) => return Err(incomparable(arguments, left, right)),
        };
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

fn order(arguments: &Arguments<'_>) -> Result<Ordering, Fault> {
    arguments.exactly(2, "2")?;
    match (arguments.borrowed(0)?, arguments.borrowed(1)?) {
        (Value::Int(left), Value::Int(right)) => Ok(left.cmp(right)),
        (Value::Float(left), Value::Float(right)) => Ok(left.partial_cmp(right).unwrap_or(Ordering::Equal)),
        (Value::Str(left), Value::Str(right)) => Ok(left.cmp(right)),
        (left, right) => Err(incomparable(arguments, left, right)),
    }
}

/// Go compares only what is of one kind; a number of a file is a float, and `int` makes it comparable with 1.
fn incomparable(arguments: &Arguments<'_>, left: &Value, right: &Value) -> Fault {
    let wanted = match left {
        Value::Bool(_) => "a bool to compare with",
        Value::Int(_) => "an int64 to compare with (int makes one)",
        Value::Float(_) => "a float64 to compare with (float64 makes one)",
        Value::Str(_) => "a string to compare with",
        Value::Nil | Value::List(_) | Value::Map(_) | Value::Files(_) => "something that can be compared",
    };
    arguments.kind(wanted, right)
}

/// Go's `print`: blanks between two operands of which neither is a text.
fn print(values: &[Value]) -> String {
    let mut output = String::new();
    let mut before_is_text = true;
    for value in values {
        let is_text = matches!(value, Value::Str(_));
        if !before_is_text && !is_text {
            output.push(' ');
        }
        output.push_str(&format::plain(value));
        before_is_text = is_text;
    }
    output
}
