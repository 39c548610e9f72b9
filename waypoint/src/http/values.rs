//! What operators in headers' values stand for, of a request that is under way.

use crate::{
    downstream::context::Downstream, http::entry::Authority, route::operators::Values,
    telemetry::request_log::RequestLog,
};
use http::{HeaderMap, header, request::Parts};
use karst_core::operators::{Header, Operator, Piece, time};
use std::net::SocketAddr;

/// A request, and its response if there is one.
pub struct OfRequest<'a> {
    pub downstream: &'a Downstream,
    pub parts: &'a Parts,
    pub authority: &'a Authority,
    pub record: &'a RequestLog,
    /// There is a response, whose headers are being changed. (Else the request's are.)
    pub answered: bool,
}

impl OfRequest<'_> {
    fn request(&self, name: &str, changed: &HeaderMap, out: &mut Vec<u8>) {
        let uri = &self.parts.uri;
        let text = match name {
            ":path" => uri.path_and_query().map_or("/", |x| x.as_str()),
            ":method" => self.parts.method.as_str(),
            ":scheme" => uri.scheme_str().unwrap_or(self.downstream.scheme()),
            ":authority" => self.authority.as_str(),
            name if name == header::HOST => self.authority.as_str(),
            name => return first(if self.answered { &self.parts.headers } else { changed }, name, out),
        };
        out.extend_from_slice(text.as_bytes());
    }

    fn response(&self, name: &str, changed: &HeaderMap, out: &mut Vec<u8>) {
        match name {
            _ if !self.answered => {}
            ":status" => out.extend_from_slice(self.record.answered.to_string().as_bytes()),
            name => first(changed, name, out),
        }
    }
}

impl Values for OfRequest<'_> {
    fn write(&self, operator: &Operator, headers: &HeaderMap, out: &mut Vec<u8>) {
        let record = self.record;
        let text = match operator {
            Operator::Request(h) => return either(h, out, |n, out| self.request(n, headers, out)),
            Operator::Response(h) => return either(h, out, |n, out| self.response(n, headers, out)),
            Operator::RemoteAddress(p) => address(record.from, *p),
            Operator::LocalAddress(p) => address(SocketAddr::new(self.downstream.to, self.downstream.port), *p),
            // One that is known by name has none before it is called.
            Operator::UpstreamAddress(p) => match &record.workload {
                Some((_, a)) if !a.ip().is_unspecified() => address(*a, *p),
                _ => return,
            },
            Operator::UpstreamCluster => record.cluster(),
            Operator::Protocol => record.protocol.into(),
            Operator::Hostname => record.hostname().into(),
            Operator::ResponseCode if self.answered => record.answered.to_string(),
            Operator::ResponseCode => return,
            Operator::ResponseFlags => record.flag.text().into(),
            Operator::StartTime(format) => time(format, record.time).unwrap_or_default(),
            Operator::RouteName => record.route.clone(),
            Operator::PeerUriSan => record.principal().into(),
            Operator::ServerName => self.downstream.tcp().sni.unwrap_or_default().into(),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

/// The first of two headers that is there.
fn either(h: &Header, out: &mut Vec<u8>, write: impl Fn(&str, &mut Vec<u8>)) {
    let start = out.len();
    write(&h.name, out);
    if let Some(or) = h.or.as_ref().filter(|_| out.len() == start) {
        write(or, out);
    }
}

/// The first value of a header.
fn first(h: &HeaderMap, name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(h.get(name).map_or(&b""[..], |v| v.as_bytes()));
}

fn address(a: SocketAddr, piece: Piece) -> String {
    match piece {
        Piece::Whole => a.to_string(),
        Piece::Ip => a.ip().to_string(),
        Piece::Port => a.port().to_string(),
    }
}
