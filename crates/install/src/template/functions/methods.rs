//! Methods of what Helm gives to templates.

use super::arguments::Arguments;
use crate::template::{error::Fault, value::Value};

/// `.Files.Get PATH`, `.Capabilities.APIVersions.Has NAME`, and methods of the same form.
pub(in crate::template) fn method(receiver: &Value, name: &str, values: &[Value]) -> Result<Value, Fault> {
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
