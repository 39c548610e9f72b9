//! Finds the function of a name.

use super::{arguments::Arguments, collections, encode, logic, numbers, strings};
use crate::template::{error::Fault, limits::Limits, value::Value};

/// What functions need of the execution that they are in.
pub(in crate::template) trait Engine {
    /// Executes a template by name.
    fn template(&mut self, name: &str, value: Value) -> Result<String, Fault>;
    /// Executes a text as a template of its own.
    fn text(&mut self, source: &str, value: Value) -> Result<String, Fault>;
    /// Counts what functions make.
    fn makes(&mut self, bytes: usize) -> Result<(), Fault>;
}

/// Calls a function by its name.
pub(in crate::template) fn call(engine: &mut dyn Engine, name: &str, arguments: &[Value]) -> Result<Value, Fault> {
    let arguments = Arguments { function: name, values: arguments };
    let result = match name {
        "include" => Value::text(engine.template(arguments.text(0)?, arguments.get(1)?)?),
        "tpl" => {
            arguments.exactly(2, "2")?;
            Value::text(engine.text(arguments.text(0)?, arguments.get(1)?)?)
        }
        // There is no cluster while a chart is rendered: the same output for the same input.
        "lookup" => Value::map(std::collections::BTreeMap::new()),
        _ => logic::call(&arguments)
            .or_else(|| strings::call(&arguments))
            .or_else(|| collections::call(&arguments))
            .or_else(|| numbers::call(&arguments))
            .or_else(|| encode::call(&arguments))
            .unwrap_or_else(|| Err(Fault::UnknownFunction(name.into())))?,
    };
    if let Value::Str(text) = &result {
        if text.len() > Limits::OUTPUT {
            return Err(Fault::TooMuch { what: "bytes in a text", limit: Limits::OUTPUT });
        }
        engine.makes(text.len())?;
    }
    if let Value::List(items) = &result {
        engine.makes(items.len())?;
    }
    Ok(result)
}
