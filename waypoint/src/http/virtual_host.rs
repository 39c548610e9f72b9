//! Which listener of a gateway a request is for, what it passes there, and the routes of its virtual host.

use crate::{
    downstream::gateway::{Filter, Listener},
    route::table::Routes,
    snapshot::Snapshot,
};
use std::sync::Arc;

/// Why a request is not for the listener that it has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrongListener {
    /// It must come by TLS.
    Scheme,
    /// The name in the TLS hello has chosen another listener than the request's (RFC 9110 §15.5.20), or another one for the same name
    /// has spoken TLS with the client, which asks for other certificates.
    Name,
    /// The listener asks for a certificate by now, and the connection is older: its client has shown none that counts.
    Certificate,
}

/// How a request has come to a gateway.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Arrival<'a> {
    pub(crate) port: u16,
    /// The name in the hello, empty if there was none, if TLS ends here.
    pub(crate) tls: Option<&'a str>,
    /// In TLS that ends here the client has shown a certificate that counts.
    pub(crate) has_proof: bool,
    /// A trusted proxy has ended TLS.
    pub(crate) is_https: bool,
}

/// What a request to a gateway is for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VirtualHost<'a> {
    /// What it passes first, whether there are routes for it or not.
    pub(crate) filters: &'a [Filter],
    /// None: there are none for its host.
    pub(crate) routes: Option<&'a Routes>,
}

/// The virtual host that a request to a gateway is for.
///
/// # Errors
/// It has come to another listener than its own.
pub(crate) fn at_gateway<'a>(
    snapshot: &'a Snapshot,
    arrival: Arrival<'_>,
    host: &str,
) -> Result<VirtualHost<'a>, WrongListener> {
    let Some(port) = snapshot.gateway.as_ref().and_then(|g| g.ports.get(&arrival.port)) else {
        return Ok(VirtualHost::default());
    };
    let wrong = |listener: &Arc<Listener>| {
        let sni = arrival.tls?;
        let mut chosen = port.find(Some(sni).filter(|name| !name.is_empty())).peekable();
        // The first of them has spoken TLS with the client.
        let asks_like = chosen.peek().is_some_and(|first| first.asks_like(listener));
        if !asks_like || !chosen.any(|one| Arc::ptr_eq(one, listener)) {
            return Some(WrongListener::Name);
        }
        (listener.requires_certificate() && !arrival.has_proof).then_some(WrongListener::Certificate)
    };
    let (mut found, mut misdirected) = (VirtualHost::default(), None);
    for listener in port.find(Some(host)) {
        // Of several servers for a name one is enough.
        if arrival.tls.is_none() && !arrival.is_https && listener.redirect {
            return Err(WrongListener::Scheme);
        }
        if found.routes.is_some() {
            continue;
        }
        if let Some(why) = wrong(listener) {
            misdirected = Some(why);
            continue;
        }
        // Of several for a name (a Service may send two ports to this one) those of the one whose routes are it; if that has none,
        // those of one before it.
        let (filters, routes) = (listener.filters(), listener.routes(&snapshot.hosts, host));
        if found.filters.is_empty() || (routes.is_some() && !filters.is_empty()) {
            found.filters = filters;
        }
        found.routes = routes;
    }
    match (found.routes, misdirected) {
        (None, Some(why)) => Err(why),
        (Some(_), _) | (None, None) => Ok(found),
    }
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
        let arrival = Arrival { port: 8080, ..Arrival::default() };
        let which = |s: &Snapshot, name: &str| match at_gateway(s, arrival, name).map(|found| found.routes) {
            Ok(Some(r)) => s.hosts.iter().find(|(_, x)| std::ptr::eq(&***x, r)).map(|(k, _)| k.to_string()),
            Ok(None) => None,
            Err(WrongListener::Scheme) => Some("https".into()),
            Err(WrongListener::Name | WrongListener::Certificate) => Some("misdirected".into()),
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

    /// A Service that sends two ports to one of the pod gives two listeners of Gateway API a name in common there.
    #[test]
    fn a_request_passes_the_filters_of_the_listener_whose_routes_it_goes_by() {
        let listener = |name: &str, is_filtered: bool| {
            let provider = ir::AuthzProvider { service: name.into(), port: 80, ..Default::default() };
            let requests = vec![ir::ListenerFilter { authorization: Some(provider) }];
            let flag = if is_filtered { ir::ListenerFlag::Filtered } else { ir::ListenerFlag::None };
            ir::Listener {
                routes: format!("~{name}"),
                port: 8080,
                protocol: flag as i32,
                hosts: vec!["a.com".into()],
                filters: is_filtered.then_some(ir::ListenerFilters { requests }),
                ..Default::default()
            }
        };
        for (first, second, has_routes, asked) in [
            (true, true, "first", "first"),
            (true, true, "second", "second"),
            (true, true, "none", "first"),
            (true, false, "first", "first"),
            (true, false, "second", "first"),
            (false, true, "first", ""),
            (false, true, "second", "second"),
            (false, true, "none", "second"),
        ] {
            let mut s = Snapshot::new("");
            s.hosts.insert(format!("~{has_routes}/a.com").into(), Arc::default());
            let listeners = vec![listener("first", first), listener("second", second)];
            let g = Gateway::new(&ir::Gateway { listeners, ..Default::default() });
            s.gateway = g.ok().map(Arc::new);
            let arrival = Arrival { port: 8080, ..Arrival::default() };
            let name = |filter: &Filter| match filter {
                Filter::ExternalAuth(provider) => provider.service.to_string(),
                Filter::Refuse => "refused".to_string(),
            };
            let of = |found: VirtualHost<'_>| {
                (found.filters.iter().map(name).collect::<Vec<_>>().join(" "), found.routes.is_some())
            };
            let found = at_gateway(&s, arrival, "a.com").map(of);
            let wanted = (asked.to_string(), has_routes != "none");
            assert_eq!(found, Ok(wanted), "{first} {second} {has_routes}");
        }
    }

    /// Two servers for one name, of which the older one speaks TLS with clients: what is served only to who has a certificate is not
    /// served by the other's handshake.
    #[test]
    fn no_listener_is_reached_by_the_handshake_of_one_that_asks_for_less() {
        use ir::ClientCertificate as Wanted;
        let listener = |routes: &str, client: Wanted, roots: &str| ir::Listener {
            routes: routes.into(),
            port: 443,
            protocol: ir::ListenerProtocol::Https as i32,
            hosts: vec!["a.com".into()],
            tls: Some(ir::Tls { client: client as i32, client_roots: roots.into(), ..Default::default() }),
            ..Default::default()
        };
        let snapshot = |listeners: [ir::Listener; 2], has_routes: &str| {
            let mut s = Snapshot::new("");
            s.hosts.insert(format!("{has_routes}/a.com").into(), Arc::default());
            let g = Gateway::outline(&ir::Gateway { listeners: listeners.into(), ..Default::default() });
            s.gateway = g.ok().map(Arc::new);
            s
        };
        let by_tls = |has_proof: bool| Arrival { port: 443, tls: Some("a.com"), has_proof, is_https: false };
        let found =
            |s: &Snapshot, has_proof: bool| at_gateway(s, by_tls(has_proof), "a.com").map(|r| r.routes.is_some());
        let open = || listener("~open", Wanted::None, "");
        let other_roots = || listener("~other", Wanted::Required, "other");
        let (kept, optional) =
            (|| listener("~kept", Wanted::Required, "ca"), || listener("~kept", Wanted::Optional, "ca"));
        for first in [open(), optional(), other_roots()] {
            let s = snapshot([first, listener("~second", Wanted::Required, "ca")], "~second");
            for has_proof in [false, true] {
                assert_eq!(found(&s, has_proof), Err(WrongListener::Name));
            }
        }
        // That of the first is, and that of one that asks the same.
        assert_eq!(found(&snapshot([open(), kept()], "~open"), false), Ok(true));
        let roots_of_nobody = listener("~second", Wanted::None, "ca");
        assert_eq!(found(&snapshot([open(), roots_of_nobody], "~second"), false), Ok(true));
        let s = snapshot([other_roots(), other_roots()], "~other");
        assert_eq!(found(&s, true), Ok(true));
        // A connection that is older than the wish for certificates.
        assert_eq!(found(&s, false), Err(WrongListener::Certificate));
        assert_eq!(found(&snapshot([optional(), optional()], "~kept"), false), Ok(true));
        // The listener of the handshake is gone.
        let gone = Arrival { tls: Some("b.com"), ..by_tls(true) };
        assert_eq!(at_gateway(&s, gone, "a.com").err(), Some(WrongListener::Name));
    }
}
