//! A request, or a connection that is carried as it is, as it is told to who looks on ([`karst_proxy::tap`]).

use crate::telemetry::{
    flag::{CORS_RESPONSE, DENIED_BY, DIRECT_RESPONSE, ResponseFlag, VIA_UPSTREAM},
    stream_info::StreamInfo,
};
use http::HeaderValue;
use karst_flows::{
    Reporter,
    tap::{Direction, Event, Peer, Phase, Request, Verdict},
};
use karst_proxy::{state::Workload, tap::peer};
use std::{borrow::Cow, time::Duration};

/// Response code details of what an endpoint or a route has answered. With others, and without a flag, a request was not fit to be
/// passed on.
const ANSWERED: [&str; 4] = ["", VIA_UPSTREAM, DIRECT_RESPONSE, CORS_RESPONSE];

/// What has ended. `sent`: bytes that the client was sent. `own`: a gateway's own pod.
pub fn ended<'a>(info: &'a StreamInfo, took: Duration, sent: u64, own: Option<&'a Workload>) -> Event<'a> {
    let verdict = verdict(info);
    let failed = verdict != Verdict::Forwarded;
    Event {
        verdict,
        policy: if failed { info.error.strip_prefix(DENIED_BY).unwrap_or_default() } else { "" },
        reason: Cow::Borrowed(match (failed, info.error.is_empty()) {
            (false, _) => "",
            (true, false) => info.error.as_str(),
            (true, true) => &*info.details,
        }),
        flags: info.flag.text(),
        ..event(info, if info.carried.is_some() { Phase::Close } else { Phase::Request }, took, sent, own)
    }
}

/// A connection that has come about.
pub fn opened<'a>(info: &'a StreamInfo, own: Option<&'a Workload>) -> Event<'a> {
    event(info, Phase::Open, Duration::ZERO, 0, own)
}

fn event<'a>(info: &'a StreamInfo, phase: Phase, took: Duration, sent: u64, own: Option<&'a Workload>) -> Event<'a> {
    let mut source = info.source.as_deref().map(peer).unwrap_or_default();
    // Only what was proven.
    (source.identity, source.address) = (info.principal(), Some(info.from));
    let service = info.service();
    let destination = match (&info.workload, service) {
        (Some((workload, address)), _) => Peer { address: Some(*address), ..peer(workload) },
        (None, Some(service)) => {
            let pod = if service.is_workload_service() { &*service.name } else { "" };
            Peer { namespace: &service.namespace, pod, address: Some(info.to), ..Peer::default() }
        }
        (None, None) => Peer { address: Some(info.to), ..own.map(peer).unwrap_or_default() },
    };
    Event {
        reporter: if info.at_gateway { Reporter::Gateway } else { Reporter::Waypoint },
        direction: Direction::Ingress,
        phase,
        source,
        destination,
        service: service.filter(|service| !service.is_workload_service()).map_or("", |service| &service.key),
        verdict: Verdict::Forwarded,
        policy: "",
        reason: Cow::Borrowed(""),
        flags: "-",
        mtls: info.principal.is_some(),
        request: info.carried.is_none().then(|| Request {
            method: info.method.as_str(),
            path: info.path(),
            authority: text(info.authority.as_ref()),
            protocol: info.protocol,
            status: info.answered,
            grpc: info.grpc,
        }),
        received: info.received.get(),
        sent,
        took,
    }
}

fn text(value: Option<&HeaderValue>) -> &str {
    value.and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A refusal by a policy or a limit is one thing, what went wrong another; what the endpoint or a route has answered is neither.
fn verdict(info: &StreamInfo) -> Verdict {
    let refused = ["rbac_access_denied", "jwt_authn_access_denied"].iter().any(|word| info.details.starts_with(*word));
    match info.flag {
        _ if refused => Verdict::Dropped,
        ResponseFlag::RateLimited | ResponseFlag::Unauthorized | ResponseFlag::Overflow => Verdict::Dropped,
        ResponseFlag::None if info.error.is_empty() && ANSWERED.contains(&&*info.details) => Verdict::Forwarded,
        ResponseFlag::FaultDelay => Verdict::Forwarded,
        ResponseFlag::None
        | ResponseFlag::NoRoute
        | ResponseFlag::NoCluster
        | ResponseFlag::NoHealthy
        | ResponseFlag::ConnectFailure
        | ResponseFlag::Reset
        | ResponseFlag::ProtocolError
        | ResponseFlag::BadRequest
        | ResponseFlag::Timeout
        | ResponseFlag::RetryLimit
        | ResponseFlag::FaultAbort
        | ResponseFlag::ClientGone => Verdict::Error,
    }
}
