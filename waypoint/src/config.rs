//! The waypoint's options, under the environment names that Istio's deployer sets. Environment variables are read here and
//! nowhere else.

use crate::http::codec::{self, HeadLimits};
use clap::Parser;
use karst_api::ads;
use karst_core::{Identity, IdentityError};
use karst_hbone::Settings;
use karst_proxy::{
    options::{Asks, Certificates, ControlPlane, Flows, Log, Place},
    remote::{ControlPlaneClient, NodeMetadata, RemoteError},
    state::{self, OwnPod, Workload},
};
use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

/// Karst's layer 7 proxy.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "karst-waypoint", version)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Role, as Istio's deployer passes it: `proxy waypoint`, or `proxy router` for other gateways.
    #[arg(hide = true)]
    #[serde(skip)]
    pub role: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub control_plane: ControlPlane,
    /// File with the revocation lists of the mesh's authorities, PEM or DER; changes are applied. A file missing at the start is
    /// treated as empty.
    #[arg(long, env = "CRL_PATH")]
    pub crl: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    pub place: Place,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME", default_value = "waypoint")]
    pub pod_name: String,
    /// Namespace of this pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub pod_namespace: String,
    /// Service account of this pod.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    pub account: String,
    /// Address of this pod.
    #[arg(long, env = "INSTANCE_IP", default_value = "1.1.1.1")]
    pub instance_ip: String,
    #[command(flatten)]
    #[serde(flatten)]
    pub certificates: Certificates,
    /// Number of data plane threads; 0 means one per core.
    #[arg(long, env = "KARST_WORKER_THREADS", default_value_t = 0)]
    pub workers: usize,
    /// Address that accepts HBONE tunnels.
    #[arg(long, env = "HBONE_ADDR", default_value = "[::]:15008")]
    pub hbone: SocketAddr,
    /// Address that serves the admin pages (loopback).
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Address that serves metrics.
    #[arg(long, env = "STATS_ADDR", default_value = "[::]:15020")]
    pub stats: SocketAddr,
    /// Address that serves the readiness probe.
    #[arg(long, env = "READINESS_ADDR", default_value = "[::]:15021")]
    pub readiness: SocketAddr,
    /// DNS resolvers for endpoints that are known only by host name.
    #[arg(long, env = "KARST_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Maximum duration of a drain, in seconds.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", default_value_t = 5)]
    pub drain_deadline: u64,
    /// Seconds after which a UDP session ends in which neither side has sent anything.
    #[arg(long, env = "KARST_UDP_IDLE_TIMEOUT", default_value_t = karst_core::limits::UDP_IDLE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub udp_idle_timeout: u64,
    /// Enable the access log, one line per request.
    #[arg(long, env = "KARST_ACCESS_LOG", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
    /// Largest head of a request, in bytes, 8192 to 1048576. A larger one is answered with 431.
    #[arg(long, env = "KARST_MAX_REQUEST_HEAD", default_value_t = codec::MAX_HEADERS,
          value_parser = clap::value_parser!(u32).range(8192..=1_048_576))]
    pub max_request_head: u32,
    /// Most header fields of a request, 10 to 1000; several cookies of HTTP/2 count as one. More are answered with 431.
    #[arg(long, env = "KARST_MAX_REQUEST_FIELDS", default_value_t = codec::MAX_FIELDS as u32,
          value_parser = clap::value_parser!(u32).range(10..=1000))]
    pub max_request_fields: u32,
    /// Largest body of a request, in bytes; 0 means no limit. A larger one is answered with 413. HTTPFilters can set lower limits for
    /// services and routes.
    #[arg(long, env = "KARST_MAX_REQUEST_BODY", default_value_t = 0)]
    pub max_request_body: u64,
    #[command(flatten)]
    #[serde(flatten)]
    pub flows: Flows,
    #[command(flatten)]
    #[serde(flatten)]
    pub log: Log,
}

/// A variable of the process's environment that a Telemetry names.
pub fn environment(name: &str) -> Option<String> {
    // What cannot be the name of one would end the process.
    let is_name = !name.is_empty() && !name.contains(['=', '\0']);
    is_name.then(|| std::env::var(name).ok()).flatten()
}

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Names that cannot be part of a SPIFFE id.
    #[error("TRUST_DOMAIN, POD_NAMESPACE, SERVICE_ACCOUNT: {0}")]
    Identity(IdentityError),
    /// An address that would be spoken to in plaintext.
    #[error(transparent)]
    Address(#[from] RemoteError),
}

impl Config {
    /// Is it a gateway other than a waypoint?
    pub fn is_gateway(&self) -> bool {
        self.role.iter().any(|r| r == "router")
    }

    /// How we introduce ourselves to the control plane.
    pub fn node(&self) -> ads::Node {
        let me = NodeMetadata {
            kind: if self.is_gateway() { "router" } else { "waypoint" },
            pod: &self.pod_name,
            namespace: &self.pod_namespace,
            account: Some(&self.account),
            ip: &self.instance_ip,
            node: &self.place.node,
            cluster: &self.place.cluster_id,
            domain: &self.place.cluster_domain,
        };
        me.node()
    }

    /// Longest drain.
    pub fn drain_limit(&self) -> Duration {
        Duration::from_secs(self.drain_deadline)
    }

    /// How large the heads of requests may be.
    pub fn head_limits(&self) -> HeadLimits {
        HeadLimits { bytes: self.max_request_head, fields: self.max_request_fields as usize }
    }

    /// Settings of tunnels.
    pub fn tunnels(&self) -> Settings {
        Settings::default()
    }

    /// Ourselves, as the control plane tells of us.
    pub fn own_pod<'a>(&self, mesh: &'a state::Snapshot) -> Option<&'a Arc<Workload>> {
        let (namespace, name, account) = (&*self.pod_namespace, &*self.pod_name, &*self.account);
        mesh.own_pod(&OwnPod { namespace, name, account, uid: None })
    }

    /// Who we are.
    ///
    /// # Errors
    /// If the names cannot be part of a SPIFFE id.
    pub fn identity(&self) -> Result<Identity, ConfigError> {
        Identity::new(&self.certificates.trust_domain, &self.pod_namespace, &self.account)
            .map_err(ConfigError::Identity)
    }

    /// The discovery server and the certificate authority.
    ///
    /// # Errors
    /// For an address that would be spoken to in plaintext.
    pub fn remotes(&self) -> Result<(ControlPlaneClient, ControlPlaneClient), ConfigError> {
        Ok(self.control_plane.clients(&self.place.cluster_id, Asks { local_certs: None, impersonates: false })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can end a process, or shows what it knows, is for who is in the pod unless an operator says otherwise.
    #[test]
    fn admin_pages_are_for_loopback() {
        for role in ["waypoint", "router"] {
            assert!(Config::parse_from(["karst-waypoint", "proxy", role]).admin.ip().is_loopback(), "{role}");
        }
    }
}
