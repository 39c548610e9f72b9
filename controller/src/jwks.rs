//! Keys of issuers that RequestAuthentications name by `jwksUri`: fetched here, so that no proxy has to reach them, and fetched
//! again from time to time. What was fetched once stays while the issuer cannot be reached.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Uri, body::Bytes, header};
use hyper_util::rt::TokioIo;
use karst_manifest::{Object, State, dir::Keys};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::Instant,
};
use tokio_rustls::TlsConnector;

/// Between two fetches of keys that are there (Istio's PILOT_JWT_PUB_KEY_REFRESH_INTERVAL).
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// After a failure: at first, and at most.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// For one fetch (Istio: 5 s).
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest set of keys, bytes.
const LARGEST: usize = 1 << 20;

/// Keeps the keys of all addresses that are wanted.
pub struct Fetcher {
    wanted: watch::Sender<BTreeSet<String>>,
    /// What is there.
    pub found: watch::Receiver<Arc<Keys>>,
}

impl Fetcher {
    /// Starts it. Must run in a `LocalSet`.
    pub fn start() -> Self {
        let (wanted, rx) = watch::channel(BTreeSet::new());
        let (tx, found) = watch::channel(Arc::default());
        tokio::task::spawn_local(run(rx, tx));
        Self { wanted, found }
    }

    /// Says which keys are wanted from now on.
    pub fn want(&self, state: &State) {
        let all = state.objects.iter().filter_map(|o| match &o.object {
            Object::RequestAuthentication(r) => Some(&r.spec.jwt_rules),
            _ => None,
        });
        let wanted: BTreeSet<String> =
            all.flatten().filter(|j| j.jwks.is_empty() && !j.jwks_uri.is_empty()).map(|j| j.jwks_uri.clone()).collect();
        self.wanted.send_if_modified(|old| {
            let new = *old != wanted;
            *old = wanted;
            new
        });
    }
}

/// When an address is asked again, and after which pause if it fails.
struct Turn {
    at: Instant,
    pause: Duration,
}

async fn run(mut wanted: watch::Receiver<BTreeSet<String>>, found: watch::Sender<Arc<Keys>>) {
    let mut turns: BTreeMap<String, Turn> = BTreeMap::new();
    loop {
        let all = wanted.borrow_and_update().clone();
        turns.retain(|uri, _| all.contains(uri));
        for uri in &all {
            turns.entry(uri.clone()).or_insert_with(|| Turn { at: Instant::now(), pause: RETRY });
        }
        let now = Instant::now();
        let due: Vec<String> = turns.iter().filter(|(_, t)| t.at <= now).map(|(u, _)| u.clone()).collect();
        // One that hangs holds up no other.
        let asked = due.into_iter().map(|uri| tokio::task::spawn_local(async move { (fetch(&uri).await, uri) }));
        let mut answers = vec![];
        for task in asked.collect::<Vec<_>>() {
            answers.extend(task.await);
        }
        for (answer, uri) in &answers {
            let Some(t) = turns.get_mut(uri) else { continue };
            match answer {
                Ok(_) => *t = Turn { at: Instant::now() + REFRESH, pause: RETRY },
                Err(e) => {
                    tracing::warn!(uri, error = e, "keys cannot be fetched");
                    *t = Turn { at: Instant::now() + t.pause, pause: (t.pause * 2).min(LONGEST_RETRY) };
                }
            }
        }
        found.send_if_modified(|old| {
            let mut new = (**old).clone();
            new.retain(|uri, _| all.contains(uri));
            for (answer, uri) in answers {
                if answer.is_ok() || !new.get(&uri).is_some_and(Result::is_ok) {
                    new.insert(uri, answer);
                }
            }
            let changed = new != **old;
            *old = Arc::new(new);
            changed
        });
        let next = turns.values().map(|t| t.at).min().unwrap_or_else(|| Instant::now() + REFRESH);
        tokio::select! {
            c = wanted.changed() => if c.is_err() { return },
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

/// Is it an address that can be asked?
///
/// # Errors
/// Why not.
pub fn check(uri: &str) -> Result<Uri, String> {
    let usable = |u: &Uri| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some();
    let found = uri.parse().ok().filter(usable);
    found.ok_or_else(|| format!("{uri:?} is no URL of http or https"))
}

async fn fetch(uri: &str) -> Result<String, String> {
    let late = |_| format!("no answer within {} s", PATIENCE.as_secs());
    let text = tokio::time::timeout(PATIENCE, ask(&check(uri)?)).await.map_err(late)??;
    crate::convert::public_keys(&text)
}

async fn ask(u: &Uri) -> Result<String, String> {
    let (host, secure) = (u.host().unwrap_or_default(), u.scheme_str() == Some("https"));
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let port = u.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = TcpStream::connect((name, port)).await.map_err(|e| e.to_string())?;
    if !secure {
        return get(u, tcp).await;
    }
    static TLS: LazyLock<Option<TlsConnector>> = LazyLock::new(|| {
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        Some(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
    });
    let tls = TLS.as_ref().ok_or("TLS cannot be set up")?;
    let name = rustls_pki_types::ServerName::try_from(name.to_string()).map_err(|e| e.to_string())?;
    get(u, tls.connect(name, tcp).await.map_err(|e| e.to_string())?).await
}

async fn get<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(u: &Uri, io: S) -> Result<String, String> {
    let (mut send, conn) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| e.to_string())?;
    let conn = tokio::spawn(conn);
    let r = Request::get(u.path_and_query().map_or("/", |p| p.as_str()))
        .header(header::HOST, u.authority().map_or("", |a| a.as_str()))
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("karst-controller/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new());
    let answer = send.send_request(r.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
    if answer.status() != 200 {
        return Err(format!("HTTP {}", answer.status().as_u16()));
    }
    let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|e| e.to_string())?;
    conn.abort();
    String::from_utf8(body.to_bytes().to_vec()).map_err(|_| "the answer is no text".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn addresses_are_checked() {
        for good in ["https://a.com/keys", "http://keycloak.auth:8080/x?y", "http://[::1]:80/"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a.com/keys", "ftp://a.com", "/etc/keys", "https://"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    /// What cannot be fetched is tried again; what was there once stays; what nobody wants is forgotten.
    #[tokio::test]
    async fn keys_are_fetched_again() {
        const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "e-y4scs2WBMwaIE0WvgVG0UZa9sB8aS-BgmB4N5Q0Ls", "y": "eWJ4nB_CTnISFQXtcUJuRMXRJgi_LaEJN6ycvLl4xgs"}]}"#;
        let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/keys", l.local_addr().unwrap());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async move {
                tokio::task::spawn_local(async move {
                    for (status, body) in [(500, ""), (200, "no keys"), (200, KEYS)] {
                        let (mut s, _) = l.accept().await.unwrap();
                        let mut buf = [0; 1024];
                        let n = s.read(&mut buf).await.unwrap();
                        assert!(buf[..n].starts_with(b"GET /keys HTTP/1.1\r\nhost: 127.0.0.1:"));
                        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", body.len());
                        s.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                    }
                });
                let f = Fetcher::start();
                f.wanted.send_replace([uri.clone()].into());
                let mut found = f.found.clone();
                found.wait_for(|k| k.get(&uri).is_some_and(|r| *r == Err("HTTP 500".into()))).await.unwrap();
                found
                    .wait_for(|k| k.get(&uri).is_some_and(|r| r.as_ref().is_ok_and(|t| t.contains("P-256"))))
                    .await
                    .unwrap();
                f.wanted.send_replace(BTreeSet::new());
                found.wait_for(|k| k.is_empty()).await.unwrap();
            })
            .await;
    }
}
