//! Small services to try a mesh with. They know nothing of it: no TLS, no library, no environment.

use clap::Args;
use std::{io, net::SocketAddr};
use tokio::net::TcpListener;

/// The gRPC service.
#[allow(missing_docs)]
pub mod echo {
    tonic::include_proto!("karst.samples.v1");
}

/// What each server is told.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// Where to listen.
    #[arg(long, env = "LISTEN", value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// What it calls itself.
    #[arg(long, env = "HOSTNAME", default_value = "sample")]
    pub name: String,
    /// Its version.
    #[arg(long, env = "RELEASE", default_value = "v1")]
    pub release: String,
}

impl Serve {
    /// Listens, and says so on the standard output.
    ///
    /// # Errors
    /// Names the address.
    pub async fn listener(&self) -> io::Result<TcpListener> {
        let l = TcpListener::bind(self.listen)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("cannot listen at {}: {e}", self.listen)))?;
        println!("{} {} listens at {}", self.name, self.release, l.local_addr()?);
        Ok(l)
    }
}
