//! DNS proxy. Queries that the redirection captured come with the address they were sent to. Names of the mesh are
//! answered here; everything else goes to the resolver that the application asked, so the pod's own resolv.conf counts.
//! Over UDP, which the mesh does not carry, it goes from the pod's own namespace, and answers leave from the address that was
//! asked. Over TCP ([`preamble`]) the first message that is not ours ends our part: the connection is then one as any other,
//! and its bytes are joined to the resolver's by the plan (`outbound`).
//!
//! The pod's search rules: a name that ends in one of the cluster's suffixes, or is a short form (`svc`, `svc.ns`) and
//! arrives expanded by the resolver's search list, is found by its full name; a short form that arrives unexpanded is
//! expanded with the client's namespace.

use crate::{
    inpod::LocalPod,
    listeners::started,
    queries::Queries,
    state::{self, Service, Snapshot},
    worker::Shared,
};
use bytes::{Buf, Bytes, BytesMut};
use hickory_proto::{
    op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode, emit_message_parts},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
    serialize::binary::BinEncoder,
};
use karst_core::limits::{DEMAND_DNS, DNS_MAX_PENDING, DNS_MAX_UDP, DNS_TIMEOUT};
use karst_proxy::endpoints::serving;
use std::{
    cell::Cell,
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};

/// Seconds that an answer may be kept (Istio: 30).
const TTL: u32 = 30;
/// Largest UDP answer to a client that announces no EDNS (RFC 1035 §4.2.1).
const PLAIN_UDP: u16 = 512;
/// An OPT record without options (RFC 6891 §6.1.2).
const OPT_LEN: u16 = 11;
/// Over TCP, each message comes after its length (RFC 1035 §4.2.2).
const LENGTH: usize = 2;
/// A message's header: id, flags, the number of questions, and three more numbers.
const HEADER: usize = 12;
/// How long a client may take over TCP; see [`Patience`].
const PATIENCE: Patience = Patience { first: DNS_TIMEOUT, next: DNS_TIMEOUT.saturating_mul(2) };

/// Orders for the proxy.
pub enum Order {
    /// Serve a pod's queries.
    Add(Arc<LocalPod>, Vec<UdpSocket>),
    /// Stop.
    Del(String),
}

/// Serves the node's pods.
pub async fn run(mut orders: mpsc::Receiver<Order>, shared: Arc<Shared>) {
    let mut running: HashMap<String, Vec<AbortHandle>> = HashMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Add(pod, sockets) => {
                let mut tasks = Vec::new();
                for socket in sockets {
                    match Queries::new(socket, &pod, &shared) {
                        Ok(queries) => {
                            let task = tokio::task::spawn_local(serve(Rc::new(queries), pod.clone(), shared.clone()));
                            tasks.push(task.abort_handle());
                        }
                        Err(e) => tracing::warn!(pod = pod.key, error = %e, "DNS of the pod cannot be served"),
                    }
                }
                for old in running.insert(pod.uid.clone(), tasks).into_iter().flatten() {
                    old.abort();
                }
            }
            Order::Del(uid) => {
                for task in running.remove(&uid).into_iter().flatten() {
                    task.abort();
                }
            }
        }
    }
}

async fn serve(queries: Rc<Queries>, pod: Arc<LocalPod>, shared: Arc<Shared>) {
    let pending = Rc::new(Cell::new(0));
    shared.configured().await;
    started(&pod.key, "DNS over UDP (port 15053)", || queries.start()).await;
    loop {
        let (data, from, to) = match queries.recv().await {
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
        let (pod, shared, pending, queries) = (pod.clone(), shared.clone(), pending.clone(), queries.clone());
        tokio::task::spawn_local(async move {
            if let Some(answer) = resolve(&shared, &pod, &data, to).await {
                match queries.send(&pod, &answer, from, to).await {
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                        tracing::warn!(pod = pod.key, error = %e, "DNS answer cannot be sent: CAP_NET_BIND_SERVICE is needed");
                    }
                    Err(e) => tracing::debug!(pod = pod.key, error = %e, "DNS answer"),
                    Ok(()) => {}
                }
            }
            pending.set(pending.get() - 1);
        });
    }
}

/// How a TCP connection to port 53 goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Preamble {
    /// The client has its answers and is done, or is gone.
    Answered,
    /// It is not for us, or not any more: whom the client called gets these bytes first, then all that follows.
    Forward(Bytes),
}

/// The start of a captured TCP connection to port 53: what is ours to answer is answered on it (RFC 7766: several messages may
/// follow each other).
pub async fn preamble(shared: &Shared, pod: &LocalPod, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Preamble {
    let answer = async |data: &[u8]| {
        shared.metrics.dns_requests.fetch_add(1, Relaxed);
        let answer = match Message::from_vec(data) {
            Ok(query) => own(shared, pod, &query, true).await,
            Err(_) => None,
        };
        if answer.is_none() {
            shared.metrics.dns_upstream.fetch_add(1, Relaxed);
        }
        answer
    };
    converse(stream, PATIENCE, answer).await.unwrap_or_else(|e| {
        tracing::debug!(pod = pod.key, error = %e, "DNS over TCP");
        Preamble::Answered
    })
}

/// How long a client may take.
#[derive(Clone, Copy)]
struct Patience {
    /// For its first message. Who says nothing before the other side does is no client of DNS, and is connected.
    first: Duration,
    /// For a further message, or to take an answer. Then the connection is closed.
    next: Duration,
}

/// Answers messages until there is one that `answer` has no answer to. Holds one message at most.
async fn converse(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    patience: Patience,
    answer: impl AsyncFn(&[u8]) -> Option<Vec<u8>>,
) -> io::Result<Preamble> {
    let mut buf = BytesMut::new();
    let mut answered = false;
    loop {
        let deadline = Instant::now() + if answered { patience.next } else { patience.first };
        let reply = loop {
            match front(&buf) {
                Front::Message(m) => {
                    let used = LENGTH + m.len();
                    let Some(reply) = answer(m).await else { return Ok(Preamble::Forward(buf.freeze())) };
                    buf.advance(used);
                    break reply;
                }
                Front::Foreign => return Ok(Preamble::Forward(buf.freeze())),
                Front::Partial => {}
            }
            buf.reserve((LENGTH + DNS_MAX_UDP).saturating_sub(buf.len()));
            let read = timeout_at(deadline, stream.read_buf(&mut buf)).await;
            let silent = read.is_err();
            if read.unwrap_or(Ok(0))? > 0 {
                continue;
            }
            let done = buf.is_empty() && (answered || !silent);
            return Ok(if done { Preamble::Answered } else { Preamble::Forward(buf.freeze()) });
        };
        let len = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        timeout(patience.next, stream.write_all(&[&len.to_be_bytes()[..], &reply].concat())).await??;
        answered = true;
    }
}

/// What a TCP stream begins with.
#[derive(Debug, PartialEq, Eq)]
pub enum Front<'a> {
    /// A message that may be a question for us, and is not complete.
    Partial,
    /// A message that may be a question for us.
    Message(&'a [u8]),
    /// Something that is no question for us, whatever follows.
    Foreign,
}

/// Looks at the beginning of a TCP stream. What is told apart early need not be held.
pub fn front(b: &[u8]) -> Front<'_> {
    let Some((len, rest)) = b.split_first_chunk::<LENGTH>() else { return Front::Partial };
    let len = usize::from(u16::from_be_bytes(*len));
    // A standard query (RFC 1035 §4.1.1) with one question.
    let query = rest.get(2).is_none_or(|flags| flags & 0xf8 == 0);
    let one = rest.get(4..6).is_none_or(|n| n == [0, 1]);
    if !(HEADER..=DNS_MAX_UDP).contains(&len) || !query || !one {
        return Front::Foreign;
    }
    rest.get(..len).map_or(Front::Partial, Front::Message)
}

/// The bytes of our own answer; None: it is not ours to answer. Where only what is asked for is told, it is asked first; as long as
/// that is not answered, the outside is not asked, either: what it says of a name of the mesh would be believed.
async fn own(shared: &Shared, pod: &LocalPod, query: &Message, tcp: bool) -> Option<Vec<u8>> {
    let search =
        Search { namespace: &pod.namespace, domain: &shared.config.place.cluster_domain, ipv6: shared.config.ipv6 };
    let until = Instant::now() + DEMAND_DNS;
    let snapshot = loop {
        let snapshot = shared.state.borrow().clone();
        let names = untold(&snapshot, &search, query);
        if names.is_empty() {
            break snapshot;
        }
        if !shared.ask(pod, names, until).await {
            tracing::debug!(
                pod = pod.key,
                "DNS: the controller has not said in time whether the name is one of the mesh"
            );
            return encode(failure(query), query, tcp);
        }
    };
    let mut message = own_answer(&snapshot, &search, query)?;
    rotate(&mut message.answers, rand::random());
    encode(message, query, tcp)
}

/// That there is no answer now.
fn failure(query: &Message) -> Message {
    let mut reply = reply(query);
    reply.metadata.response_code = ResponseCode::ServFail;
    reply
}

/// The answer to a query that came by UDP; None: there is none to give.
async fn resolve(shared: &Shared, pod: &LocalPod, data: &[u8], to: Option<SocketAddr>) -> Option<Vec<u8>> {
    shared.metrics.dns_requests.fetch_add(1, Relaxed);
    let query = Message::from_vec(data).ok();
    if let Some(query) = &query
        && let Some(answer) = own(shared, pod, query, false).await
    {
        return Some(answer);
    }
    // Not ours, or not even DNS: the resolver that was asked may know.
    shared.metrics.dns_upstream.fetch_add(1, Relaxed);
    let ask = async {
        match to {
            Some(resolver) => forward(pod, data, resolver).await,
            None => Err(io::Error::other("resolv.conf of ztunnel names no resolver")),
        }
    };
    match timeout(DNS_TIMEOUT, ask).await {
        Ok(Ok(a)) => Some(a),
        failed @ (Ok(Err(_)) | Err(_)) => {
            tracing::debug!(pod = pod.key, resolver = ?to, error = ?failed.map(|r| r.err()), "DNS upstream");
            shared.metrics.dns_upstream_failures.fetch_add(1, Relaxed);
            let query = query?;
            encode(failure(&query), &query, false)
        }
    }
}

/// Asks the resolver over UDP as the pod itself would without the mesh, which does not carry UDP (docs/hbone.md §9).
async fn forward(pod: &LocalPod, data: &[u8], to: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = pod.connector.udp(to)?;
    let socket = tokio::net::UdpSocket::from_std(socket.into())?;
    socket.send(data).await?;
    let mut out = vec![0; DNS_MAX_UDP];
    loop {
        let length = socket.recv(&mut out).await?;
        // An answer to this query, not to another (the id is the application's own).
        if out.get(..2) == data.get(..2) {
            out.truncate(length);
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

fn reply(query: &Message) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    for question in &query.queries {
        reply.add_query(question.clone());
    }
    if let Some(edns) = &query.edns {
        // Who announces EDNS is answered with it (RFC 6891 §6.1.1), DO as it came (RFC 3225 §3).
        let mut own = Edns::new();
        own.set_max_payload(DNS_MAX_UDP as u16).set_dnssec_ok(edns.flags().dnssec_ok);
        reply.set_edns(own);
    }
    reply
}

/// The question of a query that may be ours to answer, and the name in it.
fn question(query: &Message) -> Option<(&Query, String)> {
    let is_query = query.metadata.message_type == MessageType::Query && query.metadata.op_code == OpCode::Query;
    let question = query.queries.first().filter(|_| is_query && query.queries.len() == 1)?;
    let is_address = matches!(question.query_type(), RecordType::A | RecordType::AAAA);
    is_address.then(|| (question, question.name().to_string().trim_end_matches('.').to_ascii_lowercase()))
}

/// The names of hosts that an answer depends on, and of which is not told. (Wildcards are always told.)
fn untold(snapshot: &Snapshot, search: &Search<'_>, query: &Message) -> Vec<state::Name> {
    let Some((_, asked)) = snapshot.asked().and_then(|_| question(query)) else { return vec![] };
    let mut untold = vec![];
    for host in hosts(search, &asked) {
        let name = state::Name::Host(host.as_str().into());
        match snapshot.is_told(&name) {
            // The first that there is counts.
            true if snapshot.host(&host, search.namespace).is_some() => break,
            true => {}
            false => untold.push(name),
        }
    }
    untold
}

/// An answer from what the mesh knows; None if it is not ours to answer.
pub fn own_answer(snapshot: &Snapshot, search: &Search<'_>, query: &Message) -> Option<Message> {
    let (question, asked) = question(query)?;
    let want = question.query_type();
    let (host, ips) = lookup(snapshot, search, &asked)?;
    let mut reply = reply(query);
    reply.metadata.authoritative = false;
    let mut owner = question.name().clone();
    if host != asked && !host.starts_with('*') {
        let real = Name::from_utf8(format!("{host}.")).ok()?;
        reply.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(real.clone()))));
        owner = real;
    }
    for ip in ips {
        match (ip, want) {
            (IpAddr::V4(a), RecordType::A) => reply.add_answer(Record::from_rdata(owner.clone(), TTL, RData::A(A(a)))),
            (IpAddr::V6(a), RecordType::AAAA) if search.ipv6 => {
                reply.add_answer(Record::from_rdata(owner.clone(), TTL, RData::AAAA(AAAA(a))))
            }
            _ => continue,
        };
    }
    // Known, but without a record of this family: an empty answer, not NXDOMAIN.
    Some(reply)
}

/// The host names that may be meant by a name, in the order in which they count.
fn hosts(search: &Search<'_>, asked: &str) -> Vec<String> {
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
    names
}

/// The host name under which a question is known, and its addresses.
fn lookup(snapshot: &Snapshot, search: &Search<'_>, asked: &str) -> Option<(String, Vec<IpAddr>)> {
    let namespace = search.namespace;
    for name in hosts(search, asked) {
        if let Some(svc) = snapshot.host(&name, namespace) {
            return addresses(snapshot, svc).map(|ips| (name, ips));
        }
    }
    // Wildcards, the most specific first.
    let mut rest = asked;
    while let Some((_, tail)) = rest.split_once('.') {
        if let Some(svc) = snapshot.host(&format!("*.{tail}"), namespace) {
            return addresses(snapshot, svc).map(|ips| (format!("*.{tail}"), ips));
        }
        rest = tail;
    }
    None
}

/// VIPs, or the endpoints of a headless service. None: a service without any address (resolution NONE), which only the
/// outside can resolve.
fn addresses(snapshot: &Snapshot, svc: &Service) -> Option<Vec<IpAddr>> {
    if !svc.vips.is_empty() {
        return Some(svc.vips.clone());
    }
    snapshot.endpoints.get(&svc.key)?;
    let ips: Vec<IpAddr> = serving(snapshot, svc).into_iter().flat_map(|w| w.ips.iter().copied()).collect();
    (!ips.is_empty() || svc.canonical).then_some(ips)
}

/// Begins the addresses of an answer with another one each time (RFC 1794): for clients that take the first, and so that not
/// always the same ones are left out of a short answer. A CNAME stays first.
pub fn rotate(answers: &mut [Record], turn: u32) {
    let at = answers.iter().position(|r| r.record_type() != RecordType::CNAME).unwrap_or(answers.len());
    let (_, addresses) = answers.split_at_mut(at);
    if let Some(by) = (turn as usize).checked_rem(addresses.len()) {
        addresses.rotate_left(by);
    }
}

/// The bytes. An answer that is too long for the client holds what fits and is marked so (TC; RFC 2181 §9): over UDP the client
/// asks again over TCP, and what it can use meanwhile is there.
pub fn encode(mut message: Message, query: &Message, tcp: bool) -> Option<Vec<u8>> {
    let limit = match (tcp, &query.edns) {
        (true, _) => u16::MAX,
        (false, Some(e)) => e.max_payload().clamp(PLAIN_UDP, DNS_MAX_UDP as u16),
        (false, None) => PLAIN_UDP,
    };
    let (bytes, header) = emit(&message, limit)?;
    if !header.metadata.truncation {
        return Some(bytes);
    }
    // The OPT record comes last and must not be what is left out.
    let edns = message.edns.take();
    let (_, header) = emit(&message, limit - if edns.is_some() { OPT_LEN } else { 0 })?;
    message.edns = edns;
    message.answers.truncate(usize::from(header.counts.answers));
    message.metadata.truncation = true;
    emit(&message, limit).map(|(bytes, _)| bytes)
}

/// At most `limit` bytes of a message, with as many records as fit, and the header that says so.
fn emit(message: &Message, limit: u16) -> Option<(Vec<u8>, Header)> {
    let mut bytes = Vec::with_capacity(usize::from(PLAIN_UDP));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    let (queries, answers) = (&mut message.queries.iter(), &mut message.answers.iter());
    let (authorities, additionals) = (&mut message.authorities.iter(), &mut message.additionals.iter());
    let edns = message.edns.as_ref();
    let header =
        emit_message_parts(&message.metadata, queries, answers, authorities, additionals, edns, None, &mut encoder)
            .ok()?;
    // A record that did not fit may have left a part of itself behind.
    let end = encoder.offset();
    bytes.truncate(end);
    Some((bytes, header))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// Each name that could be meant, in turn: what stands behind one that is known does not count.
    #[test]
    fn names_that_are_not_told_are_asked_for_first() {
        use karst_proxy::state::{Mark, Name as Asked, Pages};
        let pages = Pages::default();
        let search = Search { namespace: "ns", domain: "cluster.local", ipv6: true };
        let known = snapshot(vec![], vec![service("s", "10.96.0.1", &[(80, 80)])]);
        let untold = |s: &Snapshot, name: &str| untold(s, &search, &query(name, RecordType::A));
        assert!(untold(&known, "api.example.com.").is_empty(), "all is told");
        let mut some = known.on_demand(pages.clone());
        let host = |name: &str| Asked::Host(name.into());
        let full = "s.ns.svc.cluster.local";
        assert_eq!(untold(&some, "s."), [host("s"), host(full)]);
        let long = "api.example.com.ns.svc.cluster.local.";
        let all = [long.trim_end_matches('.'), "api.example.com", "api.example.com.ns", "api.example.com.ns.svc"];
        assert_eq!(untold(&some, long), all.map(host));
        some.put_name(host(full), Mark::new(&pages));
        assert!(untold(&some, "s.ns.svc.cluster.local.").is_empty());
        assert_eq!(untold(&some, "s."), [host("s")]);
        let other = super::untold(&some, &search, &query("s.", RecordType::SRV));
        assert!(other.is_empty(), "it is not ours to answer");
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

    fn query(name: &str, kind: RecordType) -> Message {
        let mut q = Message::new(7, MessageType::Query, OpCode::Query);
        q.add_query(Query::query(Name::from_utf8(name).unwrap(), kind));
        q
    }

    /// A CNAME and that many addresses.
    fn long(q: &Message, addresses: u8) -> Message {
        let mut r = reply(q);
        let (asked, real) = (Name::from_utf8("x.").unwrap(), Name::from_utf8("x.ns.svc.cluster.local.").unwrap());
        r.add_answer(Record::from_rdata(asked, TTL, RData::CNAME(CNAME(real.clone()))));
        for i in 0..addresses {
            r.add_answer(Record::from_rdata(real.clone(), TTL, RData::A(A([10, 0, 0, i].into()))));
        }
        r
    }

    #[test]
    fn long_answers_hold_what_fits_and_are_marked() {
        let plain = query("x.", RecordType::A);
        let mut edns = plain.clone();
        edns.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(1232).set_dnssec_ok(true);
        let mut greedy = plain.clone();
        greedy.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(u16::MAX);
        for (q, limit) in [(&plain, 512), (&edns, 1232), (&greedy, 4096)] {
            let bytes = encode(long(q, 255), q, false).unwrap();
            let m = Message::from_vec(&bytes).unwrap();
            // A record has 16 bytes, or 38 where the library stops to compress names.
            assert!(bytes.len() <= limit && bytes.len() + 40 > limit, "{} bytes of {limit}", bytes.len());
            assert_eq!(m.metadata.truncation, m.answers.len() < 256);
            assert_eq!(m.answers[0].record_type(), RecordType::CNAME);
            assert_eq!(m.answers[1..], long(q, 255).answers[1..m.answers.len()]);
            let own = m.edns.as_ref().map(|e| (e.max_payload(), e.flags().dnssec_ok));
            assert_eq!(own, q.edns.as_ref().map(|e| (4096, e.flags().dnssec_ok)));
        }
        let whole = Message::from_vec(&encode(long(&plain, 255), &plain, true).unwrap()).unwrap();
        assert!(!whole.metadata.truncation && whole.answers.len() == 256);
    }

    #[test]
    fn answers_begin_with_another_address_each_time() {
        let m = long(&query("x.", RecordType::A), 3);
        let turned = |turn| {
            let mut m = m.clone();
            rotate(&mut m.answers, turn);
            m.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>()
        };
        let name = "x.ns.svc.cluster.local.";
        assert_eq!(turned(0), [name, "10.0.0.0", "10.0.0.1", "10.0.0.2"]);
        assert_eq!(turned(1), [name, "10.0.0.1", "10.0.0.2", "10.0.0.0"]);
        assert_eq!(turned(5), [name, "10.0.0.2", "10.0.0.0", "10.0.0.1"]);
        rotate(&mut [], 1);
    }

    // tokio's paused clock needs its feature test-util, with which everything would be built twice: short times instead.
    const SHORT: Patience = Patience { first: Duration::from_millis(30), next: Duration::from_millis(60) };
    const LONG: Patience = Patience { first: Duration::from_secs(3600), next: Duration::from_secs(3600) };

    fn framed(m: &Message) -> Vec<u8> {
        let m = m.to_vec().unwrap();
        [&(m.len() as u16).to_be_bytes()[..], &m].concat()
    }
    fn ours() -> Vec<u8> {
        framed(&query("s.ns.svc.cluster.local.", RecordType::A))
    }
    /// What the mesh with a service `s` answers.
    async fn answer(m: &[u8]) -> Option<Vec<u8>> {
        let s = snapshot(vec![], vec![service("s", "10.96.0.1", &[(80, 80)])]);
        let search = Search { namespace: "ns", domain: "cluster.local", ipv6: true };
        let q = Message::from_vec(m).ok()?;
        encode(own_answer(&s, &search, &q)?, &q, true)
    }
    /// How many answers these bytes are.
    fn answers(mut b: &[u8]) -> usize {
        let mut n = 0;
        while let Some((len, rest)) = b.split_first_chunk::<2>() {
            let (m, next) = rest.split_at(usize::from(u16::from_be_bytes(*len)));
            assert_eq!(Message::from_vec(m).unwrap().answers.len(), 1);
            (b, n) = (next, n + 1);
        }
        n
    }

    #[tokio::test]
    async fn the_first_message_that_is_not_ours_and_all_after_it_are_handed_over() {
        let (mut client, mut here) = tokio::io::duplex(1 << 16);
        let transfer = framed(&query("zone.example.", RecordType::AXFR));
        let rest = [transfer, ours(), vec![7; 9000]].concat();
        client.write_all(&[ours(), ours(), rest.clone()].concat()).await.unwrap();
        client.shutdown().await.unwrap();
        let p = converse(&mut here, LONG, answer).await.unwrap();
        let Preamble::Forward(first) = p else { unreachable!("{p:?}") };
        assert!(first.len() <= LENGTH + DNS_MAX_UDP, "{} bytes are held", first.len());
        let mut all = first.to_vec();
        here.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, rest);
        drop(here);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(answers(&got), 2);
    }

    #[tokio::test]
    async fn messages_may_come_in_pieces() {
        let (mut client, mut here) = tokio::io::duplex(1 << 16);
        let pieces = async {
            for b in [ours(), ours()].concat() {
                client.write_all(&[b]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client.shutdown().await.unwrap();
        };
        let (p, ()) = tokio::join!(converse(&mut here, LONG, answer), pieces);
        assert_eq!(p.unwrap(), Preamble::Answered);
        drop(here);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(answers(&got), 2);
    }

    #[tokio::test]
    async fn what_is_not_dns_is_handed_over_at_once() {
        let mut response = query("s.", RecordType::A);
        response.metadata.message_type = MessageType::Response;
        let mut two = query("s.", RecordType::A);
        two.add_query(Query::query(Name::from_utf8("s.").unwrap(), RecordType::AAAA));
        let update = Message::new(7, MessageType::Query, OpCode::Update);
        for said in [
            b"SSH-2.0-x".to_vec(),
            b"GET / HTTP/1.1".to_vec(),
            vec![0x16, 3, 1, 2, 0],
            vec![0, 0],
            framed(&response),
            framed(&two)[..8].to_vec(),
            framed(&update)[..8].to_vec(),
        ] {
            let (mut client, mut here) = tokio::io::duplex(1 << 16);
            client.write_all(&said).await.unwrap();
            let p = timeout(Duration::from_secs(60), converse(&mut here, LONG, answer)).await;
            assert_eq!(p.expect("without waiting").unwrap(), Preamble::Forward(said.into()));
        }
    }

    #[tokio::test]
    async fn silence_and_ends() {
        let part = &ours()[..20];
        let forward = |b: &[u8]| Preamble::Forward(b.to_vec().into());
        for (said, end, want, what) in [
            (vec![], false, forward(&[]), "who waits for the other side is connected"),
            (vec![], true, Preamble::Answered, "nothing asked"),
            (ours(), false, Preamble::Answered, "idle after its answer"),
            (ours(), true, Preamble::Answered, "done"),
            (part.to_vec(), false, forward(part), "a part of a message"),
            (part.to_vec(), true, forward(part), "a part of a message, and the end"),
            ([&ours(), part].concat(), false, forward(part), "after an answer, a part of a message"),
        ] {
            let (mut client, mut here) = tokio::io::duplex(1 << 16);
            client.write_all(&said).await.unwrap();
            if end {
                client.shutdown().await.unwrap();
            }
            assert_eq!(converse(&mut here, SHORT, answer).await.unwrap(), want, "{what}");
        }
    }

    #[tokio::test]
    async fn a_client_that_takes_no_answers_is_let_go() {
        let (mut client, mut here) = tokio::io::duplex(64);
        let send = async {
            for _ in 0..4 {
                if client.write_all(&ours()).await.is_err() {
                    return;
                }
            }
        };
        let (r, ()) = tokio::join!(
            async {
                let r = converse(&mut here, SHORT, answer).await;
                drop(here);
                r
            },
            send
        );
        assert_eq!(r.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
