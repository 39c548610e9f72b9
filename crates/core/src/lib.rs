//! Pure types of the mesh. No I/O, no runtime.

pub mod addr;
pub mod authority;
pub mod civil;
pub mod claims;
pub mod identity;
pub mod limits;
pub mod operators;
pub mod proxy_protocol;
pub mod refusal;
pub mod tls;
pub mod untrusted;

pub use addr::{Cidr, NetworkAddress, canonical};
pub use identity::{Identity, IdentityError};

/// A pod's uid as the node agent writes it (ZDS, file names), from metadata.uid: a bpffs knows no dots in names.
pub fn zds_uid(uid: &str) -> String {
    uid.replace(['.', '/'], "+")
}
