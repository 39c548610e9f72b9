//! Connecting, by the kubeconfig's rules: --kubeconfig, KUBECONFIG, ~/.kube/config; in a pod its service account.

use super::failure::failed;
use crate::{options::Global, problem::Problem};
use karst_core::Cidr;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use std::{net::IpAddr, time::Duration};

/// An answer must begin within this time. Streams (exec, port-forward) may be silent for as long as they like.
const PATIENCE: Duration = Duration::from_secs(60);
const NEXT: &str = "set KUBECONFIG or pass --kubeconfig FILE; `kubectl config get-contexts` lists contexts";

/// A connection to a cluster.
#[derive(Clone)]
pub struct Cluster {
    pub(super) client: Client,
    /// For exec and port-forward: without the limit of time.
    pub(super) streams: Client,
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
        let login = config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone());
        let unusable = |e| match (&e, &login) {
            (kube::Error::Auth(why), Some(program)) => Problem::new(format!("the login program {program} has failed"))
                .because(why)
                .next("install it, or log in again: the kubeconfig names it (users[].user.exec)"),
            _ => failed("the Kubernetes configuration cannot be used", &e),
        };
        let streams = Client::try_from(config.clone()).map_err(unusable)?;
        let mut limited = config;
        (limited.read_timeout, limited.reset_reader_on_write) = (Some(PATIENCE), true);
        let client = Client::try_from(limited).map_err(unusable)?;
        Ok(Self { client, streams, namespace, istio_namespace, server })
    }

    /// The client, for what this crate has no call of its own.
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

async fn config(global: &Global) -> Result<Config, Problem> {
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match (&global.kubeconfig, &global.context) {
        (Some(file), _) => {
            let named = format!("--kubeconfig {}", file.display());
            // A parser's message goes on with a picture of the line.
            let first = |e: KubeconfigError| e.to_string().lines().next().unwrap_or_default().to_owned();
            let unread = |e| Problem::new(format!("{named}: cannot be read")).because(first(e)).next(NEXT);
            let read = Kubeconfig::read_from(file).map_err(unread)?;
            let names = contexts(&read);
            let made = Config::from_custom_kubeconfig(read, &options).await;
            made.map_err(|e| unusable(&format!("{named}: cannot be used"), &e, &names))?
        }
        (None, Some(context)) => {
            let made = Config::from_kubeconfig(&options).await;
            let names = Kubeconfig::read().map(|read| contexts(&read)).unwrap_or_default();
            made.map_err(|e| unusable(&format!("--context {context}: cannot be used"), &e, &names))?
        }
        (None, None) => Config::infer()
            .await
            .map_err(|e| Problem::new("no Kubernetes cluster is configured").because(e).next(NEXT))?,
    };
    let exempt = ["NO_PROXY", "no_proxy"].into_iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
    if config.cluster_url.host().is_some_and(|host| is_exempt(host, &exempt)) {
        config.proxy_url = None;
    }
    Ok(config)
}

/// The names of a configuration's contexts.
fn contexts(read: &Kubeconfig) -> Vec<String> {
    read.contexts.iter().map(|context| context.name.clone()).collect()
}

fn unusable(what: &str, error: &KubeconfigError, names: &[String]) -> Problem {
    let next = match error {
        KubeconfigError::LoadContext(_) | KubeconfigError::CurrentContextNotSet if names.is_empty() => {
            "it has no contexts: is it a kubeconfig? `kubectl config view` shows the usual one".into()
        }
        KubeconfigError::LoadContext(_) | KubeconfigError::CurrentContextNotSet => {
            format!("pass --context with one of: {}", names.join(", "))
        }
        KubeconfigError::LoadClusterOfContext(_) | KubeconfigError::MissingClusterUrl => {
            "the context names a cluster that is not in the file, or has no server: fetch the kubeconfig anew".into()
        }
        KubeconfigError::LoadCertificateAuthority(_)
        | KubeconfigError::LoadClientCertificate(_)
        | KubeconfigError::LoadClientKey(_)
        | KubeconfigError::ParseCertificates(_) => {
            "a certificate or key that it names cannot be read: log in again, or fetch the kubeconfig anew".into()
        }
        KubeconfigError::ParseProxyUrl(_) => "correct HTTPS_PROXY, or proxy-url in the kubeconfig".into(),
        _ => NEXT.to_owned(),
    };
    Problem::new(what).because(error).next(next)
}

/// Whether NO_PROXY has a host: itself, a domain that it is in, an address range, or `*`.
fn is_exempt(host: &str, list: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let address: Option<IpAddr> = host.parse().ok();
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" || entry.eq_ignore_ascii_case(host) {
            return true;
        }
        if let Some(address) = address {
            return entry.parse::<Cidr>().is_ok_and(|range| range.contains(address));
        }
        let domain = entry.trim_start_matches('.').to_ascii_lowercase();
        host.to_ascii_lowercase().strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_has_hosts_domains_and_ranges() {
        let list = "localhost, .corp.example,10.0.0.0/8,api.example";
        for host in ["localhost", "k8s.corp.example", "10.1.2.3", "API.example", "eu.api.example"] {
            assert!(is_exempt(host, list), "{host}");
        }
        for host in ["corp.example.org", "11.0.0.1", "notapi.example", "2001:db8::1"] {
            assert!(!is_exempt(host, list), "{host}");
        }
        assert!(is_exempt("anything", "*") && !is_exempt("anything", ""));
    }
}
