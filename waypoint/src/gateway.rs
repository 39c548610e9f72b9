//! What a gateway listens on, compiled: which listener a name belongs to, the routes for it, and the TLS that ends here.

use crate::{access::Access, control::Snapshot, table::Routes, telemetry::Telemetry};
use karst_api::route::{self as ir, ListenerProtocol};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{collections::BTreeMap, sync::Arc};

/// All of it.
#[derive(Debug, Default)]
pub struct Gateway {
    pub ports: BTreeMap<u16, Port>,
    /// Who may send anything through it.
    pub access: Option<Access>,
    /// What we may show to endpoints, by name.
    pub credentials: BTreeMap<String, Pair>,
    /// What is told of requests; none: the standard.
    pub telemetry: Option<Arc<Telemetry>>,
}

/// Certificates, the leaf first, and the leaf's key.
pub type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(p: &ir::KeyPair) -> Result<Pair, String> {
    let chain = CertificateDer::pem_slice_iter(&p.chain).collect::<Result<_, _>>();
    let chain = chain.map_err(|e| format!("certificate: {e}"))?;
    Ok((chain, PrivateKeyDer::from_pem_slice(&p.key).map_err(|e| format!("key: {e}"))?))
}

/// One port.
#[derive(Debug, Default)]
pub struct Port {
    listeners: Vec<Arc<Listener>>,
}

/// One listener.
#[derive(Debug)]
pub struct Listener {
    pub origin: String,
    /// The names of its virtual hosts begin so.
    routes: String,
    pub protocol: ListenerProtocol,
    hosts: Vec<String>,
    pub tls: Option<Tls>,
    /// Requests without TLS are sent to https.
    pub redirect: bool,
}

/// TLS that ends here.
#[derive(Debug)]
pub struct Tls {
    pub server: Arc<ServerConfig>,
    /// One of them must be a name of the client's certificate, if there are any.
    names: Vec<String>,
}

impl Gateway {
    /// Compiles.
    ///
    /// # Errors
    /// What cannot be used, and of which listener.
    pub fn new(g: &ir::Gateway) -> Result<Self, String> {
        let mut ports: BTreeMap<u16, Port> = BTreeMap::new();
        for l in &g.listeners {
            let bad = |e: String| format!("{}: {e}", l.origin);
            let port = u16::try_from(l.port).ok().filter(|p| *p > 0).ok_or_else(|| bad(format!("port {}", l.port)))?;
            let protocol =
                ListenerProtocol::try_from(l.protocol).map_err(|_| bad(format!("protocol {}", l.protocol)))?;
            let tls = l.tls.as_ref().map(|t| Tls::new(t, protocol)).transpose().map_err(bad)?;
            if protocol == ListenerProtocol::Https && tls.is_none() {
                return Err(format!("{}: HTTPS without TLS", l.origin));
            }
            ports.entry(port).or_default().listeners.push(Arc::new(Listener {
                origin: l.origin.clone(),
                routes: l.routes.clone(),
                protocol,
                hosts: l.hosts.clone(),
                tls,
                redirect: l.redirect,
            }));
        }
        let pair = |(name, k): (&String, &ir::KeyPair)| {
            read(k).map(|k| (name.clone(), k)).map_err(|e| format!("credential {name}: {e}"))
        };
        let credentials = g.credentials.iter().map(pair).collect::<Result<_, _>>()?;
        let telemetry = g.telemetry.as_ref().map(Telemetry::new).transpose();
        let telemetry = telemetry.map_err(|e| format!("telemetry: {e}"))?.map(Arc::new);
        Ok(Self { ports, access: g.access.as_ref().map(Access::new).transpose()?, credentials, telemetry })
    }

    /// Nothing is listened on, and nobody may call anything.
    pub fn closed() -> Self {
        Self { ports: BTreeMap::new(), access: Some(Access::closed()), credentials: BTreeMap::new(), telemetry: None }
    }

    /// For the admin page.
    pub fn describe(&self) -> serde_json::Value {
        let one = |l: &Arc<Listener>| serde_json::json!({ "origin": l.origin, "protocol": l.protocol.as_str_name(), "hosts": l.hosts, "endsTls": l.tls.is_some() });
        let port = |(p, x): (&u16, &Port)| (p.to_string(), x.listeners.iter().map(one).collect::<Vec<_>>().into());
        self.ports.iter().map(port).collect::<serde_json::Map<_, serde_json::Value>>().into()
    }
}

impl Port {
    /// The listeners for a name (that of a request, or of a TLS hello): of those that it fits, the ones with the longest
    /// name of their own, in order.
    pub fn find<'a>(&'a self, name: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Listener>> {
        let best = self.listeners.iter().filter_map(|l| l.rank(name)).max();
        self.listeners.iter().filter(move |l| best.is_some() && l.rank(name) == best)
    }

    /// What is spoken on it first.
    pub fn protocol(&self) -> ListenerProtocol {
        self.listeners.first().map_or(ListenerProtocol::Http, |l| l.protocol)
    }
}

impl Listener {
    fn rank(&self, name: Option<&str>) -> Option<usize> {
        self.hosts.iter().filter_map(|h| rank(h, name)).max()
    }

    /// The routes for a name: of the name itself, else of the longest wildcard that it fits.
    pub fn routes<'a>(&self, s: &'a Snapshot, name: &str) -> Option<&'a Routes> {
        let mut key = String::with_capacity(self.routes.len() + name.len() + 2);
        let mut look = |wild: &str, rest: &str| {
            key.clear();
            for part in [&self.routes, "/", wild, rest] {
                key.push_str(part);
            }
            s.hosts.get(key.as_str()).map(|r| &**r)
        };
        if let Some(r) = look("", name).filter(|_| !name.starts_with('*')) {
            return Some(r);
        }
        let mut dots = name.match_indices('.').map(|(i, _)| &name[i..]);
        dots.find_map(|rest| look("*", rest)).or_else(|| look("*", ""))
    }
}

/// How closely a listener's name fits; None: not.
fn rank(host: &str, name: Option<&str>) -> Option<usize> {
    match (host, name) {
        ("*", _) => Some(0),
        (_, None) => None,
        (h, Some(n)) if h == n => Some(usize::MAX),
        (h, Some(n)) => h.strip_prefix('*').filter(|s| n.len() > s.len() && n.ends_with(s)).map(str::len),
    }
}

/// A name as it is looked up: without port and last dot, in small letters.
pub fn name_of(authority: &str) -> String {
    let host = match authority.rsplit_once(':') {
        Some((h, p)) if p.bytes().all(|b| b.is_ascii_digit()) => h,
        _ => authority,
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl Tls {
    fn new(t: &ir::Tls, protocol: ListenerProtocol) -> Result<Self, String> {
        // Clients are not of the mesh: some have only TLS 1.2, which the mesh's own provider leaves out.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut keys = vec![];
        for p in &t.certificates {
            let (chain, key) = read(p)?;
            keys.push(Arc::new(CertifiedKey::from_der(chain, key, &provider).map_err(|e| e.to_string())?));
        }
        if keys.is_empty() {
            return Err("TLS without a certificate".into());
        }
        let versions: &[&rustls::SupportedProtocolVersion] =
            if t.modern { &[&rustls::version::TLS13] } else { &[&rustls::version::TLS13, &rustls::version::TLS12] };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|e| e.to_string())?;
        let builder = match clients(t, &provider)? {
            None => builder.with_no_client_auth(),
            Some(v) => builder.with_client_cert_verifier(v),
        };
        let mut server = builder.with_cert_resolver(Arc::new(Keys(keys)));
        if protocol == ListenerProtocol::Https {
            server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Ok(Self { server: Arc::new(server), names: t.client_names.clone() })
    }

    /// May a client with these certificates come in? (Who signed them has been looked at.)
    pub fn admits(&self, certificates: Option<&[CertificateDer<'_>]>) -> bool {
        let Some(first) = certificates.and_then(<[_]>::first) else { return true };
        self.names.is_empty() || self.names.iter().any(|n| has_name(first, n))
    }
}

/// Is this a name of the certificate: a DNS name, or the SPIFFE id?
fn has_name(cert: &CertificateDer<'_>, name: &str) -> bool {
    if name.starts_with("spiffe://") {
        return karst_hbone::tls::identity_of(cert).is_ok_and(|i| i.to_string() == name);
    }
    let Ok(wanted) = ServerName::try_from(name) else { return false };
    webpki::EndEntityCert::try_from(cert).is_ok_and(|c| c.verify_is_valid_for_subject_name(&wanted).is_ok())
}

fn clients(t: &ir::Tls, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    let wanted = ir::ClientCertificate::try_from(t.client).map_err(|_| format!("client certificate {}", t.client))?;
    if wanted == ir::ClientCertificate::None {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for c in CertificateDer::pem_slice_iter(&t.client_roots) {
        roots.add(c.map_err(|e| format!("roots of clients: {e}"))?).map_err(|e| format!("roots of clients: {e}"))?;
    }
    let mut v = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if wanted == ir::ClientCertificate::Optional {
        v = v.allow_unauthenticated();
    }
    v.build().map(Some).map_err(|e| format!("roots of clients: {e}"))
}

/// The certificates of a listener: the first whose names fit is shown, else the first.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // A client that calls an address names nobody.
        let name = hello.server_name();
        let fits = |k: &&Arc<CertifiedKey>| name.is_some_and(|n| k.end_entity_cert().is_ok_and(|c| has_name(c, n)));
        self.0.iter().find(fits).or(self.0.first()).cloned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn listener(origin: &str, hosts: &[&str]) -> ir::Listener {
        ir::Listener {
            origin: origin.into(),
            routes: format!("~{origin}"),
            port: 80,
            hosts: hosts.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_longest_name_that_fits_is_it() {
        let listeners = vec![
            listener("any", &["*"]),
            listener("wide", &["*.com"]),
            listener("shop", &["*.shop.com", "shop.com"]),
            listener("one", &["a.shop.com"]),
            listener("also-one", &["a.shop.com"]),
        ];
        let g = Gateway::new(&ir::Gateway { listeners, ..Default::default() }).unwrap();
        let found = |n: Option<&str>| -> Vec<String> { g.ports[&80].find(n).map(|l| l.origin.clone()).collect() };
        for (name, want) in [
            (Some("a.shop.com"), &["one", "also-one"][..]),
            (Some("b.shop.com"), &["shop"]),
            (Some("shop.com"), &["shop"]),
            (Some("x.y.com"), &["wide"]),
            (Some("com"), &["any"]),
            (Some(".com"), &["any"]),
            (None, &["any"]),
        ] {
            assert_eq!(found(name), want, "{name:?}");
        }
    }

    #[test]
    fn routes_are_found_by_name() {
        let mut s = Snapshot::new("");
        for host in ["a.com", "*.a.com", "*.b.a.com"] {
            s.hosts.insert(format!("~l/{host}").into(), Arc::default());
        }
        let g = Gateway::new(&ir::Gateway { listeners: vec![listener("l", &["*"])], ..Default::default() }).unwrap();
        let l = g.ports[&80].find(None).next().unwrap().clone();
        let which = |n: &str| {
            let r = l.routes(&s, n)?;
            s.hosts.iter().find(|(_, x)| std::ptr::eq(&***x, r)).map(|(k, _)| k.to_string())
        };
        for (name, want) in [
            ("a.com", Some("~l/a.com")),
            ("x.a.com", Some("~l/*.a.com")),
            ("x.b.a.com", Some("~l/*.b.a.com")),
            ("y.x.a.com", Some("~l/*.a.com")),
            ("*.a.com", Some("~l/*.a.com")),
            ("b.com", None),
            ("", None),
        ] {
            assert_eq!(which(name).as_deref(), want, "{name}");
        }
        s.hosts.insert("~l/*".into(), Arc::default());
        assert!(l.routes(&s, "b.com").is_some() && l.routes(&s, "").is_some());
    }

    #[test]
    fn names_are_made_plain() {
        for (a, want) in [
            ("A.com:80", "a.com"),
            ("a.com.", "a.com"),
            ("a", "a"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("a:b", "a:b"),
        ] {
            assert_eq!(name_of(a), want);
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for (change, want) in [
            ((|l: &mut ir::Listener| l.port = 0) as fn(&mut ir::Listener), "port 0"),
            (|l| l.protocol = 9, "protocol 9"),
            (|l| l.protocol = ListenerProtocol::Https as i32, "HTTPS without TLS"),
            (|l| l.tls = Some(ir::Tls::default()), "TLS without a certificate"),
            (|l| l.tls = Some(ir::Tls { certificates: vec![ir::KeyPair::default()], ..Default::default() }), "key"),
        ] {
            let mut l = listener("Gateway/ns/g/l", &["*"]);
            change(&mut l);
            let e = Gateway::new(&ir::Gateway { listeners: vec![l], ..Default::default() }).unwrap_err();
            assert!(e.starts_with("Gateway/ns/g/l: ") && e.contains(want), "{e}");
        }
    }
}
