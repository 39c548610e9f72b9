//! What stands in front of a gateway, and how far it is believed (Istio's gatewayTopology). Nothing is believed that is not asked for:
//! by default the client is whoever has opened the connection, and what it says of certificates is taken out.

use karst_api::route as ir;

/// What stands in front of a gateway, and what it tells on of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// The client is the Nth address from the right in X-Forwarded-For; 0: whom the connection is from.
    pub trusted_proxies: usize,
    /// What becomes of x-forwarded-client-cert.
    client_certificate: ir::ForwardClientCert,
    /// Every connection begins with a header of the PROXY protocol; one without is closed.
    pub proxy_protocol: bool,
}

/// What becomes of x-forwarded-client-cert (Envoy's ForwardClientCertDetails).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateMode {
    /// It is taken out.
    Sanitize,
    /// From who has shown a certificate it goes on as it is.
    ForwardOnly,
    /// The same, and what is known of the certificate is added.
    AppendForward,
    /// What is known of the certificate is put in its place.
    SanitizeSet,
    /// It goes on as it is, from whomever.
    AlwaysForwardOnly,
}

/// A mode of a later version.
#[derive(Debug, thiserror::Error)]
#[error("topology: mode {0} of x-forwarded-client-cert")]
pub struct TopologyError(i32);

impl Topology {
    /// Of a gateway that is told this; None: nothing.
    ///
    /// # Errors
    /// If the message is of a later version.
    pub fn new(topology: Option<&ir::Topology>) -> Result<Self, TopologyError> {
        let Some(topology) = topology else { return Ok(Self::default()) };
        let mode = topology.forward_client_cert;
        Ok(Self {
            trusted_proxies: topology.trusted_proxies as usize,
            client_certificate: ir::ForwardClientCert::try_from(mode).map_err(|_| TopologyError(mode))?,
            proxy_protocol: topology.proxy_protocol,
        })
    }

    /// What becomes of x-forwarded-client-cert, at a gateway or at a waypoint.
    pub fn client_certificate(&self, is_at_gateway: bool) -> CertificateMode {
        match self.client_certificate {
            ir::ForwardClientCert::Standard if is_at_gateway => CertificateMode::SanitizeSet,
            ir::ForwardClientCert::Standard | ir::ForwardClientCert::Sanitize => CertificateMode::Sanitize,
            ir::ForwardClientCert::ForwardOnly => CertificateMode::ForwardOnly,
            ir::ForwardClientCert::AppendForward => CertificateMode::AppendForward,
            ir::ForwardClientCert::SanitizeSet => CertificateMode::SanitizeSet,
            ir::ForwardClientCert::AlwaysForwardOnly => CertificateMode::AlwaysForwardOnly,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn nothing_is_believed_that_is_not_asked_for() {
        let topology = Topology::new(None).unwrap();
        assert_eq!((topology.trusted_proxies, topology.proxy_protocol), (0, false));
        assert_eq!(topology.client_certificate(true), CertificateMode::SanitizeSet);
        assert_eq!(topology.client_certificate(false), CertificateMode::Sanitize);
        let later = ir::Topology { forward_client_cert: 9, ..Default::default() };
        assert!(Topology::new(Some(&later)).is_err());
    }
}
