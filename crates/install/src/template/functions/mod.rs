//! The functions of templates: those of Go, of sprig and of Helm that charts use.

mod arguments;
mod call;
mod collections;
mod encode;
mod logic;
mod methods;
mod numbers;
mod strings;

pub(super) use call::{Engine, call};
pub(super) use methods::method;
