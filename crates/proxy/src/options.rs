//! The options that both proxies have, under Istio's environment names where Istio has them. Each proxy's own Config has them
//! flattened in; environment variables are read there and nowhere else.

use crate::remote::{ControlPlaneClient, RemoteError};
use clap::Args;
use karst_rt::log::Format;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How the control plane is reached.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
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
}

/// What is kept of connections and requests.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// Keep a book of the flows seen lately (who has called what, and what policies said) for the admin page /flows and
    /// `karst policy`.
    #[arg(long, env = "KARST_FLOWS", default_value_t = true, action = clap::ArgAction::Set)]
    pub flows: bool,
}

/// For whom certificates are asked for, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Asks<'a> {
    /// Certificates come from this directory, not from a certificate authority.
    pub local_certs: Option<&'a Path>,
    /// They are asked for in the names of others (a node proxy does); else only in our own.
    pub impersonates: bool,
}

impl ControlPlane {
    /// The discovery server and the certificate authority.
    ///
    /// # Errors
    /// For an address that would be spoken to in plaintext: tokens and identities pass there.
    pub fn clients(
        &self,
        cluster_id: &str,
        asks: Asks<'_>,
    ) -> Result<(ControlPlaneClient, ControlPlaneClient), RemoteError> {
        let client = |option: &str, address: &str| {
            Ok(ControlPlaneClient {
                address: ControlPlaneClient::url(option, address)?,
                root_ca: self.root_ca.clone(),
                alt_hostname: self.alt_hostname.clone(),
                auth_token: self.auth_token.clone(),
                cluster_id: cluster_id.into(),
                local_certs: asks.local_certs.map(Path::to_path_buf),
                impersonates: asks.impersonates,
            })
        };
        let ca = if self.ca_address.is_empty() { &self.xds_address } else { &self.ca_address };
        Ok((client("XDS_ADDRESS", &self.xds_address)?, client("CA_ADDRESS", ca)?))
    }
}

/// Where the process is.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
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
}

/// Of certificates.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificates {
    /// Trust domain of the mesh.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Lifetime of certificates to request, in seconds.
    #[arg(long, env = "SECRET_TTL", default_value_t = 86_400, value_parser = seconds)]
    pub secret_ttl: u64,
}

/// Of the log.
#[derive(Clone, Debug, Args, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Log format: text or json.
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    #[serde(skip)]
    pub log_format: Format,
    /// Log level or filter, for example info or debug.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
}

/// Why a text is not a number of seconds.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("use whole seconds, for example 90, 90s, 1m30s or 24h")]
pub struct NotSeconds;

/// Seconds: a number, or as Istio writes durations (`24h`, `1m30s`).
///
/// # Errors
/// Anything else, and what does not fit.
pub fn seconds(text: &str) -> Result<u64, NotSeconds> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let (mut sum, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let unit = rest.find(|sign: char| !sign.is_ascii_digit()).ok_or(NotSeconds)?;
        let (number, behind) = rest.split_at(unit);
        let (factor, behind) = match behind.split_at_checked(1).ok_or(NotSeconds)? {
            ("h", behind) => (3600, behind),
            ("m", behind) if !behind.starts_with('s') => (60, behind),
            ("s", behind) => (1, behind),
            _ => return Err(NotSeconds),
        };
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or(NotSeconds)?;
        sum = sum.checked_add(part).ok_or(NotSeconds)?;
        rest = behind;
    }
    if text.is_empty() { Err(NotSeconds) } else { Ok(sum) }
}

/// Data plane threads; 0: one per core.
pub fn worker_count(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        control_plane: ControlPlane,
    }

    #[test]
    fn seconds_are_a_number_or_a_duration() {
        for (text, want) in [("90", 90), ("0", 0), ("90s", 90), ("1m30s", 90), ("24h", 86_400), ("1h1s", 3601)] {
            assert_eq!(seconds(text), Ok(want), "{text}");
        }
        for text in ["", "s", "1d", "500ms", "1.5s", "-1s", "1m30", "h", "é", "99999999999999999999h"] {
            assert_eq!(seconds(text), Err(NotSeconds), "{text}");
        }
    }

    #[test]
    fn the_control_plane_is_never_spoken_to_in_plaintext() {
        let asks = Asks { local_certs: None, impersonates: false };
        let with = |args: &[&str]| {
            let options = Options::parse_from([&["proxy"], args].concat());
            options.control_plane.clients("c", asks).map(|(xds, ca)| (xds.address, ca.address))
        };
        let both = |a: &str, b: &str| (a.to_string(), b.to_string());
        let same = with(&["--xds-address", "istiod:15012"]).unwrap();
        assert_eq!(same, both("https://istiod:15012", "https://istiod:15012"));
        let apart = with(&["--xds-address", "https://a:1", "--ca-address", "b:2"]).unwrap();
        assert_eq!(apart, both("https://a:1", "https://b:2"));
        let e = with(&["--xds-address", "a:1", "--ca-address", "http://b:2"]).unwrap_err().to_string();
        assert!(e.contains("CA_ADDRESS") && e.contains("http is not supported"), "{e}");
    }
}
