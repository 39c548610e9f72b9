//! The page of `karst dashboard`: a server on loopback for one user of this machine, or one in the cluster for all who log in; and
//! what it serves.
//!
//! - [`Door`]: who may read on one's own machine. [`Guard`]: who may in the cluster, by what a [`judge`] says; `session`: those who have
//!   logged in. [`Site`]: the server, [`Tls`]: its HTTPS. `files`: what is embedded (cli/page has the sources).
//! - [`State`]: what it shows. Whoever fills it ([`crate::verbs::dashboard`], or a test with recorded pages) is not known here.

mod door;
mod files;
mod guard;
pub mod judge;
mod request;
mod server;
mod session;
mod tls;

pub use door::Door;
pub use guard::{Denied, Guard, Log};
pub use server::{Access, Explainer, Question, Site, serve};
pub use tls::{Tls, TlsError};

use karst_topology::Topology;
use serde::Serialize;
use std::{cell::RefCell, rc::Rc};

/// A proxy that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// The namespace that it is in; empty: it is of none.
    #[serde(skip)]
    pub namespace: String,
    /// Its pod, or what was asked for.
    pub name: String,
    /// Why.
    pub why: String,
}

/// How reading goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// Proxies that the last round has read.
    pub read: usize,
    /// Those that it has not.
    pub unread: Vec<Unread>,
    /// How long the last round took, in milliseconds.
    pub took: u64,
}

/// What the page shows.
#[derive(Default)]
pub struct State {
    /// Who talks to whom.
    pub topology: Topology,
    /// How reading goes.
    pub reading: Reading,
    /// Namespace that the page begins with; none: all.
    pub namespace: Option<String>,
    /// What it is of: the API server's address.
    pub cluster: String,
}

/// One thread fills it and serves it; nobody holds it while waiting.
pub type Shared = Rc<RefCell<State>>;
