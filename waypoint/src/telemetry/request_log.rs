//! What is told of a request, or of a connection that is carried as it is, when it has ended: once, in Istio's metrics and in a line
//! of the access log. Proven by `request_log/tests.rs`, over connections in memory.

use crate::{
    downstream::upgrade::Upgrade,
    logs::record::Record,
    snapshot::Snapshot,
    spans::{request::RequestTrace, tags::Ended},
    telemetry::{
        access_log,
        carried::Carried,
        flag::ResponseFlag,
        key::KeyRef,
        rules::Telemetry,
        sink::Sink,
        stream_info::{DATAGRAMS, StreamInfo},
    },
};
use std::{
    borrow::Cow,
    ops::{Deref, DerefMut},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// What is told of a request or a connection.
pub struct RequestLog {
    info: StreamInfo,
    sink: Rc<Sink>,
    /// What is told of it; none: the standard.
    pub telemetry: Option<Arc<Telemetry>>,
    /// Which of [`crate::snapshot::Snapshot::telemetry_generation`] that is.
    telemetry_generation: u64,
    /// It has been told.
    told: bool,
    /// Of a request that asks for another protocol, what policies are to judge later.
    pub upgrade: Option<Box<Upgrade>>,
    /// Of a request that is traced.
    pub traced: Option<RequestTrace>,
}

impl Deref for RequestLog {
    type Target = StreamInfo;

    fn deref(&self) -> &StreamInfo {
        &self.info
    }
}

impl DerefMut for RequestLog {
    fn deref_mut(&mut self) -> &mut StreamInfo {
        &mut self.info
    }
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
    /// What is to be told of what begins, as a snapshot wants it told.
    pub fn new(info: StreamInfo, sink: Rc<Sink>, s: &Snapshot) -> Box<Self> {
        let (telemetry, telemetry_generation) = (s.telemetry().cloned(), s.telemetry_generation);
        Box::new(Self { info, sink, telemetry, telemetry_generation, told: false, upgrade: None, traced: None })
    }

    /// The name of this proxy's pod.
    pub fn hostname(&self) -> &str {
        self.sink.hostname()
    }

    /// It has ended. `sent`: bytes that the client was sent; of a connection they have been counted.
    pub fn finish(&mut self, sent: u64) {
        self.told = true;
        let sent = self.carried.as_ref().map_or(sent, |b| b.sent.get());
        let took = self.started.elapsed();
        let telemetry = self.telemetry.take();
        let rules = telemetry.as_deref();
        let traced = self.traced.take();
        if let (Some(traced), Some(tracing)) = (&traced, rules.and_then(|t| t.tracing.as_deref())) {
            match &traced.spans {
                Ok(spans) => self.sink.trace(Ended { info: self, tracing, spans, sent, took }),
                Err(why) => self.sink.spans.count_dropped(*why, traced.count()),
            }
        }
        match &self.carried {
            // Istio's metrics are of TCP.
            Some(_) if self.protocol == DATAGRAMS => {}
            Some(carried) => self.count_connection(carried),
            None => {
                let values = rules.map(|t| t.values(self, sent)).unwrap_or_default();
                let series = KeyRef {
                    telemetry_generation: self.telemetry_generation,
                    source: self.source.as_ref().map(|w| &w.uid),
                    principal: self.principal.as_ref(),
                    workload: self.endpoint(),
                    service: self.service().map(|s| &s.key),
                    status: self.answered,
                    grpc: self.grpc,
                    flag: self.flag,
                    is_grpc: self.is_grpc,
                    values: &values,
                };
                let (received, sent) = (self.request_head + self.received.get(), self.response_head + sent);
                self.sink.count(series, self, rules, |s| s.add(took, received, sent));
            }
        }
        self.sink.tap(self, took, sent);
        if self.sink.access_log() && rules.is_none_or(|t| t.logs(self, sent)) {
            access_log::write(access_log::line(self, took.as_millis() as u64, sent));
        }
        if let Some(rules) = rules.filter(|t| !t.exports.is_empty()) {
            let trace = traced.map(|traced| traced.context).or(self.trace.as_deref().copied());
            let wanted = rules.exports.iter().filter(|export| export.takes(self, sent));
            self.sink.export(wanted, Record { info: self, took, sent, trace });
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
        let carried = self.carried.clone().unwrap_or_default();
        let series = self.sink.traffic(self, ResponseFlag::None);
        series.opened.fetch_add(1, Relaxed);
        let _ = carried.series.set(series);
        self.sink.tap_opened(self);
        carried
    }

    /// One that has not come about is opened and closed at once, as Envoy has it.
    fn count_connection(&self, carried: &Carried) {
        let failed = || {
            let series = self.sink.traffic(self, self.flag);
            series.opened.fetch_add(1, Relaxed);
            series
        };
        let series = carried.series.get_or_init(failed);
        series.closed.fetch_add(1, Relaxed);
        series.touch();
    }
}

#[cfg(test)]
mod tests;
