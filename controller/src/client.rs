//! The controller's one HTTP client: hyper's, with rustls. It is told which addresses it may connect to ([`Reach`]) and whose
//! certificates are good; every answer is bounded in time, size and redirects. It knows no proxies.
//!
//! Always: a connection is made only to an address that passed, so a name that is resolved anew, or a redirect, leads nowhere else;
//! what began with https does not go on with http. Proven by `tests`.

use crate::reach::{Reach, Refused};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{
    Request, Response, Uri,
    body::{Bytes, Incoming},
    header,
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{
        self,
        connect::{
            HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::{TokioExecutor, TokioIo},
};
use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tower_service::Service;

/// Largest answer, bytes.
const LARGEST: usize = 1 << 20;
/// Largest head of an answer, bytes.
const LARGEST_HEAD: usize = 64 << 10;
/// Longest address of a redirect, bytes.
const LONGEST_URL: usize = 2048;
/// Redirects that are followed.
const REDIRECTS: usize = 3;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Boxed<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host has only addresses that may not be reached.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The handshake failed, or TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No connection, or it broke.
    #[error("{0}")]
    Transport(String),
    /// Too slow.
    #[error("no response within {0:?}")]
    Late(Duration),
    /// Another status than 200.
    #[error("HTTP {0}")]
    Status(u16),
    /// It leads nowhere.
    #[error("redirect: {0}")]
    Redirect(String),
    /// The body has no end.
    #[error("the response is longer than {0} bytes")]
    TooLong(usize),
    /// The body is not UTF-8.
    #[error("the response is not text")]
    NoText,
}

/// A URL that cannot be asked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid URL {0:?}: use http or https [KARST-0121]")]
pub struct InvalidUrl(String);

/// Why nobody can be trusted by a text.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// It is not PEM.
    #[error("{0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// It is PEM of something else.
    #[error("it contains no CA certificate (PEM)")]
    None,
}

/// Asks by GET. A clone is cheap; connections are not kept.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<HttpsConnector<Guarded>, Empty<Bytes>>,
    connector: HttpsConnector<Guarded>,
    patience: Duration,
}

impl Client {
    /// Connects to what may be reached, trusts these roots, and waits so long for a whole answer.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(reach: Reach, roots: RootCertStore, patience: Duration) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Asked seldom; and a session that goes on would not look at the certificate again, which may have ended since.
        tls.resumption = Resumption::disabled();
        let reach = Arc::new(reach);
        let mut tcp = HttpConnector::new_with_resolver(Resolver { system: GaiResolver::new(), reach: reach.clone() });
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Shared by the addresses of a host: one that hangs leaves time for another.
        tcp.set_connect_timeout(Some(patience / 2));
        let connector = HttpsConnector::from((Guarded { tcp, reach }, tls));
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .http1_max_buf_size(LARGEST_HEAD)
            .build(connector.clone());
        Ok(Self { http, connector, patience })
    }

    /// The text that is there.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn get(&self, uri: &Uri) -> Result<String, Error> {
        tokio::time::timeout(self.patience, self.follow(uri.clone())).await.map_err(|_| Error::Late(self.patience))?
    }

    async fn follow(&self, mut uri: Uri) -> Result<String, Error> {
        for _ in 0..=REDIRECTS {
            let request = Request::get(uri.clone())
                .header(header::ACCEPT, "application/json")
                .header(header::USER_AGENT, concat!("karst-controller/", env!("CARGO_PKG_VERSION")))
                .body(Empty::new())
                .map_err(|e| Error::Transport(e.to_string()))?;
            let answer = self.http.request(request).await.map_err(|e| cause(&e))?;
            uri = match answer.status().as_u16() {
                200 => return text(answer).await,
                301 | 302 | 303 | 307 | 308 => redirect(&uri, answer.headers().get(header::LOCATION))?,
                status => return Err(Error::Status(status)),
            };
        }
        Err(Error::Redirect(format!("more than {REDIRECTS} redirects, the last to {uri}")))
    }

    /// Is there a server with a good certificate?
    ///
    /// # Errors
    /// What there is instead.
    pub async fn handshake(&self, uri: &Uri) -> Result<(), Error> {
        let mut connector = self.connector.clone();
        let connect = async {
            poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(uri.clone()).await
        };
        let done = tokio::time::timeout(self.patience, connect).await.map_err(|_| Error::Late(self.patience))?;
        done.map(drop).map_err(|e| cause(&*e))
    }
}

/// Is it a URL that can be asked?
///
/// # Errors
/// Why not.
pub fn check(uri: &str) -> Result<Uri, InvalidUrl> {
    let usable = |u: &Uri| matches!(u.scheme_str(), Some("http" | "https")) && u.host().is_some_and(|h| !h.is_empty());
    let found = uri.parse().ok().filter(usable);
    found.ok_or_else(|| InvalidUrl(uri.into()))
}

/// Trusts the authorities of a PEM text, too.
///
/// # Errors
/// What is wrong with it.
pub fn trust(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), AuthoritiesError> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    match roots.add_parsable_certificates(all) {
        (0, _) => Err(AuthoritiesError::None),
        (_, 0) => Ok(()),
        (_, ignored) => {
            tracing::warn!(ignored, "CA certificates cannot be used");
            Ok(())
        }
    }
}

/// Where a redirect leads to.
fn redirect(from: &Uri, location: Option<&header::HeaderValue>) -> Result<Uri, Error> {
    let to =
        location.and_then(|l| l.to_str().ok()).ok_or_else(|| Error::Redirect("it has no Location header".into()))?;
    if to.len() > LONGEST_URL {
        return Err(Error::Redirect(format!("its URL is longer than {LONGEST_URL} bytes")));
    }
    let (scheme, authority) = (from.scheme_str().unwrap_or_default(), from.authority().map_or("", |a| a.as_str()));
    let absolute =
        to.split_once(':').is_some_and(|(s, _)| s.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)));
    let whole = if absolute {
        to.to_string()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{authority}{to}")
    } else {
        let directory = from.path().rsplit_once('/').map_or("", |(d, _)| d);
        format!("{scheme}://{authority}{directory}/{to}")
    };
    let to = check(&whole).map_err(|e| Error::Redirect(e.to_string()))?;
    if scheme == "https" && to.scheme_str() != Some("https") {
        return Err(Error::Redirect(format!("from https to {to}, which is not encrypted")));
    }
    Ok(to)
}

async fn text(answer: Response<Incoming>) -> Result<String, Error> {
    let body =
        Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|e| match e.is::<LengthLimitError>() {
            true => Error::TooLong(LARGEST),
            false => cause(&*e),
        })?;
    String::from_utf8(body.to_bytes().to_vec()).map_err(|_| Error::NoText)
}

/// The innermost of an error's causes says what happened.
fn cause(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut error = error;
    loop {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Error::Refused(refused.clone());
        }
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Error::Tls(tls.clone());
        }
        // What is in an io::Error is not its source.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match inner.map(|i| i as &(dyn std::error::Error + 'static)).or_else(|| error.source()) {
            Some(next) => error = next,
            None => return Error::Transport(error.to_string()),
        }
    }
}

/// Resolves names, and knows only addresses that may be reached.
#[derive(Clone)]
struct Resolver {
    system: GaiResolver,
    reach: Arc<Reach>,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Boxed<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.system.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (found, reach) = (self.system.call(name), self.reach.clone());
        Box::pin(async move { Ok(passed(found.await?, &reach)?.into_iter()) })
    }
}

/// Those that may be reached; a refusal if there are others only.
fn passed(found: impl Iterator<Item = SocketAddr>, reach: &Reach) -> Result<Vec<SocketAddr>, Refused> {
    let (mut good, mut refused) = (vec![], None);
    for a in found {
        match reach.check(a.ip()) {
            Ok(()) => good.push(a),
            Err(e) => refused = Some(e),
        }
    }
    match refused {
        Some(e) if good.is_empty() => Err(e),
        _ => Ok(good),
    }
}

/// Connects to addresses that may be reached. A host that is an address is not asked of the resolver, so it is checked here.
#[derive(Clone)]
struct Guarded {
    tcp: HttpConnector<Resolver>,
    reach: Arc<Reach>,
}

impl Service<Uri> for Guarded {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Boxed<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if let Some(Err(e)) = literal(&uri).map(|ip| self.reach.check(ip)) {
            return Box::pin(std::future::ready(Err(e.into())));
        }
        let (connecting, reach) = (self.tcp.call(uri), self.reach.clone());
        Box::pin(async move {
            let stream = connecting.await?;
            // Whatever was overlooked: nothing is written to another.
            reach.check(stream.inner().peer_addr()?.ip())?;
            Ok(stream)
        })
    }
}

/// The host, if it is an address.
fn literal(uri: &Uri) -> Option<IpAddr> {
    let host = uri.host()?;
    host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).parse().ok()
}

#[cfg(test)]
mod tests;
