//! How the control plane is reached: always in TLS, always with a token.

use crate::secrets::CaClient;
use karst_api::ads;
use std::{fs, path::PathBuf, time::Duration};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// The control plane's service may have endpoints whose packets lead nowhere: the next attempt goes to another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A server of the control plane, and what to show it.
#[derive(Clone, Debug)]
pub struct ControlPlaneClient {
    /// `https://HOST:PORT`.
    pub address: String,
    /// PEM file with its root certificate (XDS_ROOT_CA).
    pub root_ca: PathBuf,
    /// Name that its certificate must have, if it is not that of the address.
    pub alt_hostname: String,
    /// File with the token, read anew for each call (AUTH_TOKEN).
    pub auth_token: PathBuf,
    /// Name of our cluster.
    pub cluster_id: String,
    /// Certificates come from this directory, not from a certificate authority.
    pub local_certs: Option<PathBuf>,
    /// Certificates are asked for in the names of others (a node proxy does); else only in our own.
    pub impersonates: bool,
}

impl ControlPlaneClient {
    /// The `https` URL of an address.
    ///
    /// # Errors
    /// For one that would be spoken to in plaintext: tokens and identities pass there.
    pub fn url(option: &str, address: &str) -> Result<String, String> {
        match address.split_once("://") {
            None => Ok(format!("https://{address}")),
            Some(("https", _)) => Ok(address.to_string()),
            Some((other, _)) => {
                Err(format!("{option} {address:?}: {other} is not supported; use https://HOST:PORT or HOST:PORT"))
            }
        }
    }

    /// A channel to it.
    ///
    /// # Errors
    /// What could not be read, or why there is no connection.
    pub async fn channel(&self) -> Result<Channel, String> {
        let root = fs::read(&self.root_ca)
            .map_err(|e| format!("root certificate {} (XDS_ROOT_CA): {e}", self.root_ca.display()))?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root));
        if !self.alt_hostname.is_empty() {
            tls = tls.domain_name(&self.alt_hostname);
        }
        let e = Endpoint::from_shared(self.address.clone()).map_err(|e| format!("address {:?}: {e}", self.address))?;
        let e = e.tls_config(tls).map_err(|e| format!("root certificate {}: {e}", self.root_ca.display()))?;
        let e = e
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        e.connect().await.map_err(|e| {
            let mut text = format!("{}: {e}", self.address);
            let mut cause = std::error::Error::source(&e);
            while let Some(c) = cause {
                text = format!("{text}: {c}");
                cause = c.source();
            }
            text
        })
    }

    /// The token to present.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn bearer(&self) -> Result<String, String> {
        let path = &self.auth_token;
        fs::read_to_string(path)
            .map(|t| t.trim().to_string())
            .map_err(|e| format!("token {} (AUTH_TOKEN): {e}", path.display()))
    }
}

impl CaClient for ControlPlaneClient {
    fn connect(&self) -> impl Future<Output = Result<Channel, String>> {
        self.channel()
    }
    fn token(&self) -> Result<String, String> {
        self.bearer()
    }
    fn impersonates(&self) -> bool {
        self.impersonates
    }
    fn directory(&self) -> Option<&std::path::Path> {
        self.local_certs.as_deref()
    }
}

/// How a proxy introduces itself to the control plane.
pub struct NodeMetadata<'a> {
    /// `ztunnel` or `waypoint`: the control plane tells them apart by it.
    pub kind: &'a str,
    /// This pod.
    pub pod: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its service account, where the control plane asks for it.
    pub account: Option<&'a str>,
    /// Its address.
    pub ip: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
    /// The cluster's DNS domain.
    pub domain: &'a str,
}

impl NodeMetadata<'_> {
    /// As xDS has it.
    pub fn node(&self) -> ads::Node {
        let text = |s: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(s.to_string())) };
        let fields = [
            ("NAME", Some(self.pod)),
            ("NAMESPACE", Some(self.namespace)),
            ("NODE_NAME", Some(self.node)),
            ("CLUSTER_ID", Some(self.cluster)),
            ("INSTANCE_IPS", Some(self.ip)),
            ("SERVICE_ACCOUNT", self.account),
        ];
        let fields = fields.iter().filter_map(|(k, v)| Some((k.to_string(), text((*v)?)))).collect();
        ads::Node {
            id: format!(
                "{}~{}~{}.{}~{}.svc.{}",
                self.kind, self.ip, self.pod, self.namespace, self.namespace, self.domain
            ),
            cluster: String::new(),
            client_features: vec![],
            metadata: Some(prost_types::Struct { fields }),
        }
    }
}
