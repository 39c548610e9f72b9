//! Copies of requests to the mirrors of their rule.

use crate::{
    clock,
    http::{
        body::discard,
        call::Call,
        destination::{By, endpoints, uses_http2},
        headers::Template,
        outgoing::Outgoing,
        reply::{InFlightEndpoint, RequestPermit},
    },
    route::{destination::Mirror, operators::Values, rule::Rule},
    upstream::{open::Attempt, send},
};
use http::request::Parts;
use std::{cell::Cell, rc::Rc};

/// Sends copies to the rule's mirrors. Nobody waits for them. `is_grpc`: gRPC has been made of it, whatever its client speaks.
pub(super) fn mirror(call: &Call<'_>, rule: &Rule, parts: &Parts, body: &Outgoing, values: &dyn Values, is_grpc: bool) {
    for Mirror { to, per_million, turns } in &rule.mirrors {
        if to.refuse.is_some() || !turns.chance(*per_million) {
            continue;
        }
        let Some(set) = endpoints(call, By { rule: Some(rule), to }) else { continue };
        let Some(body) = body.mirror() else { continue };
        let http2 = is_grpc || uses_http2(&set, call.downstream, parts);
        let template = Template { parts, authority: call.authority(), rule: Some(rule), to, http2, upgrade: false };
        let Some(request) = template.request(body, &Rc::default(), true, values) else { continue };
        let (worker, downstream) = (call.worker.clone(), call.downstream.clone());
        tokio::task::spawn_local(async move {
            let Some(index) = worker.choose(&set, None, &[], clock::now()) else { return };
            let Some(_counter) = RequestPermit::request(&set) else { return };
            let held = InFlightEndpoint::new(set.clone(), index, None);
            let (member, from, to) = (&set.members[index], downstream.from, downstream.called());
            let held_back = Cell::default();
            // It has no span.
            let attempt =
                Attempt { set: &set, member, from, to, has_other: &|| false, held: &held_back, trace: &|| None };
            let sent = Cell::default();
            if let Ok((response, after)) = send::plain(&worker, &attempt, request, http2, &sent).await {
                discard(response.into_body()).await;
                after.release();
            }
            drop(held);
        });
    }
}
