//! A request that is under way: what all of its stages look at.

use crate::{
    authz::{access::Request, jwt::Token},
    downstream::{context::Downstream, topology::Topology},
    http::entry::{Authority, Entry},
    snapshot::Snapshot,
    worker::Worker,
};
use http::request::Parts;
use karst_policy::Path;
use std::{net::SocketAddr, rc::Rc, sync::Arc};

/// A request that is under way. (Its head and what is told of it are changed on the way, and go from hand to hand.)
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) downstream: &'a Rc<Downstream>,
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) entry: &'a Entry,
    /// Who in front of us is believed.
    pub(super) topology: Topology,
    /// The client, as trusted proxies tell.
    pub(super) client: SocketAddr,
    /// Its head says of the client what a gateway tells on.
    pub(super) is_introduced: bool,
}

impl<'a> Call<'a> {
    /// What it calls the host.
    pub(super) fn authority(&self) -> &'a Authority {
        &self.entry.authority
    }

    /// What policies look at of its head; `path`: that of the head.
    pub(super) fn asks<'b>(&self, parts: &'b Parts, path: &'b Path<'b>, token: Option<&'b Token>) -> Request<'b>
    where
        'a: 'b,
    {
        let (method, authority) = (parts.method.as_str(), self.authority().as_str());
        Request { method, authority, path, headers: &parts.headers, known: None, token }
    }
}
