//! What is sent of a request or a connection: one line of JSON, in fields like those of Hubble's flows.

use super::event::{Direction, Event, Peer, Phase, Request, Verdict};
use crate::flow::Reporter;
use karst_core::limits;
use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A request or connection.
    Flow(Box<Record>),
    /// So many were not sent, because they were more than the looker took or the rate allows.
    LostEvents {
        /// Since the last line that said so.
        num_events_lost: u64,
    },
    /// The proxy is there: the first line, and one every few seconds.
    NodeStatus {
        /// Who it is.
        node_name: String,
    },
    /// The last line.
    End {
        /// Why it is the last.
        reason: End,
    },
}

/// Why a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// So many were wanted.
    Limit,
    /// For so long.
    Time,
}

/// Hubble's `workloads`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Workload {
    name: String,
    kind: String,
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// Its SPIFFE id. (Hubble has a number.)
    #[serde(skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod_name: String,
    /// What that belongs to: one, or none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    workloads: Vec<Workload>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Addresses {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destination: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ports {
    #[serde(default)]
    source_port: u16,
    #[serde(default)]
    destination_port: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct L4 {
    tcp: Ports,
}

/// Hubble's `l7.http`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Status of the answer; 0: there was none.
    pub code: u16,
    /// Its method.
    pub method: String,
    /// Its path; the query only where that was asked for.
    pub url: String,
    /// Its host. (Not Hubble's.)
    #[serde(skip_serializing_if = "String::is_empty")]
    pub authority: String,
    /// `HTTP/1.1`.
    pub protocol: String,
    /// gRPC's status. (Not Hubble's.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct L7 {
    #[serde(rename = "type")]
    kind: String,
    latency_ns: u64,
    http: Http,
}

/// A policy that has refused it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `AuthorizationPolicy`.
    pub kind: String,
}

/// A service that was called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ServiceName {
    name: String,
    namespace: String,
}

/// What Hubble has no field for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Karst {
    reporter: Reporter,
    phase: Phase,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    response_flags: String,
    mtls: bool,
    bytes_received: u64,
    bytes_sent: u64,
    duration_ns: u64,
    /// `namespace/name` of the policy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    policy: String,
    /// `namespace/host` of the service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    service: String,
}

/// A request or a connection, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// RFC 3339, UTC.
    pub time: String,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it was refused or has failed, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub drop_reason_desc: String,
    #[serde(rename = "IP")]
    ip: Addresses,
    l4: L4,
    /// Who calls.
    pub source: Endpoint,
    /// Who is called.
    pub destination: Endpoint,
    /// `L3_L4` for connections, `L7` for requests.
    #[serde(rename = "Type")]
    kind: String,
    /// The node of a ztunnel, the pod of a waypoint or gateway.
    pub node_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    l7: Option<L7>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destination_service: Option<ServiceName>,
    traffic_direction: Direction,
    /// The policy that has refused it: one, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_denied_by: Vec<PolicyName>,
    karst: Karst,
}

impl Record {
    /// What is sent of an event. Peers' texts are cut to [`limits::TAP_TEXT`]; the query goes unless it was asked for.
    ///
    /// `node`: see [`Self::node_name`]. `time`: RFC 3339.
    pub fn new(event: &Event<'_>, node: &str, time: String, with_query: bool) -> Self {
        let port = |peer: &Peer<'_>| peer.address.map_or(0, |address| address.port());
        let ip = |peer: &Peer<'_>| peer.address.map(|address| address.ip().to_canonical());
        let policy = |(namespace, name): (&str, &str)| PolicyName {
            namespace: namespace.into(),
            name: name.into(),
            kind: "AuthorizationPolicy".into(),
        };
        let service = |(namespace, host): (&str, &str)| ServiceName {
            name: host.split('.').next().unwrap_or_default().into(),
            namespace: namespace.into(),
        };
        Self {
            time,
            verdict: event.verdict,
            drop_reason_desc: cut(&event.reason),
            ip: Addresses { source: ip(&event.source), destination: ip(&event.destination) },
            l4: L4 { tcp: Ports { source_port: port(&event.source), destination_port: port(&event.destination) } },
            source: Endpoint::new(&event.source),
            destination: Endpoint::new(&event.destination),
            kind: if event.request.is_some() { "L7" } else { "L3_L4" }.into(),
            node_name: node.into(),
            l7: event.request.as_ref().map(|request| l7(request, event.took, with_query)),
            destination_service: event.service.split_once('/').map(service),
            traffic_direction: event.direction,
            ingress_denied_by: event.policy.split_once('/').map(policy).into_iter().collect(),
            karst: Karst {
                reporter: event.reporter,
                phase: event.phase,
                response_flags: if event.flags == "-" { String::new() } else { event.flags.into() },
                mtls: event.mtls,
                bytes_received: event.received,
                bytes_sent: event.sent,
                duration_ns: nanoseconds(event.took),
                policy: event.policy.into(),
                service: event.service.into(),
            },
        }
    }

    /// The event that it tells of, as far as it was sent.
    pub fn event(&self) -> Event<'_> {
        let tcp = self.l4.tcp;
        let at = |ip: Option<IpAddr>, port: u16| ip.map(|ip| SocketAddr::new(ip, port));
        let flags = self.karst.response_flags.as_str();
        Event {
            reporter: self.karst.reporter,
            direction: self.traffic_direction,
            phase: self.karst.phase,
            source: self.source.peer(at(self.ip.source, tcp.source_port)),
            destination: self.destination.peer(at(self.ip.destination, tcp.destination_port)),
            service: &self.karst.service,
            verdict: self.verdict,
            policy: &self.karst.policy,
            reason: Cow::Borrowed(&self.drop_reason_desc),
            flags: if flags.is_empty() { "-" } else { flags },
            mtls: self.karst.mtls,
            request: self.http().map(|http| Request {
                method: &http.method,
                path: &http.url,
                authority: &http.authority,
                protocol: &http.protocol,
                status: http.code,
                grpc: http.grpc_status,
            }),
            received: self.karst.bytes_received,
            sent: self.karst.bytes_sent,
            took: Duration::from_nanos(self.karst.duration_ns),
        }
    }

    /// The request; None: a connection.
    pub fn http(&self) -> Option<&Http> {
        self.l7.as_ref().map(|l7| &l7.http)
    }
}

impl Endpoint {
    fn new(peer: &Peer<'_>) -> Self {
        let workload = || Workload { name: peer.workload.into(), kind: peer.kind.into() };
        Self {
            identity: peer.identity.into(),
            namespace: peer.namespace.into(),
            pod_name: peer.pod.into(),
            workloads: (!peer.workload.is_empty()).then(workload).into_iter().collect(),
        }
    }

    fn peer(&self, address: Option<SocketAddr>) -> Peer<'_> {
        let workload = self.workloads.first();
        Peer {
            namespace: &self.namespace,
            workload: workload.map_or("", |workload| &workload.name),
            kind: workload.map_or("", |workload| &workload.kind),
            pod: &self.pod_name,
            identity: &self.identity,
            address,
        }
    }
}

fn l7(request: &Request<'_>, took: Duration, with_query: bool) -> L7 {
    let path = request.path.split('?').next().unwrap_or_default();
    L7 {
        kind: "RESPONSE".into(),
        latency_ns: nanoseconds(took),
        http: Http {
            code: request.status,
            method: cut(request.method),
            url: cut(if with_query { request.path } else { path }),
            // One that is not fit may have a user's password before its host.
            authority: cut(request.authority.rsplit('@').next().unwrap_or_default()),
            protocol: request.protocol.into(),
            grpc_status: request.grpc,
        },
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(limits::TAP_TEXT.min(text.len()))).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use serde_json::json;

    fn event(path: &str) -> Event<'_> {
        let peer = |pod: &'static str, port: u16| Peer {
            namespace: "shop",
            workload: "web",
            kind: "deployment",
            pod,
            identity: "spiffe://cluster.local/ns/shop/sa/web",
            address: Some(([10, 0, 0, 1], port).into()),
        };
        Event {
            reporter: Reporter::Waypoint,
            direction: Direction::Ingress,
            phase: Phase::Request,
            source: peer("web-1", 4000),
            destination: peer("", 9080),
            service: "shop/reviews.shop.svc.cluster.local",
            verdict: Verdict::Dropped,
            policy: "shop/deny",
            reason: "denied by policy shop/deny".into(),
            flags: "-",
            mtls: true,
            request: Some(Request {
                method: "GET",
                path,
                authority: "reviews",
                protocol: "HTTP/1.1",
                status: 403,
                grpc: None,
            }),
            received: 1,
            sent: 2,
            took: Duration::from_micros(1500),
        }
    }

    #[test]
    fn fields_are_hubbles_and_queries_stay_away() {
        let mut sent = event("/a?token=secret");
        if let Some(request) = &mut sent.request {
            request.authority = "me:secret@reviews";
        }
        let record = Record::new(&sent, "waypoint-1", "t".into(), false);
        let value = serde_json::to_value(Line::Flow(Box::new(record))).unwrap();
        let flow = &value["flow"];
        assert_eq!(
            [&flow["verdict"], &flow["Type"], &flow["traffic_direction"], &flow["source"]["workloads"][0]["name"]],
            ["DROPPED", "L7", "INGRESS", "web"]
        );
        assert_eq!(flow["IP"], json!({ "source": "10.0.0.1", "destination": "10.0.0.1" }));
        assert_eq!(flow["l4"]["TCP"], json!({ "source_port": 4000, "destination_port": 9080 }));
        let http = json!({
            "code": 403, "method": "GET", "url": "/a", "authority": "reviews", "protocol": "HTTP/1.1",
        });
        assert_eq!((&flow["l7"]["http"], &flow["l7"]["latency_ns"]), (&http, &json!(1_500_000)));
        assert_eq!(flow["destination_service"], json!({ "name": "reviews", "namespace": "shop" }));
        let policy = json!([{ "namespace": "shop", "name": "deny", "kind": "AuthorizationPolicy" }]);
        assert_eq!(flow["ingress_denied_by"], policy);
        assert!(!value.to_string().contains("secret"), "{value}");
        let asked = Record::new(&event("/a?token=secret"), "", String::new(), true);
        assert_eq!(asked.http().unwrap().url, "/a?token=secret");
    }

    #[test]
    fn a_record_is_bounded_and_is_its_event_again() {
        let whole = event("/a");
        let record = Record::new(&whole, "n", "t".into(), false);
        let read: Record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!((&read, read.event()), (&record, whole));
        let long = "/é".repeat(limits::TAP_TEXT);
        let record = Record::new(&event(&long), "n", "t".into(), true);
        assert!(record.http().unwrap().url.len() <= limits::TAP_TEXT);
    }
}
