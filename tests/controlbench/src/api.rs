//! As much of an API server as the controller asks for: lists in pages, watches, one Secret, token reviews. What it serves
//! is what a real one serves, field for field; only the objects are simulated.

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
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{net::TcpListener, sync::broadcast};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The objects, each as the text that is sent, and who watches them.
pub struct Api {
    /// By plural, then `namespace/name`.
    pub objects: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Kind and API version by plural.
    pub kinds: BTreeMap<&'static str, (&'static str, &'static str)>,
    /// The Secret that the controller makes.
    pub secret: Mutex<Option<Value>>,
    /// Plural and event.
    pub events: broadcast::Sender<(&'static str, String)>,
    /// Tokens and what a review says of them: account, pod, uid, node.
    pub tokens: BTreeMap<String, [String; 3]>,
}

impl Api {
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
                let Some((plural, all)) = self.objects.get_key_value(plural) else { return status(404) };
                if arg("watch").is_some_and(|w| w == "true" || w == "1") {
                    return self.watch(plural);
                }
                let limit = arg("limit").and_then(|l| l.parse().ok()).unwrap_or(usize::MAX);
                let from: usize = arg("continue").and_then(|c| c.parse().ok()).unwrap_or(0);
                let items: Vec<&str> = all.values().skip(from).take(limit).map(String::as_str).collect();
                let next = from + items.len();
                let more = if next < all.len() { next.to_string() } else { String::new() };
                let (kind, version) = self.kinds[plural];
                let text = format!(
                    r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{{"resourceVersion":"1","continue":"{more}"}},"items":[{}]}}"#,
                    items.join(",")
                );
                typed(200, Bytes::from(text))
            }
            _ => status(404),
        }
    }

    fn watch(&self, plural: &'static str) -> Response<Body> {
        let events = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        let mine = events.filter_map(move |e| async move {
            let (p, text) = e.ok()?;
            (p == plural).then(|| Ok(Frame::data(Bytes::from(text))))
        });
        let mut r = Response::new(BodyExt::boxed_unsync(StreamBody::new(mine)));
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
