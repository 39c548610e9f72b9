//! ztunnel's options, under Istio's environment names where Istio has them. Environment variables are read here and
//! nowhere else; `/config_dump` shows the result.

use clap::Parser;
use karst_hbone::Settings;
use karst_proxy::remote::{ControlPlaneClient, RemoteError};
use karst_rt::{log::Format, socket::Keepalive};
use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Karst's node proxy.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "ztunnel", version)]
#[serde(rename_all = "camelCase")]
pub struct Config {
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
    /// File that describes the mesh, used instead of a discovery server.
    #[arg(long, env = "LOCAL_XDS_PATH")]
    pub local_xds: Option<PathBuf>,
    /// Directory of certificates, TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT/{cert-chain,key,root-cert}.pem, used instead of a
    /// certificate authority.
    #[arg(long, env = "KARST_LOCAL_CERTS")]
    pub local_certs: Option<PathBuf>,
    /// File with the revocation lists of the mesh's authorities, PEM or DER; changes are applied. A file missing at the start is
    /// treated as empty.
    #[arg(long, env = "CRL_PATH")]
    pub crl: Option<PathBuf>,
    /// DNS resolvers for endpoints that are known only by host name.
    #[arg(long, env = "KARST_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
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
    /// Name of this pod, sent to the discovery server.
    #[arg(long, env = "POD_NAME", default_value = "ztunnel")]
    pub pod_name: String,
    /// Namespace of this pod, sent to the discovery server.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub pod_namespace: String,
    /// Namespace whose policies apply to all namespaces (the controller's ROOT_NAMESPACE); if empty, this pod's.
    #[arg(long, env = "ROOT_NAMESPACE", default_value = "")]
    pub root_namespace: String,
    /// Address of this pod, sent to the discovery server.
    #[arg(long, env = "INSTANCE_IP", default_value = "1.1.1.1")]
    pub instance_ip: String,
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Lifetime of certificates to request, in seconds.
    #[arg(long, env = "SECRET_TTL", default_value_t = 86_400)]
    pub secret_ttl: u64,
    /// Socket of the node agent.
    #[arg(long, env = "INPOD_UDS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    pub zds: PathBuf,
    /// Number of data plane threads; 0 means one per core.
    #[arg(long, env = "ZTUNNEL_WORKER_THREADS", default_value_t = 0)]
    pub workers: usize,
    /// Address that serves the admin pages (loopback).
    #[arg(long, env = "ADMIN_ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Address that serves metrics.
    #[arg(long, env = "STATS_ADDR", default_value = "0.0.0.0:15020")]
    pub stats: SocketAddr,
    /// Address that serves the readiness probe.
    #[arg(long, env = "READINESS_ADDR", default_value = "0.0.0.0:15021")]
    pub readiness: SocketAddr,
    /// Preserve the client's address for the application; if false, it sees the pod's own address.
    #[arg(long, env = "ENABLE_ORIG_SRC", default_value_t = true, action = clap::ArgAction::Set)]
    pub orig_src: bool,
    /// Connect pods of the same node directly, without TLS; policies, identities, metrics and logs stay the same.
    #[arg(long, env = "KARST_SAME_NODE_DIRECT", default_value_t = true, action = clap::ArgAction::Set)]
    pub same_node_direct: bool,
    /// Enable the DNS proxy (proxy metadata in Istio).
    #[arg(long, env = "DNS_CAPTURE", default_value_t = true, action = clap::ArgAction::Set)]
    pub dns: bool,
    /// Enable IPv6.
    #[arg(long, env = "IPV6_ENABLED", default_value_t = true, action = clap::ArgAction::Set)]
    pub ipv6: bool,
    /// Maximum duration of a drain, in seconds.
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE")]
    pub drain_deadline: Option<u64>,
    /// Grace period of the pod in Kubernetes, in seconds: the drain is 5 s shorter (1 s shorter, if it is at most 10 s).
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS")]
    pub grace_period: Option<u64>,
    /// Enable TCP keepalive.
    #[arg(long, env = "KEEPALIVE_ENABLED", default_value_t = true, action = clap::ArgAction::Set)]
    pub keepalive: bool,
    /// Idle time before the first keepalive probe, in seconds.
    #[arg(long, env = "KEEPALIVE_TIME", default_value_t = 180)]
    pub keepalive_time: u64,
    /// Interval between keepalive probes, in seconds.
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value_t = 180)]
    pub keepalive_interval: u64,
    /// Number of unanswered keepalive probes after which a connection is closed.
    #[arg(long, env = "KEEPALIVE_RETRIES", default_value_t = 9)]
    pub keepalive_retries: u32,
    /// HTTP/2 flow control window of a stream, in bytes.
    #[arg(long, env = "HTTP2_STREAM_WINDOW_SIZE", default_value_t = karst_core::limits::STREAM_WINDOW, value_parser = clap::value_parser!(u32).range(65_535..=0x7fff_ffff))]
    pub stream_window: u32,
    /// HTTP/2 flow control window of a connection, in bytes.
    #[arg(long, env = "HTTP2_CONNECTION_WINDOW_SIZE", default_value_t = karst_core::limits::CONNECTION_WINDOW, value_parser = clap::value_parser!(u32).range(65_535..=0x7fff_ffff))]
    pub connection_window: u32,
    /// Maximum size of an HTTP/2 frame, in bytes.
    #[arg(long, env = "HTTP2_FRAME_SIZE", default_value_t = karst_core::limits::MAX_FRAME, value_parser = clap::value_parser!(u32).range(16_384..=16_777_215))]
    pub max_frame: u32,
    /// Maximum number of streams on one tunnel.
    #[arg(long, env = "POOL_MAX_STREAMS_PER_CONNECTION", default_value_t = karst_core::limits::POOL_STREAMS)]
    pub pool_streams: usize,
    /// Time after which an unused tunnel is closed, in seconds.
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", default_value_t = 300)]
    pub pool_idle: u64,
    /// Enable the access log, one line per connection.
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

impl Config {
    /// The namespace whose policies are for all namespaces.
    pub fn root_namespace(&self) -> &str {
        if self.root_namespace.is_empty() { &self.pod_namespace } else { &self.root_namespace }
    }
    /// Data plane threads.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }
    /// How long connections may go on after a SIGTERM (reference ztunnel §3.4).
    pub fn drain_limit(&self) -> Duration {
        let seconds = match (self.drain_deadline, self.grace_period) {
            (Some(d), _) => d,
            (None, Some(g)) if g <= 10 => g.saturating_sub(1),
            (None, Some(g)) => g - 5,
            (None, None) => 5,
        };
        Duration::from_secs(seconds)
    }
    /// Keepalive, if on.
    pub fn keepalive_settings(&self) -> Option<Keepalive> {
        self.keepalive.then(|| Keepalive {
            time: Duration::from_secs(self.keepalive_time),
            interval: Duration::from_secs(self.keepalive_interval),
            retries: self.keepalive_retries,
        })
    }
    /// Settings of tunnels.
    pub fn hbone(&self) -> Settings {
        Settings {
            stream_window: self.stream_window,
            connection_window: self.connection_window,
            max_frame: self.max_frame,
            pool_streams: self.pool_streams.max(1),
            pool_idle: Duration::from_secs(self.pool_idle),
        }
    }
    /// Addresses of the discovery server and of the certificate authority, as URLs.
    ///
    /// # Errors
    /// For one that would be spoken to in plaintext: tokens and identities pass there.
    pub fn control_plane(&self) -> Result<(String, String), RemoteError> {
        let ca = if self.ca_address.is_empty() { &self.xds_address } else { &self.ca_address };
        Ok((ControlPlaneClient::url("XDS_ADDRESS", &self.xds_address)?, ControlPlaneClient::url("CA_ADDRESS", ca)?))
    }
    /// One of them, and what to show it.
    pub fn remote(&self, address: &str) -> ControlPlaneClient {
        ControlPlaneClient {
            address: address.into(),
            root_ca: self.root_ca.clone(),
            alt_hostname: self.alt_hostname.clone(),
            auth_token: self.auth_token.clone(),
            cluster_id: self.cluster_id.clone(),
            local_certs: self.local_certs.clone(),
            impersonates: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_follows_the_grace_period() {
        let with = |args: &[&str]| Config::parse_from([&["ztunnel"], args].concat()).drain_limit().as_secs();
        assert_eq!(with(&[]), 5);
        assert_eq!(with(&["--grace-period", "30"]), 25);
        assert_eq!(with(&["--grace-period", "10"]), 9);
        assert_eq!(with(&["--grace-period", "30", "--drain-deadline", "3"]), 3);
    }

    #[test]
    fn the_control_plane_is_never_spoken_to_in_plaintext() {
        let with = |args: &[&str]| Config::parse_from([&["ztunnel"], args].concat()).control_plane();
        let both = |a: &str, b: &str| (a.to_string(), b.to_string());
        let same = with(&["--xds-address", "istiod:15012"]).unwrap();
        assert_eq!(same, both("https://istiod:15012", "https://istiod:15012"));
        let apart = with(&["--xds-address", "https://a:1", "--ca-address", "b:2"]).unwrap();
        assert_eq!(apart, both("https://a:1", "https://b:2"));
        let e = with(&["--xds-address", "a:1", "--ca-address", "http://b:2"]).unwrap_err().to_string();
        assert!(e.contains("CA_ADDRESS") && e.contains("http is not supported"), "{e}");
    }

    #[test]
    fn wrong_options_are_refused() {
        for args in
            [&["--stream-window", "10"][..], &["--max-frame", "1"], &["--stats", "nowhere"], &["--log-format", "xml"]]
        {
            assert!(Config::try_parse_from([&["ztunnel"], args].concat()).is_err(), "{args:?}");
        }
    }
}
