//! Live traffic: what `tap` and `top` look at, of the cluster's proxies or of a file.
//!
//! - [`Wanted`]: what of it, as it is typed. [`Live`]: the stream. [`line()`]: one of it for people.

mod failures;
mod proxies;
mod shown;
mod stream;
mod wanted;

pub use failures::Failures;
pub use shown::{called, line, short};
pub use stream::{Live, Told};
pub use wanted::Wanted;
