//! The flags that every verb takes, with istioctl's names and environment variables.

use clap::Args;
use std::path::PathBuf;

/// Flags of every verb.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Kubernetes configuration file [default: KUBECONFIG, then ~/.kube/config]
    #[arg(short = 'c', long, global = true, env = "ISTIOCTL_KUBECONFIG", value_name = "FILE", hide_env_values = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the configuration file [default: its current context]
    #[arg(long, global = true, env = "ISTIOCTL_CONTEXT", value_name = "NAME", hide_env_values = true)]
    pub context: Option<String>,
    /// Namespace of what is named [default: the context's namespace]
    #[arg(short = 'n', long, global = true, env = "ISTIOCTL_NAMESPACE", value_name = "NAME", hide_env_values = true)]
    pub namespace: Option<String>,
    /// Namespace of the mesh
    #[arg(
        short = 'i',
        long = "istioNamespace",
        visible_alias = "istio-namespace",
        global = true,
        env = "ISTIOCTL_ISTIONAMESPACE",
        default_value = "istio-system",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub istio_namespace: String,
}
