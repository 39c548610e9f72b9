//! The functions of templates: those of Go, of sprig and of Helm that charts use.

mod collections;
mod encode;
mod logic;
mod numbers;
mod strings;

use super::{
    error::Fault,
    eval::{Limits, Run},
    value::Value,
};

/// Calls a function by its name.
pub(super) fn call(run: &mut Run<'_>, name: &str, arguments: &[Value]) -> Result<Value, Fault> {
    let arguments = Arguments { function: name, values: arguments };
    let result = match name {
        "include" => Value::text(run.template(arguments.text(0)?, arguments.get(1)?)?),
        "tpl" => {
            arguments.exactly(2, "2")?;
            Value::text(run.text(arguments.text(0)?, arguments.get(1)?)?)
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
        run.makes(text.len())?;
    }
    if let Value::List(items) = &result {
        run.makes(items.len())?;
    }
    Ok(result)
}

/// `.Files.Get PATH`, `.Capabilities.APIVersions.Has NAME`, and methods of the same form.
pub(super) fn method(receiver: &Value, name: &str, values: &[Value]) -> Result<Value, Fault> {
    let arguments = Arguments { function: name, values };
    match (receiver, name) {
        (Value::Files(files), "Get") => {
            Ok(Value::text(files.get(arguments.text(0)?).map(String::as_str).unwrap_or_default()))
        }
        (Value::Files(files), "Glob") => {
            let pattern = glob(arguments.text(0)?);
            let found = files.iter().filter(|(path, _)| pattern.as_ref().is_some_and(|pattern| pattern.is_match(path)));
            Ok(Value::Files(std::rc::Rc::new(found.map(|(path, text)| (path.clone(), text.clone())).collect())))
        }
        (Value::List(known), "Has") => {
            let wanted = arguments.text(0)?;
            Ok(Value::Bool(known.iter().any(|item| matches!(item, Value::Str(text) if text.as_ref() == wanted))))
        }
        (other, name) => Err(Fault::NoField { field: name.into(), of: other.kind() }),
    }
}

/// `*` and `?` within a folder, `**` across folders.
fn glob(pattern: &str) -> Option<regex::Regex> {
    let escaped = regex::escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^/]*").replace(r"\?", "[^/]");
    regex::Regex::new(&format!("^{escaped}$")).ok()
}

/// What a function was called with.
pub(super) struct Arguments<'a> {
    function: &'a str,
    values: &'a [Value],
}

impl Arguments<'_> {
    fn exactly(&self, count: usize, wanted: &'static str) -> Result<(), Fault> {
        if self.values.len() == count { Ok(()) } else { Err(self.count(wanted)) }
    }

    fn count(&self, wanted: &'static str) -> Fault {
        Fault::Arguments { function: self.function.into(), wanted, got: self.values.len() }
    }

    fn get(&self, at: usize) -> Result<Value, Fault> {
        self.values.get(at).cloned().ok_or_else(|| self.count("more"))
    }

    fn borrowed(&self, at: usize) -> Result<&Value, Fault> {
        self.values.get(at).ok_or_else(|| self.count("more"))
    }

    fn last(&self) -> Result<&Value, Fault> {
        self.values.last().ok_or_else(|| self.count("more"))
    }

    fn kind(&self, wanted: &'static str, got: &Value) -> Fault {
        Fault::Kind { function: self.function.into(), wanted, got: got.kind() }
    }

    fn text(&self, at: usize) -> Result<&str, Fault> {
        match self.borrowed(at)? {
            Value::Str(text) => Ok(text),
            other => Err(self.kind("a text", other)),
        }
    }

    fn list(&self, at: usize) -> Result<&[Value], Fault> {
        match self.borrowed(at)? {
            Value::List(items) => Ok(items),
            Value::Nil => Ok(&[]),
            other => Err(self.kind("a list", other)),
        }
    }

    fn map(&self, at: usize) -> Result<&super::value::Map, Fault> {
        match self.borrowed(at)? {
            Value::Map(entries) => Ok(entries),
            other => Err(self.kind("a map", other)),
        }
    }

    /// A number of any kind, also as text, as sprig's `int` takes it; 0 for what is none.
    fn int(&self, at: usize) -> Result<i64, Fault> {
        Ok(numbers::to_int(self.borrowed(at)?))
    }

    fn size(&self, at: usize) -> Result<usize, Fault> {
        Ok(usize::try_from(self.int(at)?).unwrap_or_default())
    }
}
