//! gRPC: a call, and a stream of replies (proto/echo.proto).

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use samples::{
    Serve,
    echo::{
        SayReply, SayRequest, StreamRequest,
        echo_client::EchoClient,
        echo_server::{Echo, EchoServer},
    },
};
use std::{collections::BTreeMap, net::SocketAddr};
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

/// A gRPC service that says who answers, and a client for it.
#[derive(Parser)]
#[command(name = "sample-grpc", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serve karst.samples.v1.Echo, without TLS.
    Serve(Serve),
    /// Call it on one connection, and print who answered how often.
    Call {
        /// The server.
        to: SocketAddr,
        /// Single calls.
        #[arg(long, default_value_t = 1)]
        calls: u32,
        /// Replies of a stream after them.
        #[arg(long, default_value_t = 0)]
        stream: u32,
    },
}

const MAX_STREAM: u32 = 100_000;

#[derive(Clone)]
struct Server(Serve);

impl Server {
    fn reply(&self, text: &str, peer: Option<SocketAddr>) -> SayReply {
        let Serve { name, release, .. } = self.0.clone();
        SayReply { text: text.into(), name, release, peer: peer.map(|p| p.to_string()).unwrap_or_default() }
    }
}

#[tonic::async_trait]
impl Echo for Server {
    async fn say(&self, r: Request<SayRequest>) -> Result<Response<SayReply>, Status> {
        let peer = r.remote_addr();
        Ok(Response::new(self.reply(&r.into_inner().text, peer)))
    }

    type StreamStream = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<SayReply, Status>> + Send>>;

    async fn stream(&self, r: Request<StreamRequest>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = r.remote_addr();
        let StreamRequest { text, count } = r.into_inner();
        if count > MAX_STREAM {
            return Err(Status::invalid_argument(format!("count: {count} is more than {MAX_STREAM}")));
        }
        let reply = self.reply(&text, peer);
        Ok(Response::new(Box::pin(tokio_stream::iter((0..count).map(move |_| Ok(reply.clone()))))))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().role {
        Role::Serve(serve) => {
            let l = serve.listener().await?;
            let service = EchoServer::new(Server(serve));
            Ok(tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(l))
                .await?)
        }
        Role::Call { to, calls, stream } => {
            let mut c =
                EchoClient::connect(format!("http://{to}")).await.with_context(|| format!("cannot connect to {to}"))?;
            let mut by: BTreeMap<String, u32> = BTreeMap::new();
            let mut note = |r: &SayReply| *by.entry(format!("{} {}", r.name, r.release)).or_default() += 1;
            for i in 0..calls {
                let text = format!("hello {i}");
                let r = c.say(SayRequest { text: text.clone() }).await?.into_inner();
                ensure!(r.text == text, "another text came back");
                note(&r);
            }
            let request = StreamRequest { text: "stream".into(), count: stream };
            let mut replies = c.stream(request).await?.into_inner();
            while let Some(r) = replies.next().await {
                note(&r?);
            }
            by.iter().for_each(|(who, n)| println!("{who}: {n} replies"));
            Ok(())
        }
    }
}
