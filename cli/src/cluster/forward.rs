//! HTTP to a pod's loopback port, through the API server's port-forward, as istioctl does.

use super::{connect::Cluster, failure::failed, pods::PodName};
use crate::problem::Problem;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request,
    body::{Body, Bytes},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use std::{error::Error, fmt::Display, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest page that is read, in bytes: a dump of a mesh of 10,000 pods is about 20 MiB.
const MAX_PAGE: usize = 512 << 20;
/// A page must be there within this time.
const PATIENCE: Duration = Duration::from_secs(60);

impl Cluster {
    /// Opens a connection to a port of a pod.
    ///
    /// # Errors
    /// If the API server does not forward it.
    pub async fn dial(&self, pod: &PodName, port: u16) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, Problem> {
        let what = || format!("cannot reach port {port} of pod {pod}");
        let api: Api<Pod> = Api::namespaced(self.streams.clone(), &pod.namespace);
        let mut forwarder = api.portforward(&pod.name, &[port]).await.map_err(|e| failed(what(), &e))?;
        forwarder.take_stream(port).ok_or_else(|| {
            Problem::new(what())
                .because("the API server has opened no stream")
                .next("try again; `kubectl get pods` shows whether it runs")
        })
    }

    /// GET of a page, as text.
    ///
    /// # Errors
    /// If it cannot be reached, or does not answer 200.
    pub async fn get(&self, pod: &PodName, port: u16, path: &str) -> Result<String, Problem> {
        self.ask(pod, port, Method::GET, path, "").await
    }

    /// POST without a body.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub async fn post(&self, pod: &PodName, port: u16, path: &str) -> Result<String, Problem> {
        self.ask(pod, port, Method::POST, path, "").await
    }

    /// PUT of a body in JSON.
    ///
    /// # Errors
    /// As [`Cluster::get`].
    pub async fn put(&self, pod: &PodName, port: u16, path: &str, body: &str) -> Result<String, Problem> {
        self.ask(pod, port, Method::PUT, path, body).await
    }

    /// A page in JSON.
    ///
    /// # Errors
    /// As [`Cluster::get`], and if it is something else.
    pub async fn page<T: serde::de::DeserializeOwned>(
        &self,
        pod: &PodName,
        port: u16,
        path: &str,
    ) -> Result<T, Problem> {
        let text = self.get(pod, port, path).await?;
        serde_json::from_str(&text).map_err(|e| {
            Problem::new(format!("pod {pod}, port {port}, {path}: the page is not what was expected"))
                .because(e)
                .next("client and proxy may be of different versions: `karst version`")
        })
    }

    async fn ask(&self, pod: &PodName, port: u16, method: Method, path: &str, body: &str) -> Result<String, Problem> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(pod, port, (method, path), body)).await;
        answer.unwrap_or_else(|_| {
            Err(Problem::new(format!("pod {pod}, port {port}, {path}: no answer within {} s", PATIENCE.as_secs()))
                .next("look at the pod: `kubectl describe pod` and its log"))
        })
    }

    async fn exchange(
        &self,
        pod: &PodName,
        port: u16,
        (method, path): (Method, &str),
        body: &str,
    ) -> Result<String, Problem> {
        let what = || format!("pod {pod}, port {port}, {path}");
        let next = "look at the pod: `kubectl describe pod` and its log";
        let broken = |e: &dyn std::fmt::Display| Problem::new(what()).because(e).next(next);
        let request = Request::builder()
            .method(method)
            .uri(format!("/{}", path.trim_start_matches('/')))
            .header("host", format!("localhost:{port}"))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_owned())))
            .map_err(|e| broken(&e))?;
        let broken = &broken;
        let read = |mut sender: SendRequest<_>| async move {
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_PAGE).collect().await.map_err(|e| broken(&e))?;
            let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            if !status.is_success() {
                return Err(Problem::new(what()).because(format!("status {status}: {}", text.trim())).next(next));
            }
            Ok(text)
        };
        self.on_connection(pod, port, broken, read).await
    }

    /// What `read` makes of the answers on an HTTP/1.1 connection of its own, which is kept going meanwhile. `broken`: what is said
    /// if it breaks.
    ///
    /// # Errors
    /// If it does not come about or breaks, and those of `read`.
    pub(super) async fn on_connection<B, T, F>(
        &self,
        pod: &PodName,
        port: u16,
        broken: &impl Fn(&dyn Display) -> Problem,
        read: impl FnOnce(SendRequest<B>) -> F,
    ) -> Result<T, Problem>
    where
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
        F: Future<Output = Result<T, Problem>>,
    {
        let stream = self.dial(pod, port).await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|e| broken(&e))?;
        let read = read(sender);
        tokio::pin!(read);
        tokio::select! {
            done = &mut read => done,
            ended = connection => match ended {
                // Closed after all was read.
                Ok(()) => read.await,
                Err(e) => Err(broken(&e)),
            },
        }
    }
}
