//! Which listener of a gateway a request is for, and the routes of its virtual host there.

use crate::{downstream::gateway::Listener, route::table::Routes, snapshot::Snapshot};
use std::sync::Arc;

/// Why a request is not for the listener that it has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrongListener {
    /// It must come by TLS.
    Scheme,
    /// The name in the TLS hello has chosen another listener than the request's (RFC 9110 §15.5.20).
    Name,
}

/// The routes of the virtual host that a request to a gateway is for. `tls`: the name in the hello, if TLS ends here; `is_https`: a
/// trusted proxy has ended it.
///
/// # Errors
/// It has come to another listener than its own.
pub(crate) fn at_gateway<'a>(
    snapshot: &'a Snapshot,
    port: u16,
    tls: Option<&str>,
    is_https: bool,
    host: &str,
) -> Result<Option<&'a Routes>, WrongListener> {
    let Some(port) = snapshot.gateway.as_ref().and_then(|g| g.ports.get(&port)) else { return Ok(None) };
    let is_chosen = |listener: &Arc<Listener>| {
        tls.is_none_or(|sni| port.find(Some(sni).filter(|n| !n.is_empty())).any(|c| Arc::ptr_eq(c, listener)))
    };
    let (mut routes, mut misdirected) = (None, false);
    for listener in port.find(Some(host)) {
        // Of several servers for a name one is enough.
        if tls.is_none() && !is_https && listener.redirect {
            return Err(WrongListener::Scheme);
        }
        if routes.is_some() {
            continue;
        }
        if !is_chosen(listener) {
            misdirected = true;
            continue;
        }
        routes = listener.routes(&snapshot.hosts, host);
    }
    if routes.is_none() && misdirected { Err(WrongListener::Name) } else { Ok(routes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::downstream::gateway::{Gateway, Port};
    use karst_api::route as ir;

    /// Listeners of one port may share their virtual hosts (Istio's servers): the longest host that has routes counts,
    /// whichever listener is for the name.
    #[test]
    fn a_request_finds_the_virtual_host_of_its_port() {
        let listener = |host: &str, redirect: bool| ir::Listener {
            routes: "~shared".into(),
            port: 8080,
            called: 80,
            hosts: vec![host.into()],
            redirect,
            ..Default::default()
        };
        let snapshot = |listeners: Vec<ir::Listener>| {
            let mut s = Snapshot::new("");
            for host in ["*", "a.com"] {
                s.hosts.insert(format!("~shared/{host}").into(), Arc::default());
            }
            let g = Gateway::new(&ir::Gateway { listeners, ..Default::default() });
            s.gateway = g.ok().map(Arc::new);
            s
        };
        let which = |s: &Snapshot, name: &str| match at_gateway(s, 8080, None, false, name) {
            Ok(Some(r)) => s.hosts.iter().find(|(_, x)| std::ptr::eq(&***x, r)).map(|(k, _)| k.to_string()),
            Ok(None) => None,
            Err(WrongListener::Scheme) => Some("https".into()),
            Err(WrongListener::Name) => Some("misdirected".into()),
        };
        let s = snapshot(vec![listener("*", false), listener("a.com", false), listener("b.com", false)]);
        for (name, want) in [("a.com", "~shared/a.com"), ("b.com", "~shared/*"), ("c.com", "~shared/*")] {
            assert_eq!(which(&s, name).as_deref(), Some(want), "{name}");
        }
        // What one of the servers for a name sends to https is sent there, whatever others say; a wider name is
        // another.
        let s = snapshot(vec![listener("*", false), listener("a.com", false), listener("a.com", true)]);
        for (name, want) in [("a.com", "https"), ("b.com", "~shared/*")] {
            assert_eq!(which(&s, name).as_deref(), Some(want), "{name}");
        }
        // Clients call the Service's port, and are redirected there.
        let called = |g: &Gateway| g.ports.get(&8080).and_then(Port::called);
        assert_eq!(s.gateway.as_deref().and_then(called), Some(80));
    }
}
