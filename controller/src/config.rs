//! The controller's options. Environment variables are read here and nowhere else.

use crate::{
    convert::{Mesh, Revision, Template},
    jwks,
    reach::Reach,
};
use clap::{Args, Parser, Subcommand};
use karst_core::Cidr;
use karst_kube::ObjectSource;
use karst_rt::log::Format;
use std::{net::SocketAddr, path::PathBuf};

/// Karst's control plane.
#[derive(Debug, Parser)]
#[command(name = "karst-controller", version)]
pub struct Cli {
    #[command(flatten)]
    pub config: Config,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Subcommands; without one the controller serves.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a token of directory mode, with the claims of a Kubernetes bound token.
    Token(Token),
    /// Read the manifests once, print every problem, and exit with 1 if there is any.
    Check(Check),
    /// Check that a controller answers, with a certificate signed by its root (`helm test`).
    Probe(crate::probe::Probe),
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Check the objects stored in the API server (found by KUBECONFIG, or in a pod) instead of a directory. Read-only; run it with
    /// the new release before an upgrade.
    #[arg(long)]
    pub cluster: bool,
}

/// Options of `token`.
#[derive(Debug, Args)]
pub struct Token {
    /// Namespace and service account, for example istio-system/ztunnel.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub service_account: String,
    /// Name of the pod that the token is bound to (in the same namespace).
    #[arg(long)]
    pub pod: String,
    /// UID of the pod (metadata.uid).
    #[arg(long)]
    pub pod_uid: String,
    /// Name of the pod's node.
    #[arg(long)]
    pub node_name: String,
    /// Lifetime of the token, in seconds.
    #[arg(long, default_value_t = 3600)]
    pub lifetime: u64,
    /// Audience of the token.
    #[arg(long, default_value = karst_api::TOKEN_AUDIENCE)]
    pub audience: String,
}

/// The options.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Source of objects: kubernetes (in a cluster, or by KUBECONFIG), or dir:PATH, a directory of manifests.
    #[arg(long, env = "KARST_SOURCE", default_value = "", value_name = "kubernetes|dir:PATH")]
    pub source: String,
    /// Directory of the certificate authority and, in directory mode, of the token key; created at first start.
    #[arg(long, env = "KARST_DATA_DIR", default_value = "/var/lib/karst")]
    pub data_dir: PathBuf,
    /// Address that serves discovery and certificates (port in Istio: 15012).
    #[arg(long, env = "KARST_GRPC_ADDR", default_value = "0.0.0.0:15012")]
    pub grpc_addr: SocketAddr,
    /// Address that serves metrics, health and debug pages (port in Istio: 15014).
    #[arg(long, env = "KARST_MONITORING_ADDR", default_value = "127.0.0.1:15014")]
    pub monitoring_addr: SocketAddr,
    /// Address that serves the validation webhook, on Kubernetes only (port in Istio: 15017).
    #[arg(long, env = "KARST_WEBHOOK_ADDR", default_value = "0.0.0.0:15017")]
    pub webhook_addr: SocketAddr,
    /// DNS names in the server certificate, comma-separated.
    #[arg(
        long,
        env = "KARST_SERVER_NAMES",
        value_delimiter = ',',
        default_value = "istiod.istio-system.svc,istiod.istio-system.svc.cluster.local,istiod"
    )]
    pub server_names: Vec<String>,
    /// Name of this replica, used to hold the Lease of the replica that writes statuses.
    #[arg(long, env = "POD_NAME", default_value = "karst-controller")]
    pub pod_name: String,
    /// Image of the waypoints deployed for Gateways of class istio-waypoint.
    #[arg(long, env = "KARST_WAYPOINT_IMAGE", default_value = concat!("registry.local/karst/waypoint:", env!("CARGO_PKG_VERSION")))]
    pub waypoint_image: String,
    /// Pull policy of the waypoint image.
    #[arg(long, env = "KARST_WAYPOINT_PULL_POLICY", default_value = "IfNotPresent")]
    pub waypoint_pull_policy: String,
    /// Names of Secrets (comma-separated), in the namespace of each Gateway, with which its pods pull their image.
    #[arg(long, env = "KARST_WAYPOINT_PULL_SECRETS", value_delimiter = ',')]
    pub waypoint_pull_secrets: Vec<String>,
    /// Read Secrets with the certificates of gateways. If false, gateways cannot terminate TLS.
    #[arg(long, env = "KARST_GATEWAY_SECRETS", default_value_t = true, action = clap::ArgAction::Set)]
    pub gateway_secrets: bool,
    /// Allow the ConfigMap in a Gateway's parametersRef to grant privileges to the Gateway's pods: another service account, Secrets,
    /// access to the node, or anything that PodSecurity's level `restricted` forbids. Whoever may write ConfigMaps and Gateways then
    /// has these privileges, too.
    #[arg(long, env = "KARST_PRIVILEGED_PARAMETERS", default_value_t = false, action = clap::ArgAction::Set)]
    pub privileged_parameters: bool,
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// DNS domain of services.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Name of the cluster, as it appears in workload UIDs.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Name of the network (Istio: topology.istio.io/network).
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Namespace whose policies apply to the whole mesh.
    #[arg(long, env = "ROOT_NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,
    /// Name of this control plane among several (Istio: revision): objects with the label istio.io/rev of another one are not read.
    #[arg(long, env = "REVISION", default_value = "default")]
    pub revision: String,
    /// Other names of this revision (comma-separated; Istio: revision tags).
    #[arg(long, env = "REVISION_TAGS", value_delimiter = ',')]
    pub revision_tags: Vec<String>,
    /// ConfigMap in the root namespace whose key `mesh` holds the mesh configuration; changes are applied. Empty: istio, or
    /// istio-REVISION.
    #[arg(long, env = "MESH_CONFIG_MAP", default_value = "")]
    pub mesh_config_map: String,
    /// Default `exportTo` of VirtualServices: * (all namespaces) or . (their own namespace).
    #[arg(long = "virtual-service-export-to", env = "DEFAULT_VIRTUAL_SERVICE_EXPORT_TO", default_value = "*")]
    #[arg(value_delimiter = ',', value_name = "*|.", value_parser = ["*", "."])]
    pub virtual_services_are_for: Vec<String>,
    /// Default `exportTo` of DestinationRules: * (all namespaces) or . (their own namespace).
    #[arg(long = "destination-rule-export-to", env = "DEFAULT_DESTINATION_RULE_EXPORT_TO", default_value = "*")]
    #[arg(value_delimiter = ',', value_name = "*|.", value_parser = ["*", "."])]
    pub destination_rules_are_for: Vec<String>,
    /// Service accounts (namespace/name, comma-separated) that may request certificates for the pods on their node.
    #[arg(long, env = "CA_TRUSTED_NODE_ACCOUNTS", value_delimiter = ',', default_value = "istio-system/ztunnel")]
    pub trusted_node_accounts: Vec<String>,
    /// Default lifetime of workload certificates, in seconds (Istio: 24 h).
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", default_value_t = 86_400)]
    pub default_cert_ttl: u64,
    /// Maximum lifetime of workload certificates, in seconds (Istio: 90 d).
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", default_value_t = 7_776_000)]
    pub max_cert_ttl: u64,
    /// Interval between checks of the authority's Secret, in seconds (Istio: 1 h): a root with less than a fifth of its lifetime left
    /// is renewed with the same key, and a replaced `cacerts` is put in use.
    #[arg(long, env = "KARST_ROOT_CHECK", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub root_check: u64,
    /// PEM file with additional CA certificates for the servers of `jwksUri`, beside the public ones.
    #[arg(long, env = "KARST_JWKS_CA", value_name = "FILE")]
    pub jwks_ca: Option<PathBuf>,
    /// CIDR ranges (comma-separated) that a `jwksUri` must not resolve to. Loopback, link-local, multicast and metadata addresses are
    /// always rejected; private addresses are not.
    #[arg(long, env = "BLOCKED_CIDRS_IN_JWKS_URIS", value_delimiter = ',', value_name = "RANGE")]
    pub jwks_blocked_cidrs: Vec<Cidr>,
    /// CIDR ranges (comma-separated) that a `jwksUri` may resolve to, even if they are rejected otherwise.
    #[arg(long, env = "ALLOWED_CIDRS_IN_JWKS_URIS", value_delimiter = ',', value_name = "RANGE")]
    pub jwks_allowed_cidrs: Vec<Cidr>,
    /// Log format: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Log level or filter, for example info or debug.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
}

impl Config {
    /// What waypoints are made of.
    pub fn template(&self) -> Template {
        Template {
            image: self.waypoint_image.clone(),
            pull_policy: self.waypoint_pull_policy.clone(),
            pull_secrets: self.waypoint_pull_secrets.clone(),
        }
    }
    /// Which of several control planes this is.
    pub fn revision(&self) -> Revision {
        Revision { name: self.revision.clone(), tags: self.revision_tags.clone() }
    }
    /// The name of the ConfigMap with the mesh configuration.
    pub fn mesh_config_name(&self) -> String {
        if self.mesh_config_map.is_empty() { self.revision().named("istio") } else { self.mesh_config_map.clone() }
    }
    /// How keys at `jwksUri` are fetched.
    pub fn jwks(&self) -> jwks::Settings {
        let (allowed, blocked) = (self.jwks_allowed_cidrs.clone(), self.jwks_blocked_cidrs.clone());
        let reach = Reach { allowed, blocked };
        jwks::Settings { reach, authorities: self.jwks_ca.clone() }
    }
    /// Where objects come from.
    pub fn object_source(&self) -> anyhow::Result<ObjectSource> {
        self.source.parse()
    }
}

impl From<&Config> for Mesh {
    fn from(config: &Config) -> Self {
        Self {
            trust_domain: config.trust_domain.clone(),
            cluster_domain: config.cluster_domain.clone(),
            cluster_id: config.cluster_id.clone(),
            network: config.network.clone(),
            root_namespace: config.root_namespace.clone(),
            revision: config.revision(),
            virtual_services_are_for: config.virtual_services_are_for.clone(),
            destination_rules_are_for: config.destination_rules_are_for.clone(),
            privileged_parameters: config.privileged_parameters,
        }
    }
}
