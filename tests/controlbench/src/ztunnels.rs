//! Nodes' ztunnels, as far as discovery sees them.

use crate::api::Api;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, POD_RANGES_TYPE,
    ads::{DeltaDiscoveryRequest, Node, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient},
};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::{
    Request,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

/// How long the first answer may take, and each after it.
const PATIENCE: Duration = Duration::from_secs(300);

/// A message that a ztunnel was sent: when it came, and the names of the addresses in it.
pub struct Heard {
    pub at: Instant,
    pub names: Vec<String>,
}

/// What a ztunnel is told.
pub type Told = mpsc::UnboundedReceiver<Heard>;

/// All of them.
pub struct Ztunnels {
    discovery: Endpoint,
    types: Vec<&'static str>,
}

impl Ztunnels {
    /// Waits until discovery answers. `is_older`: it may be a build that does not know pod ranges, and refuses who asks for them.
    pub async fn new(api: &Api, port: u16, is_older: bool) -> Result<Self> {
        let types = [AUTHORIZATION_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE];
        let types = types.into_iter().filter(|kind| !is_older || *kind != POD_RANGES_TYPE).collect();
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(root) = api.root() {
                let pem = base64::prelude::BASE64_STANDARD.decode(&root).context("the controller's Secret")?;
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(pem))
                    .domain_name("istiod.istio-system.svc");
                let discovery = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))?.tls_config(tls)?;
                if discovery.connect().await.is_ok() {
                    return Ok(Self { discovery, types });
                }
            }
            ensure!(Instant::now() < end, "the controller does not answer");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Subscribes as a node's. `names`: of the addresses that it asks for; without, it is told of all, as Istio's.
    pub async fn subscribe(&self, node: usize, names: Option<Vec<String>>) -> Result<Told> {
        let channel = self.discovery.connect().await.with_context(|| format!("node {node}: discovery"))?;
        let features: &[&str] = match names {
            Some(_) => &[karst_xds::PARTS, karst_xds::DRY_RUN, karst_xds::ON_DEMAND],
            None => &[karst_xds::PARTS, karst_xds::DRY_RUN],
        };
        let features = features.iter().map(ToString::to_string).collect();
        let who = Node { id: format!("ztunnel-{node}"), client_features: features, ..Node::default() };
        let (tx, rx) = mpsc::channel(16);
        for &type_url in &self.types {
            let wanted = names.iter().flatten().filter(|_| type_url == ADDRESS_TYPE).cloned();
            let request = DeltaDiscoveryRequest {
                node: Some(who.clone()),
                type_url: type_url.into(),
                resource_names_subscribe: wanted.collect(),
                ..Default::default()
            };
            tx.send(request).await?;
        }
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(rx));
        request.metadata_mut().insert("authorization", format!("Bearer token-{node}").parse()?);
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(200 << 20);
        let mut stream = client.delta_aggregated_resources(request).await?.into_inner();
        let (out, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(m)) = stream.message().await {
                let at = Instant::now();
                let ours = m.type_url == ADDRESS_TYPE;
                let names = m.resources.into_iter().filter(|_| ours).map(|r| r.name).collect();
                let ack = DeltaDiscoveryRequest { type_url: m.type_url, response_nonce: m.nonce, ..Default::default() };
                if tx.send(ack).await.is_err() || out.send(Heard { at, names }).is_err() {
                    return;
                }
            }
        });
        Ok(told)
    }
}

/// Reads until so many addresses have come; gives how many did.
pub async fn until(told: &mut Told, addresses: usize) -> usize {
    let mut n = 0;
    while n < addresses {
        match tokio::time::timeout(PATIENCE, told.recv()).await {
            Ok(Some(heard)) => n += heard.names.len(),
            _ => return n,
        }
    }
    n
}
