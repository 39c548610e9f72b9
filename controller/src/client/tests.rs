//! Real servers on loopback, which the client must be allowed to reach.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
use super::*;
use crate::ca::Signer;
use rustls::CertificateError;
use rustls_pki_types::PrivateKeyDer;
use std::{
    fmt::Write,
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};

const HOUR: Duration = Duration::from_secs(3600);

fn client(allowed: &[&str], roots: &str, patience: Duration) -> Client {
    let reach = Reach { allowed: allowed.iter().map(|c| c.parse().unwrap()).collect(), blocked: vec![] };
    let mut store = RootCertStore::empty();
    if !roots.is_empty() {
        trust(&mut store, roots.as_bytes()).unwrap();
    }
    Client::new(reach, store, patience).unwrap()
}

fn patient(allowed: &[&str]) -> Client {
    client(allowed, "", Duration::from_secs(10))
}

fn url(text: impl AsRef<str>) -> Uri {
    check(text.as_ref()).unwrap()
}

/// What a server answers a head.
type Answer = dyn Fn(&str) -> Vec<u8> + Send + Sync;

/// A server: where it is, and how many connections have come.
struct Server {
    at: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// Each request, of which it is told the head, gets this answer.
    async fn start(
        ip: &str,
        tls: Option<tokio_rustls::TlsAcceptor>,
        answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::answering(ip, tls, Box::new(answer)).await
    }

    async fn answering(ip: &str, tls: Option<tokio_rustls::TlsAcceptor>, answer: Box<Answer>) -> Self {
        let l = TcpListener::bind((ip, 0)).await.unwrap();
        let s = Self { at: l.local_addr().unwrap(), connections: Arc::default() };
        let connections = s.connections.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = l.accept().await.unwrap();
                connections.fetch_add(1, Ordering::Relaxed);
                match &tls {
                    None => serve(tcp, &answer).await,
                    Some(tls) => {
                        if let Ok(s) = tls.accept(tcp).await {
                            serve(s, &answer).await;
                        }
                    }
                }
            }
        });
        s
    }

    fn seen(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(mut s: impl AsyncRead + AsyncWrite + Unpin, answer: &Answer) {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        match s.read_u8().await {
            Ok(b) => head.push(b),
            Err(_) => return,
        }
    }
    // The client may have gone away.
    let _ = s.write_all(&answer(&String::from_utf8(head).unwrap())).await;
    let _ = s.shutdown().await;
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn moved(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

fn acceptor(authority: &str, key: &str, name: &str) -> tokio_rustls::TlsAcceptor {
    let signer = Signer::from_pem(authority, key).unwrap();
    let (chain, key) = signer.serving(&[name.into()], HOUR).unwrap();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

#[test]
fn urls_are_checked() {
    for good in ["https://a.com/keys", "http://keycloak.auth:8080/x?y", "http://[::1]:80/"] {
        assert!(check(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "a.com/keys",
        "ftp://a.com",
        "/etc/keys",
        "https://",
        "http://:80/",
        "http://a@:80/",
        "file:///etc/keys",
        "unix:/run/x",
    ] {
        assert!(check(bad).is_err(), "{bad}");
    }
}

#[test]
fn redirects_lead_to_urls_and_never_from_https_to_http() {
    let to = |from: &str, to: &str| {
        redirect(&url(from), Some(&to.parse().unwrap())).map(|u| u.to_string()).map_err(|e| e.to_string())
    };
    for (from, location, whole) in [
        ("http://a:1/x/y?z", "/k", "http://a:1/k"),
        ("http://a:1/x/y?z", "k?l", "http://a:1/x/k?l"),
        ("http://a:1", "k", "http://a:1/k"),
        ("https://a/x", "//b/k", "https://b/k"),
        ("http://a/x", "https://b/k", "https://b/k"),
        ("https://a/x", "HTTPS://b:444/k#l", "https://b:444/k"),
    ] {
        assert_eq!(to(from, location).as_deref(), Ok(whole), "{from} {location}");
    }
    for location in ["http://a/x", "HTTP://a/x", "ftp://a/x", "file:///etc/keys", "https://", "//", "https://a b/"] {
        assert!(to("https://a/x", location).is_err(), "{location}");
    }
    assert!(to("http://a/", &format!("/{}", "x".repeat(LONGEST_URL))).is_err());
    assert!(redirect(&url("http://a/"), None).is_err());
}

#[test]
fn names_have_only_the_addresses_that_may_be_reached() {
    let found = |all: &[&str]| {
        let all: Vec<SocketAddr> = all.iter().map(|a| SocketAddr::new(a.parse().unwrap(), 0)).collect();
        passed(all.into_iter(), &Reach::default())
            .map(|good| good.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>())
            .map_err(|e| e.ip.to_string())
    };
    assert_eq!(
        found(&["169.254.169.254", "10.0.0.1", "::1", "2001:db8::1"]),
        Ok(vec!["10.0.0.1".into(), "2001:db8::1".into()])
    );
    assert_eq!(found(&["127.0.0.1", "169.254.169.254"]), Err("169.254.169.254".into()));
    assert_eq!(found(&[]), Ok(vec![]));
}

/// However it is written, and whoever resolves it.
#[tokio::test]
async fn loopback_is_not_reached_by_any_spelling() {
    let s = Server::start("127.0.0.1", None, |_| ok("secret")).await;
    for host in [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "user:password@127.0.0.1",
    ] {
        let uri = url(format!("http://{host}:{}/", s.at.port()));
        let e = patient(&[]).get(&uri).await.unwrap_err();
        assert!(matches!(e, Error::Refused(_)), "{host}: {e}");
        let uri = url(format!("https://{host}:{}/", s.at.port()));
        let e = patient(&[]).handshake(&uri).await.unwrap_err();
        assert!(matches!(e, Error::Refused(_) | Error::Transport(_)), "{host}: {e}");
    }
    assert_eq!(s.seen(), 0);
    assert_eq!(patient(&["127.0.0.1"]).get(&url(format!("http://{}/", s.at))).await.unwrap(), "secret");
    assert_eq!(s.seen(), 1);
}

#[tokio::test]
async fn redirects_reach_no_forbidden_address() {
    let secret = Server::start("127.0.0.2", None, |_| ok("secret")).await;
    let port = secret.at.port();
    for to in [
        format!("http://127.0.0.2:{port}/"),
        format!("//127.0.0.2:{port}/"),
        format!("http://0x7f000002:{port}/"),
        format!("http://[::ffff:127.0.0.2]:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "https://169.254.169.254/latest/meta-data/".into(),
        "http://[fd00:ec2::254]/latest/meta-data/".into(),
        "http://[64:ff9b::a9fe:a9fe]/latest/meta-data/".into(),
    ] {
        let answer = moved(&to);
        let s = Server::start("127.0.0.1", None, move |_| answer.clone()).await;
        let e = patient(&["127.0.0.1"]).get(&url(format!("http://{}/", s.at))).await.unwrap_err();
        assert!(matches!(e, Error::Refused(_)), "{to}: {e}");
        assert_eq!(s.seen(), 1);
    }
    assert_eq!(secret.seen(), 0);
}

#[tokio::test]
async fn a_few_redirects_are_followed() {
    let s = Server::start("127.0.0.1", None, |head| match head.split(' ').nth(1).unwrap() {
        "/a" => moved("/b/c"),
        "/b/c" => moved("d"),
        "/b/d" => ok(head),
        _ => moved("/for/ever"),
    })
    .await;
    let head = patient(&["127.0.0.1"]).get(&url(format!("http://{}/a", s.at))).await.unwrap();
    assert!(head.starts_with("GET /b/d HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", s.at)) && head.contains("accept: application/json\r\n"), "{head}");
    assert_eq!(s.seen(), 3);
    let e = patient(&["127.0.0.1"]).get(&url(format!("http://{}/x", s.at))).await.unwrap_err();
    assert!(matches!(e, Error::Redirect(_)), "{e}");
    assert_eq!(s.seen(), 3 + 1 + REDIRECTS);
}

#[tokio::test]
async fn an_answer_too_large_is_given_up() {
    let s = Server::start("127.0.0.1", None, |head| {
        let fits = "x".repeat(LARGEST);
        match head.split(' ').nth(1).unwrap() {
            "/fits" => ok(&fits),
            "/long" => ok(&format!("{fits}x")),
            "/chunked" => {
                let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
                let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                format!("{head}{}", chunk.repeat(64)).into_bytes()
            }
            _ => {
                let mut head = "HTTP/1.1 200 OK\r\n".to_string();
                (0..50).for_each(|i| write!(head, "x-{i}: {}\r\n", "y".repeat(8192)).unwrap());
                format!("{head}content-length: 0\r\n\r\n").into_bytes()
            }
        }
    })
    .await;
    let get = async |path: &str| patient(&["127.0.0.1"]).get(&url(format!("http://{}{path}", s.at))).await;
    assert_eq!(get("/fits").await.unwrap().len(), LARGEST);
    for path in ["/long", "/chunked"] {
        assert!(matches!(get(path).await, Err(Error::TooLong(LARGEST))), "{path}");
    }
    let head = get("/head").await;
    assert!(matches!(head, Err(Error::Transport(_))), "{head:?}");
}

/// One byte now and then keeps nobody waiting: the time is that of the whole answer.
#[tokio::test]
async fn an_answer_too_slow_is_given_up() {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = url(format!("http://{}/", l.local_addr().unwrap()));
    tokio::spawn(async move {
        let (mut s, _) = l.accept().await.unwrap();
        // What comes before the request is no answer.
        let _ = s.read(&mut [0; 1024]).await.unwrap();
        s.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
        while s.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let begin = std::time::Instant::now();
    let e = client(&["127.0.0.1"], "", Duration::from_millis(300)).get(&uri).await.unwrap_err();
    assert!(matches!(e, Error::Late(_)) && begin.elapsed() < Duration::from_secs(5), "{e:?} {:?}", begin.elapsed());
}

#[tokio::test]
async fn only_authorities_that_are_trusted_count() {
    let ((own, key), (foreign, _)) = (Signer::generate("own").unwrap(), Signer::generate("foreign").unwrap());
    let good = Server::start("127.0.0.1", Some(acceptor(&own, &key, "127.0.0.1")), |_| ok("keys")).await;
    let other = Server::start("127.0.0.1", Some(acceptor(&own, &key, "127.0.0.2")), |_| ok("keys")).await;
    let with = |roots: &str| client(&["127.0.0.1"], roots, Duration::from_secs(10));
    let at = |s: &Server| url(format!("https://{}/", s.at));
    for roots in [own.clone(), format!("{foreign}{own}")] {
        assert_eq!(with(&roots).get(&at(&good)).await.unwrap(), "keys");
        with(&roots).handshake(&at(&good)).await.unwrap();
    }
    for roots in [foreign.as_str(), ""] {
        for e in [with(roots).get(&at(&good)).await.unwrap_err(), with(roots).handshake(&at(&good)).await.unwrap_err()]
        {
            let unknown = Error::Tls(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
            assert_eq!(e.to_string(), unknown.to_string());
        }
    }
    let e = with(&own).get(&at(&other)).await.unwrap_err();
    assert!(matches!(e, Error::Tls(rustls::Error::InvalidCertificate(_))), "the certificate is for another name: {e}");
}

#[tokio::test]
async fn https_is_not_left_by_a_redirect() {
    let (own, key) = Signer::generate("own").unwrap();
    let plain = Server::start("127.0.0.1", None, |_| ok("keys")).await;
    let answer = moved(&format!("http://{}/", plain.at));
    let s = Server::start("127.0.0.1", Some(acceptor(&own, &key, "127.0.0.1")), move |_| answer.clone()).await;
    let e = client(&["127.0.0.1"], &own, Duration::from_secs(10))
        .get(&url(format!("https://{}/", s.at)))
        .await
        .unwrap_err();
    assert!(matches!(e, Error::Redirect(_)), "{e}");
    assert_eq!(plain.seen(), 0);
}

#[test]
fn a_file_of_authorities_must_have_some() {
    let (own, _) = Signer::generate("own").unwrap();
    let mut roots = RootCertStore::empty();
    trust(&mut roots, format!("# ours\n{own}\n{own}").as_bytes()).unwrap();
    for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(trust(&mut roots, bad.as_bytes()).is_err(), "{bad}");
    }
}
