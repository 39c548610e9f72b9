//! What a waypoint decides: its policies, the rule, the destination, the endpoint; then what the endpoint's ztunnel says of it.

use crate::{
    answer::{Cause, Outcome, ProxyKind, Stage},
    call::{Call, Head},
    l4::{self, Arriving, step},
    parties::address,
    settings,
    way::Way,
    world::World,
};
use http::{HeaderName, HeaderValue, header::HOST, request::Parts};
use karst_core::Identity;
use karst_proxy::state::Workload;
use karst_waypoint::decision::{
    self, Branch, BranchEnd, Decision, End, FAULT, Judged, NO_HEALTHY, NO_HOST, Route, Spoken, Waypoint,
};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// How long a token is taken after it has expired, in seconds: clocks differ.
const LEEWAY: u64 = 60;

/// Goes on from a waypoint's pod, which a tunnel of `peer` at `ip` ends at. `name`: the host that is called.
pub(crate) fn through(
    world: &World,
    way: &mut Way,
    call: &Call,
    pod: &Arc<Workload>,
    to: SocketAddr,
    (name, peer, ip): (&str, &Identity, IpAddr),
) {
    if let Some((arrival, steps)) = l4::closed(world, pod, SocketAddr::new(address(pod), to.port()), ip) {
        return way.arrived((arrival, steps, Some(Cause::NetworkPolicy)));
    }
    way.meet(ProxyKind::Waypoint, format!("{}/{}", pod.namespace, pod.name));
    let waypoint = world.waypoint(pod);
    let object = l4::pod(world, pod);
    let called = match waypoint.connect(&to.to_string(), peer.clone(), SocketAddr::new(ip, 0)) {
        Ok(called) => called,
        Err(refused) => {
            let why = format!("the waypoint refuses the tunnel with {}: {}", refused.status, refused.why);
            let cause = match way.destination.service.as_ref() {
                Some(service) if !service.ports.iter().any(|(port, _)| *port == to.port()) => Cause::NoSuchPort,
                _ => Cause::WaypointRefuses,
            };
            way.refuse(Stage::Waypoint, object, why, cause);
            way.answer.status = Some(refused.status);
            return;
        }
    };
    way.push(step(
        Stage::Identity,
        Outcome::Pass,
        None,
        format!("the caller shows {peer}; the waypoint must be {}", pod.identity),
    ));
    let spoken = waypoint.spoken(&called);
    let hidden = spoken == Spoken::Bytes && call.request.is_some();
    if let Some(head) = call.request.as_ref().filter(|_| !hidden) {
        return requested(world, way, &waypoint, &called, head, (name, pod));
    }
    let decision = waypoint.bytes(called, call.server_name.as_deref());
    if hidden {
        let why = format!(
            "port {} is declared as TCP: requests are carried as bytes, and routes and rules for HTTP cannot see them",
            to.port()
        );
        way.push(step(Stage::Waypoint, Outcome::Warn, way.service_object(world), why));
    }
    decided(world, way, &waypoint, decision, (pod, hidden));
}

/// What a waypoint or gateway does with a request. `host`: that of a request which names none.
pub(crate) fn requested(
    world: &World,
    way: &mut Way,
    proxy: &Waypoint,
    called: &decision::Call,
    head: &Head,
    (host, pod): (&str, &Arc<Workload>),
) {
    let expired = head.claims.as_ref().filter(|claims| {
        let until = claims.get("exp").and_then(serde_json::Value::as_u64);
        until.is_some_and(|until| until.saturating_add(LEEWAY) < way.call.now) && proxy.verifies(called, claims)
    });
    if expired.is_some() {
        way.answer.status = Some(401);
        let why = "the claim exp of the token is in the past: the waypoint or gateway answers 401";
        return way.refuse(Stage::WaypointAuthorization, None, why, Cause::TokenExpired);
    }
    match parts(head, host) {
        Ok(parts) => {
            let decision = proxy.request(called, parts, head.claims.as_ref());
            decided(world, way, proxy, decision, (pod, false));
        }
        Err(why) => way.unknown(format!("the request cannot be sent: {why}")),
    }
}

/// Goes on with what was decided. `hidden`: it is a request, and is carried as bytes.
pub(crate) fn decided(
    world: &World,
    way: &mut Way,
    proxy: &Waypoint,
    decision: Decision,
    (pod, hidden): (&Arc<Workload>, bool),
) {
    way.proxy = Some(pod.identity.clone());
    judged(world, way, &decision, hidden);
    if let Some(route) = &decision.route {
        routed(world, way, route, &decision.end);
    }
    ended(world, way, proxy, decision.end, pod);
}

fn parts(head: &Head, name: &str) -> Result<Parts, http::Error> {
    let mut request = http::Request::builder().method(head.method.as_str()).uri(head.path.as_str()).body(())?;
    let host = HeaderValue::from_str(head.host.as_deref().unwrap_or(name))?;
    request.headers_mut().insert(HOST, host);
    for (name, value) in &head.headers {
        request.headers_mut().append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    Ok(request.into_parts().0)
}

fn judged(world: &World, way: &mut Way, decision: &Decision, hidden: bool) {
    let named = |key: &str| {
        let (namespace, name) = key.split_once('/')?;
        world.objects.named("AuthorizationPolicy", namespace, name)
    };
    let stage = Stage::WaypointAuthorization;
    match &decision.access {
        None => {}
        Some(Judged::NoPolicies) => {
            way.push(step(stage, Outcome::Pass, None, "no policy is attached to the service or its waypoint"));
        }
        Some(Judged::Allowed(None)) => {
            way.push(step(
                stage,
                Outcome::Pass,
                None,
                "no DENY policy of the service matches, and there is no ALLOW policy",
            ));
        }
        Some(Judged::Allowed(Some((policy, rule)))) => {
            let why = format!("the ALLOW policy {policy} matches by spec.rules[{rule}]");
            way.push(step(stage, Outcome::Pass, named(policy), why));
        }
        Some(Judged::DeniedBy(policy, rule)) => {
            let why = format!("the DENY policy {policy} matches by spec.rules[{rule}]");
            way.answer.policy = Some(policy.clone());
            let cause = if hidden { Cause::HttpPolicyOnTcpPort } else { Cause::DeniedByPolicy };
            way.refuse(stage, named(policy), why, cause);
        }
        Some(Judged::NotAllowed) => {
            way.answer.policy = Some(String::new());
            let why = "there are ALLOW policies for the service, and none matches";
            let cause = if hidden { Cause::HttpPolicyOnTcpPort } else { Cause::NotAllowedByAnyPolicy };
            let object = allows(world, way);
            way.refuse(stage, object, why, cause);
        }
    }
}

/// An ALLOW policy that is attached to the service, or else to its waypoint.
fn allows(world: &World, way: &Way) -> Option<crate::answer::Object> {
    let service = way.destination.service.as_ref()?;
    let mut all = world.objects.all("AuthorizationPolicy").filter_map(|o| match &o.object {
        karst_manifest::Object::AuthorizationPolicy(p) if *p.metadata.namespace == *service.namespace => Some((o, p)),
        _ => None,
    });
    let fits = |p: &karst_manifest::kinds::AuthorizationPolicy| {
        let allows = p.spec.action.as_deref().is_none_or(|a| a == "ALLOW");
        allows && p.spec.targets().any(|(_, t)| t.name == *service.name || t.kind.starts_with("Gateway"))
    };
    all.find(|(_, p)| fits(p)).map(|(o, _)| crate::objects::shown(o))
}

fn routed(world: &World, way: &mut Way, route: &Route, end: &End) {
    for (origin, why) in &route.passed_over {
        let why = format!("{origin} does not match: {why}");
        way.push(step(Stage::Route, Outcome::Pass, world.objects.of_origin(origin), why));
    }
    if !route.origin.is_empty() {
        let object = world.objects.of_origin(&route.origin);
        way.push(step(Stage::Route, Outcome::Pass, object, format!("{} matches", route.origin)));
    } else if !matches!(end, End::Answered(404, _)) {
        way.push(step(Stage::Route, Outcome::Pass, None, "no route: it goes to the service that was called"));
    }
    settings::shown(world, way, &route.settings, "");
}

fn ended(world: &World, way: &mut Way, waypoint: &Waypoint, end: End, pod: &Arc<Workload>) {
    let own = waypoint.own().cloned().unwrap_or_else(|| pod.clone());
    match end {
        End::Reset(why) => {
            if way.answer.cause.is_none() {
                way.refuse(Stage::Route, None, why, Cause::NoRouteMatches);
            }
        }
        End::Answered(status, why) => {
            way.answer.status = Some(status);
            if way.answer.cause.is_some() {
                return;
            }
            let text = format!("the waypoint answers {status}: {why}");
            if status < 400 {
                way.push(step(Stage::Route, Outcome::Pass, None, text));
                return way.answered();
            }
            let cause = match status {
                _ if why == FAULT => Cause::FaultInjected,
                404 if why == NO_HOST => Cause::NoRouteForHost,
                404 => Cause::NoRouteMatches,
                400 | 401 | 405 | 431 => Cause::BadRequest,
                _ => Cause::AnsweredByRoute,
            };
            let object = route_object(way);
            way.refuse(Stage::Route, object, text, cause);
        }
        End::Sent(branches) => {
            let total: u64 = branches.iter().map(|b| b.weight).sum();
            for branch in branches {
                sent(world, way, &branch, total, &own);
            }
        }
    }
}

/// The object of the rule that was chosen.
fn route_object(way: &Way) -> Option<crate::answer::Object> {
    let chosen = way.answer.steps.iter().rev().find(|s| s.step == Stage::Route && s.outcome == Outcome::Pass)?;
    chosen.object.clone()
}

fn sent(world: &World, way: &mut Way, branch: &Branch, total: u64, own: &Arc<Workload>) {
    let subset = if branch.subset.is_empty() { String::new() } else { format!(" subset {}", branch.subset) };
    let share = if branch.weight == total { String::new() } else { format!(", {} of {total}", branch.weight) };
    let what = format!("{} port {}{subset}{share}", branch.service, branch.port);
    let object = branch.service.split_once('/').and_then(|(namespace, host)| {
        world.objects.named("Service", namespace, host.split('.').next().unwrap_or_default())
    });
    match &branch.end {
        BranchEnd::Status(status, why) => {
            let cause = match (*why, branch.subset.is_empty()) {
                (why, false) if why == NO_HEALTHY => Cause::SubsetWithoutPods,
                (why, true) if why == NO_HEALTHY => l4::no_endpoint(world, Some(&branch.service)),
                _ if *status == 500 => Cause::BackendNotUsable,
                _ => Cause::NoSuchDestination,
            };
            way.branch_refused(
                step(Stage::Backend, Outcome::Refuse, object, format!("{what}: {why} ({status})")),
                (cause, *status),
                branch.weight,
            );
        }
        BranchEnd::Called => {
            way.push(step(
                Stage::Backend,
                Outcome::Pass,
                object,
                format!("{what}: to the name or address that was called"),
            ));
            way.answered();
        }
        BranchEnd::Endpoints(all) => {
            way.push(step(Stage::Backend, Outcome::Pass, object, what));
            settings::shown(world, way, &branch.settings, &branch.service);
            let chosen = all.iter().map(|e| (&*e.workload, e.address));
            way.push(step(Stage::Endpoints, Outcome::Pass, None, l4::choice(world, Some(&branch.service), chosen)));
            if let Some(authority) = branch.via_waypoint.as_deref().and_then(|text| text.parse::<SocketAddr>().ok()) {
                return onward(world, way, all, authority, own);
            }
            for endpoint in all {
                let ip = address(own);
                let identity = Some(&own.identity).filter(|_| endpoint.workload.hbone);
                let by = Arriving { identity, ip, weight: branch.weight };
                let arrived = l4::arrives(world, &endpoint.workload, endpoint.address, &by);
                if endpoint.workload.hbone {
                    way.meet(ProxyKind::Ztunnel, &*endpoint.workload.node);
                }
                way.arrived(arrived);
            }
        }
    }
}

/// From a gateway to the waypoint of the service (`istio.io/ingress-use-waypoint`), which has the last word.
fn onward(world: &World, way: &mut Way, all: &[decision::Endpoint], to: SocketAddr, own: &Arc<Workload>) {
    let Some(first) = all.first() else { return };
    let why =
        format!("the service takes what comes through gateways by its waypoint: HBONE to {}", first.workload.name);
    way.push(step(Stage::Waypoint, Outcome::Pass, l4::pod(world, &first.workload), why));
    let call = way.call.clone();
    let name = way.destination.name.clone();
    through(world, way, &call, &first.workload, to, (&name, &own.identity, address(own)));
}
