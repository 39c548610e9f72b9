//! Who the client is at a gateway, and what is told on of it: proxies in front (X-Forwarded-For, PROXY protocol) and certificates; and
//! what an endpoint is told by the PROXY protocol.

use super::*;
use crate::downstream::{edge, ports::Ports};
use karst_core::proxy_protocol::{self, Version};
use karst_policy::Attribute;
use karst_rt::admission::Source;
use tokio::{net::TcpStream, sync::watch};

/// Policies that deny calls with this attribute.
fn deny(attribute: Attribute, value: &str) -> ir::Access {
    let attribute = ir::Attribute::from(attribute) as i32;
    let tests = vec![ir::AccessTest { attribute, values: vec![value.into()], ..Default::default() }];
    let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
    let mut policy =
        ir::AccessPolicy { name: "ns/deny".into(), rules: vec![ir::AccessRule { clauses }], ..Default::default() };
    policy.set_action(ir::AccessAction::Deny);
    ir::Access { policies: vec![policy], ..Default::default() }
}

/// A listener for all hosts.
fn listener(port: u16) -> ir::Listener {
    ir::Listener {
        origin: "Gateway/ns/g/l".into(),
        routes: "g".into(),
        port: port.into(),
        hosts: vec!["*".into()],
        ..Default::default()
    }
}

/// A gateway at a port, with this in front of it.
fn behind(port: u16, topology: ir::Topology, access: Option<ir::Access>) -> impl FnOnce(&mut Snapshot) {
    listening(listener(port), topology, access)
}

fn listening(listener: ir::Listener, topology: ir::Topology, access: Option<ir::Access>) -> impl FnOnce(&mut Snapshot) {
    let topology = Some(topology);
    let gateway = ir::Gateway { listeners: vec![listener], access, topology, ..Default::default() };
    move |s| {
        s.gateway = Some(Arc::new(Gateway::new(&gateway).unwrap()));
        s.hosts.insert("g/*".into(), rule(|_| {}));
    }
}

/// The values of a header in a head.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!("{name}: ");
    head.lines().filter_map(|line| line.strip_prefix(start.as_str())).collect()
}

#[test]
fn the_client_is_whom_trusted_proxies_name() {
    let sent =
        "x-forwarded-for: 192.0.2.66, 192.0.2.7\r\nx-forwarded-proto: https\r\nx-envoy-external-address: 9.9.9.9\r\n";
    run(async {
        for (trusted, client, proto, external) in [
            (0, "10.0.0.9:1234", "http", &[][..]),
            (1, "192.0.2.7:0", "https", &["192.0.2.7"]),
            (2, "192.0.2.66:0", "https", &["192.0.2.66"]),
            // There are fewer.
            (3, "10.0.0.9:1234", "https", &["10.0.0.9"]),
        ] {
            let e = Endpoint::of_http1(|_| OK.into()).await;
            let topology = ir::Topology { trusted_proxies: trusted, ..Default::default() };
            let p = Proxy::new(&e, AppProtocol::Unknown, behind(80, topology, None));
            let a = p.ask(&get("/", sent)).await;
            assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
            let heads = e.heads.borrow();
            // We tell whom the connection is from, whoever the client is.
            assert_eq!(values(&heads[0], "x-forwarded-for"), ["192.0.2.66, 192.0.2.7,10.0.0.9"], "{trusted}");
            assert_eq!(values(&heads[0], "x-forwarded-proto"), [proto], "{trusted}");
            assert_eq!(values(&heads[0], "x-envoy-external-address"), external, "{trusted}");
            let line = LINES.take().pop().unwrap();
            assert!(line.contains(&format!(" {client} ")), "{trusted}: {line}");
        }
    });
}

#[test]
fn policies_tell_the_client_from_the_proxy_before_us() {
    run(async {
        for (attribute, value, trusted, status) in [
            (Attribute::RemoteIp, "192.0.2.0/24", 1, 403),
            (Attribute::RemoteIp, "192.0.2.0/24", 0, 200),
            (Attribute::RemoteIp, "10.0.0.9", 1, 200),
            (Attribute::RemoteIp, "10.0.0.9", 0, 403),
            (Attribute::SourceIp, "192.0.2.0/24", 1, 200),
            (Attribute::SourceIp, "10.0.0.9", 1, 403),
        ] {
            let e = Endpoint::of_http1(|_| OK.into()).await;
            let topology = ir::Topology { trusted_proxies: trusted, ..Default::default() };
            let p = Proxy::new(&e, AppProtocol::Unknown, behind(80, topology, Some(deny(attribute, value))));
            // Whatever `Connection` names: it is for the next one only, and the client may have written it.
            for more in ["", "connection: x-forwarded-for\r\n"] {
                let a = p.ask(&get("/", &format!("x-forwarded-for: 192.0.2.7\r\n{more}"))).await;
                assert!(a.starts_with(&format!("HTTP/1.1 {status} ")), "{attribute:?} {value} {trusted} {more}: {a}");
            }
        }
    });
}

#[test]
fn what_is_told_of_certificates_follows_the_mode() {
    use ir::ForwardClientCert as Mode;
    let (sent, known) = ("By=spiffe://td/ns/a/sa/forged;URI=spiffe://td/ns/a/sa/admin", "Hash=1;Subject=\"CN=me\"");
    let both = format!("{sent},{known}");
    run(async {
        // With a certificate, and without.
        for (mode, with, without) in [
            (Mode::Standard, Some(known), None),
            (Mode::Sanitize, None, None),
            (Mode::ForwardOnly, Some(sent), None),
            (Mode::AppendForward, Some(both.as_str()), None),
            (Mode::SanitizeSet, Some(known), None),
            (Mode::AlwaysForwardOnly, Some(sent), Some(sent)),
        ] {
            let e = Endpoint::of_http1(|_| OK.into()).await;
            let topology = ir::Topology { forward_client_cert: mode as i32, ..Default::default() };
            let p = Proxy::new(&e, AppProtocol::Unknown, behind(80, topology, None));
            for (certificate, want) in [(Some(known), with), (None, without)] {
                let certificate = certificate.map(HeaderValue::from_static);
                p.entered.set(Entered { certificate, ..Entered::default() });
                let headers = format!("x-forwarded-client-cert: {sent}\r\nx_forwarded_client_cert: {sent}\r\n");
                let a = p.ask(&get("/", &headers)).await;
                assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
                let head = e.heads.borrow_mut().pop().unwrap();
                let got = values(&head, "x-forwarded-client-cert");
                assert_eq!(got, want.into_iter().collect::<Vec<_>>(), "{mode:?} {want:?}");
                assert!(!head.contains("x_forwarded_client_cert"), "{head}");
            }
        }
    });
}

/// All that comes until the connection ends.
async fn dialogue(to: SocketAddr, bytes: &[u8]) -> String {
    let mut client = TcpStream::connect(to).await.unwrap();
    client.write_all(bytes).await.unwrap();
    let mut answer = vec![];
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A gateway that listens on loopback.
struct Listening {
    at: SocketAddr,
    worker: Rc<Worker>,
    _ports: watch::Sender<Ports>,
}

impl Listening {
    fn new(e: &Endpoint, topology: ir::Topology, access: Option<ir::Access>) -> Self {
        Self::of(e, |port| listening(listener(port), topology, access))
    }

    /// With what such a port makes of a snapshot.
    fn of<C: FnOnce(&mut Snapshot)>(e: &Endpoint, change: impl FnOnce(u16) -> C) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let p = Proxy::new(e, AppProtocol::Unknown, change(at.port()));
        let (sender, ports) = watch::channel(Ports::new([(at.port(), Arc::new(listener))].into()));
        spawn(edge::accept(p.worker.clone(), ports));
        Self { at, worker: p.worker.clone(), _ports: sender }
    }
}

#[test]
fn a_header_of_the_proxy_protocol_names_the_client_where_it_is_asked_for() {
    let (from, to) = ("192.0.2.7:4000".parse().unwrap(), "198.51.100.2:443".parse().unwrap());
    let request = b"GET / HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n";
    let with = |header: &[u8]| [header, request].concat();
    let local = [&proxy_protocol::write(Version::V2, from, to)[..12], &[0x20, 0, 0, 0]].concat();
    let asked = ir::Topology { proxy_protocol: true, ..Default::default() };
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let gateway = Listening::new(&e, asked, None);
        for (header, client) in [
            (proxy_protocol::write(Version::V1, from, to), "192.0.2.7"),
            (proxy_protocol::write(Version::V2, from, to), "192.0.2.7"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
            (local, "127.0.0.1"),
        ] {
            let a = dialogue(gateway.at, &with(&header)).await;
            assert!(a.starts_with("HTTP/1.1 200 "), "{header:x?}: {a}");
            let head = e.heads.borrow_mut().pop().unwrap();
            assert_eq!(values(&head, "x-forwarded-for"), [client], "{header:x?}");
        }
        // It must be there, and where it is not asked for it is none.
        for (topology, bytes) in [
            (asked, request.to_vec()),
            (asked, with(b"PROXY TCP4 1.2.3.4\r\n")),
            (ir::Topology::default(), with(b"PROXY TCP4 192.0.2.7 198.51.100.2 4000 443\r\n")),
        ] {
            let gateway = Listening::new(&e, topology, None);
            let a = dialogue(gateway.at, &bytes).await;
            assert!(!a.starts_with("HTTP/1.1 200 ") && e.heads.borrow().is_empty(), "{a}");
        }
        for (attribute, value, status) in [
            (Attribute::RemoteIp, "192.0.2.7", 403),
            (Attribute::SourceIp, "192.0.2.7", 200),
            (Attribute::SourceIp, "127.0.0.1", 403),
            (Attribute::RemoteIp, "127.0.0.1", 200),
        ] {
            let gateway = Listening::new(&e, asked, Some(deny(attribute, value)));
            let a = dialogue(gateway.at, &with(&proxy_protocol::write(Version::V1, from, to))).await;
            assert!(a.starts_with(&format!("HTTP/1.1 {status} ")), "{attribute:?} {value}: {a}");
        }
    });
}

#[test]
fn behind_a_proxy_turns_are_the_clients_that_it_names() {
    let (from, to) = ("192.0.2.7:4000".parse().unwrap(), "198.51.100.2:443".parse().unwrap());
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let gateway = Listening::new(&e, ir::Topology { proxy_protocol: true, ..Default::default() }, None);
        let has_turn = |ip: [u8; 4]| {
            let share = gateway.worker.callers.of(Source::address(ip.into(), false));
            // Somebody else's, too.
            Rc::strong_count(&share) > 1
        };
        let mut client = TcpStream::connect(gateway.at).await.unwrap();
        let header = proxy_protocol::write(Version::V1, from, to);
        client.write_all(&[&header[..], b"GET / HTTP/1.1\r\nhost: s\r\n\r\n"].concat()).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        assert_eq!([[192, 0, 2, 7], [127, 0, 0, 1]].map(has_turn), [true, false]);
    });
}

/// As [`dialogue`], within TLS.
async fn dialogue_in_tls(to: SocketAddr, config: rustls::ClientConfig, bytes: &[u8]) -> String {
    let name = rustls_pki_types::ServerName::try_from("gateway").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut client = connector.connect(name, TcpStream::connect(to).await.unwrap()).await.unwrap();
    client.write_all(bytes).await.unwrap();
    let mut answer = vec![];
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn applications_are_told_of_certificates_that_clients_show_as_each_mode_says() {
    use ir::ForwardClientCert as Mode;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let pair = |dns: &str, uri: &str| {
        let mut params = CertificateParams::new(vec![dns.to_string()]).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &ca).unwrap(), key)
    };
    let (server, client) =
        (pair("gateway", "spiffe://td/ns/edge/sa/gw"), pair("client.example", "spiffe://td/ns/a/sa/client"));
    let tls = ir::Tls {
        certificates: vec![ir::KeyPair { chain: server.0.pem().into(), key: server.1.serialize_pem().into() }],
        client: ir::ClientCertificate::Optional as i32,
        client_roots: ca.pem().into(),
        ..Default::default()
    };
    let config = |shows: bool| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match shows {
            true => {
                let key = rustls_pki_types::PrivateKeyDer::Pkcs8(client.1.serialize_der().into());
                config.with_client_auth_cert(vec![client.0.der().clone()], key).unwrap()
            }
            false => config.with_no_client_auth(),
        }
    };
    let sent = "URI=spiffe://td/ns/a/sa/admin";
    let request = format!("GET / HTTP/1.1\r\nhost: s\r\nx-forwarded-client-cert: {sent}\r\nconnection: close\r\n\r\n")
        .into_bytes();
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let hash = karst_hbone::names::fingerprint(client.0.der());
        let start = format!("By=spiffe://td/ns/edge/sa/gw;Hash={hash};Cert=\"-----BEGIN%20CERTIFICATE-----%0A");
        let end = ";URI=spiffe://td/ns/a/sa/client;DNS=client.example";
        // Of who has shown a certificate: what it has sent goes on, what is known is told. Of who has shown none: what it has sent.
        for (mode, goes_on, is_told, of_nobody) in [
            (Mode::Standard, false, true, false),
            (Mode::Sanitize, false, false, false),
            (Mode::ForwardOnly, true, false, false),
            (Mode::AppendForward, true, true, false),
            (Mode::SanitizeSet, false, true, false),
            (Mode::AlwaysForwardOnly, true, false, true),
        ] {
            let tls = tls.clone();
            let gateway = Listening::of(&e, |port| {
                let protocol = ir::ListenerProtocol::Https as i32;
                let listener = ir::Listener { tls: Some(tls), protocol, ..listener(port) };
                listening(listener, ir::Topology { forward_client_cert: mode as i32, ..Default::default() }, None)
            });
            for shows in [true, false] {
                let a = dialogue_in_tls(gateway.at, config(shows), &request).await;
                assert!(a.starts_with("HTTP/1.1 200 "), "{mode:?}: {a}");
                let head = e.heads.borrow_mut().pop().unwrap();
                let told = values(&head, "x-forwarded-client-cert");
                let (goes_on, is_told) = if shows { (goes_on, is_told) } else { (of_nobody, false) };
                let first = told.first().copied().unwrap_or_default();
                assert_eq!(told.len(), usize::from(goes_on || is_told), "{mode:?} {shows}: {head}");
                let rest = if goes_on { first.strip_prefix(sent).unwrap_or("-") } else { first };
                let known = if goes_on { rest.strip_prefix(',') } else { Some(rest) };
                let is_known = known.is_some_and(|k| k.starts_with(&start) && k.ends_with(end));
                assert!(if is_told { is_known } else { rest.is_empty() }, "{mode:?} {shows}: {head}");
            }
        }
    });
}

#[test]
fn an_endpoint_is_told_who_the_client_is_and_its_connection_is_used_for_no_other() {
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        let p = Proxy::new(&e, AppProtocol::Unknown, |s| {
            let policy = ir::Policy { proxy_protocol: ir::ProxyProtocol::V1 as i32, ..Default::default() };
            s.backends.insert(KEY.into(), Arc::new(ir::Backend { policy: Some(policy), ..Default::default() }));
        });
        let called: IpAddr = [10, 96, 0, 1].into();
        // The same client twice, then another.
        for (port, requests, connections) in [(1234, 2, 1), (4321, 1, 2)] {
            p.ends.set((SocketAddr::new([10, 0, 0, 9].into(), port), called));
            let mut client = p.connect(false);
            for _ in 0..requests {
                let a = asked(&mut client, &get("/", "")).await;
                assert!(a.starts_with("HTTP/1.1 200 "), "{a}");
            }
            assert_eq!(e.connections.get(), connections, "{port}");
        }
        let heads = e.heads.borrow();
        let starts: Vec<&str> = heads.iter().map(|head| head.split(" / HTTP").next().unwrap()).collect();
        let header = |port: u16| format!("PROXY TCP4 10.0.0.9 10.96.0.1 {port} 80\r\nGET");
        assert_eq!(starts, [header(1234).as_str(), "GET", header(4321).as_str()]);
    });
}

#[test]
fn where_any_certificate_is_taken_only_one_that_counts_vouches_for_a_header() {
    use ir::ForwardClientCert as Mode;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let authority = || {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (trusted, other) = (authority(), authority());
    let pair = |ca: &CertifiedIssuer<'_, KeyPair>, name: &str| {
        let key = KeyPair::generate().unwrap();
        (CertificateParams::new(vec![name.to_string()]).unwrap().signed_by(&key, ca).unwrap(), key)
    };
    let (server, right, wrong) = (pair(&trusted, "gateway"), pair(&trusted, "right"), pair(&other, "wrong"));
    let config = |shown: Option<&(rcgen::Certificate, KeyPair)>| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match shown {
            Some((cert, key)) => {
                let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
                config.with_client_auth_cert(vec![cert.der().clone()], key).unwrap()
            }
            None => config.with_no_client_auth(),
        }
    };
    let hash =
        |(cert, _): &(rcgen::Certificate, KeyPair)| format!("Hash={}", karst_hbone::names::fingerprint(cert.der()));
    let sent = "URI=spiffe://td/ns/a/sa/admin";
    let request = format!("GET / HTTP/1.1\r\nhost: s\r\nx-forwarded-client-cert: {sent}\r\nconnection: close\r\n\r\n")
        .into_bytes();
    run(async {
        let e = Endpoint::of_http1(|_| OK.into()).await;
        for mode in [Mode::Standard, Mode::ForwardOnly, Mode::AppendForward] {
            let gateway = Listening::of(&e, |port| {
                let tls = ir::Tls {
                    certificates: vec![ir::KeyPair {
                        chain: server.0.pem().into(),
                        key: server.1.serialize_pem().into(),
                    }],
                    client: ir::ClientCertificate::Unverified as i32,
                    client_roots: trusted.pem().into(),
                    ..Default::default()
                };
                let protocol = ir::ListenerProtocol::Https as i32;
                let listener = ir::Listener { tls: Some(tls), protocol, ..listener(port) };
                listening(listener, ir::Topology { forward_client_cert: mode as i32, ..Default::default() }, None)
            });
            for shown in [Some(&right), Some(&wrong), None] {
                let a = dialogue_in_tls(gateway.at, config(shown), &request).await;
                assert!(a.starts_with("HTTP/1.1 200 "), "{mode:?}: {a}");
                let head = e.heads.borrow_mut().pop().unwrap();
                let told = values(&head, "x-forwarded-client-cert");
                let counts = shown.is_some_and(|pair| std::ptr::eq(pair, &right));
                // Whatever was shown, it is told: the application decides.
                let known = shown.filter(|_| mode != Mode::ForwardOnly).map(hash);
                let told = told.first().copied().unwrap_or_default();
                assert_eq!(told.contains(sent), counts && mode != Mode::Standard, "{mode:?}: {head}");
                assert!(known.as_ref().is_none_or(|known| told.contains(known)), "{mode:?}: {head}");
                assert_eq!(told.contains("Hash="), known.is_some(), "{mode:?}: {head}");
            }
        }
    });
}

/// It has been made before its listener asked for certificates: the client is to come again, and is asked then.
#[test]
fn a_connection_that_has_shown_too_little_ends() {
    use ir::ClientCertificate as Wanted;
    run(async {
        for (wanted, unproven, status) in [
            (Wanted::None, true, 200),
            (Wanted::Optional, true, 200),
            (Wanted::Unverified, true, 200),
            (Wanted::Required, false, 200),
            (Wanted::Required, true, 421),
        ] {
            let e = Endpoint::of_http1(|_| OK.into()).await;
            let tls = ir::Tls { client: wanted as i32, ..Default::default() };
            let protocol = ir::ListenerProtocol::Https as i32;
            let gateway = ir::Gateway {
                listeners: vec![ir::Listener { tls: Some(tls), protocol, ..listener(80) }],
                ..Default::default()
            };
            // TLS has ended before: nobody needs the keys.
            let p = Proxy::new(&e, AppProtocol::Unknown, |s| {
                s.gateway = Some(Arc::new(Gateway::outline(&gateway).unwrap()));
                s.hosts.insert("g/*".into(), rule(|_| {}));
            });
            p.by_tls.set(true);
            p.entered.set(Entered { unproven, ..Entered::default() });
            let mut client = p.connect(false);
            let a = asked(&mut client, &get("/", "")).await;
            assert!(a.starts_with(&format!("HTTP/1.1 {status} ")), "{wanted:?} {unproven}: {a}");
            if status == 421 {
                let mut rest = vec![];
                client.read_to_end(&mut rest).await.unwrap();
                assert!(rest.is_empty() && e.heads.borrow().is_empty());
            } else {
                let a = asked(&mut client, &get("/", "")).await;
                assert!(a.starts_with("HTTP/1.1 200 "), "{wanted:?} {unproven}: {a}");
            }
        }
    });
}
