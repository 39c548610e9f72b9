//! What a function is called with, and of which kinds it is.

use crate::template::{
    error::Fault,
    value::{Map, Value},
};

/// What a function was called with.
pub(super) struct Arguments<'a> {
    pub(super) function: &'a str,
    pub(super) values: &'a [Value],
}

impl Arguments<'_> {
    pub(super) fn exactly(&self, count: usize, wanted: &'static str) -> Result<(), Fault> {
        if self.values.len() == count { Ok(()) } else { Err(self.count(wanted)) }
    }

    pub(super) fn count(&self, wanted: &'static str) -> Fault {
        Fault::Arguments { function: self.function.into(), wanted, got: self.values.len() }
    }

    pub(super) fn get(&self, at: usize) -> Result<Value, Fault> {
        self.values.get(at).cloned().ok_or_else(|| self.count("more"))
    }

    pub(super) fn borrowed(&self, at: usize) -> Result<&Value, Fault> {
        self.values.get(at).ok_or_else(|| self.count("more"))
    }

    pub(super) fn last(&self) -> Result<&Value, Fault> {
        self.values.last().ok_or_else(|| self.count("more"))
    }

    pub(super) fn kind(&self, wanted: &'static str, got: &Value) -> Fault {
        Fault::Kind { function: self.function.into(), wanted, got: got.kind() }
    }

    pub(super) fn text(&self, at: usize) -> Result<&str, Fault> {
        match self.borrowed(at)? {
            Value::Str(text) => Ok(text),
            other => Err(self.kind("a text", other)),
        }
    }

    pub(super) fn list(&self, at: usize) -> Result<&[Value], Fault> {
        match self.borrowed(at)? {
            Value::List(items) => Ok(items),
            Value::Nil => Ok(&[]),
            other => Err(self.kind("a list", other)),
        }
    }

    pub(super) fn map(&self, at: usize) -> Result<&Map, Fault> {
        match self.borrowed(at)? {
            Value::Map(entries) => Ok(entries),
            other => Err(self.kind("a map", other)),
        }
    }

    /// A number of any kind, also as text, as sprig's `int` takes it; 0 for what is none.
    pub(super) fn int(&self, at: usize) -> Result<i64, Fault> {
        Ok(to_int(self.borrowed(at)?))
    }

    pub(super) fn size(&self, at: usize) -> Result<usize, Fault> {
        Ok(usize::try_from(self.int(at)?).unwrap_or_default())
    }
}

/// As an integer, rounded towards zero; 0 for what is no number.
pub(super) fn to_int(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        Value::Float(number) => *number as i64,
        Value::Bool(value) => i64::from(*value),
        Value::Str(text) => text.trim().parse().unwrap_or_default(),
        Value::Nil | Value::List(_) | Value::Map(_) | Value::Files(_) => 0,
    }
}
