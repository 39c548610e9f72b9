//! Connecting, by the kubeconfig's rules: --kubeconfig, KUBECONFIG, ~/.kube/config; in a pod its service account.

use super::failure::failed;
use crate::{options::Global, problem::Problem};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// A connection to a cluster.
#[derive(Clone)]
pub struct Cluster {
    pub(super) client: Client,
    /// Namespace of what is named without one: -n, else the context's.
    pub namespace: String,
    /// Namespace of the mesh.
    pub istio_namespace: String,
    /// The API server's address.
    pub server: String,
}

impl Cluster {
    /// Reads the configuration; nothing is asked of the API server yet.
    ///
    /// # Errors
    /// If there is no configuration, or it does not have what is named.
    pub async fn connect(global: &Global) -> Result<Self, Problem> {
        let config = config(global).await?;
        let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let (server, istio_namespace) = (config.cluster_url.to_string(), global.istio_namespace.clone());
        let client = Client::try_from(config).map_err(|e| failed("the Kubernetes configuration cannot be used", &e))?;
        Ok(Self { client, namespace, istio_namespace, server })
    }

    /// The client, for what this crate has no call of its own.
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

async fn config(global: &Global) -> Result<Config, Problem> {
    let what = "no Kubernetes cluster is configured";
    let next = "set KUBECONFIG or pass --kubeconfig FILE; `kubectl config get-contexts` lists contexts";
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    if let Some(file) = &global.kubeconfig {
        let read = Kubeconfig::read_from(file).map_err(|e| {
            Problem::new(format!("--kubeconfig {}: cannot be read", file.display())).because(e).next(next)
        })?;
        return Config::from_custom_kubeconfig(read, &options).await.map_err(|e| {
            Problem::new(format!("--kubeconfig {}: cannot be used", file.display())).because(e).next(next)
        });
    }
    if global.context.is_some() {
        let named = |e| Problem::new("--context: cannot be used").because(e).next(next);
        return Config::from_kubeconfig(&options).await.map_err(named);
    }
    Config::infer().await.map_err(|e| Problem::new(what).because(e).next(next))
}
