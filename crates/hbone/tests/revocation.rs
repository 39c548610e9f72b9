//! Certificates that end or are revoked: in full handshakes, in resumed ones, and on tunnels that are open; in both roles.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod common;

use common::{A, B, Ca, ca, leaf};
use http::{HeaderMap, Response};
use karst_hbone::{
    Settings, client,
    revocation::{Lists, Revocation},
    server,
    tls::Credentials,
};
use karst_rt::{drain, exposition};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{LocalSet, spawn_local},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(5);
/// Serial numbers of client and server.
const CLIENT: u64 = 0xa1;
const SERVER: u64 = 0xb2;

/// The time of both sides: now, and so many seconds.
#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let later = Duration::from_secs(UnixTime::now().as_secs() + self.0.load(Relaxed));
        Some(UnixTime::since_unix_epoch(later))
    }
}

/// The lists of an authority that name these.
fn lists(of: &Issuer<'static, KeyPair>, serials: &[u64]) -> Lists {
    let now = OffsetDateTime::now_utc();
    let one = |n: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*n),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let p = CertificateRevocationListParams {
        this_update: now,
        next_update: now + time::Duration::hours(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(one).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Lists::read(p.signed_by(of).unwrap().pem().unwrap().as_bytes()).unwrap()
}

/// One side: its certificate, and the lists that it checks the other by.
struct Side {
    creds: Arc<Credentials>,
    lists: Revocation,
}

struct Site {
    ca: Ca,
    clock: Arc<Clock>,
}

impl Site {
    fn new() -> Self {
        Self { ca: ca(), clock: Arc::default() }
    }

    /// Of this identity and serial number, valid for so many minutes.
    fn side(&self, id: &str, serial: u64, minutes: i64) -> Side {
        let mut p = leaf(&[id]);
        p.serial_number = Some(SerialNumber::from(serial));
        p.not_after = OffsetDateTime::now_utc() + time::Duration::minutes(minutes);
        self.signed(id, p, &self.ca.issuer, &[])
    }

    fn signed(&self, id: &str, p: CertificateParams, by: &Issuer<'static, KeyPair>, between: &[String]) -> Side {
        let key = KeyPair::generate().unwrap();
        let leaf = p.signed_by(&key, by).unwrap().pem();
        let chain = [&[leaf][..], between, std::slice::from_ref(&self.ca.pem)].concat();
        let lists = Revocation::none();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut creds = Credentials::enforcing(id.parse().unwrap(), &chain, key, lists.clone()).unwrap();
        Arc::get_mut(&mut creds.server).unwrap().time_provider = self.clock.clone();
        Arc::get_mut(&mut creds.client).unwrap().time_provider = self.clock.clone();
        Side { creds: Arc::new(creds), lists }
    }
}

/// A tunnel with a stream on it. Each end says when it has ended, and how.
#[derive(Debug)]
struct Open {
    server: oneshot::Receiver<String>,
    client: oneshot::Receiver<String>,
    _stream: (h2::SendStream<bytes::Bytes>, h2::RecvStream),
}

impl Open {
    async fn goes_on(&mut self) -> bool {
        tokio::time::sleep(Duration::from_millis(50)).await;
        self.server.try_recv().is_err() && self.client.try_recv().is_err()
    }
    async fn ends(self) -> (String, String) {
        timeout(PATIENCE, async { (self.server.await.unwrap(), self.client.await.unwrap()) }).await.unwrap()
    }
}

/// Opens one from A to B. Else: what each side has said.
async fn open(s: &Side, c: &Side) -> Result<Open, (Option<String>, Option<String>)> {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = l.local_addr().unwrap();
    let (ended, server_end) = oneshot::channel();
    let creds = s.creds.clone();
    let serve = async move {
        let (tcp, _) = l.accept().await.unwrap();
        let (stream, peer) = server::handshake(tcp, &creds).await.map_err(|e| e.to_string())?;
        assert_eq!(peer.to_string(), A);
        spawn_local(async move {
            let ((_drain, watch), settings) = (drain::new(), Settings::default());
            let mut answered = vec![];
            let on_stream = |mut c: server::Connect| {
                answered.push((c.respond.send_response(Response::new(()), false).unwrap(), c.request));
            };
            let r = server::serve(stream, &settings, watch, on_stream).await;
            let _ = ended.send(format!("{r:?}"));
        });
        Ok::<_, String>(())
    };
    let (ended, client_end) = oneshot::channel();
    let connect = async {
        let tcp = TcpStream::connect(at).await.unwrap();
        let settings = Settings::default();
        let (send, drive) =
            client::handshake(tcp, at, &c.creds, &[B.parse().unwrap()], &settings).await.map_err(|e| e.to_string())?;
        spawn_local(async move {
            let _ = ended.send(format!("{:?}", drive.await));
        });
        // With the answer the tickets have come.
        client::connect(send, "10.0.0.1:80", HeaderMap::new()).await.map_err(|e| e.to_string())
    };
    match timeout(PATIENCE, async { tokio::join!(serve, connect) }).await.expect("in time") {
        (Ok(()), Ok((send, recv, _))) => Ok(Open { server: server_end, client: client_end, _stream: (send, recv) }),
        (s, c) => Err((s.err(), c.err())),
    }
}

async fn run(f: impl Future<Output = ()>) {
    LocalSet::new().run_until(f).await;
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_in_both_roles() {
    run(async {
        let site = Site::new();
        let (s, c) = (site.side(B, SERVER, 5), site.side(A, CLIENT, 5));
        // What names somebody else changes nothing.
        s.lists.publish(lists(&site.ca.issuer, &[1, SERVER]));
        c.lists.publish(lists(&site.ca.issuer, &[1, CLIENT]));
        assert!(open(&s, &c).await.unwrap().goes_on().await);
        s.lists.publish(lists(&site.ca.issuer, &[CLIENT]));
        let (server, _) = open(&s, &site.side(A, CLIENT, 5)).await.unwrap_err();
        assert!(server.as_ref().unwrap().contains("Revoked"), "{server:?}");
        s.lists.publish(lists(&site.ca.issuer, &[]));
        c.lists.publish(lists(&site.ca.issuer, &[SERVER]));
        let (_, client) = open(&site.side(B, SERVER, 5), &c).await.unwrap_err();
        assert!(client.as_ref().unwrap().contains("Revoked"), "{client:?}");
        // Taken back again.
        c.lists.publish(Lists::default());
        assert!(open(&s, &c).await.is_ok());
    })
    .await;
}

#[tokio::test]
async fn a_revoked_intermediate_takes_its_certificates_with_it() {
    run(async {
        let site = Site::new();
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::default();
        p.distinguished_name.push(DnType::CommonName, "between");
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        p.serial_number = Some(SerialNumber::from(77));
        let pem = p.signed_by(&key, &site.ca.issuer).unwrap().pem();
        let between = Issuer::from_ca_cert_pem(&pem, key).unwrap();
        let side = |id: &str| site.signed(id, leaf(&[id]), &between, std::slice::from_ref(&pem));
        let (s, c) = (side(B), side(A));
        let mut tunnel = open(&s, &c).await.unwrap();
        assert!(tunnel.goes_on().await);
        s.lists.publish(lists(&site.ca.issuer, &[77]));
        tunnel.ends().await;
        assert!(open(&s, &side(A)).await.unwrap_err().0.unwrap().contains("Revoked"));
        assert!(s.creds.revoked().is_some_and(|w| w.to_string().contains("4d")), "and knows it of its own");
    })
    .await;
}

/// The lists come while there is a ticket, and no tunnel of this pair.
#[tokio::test]
async fn a_resumed_session_of_a_revoked_certificate_is_refused() {
    run(async {
        for server_looks in [true, false] {
            let site = Site::new();
            let (s, c) = (site.side(B, SERVER, 5), site.side(A, CLIENT, 5));
            drop(open(&s, &c).await.unwrap());
            let (who, serial) = if server_looks { (&s, CLIENT) } else { (&c, SERVER) };
            who.lists.publish(lists(&site.ca.issuer, &[serial]));
            let (server, client) = open(&s, &c).await.unwrap_err();
            let why = if server_looks { server } else { client }.unwrap();
            assert!(why.contains("resumed session") && why.contains("Revoked"), "{why}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_resumed_session_ends_with_the_certificate() {
    run(async {
        for (server_lives, client_lives) in [(60, 5), (5, 60)] {
            let site = Site::new();
            let (s, c) = (site.side(B, SERVER, server_lives), site.side(A, CLIENT, client_lives));
            for _ in 0..2 {
                drop(open(&s, &c).await.unwrap());
            }
            site.clock.0.store(10 * 60, Relaxed);
            let (server, client) = open(&s, &c).await.unwrap_err();
            let why = if client_lives == 5 { server } else { client }.unwrap();
            assert!(why.contains("resumed session") && why.contains("CertExpired"), "{why}");
        }
    })
    .await;
}

/// One that is open when the certificate ends goes on, as with Istio.
#[tokio::test]
async fn an_open_tunnel_outlives_the_certificates_end() {
    run(async {
        let site = Site::new();
        let (s, c) = (site.side(B, SERVER, 5), site.side(A, CLIENT, 5));
        let mut tunnel = open(&s, &c).await.unwrap();
        site.clock.0.store(10 * 60, Relaxed);
        s.lists.publish(Lists::default());
        assert!(tunnel.goes_on().await);
    })
    .await;
}

#[tokio::test]
async fn an_open_tunnel_is_closed_when_its_peer_is_revoked() {
    run(async {
        for server_looks in [true, false] {
            let site = Site::new();
            let (s, c, other) = (site.side(B, SERVER, 5), site.side(A, CLIENT, 5), site.side(A, 9, 5));
            let tunnel = open(&s, &c).await.unwrap();
            // A bystander: of the same identity, by another certificate; and a list that names neither.
            let mut bystander = open(&s, &other).await.unwrap();
            let (who, serial) = if server_looks { (&s, CLIENT) } else { (&c, SERVER) };
            who.lists.publish(lists(&site.ca.issuer, &[5]));
            assert!(bystander.goes_on().await);
            who.lists.publish(lists(&site.ca.issuer, &[5, serial]));
            let (server, client) = tunnel.ends().await;
            if server_looks {
                assert!(server.contains("Revoked"), "{server}");
            }
            assert!(client.starts_with("Err"), "{client}");
            assert!(bystander.goes_on().await, "a bystander is not touched");
            let page = exposition::page(|page| who.lists.render(page));
            let reporter = if server_looks { "destination" } else { "source" };
            let want = format!("istio_crl_policy_rejections_total{{reporter=\"{reporter}\"}} 1\n");
            assert!(page.contains(&want), "{page}");
        }
    })
    .await;
}

#[tokio::test]
async fn before_the_first_lists_nobody_is_let_in() {
    run(async {
        let site = Site::new();
        let key = KeyPair::generate().unwrap();
        let cert = leaf(&[B]).signed_by(&key, &site.ca.issuer).unwrap().pem();
        let pending = Revocation::pending();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let creds =
            Credentials::enforcing(B.parse().unwrap(), &[cert, site.ca.pem.clone()], key, pending.clone()).unwrap();
        let (s, c) = (Side { creds: Arc::new(creds), lists: pending.clone() }, site.side(A, CLIENT, 5));
        let (server, _) = open(&s, &c).await.unwrap_err();
        assert!(server.as_ref().unwrap().contains("CRL_PATH"), "{server:?}");
        pending.publish(Lists::default());
        assert!(open(&s, &c).await.is_ok());
    })
    .await;
}
