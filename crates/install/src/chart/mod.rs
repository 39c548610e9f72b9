//! Charts as Helm has them: files, values, schema, dependencies, and their rendering.

mod error;
mod load;
mod nearest;
mod render;
mod schema;
mod values;

pub use error::ChartError;
pub use load::{Chart, Charts};
pub use nearest::nearest;
pub use render::{Release, Rendered};
pub use schema::SchemaFault;
pub use values::merge;
