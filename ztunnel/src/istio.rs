//! What Istio's charts say to a ztunnel in other words than ours, so that this one can stand in its place: the arguments
//! `proxy ztunnel`, and environment variables. What would mean another security than ours is refused, not passed over.

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

/// As Istio's charts set it.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Istio {
    /// Arguments of Istio's charts (`proxy ztunnel`); they change nothing.
    #[arg(value_name = "ARGUMENT", value_parser = ["proxy", "ztunnel"], num_args = 0..=2, hide = true)]
    #[serde(skip)]
    pub arguments: Vec<String>,
    /// Name of the cluster, as Istio's charts give it; overrides CLUSTER_ID.
    #[arg(long, env = "ISTIO_META_CLUSTER_ID")]
    pub meta_cluster_id: Option<String>,
    /// If false, there is no DNS proxy, whatever DNS_CAPTURE is (proxy metadata in Istio).
    #[arg(long, env = "ISTIO_META_DNS_CAPTURE", action = ArgAction::Set)]
    pub meta_dns_capture: Option<bool>,
    /// Serve pods from inside their network namespaces. Only true is supported.
    #[arg(long, env = "INPOD_ENABLED", default_value_t = true, action = ArgAction::Set)]
    pub inpod: bool,
    /// One ztunnel for a node (shared). A ztunnel for a single workload (dedicated) is not supported.
    #[arg(long, env = "PROXY_MODE", default_value = "shared")]
    pub proxy_mode: ProxyMode,
    /// Certificates without a certificate authority. Only false is supported; see KARST_LOCAL_CERTS.
    #[arg(long, env = "FAKE_CA", default_value_t = false, action = ArgAction::Set)]
    pub fake_ca: bool,
}

/// For whom a ztunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum ProxyMode {
    /// All pods of a node.
    Shared,
    /// One workload.
    Dedicated,
}

/// What Istio's ztunnel does and this one does not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// Redirection from the node's own namespace.
    #[error("INPOD_ENABLED=false: only pods' own network namespaces are supported; remove it or set it to true")]
    NotInPod,
    /// Without a node agent.
    #[error("PROXY_MODE=dedicated: a ztunnel for one workload is not supported; remove it or set it to shared")]
    Dedicated,
    /// Identities that nobody vouches for.
    #[error(
        "FAKE_CA=true: certificates that no authority has signed are not supported; remove it, and set CA_ADDRESS or \
         KARST_LOCAL_CERTS"
    )]
    FakeCa,
}

impl Istio {
    /// Is all that is asked for here done?
    ///
    /// # Errors
    /// The first setting that is not.
    pub fn check(&self) -> Result<(), Unsupported> {
        match self {
            Self { inpod: false, .. } => Err(Unsupported::NotInPod),
            Self { proxy_mode: ProxyMode::Dedicated, .. } => Err(Unsupported::Dedicated),
            Self { fake_ca: true, .. } => Err(Unsupported::FakeCa),
            Self { inpod: true, proxy_mode: ProxyMode::Shared, fake_ca: false, .. } => Ok(()),
        }
    }
}
