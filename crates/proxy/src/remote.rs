//! How the control plane is reached: always in TLS, always with a token.

use karst_api::ads;
use karst_rt::error::chain;
use std::{fs, io, path::PathBuf, time::Duration};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// The control plane's service may have endpoints whose packets lead nowhere: the next attempt goes to another.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the control plane cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It would be in plaintext.
    #[error("{option} {address:?}: {scheme} is not supported; use https://HOST:PORT or HOST:PORT")]
    Plaintext {
        /// Which option has the address.
        option: String,
        /// As it was given.
        address: String,
        /// Of the address.
        scheme: String,
    },
    /// The file with its root certificate cannot be read.
    #[error("root certificate {} (XDS_ROOT_CA): {error}", .path.display())]
    RootFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The file holds no root certificate.
    #[error("root certificate {}: {error}", .path.display())]
    Root {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: tonic::transport::Error,
    },
    /// The address is no URL.
    #[error("address {address:?}: {error}")]
    Address {
        /// As it was given.
        address: String,
        /// Why not.
        error: tonic::transport::Error,
    },
    /// There is no connection.
    #[error("{address}: {}", chain(.error))]
    Connect {
        /// To where.
        address: String,
        /// Why not.
        error: tonic::transport::Error,
    },
    /// The file with the token cannot be read.
    #[error("token {} (AUTH_TOKEN): {error}", .path.display())]
    Token {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

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
    pub fn url(option: &str, address: &str) -> Result<String, RemoteError> {
        match address.split_once("://") {
            None => Ok(format!("https://{address}")),
            Some(("https", _)) => Ok(address.to_string()),
            Some((scheme, _)) => {
                Err(RemoteError::Plaintext { option: option.into(), address: address.into(), scheme: scheme.into() })
            }
        }
    }

    /// A channel to it.
    ///
    /// # Errors
    /// What could not be read, or why there is no connection.
    pub async fn channel(&self) -> Result<Channel, RemoteError> {
        let (path, address) = (|| self.root_ca.clone(), || self.address.clone());
        let root = fs::read(&self.root_ca).map_err(|error| RemoteError::RootFile { path: path(), error })?;
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root));
        if !self.alt_hostname.is_empty() {
            tls = tls.domain_name(&self.alt_hostname);
        }
        let endpoint =
            Endpoint::from_shared(address()).map_err(|error| RemoteError::Address { address: address(), error })?;
        let endpoint = endpoint.tls_config(tls).map_err(|error| RemoteError::Root { path: path(), error })?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        endpoint.connect().await.map_err(|error| RemoteError::Connect { address: address(), error })
    }

    /// The token to present.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn bearer(&self) -> Result<String, RemoteError> {
        fs::read_to_string(&self.auth_token)
            .map(|t| t.trim().to_string())
            .map_err(|error| RemoteError::Token { path: self.auth_token.clone(), error })
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
