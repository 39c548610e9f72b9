//! Copies of requests to the mirrors of their rule.

use crate::{
    clock,
    downstream::context::Downstream,
    http::{
        body::{Body, Source, discard},
        destination::{endpoints, uses_http2},
        entry::Authority,
        headers::Template,
        reply::{InFlightEndpoint, RequestPermit},
    },
    route::{operators::Values, table::Rule},
    snapshot::Snapshot,
    upstream::{open::Attempt, send},
    worker::{SampleKind, Worker},
};
use http::request::Parts;
use std::{cell::Cell, rc::Rc, sync::Arc};

/// Sends copies to the rule's mirrors. Nobody waits for them.
#[allow(clippy::too_many_arguments, reason = "parts of one request with different owners, together for this call only")]
pub(super) fn mirror(
    w: &Rc<Worker>,
    downstream: &Rc<Downstream>,
    s: &Arc<Snapshot>,
    rule: &Rule,
    parts: &Parts,
    authority: &Authority,
    source: Option<&Source>,
    values: &dyn Values,
) {
    for (to, part) in &rule.mirrors {
        if to.refuse.is_some() || !w.chance(SampleKind::Mirror, *part) {
            continue;
        }
        let Some(set) = endpoints(w, downstream, s, Some(rule), to, authority) else { continue };
        let Some(body) = source.map_or(Some(Body::Empty), Source::mirror) else { continue };
        let http2 = uses_http2(&set, downstream, parts);
        let t = Template { parts, authority, rule: Some(rule), to, http2, upgrade: false };
        let Some(r) = t.request(body, &Rc::default(), true, values) else { continue };
        let (w, downstream) = (w.clone(), downstream.clone());
        tokio::task::spawn_local(async move {
            let Some(i) = w.choose(&set, None, &[], clock::now()) else { return };
            let Some(_counter) = RequestPermit::request(&set) else { return };
            let held = InFlightEndpoint::new(set.clone(), i, None);
            let (member, from, held_back) = (&set.members[i], downstream.from, Cell::default());
            let attempt = Attempt { set: &set, member, from, has_other: &|| false, held: &held_back };
            let sent = match http2 {
                true => send::http2(&w, &attempt, r, &Cell::default()).await,
                false => send::http1(&w, &attempt, r, &Cell::default()).await,
            };
            if let Ok((a, after)) = sent {
                discard(a.into_body()).await;
                after.release();
            }
            drop(held);
        });
    }
}
