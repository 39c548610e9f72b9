//! What policies would say of a call that a book of flows has noted.

use super::{Judged, Waypoint};
use crate::authz::access::{Access, AuthzContext, Hidden, Request, Verdict};
use http::HeaderMap;
use karst_core::Identity;
use karst_policy::Path;
use std::net::{IpAddr, SocketAddr};

/// A call as it was noted: without headers, tokens and what a TLS hello says.
#[derive(Clone, Copy, Debug)]
pub struct Noted<'a> {
    /// Who calls, as proven.
    pub identity: Option<&'a Identity>,
    /// Its address.
    pub from: IpAddr,
    /// What was called.
    pub to: SocketAddr,
    /// Method, host and path of a request.
    pub request: Option<(&'a str, &'a str, &'a str)>,
    /// The request's texts are not whole.
    pub cut: bool,
}

impl Waypoint {
    /// What the policies of a service say of a call. None: that depends on what was not noted.
    pub fn noted(&self, service: &str, call: &Noted<'_>) -> Option<Judged> {
        judge(self.snapshot.access.get(service).map(|access| &**access), call, call.request.is_none())
    }

    /// The same of a gateway's own policies.
    pub fn noted_here(&self, call: &Noted<'_>) -> Option<Judged> {
        judge(self.snapshot.gateway.as_ref().and_then(|gateway| gateway.access.as_ref()), call, true)
    }
}

fn judge(access: Option<&Access>, call: &Noted<'_>, sni: bool) -> Option<Judged> {
    let Some(access) = access else { return Some(Judged::NoPolicies) };
    let (path, headers) = (Path::new(call.request.map_or("/", |(_, _, path)| path)), HeaderMap::new());
    let request = call.request.map(|(method, authority, _)| Request {
        method,
        authority,
        path: &path,
        headers: &headers,
        known: None,
        token: None,
    });
    let context = AuthzContext {
        peer: call.identity,
        source: call.from,
        // The book has one address: that of the connection's client.
        remote: call.from,
        destination: call.to.ip(),
        port: call.to.port(),
        sni: None,
        request,
    };
    Some(match access.evaluate_partly(&context, Hidden { sni, request: call.cut })? {
        Verdict::Allow => Judged::Allowed(None),
        Verdict::DeniedBy(policy, rule) => Judged::DeniedBy(policy.into(), rule),
        Verdict::NotAllowed => Judged::NotAllowed,
    })
}
