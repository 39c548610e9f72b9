//! HTTP/1.1: the page's files, and what it shows as JSON, to whoever may read it. What is answered is decided by [`Server::answer`],
//! without I/O but for explanations and what the API server is asked.

use super::{
    Door, Reading, Shared, Unread, files,
    guard::{Denied, Guard},
    request::Refused,
    tls::Tls,
};
use crate::problem::Problem;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    http::request::Parts,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_topology::{Edge, Graph, Sight, View, namespaces};
use serde::Serialize;
use serde_json::{Value, json};
use std::{convert::Infallible, future::Future, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    time::timeout,
};

/// Connections at a time, of one user's page; others wait. A browser opens six.
const CONNECTIONS: usize = 32;
/// And of a page for many users.
const CONNECTIONS_OF_ALL: usize = 256;
/// Where users log in.
const LOGIN: &str = "/login.html";
/// A head must be there within this time; before it, a TLS handshake.
const HEAD: Duration = Duration::from_secs(10);
/// Nothing is loaded from elsewhere, and nothing of the page's text is run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// What every answer says, beside its type.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-frame-options", "DENY"),
];

/// A call to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Identity of the caller.
    pub from: String,
    /// Host of the service.
    pub to: String,
    /// Port of the service; none: its only one.
    pub port: Option<u16>,
    /// Method and path; none: a connection.
    pub request: Option<(String, String)>,
}

/// An answer that is waited for.
type Waited = Pin<Box<dyn Future<Output = Result<Value, Problem>>>>;
/// Says what becomes of a call, as `karst explain -o json`.
pub type Explainer = Rc<dyn Fn(Question) -> Waited>;

/// Who may read.
pub enum Access {
    /// Whoever has this process's secret reads everything.
    Secret(Door),
    /// Whoever logs in reads what is in the namespaces whose pods they may list.
    Login(Guard),
}

impl From<Door> for Access {
    fn from(door: Door) -> Self {
        Self::Secret(door)
    }
}

impl From<Guard> for Access {
    fn from(guard: Guard) -> Self {
        Self::Login(guard)
    }
}

impl Access {
    /// May the file be read? A link on another site may lead to the page in the cluster, and to nothing else.
    fn file(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match self {
            Self::Secret(door) => door.check(headers),
            Self::Login(guard) => guard.named(headers),
        }
    }

    fn check(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match self {
            Self::Secret(door) => door.check(headers),
            Self::Login(guard) => guard.check(headers),
        }
    }

    fn connections(&self) -> usize {
        match self {
            Self::Secret(_) => CONNECTIONS,
            Self::Login(_) => CONNECTIONS_OF_ALL,
        }
    }
}

struct Server {
    access: Access,
    shared: Shared,
    explain: Option<Explainer>,
    /// One explanation at a time: each reads all objects.
    explains: Semaphore,
}

/// The page, at one address or several.
pub struct Site(Rc<Server>);

impl Site {
    /// For those whom `access` lets in.
    pub fn new(access: impl Into<Access>, shared: Shared, explain: Option<Explainer>) -> Self {
        Self(Rc::new(Server { access: access.into(), shared, explain, explains: Semaphore::new(1) }))
    }

    /// Serves until it is dropped; by HTTPS if there is a certificate. On the thread's local set.
    pub async fn serve(&self, listener: TcpListener, tls: Option<Tls>) {
        // Each address has places of its own: whoever fills those of one leaves the others.
        let places = Arc::new(Semaphore::new(self.0.access.connections()));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let (stream, _) = karst_rt::accept::accept(&listener).await;
            let (server, acceptor) = (self.0.clone(), tls.as_ref().map(Tls::acceptor));
            tokio::task::spawn_local(async move {
                match acceptor {
                    None => server.connection(stream).await,
                    Some(acceptor) => {
                        if let Ok(Ok(stream)) = timeout(HEAD, acceptor.accept(stream)).await {
                            server.connection(stream).await;
                        }
                    }
                }
                drop(place);
            });
        }
    }
}

/// Serves at one address in plaintext, until it is dropped. On the thread's local set.
pub async fn serve(listener: TcpListener, access: impl Into<Access>, shared: Shared, explain: Option<Explainer>) {
    Site::new(access, shared, explain).serve(listener, None).await;
}

/// What the page asks for every two seconds.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    graph: Graph,
    reading: Reading,
    cluster: &'a str,
    start: Option<&'a str>,
}

type Answer = Response<Full<Bytes>>;

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn told(status: StatusCode, why: impl Into<String>) -> Answer {
    let why: String = why.into();
    reply(status, "application/json", json!({ "error": why }).to_string())
}

fn shown(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => reply(StatusCode::OK, "application/json", body),
        Err(e) => told(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

/// A parameter of the query; empty is none.
fn parameter(head: &Parts, name: &str) -> Option<String> {
    let mut all = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
    all.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
}

/// How reading goes, to somebody who may look into some namespaces.
fn seen(reading: &Reading, sight: &Sight) -> Reading {
    let named = |one: &Unread| match sight.has(&one.namespace) {
        true => one.clone(),
        false => Unread {
            namespace: String::new(),
            name: "a proxy of another namespace".into(),
            why: "it cannot be read".into(),
        },
    };
    Reading { unread: reading.unread.iter().map(named).collect(), ..*reading }
}

/// What somebody who may not read is told; where to log in, if that is missing.
fn denied(why: Denied) -> Answer {
    let login = (why == Denied::NoSession).then_some(LOGIN);
    reply(why.status(), "application/json", json!({ "error": why.to_string(), "login": login }).to_string())
}

const NO_EDGE: &str = "no such edge: it may be forgotten";

impl Server {
    async fn connection(self: Rc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            // Nothing that is asked has a body.
            let (server, (head, _)) = (self.clone(), request.into_parts());
            async move { Ok::<_, Infallible>(server.answer(&head).await) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
        // A browser may leave as it likes.
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, head: &Parts) -> Answer {
        let path = head.uri.path();
        let file = files::find(path).or_else(|| match self.access {
            Access::Secret(_) => None,
            Access::Login(_) => files::find_login(path),
        });
        let may = if file.is_some() { self.access.file(&head.headers) } else { self.access.check(&head.headers) };
        if let Err((status, why)) = may {
            return told(status, why);
        }
        if let Some(file) = file {
            return match head.method {
                Method::GET | Method::HEAD => reply(StatusCode::OK, file.kind, file.content),
                _ => told(StatusCode::METHOD_NOT_ALLOWED, "GET only"),
            };
        }
        if !path.starts_with("/api/") {
            return told(StatusCode::NOT_FOUND, "no such page");
        }
        match &self.access {
            Access::Secret(door) => self.by_secret(door, head, path).await,
            Access::Login(guard) => self.by_login(guard, head, path).await,
        }
    }

    async fn by_secret(&self, door: &Door, head: &Parts, path: &str) -> Answer {
        if (&head.method, path) == (&Method::POST, "/api/session") {
            return match door.exchange(&head.headers) {
                Some(token) => shown(&json!({ "token": token })),
                None => {
                    told(StatusCode::UNAUTHORIZED, "this address was used before: open the one that karst has printed")
                }
            };
        }
        if !door.admits(&head.headers) {
            return told(StatusCode::UNAUTHORIZED, "open the address that karst dashboard has printed");
        }
        if (&head.method, path) == (&Method::GET, "/api/session") {
            // Nobody has logged in, and nobody needs to.
            return shown(&json!({}));
        }
        self.read(head, path, &Sight::All).await
    }

    async fn by_login(&self, guard: &Guard, head: &Parts, path: &str) -> Answer {
        let headers = &head.headers;
        match (&head.method, path) {
            (&Method::POST, "/api/login") => match guard.login(headers).await {
                Ok((secret, user)) => shown(&json!({ "token": secret, "user": user.name })),
                Err(why) => denied(why),
            },
            (&Method::POST, "/api/logout") => {
                guard.logout(headers);
                shown(&json!({}))
            }
            (&Method::GET, "/api/session") => match guard.user(headers).await {
                Ok(user) => shown(&json!({ "user": user.name })),
                Err(why) => denied(why),
            },
            _ => match guard.sight(headers, || namespaces(&self.shared.borrow().topology)).await {
                Ok(sight) => self.read(head, path, &sight).await,
                Err(why) => denied(why),
            },
        }
    }

    async fn read(&self, head: &Parts, path: &str, sight: &Sight) -> Answer {
        match (&head.method, path) {
            (&Method::GET, "/api/explain") => self.explained(head, sight).await,
            (&Method::GET, path) => self.page(path, head, sight),
            _ => told(StatusCode::METHOD_NOT_ALLOWED, "GET only"),
        }
    }

    fn page(&self, path: &str, head: &Parts, sight: &Sight) -> Answer {
        let state = self.shared.borrow();
        let view = View::new(&state.topology, sight);
        let namespace = parameter(head, "namespace");
        let id = |name| parameter(head, name).and_then(|id| id.parse::<u32>().ok());
        match path {
            "/api/graph" => shown(&Shown {
                graph: view.graph(namespace.as_deref()),
                reading: seen(&state.reading, sight),
                cluster: &state.cluster,
                start: state.namespace.as_deref(),
            }),
            "/api/edge" => match id("id").and_then(|id| Some((view.edge_now(id)?, view.history(id)?))) {
                Some((edge, history)) => shown(&json!({ "edge": edge, "history": history })),
                None => told(StatusCode::NOT_FOUND, NO_EDGE),
            },
            "/api/history" => match id("edge") {
                Some(id) => match view.history(id) {
                    Some(history) => shown(&history),
                    None => told(StatusCode::NOT_FOUND, NO_EDGE),
                },
                None => shown(&json!({ "total": view.total(namespace.as_deref()), "sparks": view.sparks() })),
            },
            _ => told(StatusCode::NOT_FOUND, "no such page"),
        }
    }

    async fn explained(&self, head: &Parts, sight: &Sight) -> Answer {
        let id = parameter(head, "edge").and_then(|id| id.parse::<u32>().ok());
        let edge = id.and_then(|id| View::new(&self.shared.borrow().topology, sight).edge_now(id));
        let Some(edge) = edge else { return told(StatusCode::NOT_FOUND, NO_EDGE) };
        let question = match question(&edge) {
            Ok(question) => question,
            Err(why) => return told(StatusCode::UNPROCESSABLE_ENTITY, why),
        };
        let Some(explain) = &self.explain else {
            let why = match self.access {
                Access::Secret(_) => "there is no cluster to ask",
                Access::Login(_) => {
                    "this page may not read the cluster's objects: the command below explains the call, with your own rights"
                }
            };
            return told(StatusCode::NOT_IMPLEMENTED, why);
        };
        let Ok(_turn) = self.explains.try_acquire() else {
            return told(StatusCode::TOO_MANY_REQUESTS, "another call is being explained: try again");
        };
        match explain(question).await {
            Ok(value) => shown(&value),
            Err(problem) => told(StatusCode::BAD_GATEWAY, problem.to_string()),
        }
    }
}

/// What is to be explained of an edge: its last refusal if there is one.
fn question(edge: &Edge) -> Result<Question, &'static str> {
    if edge.source_principal.is_empty() {
        return Err("the caller has proven no identity: name it yourself with karst explain");
    }
    if edge.service.is_empty() {
        return Err("no service was called: name the pod yourself with karst explain");
    }
    // A ztunnel's port is the pod's, not the service's.
    let refusal = edge.refusals.first().filter(|refusal| !refusal.method.is_empty());
    let path = |path: &str| if path.contains(['{', '*']) || path.is_empty() { "/".into() } else { path.to_owned() };
    Ok(Question {
        from: edge.source_principal.clone(),
        to: edge.service.clone(),
        port: refusal.map(|refusal| refusal.port),
        request: match refusal {
            Some(refusal) => Some((refusal.method.clone(), path(&refusal.path))),
            None if edge.rate > 0.0 => Some(("GET".into(), "/".into())),
            None => None,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::page::judge::{Judge, JudgeError, Judged, User};
    use http_body_util::BodyExt;

    const PORT: u16 = 8080;

    fn of(access: impl Into<Access>) -> Server {
        let shared = Shared::default();
        shared.borrow_mut().cluster = "https://api:6443".into();
        Server { access: access.into(), shared, explain: None, explains: Semaphore::new(1) }
    }

    /// With the secret and the code of its addresses.
    fn server() -> (Server, String, String) {
        let door = Door::new(PORT);
        let secret = |address: String| address.split_once('=').unwrap().1.to_owned();
        let (token, code) = (secret(door.address()), secret(door.address_once()));
        (of(door), token, code)
    }

    async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut request = Request::builder().method(method).uri(path).header("host", format!("127.0.0.1:{PORT}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let answer = server.answer(&head).await;
        for (name, value) in HEADERS {
            assert_eq!(answer.headers()[name], value, "{path}");
        }
        assert_eq!(answer.headers()[CACHE_CONTROL], "no-store", "{path}");
        assert!(!answer.headers().contains_key("set-cookie"), "{path}");
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn what_is_of_the_mesh_is_for_whoever_has_the_secret() {
        let (server, token, _) = server();
        for path in ["/api/graph", "/api/history", "/api/edge?id=1", "/api/explain?edge=1", "/api/other"] {
            let (status, text) = ask(&server, "GET", path, &[]).await;
            assert!(status == 401 && !text.contains("api:6443"), "{path}: {status} {text}");
            let (status, _) = ask(&server, "GET", path, &[("x-karst-token", &"0".repeat(64))]).await;
            assert_eq!(status, 401, "{path}");
        }
        let own = [("x-karst-token", token.as_str())];
        let (status, text) = ask(&server, "GET", "/api/graph", &own).await;
        assert!(status == 200 && text.contains("api:6443"), "{status} {text}");
        for (path, wanted) in [
            ("/api/history", 200),
            ("/api/session", 200),
            ("/api/history?edge=1", 404),
            ("/api/edge?id=1", 404),
            ("/api/explain?edge=1", 404),
        ] {
            assert_eq!(ask(&server, "GET", path, &own).await.0, wanted, "{path}");
        }
        for path in ["/api/graph", "/api/login", "/api/logout"] {
            assert_eq!(ask(&server, "POST", path, &own).await.0, 405, "{path}");
        }
    }

    #[tokio::test]
    async fn the_page_itself_is_for_its_own_name_and_site() {
        let (server, own, _) = server();
        for path in ["/", "/app.js", "/app.css", "/icon.svg", "/licences.txt", "/session.js"] {
            assert_eq!(ask(&server, "GET", path, &[]).await.0, 200, "{path}");
            assert_eq!(ask(&server, "POST", path, &[]).await.0, 405, "{path}");
            assert_eq!(ask(&server, "GET", path, &[("origin", "http://evil.example")]).await.0, 403, "{path}");
        }
        let foreign = [("sec-fetch-site", "cross-site"), ("x-karst-token", own.as_str())];
        assert_eq!(ask(&server, "GET", "/api/graph", &foreign).await.0, 403);
        for path in ["/etc/passwd", "/login.html"] {
            assert_eq!(ask(&server, "GET", path, &[]).await.0, 404, "{path}");
        }
    }

    #[tokio::test]
    async fn the_code_gives_the_secret_once_and_to_no_other_origin() {
        let (server, token, code) = server();
        let given = ("x-karst-code", code.as_str());
        assert_eq!(ask(&server, "POST", "/api/session", &[given, ("origin", "http://evil.example")]).await.0, 403);
        assert_eq!(ask(&server, "GET", "/api/session", &[given]).await.0, 401, "not without the secret");
        let (status, text) = ask(&server, "POST", "/api/session", &[given]).await;
        assert!(status == 200 && text.contains(&token), "{status} {text}");
        assert_eq!(ask(&server, "POST", "/api/session", &[given]).await.0, 401);
    }

    /// Two tokens: `shop` for one namespace, `all` for all.
    struct Tokens;

    impl Judge for Tokens {
        fn user<'a>(&'a self, token: &'a str) -> Judged<'a, User> {
            let known = ["shop", "all"].contains(&token);
            let user = User { name: format!("{token}'s <b>user</b>"), groups: vec![token.into()], ..User::default() };
            Box::pin(async move { if known { Ok(user) } else { Err(JudgeError::Refused) } })
        }
        fn may_list_pods<'a>(&'a self, user: &'a User, namespace: Option<&'a str>) -> Judged<'a, bool> {
            let may = user.groups.iter().any(|group| group == "all" || Some(group.as_str()) == namespace);
            Box::pin(async move { Ok(may) })
        }
    }

    /// Calls within a namespace, from another to it, and within that other one.
    fn in_cluster() -> Server {
        let server = of(Guard::new(Rc::new(Tokens), vec!["mesh.example.com".into()], Box::new(|_| {})));
        let call = |from: &str, to: &str, count: u64| {
            let side = |side: &str, name: &str| {
                let (namespace, name) = name.split_once('/').unwrap();
                format!("{side}_workload=\"{name}\",{side}_workload_namespace=\"{namespace}\"")
            };
            let labels = format!("reporter=\"destination\",{},{}", side("source", from), side("destination", to));
            format!("istio_requests_total{{{labels},request_protocol=\"http\",response_code=\"200\"}} {count}\n")
        };
        {
            let mut state = server.shared.borrow_mut();
            for round in 0..4 {
                let now = 1_760_000_000_000 + round * 5_000;
                let page = call("shop/web", "shop/cart", round * 9)
                    + &call("bank/ledger", "shop/cart", round * 9)
                    + &call("bank/ledger", "bank/vault", round * 9);
                state.topology.read("z", &page, now).unwrap();
                state.topology.settle(now);
            }
            let unread = |namespace: &str| Unread {
                namespace: namespace.into(),
                name: format!("waypoint-1.{namespace}"),
                why: format!("no route to {namespace}"),
            };
            state.reading.unread = vec![unread("shop"), unread("bank")];
        }
        server
    }

    async fn log_in(server: &Server, token: &str) -> String {
        let bearer = format!("Bearer {token}");
        let (status, text) = ask(server, "POST", "/api/login", &[("authorization", bearer.as_str())]).await;
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        answer["token"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_cluster_nothing_of_the_mesh_is_for_whoever_has_not_logged_in() {
        let server = in_cluster();
        let secrets = [None, Some("shop"), Some("all"), Some("")];
        for path in
            ["/api/graph", "/api/history", "/api/history?edge=0", "/api/edge?id=0", "/api/session", "/api/other"]
        {
            for secret in secrets {
                let given: Vec<(&str, &str)> = secret.map(|secret| ("x-karst-token", secret)).into_iter().collect();
                let (status, text) = ask(&server, "GET", path, &given).await;
                assert_eq!(status, 401, "{path} {secret:?}: {text}");
                assert!(!text.contains("bank") && text.contains("\"login\":\"/login.html\""), "{path}: {text}");
            }
            // The token of Kubernetes is for the login only, and that by POST: no link and no form sends it.
            assert_eq!(ask(&server, "GET", path, &[("authorization", "Bearer all")]).await.0, 401, "{path}");
        }
        let none: &[(&str, &str)] = &[];
        for headers in [none, &[("authorization", "Bearer guess")], &[("authorization", "all")]] {
            let (status, text) = ask(&server, "POST", "/api/login", headers).await;
            assert!(status == 401 && text.contains("\"login\":null"), "{headers:?}: {status} {text}");
        }
        assert_eq!(ask(&server, "GET", "/api/login", &[("authorization", "Bearer all")]).await.0, 401);
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_cluster_everybody_sees_their_own_namespaces() {
        let server = in_cluster();
        let (shop, all) = (log_in(&server, "shop").await, log_in(&server, "all").await);
        let get = async |path: &str, secret: &str| ask(&server, "GET", path, &[("x-karst-token", secret)]).await;
        let graph = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let (status, text) = get("/api/graph", &shop).await;
        let seen = graph(&text);
        assert_eq!((status, seen["edges"].as_array().unwrap().len()), (200, 2), "{text}");
        for secret in ["bank", "ledger", "vault"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        let unread = &seen["reading"]["unread"];
        assert_eq!((&unread[0]["why"], &unread[1]["why"]), (&json!("no route to shop"), &json!("it cannot be read")));
        let whole = graph(&get("/api/graph", &all).await.1);
        assert_eq!(whole["edges"].as_array().unwrap().len(), 3);
        assert_eq!(whole["reading"]["unread"][1]["why"], "no route to bank");
        let own = whole["edges"].as_array().unwrap().iter().find(|edge| edge["target"] == "bank/vault").unwrap();
        for path in ["/api/edge?id=", "/api/history?edge=", "/api/explain?edge="] {
            let path = format!("{path}{}", own["id"]);
            assert_eq!(get(&path, &shop).await.0, 404, "{path}");
            assert_ne!(get(&path, &all).await.0, 404, "{path}");
        }
        let of_bank = get("/api/graph?namespace=bank", &shop).await.1;
        assert!(graph(&of_bank)["edges"].as_array().unwrap().is_empty(), "{of_bank}");
        // What is a user's name is text, and the page writes it as text.
        assert_eq!(get("/api/session", &shop).await, (200, json!({ "user": "shop's <b>user</b>" }).to_string()));
        let (status, _) = ask(&server, "POST", "/api/logout", &[("x-karst-token", &shop)]).await;
        assert_eq!((status, get("/api/graph", &shop).await.0, get("/api/graph", &all).await.0), (200, 401, 200));
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_cluster_no_other_site_asks_or_logs_in() {
        let server = in_cluster();
        let secret = log_in(&server, "all").await;
        for foreign in
            [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site"), ("sec-fetch-site", "same-site")]
        {
            let own = ("x-karst-token", secret.as_str());
            for (method, path) in [("GET", "/api/graph"), ("POST", "/api/logout"), ("POST", "/api/login")] {
                let headers = [own, foreign, ("authorization", "Bearer all")];
                assert_eq!(ask(&server, method, path, &headers).await.0, 403, "{method} {path} {foreign:?}");
            }
        }
        let (status, _) = ask(&server, "GET", "/api/graph", &[("x-karst-token", &secret)]).await;
        assert_eq!(status, 200, "nobody has logged it out");
        // The page can be linked to, and its files have nothing of the mesh.
        for path in ["/", "/login.html", "/login.js", "/login.css", "/session.js", "/app.js"] {
            assert_eq!(ask(&server, "GET", path, &[("sec-fetch-site", "cross-site")]).await.0, 200, "{path}");
            assert_eq!(ask(&server, "POST", path, &[]).await.0, 405, "{path}");
        }
        let mut request = Request::builder().uri("/login.html").header("host", "evil.example").body(()).unwrap();
        request.headers_mut().insert("x-karst-token", secret.parse().unwrap());
        assert_eq!(server.answer(&request.into_parts().0).await.status().as_u16(), 421, "by another name");
    }
}
