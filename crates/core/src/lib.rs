//! Pure types of the mesh. No I/O, no runtime.

pub mod addr;
pub mod identity;
pub mod limits;
pub mod untrusted;

pub use addr::{Cidr, NetworkAddress, canonical};
pub use identity::{Identity, IdentityError};
