//! ztunnel's options, under Istio's environment names where Istio has them. Environment variables are read here and
//! nowhere else; `/config_dump` shows the result.

use crate::{
    istio::{Istio, Unsupported},
    mesh_config::OutboundMode,
};
use clap::Parser;
use karst_hbone::Settings;
use karst_proxy::{
    options::{Asks, Certificates, ControlPlane, Flows, Log, Place, seconds},
    remote::{ControlPlaneClient, RemoteError},
};
use karst_rt::socket::Keepalive;
use serde::Serialize;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Karst's node proxy.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "ztunnel", version)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    #[command(flatten)]
    #[serde(flatten)]
    pub control_plane: ControlPlane,
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
    #[command(flatten)]
    #[serde(flatten)]
    pub place: Place,
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
    #[command(flatten)]
    #[serde(flatten)]
    pub certificates: Certificates,
    /// Where pods of the mesh may connect to; overrides the mesh configuration. REGISTRY_ONLY refuses addresses that are neither a
    /// service's nor a workload's.
    #[arg(long, env = "OUTBOUND_TRAFFIC_POLICY")]
    pub outbound_traffic_policy: Option<OutboundMode>,
    /// File with the mesh configuration (key `mesh` of ConfigMap istio), for outboundTrafficPolicy.mode; changes are applied. A file
    /// missing at the start is treated as empty.
    #[arg(long, env = "MESH_CONFIG_PATH")]
    pub mesh_config: Option<PathBuf>,
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
    #[arg(long, env = "CONNECTION_TERMINATION_DEADLINE", value_parser = seconds)]
    pub drain_deadline: Option<u64>,
    /// Grace period of the pod in Kubernetes, in seconds: the drain is 5 s shorter (1 s shorter, if it is at most 10 s).
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", value_parser = seconds)]
    pub grace_period: Option<u64>,
    /// Enable TCP keepalive.
    #[arg(long, env = "KEEPALIVE_ENABLED", default_value_t = true, action = clap::ArgAction::Set)]
    pub keepalive: bool,
    /// Idle time before the first keepalive probe, in seconds.
    #[arg(long, env = "KEEPALIVE_TIME", default_value_t = 180, value_parser = seconds)]
    pub keepalive_time: u64,
    /// Interval between keepalive probes, in seconds.
    #[arg(long, env = "KEEPALIVE_INTERVAL", default_value_t = 180, value_parser = seconds)]
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
    #[arg(long, env = "POOL_UNUSED_RELEASE_TIMEOUT", default_value_t = 300, value_parser = seconds)]
    pub pool_idle: u64,
    /// Enable the access log, one line per connection.
    #[arg(long, env = "KARST_ACCESS_LOG", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
    /// Count the HTTP and gRPC requests of connections that no waypoint serves, by reading their heads in passing. If false, only
    /// connections are counted.
    #[arg(long, env = "KARST_HTTP_SIGNALS", default_value_t = true, action = clap::ArgAction::Set)]
    pub http_signals: bool,
    /// Ask the discovery server, which must be Karst's controller, for what the node's pods call instead of being told of the whole
    /// mesh. It needs less memory in a large mesh; the first connection to a destination waits for the answer, and while the
    /// controller is unavailable, destinations that were not called lately are refused.
    #[arg(long, env = "XDS_ON_DEMAND", default_value_t = false, action = clap::ArgAction::Set)]
    pub on_demand: bool,
    /// Pass open connections to the next ztunnel of the node when this one is told to stop, and take over those of the one before.
    /// If false, they may finish until the drain ends.
    #[arg(long, env = "KARST_HAND_OVER", default_value_t = true, action = clap::ArgAction::Set)]
    pub hand_over: bool,
    /// Keep a second process ready, with the mesh's state and certificates, that takes over at once if the serving one crashes or
    /// is killed (the charts set it). It needs about as much memory as an idle ztunnel.
    #[arg(long, env = "KARST_WARM_SPARE", default_value_t = false, action = clap::ArgAction::Set)]
    pub warm_spare: bool,
    /// Keep connections open when the serving process is killed (SIGKILL, or for want of memory): the spare goes on with them, at most
    /// once in 10 s. Those by tunnels need it at both ends, and Linux 6.12. It needs KARST_WARM_SPARE. If false, a crash cuts all
    /// connections.
    #[arg(long, env = "KARST_SURVIVE_KILL", default_value_t = false, action = clap::ArgAction::Set)]
    pub survive_kill: bool,
    /// Set by the supervisor: this process stands by until it is told to serve, on standard input.
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub standby: bool,
    /// Set by the supervisor: this process serves, and so many before it have crashed.
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub crashes: Option<u32>,
    #[command(flatten)]
    #[serde(flatten)]
    pub istio: Istio,
    #[command(flatten)]
    #[serde(flatten)]
    pub flows: Flows,
    #[command(flatten)]
    #[serde(flatten)]
    pub log: Log,
}

impl Config {
    /// Takes over what Istio's charts say in other words.
    ///
    /// # Errors
    /// They ask for something that this ztunnel does not do.
    pub fn adopt(mut self) -> Result<Self, Unsupported> {
        self.istio.check()?;
        if let Some(cluster) = &self.istio.meta_cluster_id {
            self.place.cluster_id.clone_from(cluster);
        }
        self.dns &= self.istio.meta_dns_capture.unwrap_or(true);
        Ok(self)
    }
    /// Has the supervisor started this process?
    pub fn is_supervised(&self) -> bool {
        self.standby || self.crashes.is_some()
    }
    /// Do open connections outlive this process, should it be killed? There must be somebody to go on with them.
    pub fn outlives(&self) -> bool {
        self.survive_kill && self.is_supervised()
    }
    /// Is this process the supervisor?
    pub fn supervises(&self) -> bool {
        self.warm_spare && !self.is_supervised()
    }
    /// The namespace whose policies are for all namespaces.
    pub fn root_namespace(&self) -> &str {
        if self.root_namespace.is_empty() { &self.pod_namespace } else { &self.root_namespace }
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
    /// The discovery server and the certificate authority.
    ///
    /// # Errors
    /// For an address that would be spoken to in plaintext.
    pub fn remotes(&self) -> Result<(ControlPlaneClient, ControlPlaneClient), RemoteError> {
        let asks = Asks { local_certs: self.local_certs.as_deref(), impersonates: true };
        self.control_plane.clients(&self.place.cluster_id, asks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn drain_follows_the_grace_period() {
        let with = |args: &[&str]| Config::parse_from([&["ztunnel"], args].concat()).drain_limit().as_secs();
        assert_eq!(with(&[]), 5);
        assert_eq!(with(&["--grace-period", "30"]), 25);
        assert_eq!(with(&["--grace-period", "10"]), 9);
        assert_eq!(with(&["--grace-period", "30", "--drain-deadline", "3"]), 3);
    }

    #[test]
    fn options_of_both_proxies_keep_their_place_and_name() {
        let command = Config::command();
        assert_eq!(command.get_about().map(ToString::to_string).as_deref(), Some("Karst's node proxy"));
        let names: Vec<_> = command.get_arguments().filter_map(|a| a.get_env()?.to_str()).collect();
        assert_eq!(
            names[..6],
            ["XDS_ADDRESS", "CA_ADDRESS", "XDS_ROOT_CA", "ALT_XDS_HOSTNAME", "AUTH_TOKEN", "LOCAL_XDS_PATH"]
        );
        assert_eq!(names[names.len() - 2..], ["LOG_FORMAT", "RUST_LOG"]);
        let dump = serde_json::to_value(Config::parse_from(["ztunnel"])).unwrap();
        for key in ["xdsAddress", "authToken", "clusterId", "node", "trustDomain", "secretTtl", "logLevel", "zds"] {
            assert!(dump.get(key).is_some(), "{key}: {dump}");
        }
    }

    /// The environment and the arguments of the DaemonSet that Istio's chart renders.
    #[test]
    fn istios_chart_starts_it() {
        let with = |args: &[&str]| Config::parse_from([&["ztunnel", "proxy", "ztunnel"], args].concat()).adopt();
        assert_eq!(with(&[]).unwrap().place.cluster_id, "Kubernetes");
        assert_eq!(with(&["--meta-cluster-id", "east"]).unwrap().place.cluster_id, "east");
        let quiet = with(&["--meta-dns-capture", "false", "--inpod", "true", "--proxy-mode", "shared"]).unwrap();
        assert!(!quiet.dns && with(&["--meta-dns-capture", "true"]).unwrap().dns);
        let timed = with(&["--keepalive-time", "3m", "--secret-ttl", "24h", "--drain-deadline", "1m30s"]).unwrap();
        assert_eq!((timed.keepalive_time, timed.certificates.secret_ttl), (180, 86_400));
        assert_eq!(timed.drain_limit(), Duration::from_secs(90));
        for (args, want) in [
            (["--inpod", "false"], Unsupported::NotInPod),
            (["--proxy-mode", "dedicated"], Unsupported::Dedicated),
            (["--fake-ca", "true"], Unsupported::FakeCa),
        ] {
            assert_eq!(with(&args).err(), Some(want));
        }
        assert!(Config::try_parse_from(["ztunnel", "proxy", "waypoint"]).is_err());
    }

    /// The supervisor starts its processes with its own environment and arguments, Istio's too, and one more.
    #[test]
    fn a_process_of_the_supervisor_is_not_a_supervisor() {
        let with = |args: &[&str]| {
            let config = Config::parse_from([&["ztunnel", "proxy", "ztunnel", "--warm-spare", "true"], args].concat());
            (config.supervises(), config.standby, config.crashes)
        };
        assert_eq!(with(&[]), (true, false, None));
        assert_eq!(with(&["--standby"]), (false, true, None));
        assert_eq!(with(&["--crashes", "0"]), (false, false, Some(0)));
        assert!(!Config::parse_from(["ztunnel"]).supervises(), "it must be asked for");
    }

    #[test]
    fn connections_outlive_only_processes_of_a_supervisor_that_are_told_so() {
        let with = |args: &[&str]| Config::parse_from([&["ztunnel"], args].concat()).outlives();
        assert!(!with(&[]) && !with(&["--standby"]) && !with(&["--survive-kill", "true"]));
        assert!(with(&["--survive-kill", "true", "--standby"]) && with(&["--survive-kill", "true", "--crashes", "0"]));
        assert!(!with(&["--survive-kill", "false", "--standby"]));
    }

    /// What can end a process, or shows what it knows, is for who is on the node unless an operator says otherwise.
    #[test]
    fn admin_pages_are_for_loopback() {
        assert!(Config::parse_from(["ztunnel"]).admin.ip().is_loopback());
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
