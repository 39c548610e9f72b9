//! The waypoint's options, under the environment names that Istio's deployer sets. Environment variables are read here and
//! nowhere else.

use clap::Parser;
use karst_core::Identity;
use karst_hbone::Settings;
use karst_proxy::remote::ControlPlaneClient;
use karst_rt::log::Format;
use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Karst's layer 7 proxy.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "karst-waypoint", version)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// As Istio's deployer writes it: `proxy waypoint`, or `proxy router` for other gateways.
    #[arg(hide = true)]
    #[serde(skip)]
    pub role: Vec<String>,
    /// Discovery server, as HOST:PORT or https://HOST:PORT.
    #[arg(long, env = "XDS_ADDRESS", default_value = "https://istiod.istio-system.svc:15012")]
    pub xds_address: String,
    /// Certificate authority. Empty: as XDS_ADDRESS.
    #[arg(long, env = "CA_ADDRESS", default_value = "")]
    pub ca_address: String,
    /// Root certificate of both servers, PEM.
    #[arg(long, env = "XDS_ROOT_CA", default_value = "./var/run/secrets/istio/root-cert.pem")]
    pub root_ca: PathBuf,
    /// Name that the servers' certificates must have, if it is not that of the address.
    #[arg(long, env = "ALT_XDS_HOSTNAME", default_value = "")]
    pub alt_hostname: String,
    /// File with the token to present; read anew for each call.
    #[arg(long, env = "AUTH_TOKEN", default_value = "./var/run/secrets/tokens/istio-token")]
    pub auth_token: PathBuf,
    /// File with revocation lists of the mesh's authorities, PEM or DER; followed. A file that is not there at the start holds none.
    #[arg(long, env = "CRL_PATH")]
    pub crl: Option<PathBuf>,
    /// Cluster name.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// DNS domain of services.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// This node's network.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// This node's name.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// This pod's name.
    #[arg(long, env = "POD_NAME", default_value = "waypoint")]
    pub pod_name: String,
    /// This pod's namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub pod_namespace: String,
    /// This pod's service account.
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "default")]
    pub account: String,
    /// This pod's address.
    #[arg(long, env = "INSTANCE_IP", default_value = "1.1.1.1")]
    pub instance_ip: String,
    /// Trust domain.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Lifetime of certificates to ask for, seconds.
    #[arg(long, env = "SECRET_TTL", default_value_t = 86_400)]
    pub secret_ttl: u64,
    /// Data plane threads; 0: one for each core.
    #[arg(long, env = "KARST_WORKER_THREADS", default_value_t = 0)]
    pub workers: usize,
    /// Where tunnels are accepted.
    #[arg(long, env = "HBONE_ADDR", default_value = "[::]:15008")]
    pub hbone: SocketAddr,
    /// Admin page (loopback).
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Metrics.
    #[arg(long, env = "STATS_ADDR", default_value = "[::]:15020")]
    pub stats: SocketAddr,
    /// Readiness.
    #[arg(long, env = "READINESS_ADDR", default_value = "[::]:15021")]
    pub readiness: SocketAddr,
    /// Resolvers for endpoints that are known by a host name only.
    #[arg(long, env = "KARST_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Longest drain, seconds.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", default_value_t = 5)]
    pub drain_deadline: u64,
    /// The access log, one line for each request.
    #[arg(long, env = "KARST_ACCESS_LOG", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
    /// text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    #[serde(skip)]
    pub log_format: Format,
    /// Filter, as info or debug.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
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

    /// Who we are.
    ///
    /// # Errors
    /// If the names cannot be part of a SPIFFE id.
    pub fn identity(&self) -> Result<Identity, String> {
        Identity::new(&self.trust_domain, &self.pod_namespace, &self.account)
            .map_err(|e| format!("TRUST_DOMAIN, POD_NAMESPACE, SERVICE_ACCOUNT: {e}"))
    }

    /// The discovery server and the certificate authority.
    ///
    /// # Errors
    /// For an address that would be spoken to in plaintext.
    pub fn remotes(&self) -> Result<(ControlPlaneClient, ControlPlaneClient), String> {
        let ca = if self.ca_address.is_empty() { &self.xds_address } else { &self.ca_address };
        let remote = |option: &str, a: &str| {
            Ok::<_, String>(ControlPlaneClient {
                address: ControlPlaneClient::url(option, a)?,
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
