//! Addresses of endpoints that are known by a host name only (a ServiceEntry's with resolution DNS), by the resolver of this
//! process's resolv.conf, as Istio's ztunnel does (reference ztunnel §4.4). Answers are kept for their TTL.

use hickory_proto::{ProtoError, rr::Name};
use hickory_resolver::{
    Resolver as Hickory, TokioResolver,
    config::{LookupIpStrategy, ResolveHosts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::parse_resolv_conf,
};
use karst_core::limits::DNS_TIMEOUT;
use std::{cell::OnceCell, io, net::IpAddr, path::PathBuf};

/// Answers kept (Istio: 4096).
const CACHE: u64 = 4096;

/// Why an endpoint's host name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolv.conf cannot be read.
    #[error("{} (KARST_RESOLV_CONF): {error}", .file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// There is no resolver by what it says.
    #[error("{} (KARST_RESOLV_CONF): {error}", .file.display())]
    Configuration {
        /// Which.
        file: PathBuf,
        /// Why not.
        error: NetError,
    },
    /// The name has none.
    #[error("the endpoint's host name {host} cannot be resolved: {fault}")]
    Host {
        /// The name.
        host: String,
        /// Why not.
        fault: Fault,
    },
}

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It is no name.
    #[error(transparent)]
    Name(#[from] ProtoError),
    /// The resolvers have not answered.
    #[error("no answer in time")]
    NoAnswer,
    /// What they have answered, or why they could not be asked.
    #[error(transparent)]
    Lookup(#[from] NetError),
    /// They know the name.
    #[error("it has no address")]
    NoAddress,
}

/// A worker's resolver; made when it is first needed.
pub struct Resolver {
    file: PathBuf,
    inner: OnceCell<TokioResolver>,
}

impl Resolver {
    /// By this resolv.conf.
    pub fn new(file: PathBuf) -> Self {
        Self { file, inner: OnceCell::new() }
    }

    fn inner(&self) -> Result<&TokioResolver, ResolveError> {
        if let Some(resolver) = self.inner.get() {
            return Ok(resolver);
        }
        let file = || self.file.clone();
        let text = std::fs::read(&self.file).map_err(|error| ResolveError::File { file: file(), error })?;
        let unusable = |error| ResolveError::Configuration { file: file(), error };
        let (config, mut options) = parse_resolv_conf(text).map_err(unusable)?;
        options.timeout = DNS_TIMEOUT / 2;
        options.cache_size = CACHE;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.use_hosts_file = ResolveHosts::Never;
        let made = Hickory::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build();
        let made = made.map_err(unusable)?;
        Ok(self.inner.get_or_init(|| made))
    }

    /// The addresses of a host name, those of the wanted family if there are any. Not empty.
    ///
    /// # Errors
    /// With the name.
    pub async fn lookup(&self, host: &str, ipv4: bool) -> Result<Vec<IpAddr>, ResolveError> {
        let failed = |fault| ResolveError::Host { host: host.into(), fault };
        // Fully qualified: no search list is gone through.
        let name = Name::from_utf8(format!("{}.", host.trim_end_matches('.'))).map_err(|e| failed(e.into()))?;
        let found = tokio::time::timeout(DNS_TIMEOUT, self.inner()?.lookup_ip(name)).await;
        let found = found.map_err(|_| failed(Fault::NoAnswer))?.map_err(|e| failed(e.into()))?;
        let all = preferred(found.iter(), ipv4);
        if all.is_empty() { Err(failed(Fault::NoAddress)) } else { Ok(all) }
    }
}

/// Those of the wanted family if there are any. IPv4 mapped into IPv6, as an AAAA record may have it, is IPv4, as everywhere in the
/// mesh: else the mesh would not know a member or itself by it.
fn preferred(found: impl Iterator<Item = IpAddr>, ipv4: bool) -> Vec<IpAddr> {
    let (wanted, other): (Vec<_>, Vec<_>) = found.map(|ip| ip.to_canonical()).partition(|ip| ip.is_ipv4() == ipv4);
    if wanted.is_empty() { other } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_wanted_family_are_preferred_and_mapped_ones_are_ipv4() {
        let all = |found: &[&str], ipv4| {
            let found = preferred(found.iter().map(|ip| ip.parse().unwrap()), ipv4);
            found.iter().map(IpAddr::to_string).collect::<Vec<_>>()
        };
        assert_eq!(all(&["fd00::1", "10.0.0.1"], true), ["10.0.0.1"]);
        assert_eq!(all(&["fd00::1", "10.0.0.1"], false), ["fd00::1"]);
        assert_eq!(all(&["fd00::1"], true), ["fd00::1"]);
        assert_eq!(all(&["fd00::1", "::ffff:127.0.0.1"], true), ["127.0.0.1"]);
        assert!(all(&[], true).is_empty());
    }
}
