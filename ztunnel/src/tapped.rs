//! A connection, or a request that was read in passing, as it is told to who looks on ([`karst_proxy::tap`]).

use crate::{conn::Conn, metrics::Reporter, outcome::Outcome};
use karst_flows::tap::{Direction, Event, Phase, Request, Verdict};
use karst_proxy::tap::peer;
use karst_signals::{Asked, Exchange, Flag};
use std::borrow::Cow;

/// A connection that has come about.
pub fn opened(conn: &Conn) -> Event<'_> {
    event(conn, Phase::Open, Verdict::Forwarded)
}

/// A connection that has ended, or has not come about.
pub fn ended<'a>(conn: &'a Conn, outcome: &'a Outcome) -> Event<'a> {
    Event {
        policy: outcome.policy().unwrap_or_default(),
        reason: outcome.text().map_or(Cow::Borrowed(""), Cow::Owned),
        flags: outcome.flag(),
        ..event(conn, Phase::Close, verdict(outcome))
    }
}

/// A request of this connection that has ended.
pub fn request<'a>(conn: &'a Conn, exchange: &Exchange, asked: &'a Asked) -> Event<'a> {
    let (verdict, reason) = match exchange.flag {
        Flag::None => (Verdict::Forwarded, ""),
        Flag::ClientGone => (Verdict::Error, "the client has left before its answer was whole"),
        Flag::UpstreamGone => (Verdict::Error, "the connection has ended before the answer was whole"),
        Flag::UpstreamReset => (Verdict::Error, "the server has reset the stream"),
    };
    Event {
        reason: Cow::Borrowed(reason),
        flags: exchange.flag.text(),
        request: Some(Request {
            method: &asked.method,
            path: &asked.path,
            authority: "",
            protocol: asked.version,
            status: exchange.status,
            grpc: exchange.grpc_status.map(u16::from),
        }),
        received: exchange.request_bytes,
        sent: exchange.response_bytes,
        took: exchange.duration,
        ..event(conn, Phase::Request, verdict)
    }
}

fn event(conn: &Conn, phase: Phase, verdict: Verdict) -> Event<'_> {
    let mut source = conn.source.as_deref().map(peer).unwrap_or_default();
    let mut destination = conn.destination.as_deref().map(peer).unwrap_or_default();
    source.address = Some(conn.source_addr);
    destination.address = Some(conn.destination_addr);
    // At the destination only what was proven counts; a pod of this node has proven it to the node.
    source.identity = match conn.reporter {
        Reporter::Destination => conn.source_identity.as_ref().map_or("", |identity| identity.as_str()),
        Reporter::Source => source.identity,
    };
    if let (Some(identity), true) = (&conn.source_identity, source.namespace.is_empty()) {
        source.namespace = identity.namespace();
    }
    if let (Some(pod), true) = (&conn.pod, destination.pod.is_empty()) {
        (destination.namespace, destination.pod) = (&pod.namespace, &pod.name);
    }
    Event {
        reporter: karst_flows::Reporter::Ztunnel,
        direction: match conn.reporter {
            Reporter::Source => Direction::Egress,
            Reporter::Destination => Direction::Ingress,
        },
        phase,
        source,
        destination,
        service: conn.service.as_ref().map_or("", |service| &*service.key),
        verdict,
        policy: "",
        reason: Cow::Borrowed(""),
        flags: "-",
        mtls: conn.mtls,
        request: None,
        received: conn.counts.from_client.get(),
        sent: conn.counts.to_client.get(),
        took: conn.started.elapsed(),
    }
}

/// A refusal by a policy or a limit is one thing, what went wrong another.
fn verdict(outcome: &Outcome) -> Verdict {
    match outcome {
        Outcome::Done | Outcome::Drained | Outcome::HandedOver => Verdict::Forwarded,
        Outcome::Denied(_)
        | Outcome::ClosedByPolicy(_)
        | Outcome::PolicyMissing(_)
        | Outcome::Refused(_)
        | Outcome::Limit
        | Outcome::GaveWay => Verdict::Dropped,
        Outcome::Broken(_)
        | Outcome::NoWorkload
        | Outcome::NoIdentity
        | Outcome::Connect(_)
        | Outcome::Dial(_)
        | Outcome::BadRequest(_)
        | Outcome::NotFound(_) => Verdict::Error,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{conns::Conns, metrics::Metrics};
    use karst_core::Identity;
    use karst_flows::tap::{Filter, Line};
    use karst_hbone::copy::Counts;
    use karst_proxy::{
        tap::Taps,
        testing::{pod, snapshot},
    };
    use std::{sync::Arc, time::Instant};

    fn conn(reporter: Reporter) -> Conn {
        let mesh = snapshot(vec![pod("a", "10.0.0.1", &[]), pod("b", "10.0.0.2", &[])], vec![]);
        let workload = |last: u8| mesh.workload([10, 0, 0, last].into()).cloned();
        Conn {
            reporter,
            source_addr: ([10, 0, 0, 1], 4000).into(),
            destination_addr: ([10, 0, 0, 2], 80).into(),
            hbone_addr: None,
            source: workload(1),
            destination: workload(2),
            service: None,
            mtls: true,
            source_identity: Some(Identity::new("cluster.local", "ns", "other").unwrap()),
            check: None,
            pod: None,
            counts: Counts::default(),
            started: Instant::now(),
            trace: Default::default(),
        }
    }

    /// What `karst tap` is for: a denied connection is told at once, with the policy that denied it.
    #[tokio::test]
    async fn a_denied_connection_is_told_with_its_policy() {
        let run = async {
            let taps = Taps::new("node");
            let conns = Conns::new(Arc::<Metrics>::default(), taps.clone(), false);
            let denied = Outcome::Denied(karst_policy::Verdict::DeniedBy("shop/deny".into(), 0));
            conns.add(conn(Reporter::Destination)).end(&denied);
            let filter = Filter::parse("limit=3&to=b").unwrap();
            let mut lines = taps.page(&filter.to_query()).into_body();
            conns.add(conn(Reporter::Destination)).end(&denied);
            let carried = conns.add(conn(Reporter::Destination));
            carried.established();
            carried.end(&Outcome::Done);
            let mut records = vec![];
            while let Some(Ok(frame)) = http_body_util::BodyExt::frame(&mut lines).await {
                let line: Line = serde_json::from_slice(&frame.into_data().unwrap()).unwrap();
                if let Line::Flow(record) = line {
                    records.push(record);
                }
            }
            let told: Vec<_> = records.iter().map(|record| record.event()).collect();
            let phases: Vec<_> = told.iter().map(|event| (event.phase, event.verdict)).collect();
            assert_eq!(
                phases,
                [
                    (Phase::Close, Verdict::Dropped),
                    (Phase::Open, Verdict::Forwarded),
                    (Phase::Close, Verdict::Forwarded)
                ]
            );
            let first = &told[0];
            assert_eq!((first.policy, &*first.reason), ("shop/deny", "connection denied by policy shop/deny"));
            assert_eq!(first.flags, "DENY");
            assert_eq!((first.source.pod, first.destination.pod), ("a", "b"));
            assert_eq!(first.source.identity, "spiffe://cluster.local/ns/ns/sa/other", "the one that was proven");
        };
        tokio::task::LocalSet::new().run_until(run).await;
    }

    #[test]
    fn an_unproven_identity_is_not_told_at_the_destination() {
        let plain = Conn { mtls: false, source_identity: None, ..conn(Reporter::Destination) };
        assert_eq!((opened(&plain).source.identity, opened(&plain).source.pod), ("", "a"));
        let own = Conn { source_identity: None, ..conn(Reporter::Source) };
        assert_eq!(opened(&own).source.identity, "spiffe://cluster.local/ns/ns/sa/a");
    }
}
