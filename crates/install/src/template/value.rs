//! Values as templates see them. Maps are shared and can change (`set`, `merge`), as Go's are; nothing else can.

use serde_json::{Map as JsonMap, Number};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

/// A map that all who hold it share.
pub type Map = Rc<RefCell<BTreeMap<String, Value>>>;

/// What a template works with. Numbers of YAML files are floats, those of `--set` and of templates integers, as in Helm.
#[derive(Clone, Debug, Default)]
pub enum Value {
    /// Nothing: a key that is missing, or null.
    #[default]
    Nil,
    /// true, false.
    Bool(bool),
    /// An integer of a template or of `--set`.
    Int(i64),
    /// A number of a file.
    Float(f64),
    /// Text.
    Str(Rc<str>),
    /// A list.
    List(Rc<Vec<Value>>),
    /// A map.
    Map(Map),
    /// `.Files` of a chart: its files that are no templates, by path.
    Files(Rc<BTreeMap<String, String>>),
}

/// How deep a value may be: a map that was set into itself has no end.
const DEEPEST: usize = 100;
/// And how much may be in it: a list that has the same list twice, thirty times over, is a billion items.
const MOST: usize = 500_000;

impl Value {
    /// Text.
    pub fn text(text: impl Into<Rc<str>>) -> Self {
        Self::Str(text.into())
    }

    /// A list.
    pub fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(items))
    }

    /// A map.
    pub fn map(entries: BTreeMap<String, Self>) -> Self {
        Self::Map(Rc::new(RefCell::new(entries)))
    }

    /// Go's truth, and the opposite of sprig's `empty`.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Nil => false,
            Self::Bool(value) => *value,
            Self::Int(number) => *number != 0,
            Self::Float(number) => *number != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(entries) => !entries.borrow().is_empty(),
            Self::Files(files) => !files.is_empty(),
        }
    }

    /// Its kind, as messages and `kindOf` name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "invalid",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int64",
            Self::Float(_) => "float64",
            Self::Str(_) => "string",
            Self::List(_) => "slice",
            Self::Map(_) | Self::Files(_) => "map",
        }
    }

    /// From JSON, with floats for numbers as Helm reads files, and integers for those that [`integer`] made.
    pub fn from_json(json: &serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Nil,
            serde_json::Value::Bool(value) => Self::Bool(*value),
            serde_json::Value::Number(number) => {
                let float = number.as_f64().unwrap_or_default();
                if number.is_f64() && is_integer_of_set(float) { Self::Int(float as i64) } else { Self::Float(float) }
            }
            serde_json::Value::String(text) => Self::text(text.as_str()),
            serde_json::Value::Array(items) => Self::list(items.iter().map(Self::from_json).collect()),
            serde_json::Value::Object(entries) => {
                Self::map(entries.iter().map(|(key, value)| (key.clone(), Self::from_json(value))).collect())
            }
        }
    }

    /// To JSON. What is deeper than a hundred levels, or more than half a million items, is left out.
    pub fn to_json(&self) -> serde_json::Value {
        self.json_within(DEEPEST, &mut { MOST })
    }

    fn json_within(&self, levels: usize, left: &mut usize) -> serde_json::Value {
        let (Some(below), Some(fewer)) = (levels.checked_sub(1), left.checked_sub(1)) else {
            return serde_json::Value::Null;
        };
        *left = fewer;
        match self {
            Self::Nil => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(number) => (*number).into(),
            Self::Float(number) => float_to_json(*number),
            Self::Str(text) => text.as_ref().into(),
            Self::List(items) => items.iter().map(|item| item.json_within(below, left)).collect(),
            Self::Map(entries) => {
                let entries = entries.borrow();
                let pairs = entries.iter().map(|(key, value)| (key.clone(), value.json_within(below, left)));
                serde_json::Value::Object(pairs.collect::<JsonMap<_, _>>())
            }
            Self::Files(files) => {
                files.iter().map(|(path, text)| (path.clone(), serde_json::Value::from(text.as_str()))).collect()
            }
        }
    }

    /// A copy that shares no map with this one.
    pub fn deep_copy(&self) -> Self {
        self.copy_within(DEEPEST, &mut { MOST })
    }

    fn copy_within(&self, levels: usize, left: &mut usize) -> Self {
        let (Some(below), Some(fewer)) = (levels.checked_sub(1), left.checked_sub(1)) else { return Self::Nil };
        *left = fewer;
        match self {
            Self::List(items) => Self::list(items.iter().map(|item| item.copy_within(below, left)).collect()),
            Self::Map(entries) => Self::map(
                entries.borrow().iter().map(|(key, value)| (key.clone(), value.copy_within(below, left))).collect(),
            ),
            other => other.clone(),
        }
    }
}

/// Every integer up to this is exact in a float.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// An integer of `--set` as JSON. Files and `--set` are merged as JSON before templates see them, where nothing else
/// tells their numbers apart: a large integer is a float there (7776000.0), whereas those of files are not, and
/// [`Value::from_json`] makes an integer of it, so that it prints as 7776000. Smaller ones print the same either way.
pub(crate) fn integer(number: i64) -> serde_json::Value {
    let float = number as f64;
    if is_integer_of_set(float) { float.into() } else { number.into() }
}

/// Whether Go would print the float with an exponent that its integer does not have.
fn is_integer_of_set(number: f64) -> bool {
    const PRINTED_WITH_EXPONENT: f64 = 1_000_000.0;
    number.fract() == 0.0 && (PRINTED_WITH_EXPONENT..=EXACT).contains(&number.abs())
}

/// Whole numbers as integers, as JSON writers of Go do.
fn float_to_json(number: f64) -> serde_json::Value {
    if number.fract() == 0.0 && number.abs() <= EXACT {
        return serde_json::Value::Number(Number::from(number as i64));
    }
    Number::from_f64(number).map_or(serde_json::Value::Null, serde_json::Value::Number)
}
