//! Raw TCP: sends every byte back, and the end.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use samples::Serve;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An echo service over TCP, and a client for it.
#[derive(Parser)]
#[command(name = "sample-tcp", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Send every byte back, and the end.
    Serve {
        #[command(flatten)]
        serve: Serve,
        /// Say `NAME RELEASE` in a line first.
        #[arg(long)]
        greet: bool,
    },
    /// Send a text, and print what comes back until the end.
    Call {
        /// The server.
        to: SocketAddr,
        /// What to send.
        text: String,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().role {
        Role::Serve { serve, greet } => {
            let l = serve.listener().await?;
            let greeting = if greet { format!("{} {}\n", serve.name, serve.release) } else { String::new() };
            loop {
                let (s, _) = l.accept().await?;
                tokio::spawn(echo(s, greeting.clone()));
            }
        }
        Role::Call { to, text } => {
            let mut s = TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
            s.write_all(text.as_bytes()).await?;
            s.shutdown().await?;
            let mut out = String::new();
            s.read_to_string(&mut out).await?;
            println!("{out}");
            Ok(())
        }
    }
}

/// The peer may go when it likes: its errors are the end.
async fn echo(mut s: TcpStream, greeting: String) {
    let _ = s.set_nodelay(true);
    let (mut r, mut w) = s.split();
    if w.write_all(greeting.as_bytes()).await.is_ok() && tokio::io::copy(&mut r, &mut w).await.is_ok() {
        let _ = w.shutdown().await;
    }
}
