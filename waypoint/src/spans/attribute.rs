//! A span that has ended, in no collector's form.

use crate::spans::context::SpanContext;
use std::{sync::Arc, time::SystemTime};

/// The key of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Known(&'static str),
    Own(Arc<str>),
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Static(&'static str),
    Shared(Arc<str>),
    Text(String),
    Number(i64),
}

/// An attribute.
pub type Attribute = (Key, Value);

impl Key {
    /// As text.
    pub fn as_str(&self) -> &str {
        match self {
            Key::Known(text) => text,
            Key::Own(text) => text,
        }
    }
}

macro_rules! value {
    ($($kind:ident: $from:ty),*) => { $(impl From<$from> for Value {
        fn from(value: $from) -> Self {
            Value::$kind(value)
        }
    })* };
}
value!(Static: &'static str, Shared: Arc<str>, Text: String, Number: i64);

/// Whose side of a call a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request, as it has come here.
    Server,
    /// One attempt at an endpoint.
    Client,
}

/// A span that has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub context: SpanContext,
    /// None: the root of its trace.
    pub parent: Option<u64>,
    /// W3C's, as it has come.
    pub trace_state: String,
    pub name: String,
    pub kind: Kind,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<Attribute>,
    /// Its status is an error.
    pub is_error: bool,
}
