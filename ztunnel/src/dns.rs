//! DNS proxy. Queries that the redirection captured come with the address they were sent to. Names of the mesh are
//! answered here; everything else goes, from the pod's own namespace, to the resolver that the application asked, so the
//! pod's own resolv.conf counts. Answers leave from the address that was asked.
//!
//! The pod's search rules: a name that ends in one of the cluster's suffixes, or is a short form (`svc`, `svc.ns`) and
//! arrives expanded by the resolver's search list, is found by its full name; a short form that arrives unexpanded is
//! expanded with the client's namespace.

use crate::{
    inpod::LocalPod,
    state::{Service, Snapshot},
    worker::Shared,
};
use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};
use karst_core::limits::{DNS_MAX_PENDING, DNS_MAX_UDP, DNS_TIMEOUT};
use karst_proxy::endpoints::serving;
use karst_rt::socket;
use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};

/// Seconds that an answer may be kept (Istio: 30).
const TTL: u32 = 30;
/// Largest UDP answer to a client that announces no EDNS (RFC 1035 §4.2.1).
const PLAIN_UDP: usize = 512;

/// Orders for the proxy.
pub enum Order {
    /// Serve a pod's queries.
    Add(Arc<LocalPod>, UdpSocket),
    /// Stop.
    Del(String),
}

/// Serves the node's pods.
pub async fn run(mut orders: mpsc::Receiver<Order>, shared: Arc<Shared>) {
    let mut running: HashMap<String, AbortHandle> = HashMap::new();
    while let Some(o) = orders.recv().await {
        match o {
            Order::Add(pod, s) => {
                let uid = pod.uid.clone();
                match socket::OrigDst::new(s) {
                    Ok(s) => {
                        let task = tokio::task::spawn_local(serve(Rc::new(s), pod, shared.clone()));
                        if let Some(old) = running.insert(uid, task.abort_handle()) {
                            old.abort();
                        }
                    }
                    Err(e) => tracing::warn!(pod = pod.key, error = %e, "DNS of the pod cannot be served"),
                }
            }
            Order::Del(uid) => {
                if let Some(t) = running.remove(&uid) {
                    t.abort();
                }
            }
        }
    }
}

async fn serve(s: Rc<socket::OrigDst>, pod: Arc<LocalPod>, shared: Arc<Shared>) {
    let pending = Rc::new(Cell::new(0));
    shared.configured().await;
    loop {
        let (data, from, to) = match s.recv(DNS_MAX_UDP).await {
            Ok(x) => x,
            Err(e) => {
                tracing::debug!(pod = pod.key, error = %e, "DNS receive");
                tokio::time::sleep(karst_core::limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        if pending.get() >= DNS_MAX_PENDING {
            continue;
        }
        pending.set(pending.get() + 1);
        let (pod, shared, pending) = (pod.clone(), shared.clone(), pending.clone());
        tokio::task::spawn_local(async move {
            if let Some(answer) = resolve(&shared, &pod, &data, to, false).await {
                let send = || socket::udp_from(to).and_then(|s| s.send_to(&answer, &from.into()));
                let sent = match &pod.origin.netns {
                    Some(n) => n.run(send).and_then(|r| r),
                    None => send(),
                };
                match sent {
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                        tracing::warn!(pod = pod.key, error = %e, "DNS answer cannot be sent: CAP_NET_BIND_SERVICE is needed");
                    }
                    Err(e) => tracing::debug!(pod = pod.key, error = %e, "DNS answer"),
                    Ok(_) => {}
                }
            }
            pending.set(pending.get() - 1);
        });
    }
}

/// Serves DNS over a captured TCP connection (RFC 7766: several queries may follow each other).
pub async fn serve_tcp(shared: &Arc<Shared>, pod: &LocalPod, mut s: TcpStream, to: SocketAddr) -> io::Result<()> {
    loop {
        let len = match timeout(DNS_TIMEOUT * 2, s.read_u16()).await {
            Ok(Ok(n)) => usize::from(n),
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(e)) => return Err(e),
            Err(_) => return Ok(()),
        };
        let mut data = vec![0; len];
        timeout(DNS_TIMEOUT, s.read_exact(&mut data)).await??;
        let Some(answer) = resolve(shared, pod, &data, to, true).await else { return Ok(()) };
        let len = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        s.write_all(&[&len.to_be_bytes()[..], &answer].concat()).await?;
    }
}

/// The answer to a query; None: there is none to give.
async fn resolve(shared: &Shared, pod: &LocalPod, data: &[u8], to: SocketAddr, tcp: bool) -> Option<Vec<u8>> {
    shared.metrics.dns_requests.fetch_add(1, Relaxed);
    let query = Message::from_vec(data).ok();
    if let Some(q) = &query {
        let s = shared.state.borrow().clone();
        let search =
            Search { namespace: &pod.namespace, domain: &shared.config.cluster_domain, ipv6: shared.config.ipv6 };
        if let Some(answer) = own_answer(&s, &search, q) {
            return encode(answer, q, tcp);
        }
    }
    // Not ours, or not even DNS: the resolver that was asked may know.
    shared.metrics.dns_upstream.fetch_add(1, Relaxed);
    let answer = timeout(DNS_TIMEOUT, forward(pod, data, to, tcp)).await;
    match answer {
        Ok(Ok(a)) => Some(a),
        failed @ (Ok(Err(_)) | Err(_)) => {
            tracing::debug!(pod = pod.key, resolver = %to, error = ?failed.map(|r| r.err()), "DNS upstream");
            shared.metrics.dns_upstream_failures.fetch_add(1, Relaxed);
            let q = query?;
            let mut r = reply(&q);
            r.metadata.response_code = ResponseCode::ServFail;
            encode(r, &q, tcp)
        }
    }
}

async fn forward(pod: &LocalPod, data: &[u8], to: SocketAddr, tcp: bool) -> io::Result<Vec<u8>> {
    if tcp {
        let mut s = pod.origin.connect(to, DNS_TIMEOUT).await?;
        let len = u16::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        s.write_all(&[&len.to_be_bytes()[..], data].concat()).await?;
        let n = s.read_u16().await?;
        let mut out = vec![0; usize::from(n)];
        s.read_exact(&mut out).await?;
        return Ok(out);
    }
    let s = pod.origin.udp(to)?;
    let s = tokio::net::UdpSocket::from_std(s.into())?;
    s.connect(to).await?;
    s.send(data).await?;
    let mut out = vec![0; DNS_MAX_UDP];
    loop {
        let n = s.recv(&mut out).await?;
        // An answer to this query, not to another (the id is the application's own).
        if out.get(..2) == data.get(..2) {
            out.truncate(n);
            return Ok(out);
        }
    }
}

/// The client's side of a question.
pub struct Search<'a> {
    pub namespace: &'a str,
    pub domain: &'a str,
    pub ipv6: bool,
}

fn reply(q: &Message) -> Message {
    let mut r = Message::new(q.metadata.id, MessageType::Response, q.metadata.op_code);
    r.metadata.recursion_desired = q.metadata.recursion_desired;
    r.metadata.recursion_available = true;
    for x in &q.queries {
        r.add_query(x.clone());
    }
    r
}

/// An answer from what the mesh knows; None if it is not ours to answer.
pub fn own_answer(s: &Snapshot, search: &Search<'_>, q: &Message) -> Option<Message> {
    if q.metadata.message_type != MessageType::Query || q.metadata.op_code != OpCode::Query || q.queries.len() != 1 {
        return None;
    }
    let x = q.queries.first()?;
    let want = x.query_type();
    if !matches!(want, RecordType::A | RecordType::AAAA) {
        return None;
    }
    let asked = x.name().to_string().trim_end_matches('.').to_ascii_lowercase();
    let (host, ips) = lookup(s, search, &asked)?;
    let mut r = reply(q);
    r.metadata.authoritative = false;
    let mut owner = x.name().clone();
    if host != asked && !host.starts_with('*') {
        let real = Name::from_utf8(format!("{host}.")).ok()?;
        r.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(real.clone()))));
        owner = real;
    }
    for ip in ips {
        match (ip, want) {
            (IpAddr::V4(a), RecordType::A) => r.add_answer(Record::from_rdata(owner.clone(), TTL, RData::A(A(a)))),
            (IpAddr::V6(a), RecordType::AAAA) if search.ipv6 => {
                r.add_answer(Record::from_rdata(owner.clone(), TTL, RData::AAAA(AAAA(a))))
            }
            _ => continue,
        };
    }
    // Known, but without a record of this family: an empty answer, not NXDOMAIN.
    Some(r)
}

/// The host name under which a question is known, and its addresses.
fn lookup(s: &Snapshot, search: &Search<'_>, asked: &str) -> Option<(String, Vec<IpAddr>)> {
    let Search { namespace, domain, .. } = search;
    let mut names = vec![asked.to_string()];
    let labels = asked.split('.').count();
    match labels {
        1 => names.push(format!("{asked}.{namespace}.svc.{domain}")),
        2 => names.push(format!("{asked}.svc.{domain}")),
        _ if asked.ends_with(".svc") => names.push(format!("{asked}.{domain}")),
        _ => {}
    }
    // What the resolver's search list has appended to a name of ours, such as api.example.com.ns.svc.cluster.local.
    for suffix in [format!(".{namespace}.svc.{domain}"), format!(".svc.{domain}"), format!(".{domain}")] {
        if let Some(short) = asked.strip_suffix(suffix.as_str()) {
            names.push(short.to_string());
        }
    }
    for n in &names {
        if let Some(svc) = s.host(n, namespace) {
            return addresses(s, svc).map(|ips| (n.clone(), ips));
        }
    }
    // Wildcards, the most specific first.
    let mut rest = asked;
    while let Some((_, tail)) = rest.split_once('.') {
        if let Some(svc) = s.host(&format!("*.{tail}"), namespace) {
            return addresses(s, svc).map(|ips| (format!("*.{tail}"), ips));
        }
        rest = tail;
    }
    None
}

/// VIPs, or the endpoints of a headless service. None: a service without any address (resolution NONE), which only the
/// outside can resolve.
fn addresses(s: &Snapshot, svc: &Service) -> Option<Vec<IpAddr>> {
    if !svc.vips.is_empty() {
        return Some(svc.vips.clone());
    }
    s.endpoints.get(&svc.key)?;
    let ips: Vec<IpAddr> = serving(s, svc).into_iter().flat_map(|w| w.ips.iter().copied()).collect();
    (!ips.is_empty() || svc.canonical).then_some(ips)
}

/// The bytes; over UDP, what is too long for the client is cut and marked so (TC), so that it asks again over TCP.
pub fn encode(mut m: Message, q: &Message, tcp: bool) -> Option<Vec<u8>> {
    let limit = match (tcp, &q.edns) {
        (true, _) => usize::from(u16::MAX),
        (false, Some(e)) => usize::from(e.max_payload()).clamp(PLAIN_UDP, DNS_MAX_UDP),
        (false, None) => PLAIN_UDP,
    };
    let bytes = m.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    m.answers.clear();
    m.metadata.truncation = true;
    m.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use karst_proxy::testing::{pod, service, snapshot};

    fn ask(s: &Snapshot, name: &str, kind: RecordType) -> Option<Vec<String>> {
        let mut q = Message::new(7, MessageType::Query, OpCode::Query);
        q.add_query(Query::query(Name::from_utf8(name).unwrap(), kind));
        let search = Search { namespace: "ns", domain: "cluster.local", ipv6: true };
        own_answer(s, &search, &q).map(|m| m.answers.iter().map(|r| format!("{}", r.data)).collect())
    }

    #[test]
    fn names_of_the_mesh() {
        let mut headless = service("h", "10.0.0.0", &[(80, 80)]);
        headless.addresses.clear();
        headless.canonical = true;
        let mut ext = service("e", "240.240.0.1", &[(80, 80)]);
        ext.hostname = "api.example.com".into();
        let mut wild = service("w", "240.240.0.2", &[(80, 80)]);
        wild.hostname = "*.wild.example".into();
        let s = snapshot(
            vec![pod("a", "10.0.0.1", &[("ns/h.ns.svc.cluster.local", &[(80, 80)])])],
            vec![service("s", "10.96.0.1", &[(80, 80)]), headless, ext, wild],
        );
        let a = RecordType::A;
        for (name, want) in [
            ("s.ns.svc.cluster.local.", Some(vec!["10.96.0.1"])),
            ("S.ns.svc.cluster.LOCAL.", Some(vec!["10.96.0.1"])),
            ("s.", Some(vec!["s.ns.svc.cluster.local.", "10.96.0.1"])),
            ("s.ns.", Some(vec!["s.ns.svc.cluster.local.", "10.96.0.1"])),
            ("s.ns.svc.", Some(vec!["s.ns.svc.cluster.local.", "10.96.0.1"])),
            ("h.ns.svc.cluster.local.", Some(vec!["10.0.0.1"])),
            ("api.example.com.", Some(vec!["240.240.0.1"])),
            ("api.example.com.ns.svc.cluster.local.", Some(vec!["api.example.com.", "240.240.0.1"])),
            ("x.wild.example.", Some(vec!["240.240.0.2"])),
            ("unknown.ns.svc.cluster.local.", None),
            ("example.org.", None),
        ] {
            assert_eq!(ask(&s, name, a), want.map(|v| v.into_iter().map(String::from).collect()), "{name}");
        }
        assert_eq!(ask(&s, "s.ns.svc.cluster.local.", RecordType::AAAA), Some(vec![]), "known, but not in this family");
        assert_eq!(ask(&s, "s.ns.svc.cluster.local.", RecordType::SRV), None);
    }

    #[test]
    fn both_families_of_an_entry_and_endpoints_that_end() {
        let mut ext = service("e", "240.240.0.1", &[(80, 80)]);
        ext.hostname = "api.example.com".into();
        let ip: IpAddr = "2001:2::7".parse().unwrap();
        ext.addresses.push(karst_api::workload::NetworkAddress {
            address: karst_core::addr::ip_to_bytes(ip),
            ..Default::default()
        });
        let mut headless = service("h", "10.0.0.0", &[(80, 80)]);
        headless.addresses.clear();
        headless.canonical = true;
        let key = "ns/h.ns.svc.cluster.local";
        let end = |name: &str, ip: &str, status: i32, draining: bool| {
            let mut w = pod(name, ip, &[(key, &[(80, 80)])]);
            w.status = status;
            w.extensions.extend(draining.then(karst_api::draining));
            w
        };
        let world = |b: i32| {
            let pods = vec![end("a", "10.0.0.1", 1, true), end("b", "10.0.0.2", b, false)];
            snapshot(pods, vec![ext.clone(), headless.clone()])
        };
        let (a, aaaa) = (RecordType::A, RecordType::AAAA);
        let of = |s: &Snapshot, name: &str, kind| ask(s, name, kind).unwrap();
        assert_eq!(of(&world(0), "api.example.com.", a), ["240.240.0.1"]);
        assert_eq!(of(&world(0), "api.example.com.", aaaa), ["2001:2::7"]);
        assert_eq!(of(&world(0), "h.ns.svc.cluster.local.", a), ["10.0.0.2"]);
        assert_eq!(of(&world(1), "h.ns.svc.cluster.local.", a), ["10.0.0.1"], "it serves until it ends");
    }

    #[test]
    fn long_answers_are_cut_and_marked() {
        let mut q = Message::new(7, MessageType::Query, OpCode::Query);
        q.add_query(Query::query(Name::from_utf8("x.").unwrap(), RecordType::A));
        let mut r = reply(&q);
        for i in 0..100u8 {
            r.add_answer(Record::from_rdata(Name::from_utf8("x.").unwrap(), TTL, RData::A(A([10, 0, 0, i].into()))));
        }
        let short = Message::from_vec(&encode(r.clone(), &q, false).unwrap()).unwrap();
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(Message::from_vec(&encode(r, &q, true).unwrap()).unwrap().answers.len(), 100);
    }
}
