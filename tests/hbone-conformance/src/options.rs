//! The options of both roles.

use clap::Args;
use std::{net::SocketAddr, path::PathBuf};

#[derive(Args)]
pub struct Common {
    /// Certificate of an authority that the endpoint trusts, PEM.
    #[arg(long, value_name = "FILE")]
    pub ca_cert: PathBuf,
    /// Its key, PEM.
    #[arg(long, value_name = "FILE")]
    pub ca_key: PathBuf,
    /// Identity that this tool acts as.
    #[arg(long, value_name = "SPIFFE")]
    pub identity: String,
    /// Also write the table as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

#[derive(Args)]
pub struct Server {
    #[command(flatten)]
    pub common: Common,
    /// The endpoint, usually port 15008.
    #[arg(long, value_name = "IP:PORT")]
    pub to: SocketAddr,
    /// An application behind it that echoes every byte and its end, as the CONNECT is to name it.
    #[arg(long, value_name = "IP:PORT")]
    pub application: SocketAddr,
    /// A port of that workload on which nothing listens.
    #[arg(long, default_value_t = 1)]
    pub closed_port: u16,
    /// The endpoint of another workload behind the same proxy: it must not go on with what was opened to the first (10.6). Left out
    /// if there is none.
    #[arg(long, value_name = "IP:PORT")]
    pub neighbour: Option<SocketAddr>,
    /// Identity that the server must have.
    #[arg(long, value_name = "SPIFFE")]
    pub expect: String,
}

#[derive(Args)]
pub struct Client {
    #[command(flatten)]
    pub common: Common,
    /// Where to listen: the address of a workload that the client takes for one with HBONE, port 15008.
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Identity that the client must have.
    #[arg(long, value_name = "SPIFFE")]
    pub expect: String,
    /// Give up when no connection has come for so many seconds.
    #[arg(long, default_value_t = 30)]
    pub patience: u64,
}
