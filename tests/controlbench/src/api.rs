//! As much of an API server as the controller asks for: lists in pages, watches, one Secret, token reviews. What it serves
//! is what a real one serves, field for field; only the objects are simulated. Of pods in their hundred thousands each is made when
//! it is asked for.

use anyhow::Context;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{Method, Request, Response, body::Frame, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Events that may wait for a watch; what it is too slow for is lost, and counted.
const EVENTS: usize = 16_384;

/// The objects of one kind, and who watches them.
pub struct List {
    kind: &'static str,
    version: &'static str,
    len: usize,
    /// The object of a number, as the text that is sent.
    object: Box<dyn Fn(usize) -> String + Send + Sync>,
    events: broadcast::Sender<Bytes>,
}

impl List {
    /// So many objects, each made when it is asked for. `api`: kind and API version.
    pub fn new(
        (kind, version): (&'static str, &'static str),
        len: usize,
        object: impl Fn(usize) -> String + Send + Sync + 'static,
    ) -> Self {
        Self { kind, version, len, object: Box::new(object), events: broadcast::channel(EVENTS).0 }
    }

    /// These objects.
    pub fn of(api: (&'static str, &'static str), objects: Vec<Value>) -> Self {
        let texts: Vec<String> = objects.iter().map(Value::to_string).collect();
        Self::new(api, texts.len(), move |i| texts[i].clone())
    }
}

/// The objects, and who watches them.
pub struct Api {
    /// By plural.
    pub lists: BTreeMap<&'static str, List>,
    /// The Secret that the controller makes.
    pub secret: Mutex<Option<Value>>,
    /// Tokens and what a review says of them: pod, uid, node.
    pub tokens: BTreeMap<String, [String; 3]>,
    /// Events that a watch was too slow for.
    pub lost: Arc<AtomicU64>,
}

impl Api {
    /// Tells who watches that an object is another now; `object` is its text, without kind and API version.
    ///
    /// # Errors
    /// Nobody watches.
    pub fn changed(&self, plural: &str, object: &str) -> anyhow::Result<()> {
        let list = self.lists.get(plural).with_context(|| format!("{plural} are not served"))?;
        let rest = object.strip_prefix('{').context("an object")?;
        let text = format!(
            "{{\"type\":\"MODIFIED\",\"object\":{{\"kind\":\"{}\",\"apiVersion\":\"{}\",{rest}}}\n",
            list.kind, list.version
        );
        list.events.send(text.into()).ok().with_context(|| format!("nobody watches {plural}"))?;
        Ok(())
    }

    /// The Secret's certificate authority, once the controller has made it.
    pub fn root(&self) -> Option<String> {
        let s = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        s.as_ref()?.pointer("/data/ca-cert.pem")?.as_str().map(String::from)
    }

    /// Serves until the process ends.
    pub async fn serve(self: Arc<Self>, l: TcpListener) {
        loop {
            let Ok((s, _)) = l.accept().await else { continue };
            let _ = s.set_nodelay(true);
            let api = self.clone();
            tokio::spawn(async move {
                let f = service_fn(move |r| {
                    let api = api.clone();
                    async move { Ok::<_, Infallible>(api.answer(r).await) }
                });
                let b = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = b.serve_connection(TokioIo::new(s), f).await;
            });
        }
    }

    async fn answer(&self, r: Request<Incoming>) -> Response<Body> {
        let path = r.uri().path().to_string();
        let query = r.uri().query().unwrap_or("").to_string();
        let arg = |k: &str| query.split('&').find_map(|p| p.strip_prefix(&format!("{k}=")).map(String::from));
        let last = path.rsplit('/').next().unwrap_or("").to_string();
        match (r.method(), last.as_str()) {
            (&Method::POST, "tokenreviews") => {
                let Ok(body) = r.into_body().collect().await else { return status(400) };
                let ask: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
                let token = ask.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
                let Some([pod, uid, node]) = self.tokens.get(token) else { return status(401) };
                let extra = json!({
                    "authentication.kubernetes.io/pod-name": [pod],
                    "authentication.kubernetes.io/pod-uid": [uid],
                    "authentication.kubernetes.io/node-name": [node],
                });
                let user = json!({ "username": "system:serviceaccount:istio-system:ztunnel", "extra": extra });
                let answer = json!({ "authenticated": true, "audiences": ["istio-ca"], "user": user });
                json_of(
                    201,
                    &json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": answer }),
                )
            }
            (&Method::POST, "secrets") => {
                let Ok(body) = r.into_body().collect().await else { return status(400) };
                let secret: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
                let answer = json_of(201, &secret);
                // Others are written and never read.
                if secret.pointer("/metadata/name").and_then(Value::as_str) == Some("istio-ca-secret") {
                    *self.secret.lock().unwrap_or_else(PoisonError::into_inner) = Some(secret);
                }
                answer
            }
            (&Method::GET, "istio-ca-secret") => match &*self.secret.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(s) => json_of(200, s),
                None => status(404),
            },
            (&Method::PATCH, _) if path.contains("/configmaps/") => {
                json_of(200, &json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": {} }))
            }
            (&Method::GET, plural) => {
                let Some(list) = self.lists.get(plural) else { return status(404) };
                if arg("watch").is_some_and(|w| w == "true" || w == "1") {
                    return self.watch(list);
                }
                let limit = arg("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
                let from: usize = arg("continue").and_then(|c| c.parse().ok()).unwrap_or(0);
                let next = list.len.min(from.saturating_add(limit));
                let items: Vec<String> = (from..next).map(&list.object).collect();
                let more = if next < list.len { next.to_string() } else { String::new() };
                let text = format!(
                    r#"{{"kind":"{}List","apiVersion":"{}","metadata":{{"resourceVersion":"1","continue":"{more}"}},"items":[{}]}}"#,
                    list.kind,
                    list.version,
                    items.join(",")
                );
                typed(200, Bytes::from(text))
            }
            _ => status(404),
        }
    }

    fn watch(&self, list: &List) -> Response<Body> {
        let events = tokio_stream::wrappers::BroadcastStream::new(list.events.subscribe());
        let lost = self.lost.clone();
        let each = events.filter_map(move |event| {
            let text = event.inspect_err(|BroadcastStreamRecvError::Lagged(n)| {
                lost.fetch_add(*n, Relaxed);
            });
            std::future::ready(text.ok().map(|text| Ok(Frame::data(text))))
        });
        let mut r = Response::new(BodyExt::boxed_unsync(StreamBody::new(each)));
        r.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
        r
    }
}

fn typed(code: u16, body: Bytes) -> Response<Body> {
    let one = stream::iter([Ok(Frame::data(body))]);
    let mut r = Response::new(BodyExt::boxed_unsync(StreamBody::new(one)));
    *r.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or_default();
    r.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    r
}

fn json_of(code: u16, v: &Value) -> Response<Body> {
    typed(code, Bytes::from(v.to_string()))
}

fn status(code: u16) -> Response<Body> {
    let reason = if code == 404 { "NotFound" } else { "Unauthorized" };
    json_of(
        code,
        &json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason, "metadata": {} }),
    )
}

/// Where it listens.
pub async fn listen() -> std::io::Result<(TcpListener, SocketAddr)> {
    let l = TcpListener::bind("127.0.0.1:0").await?;
    let a = l.local_addr()?;
    Ok((l, a))
}
