//! Certificates of the node's workloads: fetched when first needed, renewed around half of their life with jitter, kept in
//! use until they really end. One certificate for each identity, whatever the number of its pods.

use crate::remote::{ControlPlaneClient, RemoteError};
use karst_api::ca::{IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient};
use karst_core::Identity;
use karst_hbone::{
    revocation::{Refusal, Revocation},
    tls::{Credentials, TlsError},
};
use karst_rt::{backoff::Backoff, clock};
use rand::Rng;
use rustls_pki_types::{PrivateKeyDer, pem};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
};

/// Requests to the CA at a time.
const PARALLEL: usize = 8;
/// Identities that may wait to be noticed; beyond, the asking connection asks again.
const QUEUE: usize = 1024;
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Istio: 150 s.
const RETRY_CAP: Duration = Duration::from_secs(150);

/// All certificates.
pub type Table = HashMap<Identity, Arc<Credentials>>;

/// The workers' side.
#[derive(Clone)]
pub struct Secrets {
    table: watch::Receiver<Arc<Table>>,
    want: mpsc::Sender<Identity>,
    revocation: Revocation,
}

impl Secrets {
    /// The revocation lists that certificates are checked against.
    pub fn revocation(&self) -> &Revocation {
        &self.revocation
    }
    /// The certificate of an identity, if there is one that is valid now.
    pub fn now(&self, id: &Identity) -> Option<Arc<Credentials>> {
        self.table.borrow().get(id).filter(|c| c.not_after > clock::wall()).cloned()
    }
    /// The certificate, waiting for it at most `limit`.
    pub async fn get(&mut self, id: &Identity, limit: Duration) -> Option<Arc<Credentials>> {
        if let Some(credentials) = self.now(id) {
            return Some(credentials);
        }
        let _ = self.want.try_send(id.clone());
        let wait = async {
            loop {
                self.table.changed().await.ok()?;
                if let Some(credentials) = self.now(id) {
                    return Some(credentials);
                }
            }
        };
        tokio::time::timeout(limit, wait).await.ok().flatten()
    }
    /// These, and never others.
    #[cfg(any(test, feature = "testing"))]
    pub fn fixed(all: impl IntoIterator<Item = Credentials>) -> Self {
        let all: Table = all.into_iter().map(|c| (c.identity.clone(), Arc::new(c))).collect();
        let (want, _) = mpsc::channel(1);
        Self { table: watch::Sender::new(Arc::new(all)).subscribe(), want, revocation: Revocation::none() }
    }
    /// For the admin page.
    pub fn all(&self) -> BTreeMap<Identity, Arc<Credentials>> {
        self.table.borrow().iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

/// Why there is no certificate of an identity.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The certificate authority cannot be spoken to.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// No key could be made.
    #[error("key: {0}")]
    Key(rcgen::Error),
    /// The identity cannot be the name in a request.
    #[error("{0}")]
    Name(rcgen::Error),
    /// No request could be made.
    #[error("csr: {0}")]
    Request(rcgen::Error),
    /// The token cannot be sent.
    #[error("the token contains characters that are not allowed in a header")]
    Token,
    /// The certificate authority's answer.
    #[error("{}: {}", .0.code(), .0.message())]
    Refused(tonic::Status),
    /// What has come is no certificate of ours.
    #[error(transparent)]
    Chain(#[from] TlsError),
    /// It is revoked already.
    #[error("{0}")]
    Revoked(Refusal),
    /// A file of the directory cannot be read.
    #[error("{} (KARST_LOCAL_CERTS): {error}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The directory's file with the key holds none.
    #[error("{} (KARST_LOCAL_CERTS): {error}", .path.display())]
    KeyFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: pem::Error,
    },
    /// The files of the directory do not belong together.
    #[error("{}: {error}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: TlsError,
    },
    /// The certificate in the file is no longer valid.
    #[error("{}: the certificate has expired", .0.display())]
    Expired(PathBuf),
}

/// What the manager needs from outside.
pub trait CaClient {
    /// A channel to the CA.
    fn connect(&self) -> impl Future<Output = Result<tonic::transport::Channel, RemoteError>>;
    /// The token to present.
    fn token(&self) -> Result<String, RemoteError>;
    /// Is the identity that of another (whose certificate we may ask for, as the node's proxy)?
    fn impersonates(&self) -> bool {
        true
    }
    /// The directory that holds the certificates, if it is not a CA that makes them.
    fn directory(&self) -> Option<&Path> {
        None
    }
}

impl CaClient for ControlPlaneClient {
    fn connect(&self) -> impl Future<Output = Result<tonic::transport::Channel, RemoteError>> {
        self.channel()
    }
    fn token(&self) -> Result<String, RemoteError> {
        self.bearer()
    }
    fn impersonates(&self) -> bool {
        self.impersonates
    }
    fn directory(&self) -> Option<&Path> {
        self.local_certs.as_deref()
    }
}

/// After the control plane's return, failed certificates are asked for within this time.
const AGAIN: Duration = Duration::from_millis(200);

/// The manager. Lives on the control thread.
pub struct Manager<A> {
    ca: Rc<A>,
    table: watch::Sender<Arc<Table>>,
    running: HashMap<Identity, AbortHandle>,
    slots: Rc<Semaphore>,
    ttl: u64,
    cluster: String,
    shared: Secrets,
    wanted: mpsc::Receiver<Identity>,
    /// Is there a control plane? When it comes back, what failed is tried again at once.
    stream: watch::Receiver<bool>,
}

impl<A: CaClient + 'static> Manager<A> {
    /// A manager without certificates.
    pub fn new(ca: A, ttl: u64, cluster: String, stream: watch::Receiver<bool>) -> Self {
        let (table, rx) = watch::channel(Arc::default());
        let (want, wanted) = mpsc::channel(QUEUE);
        let shared = Secrets { table: rx, want, revocation: Revocation::none() };
        Self {
            ca: Rc::new(ca),
            table,
            running: HashMap::new(),
            slots: Rc::new(Semaphore::new(PARALLEL)),
            ttl,
            cluster,
            shared,
            wanted,
            stream,
        }
    }
    /// Peers are checked against these revocation lists.
    pub fn enforcing(mut self, revocation: Revocation) -> Self {
        self.shared.revocation = revocation;
        self
    }
    /// The workers' side.
    pub fn secrets(&self) -> Secrets {
        self.shared.clone()
    }
    /// Waits for an identity that a connection needs.
    pub async fn wanted(&mut self) -> Identity {
        match self.wanted.recv().await {
            Some(i) => i,
            None => std::future::pending().await,
        }
    }
    /// Keeps a certificate for this identity from now on.
    pub fn keep(&mut self, id: &Identity) {
        if self.running.contains_key(id) {
            return;
        }
        let (ca, table, slots) = (self.ca.clone(), self.table.clone(), self.slots.clone());
        let (ttl, cluster, id2) = (self.ttl, self.cluster.clone(), id.clone());
        let (stream, revocation) = (self.stream.clone(), self.shared.revocation.clone());
        let task = tokio::task::spawn_local(async move {
            renew(&*ca, &table, &slots, (ttl, &cluster), id2, stream, &revocation).await;
        });
        self.running.insert(id.clone(), task.abort_handle());
    }
    /// Drops all certificates but these: the last pod of the others has left.
    pub fn retain(&mut self, keep: &std::collections::HashSet<Identity>) {
        self.running.retain(|id, task| {
            let stays = keep.contains(id);
            if !stays {
                task.abort();
            }
            stays
        });
        self.table.send_if_modified(|t| {
            if t.keys().all(|id| keep.contains(id)) {
                return false;
            }
            let mut new = (**t).clone();
            new.retain(|id, _| keep.contains(id));
            *t = Arc::new(new);
            true
        });
    }
}

async fn renew<A: CaClient>(
    ca: &A,
    table: &watch::Sender<Arc<Table>>,
    slots: &Semaphore,
    (ttl, cluster): (u64, &str),
    id: Identity,
    mut stream: watch::Receiver<bool>,
    revocation: &Revocation,
) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_CAP);
    loop {
        let result = {
            let _slot = slots.acquire().await;
            // One that is revoked already is none: who has the same lists takes it for nothing.
            fetch(ca, ttl, cluster, &id, revocation).await.and_then(|c| match c.revoked() {
                Some(why) => Err(CertificateError::Revoked(why)),
                None => Ok(c),
            })
        };
        let (pause, credentials) = match result {
            Ok(c) => {
                backoff.reset();
                let pause = until_renewal(clock::wall(), c.not_after, rand::rng().random_range(0.0..1.0));
                tracing::info!(identity = %id, serial = c.serial, renew_in_s = pause.as_secs(), "certificate received");
                let credentials = Arc::new(c);
                table.send_modify(|t| {
                    let mut new = (**t).clone();
                    new.insert(id.clone(), credentials.clone());
                    *t = Arc::new(new);
                });
                (pause, credentials)
            }
            Err(e) => {
                let pause = backoff.next_delay();
                tracing::warn!(identity = %id, error = %e, retry_ms = pause.as_millis() as u64, "no certificate received; the current one stays in use while it is valid");
                stream.mark_unchanged();
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = comes_back(&mut stream) => {
                        backoff.reset();
                        // Not all nodes at once.
                        tokio::time::sleep(AGAIN.mul_f64(rand::rng().random_range(0.0..1.0))).await;
                    }
                }
                continue;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            why = credentials.until_revoked() => {
                tracing::warn!(identity = %id, "our own certificate: {why}; requesting another");
            }
        }
    }
}

async fn comes_back(stream: &mut watch::Receiver<bool>) {
    loop {
        if stream.changed().await.is_err() {
            return std::future::pending().await;
        }
        if *stream.borrow_and_update() {
            return;
        }
    }
}

/// Between 40 and 60 per cent of what is left, so that identities issued together do not renew together.
fn until_renewal(now: SystemTime, end: SystemTime, chance: f64) -> Duration {
    end.duration_since(now).unwrap_or_default().mul_f64(0.4 + 0.2 * chance).max(Duration::from_millis(500))
}

async fn fetch<A: CaClient>(
    ca: &A,
    ttl: u64,
    cluster: &str,
    id: &Identity,
    revocation: &Revocation,
) -> Result<Credentials, CertificateError> {
    if let Some(dir) = ca.directory() {
        return certificate(dir, id, revocation);
    }
    let key = rcgen::KeyPair::generate().map_err(CertificateError::Key)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![rcgen::SanType::URI(id.to_string().try_into().map_err(CertificateError::Name)?)];
    let csr = params.serialize_request(&key).and_then(|r| r.pem()).map_err(CertificateError::Request)?;
    let value = |s: String| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(s)) };
    let fields = [("ImpersonatedIdentity".to_string(), value(id.to_string()))].into();
    let metadata = ca.impersonates().then_some(prost_types::Struct { fields });
    let mut request = tonic::Request::new(IstioCertificateRequest { csr, validity_duration: ttl as i64, metadata });
    let token = ca.token()?.parse::<tonic::metadata::MetadataValue<_>>();
    request.metadata_mut().insert("authorization", {
        let token = token.map_err(|_| CertificateError::Token)?;
        format!("Bearer {}", token.to_str().unwrap_or("")).parse().map_err(|_| CertificateError::Token)?
    });
    if let Ok(c) = cluster.parse() {
        request.metadata_mut().insert("clusterid", c);
    }
    request.set_timeout(Duration::from_secs(10));
    let mut client = IstioCertificateServiceClient::new(ca.connect().await?);
    let chain = client.create_certificate(request).await.map_err(CertificateError::Refused)?.into_inner().cert_chain;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Ok(Credentials::enforcing(id.clone(), &chain, key, revocation.clone())?)
}

/// The certificate of an identity, from `DIR/TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT/` with the files that Istio mounts:
/// `cert-chain.pem`, `key.pem`, `root-cert.pem`.
///
/// # Errors
/// Names the file that is missing or wrong.
pub fn certificate(dir: &Path, id: &Identity, revocation: &Revocation) -> Result<Credentials, CertificateError> {
    use pem::PemObject;
    let dir = dir.join(id.trust_domain()).join("ns").join(id.namespace()).join("sa").join(id.service_account());
    let file = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(|error| CertificateError::File { path, error })
    };
    let chain = [file("cert-chain.pem")?, file("root-cert.pem")?];
    let key = PrivateKeyDer::from_pem_slice(file("key.pem")?.as_bytes())
        .map_err(|error| CertificateError::KeyFile { path: dir.join("key.pem"), error })?;
    let credentials = Credentials::enforcing(id.clone(), &chain, key, revocation.clone())
        .map_err(|error| CertificateError::Directory { path: dir.clone(), error })?;
    match credentials.not_after > clock::wall() {
        true => Ok(credentials),
        false => Err(CertificateError::Expired(dir.join("cert-chain.pem"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_spread_around_half_life() {
        let now = SystemTime::UNIX_EPOCH;
        let at = |c| until_renewal(now, now + Duration::from_secs(100), c).as_secs();
        assert_eq!((at(0.0), at(0.5), at(1.0)), (40, 50, 60));
        assert_eq!(until_renewal(now + Duration::from_secs(200), now, 0.5), Duration::from_millis(500));
    }
}
