//! What is told of a request, or of a connection that is carried as it is, when it has ended: once, in Istio's metrics and in a line
//! of the access log. Proven by `request_log/tests.rs`, over connections in memory.

use crate::{
    cluster::endpoint_set::EndpointSet,
    downstream::conns::Upgrade,
    telemetry::{carried::Carried, flag::ResponseFlag, metrics, rules::Telemetry},
    worker::Worker,
};
use http::{HeaderMap, HeaderValue};
use karst_core::untrusted::Untrusted;
use karst_proxy::state::{Service, Workload};
use karst_rt::log;
use std::{
    borrow::Cow,
    cell::Cell,
    fmt::{self, Display, Write as _},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Instant, SystemTime},
};

/// The destination that was chosen. (Not its endpoints: a connection that lasts would keep them, of however old a state.)
pub struct Chosen {
    pub service: Arc<Service>,
    port: u16,
    subset: Arc<str>,
    /// Its endpoints are known to the control plane, not thought of by clients.
    pub is_told: bool,
}

impl From<&EndpointSet> for Chosen {
    fn from(s: &EndpointSet) -> Self {
        let (port, subset) = (s.key.port, s.key.subset.clone());
        Self { service: s.service.clone(), port, subset, is_told: s.dynamic_endpoint.is_none() }
    }
}

/// What is told of a request or a connection.
pub struct RequestLog {
    pub worker: Rc<Worker>,
    pub started: Instant,
    pub time: SystemTime,
    pub method: http::Method,
    pub path: String,
    /// In its canonical form; as it was sent, if it has none.
    pub authority: Option<HeaderValue>,
    pub protocol: &'static str,
    pub is_grpc: bool,
    pub user_agent: Option<HeaderValue>,
    pub request_id: Option<HeaderValue>,
    /// X-Forwarded-For, as the endpoint gets it.
    pub forwarded_for: Option<HeaderValue>,
    pub from: SocketAddr,
    /// What was called: an address of the service, or the gateway's own.
    pub to: SocketAddr,
    /// The name in the TLS hello that it began with.
    pub sni: Option<Rc<str>>,
    pub source: Option<Arc<Workload>>,
    pub principal: String,
    pub called: Option<Arc<Service>>,
    /// It has come to a gateway.
    pub at_gateway: bool,
    pub destination: Option<Chosen>,
    pub workload: Option<(Arc<Workload>, SocketAddr)>,
    /// What tells it from others in metrics.
    pub endpoint: Option<Arc<str>>,
    pub route: String,
    /// 0: there was no answer.
    pub answered: u16,
    pub grpc: Option<u16>,
    pub flag: ResponseFlag,
    /// Envoy's response code details, of a connection its termination details; without white space. Empty: there are none (yet).
    pub details: Cow<'static, str>,
    pub error: String,
    /// Milliseconds until the endpoint's answer began.
    pub upstream_ms: Option<u64>,
    pub received: Rc<Cell<u64>>,
    /// Of the request, where telemetry asks for them.
    pub headers: Option<HeaderMap>,
    /// What is told of it; none: the standard.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Which of [`crate::snapshot::Snapshot::telemetry_generation`] that is.
    pub telemetry_generation: u64,
    /// Of a connection that is carried as it is.
    pub carried: Option<Rc<Carried>>,
    /// It has been told.
    pub told: bool,
    /// Of a request that asks for another protocol, what policies are to judge later.
    pub upgrade: Option<Box<Upgrade>>,
}

impl Drop for RequestLog {
    /// The client has left before there was an answer: its request counts all the same. (The end of a connection, or of one that
    /// has changed its protocol, is just that.)
    fn drop(&mut self) {
        if self.told {
            return;
        }
        if self.carried.is_none() && self.answered == 0 {
            self.flag = ResponseFlag::ClientGone;
            self.details = Cow::Borrowed(ResponseFlag::ClientGone.details());
        }
        self.finish(0);
    }
}

impl RequestLog {
    /// It has ended. `sent`: bytes that the client was sent; of a connection they have been counted.
    pub fn finish(&mut self, sent: u64) {
        self.told = true;
        let sent = self.carried.as_ref().map_or(sent, |b| b.sent.get());
        let took = self.started.elapsed();
        let telemetry = self.telemetry.take();
        let t = telemetry.as_deref();
        match &self.carried {
            Some(b) => self.count_connection(b),
            None => {
                let values = t.map(|t| t.values(self, sent)).unwrap_or_default();
                let service = self.destination.as_ref().map(|d| &d.service).or(self.called.as_ref());
                let series = metrics::Key {
                    telemetry_generation: self.telemetry_generation,
                    source: self.source.as_ref().map(|w| w.uid.clone()),
                    principal: self.principal.clone(),
                    workload: self.endpoint.clone(),
                    service: service.map(|s| s.key.clone()),
                    status: self.answered,
                    grpc: self.grpc,
                    flag: self.flag,
                    is_grpc: self.is_grpc,
                    values,
                };
                let s = self.worker.series(series, |k| metrics::labels(self, t, &k.values));
                s.add(took, self.received.get(), sent);
            }
        }
        if self.worker.shared.config.access_log && t.is_none_or(|t| t.logs(self, sent)) {
            write(self.line(took.as_millis(), sent));
        }
    }

    /// Nothing is told of it: it is something else.
    pub fn forget(mut self: Box<Self>) {
        self.told = true;
    }

    /// Why it has failed.
    pub fn failed(mut self: Box<Self>, flag: ResponseFlag, error: &str) -> Box<Self> {
        self.flag = flag;
        error.clone_into(&mut self.error);
        self
    }

    /// The connection to an endpoint has come about: it is counted from now on, here.
    pub fn established(&self) -> Rc<Carried> {
        let b = self.carried.clone().unwrap_or_default();
        let series = metrics::traffic(self, ResponseFlag::None);
        series.opened.fetch_add(1, Relaxed);
        let _ = b.series.set(series);
        b
    }

    /// One that has not come about is opened and closed at once, as Envoy has it.
    fn count_connection(&self, b: &Carried) {
        let failed = || {
            let series = metrics::traffic(self, self.flag);
            series.opened.fetch_add(1, Relaxed);
            series
        };
        let series = b.series.get_or_init(failed);
        series.closed.fetch_add(1, Relaxed);
        series.touch();
    }

    /// What Envoy would call the cluster.
    pub fn cluster(&self) -> String {
        let (host, port, subset) = match (&self.destination, &self.called) {
            (Some(d), _) => (&d.service.hostname, d.port, &*d.subset),
            (None, Some(s)) => (&s.hostname, self.to.port(), ""),
            (None, None) => return "-".into(),
        };
        if self.at_gateway {
            return format!("outbound|{port}|{subset}|{host}");
        }
        let kind = if self.carried.is_some() { "tcp" } else { "http" };
        let slash = if subset.is_empty() { "" } else { "/" };
        format!("inbound-vip|{port}|{kind}{slash}{subset}|{host}")
    }

    /// Envoy's default line, as Istio has it.
    fn line(&self, took_ms: u128, sent: u64) -> String {
        let time = log::timestamp(self.time);
        let cluster = self.cluster();
        let upstream = self.workload.as_ref().map(|(_, a)| a.to_string()).unwrap_or_default();
        let (details, termination) = match self.carried {
            Some(_) => ("", &*self.details),
            None => (&*self.details, ""),
        };
        let (forwarded_for, user_agent) = (text(&self.forwarded_for), text(&self.user_agent));
        let (request_id, authority) = (text(&self.request_id), text(&self.authority));
        let sni = self.sni.as_deref().unwrap_or_default();
        if log::format() == log::Format::Json {
            let some = |s: &str| (!s.is_empty()).then(|| s.to_string());
            let line = serde_json::json!({
                "start_time": time, "method": self.method.as_str(), "path": self.path, "protocol": self.protocol,
                "response_code": self.answered, "response_flags": self.flag.text(),
                "response_code_details": some(details), "connection_termination_details": some(termination),
                "upstream_transport_failure_reason": some(&self.error), "bytes_received": self.received.get(),
                "bytes_sent": sent, "duration": took_ms, "upstream_service_time": self.upstream_ms,
                "x_forwarded_for": some(&forwarded_for), "user_agent": some(&user_agent), "request_id": some(&request_id),
                "authority": some(&authority), "upstream_host": some(&upstream), "upstream_cluster": cluster,
                "upstream_local_address": null, "downstream_local_address": self.to.to_string(),
                "downstream_remote_address": self.from.to_string(), "downstream_peer": self.principal,
                "requested_server_name": some(sni), "route_name": self.route,
            });
            return line.to_string();
        }
        let mut out = String::with_capacity(500);
        let _ = write!(
            out,
            "[{time}] \"{} {} {}\" {} {} {} {} \"{}\" {} {sent} {took_ms} ",
            self.method,
            Or(&self.path),
            self.protocol,
            self.answered,
            self.flag.text(),
            Or(details),
            Or(termination),
            Or(&self.error),
            self.received.get(),
        );
        let _ = match self.upstream_ms {
            Some(ms) => write!(out, "{ms} "),
            None => write!(out, "- "),
        };
        let _ = write!(
            out,
            "\"{}\" \"{}\" \"{}\" \"{}\" \"{}\" {cluster} - {} {} {} \"{}\"",
            Or(&forwarded_for),
            Or(&user_agent),
            Or(&request_id),
            Or(&authority),
            Or(&upstream),
            self.to,
            self.from,
            Or(sni),
            Or(&self.route),
        );
        out
    }
}

fn text(v: &Option<HeaderValue>) -> Cow<'_, str> {
    v.as_ref().map_or(Cow::Borrowed(""), |v| String::from_utf8_lossy(v.as_bytes()))
}

/// Peers' text, or a dash.
struct Or<'a>(&'a str);

impl Display for Or<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("-") } else { Untrusted(self.0).fmt(f) }
    }
}

/// Response code details in braces, or the like, from a sentence: without what parts the fields of a line.
pub fn one_word(s: &str) -> String {
    s.replace(|c: char| c.is_whitespace() || c.is_control() || c == '"', "_")
}

fn write(line: String) {
    #[cfg(test)]
    crate::testing::LINES.with_borrow_mut(|l| l.push(line.clone()));
    log::line(line);
}

#[cfg(test)]
mod tests;
