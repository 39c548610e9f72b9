//! Keys of issuers that RequestAuthentications name by `jwksUri`, or by the issuer alone, which then is asked where they are (OpenID
//! Connect Discovery 1.0): fetched here, so that no proxy has to reach them, and fetched again from time to time. What was fetched
//! once stays while the issuer cannot be reached.

use crate::{
    client::{self, AuthoritiesError, Client, InvalidUrl, check},
    key_set::public_keys,
    reach::Reach,
};
use hyper::Uri;
use karst_manifest::{
    Object, State,
    dir::{Keys, NotFetched},
    security::{JwtRule, KeySource},
};
use rustls::{CertificateError, RootCertStore};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Between two fetches of keys that are there (Istio's PILOT_JWT_PUB_KEY_REFRESH_INTERVAL).
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// After a failure: at first, and at most.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// For one answer (Istio: 5 s).
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom to ask, and whom to believe.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Which addresses.
    pub reach: Reach,
    /// A file (PEM) with authorities beside the public ones. It is read before each round, so an exchanged one counts.
    pub authorities: Option<PathBuf>,
}

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file of authorities cannot be read.
    #[error("--jwks-ca {}: {why}", .file.display())]
    Unreadable { file: PathBuf, why: std::io::Error },
    /// Nobody can be trusted by it.
    #[error("--jwks-ca {}: {why}", .file.display())]
    Authorities { file: PathBuf, why: AuthoritiesError },
    /// TLS cannot be set up.
    #[error("{0}")]
    Client(#[from] client::Error),
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Settings(#[from] Arc<SettingsError>),
    #[error("{0}")]
    Url(#[from] InvalidUrl),
    #[error(
        "the server's certificate is signed by an unknown authority: add its certificate with --jwks-ca (KARST_JWKS_CA) [KARST-0121]"
    )]
    UnknownIssuer,
    #[error("{0}")]
    Get(client::Error),
    /// Nothing of the answer is repeated in logs: it may be somebody's secret, and no keys at all.
    #[error("the response is not a JSON Web Key Set with a usable public key: use RSA, EC or OKP [KARST-0122]")]
    NoKeySet,
    #[error(
        "the response is not a discovery document (OpenID Connect) with issuer and jwks_uri: specify the URL of the keys in jwksUri [KARST-0125]"
    )]
    NoDocument,
    #[error(
        "the discovery document is of an issuer with another name: correct the rule's issuer, or specify the URL of the keys in jwksUri [KARST-0125]"
    )]
    OtherIssuer,
    #[error(
        "the discovery document of an issuer with https names keys at a URL without: specify the URL of the keys in jwksUri [KARST-0125]"
    )]
    NotEncrypted,
    #[error("the discovery document names keys at a URL that cannot be used: use http or https [KARST-0125]")]
    KeysUrl,
    #[error("at the URL that the discovery document names: {0}")]
    Keys(Box<FetchError>),
}

impl From<client::Error> for FetchError {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Tls(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                Self::UnknownIssuer
            }
            other => Self::Get(other),
        }
    }
}

impl Settings {
    fn client(&self) -> Result<Client, SettingsError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(file) = &self.authorities {
            let pem = std::fs::read(file).map_err(|why| SettingsError::Unreadable { file: file.clone(), why })?;
            let trusted = client::trust(&mut roots, &pem);
            trusted.map_err(|why| SettingsError::Authorities { file: file.clone(), why })?;
        }
        Ok(Client::new(self.reach.clone(), roots, PATIENCE)?)
    }
}

/// Keeps the keys of all sources that are wanted.
pub struct Fetcher {
    wanted: watch::Sender<BTreeSet<KeySource>>,
    /// What is there.
    pub found: watch::Receiver<Arc<Keys>>,
}

impl Fetcher {
    /// Starts it. Must run in a `LocalSet`.
    ///
    /// # Errors
    /// The file of authorities cannot be used.
    pub fn start(settings: Settings) -> Result<Self, SettingsError> {
        settings.client()?;
        let (wanted, rx) = watch::channel(BTreeSet::new());
        let (tx, found) = watch::channel(Arc::default());
        tokio::task::spawn_local(run(settings, rx, tx));
        Ok(Self { wanted, found })
    }

    /// Says which keys are wanted from now on.
    pub fn want(&self, state: &State) {
        let all = state.objects.iter().filter_map(|o| match &o.object {
            Object::RequestAuthentication(r) => Some(&r.spec.jwt_rules),
            _ => None,
        });
        // What no URL can be made of is told where rules are compiled.
        let wanted: BTreeSet<KeySource> =
            all.flatten().filter_map(JwtRule::key_source).filter(|source| check(&source.url()).is_ok()).collect();
        self.wanted.send_if_modified(|old| {
            let new = *old != wanted;
            *old = wanted;
            new
        });
    }
}

/// When a source is asked again, and after which pause if it fails.
struct FetchSchedule {
    at: Instant,
    pause: Duration,
}

async fn run(settings: Settings, mut wanted: watch::Receiver<BTreeSet<KeySource>>, found: watch::Sender<Arc<Keys>>) {
    let mut schedules: BTreeMap<KeySource, FetchSchedule> = BTreeMap::new();
    loop {
        let all = wanted.borrow_and_update().clone();
        schedules.retain(|source, _| all.contains(source));
        for source in &all {
            schedules.entry(source.clone()).or_insert_with(|| FetchSchedule { at: Instant::now(), pause: RETRY });
        }
        let now = Instant::now();
        let due: Vec<KeySource> = schedules.iter().filter(|(_, t)| t.at <= now).map(|(s, _)| s.clone()).collect();
        // One that hangs holds up no other.
        let client = settings.client().map_err(Arc::new);
        let asked = due.into_iter().map(|source| {
            let client = client.clone();
            tokio::task::spawn_local(async move { (fetch(client, &source).await.map_err(|e| e.to_string()), source) })
        });
        let mut answers = vec![];
        for task in asked.collect::<Vec<_>>() {
            answers.extend(task.await);
        }
        for (answer, source) in &answers {
            let Some(schedule) = schedules.get_mut(source) else { continue };
            match answer {
                Ok(_) => *schedule = FetchSchedule { at: Instant::now() + REFRESH, pause: RETRY },
                Err(e) => {
                    tracing::warn!(uri = source.url(), error = e, "keys cannot be fetched");
                    *schedule = FetchSchedule {
                        at: Instant::now() + schedule.pause,
                        pause: (schedule.pause * 2).min(LONGEST_RETRY),
                    };
                }
            }
        }
        found.send_if_modified(|old| {
            let mut new = (**old).clone();
            new.retain(|source, _| all.contains(source));
            for (answer, source) in answers {
                if answer.is_ok() || !new.get(&source).is_some_and(Result::is_ok) {
                    new.insert(source, answer.map_err(NotFetched));
                }
            }
            let changed = new != **old;
            *old = Arc::new(new);
            changed
        });
        let next = schedules.values().map(|t| t.at).min().unwrap_or_else(|| Instant::now() + REFRESH);
        tokio::select! {
            c = wanted.changed() => if c.is_err() { return },
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

async fn fetch(client: Result<Client, Arc<SettingsError>>, source: &KeySource) -> Result<String, FetchError> {
    let (client, url) = (client?, source.url());
    match source {
        KeySource::Jwks(_) => keys(&client, &check(&url)?).await,
        KeySource::Issuer(issuer) => {
            let text = client.get(&check(&url)?).await?;
            let at = keys_url(issuer, &text)?;
            keys(&client, &at).await.map_err(|e| FetchError::Keys(Box::new(e)))
        }
    }
}

async fn keys(client: &Client, url: &Uri) -> Result<String, FetchError> {
    let text = client.get(url).await?;
    public_keys(&text).map_err(|_| FetchError::NoKeySet)
}

/// What an issuer says of itself.
#[derive(Deserialize)]
struct Document {
    issuer: String,
    jwks_uri: String,
}

/// Where an issuer's keys are, as its document says. It must be the issuer's own (Discovery, section 4.3; a last slash does not
/// count): who can be asked for a document must not speak for another. Nor does it lead from https to what is not encrypted.
fn keys_url(issuer: &str, document: &str) -> Result<Uri, FetchError> {
    let document: Document = serde_json::from_str(document).map_err(|_| FetchError::NoDocument)?;
    let name = |issuer: &str| issuer.strip_suffix('/').unwrap_or(issuer).to_string();
    if name(&document.issuer) != name(issuer) {
        return Err(FetchError::OtherIssuer);
    }
    let url = check(&document.jwks_uri).map_err(|_| FetchError::KeysUrl)?;
    let is_https = |scheme: Option<&str>| scheme == Some("https");
    if is_https(check(issuer)?.scheme_str()) && !is_https(url.scheme_str()) {
        return Err(FetchError::NotEncrypted);
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "e-y4scs2WBMwaIE0WvgVG0UZa9sB8aS-BgmB4N5Q0Ls", "y": "eWJ4nB_CTnISFQXtcUJuRMXRJgi_LaEJN6ycvLl4xgs"}]}"#;

    fn to_loopback() -> Settings {
        let reach = Reach { allowed: vec!["127.0.0.1".parse().unwrap()], blocked: vec![] };
        Settings { reach, authorities: None }
    }

    /// The same is told to logs and proxies wherever an answer that is no set of keys comes from.
    #[tokio::test]
    async fn nothing_of_a_strange_answer_is_repeated() {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = KeySource::Jwks(format!("http://{}/secret", l.local_addr().unwrap()));
        let server = async {
            let (mut s, _) = l.accept().await.unwrap();
            s.read_buf(&mut Vec::<u8>::with_capacity(1024)).await.unwrap();
            s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n\"password\"").await.unwrap();
        };
        let (answer, ()) = tokio::join!(fetch(to_loopback().client().map_err(Arc::new), &uri), server);
        let e = answer.unwrap_err().to_string();
        assert!(e.contains("JSON Web Key Set") && !e.contains("password"), "{e}");
        let e = fetch(Settings::default().client().map_err(Arc::new), &uri).await.unwrap_err().to_string();
        assert!(e.starts_with("requests to 127.0.0.1 are not allowed: "), "{e}");
    }

    /// The file of authorities: what is wrong is said at the start; then it is read anew.
    #[tokio::test]
    async fn authorities_come_from_a_file() {
        let file = std::env::temp_dir().join(format!("karst-jwks-ca-{}.pem", std::process::id()));
        let _ = std::fs::remove_file(&file);
        let settings = Settings { authorities: Some(file.clone()), ..to_loopback() };
        let said = |s: &Settings| s.client().err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said(&settings).starts_with(&format!("--jwks-ca {}: ", file.display())), "{}", said(&settings));
        std::fs::write(&file, "nonsense").unwrap();
        assert!(said(&settings).contains("it contains no CA certificate"), "{}", said(&settings));
        assert!(Fetcher::start(settings.clone()).is_err());
        let (root, _) = crate::ca::Signer::generate("own").unwrap();
        std::fs::write(&file, root).unwrap();
        assert_eq!(said(&settings), "");
        std::fs::remove_file(&file).unwrap();
    }

    /// What cannot be fetched is tried again; what was there once stays; what nobody wants is forgotten.
    #[tokio::test]
    async fn keys_are_fetched_again() {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/keys", l.local_addr().unwrap());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async move {
                tokio::task::spawn_local(async move {
                    for (status, body) in [(500, ""), (200, "no keys"), (200, KEYS)] {
                        let (mut s, _) = l.accept().await.unwrap();
                        let mut buf = [0; 1024];
                        let n = s.read(&mut buf).await.unwrap();
                        assert!(buf[..n].starts_with(b"GET /keys HTTP/1.1\r\n"));
                        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", body.len());
                        s.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                    }
                });
                let f = Fetcher::start(to_loopback()).unwrap();
                let uri = KeySource::Jwks(uri);
                f.wanted.send_replace([uri.clone()].into());
                let mut found = f.found.clone();
                found
                    .wait_for(|k| k.get(&uri).is_some_and(|r| *r == Err(NotFetched("HTTP 500".into()))))
                    .await
                    .unwrap();
                found
                    .wait_for(|k| k.get(&uri).is_some_and(|r| r.as_ref().is_ok_and(|t| t.contains("P-256"))))
                    .await
                    .unwrap();
                f.wanted.send_replace(BTreeSet::new());
                found.wait_for(|k| k.is_empty()).await.unwrap();
            })
            .await;
    }

    /// Serves these answers, by path; `SELF` in them is where it listens.
    async fn issuer(answers: &'static [(&'static str, &'static str)]) -> (String, tokio::task::JoinHandle<()>) {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = format!("http://{}", l.local_addr().unwrap());
        let at = own.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (mut s, _) = l.accept().await.unwrap();
                let mut buf = [0; 1024];
                let n = s.read(&mut buf).await.unwrap();
                let head = String::from_utf8_lossy(&buf[..n]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default();
                let found = answers.iter().find(|(p, _)| *p == path);
                let (status, body) = found.map_or((404, String::new()), |(_, body)| (200, body.replace("SELF", &at)));
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                s.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            }
        });
        (own, serving)
    }

    /// An issuer that is only named is asked where its keys are, whether its name ends with a slash or not.
    #[tokio::test]
    async fn keys_are_found_by_the_issuers_name() {
        const DOCUMENT: &str =
            r#"{"issuer": "SELF/realm/", "jwks_uri": "SELF/certs", "authorization_endpoint": "SELF/x"}"#;
        let answers = &[("/realm/.well-known/openid-configuration", DOCUMENT), ("/certs", KEYS)];
        let (own, serving) = issuer(answers).await;
        let client = || to_loopback().client().map_err(Arc::new);
        for name in ["realm", "realm/"] {
            let source = KeySource::Issuer(format!("{own}/{name}"));
            let found = fetch(client(), &source).await;
            assert!(found.as_ref().is_ok_and(|keys| keys.contains("P-256")), "{found:?}");
        }
        // The document is no set of keys: the same address as a jwksUri has none.
        let as_keys = KeySource::Jwks(format!("{own}/realm/.well-known/openid-configuration"));
        assert!(matches!(fetch(client(), &as_keys).await, Err(FetchError::NoKeySet)));
        assert!(matches!(
            fetch(client(), &KeySource::Issuer(own.clone())).await,
            Err(FetchError::Get(client::Error::Status(404)))
        ));
        // Addresses that must not be reached are not reached by way of a document either.
        let blocked = Settings::default().client().map_err(Arc::new);
        let e = fetch(blocked, &KeySource::Issuer(format!("{own}/realm"))).await.unwrap_err().to_string();
        assert!(e.starts_with("requests to 127.0.0.1 are not allowed: "), "{e}");
        serving.abort();
    }

    /// The second address passes the same checks as the first, and nothing of an answer is repeated.
    #[tokio::test]
    async fn a_document_leads_to_no_forbidden_address() {
        const LINK_LOCAL: &str = r#"{"issuer": "SELF", "jwks_uri": "http://169.254.169.254/latest/meta-data"}"#;
        let (own, serving) = issuer(&[("/.well-known/openid-configuration", LINK_LOCAL)]).await;
        let e = fetch(to_loopback().client().map_err(Arc::new), &KeySource::Issuer(own)).await.unwrap_err().to_string();
        let wanted = "at the URL that the discovery document names: requests to 169.254.169.254 are not allowed: ";
        assert!(e.starts_with(wanted), "{e}");
        serving.abort();
    }

    #[test]
    fn a_discovery_document_is_its_issuers_own() {
        let url = |issuer: &str, document: &str| {
            keys_url(issuer, document).map(|url| url.to_string()).map_err(|e| e.to_string())
        };
        let good = r#"{"issuer": "https://a/x", "jwks_uri": "https://b/keys"}"#;
        for issuer in ["https://a/x", "https://a/x/"] {
            assert_eq!(url(issuer, good).as_deref(), Ok("https://b/keys"), "{issuer}");
        }
        for (document, why) in [
            (r#""password""#, "is not a discovery document"),
            (r#"{"issuer": "https://a/x"}"#, "is not a discovery document"),
            (r#"{"jwks_uri": "https://b/keys"}"#, "is not a discovery document"),
            (r#"{"issuer": "https://a/x", "jwks_uri": 7}"#, "is not a discovery document"),
            (r#"{"issuer": "https://a/y", "jwks_uri": "https://b/keys"}"#, "with another name"),
            (r#"{"issuer": "https://a/x", "jwks_uri": "http://b/keys"}"#, "at a URL without"),
            (r#"{"issuer": "https://a/x", "jwks_uri": "file:///etc/passwd"}"#, "cannot be used"),
            (r#"{"issuer": "https://a/x", "jwks_uri": "keys"}"#, "cannot be used"),
        ] {
            let e = url("https://a/x", document).unwrap_err();
            assert!(e.contains(why) && e.contains("KARST-0125") && !e.contains("password"), "{document}: {e}");
        }
    }
}
