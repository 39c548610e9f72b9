//! HTTP/1.1 of tests: a server that notes what it is asked, and a client. Both plain enough to see every byte.

use crate::Pod;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Error, Read, Result, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A request or an answer.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Method, path and version; or version, status and reason.
    pub line: [String; 3],
    /// By lower-case name; several of one name joined by commas.
    pub headers: BTreeMap<String, String>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Message {
    /// A request's path.
    pub fn path(&self) -> &str {
        &self.line[1]
    }
    /// An answer's status.
    pub fn status(&self) -> u16 {
        self.line[1].parse().unwrap_or(0)
    }
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn read(r: &mut impl BufRead, no_body: bool) -> Result<Option<Self>> {
        let mut m = Self::default();
        let mut line = String::new();
        if r.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut parts = line.trim_end().splitn(3, ' ').map(String::from);
        m.line = std::array::from_fn(|_| parts.next().unwrap_or_default());
        loop {
            line.clear();
            if r.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let Some((k, v)) = line.trim_end().split_once(':') else { break };
            let all = m.headers.entry(k.to_ascii_lowercase()).or_default();
            *all = if all.is_empty() { v.trim().into() } else { format!("{all},{}", v.trim()) };
        }
        if no_body || matches!(m.line[1].as_str(), "204" | "304" | "101") {
            return Ok(Some(m));
        }
        if m.header("transfer-encoding") == "chunked" {
            loop {
                line.clear();
                r.read_line(&mut line)?;
                let n = usize::from_str_radix(line.trim(), 16).map_err(|_| Error::other(format!("chunk {line:?}")))?;
                let at = m.body.len();
                m.body.resize(at + n, 0);
                r.read_exact(&mut m.body[at..])?;
                line.clear();
                r.read_line(&mut line)?;
                if n == 0 {
                    return Ok(Some(m));
                }
            }
        }
        match m.header("content-length").parse() {
            Ok(n) => {
                m.body = vec![0; n];
                r.read_exact(&mut m.body)?;
            }
            Err(_) if m.line[0].starts_with("HTTP/") => drop(r.read_to_end(&mut m.body)?),
            Err(_) => {}
        }
        Ok(Some(m))
    }
}

/// What a server answers: status, headers, body.
pub type Answer = (u16, Vec<(String, String)>, Vec<u8>);

/// Serves each connection of a listener in a thread of its own, until it is dropped.
pub struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
    pod: Pod,
}

impl Acceptor {
    /// At a port of a pod, on both families.
    pub fn at(pod: &Pod, port: u16, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let l = pod
            .netns()
            .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free"))
            .expect("the namespace can be entered");
        Self::start(pod, l, (Ipv6Addr::LOCALHOST, port).into(), serve)
    }

    fn start(
        pod: &Pod,
        l: TcpListener,
        address: SocketAddr,
        serve: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let (stop, serve) = (Arc::new(AtomicBool::new(false)), Arc::new(serve));
        let st = stop.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let accepted = l.accept();
                if st.load(Relaxed) {
                    return;
                }
                let Ok((s, _)) = accepted else { continue };
                let serve = serve.clone();
                std::thread::spawn(move || serve(s));
            }
        });
        Self { stop, thread: Some(thread), address, pod: pod.clone() }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Wakes the accept loop.
        let _ = self.pod.netns().run(|| TcpStream::connect_timeout(&self.address, Duration::from_millis(500)));
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

/// A server in a pod.
pub struct Web {
    /// What it was asked, in order.
    pub asked: Arc<Mutex<Vec<Message>>>,
    _acceptor: Acceptor,
}

impl Web {
    /// A server that answers with its name.
    pub fn named(pod: &Pod, port: u16, name: &str) -> Self {
        let name = name.to_string();
        Self::start(pod, port, move |_| (200, vec![], name.clone().into_bytes()))
    }

    /// A server that answers with `page`, and takes WebSockets (RFC 6455), on each of which what comes goes back.
    pub fn chatting(pod: &Pod, port: u16) -> Self {
        Self::start(pod, port, |m| {
            if m.header("upgrade") != "websocket" {
                return (200, vec![], b"page".to_vec());
            }
            let all = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", m.header("sec-websocket-key"));
            let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, all.as_bytes()));
            let upgrade =
                [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", accept.as_str())];
            (101, upgrade.map(|(name, value)| (name.into(), value.into())).to_vec(), vec![])
        })
    }

    /// A server on both families.
    pub fn start(pod: &Pod, port: u16, answer: impl Fn(&Message) -> Answer + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(vec![]));
        let a = asked.clone();
        let acceptor = Acceptor::at(pod, port, move |s| {
            let _ = serve(s, &a, &answer);
        });
        Self { asked, _acceptor: acceptor }
    }

    /// How many requests there were.
    pub fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Forgets them.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(s: TcpStream, asked: &Mutex<Vec<Message>>, answer: &(dyn Fn(&Message) -> Answer + Send + Sync)) -> Result<()> {
    let _ = s.set_nodelay(true);
    let mut w = s.try_clone()?;
    let mut r = BufReader::new(s);
    while let Some(m) = Message::read(&mut r, false)? {
        asked.lock().unwrap().push(m.clone());
        let (status, headers, body) = answer(&m);
        if status == 0 {
            return Ok(()); // goes without a word
        }
        let mut head = format!("HTTP/1.1 {status} x\r\n");
        for (k, v) in &headers {
            head.push_str(&format!("{k}: {v}\r\n"));
        }
        if status == 101 {
            w.write_all(format!("{head}\r\n").as_bytes())?;
            // What follows comes back as it is.
            let mut buf = [0; 1024];
            loop {
                match r.read(&mut buf)? {
                    0 => return Ok(()),
                    n => w.write_all(&buf[..n])?,
                }
            }
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        w.write_all(&[head.as_bytes(), if m.line[0] == "HEAD" { b"" } else { &body }].concat())?;
    }
    Ok(())
}

/// A client's connection.
pub struct Session {
    w: TcpStream,
    r: BufReader<TcpStream>,
    host: String,
}

impl Session {
    /// Connects from a pod.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn new(from: &Pod, to: SocketAddr, host: &str) -> Result<Self> {
        let s = from.connect(to)?;
        s.set_nodelay(true)?;
        s.set_read_timeout(Some(Duration::from_secs(20)))?;
        s.set_write_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { w: s.try_clone()?, r: BufReader::new(s), host: host.into() })
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// Those of the socket; `UnexpectedEof` if there is no answer.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Message> {
        self.send(method, path, headers, body)?;
        self.answer(method == "HEAD")
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.host);
        for (k, v) in headers {
            head.push_str(&format!("{k}: {v}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        self.w.write_all(&[format!("{head}\r\n").as_bytes(), body].concat())
    }

    /// Waits for the first byte of an answer.
    ///
    /// # Errors
    /// Those of the socket; `UnexpectedEof` if the connection has ended.
    pub fn wait(&mut self) -> Result<()> {
        match self.r.fill_buf()?.is_empty() {
            true => Err(std::io::ErrorKind::UnexpectedEof.into()),
            false => Ok(()),
        }
    }

    /// Reads an answer. `no_body`: it has none, whatever its head says.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub fn answer(&mut self, no_body: bool) -> Result<Message> {
        Message::read(&mut self.r, no_body)?.ok_or(std::io::ErrorKind::UnexpectedEof.into())
    }

    /// The bytes after an answer of 101.
    pub fn raw(&mut self) -> (&mut TcpStream, &mut BufReader<TcpStream>) {
        (&mut self.w, &mut self.r)
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// See [`Session::ask`].
pub fn ask(from: &Pod, to: SocketAddr, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Message> {
    Session::new(from, to, host)?.ask("GET", path, headers, b"")
}

/// What a client of TLS brings along.
#[derive(Clone, Default)]
pub struct TlsClient {
    /// Who may have signed the server's certificate, PEM.
    pub roots: String,
    /// Certificate and key to show, PEM.
    pub own: Option<(String, String)>,
    /// It knows TLS 1.2 only.
    pub old: bool,
    /// It speaks HTTP/2 only (ALPN).
    pub http2: bool,
}

impl TlsClient {
    /// One that trusts these, and shows nothing.
    pub fn new(roots: String) -> Self {
        Self { roots, ..Self::default() }
    }
}

/// A client's connection by TLS.
pub struct TlsSession {
    io: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl TlsSession {
    /// Connects from a pod, with this name in the hello.
    ///
    /// # Errors
    /// Those of the socket and of TLS: the server's certificate must have the name.
    pub fn new(from: &Pod, to: SocketAddr, sni: &str, c: &TlsClient) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(c.roots.as_bytes()) {
            roots.add(cert.map_err(Error::other)?).map_err(Error::other)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let versions = if c.old { &[&rustls::version::TLS12][..] } else { rustls::DEFAULT_VERSIONS };
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
        let config = config.map_err(Error::other)?.with_root_certificates(roots);
        let mut config = match &c.own {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<std::result::Result<_, _>>();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(Error::other)?;
                config.with_client_auth_cert(chain.map_err(Error::other)?, key).map_err(Error::other)?
            }
        };
        if c.http2 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let name = sni.to_string().try_into().map_err(Error::other)?;
        let s = from.connect(to)?;
        s.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), name).map_err(Error::other)?, s);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Self { io: BufReader::new(tls) })
    }

    /// The bytes, where nothing was asked before.
    pub fn raw(&mut self) -> &mut StreamOwned<ClientConnection, TcpStream> {
        self.io.get_mut()
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// Those of the socket; `UnexpectedEof` if there is no answer.
    pub fn ask(&mut self, host: &str, path: &str) -> Result<Message> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        self.io.get_mut().write_all(head.as_bytes())?;
        Message::read(&mut self.io, false)?.ok_or(std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// A server of HTTP over TLS in a pod. Its answers say the name in the hello, the path, and whether a certificate was shown
/// (`mutual`) or not (`alone`).
pub struct TlsWeb {
    _acceptor: Acceptor,
}

impl TlsWeb {
    /// With a certificate and key, PEM. `clients`: who must have signed the client's certificate, PEM; None: nobody is asked for one.
    pub fn start(pod: &Pod, port: u16, (cert, key): &(String, String), clients: Option<&str>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = CertificateDer::pem_slice_iter(cert.as_bytes()).collect::<std::result::Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(provider.clone());
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(roots) => {
                let mut store = RootCertStore::empty();
                CertificateDer::pem_slice_iter(roots.as_bytes()).for_each(|c| store.add(c.unwrap()).unwrap());
                let v = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
                config.with_client_cert_verifier(v)
            }
        };
        let config = Arc::new(config.with_single_cert(chain, key).unwrap());
        let l = pod.netns().run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()).unwrap();
        let acceptor = Acceptor::start(pod, l, ([127, 0, 0, 1], port).into(), move |s| {
            let _ = serve_tls(s, config.clone());
        });
        Self { _acceptor: acceptor }
    }
}

fn serve_tls(s: TcpStream, config: Arc<ServerConfig>) -> Result<()> {
    s.set_nodelay(true)?;
    let mut io = BufReader::new(StreamOwned::new(ServerConnection::new(config).map_err(Error::other)?, s));
    while let Some(m) = Message::read(&mut io, false)? {
        let tls = &io.get_ref().conn;
        let shown = if tls.peer_certificates().is_some() { "mutual" } else { "alone" };
        let body = format!("{} {} {shown}", tls.server_name().unwrap_or("-"), m.path());
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        io.get_mut().write_all(answer.as_bytes())?;
    }
    Ok(())
}
