//! Functions of numbers. Sprig's arithmetic is that of 64-bit integers; what would overflow stays at the limit.

use super::arguments::{Arguments, to_int};
use crate::template::{Fault, Value};

pub(super) fn call(arguments: &Arguments<'_>) -> Option<Result<Value, Fault>> {
    let numbers = || arguments.values.iter().map(to_int);
    Some(match arguments.function {
        "int" | "int64" => arguments.int(0).map(Value::Int),
        "float64" => arguments.borrowed(0).map(|value| Value::Float(to_float(value))),
        "add" => Ok(Value::Int(numbers().fold(0, i64::saturating_add))),
        "add1" => arguments.int(0).map(|number| Value::Int(number.saturating_add(1))),
        "sub" => two(arguments, |left, right| Some(left.saturating_sub(right))),
        "mul" => Ok(Value::Int(numbers().fold(1, i64::saturating_mul))),
        "div" => two(arguments, i64::checked_div),
        "mod" => two(arguments, i64::checked_rem),
        "max" => Ok(Value::Int(numbers().max().unwrap_or_default())),
        "min" => Ok(Value::Int(numbers().min().unwrap_or_default())),
        "floor" => arguments.borrowed(0).map(|value| Value::Float(to_float(value).floor())),
        "ceil" => arguments.borrowed(0).map(|value| Value::Float(to_float(value).ceil())),
        "until" => until(arguments),
        _ => return None,
    })
}

fn two(arguments: &Arguments<'_>, calculate: impl Fn(i64, i64) -> Option<i64>) -> Result<Value, Fault> {
    arguments.exactly(2, "2")?;
    calculate(arguments.int(0)?, arguments.int(1)?)
        .map(Value::Int)
        .ok_or_else(|| Fault::Refused(format!("{}: division by zero", arguments.function)))
}

fn until(arguments: &Arguments<'_>) -> Result<Value, Fault> {
    const LONGEST: i64 = 100_000;
    let count = arguments.int(0)?;
    if count > LONGEST {
        return Err(Fault::TooMuch { what: "items of until", limit: LONGEST as usize });
    }
    Ok(Value::list((0..count.max(0)).map(Value::Int).collect()))
}

fn to_float(value: &Value) -> f64 {
    match value {
        Value::Float(number) => *number,
        Value::Str(text) => text.trim().parse().unwrap_or_default(),
        other => to_int(other) as f64,
    }
}
