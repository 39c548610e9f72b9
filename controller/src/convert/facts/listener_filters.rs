//! Filters of listeners of Gateway API (`filters.requests`, GEP-5224; of the experimental channel): who is asked about each request of
//! a listener, in order, before one of its routes is chosen. What must hold: no request comes in past a filter that is written. One that
//! cannot be understood closes the listener; one whose provider is not there answers its requests with 500.

use crate::convert::{
    compilation::provider,
    facts::{grant::granted, service},
    objects::Objects,
};
use karst_api::route as ir;
use karst_manifest::{gatewayapi::BackendRef, kinds::*};

/// Reasons of Gateway API: the proposal's, of conditions Accepted and ResolvedRefs.
const INVALID: &str = "InvalidListenerFilter";
const UNSUPPORTED: &str = "UnsupportedValue";
const BAD_REFERENCE: &str = "InvalidListenerFilterRef";
/// The API's.
const MOST: usize = 16;
/// The answer to a request about which nothing is said that can be used. An answer that sets Host is such a one, and the API wants 5xx
/// then.
const NO_ANSWER: u32 = 500;

/// A reason of Gateway API, and the words.
type ReasonMessage = (&'static str, String);

/// What comes of the filters of a listener.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Filters {
    /// Who is asked, in this order. None: nobody is there who could be.
    pub(crate) asked: Vec<Option<ir::AuthzProvider>>,
    /// Why the listener is not accepted.
    pub(crate) refused: Option<ReasonMessage>,
    /// Why somebody is not there.
    pub(crate) unresolved: Option<ReasonMessage>,
}

/// Of a listener of an object (its kind and namespace).
pub(crate) fn of(objects: &Objects<'_>, by: (&str, &str), listener: &Listener) -> Filters {
    let mut out = Filters::default();
    match &listener.filters {
        None => {}
        Some(ListenerFilters::Unread(why)) => out.refused = Some((INVALID, unread(why))),
        Some(ListenerFilters::Requests(all)) => {
            out.refused = all_wrong(listener, all);
            for (index, filter) in all.iter().enumerate() {
                let at = format!("filters.requests[{index}]");
                if let Err(why) = one(objects, by, filter, &at, &mut out) {
                    out.refused.get_or_insert(why);
                }
            }
        }
    }
    out
}

/// The same as far as it follows from the listener alone: what is said as it is written.
pub(crate) fn refusal(listener: &Listener) -> Option<String> {
    let all = match listener.filters.as_ref()? {
        ListenerFilters::Unread(why) => return Some(unread(why)),
        ListenerFilters::Requests(all) => all,
    };
    let of_one = |(index, filter): (usize, &ListenerFilter)| {
        asked(filter, &ir::Destination::default(), &format!("filters.requests[{index}]")).err()
    };
    all_wrong(listener, all).or_else(|| all.iter().enumerate().find_map(of_one)).map(|(_, text)| text)
}

/// They are written by a newer schema than they are read by, or against it.
fn unread(why: &str) -> String {
    format!("filters: cannot be read: {why} [KARST-0001]")
}

/// What is wrong with them in all.
fn all_wrong(listener: &Listener, all: &[ListenerFilter]) -> Option<ReasonMessage> {
    if !matches!(listener.protocol.as_str(), "HTTP" | "HTTPS") {
        let text = "filters: only listeners of protocol HTTP or HTTPS can have any: remove them [KARST-0014]";
        return Some((INVALID, text.into()));
    }
    let text = || format!("filters.requests: {} are out of range: at most {MOST} [KARST-0017]", all.len());
    (all.len() > MOST).then(|| (INVALID, text()))
}

/// Adds one.
///
/// # Errors
/// Why the listener is not accepted by it.
fn one(
    objects: &Objects<'_>,
    by: (&str, &str),
    filter: &ListenerFilter,
    at: &str,
    out: &mut Filters,
) -> Result<(), ReasonMessage> {
    let found = filter.external_auth.as_ref().map(|auth| backend(objects, by, &auth.backend_ref));
    let (to, lost) = match found {
        Some(Ok(to)) => (to, None),
        Some(Err(why)) => (ir::Destination::default(), Some(why)),
        None => (ir::Destination::default(), None),
    };
    let provider = asked(filter, &to, at)?;
    out.asked.push(lost.is_none().then_some(provider));
    if let Some((reason, text)) = lost {
        out.unresolved.get_or_insert((reason, format!("{at}.externalAuth.backendRef: {text}")));
    }
    Ok(())
}

/// Who a filter asks, at this destination.
fn asked(filter: &ListenerFilter, to: &ir::Destination, at: &str) -> Result<ir::AuthzProvider, ReasonMessage> {
    let both = || format!("{at}: must set the one field that its type names [KARST-0015]");
    match (filter.kind.as_str(), &filter.external_auth, &filter.extension_ref) {
        ("ExternalAuth", Some(auth), None) => {
            let made = provider::of_filter(auth, to, &format!("{at}.externalAuth"));
            let provider = made.map_err(|(field, text)| (INVALID, format!("{field}: {text}")))?;
            Ok(ir::AuthzProvider { status_on_error: NO_ANSWER, ..provider })
        }
        ("ExternalAuth", ..) => Err((INVALID, both())),
        ("ExtensionRef", None, Some(named)) => {
            let text = format!(
                "{at}: {} {:?}: filters of type ExtensionRef are not supported for a listener: name an HTTPFilter in the filters of routes [KARST-0029]",
                named.kind, named.name
            );
            Err((UNSUPPORTED, text))
        }
        ("ExtensionRef", ..) => Err((INVALID, both())),
        (other, ..) => {
            Err((UNSUPPORTED, format!("{at}: unsupported filter type {other:?}: use ExternalAuth [KARST-0016]")))
        }
    }
}

/// The Service that is referred to.
///
/// # Errors
/// It may not be referred to, or is not there.
fn backend(
    objects: &Objects<'_>,
    (kind, ns): (&str, &str),
    reference: &BackendRef,
) -> Result<ir::Destination, ReasonMessage> {
    let (of, name) = (reference.namespace.as_deref().unwrap_or(ns), reference.name.as_str());
    let bad = |text: String| Err((BAD_REFERENCE, text));
    let target = (reference.group.as_deref().unwrap_or(""), reference.kind.as_deref().unwrap_or("Service"));
    if !matches!(target, ("" | "core", "Service")) {
        return bad(format!("{} {name:?} is not supported: use Service [KARST-0310]", target.1));
    }
    if of != ns && !granted(objects, kind, ns, (of, "", "Service", name)) {
        let text = format!(
            "reference to Service {of}/{name} is not permitted: create a ReferenceGrant from {kind} in its namespace [KARST-0309]"
        );
        return Err(("RefNotPermitted", text));
    }
    let Some(service) = objects.service(of, name) else {
        return bad(format!("Service {of}/{name} not found [KARST-0307]"));
    };
    if service::is_alias(service) {
        return bad(service::alias_text(service, "backend", ns));
    }
    let Some(port) = reference.port else { return bad("port: is required [KARST-0010]".into()) };
    if !service.spec.ports.iter().any(|p| p.port == port && service::tcp(&p.protocol)) {
        return bad(format!("Service {of}/{name} has no port {port} [KARST-0308]"));
    }
    let key = format!("{of}/{}", service::hostname(objects, service));
    Ok(ir::Destination { service: key, port: u32::from(port), ..Default::default() })
}
