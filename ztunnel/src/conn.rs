//! What is known of one connection.

use crate::{
    inpod::LocalPod,
    metrics::{Metrics, Reporter},
    state::{Service, Workload},
};
use karst_hbone::copy::Counts;
use karst_policy::Connection;
use karst_proxy::{
    trace::SpanContext,
    traffic::{Between, Traffic},
};
use std::{cell::OnceCell, net::SocketAddr, sync::Arc, time::Instant};

/// What is known of a connection. The state of a connection is all here and in its copy loop.
pub struct Conn {
    pub reporter: Reporter,
    pub source_addr: SocketAddr,
    pub destination_addr: SocketAddr,
    /// Where the tunnel goes or what its CONNECT asks for.
    pub hbone_addr: Option<SocketAddr>,
    pub source: Option<Arc<Workload>>,
    pub destination: Option<Arc<Workload>>,
    pub service: Option<Arc<Service>>,
    /// Both sides have proven who they are.
    pub mtls: bool,
    /// The source's identity as proven, if it is.
    pub source_identity: Option<karst_core::Identity>,
    /// What policies may look at (inbound only).
    pub check: Option<Connection>,
    /// The pod of ours whose policies decide (inbound only).
    pub pod: Option<Arc<LocalPod>>,
    pub counts: Counts,
    pub started: Instant,
    /// The trace that its CONNECT names, for the log only (inbound only).
    pub trace: OnceCell<Box<SpanContext>>,
}

impl Conn {
    /// `namespace/name` of this node's pod that it belongs to: who has opened it, or who serves it.
    pub fn local_pod(&self) -> Option<String> {
        let named = |workload: &Arc<Workload>| format!("{}/{}", workload.namespace, workload.name);
        match self.reporter {
            Reporter::Source => self.source.as_ref().map(named),
            Reporter::Destination => {
                self.pod.as_ref().map(|pod| pod.key.clone()).or_else(|| self.destination.as_ref().map(named))
            }
        }
    }
    /// The series that it counts in.
    pub fn series(&self, metrics: &Metrics, flag: &'static str) -> Arc<Traffic> {
        metrics.traffic.series(&self.between(), flag)
    }
    /// Between whom it is, as the metrics of connections and of their requests have it: who has opened it, and who serves it.
    pub fn between(&self) -> Between<'_> {
        Between {
            reporter: self.reporter.text(),
            source: self.source.as_deref(),
            destination: self.destination.as_deref(),
            service: self.service.as_deref(),
            mtls: self.mtls,
            security: if self.mtls { "mutual_tls" } else { "unknown" },
        }
    }
}
