//! Doors for the fuzz targets (tests/fuzz): what comes from outside, in the functions that the product calls. Each states what
//! must hold whatever comes; none may panic.
#![allow(clippy::unwrap_used, reason = "a broken invariant is to end the run")]

use crate::{
    dns, inbound, inpod, local,
    plan::OWN_PORTS,
    state::{OwnPod, Snapshot},
};
use hickory_proto::op::Message;
use karst_api::convert;
use karst_policy::{Connection, authorize};
use karst_signals::{Exchange, Over};
use std::{net::SocketAddr, sync::LazyLock, time::Duration};

const MESH: &str = r#"
workloads:
- {uid: c//Pod/default/server, name: server, namespace: default, workloadIps: [10.0.0.2], protocol: HBONE, services: {default/web.default.svc.cluster.local: {80: 8080, 81: 15008}}}
services:
- {name: web, namespace: default, hostname: web.default.svc.cluster.local, vips: [/10.96.0.1, "/fd00::1"], ports: {80: 8080, 81: 15008}}
- {name: any, namespace: default, hostname: "*.example.com", vips: [/10.96.0.2], ports: {80: 80}}
"#;

const OWN: OwnPod<'static> = OwnPod { namespace: "default", name: "server", account: "default", uid: None };

static STATE: LazyLock<Snapshot> = LazyLock::new(|| local::parse(MESH, "").unwrap());

/// A CONNECT: the authority in the first line, then headers, `name: value`.
pub fn connect(data: &[u8]) {
    let mut lines = data.split(|b| *b == b'\n');
    let Ok(uri) = http::Uri::builder().authority(lines.next().unwrap_or_default()).build() else { return };
    let mut r = http::Request::connect(uri).body(()).unwrap();
    for l in lines {
        let Some(at) = l.iter().position(|b| *b == b':') else { continue };
        let (Ok(n), Ok(v)) =
            (http::HeaderName::from_bytes(&l[..at]), http::HeaderValue::from_bytes(l[at + 1..].trim_ascii()))
        else {
            continue;
        };
        r.headers_mut().append(n, v);
    }
    let to: SocketAddr = ([10, 0, 0, 2], 15008).into();
    if let Ok((target, _)) = inbound::target(&STATE, &OWN, &r, to) {
        assert!(target.ip() == to.ip() && target.port() != 0 && !OWN_PORTS.contains(&target.port()), "{target}");
    }
}

/// A DNS query; also as what is sent over TCP.
pub fn dns(data: &[u8]) {
    let mut stream = data;
    while let dns::Front::Message(m) = dns::front(stream) {
        stream = stream.strip_prefix(&(m.len() as u16).to_be_bytes()).unwrap().strip_prefix(m).unwrap();
    }
    let Ok(q) = Message::from_vec(data) else { return };
    let search = dns::Search { namespace: "default", domain: "cluster.local", ipv6: true };
    let Some(mut answer) = dns::own_answer(&STATE, &search, &q) else { return };
    dns::rotate(&mut answer.answers, q.metadata.id.into());
    for tcp in [false, true] {
        let Some(bytes) = dns::encode(answer.clone(), &q, tcp) else { continue };
        assert!(tcp || bytes.len() <= karst_core::limits::DNS_MAX_UDP, "{} bytes over UDP", bytes.len());
        assert_eq!(Message::from_vec(&bytes).unwrap().metadata.id, q.metadata.id);
    }
}

/// What both ends of a connection say whose requests are counted in passing: a byte (its first bit: the server; the others: how
/// many bytes; none: that end is closed), then the bytes. However they are cut, the same is seen.
pub fn signals(data: &[u8]) {
    let whole = seen(data, usize::MAX, false);
    assert_eq!(seen(data, 1, false), whole);
    assert!(whole.0.len() <= data.len(), "a request has at least a byte");
    let mut heads = seen(data, usize::MAX, true);
    assert_eq!(seen(data, 1, true), heads);
    heads.0.iter_mut().for_each(|exchange| exchange.asked = None);
    assert_eq!(heads, whole, "who looks changes nothing");
}

/// What is seen of it in pieces of at most this size, with what requests ask for if so.
fn seen(mut data: &[u8], most: usize, heads: bool) -> (Vec<Exchange>, Option<Over>) {
    let (mut connection, now) = (karst_signals::Connection::new(false), || Duration::ZERO);
    connection.keep_heads(heads);
    while let Some((first, rest)) = data.split_first() {
        let (from_server, length) = (first & 0x80 != 0, usize::from(first & 0x7f));
        let (said, rest) = rest.split_at(length.min(rest.len()));
        match (length, from_server) {
            (0, false) => connection.client_ended(),
            (0, true) => connection.server_ended(&now),
            (_, false) => said.chunks(most).for_each(|piece| connection.client_sent(piece, &now)),
            (_, true) => said.chunks(most).for_each(|piece| connection.server_sent(piece, &now)),
        }
        data = rest;
    }
    let over = connection.over();
    connection.close(&now);
    (connection.take().collect(), over)
}

/// A packet of the node agent.
pub fn zds(data: &[u8]) {
    // Whatever it says: without descriptors no pod can be added.
    assert!(!matches!(inpod::request(data, Vec::new()), Ok(inpod::Request::Add(..))));
}

/// An xDS resource: an address if the first byte is even, else a policy.
pub fn xds(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    if kind % 2 == 0 {
        let mut s = Snapshot::new("");
        if s.put_address("x", bytes).is_ok() {
            let names: Vec<String> = s.workloads.keys().chain(s.services.keys()).map(ToString::to_string).collect();
            names.iter().for_each(|n| s.remove_address(n));
            assert!(s.workloads.is_empty() && s.services.is_empty() && s.by_ip.is_empty() && s.by_vip.is_empty());
            assert!(s.by_host.is_empty() && s.by_name.is_empty() && s.ranges.is_empty() && s.endpoints.is_empty());
        }
    } else if let Ok(p) = convert::policy(bytes) {
        let c = Connection {
            source_identity: None,
            source_ip: [10, 0, 0, 1].into(),
            destination_ip: [10, 0, 0, 2].into(),
            destination_port: 80,
        };
        // Something not understood never lets anybody in.
        let unknown = p.rules.iter().flat_map(|r| &r.clauses).flat_map(|c| &c.matches).any(|m| m.unknown);
        let verdict = authorize([&p].into_iter(), &c);
        let only = p.rules.len() == 1 && p.rules[0].clauses.len() == 1 && p.rules[0].clauses[0].matches.len() == 1;
        assert!(p.dry_run || !(unknown && only && verdict.is_allow()), "{p:?}");
    }
}

/// What forbids a CONNECT, or captured plaintext (`identity`: None), at one of a ztunnel's pods: the policy (empty: no ALLOW policy
/// matches), or why it is refused otherwise. None: it is let in. For the tests of `crates/explain`.
pub fn forbids(
    state: &Snapshot,
    own: &OwnPod<'_>,
    (identity, from): (Option<karst_core::Identity>, std::net::IpAddr),
    to: SocketAddr,
) -> Option<String> {
    if identity.is_some() {
        let request = http::Request::connect(to.to_string()).body(()).unwrap();
        let at = SocketAddr::new(to.ip(), OWN_PORTS[0]);
        match inbound::target(state, own, &request, at) {
            Ok((target, _)) => assert_eq!(target, to, "a CONNECT to the pod's own address"),
            Err(outcome) => return Some(outcome.text().unwrap_or_default()),
        }
    }
    inbound::forbids(state, own, identity, from, to)
}
