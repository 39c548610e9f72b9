//! Connections of the node's pods: plan, then do what the plan says. If the connect fails before anything was sent, other
//! endpoints are tried.

use crate::{
    choose::{choose, has_other},
    client::{Caller, Client},
    connect::{Ready, attempt},
    conns::{Conn, Guard},
    dns::{self, Preamble},
    inbound,
    metrics::Reporter,
    outcome::Outcome,
    plan::{Balance, Plan, Refusal, binds, resolved},
    state::Workload,
    worker::{ByLoad, Direction, Served, Worker},
};
use bytes::Bytes;
use karst_core::limits;
use karst_hbone::copy::{self, Counts};
use karst_proxy::{dial::Candidate, untold::Told};
use karst_rt::socket;
use std::{net::SocketAddr, pin::pin, rc::Rc, sync::Arc, time::Instant};
use tokio::net::TcpStream;

/// Endpoints tried for one connection: a lost node may have had most of a service's.
const TRIES: usize = 4;

/// A captured connection of a pod.
pub async fn serve(worker: Rc<Worker>, served: Rc<Served>, mut tcp: TcpStream, (from, caller): (SocketAddr, Caller)) {
    let Some((to, _place)) = worker.admit(&served, &tcp, Direction::Outbound) else { return };
    // What the client has said already; the destination gets it first.
    let mut first = Bytes::new();
    if worker.shared.config.dns && served.pod.dns_capture && to.port() == 53 {
        // Rare: not in the task of every connection.
        match Box::pin(dns::preamble(&worker.shared, &served.pod, &mut tcp)).await {
            Preamble::Answered => return,
            Preamble::Forward(said) => first = said,
        }
    }
    let Some((mut snapshot, mut source)) = worker.workload(&served.pod).await else {
        socket::reset_on_close(&tcp);
        return record(&worker, from, to, None, None).end(&Outcome::NoWorkload);
    };
    let own = if served.pod.ips.is_empty() { &source.ips } else { &served.pod.ips };
    let client = match Client::new(own, from, caller, |ip| served.pod.connector.is_local(ip)) {
        Ok(c) => c,
        Err(r) => {
            socket::reset_on_close(&tcp);
            return record(&worker, from, to, Some(source), None).end(&Outcome::Refused(r));
        }
    };
    let from = client.seen_by(to.ip());
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut held_until = None;
    loop {
        let mut planned = choose(&mut ByLoad(&worker), &worker.unreachable, &snapshot, &source, to, &tried);
        if let Plan::Resolve(name) = &planned {
            worker.shared.metrics.on_demand_dns(&source, &name.workload.hostname);
            // Rare, and large: not in the task of every connection.
            planned = match Box::pin(worker.dialer.lookup(&name.workload.hostname, name.ipv4)).await {
                Ok(ips) => {
                    let ip = ips[ByLoad(&worker).random(ips.len() as u64) as usize];
                    resolved(&snapshot, &source, name, ip, &tried, &mut ByLoad(&worker))
                }
                Err(e) => {
                    socket::reset_on_close(&tcp);
                    return record(&worker, from, to, Some(source), Some(&planned)).end(&e.into());
                }
            };
        }
        let untold = if let Plan::Untold { to, .. } = &planned { Some(to.ip()) } else { None };
        if let Some(ip) = untold {
            let until = *held_until.get_or_insert_with(|| tokio::time::Instant::now() + limits::HOLD_TIMEOUT);
            // As rare, and as large.
            planned = match Box::pin(worker.told(&served, ip, until)).await {
                Told::Known => {
                    let Some(newer) = worker.workload(&served.pod).await else {
                        socket::reset_on_close(&tcp);
                        return record(&worker, from, to, Some(source), Some(&planned)).end(&Outcome::NoWorkload);
                    };
                    (snapshot, source) = newer;
                    continue;
                }
                Told::Nobody => planned.nobody(),
                Told::Nothing => Plan::Refuse(Refusal::Untold),
            };
        }
        let guard = record(&worker, from, to, Some(source.clone()), Some(&planned));
        let again = tried.len() + 1 < TRIES;
        let chosen = planned.endpoint();
        let has_other = || {
            again
                && has_other(&mut ByLoad(&worker), &worker.unreachable, &snapshot, &source, to, &tried, chosen.as_ref())
        };
        let learnt = chosen.as_ref().map(|uid| {
            // A waypoint's pod is itself at fault, whatever is called by it.
            let by_waypoint = matches!(&planned, Plan::Tunnel(t) if t.waypoint);
            worker.unreachable.endpoint(uid, (!by_waypoint).then_some(to.port()))
        });
        let candidate = learnt.as_ref().map(|x| Candidate { endpoint: x, has_other: &has_other });
        let ready = attempt(&worker, &served, &planned, &source, &client, candidate).await;
        if let (Ok(_), Some((service, chosen))) = (&ready, binds(&planned)) {
            let port = (service.key.clone(), to.port());
            worker.shared.affinity.put(&source.uid, port, &chosen.uid, tokio::time::Instant::now());
        }
        let ready = match ready {
            Ok(r) if !first.is_empty() => Box::pin(r.after(&first, &guard.conn().counts)).await,
            r => r,
        };
        let outcome = match ready {
            Ok(Ready::Tunnel(lease, send, recv)) => {
                guard.established();
                let o =
                    inbound::relay(&worker, &guard, pin!(copy::tunnel(tcp, send, recv, &guard.conn().counts, true)))
                        .await;
                drop(lease);
                return guard.end(&o);
            }
            Ok(Ready::Socket(other)) => {
                guard.established();
                let o = inbound::relay(&worker, &guard, pin!(copy::plain(tcp, other, &guard.conn().counts))).await;
                return guard.end(&o);
            }
            Ok(Ready::Local(inner, app)) => {
                guard.established();
                inner.established();
                let o = inbound::relay(&worker, &inner, pin!(copy::plain(tcp, app, &guard.conn().counts))).await;
                let (c, mine) = (inner.conn().clone(), guard.conn().clone());
                c.counts.from_client.set(mine.counts.from_client.get());
                c.counts.to_client.set(mine.counts.to_client.get());
                inner.end(&o);
                return guard.end(&o);
            }
            Err(o) => o,
        };
        let retriable = outcome.may_retry();
        guard.end(&outcome);
        match chosen.filter(|_| retriable) {
            Some(uid) if again => {
                tried.push(uid);
                if let Some((s, x)) = worker.workload(&served.pod).await {
                    (snapshot, source) = (s, x);
                }
            }
            Some(_) | None => {
                socket::reset_on_close(&tcp);
                return;
            }
        }
    }
}

/// The record of a connection that goes, or was to go, by a plan.
fn record(
    worker: &Worker,
    from: SocketAddr,
    to: SocketAddr,
    source: Option<Arc<Workload>>,
    planned: Option<&Plan>,
) -> Guard {
    let (destination, service, hbone, mtls, actual) = match planned {
        Some(Plan::Tunnel(t)) => (Some(t.peer.clone()), t.service.clone(), Some(t.target), true, t.address),
        Some(Plan::Plain { to, workload, service } | Plan::Untold { to, workload, service }) => {
            (workload.clone(), service.clone(), None, false, *to)
        }
        Some(Plan::Resolve(n)) => (Some(n.workload.clone()), Some(n.service.clone()), None, false, to),
        Some(Plan::Refuse(_)) | None => (None, None, None, false, to),
    };
    worker.conns.add(Conn {
        reporter: Reporter::Source,
        source_addr: from,
        destination_addr: actual,
        hbone_addr: hbone,
        source_identity: source.as_ref().filter(|_| mtls).map(|s| s.identity.clone()),
        source,
        destination,
        service,
        mtls,
        check: None,
        pod: None,
        counts: Counts::default(),
        started: Instant::now(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connections_task_stays_small() {
        fn size<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let n = size(serve);
        assert!(n < 2700, "{n} bytes, which every open connection has");
    }
}
