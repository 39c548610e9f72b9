//! The waypoint's options, under the environment names that Istio's deployer sets. Environment variables are read here and
//! nowhere else.

use clap::Parser;
use karst_core::{Identity, IdentityError};
use karst_hbone::Settings;
use karst_proxy::{
    remote::ControlPlaneClient,
    state::{self, OwnPod, Workload},
};
use karst_rt::log::Format;
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
    /// Address of the discovery server: HOST:PORT or https://HOST:PORT.
    #[arg(long, env = "XDS_ADDRESS", default_value = "https://istiod.istio-system.svc:15012")]
    pub xds_address: String,
    /// Address of the certificate authority; if empty, XDS_ADDRESS.
    #[arg(long, env = "CA_ADDRESS", default_value = "")]
    pub ca_address: String,
    /// PEM file with the root certificate of both servers.
    #[arg(long, env = "XDS_ROOT_CA", default_value = "./var/run/secrets/istio/root-cert.pem")]
    pub root_ca: PathBuf,
    /// Name expected in the servers' certificates, if it differs from the host in the address.
    #[arg(long, env = "ALT_XDS_HOSTNAME", default_value = "")]
    pub alt_hostname: String,
    /// File with the token to present; it is read again for each call.
    #[arg(long, env = "AUTH_TOKEN", default_value = "./var/run/secrets/tokens/istio-token")]
    pub auth_token: PathBuf,
    /// File with the revocation lists of the mesh's authorities, PEM or DER; changes are applied. A file missing at the start is
    /// treated as empty.
    #[arg(long, env = "CRL_PATH")]
    pub crl: Option<PathBuf>,
    /// Name of the cluster.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// DNS domain of services.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Name of this node's network.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Name of this node.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
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
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Lifetime of certificates to request, in seconds.
    #[arg(long, env = "SECRET_TTL", default_value_t = 86_400)]
    pub secret_ttl: u64,
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
    /// Enable the access log, one line per request.
    #[arg(long, env = "KARST_ACCESS_LOG", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
    /// Log format: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    #[serde(skip)]
    pub log_format: Format,
    /// Log level or filter, for example info or debug.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
}

/// Options that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Names that cannot be part of a SPIFFE id.
    #[error("TRUST_DOMAIN, POD_NAMESPACE, SERVICE_ACCOUNT: {0}")]
    Identity(IdentityError),
    /// An address that would be spoken to in plaintext.
    #[error("{0}")]
    Address(String),
}

impl Config {
    /// Data plane threads.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    /// Is it a gateway other than a waypoint?
    pub fn is_gateway(&self) -> bool {
        self.role.iter().any(|r| r == "router")
    }

    /// Longest drain.
    pub fn drain_limit(&self) -> Duration {
        Duration::from_secs(self.drain_deadline)
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
        Identity::new(&self.trust_domain, &self.pod_namespace, &self.account).map_err(ConfigError::Identity)
    }

    /// The discovery server and the certificate authority.
    ///
    /// # Errors
    /// For an address that would be spoken to in plaintext.
    pub fn remotes(&self) -> Result<(ControlPlaneClient, ControlPlaneClient), ConfigError> {
        let ca = if self.ca_address.is_empty() { &self.xds_address } else { &self.ca_address };
        let remote = |option: &str, a: &str| {
            Ok::<_, ConfigError>(ControlPlaneClient {
                address: ControlPlaneClient::url(option, a).map_err(|e| ConfigError::Address(e.to_string()))?,
                root_ca: self.root_ca.clone(),
                alt_hostname: self.alt_hostname.clone(),
                auth_token: self.auth_token.clone(),
                cluster_id: self.cluster_id.clone(),
                local_certs: None,
                impersonates: false,
            })
        };
        Ok((remote("XDS_ADDRESS", &self.xds_address)?, remote("CA_ADDRESS", ca)?))
    }
}
