//! The way to the destination that a plan names: a stream on a tunnel, a socket, or a pod of this node. Until it is there the
//! destination has had no byte of the client's, so another one may be tried.

use crate::{
    client::Client,
    conn::Conn,
    conns::Guard,
    inbound::{self, InboundRequest},
    inpod::{LocalPod, LocalPods},
    outcome::Outcome,
    plan::{Plan, Refusal, Tunnel},
    state::{Name, Service, Workload},
    worker::{Served, Worker},
};
use bytes::Bytes;
use karst_core::{Identity, limits};
use karst_hbone::{
    continuation::{self, Token},
    copy::{Counts, Reached},
    lasting::{self, Joint},
    pool::{Lease, Opened},
};
use karst_proxy::dial::{self, Candidate, Target};
use std::{rc::Rc, sync::Arc};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Both halves of a stream.
pub type Stream = (h2::SendStream<Bytes>, h2::RecvStream);

/// A destination that is reached.
pub enum Ready {
    /// A stream on a tunnel; may it be continued, and does its connection outlive the tunnel?
    Tunnel(Lease, Stream, bool, Option<Box<Joint>>),
    /// Without a tunnel.
    Socket(TcpStream),
    /// A pod of this node, with the record of its side.
    Local(Guard, TcpStream),
}

impl Ready {
    /// The same, once the destination has been sent these bytes (a few kilobytes) of the client. Nothing can be tried again
    /// after that.
    pub async fn after(mut self, first: &Bytes, counts: &Counts) -> Result<Self, Outcome> {
        let sent = match &mut self {
            Ready::Tunnel(_, (send, _), ..) => send.send_data(first.clone(), false).map_err(|e| e.to_string()),
            Ready::Socket(s) | Ready::Local(_, s) => s.write_all(first).await.map_err(|e| e.to_string()),
        };
        match sent {
            Ok(()) => {
                counts.from_client.set(counts.from_client.get() + first.len() as u64);
                Ok(self)
            }
            Err(e) => {
                let outcome = Outcome::Broken(e);
                if let Ready::Local(inner, _) = self {
                    inner.end(&outcome);
                }
                Err(outcome)
            }
        }
    }
}

/// Goes to where the plan leads.
///
/// # Errors
/// Why there is no way; whether another endpoint may be tried, the outcome says.
pub async fn attempt(
    worker: &Rc<Worker>,
    served: &Rc<Served>,
    planned: &Plan,
    source: &Arc<Workload>,
    client: &Client,
    candidate: Option<Candidate<'_>>,
) -> Result<Ready, Outcome> {
    match planned {
        Plan::Refuse(r) => Err(Outcome::Refused(*r)),
        // Resolved before, and waited for.
        Plan::Resolve(_) => Err(Outcome::Refused(Refusal::NoEndpoint)),
        Plan::Untold { .. } => Err(Outcome::Refused(Refusal::Untold)),
        Plan::Plain { to, .. } => {
            Ok(Ready::Socket(worker.dialer.connect(&served.pod.connector, client.chosen(), *to, candidate).await?))
        }
        Plan::Tunnel(t) => {
            if let Some(local) = same_node(worker, t) {
                // Both ends are this process: the caller's identity is the namespace that it came from.
                let ask = InboundRequest {
                    from: client.seen_by(t.target.ip()),
                    to: t.target,
                    hbone: None,
                    identity: Some(source.identity.clone()),
                    service: t.service.clone(),
                };
                let (guard, app) = inbound::open(worker, &local, ask).await;
                return match app {
                    Ok(app) => Ok(Ready::Local(guard, app)),
                    Err(o) => {
                        guard.end(&o);
                        if let Some(c) = candidate.filter(|_| o.may_retry()) {
                            c.endpoint.avoid();
                        }
                        Err(o)
                    }
                };
            }
            let host = t.service.as_ref().map(|s| &*s.hostname);
            let (hands_over, outlives) = (worker.shared.config.hand_over, worker.outlives_tunnels());
            let headers = || {
                // Of bytes that are carried as they are no trace is known.
                let mut headers = dial::headers(source.baggage(), client.seen_by(t.target.ip()), host, None);
                if hands_over {
                    continuation::announce(&mut headers);
                }
                if outlives {
                    lasting::ask(&mut headers, None);
                }
                headers
            };
            let target = Target {
                connector: &served.pod.connector,
                pod: &served.pod.uid,
                own: &source.identity,
                peer: &t.peer,
                address: t.address,
                expected: &t.expected,
                authority: &t.target.to_string(),
                headers: &headers,
            };
            let opened = worker.dialer.tunnel(&target, candidate).await?;
            let stream = (opened.send, opened.recv);
            Ok(Ready::Tunnel(opened.lease, stream, opened.continues && hands_over, opened.joint))
        }
    }
}

/// The next stream of a connection whose stream has been interrupted, to the same peer. `reached`: how far the connection has come, if
/// its tunnel has broken.
///
/// # Errors
/// There is none, and will be none.
pub async fn again(
    worker: &Worker,
    pod: &LocalPod,
    conn: &Conn,
    (token, reached): (&Token, Option<Reached>),
) -> Result<Opened, Outcome> {
    let (Some(source), Some(peer), Some(target)) = (&conn.source, &conn.destination, conn.hbone_addr) else {
        return Err(Outcome::NoWorkload);
    };
    // As it is known now: another workload may have the address. It may be that nothing has asked for it for a long time.
    if worker.shared.config.on_demand && !worker.snapshot().workloads.contains_key(&peer.uid) {
        let until = tokio::time::Instant::now() + limits::HOLD_TIMEOUT;
        worker.shared.ask(pod, vec![Name::Resource(peer.uid.clone())], until).await;
    }
    let known = worker.snapshot().workloads.get(&peer.uid).cloned();
    let peer = known.filter(|known| known.identity == peer.identity).ok_or(Outcome::NoWorkload)?;
    // A waypoint is asked at an address of its own.
    let by_waypoint = target.ip() != conn.destination_addr.ip();
    let expected = expected(&peer, conn.service.as_deref(), by_waypoint);
    let host = conn.service.as_ref().map(|s| &*s.hostname);
    let headers = || {
        let mut headers = dial::headers(source.baggage(), conn.source_addr, host, None);
        continuation::name(&mut headers, token);
        if let Some(reached) = reached {
            lasting::ask(&mut headers, Some(reached.given));
        }
        headers
    };
    let wanted = Target {
        connector: &pod.connector,
        pod: &pod.uid,
        own: &source.identity,
        peer: &peer,
        address: conn.destination_addr,
        expected: &expected,
        authority: &target.to_string(),
        headers: &headers,
    };
    Ok(match reached {
        Some(_) => worker.dialer.go_on(&wanted).await?,
        None => worker.dialer.again(&wanted).await?,
    })
}

/// Who may answer: the names that a service lists are those of its endpoints, and no waypoint's.
fn expected(peer: &Workload, service: Option<&Service>, by_waypoint: bool) -> Vec<Identity> {
    let others = service.filter(|_| !by_waypoint).into_iter().flat_map(|service| service.sans.iter().cloned());
    [peer.identity.clone()].into_iter().chain(others).collect()
}

/// The destination's pod, if it hangs on this ztunnel and tunnels within the node are not asked for.
fn same_node(worker: &Worker, tunnel: &Tunnel) -> Option<Arc<LocalPod>> {
    if !worker.shared.config.same_node_direct || tunnel.waypoint || tunnel.peer.native_tunnel {
        return None;
    }
    local(&worker.shared.pods.load(), &tunnel.peer)
}

/// The pod of this node that a workload is. Another one that has its name is not: that must show itself by its certificate.
fn local(pods: &LocalPods, peer: &Workload) -> Option<Arc<LocalPod>> {
    let found = match &*peer.pod_uid {
        "" => pods.values().find(|p| p.own().is(peer)),
        uid => pods.get(uid),
    };
    found.filter(|p| p.own().is(peer)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::{route, workload as pb};
    use karst_proxy::testing::{pod, service, snapshot};
    use prost::Message;

    /// The workload of a pod, as a controller tells of it; `uid` empty: as istiod does.
    fn told(name: &str, uid: &str) -> Arc<Workload> {
        let mut w = pod(name, "10.0.0.1", &[]);
        if !uid.is_empty() {
            let value = route::Pod { uid: uid.into() }.encode_to_vec();
            let config = Some(prost_types::Any { type_url: karst_api::POD_TYPE.into(), value });
            w.extensions.push(pb::Extension { name: "karst.pod".into(), config });
        }
        snapshot(vec![w], vec![]).workload([10, 0, 0, 1].into()).unwrap().clone()
    }

    #[test]
    fn the_next_stream_goes_to_who_had_the_one_before() {
        let mut web = service("web", "10.96.0.1", &[(80, 8080)]);
        web.subject_alt_names = vec!["spiffe://cluster.local/ns/ns/sa/other".into()];
        let s = snapshot(vec![pod("a", "10.0.0.1", &[])], vec![web]);
        let (peer, web) = (s.workload([10, 0, 0, 1].into()).unwrap(), s.services.values().next().map(|web| &**web));
        let names =
            |web, by_waypoint| expected(peer, web, by_waypoint).iter().map(Identity::to_string).collect::<Vec<_>>();
        let (own, other) = ("spiffe://cluster.local/ns/ns/sa/a", "spiffe://cluster.local/ns/ns/sa/other");
        assert_eq!(names(web, false), [own, other]);
        assert_eq!(names(web, true), [own], "an endpoint's name is no waypoint's");
        assert_eq!(names(None, false), [own]);
    }

    #[test]
    fn on_the_same_node_only_the_very_pod_is_the_destination() {
        let pods = |all: &[Arc<LocalPod>]| all.iter().map(|p| (p.uid.clone(), p.clone())).collect::<LocalPods>();
        let found = |pods: &LocalPods, w: &Workload| local(pods, w).map(|p| p.uid.clone());
        let first = pods(&[LocalPod::test("a", "a", "1"), LocalPod::test("b", "b", "2")]);
        assert_eq!(found(&first, &told("a", "1")), Some("1".into()));
        assert_eq!(found(&first, &told("a", "")), Some("1".into()), "istiod tells no uid");
        assert_eq!(found(&first, &told("c", "")), None);
        assert_eq!(found(&first, &told("a", "2")), None, "a uid of another name");
        // Made anew, while the control plane knows of the one before.
        for account in ["a", "other"] {
            let anew = pods(&[LocalPod::test("a", account, "9")]);
            assert_eq!(found(&anew, &told("a", "1")), None, "{account}");
        }
        assert_eq!(found(&pods(&[LocalPod::test("a", "other", "1")]), &told("a", "1")), None);
        assert_eq!(found(&pods(&[LocalPod::test("a", "other", "9")]), &told("a", "")), None);
        // While one goes and the other comes, each is itself.
        let both = pods(&[LocalPod::test("a", "a", "1"), LocalPod::test("a", "a", "9")]);
        assert_eq!(found(&both, &told("a", "9")), Some("9".into()));
        assert_eq!(found(&both, &told("a", "1")), Some("1".into()));
    }
}
