//! `karst.route.v1.Routes` as it is written, with its rules of HTTP still encoded: thousands of decoded ones at a time would take
//! several times what their compiled forms do, and the allocator gives such a peak back late.

use bytes::Bytes;
use karst_api::route as ir;

/// `karst.route.v1.Routes`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireRoutes {
    #[prost(message, repeated, tag = "1")]
    pub consumers: Vec<WireConsumer>,
    #[prost(message, optional, tag = "2")]
    pub producer: Option<WireTable>,
    #[prost(message, repeated, tag = "3")]
    pub limits: Vec<ir::RateLimit>,
    #[prost(message, optional, tag = "4")]
    pub fault: Option<ir::Fault>,
    #[prost(uint64, tag = "30")]
    pub max_body_bytes: u64,
    #[prost(message, optional, tag = "31")]
    pub compression: Option<ir::Compression>,
}

/// `karst.route.v1.Consumer`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireConsumer {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(message, optional, tag = "2")]
    pub table: Option<WireTable>,
}

/// `karst.route.v1.Table`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WireTable {
    /// Each is a `karst.route.v1.HttpRule`.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub http: Vec<Bytes>,
    #[prost(message, repeated, tag = "2")]
    pub tcp: Vec<ir::TcpRule>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use prost::Message;

    /// The same messages in the other form. A field that the protocol gets does not compile here before it is in both.
    fn wire(routes: ir::Routes) -> WireRoutes {
        let table = |ir::Table { http, tcp }: ir::Table| WireTable {
            http: http.iter().map(|rule| rule.encode_to_vec().into()).collect(),
            tcp,
        };
        let consumer = |ir::Consumer { namespace, table: its }: ir::Consumer| {
            let table = its.map(table);
            WireConsumer { namespace, table }
        };
        let ir::Routes { consumers, producer, limits, fault, max_body_bytes, compression } = routes;
        WireRoutes {
            consumers: consumers.into_iter().map(consumer).collect(),
            producer: producer.map(table),
            limits,
            fault,
            max_body_bytes,
            compression,
        }
    }

    #[test]
    fn both_forms_are_written_alike() {
        let rule = |origin: &str| ir::HttpRule { origin: origin.into(), ports: vec![80, 81], ..Default::default() };
        let table = |origin: &str| ir::Table {
            http: vec![rule(origin), ir::HttpRule::default(), rule("last")],
            tcp: vec![ir::TcpRule { origin: origin.into(), sni: vec!["a".into()], ..Default::default() }],
        };
        let consumers = vec![
            ir::Consumer { namespace: "one".into(), table: Some(table("one")) },
            ir::Consumer { namespace: "none".into(), table: None },
        ];
        let limits = vec![ir::RateLimit { name: "l".into(), requests: 5, ..Default::default() }];
        let fault = Some(ir::Fault { delay_ms: 7, ..Default::default() });
        let compression = Some(ir::Compression { min_bytes: 9, content_types: vec!["text/html".into()] });
        let producer = Some(table("all"));
        let all = ir::Routes { consumers, producer, limits, fault, max_body_bytes: 1 << 20, compression };
        for routes in [ir::Routes::default(), all] {
            let bytes = routes.encode_to_vec();
            let decoded = WireRoutes::decode(Bytes::from(bytes.clone())).unwrap();
            assert_eq!(decoded.encode_to_vec(), bytes);
            assert_eq!(decoded, wire(routes));
        }
    }
}
