//! The answer for people: a line that says all, then a line for each step.

use crate::{
    answer::{Cause, Explanation, Object, Outcome, Stage, Verdict},
    differences::{Comparison, Difference},
};
use std::fmt::Write;

/// What is wrong, in a few words.
pub fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::NoSuchPort => "the service does not have this port",
        Cause::SelectorMatchesNoPod => "the selector of the service matches no pod",
        Cause::NoReadyEndpoint => "no pod of the service is ready, or none has the port",
        Cause::WaypointNotReady => "the waypoint is not ready",
        Cause::WaypointRefuses => "the waypoint refuses the connection",
        Cause::OwnPort => "the port belongs to ztunnel",
        Cause::OwnAddress => "the pod calls itself",
        Cause::NobodyKnown => "no pod is known at this address",
        Cause::NotInRegistry => "the mesh does not know this address, and outboundTrafficPolicy is REGISTRY_ONLY",
        Cause::DeniedByPolicy => "a DENY policy matches",
        Cause::NotAllowedByAnyPolicy => "no ALLOW policy matches",
        Cause::StrictMtlsOutsider => "mutual TLS is required, and the caller is not in the mesh",
        Cause::HttpPolicyOnTcpPort => "a policy for HTTP meets a port that is declared as TCP",
        Cause::NoRouteMatches => "no route matches",
        Cause::BackendNotUsable => "the backend of the route cannot be used (no such object, or no ReferenceGrant)",
        Cause::NoSuchDestination => "the route leads to a service, port or subset that does not exist",
        Cause::SubsetWithoutPods => "the subset has no ready pods",
        Cause::BadRequest => "the request cannot be taken as it is",
        Cause::AnsweredByRoute => "the route answers with an error",
        Cause::PolicyMissing => "a policy has not reached ztunnel yet",
        Cause::NetworkPolicy => "a NetworkPolicy of Kubernetes keeps the connection out",
        Cause::NoListener => "the gateway has no listener for this port or name",
        Cause::NoRouteForHost => "the gateway has no route for this host",
        Cause::HttpPolicyAtZtunnel => "a policy for HTTP is enforced by ztunnel, which sees no requests",
        Cause::PrincipalMistyped => "the policy names nearly this caller",
        Cause::OtherTrustDomain => "the policy names the caller in another trust domain",
        Cause::PolicyUnusable => "the policy cannot be used as it is written, so it closes",
        Cause::TokenMissing => "the policy asks for a token, and the request has none that is verified",
        Cause::TokenExpired => "the token has expired",
        Cause::FaultInjected => "a fault is injected on purpose",
    }
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Source => "source",
        Stage::Destination => "destination",
        Stage::Redirection => "redirection",
        Stage::Plan => "plan",
        Stage::Waypoint => "waypoint",
        Stage::Identity => "identity",
        Stage::PeerAuthentication => "peer authentication",
        Stage::Authorization => "authorization (L4)",
        Stage::WaypointAuthorization => "authorization (L7)",
        Stage::Route => "route",
        Stage::Backend => "backend",
        Stage::Endpoints => "endpoints",
        Stage::Network => "network policy",
        Stage::Gateway => "gateway",
        Stage::Settings => "settings",
        Stage::Configuration => "configuration",
    }
}

pub(crate) fn object(object: &Object) -> String {
    let slash = if object.namespace.is_empty() { "" } else { "/" };
    let name = format!("{} {}{slash}{}", object.kind, object.namespace, object.name);
    match &object.file {
        Some(file) => format!("{name} ({}:{})", file.display(), object.line),
        None => name,
    }
}

/// The answer, with a line for each step.
pub fn render(answer: &Explanation) -> String {
    let mut out = format!("{}\n\n", answer.summary);
    let rows: Vec<[String; 4]> = answer
        .steps
        .iter()
        .map(|s| {
            let mark = match s.outcome {
                Outcome::Pass => "ok",
                Outcome::Refuse => "REFUSED",
                Outcome::Warn => "warning",
            };
            let shown = s.object.as_ref().map_or_else(|| "-".into(), object);
            [stage(s.step).into(), mark.into(), shown, s.why.clone()]
        })
        .collect();
    let width = |column: usize, title: &str| {
        rows.iter().map(|r| r[column].chars().count()).chain([title.len()]).max().unwrap_or_default()
    };
    let (first, second, third) = (width(0, "STEP"), width(1, "VERDICT"), width(2, "OBJECT"));
    let _ = writeln!(out, "{:first$}  {:second$}  {:third$}  WHY", "STEP", "VERDICT", "OBJECT");
    for [step, verdict, object, why] in &rows {
        let _ = writeln!(out, "{step:first$}  {verdict:second$}  {object:third$}  {why}");
    }
    if answer.verdict == Verdict::Partly {
        let _ = writeln!(out, "\nBy endpoint:");
        for e in &answer.endpoints {
            let verdict = if e.allowed { "allowed" } else { "refused" };
            let _ = writeln!(out, "  {} ({}): {verdict}", e.workload, e.address);
        }
    }
    if let Some(fix) = &answer.fix {
        let tried = if fix.verified { "tried: with it the call gets through" } else { "not tried" };
        let _ = writeln!(out, "\nSmallest change ({tried}): {}", fix.text);
        fix.yaml.lines().for_each(|line| {
            let _ = writeln!(out, "  {line}");
        });
    }
    out
}

/// Where proxies differ from the objects, in lines. `by_objects`: what the answer would be by the objects, if it is another.
pub fn compared(all: &[Comparison], by_objects: Option<Verdict>) -> String {
    let mut out = String::new();
    if let Some(verdict) = by_objects {
        let verdict = match verdict {
            Verdict::Allowed => "allowed",
            Verdict::Refused => "refused",
            Verdict::Partly => "allowed in part",
            Verdict::Unknown => "unknown",
        };
        let _ = writeln!(out, "\nBy the objects alone it is {verdict}: a proxy knows otherwise.");
    }
    for one in all {
        match &one.differences[..] {
            [] => {
                let _ = writeln!(out, "\n{} knows what the objects say.", one.proxy);
            }
            all => {
                let _ = writeln!(out, "\n{} knows otherwise:", one.proxy);
                for one in all {
                    let _ = writeln!(out, "  {}", difference(one));
                }
            }
        }
    }
    out
}

fn difference(difference: &Difference) -> String {
    let field = if difference.field.is_empty() { String::new() } else { format!(" {}", difference.field) };
    let what = format!("{}{field}", difference.subject);
    match (&*difference.compiled, &*difference.proxy) {
        (_, "") => format!("it has not yet taken {what}"),
        ("", _) => format!("it still has {what}, which no object says any more"),
        (compiled, proxy) => format!("it has not yet taken {what}: {compiled} by the objects, {proxy} in the proxy"),
    }
}
