//! What the controller knows, for those who look into it: istioctl, Kiali, `bug-report`. The shapes are Istio's, because its tools
//! decode them; what is only ours is on a page of its own (`/debug/karst`).
//!
//! Nobody but accounts of the root namespace (over xDS) and loopback or those whom RBAC allows (over HTTP) reads them: they tell
//! the whole mesh. Nothing here signs, or serves the mesh's resources.

pub mod access;
pub mod control_z;
pub mod pages;
pub mod request;
pub mod status;
pub mod stream;
pub mod subscribers;
