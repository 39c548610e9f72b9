//! Certificates that their authority has taken back before their end: its revocation lists (CRLs, RFC 5280 §5).
//!
//! A peer is refused if a list names a certificate that it shows: in handshakes, full and resumed, and on tunnels that are open
//! when a list comes. What must hold:
//! - Every certificate of the chain counts: a revoked intermediate takes with it all that it has signed.
//! - A certificate of an issuer without a list passes: an operator keeps lists for the authorities that he has them of.
//! - A list is in force until there is another one, also after its `nextUpdate`: who forgets to write it anew must neither stop
//!   the mesh nor let back in whom he has shut out.
//! - Lists come the way that roots come, and who could write a false one could write false roots: being named is enough, whoever
//!   has signed the list, and what it says of its scope.
//! - Where lists are asked for, nobody is let in before they could be read once.
//!
//! Proven by `tests/revocation.rs`.

use karst_core::Identity;
use karst_rt::{
    clock,
    exposition::{Kind, Page},
    limited::Limited,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use std::{
    cell::RefCell,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};
use tokio::sync::watch;
use webpki::{BorrowedCertRevocationList, CertRevocationList, EndEntityCert};

thread_local! {
    /// The lines of this thread about peers that were refused: whoever comes again and again must not fill the log.
    static REFUSED: RefCell<Limited> = RefCell::default();
}

/// A list in DER begins with this byte, and none in PEM does.
const SEQUENCE: u8 = 0x30;

/// Why lists cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The PEM text is broken.
    #[error("is not PEM: {0}")]
    Pem(String),
    /// It is something else.
    #[error("contains no revocation list: use PEM (BEGIN X509 CRL; several are allowed) or a single list in DER")]
    None,
    /// A list is broken, or of a kind that is not understood (indirect, delta).
    #[error("revocation list {0} of the file cannot be read: {1}")]
    List(usize, webpki::Error),
}

/// The lists of a file, each in DER: several in PEM, or one in DER. A file with nothing in it holds none.
///
/// # Errors
/// If there are none in what is there. (What they say is not looked at: [`Lists::read`].)
pub fn split(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, ListError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(vec![]);
    }
    let found = match bytes.first() {
        Some(&SEQUENCE) => vec![CertificateRevocationListDer::from(bytes.to_vec())],
        _ => CertificateRevocationListDer::pem_slice_iter(bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| ListError::Pem(e.to_string()))?,
    };
    if found.is_empty() { Err(ListError::None) } else { Ok(found) }
}

/// Revocation lists.
#[derive(Debug, Default)]
pub struct Lists {
    all: Vec<CertRevocationList<'static>>,
    entries: usize,
}

impl Lists {
    /// Reads several in PEM, or one in DER. A file with nothing in it holds none.
    ///
    /// # Errors
    /// If any of them cannot be read: half of the truth is none.
    pub fn read(bytes: &[u8]) -> Result<Self, ListError> {
        let mut lists = Self::default();
        for (i, der) in split(bytes)?.iter().enumerate() {
            let bad = |e| ListError::List(i + 1, e);
            let list = BorrowedCertRevocationList::from_der(der).map_err(bad)?;
            lists.entries += list.into_iter().count();
            lists.all.push(BorrowedCertRevocationList::to_owned(&list).map_err(bad)?.into());
        }
        Ok(lists)
    }

    /// As webpki looks certificates up in them.
    pub fn into_inner(self) -> Vec<CertRevocationList<'static>> {
        self.all
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }
    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
    /// How many certificates they name.
    pub fn entries(&self) -> usize {
        self.entries
    }

    fn name(&self, certificate: &CertificateId) -> bool {
        let of_issuer = self.all.iter().filter(|l| *l.issuer() == *certificate.issuer);
        // What cannot be looked up counts as found.
        of_issuer.map(|l| l.find_serial(&certificate.serial)).any(|found| !matches!(found, Ok(None)))
    }
}

/// A certificate, as lists name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateId {
    /// The name in DER: names are compared byte by byte, as webpki does.
    issuer: Box<[u8]>,
    serial: Box<[u8]>,
}

impl CertificateId {
    fn of(cert: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let certificate = EndEntityCert::try_from(cert).map_err(|_| Refusal::Unreadable)?;
        Ok(Self { issuer: certificate.issuer().into(), serial: certificate.serial().into() })
    }

    /// Those of a chain.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn of_chain<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> Result<Vec<Self>, Refusal> {
        chain.into_iter().map(Self::of).collect()
    }
}

/// The serial number, hexadecimal.
impl fmt::Display for CertificateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serial.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Why certificates do not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This one (its serial number) is on a list.
    #[error("certificate {0} has been revoked by its issuer")]
    Revoked(String),
    /// Nobody knows yet which ones are.
    #[error("the revocation lists (CRL_PATH) could not be read yet: until then, all peers are rejected")]
    Unknown,
    /// One of the chain is no certificate.
    #[error("a certificate of the chain cannot be read")]
    Unreadable,
}

/// Do these certificates count? `lists`: none, while they could not be read.
fn judge(lists: Option<&Lists>, shown: &[CertificateId]) -> Result<(), Refusal> {
    let lists = lists.ok_or(Refusal::Unknown)?;
    match shown.iter().find(|c| lists.name(c)) {
        Some(c) => Err(Refusal::Revoked(c.to_string())),
        None => Ok(()),
    }
}

/// Which side of a tunnel the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has connected to us.
    Client,
    /// We have connected to it.
    Server,
}

impl Role {
    /// Which side we report as.
    fn reporter(self) -> &'static str {
        match self {
            Role::Client => "destination",
            Role::Server => "source",
        }
    }
}

/// The lists in force, for all who shake hands; a clone is a handle to the same.
#[derive(Clone, Debug)]
pub struct Revocation(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// None: they could not be read yet.
    lists: watch::Sender<Option<Arc<Lists>>>,
    /// Peers refused, and tunnels closed, by [`Role`].
    clients: AtomicU64,
    servers: AtomicU64,
    /// Could they not be read the last time?
    stale: AtomicBool,
    failures: AtomicU64,
}

impl Revocation {
    fn new(lists: Option<Lists>) -> Self {
        let (lists, _) = watch::channel(lists.map(Arc::new));
        let zero = AtomicU64::default;
        let stale = AtomicBool::default();
        Self(Arc::new(Shared { lists, clients: zero(), servers: zero(), stale, failures: zero() }))
    }

    /// No lists are kept.
    pub fn none() -> Self {
        Self::new(Some(Lists::default()))
    }

    /// There are to be lists: until [`Revocation::publish`] nobody is let in.
    pub fn pending() -> Self {
        Self::new(None)
    }

    /// From now on these are in force, also for tunnels that are open.
    pub fn publish(&self, lists: Lists) {
        self.0.stale.store(false, Relaxed);
        self.0.lists.send_replace(Some(Arc::new(lists)));
    }

    /// New ones could not be read: those of before stay in force.
    pub fn failed(&self) {
        self.0.stale.store(true, Relaxed);
        self.0.failures.fetch_add(1, Relaxed);
    }

    /// Could they be read once?
    pub fn is_known(&self) -> bool {
        self.0.lists.borrow().is_some()
    }

    fn judge(&self, shown: &[CertificateId]) -> Result<(), Refusal> {
        judge(self.0.lists.borrow().as_deref(), shown)
    }

    /// May a peer with these certificates come in?
    ///
    /// # Errors
    /// Why not. It is counted.
    pub fn check(&self, peer: Role, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        let shown = CertificateId::of_chain([leaf].into_iter().chain(chain))?;
        self.judge(&shown).inspect_err(|why| {
            self.count(peer);
            let reporter = peer.reporter();
            let passed = REFUSED.with_borrow_mut(|lines| lines.pass(reporter, clock::Instant::now()));
            let Some(left_out) = passed else { return };
            let left_out = (left_out > 0).then_some(left_out);
            tracing::info!(target: "access", reporter, left_out, "peer refused: {why}");
        })
    }

    fn count(&self, peer: Role) {
        match peer {
            Role::Client => &self.0.clients,
            Role::Server => &self.0.servers,
        }
        .fetch_add(1, Relaxed);
    }

    /// Is one of our own revoked? (While lists are not known, that is not known either.)
    pub fn revoked(&self, own: &[CertificateId]) -> Option<Refusal> {
        self.judge(own).err().filter(|r| matches!(r, Refusal::Revoked(_)))
    }

    /// Waits until one of our own is revoked.
    pub async fn until_revoked(&self, own: &[CertificateId]) -> Refusal {
        let mut lists = self.0.lists.subscribe();
        loop {
            lists.mark_unchanged();
            if let Some(refusal) = self.revoked(own) {
                return refusal;
            }
            if lists.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Watches the certificates of a tunnel's peer.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn standing(
        &self,
        role: Role,
        peer: Identity,
        certificates: &[CertificateDer<'_>],
    ) -> Result<Standing, Refusal> {
        let mut lists = self.0.lists.subscribe();
        // Looked at once more when the tunnel begins: none falls between the handshake and this.
        lists.mark_changed();
        let shown = CertificateId::of_chain(certificates)?;
        Ok(Standing { shown, peer, role, of: self.clone(), lists, wake: None })
    }

    /// Metrics, in the text format.
    pub fn render(&self, page: &mut Page) {
        let state = &self.0;
        let help = "Peers refused, and open tunnels closed, because of a revoked certificate.";
        let mut family = page.family("istio_crl_policy_rejections_total", Kind::Counter, help);
        for (role, count) in [(Role::Server, &state.servers), (Role::Client, &state.clients)] {
            family.sample(&[("reporter", role.reporter())], count.load(Relaxed));
        }
        let entries = state.lists.borrow().as_ref().map_or(0, |l| l.entries() as u64);
        let current = self.is_known() && !state.stale.load(Relaxed);
        for (name, kind, help, value) in [
            ("karst_crl_entries", Kind::Gauge, "Certificates that the revocation lists in force name.", entries),
            (
                "karst_crl_current",
                Kind::Gauge,
                "0: the newest revocation lists could not be read; those of before are in force.",
                u64::from(current),
            ),
            (
                "karst_crl_load_failures_total",
                Kind::Counter,
                "Revocation lists that could not be read.",
                state.failures.load(Relaxed),
            ),
        ] {
            page.single(name, kind, help, value);
        }
    }
}

/// Waits for other lists.
type Waiting = Pin<Box<dyn Future<Output = ()>>>;

/// The certificates of an open tunnel's peer. As a future it is done when one of them is revoked: then the tunnel has to end.
pub struct Standing {
    shown: Vec<CertificateId>,
    peer: Identity,
    role: Role,
    of: Revocation,
    lists: watch::Receiver<Option<Arc<Lists>>>,
    /// What wakes the tunnel's task when other lists come, and that task. It is polled only if it has to be: the tunnel polls us
    /// with all that it carries, and waiting on a channel takes a lock that all workers share.
    wake: Option<(Waiting, Waker)>,
}

impl Future for Standing {
    type Output = Refusal;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Refusal> {
        let me = &mut *self;
        loop {
            if me.lists.has_changed().unwrap_or(false) {
                let verdict = judge(me.lists.borrow_and_update().as_deref(), &me.shown);
                if let Err(why) = verdict {
                    me.of.count(me.role);
                    tracing::warn!(target: "access", peer = %me.peer, reporter = me.role.reporter(), "tunnel closed: {why}");
                    return Poll::Ready(why);
                }
                me.wake = None;
            }
            if me.wake.as_ref().is_some_and(|(_, w)| w.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            let mut lists = me.lists.clone();
            // Whatever the task's budget: a poll that is put off is not registered, and would not be made up for.
            let mut changed = Box::pin(tokio::task::unconstrained(async move {
                if lists.changed().await.is_err() {
                    std::future::pending().await
                }
            }));
            if changed.as_mut().poll(cx).is_pending() {
                me.wake = Some((changed, cx.waker().clone()));
                return Poll::Pending;
            }
            // Changed in between.
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    };
    use time::{Duration, OffsetDateTime};

    struct Ca(Issuer<'static, KeyPair>);

    impl Ca {
        fn new(name: &str) -> Self {
            let mut p = CertificateParams::default();
            p.distinguished_name.push(DnType::CommonName, name);
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            Self(Issuer::new(p, KeyPair::generate().unwrap()))
        }
        fn cert(&self, serial: u64) -> CertificateDer<'static> {
            let mut p = CertificateParams::default();
            p.serial_number = Some(SerialNumber::from(serial));
            p.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().der().clone()
        }
        fn crl(&self, serials: &[u64]) -> rcgen::CertificateRevocationList {
            let now = OffsetDateTime::now_utc();
            let one = |n: &u64| RevokedCertParams {
                serial_number: SerialNumber::from(*n),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            };
            let p = CertificateRevocationListParams {
                this_update: now - Duration::hours(2),
                // Long over: it stays in force.
                next_update: now - Duration::hours(1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: serials.iter().map(one).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            p.signed_by(&self.0).unwrap()
        }
    }

    #[test]
    fn lists_are_read_whole_or_not_at_all() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        let (one, other) = (a.crl(&[1, 2]), b.crl(&[3]));
        let both = format!("{}{}", one.pem().unwrap(), other.pem().unwrap());
        let read = |b: &[u8]| Lists::read(b).map(|l| (l.len(), l.entries()));
        assert_eq!(read(b"").unwrap(), (0, 0));
        assert_eq!(read(b" \n").unwrap(), (0, 0));
        assert_eq!(read(both.as_bytes()).unwrap(), (2, 3));
        assert_eq!(read(one.der()).unwrap(), (1, 2));
        assert_eq!(read(a.crl(&[]).der()).unwrap(), (1, 0));
        let (half, short) = (&both.as_bytes()[..both.len() - 40], &one.der()[..one.der().len() - 1]);
        for bad in [&b"nonsense"[..], half, short, &a.cert(1)[..]] {
            assert!(read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
        let e = read(b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n").unwrap_err().to_string();
        assert!(e.starts_with("revocation list 1 of the file cannot be read"), "{e}");
    }

    #[test]
    fn who_is_named_by_the_issuers_list_is_refused() {
        let (a, b) = (Ca::new("a"), Ca::new("b"));
        // The second has a first bit that makes its number longer in DER.
        let lists = Lists::read(a.crl(&[7, 0x80ff]).pem().unwrap().as_bytes()).unwrap();
        let verdict = |l: Option<&Lists>, chain: &[CertificateDer<'static>]| {
            judge(l, &CertificateId::of_chain(chain).unwrap()).map_err(|e| e.to_string())
        };
        let known = Some(&lists);
        assert_eq!(verdict(known, &[a.cert(8)]), Ok(()));
        assert_eq!(verdict(known, &[b.cert(7)]), Ok(()), "an issuer without a list");
        let why = verdict(known, &[a.cert(7)]).unwrap_err();
        assert_eq!(why, "certificate 07 has been revoked by its issuer");
        assert!(verdict(known, &[a.cert(0x80ff)]).unwrap_err().contains("0080ff"));
        assert!(verdict(known, &[b.cert(1), a.cert(7)]).is_err(), "an intermediate");
        assert!(verdict(None, &[a.cert(8)]).unwrap_err().contains("CRL_PATH"));
        assert_eq!(CertificateId::of_chain(&[CertificateDer::from(vec![1])]), Err(Refusal::Unreadable));
    }

    #[test]
    fn what_cannot_be_read_leaves_what_was() {
        let a = Ca::new("a");
        let r = Revocation::pending();
        let page = || {
            let out = karst_rt::exposition::page(|page| r.render(page));
            out.lines().filter(|l| !l.starts_with('#')).map(String::from).collect::<Vec<_>>().join("\n")
        };
        assert!(!r.is_known() && page().contains("karst_crl_current 0"));
        assert!(r.check(Role::Client, &a.cert(1), &[]).is_err());
        r.publish(Lists::read(a.crl(&[7]).der()).unwrap());
        r.failed();
        assert!(r.check(Role::Server, &a.cert(7), &[]).is_err());
        assert!(r.check(Role::Server, &a.cert(1), &[]).is_ok());
        assert_eq!(
            page(),
            "istio_crl_policy_rejections_total{reporter=\"source\"} 1\n\
             istio_crl_policy_rejections_total{reporter=\"destination\"} 1\n\
             karst_crl_entries 1\nkarst_crl_current 0\nkarst_crl_load_failures_total 1"
        );
    }
}
