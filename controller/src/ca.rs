//! The certificate authority. It copies nothing from a request but the public key.

use crate::private_file::write_private;
use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use karst_core::Identity;
use karst_hbone::revocation::Lists;
use karst_rt::clock;
use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use x509_parser::{asn1_rs::Tag, extensions::ParsedExtension};

/// Certificates are valid from this long before their signing, against clocks that differ (Istio: 2 min).
const BACKDATE: Duration = Duration::minutes(2);
const ROOT_YEARS: i64 = 10;

/// The authority: what signs at the moment.
pub struct CertificateAuthority {
    signer: ArcSwap<Signer>,
    root: watch::Sender<String>,
    lists: watch::Sender<Option<String>>,
    lists_stale: AtomicBool,
}

impl CertificateAuthority {
    /// Begins with this one.
    pub fn new(signer: Signer) -> Self {
        let (root, _) = watch::channel(signer.root_pem.clone());
        let (lists, _) = watch::channel(None);
        Self { signer: ArcSwap::from_pointee(signer), root, lists, lists_stale: AtomicBool::new(false) }
    }

    /// From now on this one signs.
    pub fn replace(&self, signer: Signer) {
        let root = signer.root_pem.clone();
        self.signer.store(Arc::new(signer));
        self.root.send_replace(root);
    }

    /// What signs now.
    pub fn signer(&self) -> Arc<Signer> {
        self.signer.load_full()
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> String {
        self.root.borrow().clone()
    }

    /// The root certificate and its changes.
    pub fn roots(&self) -> watch::Receiver<String> {
        self.root.subscribe()
    }

    /// Takes over revocation lists (PEM); empty: there are none. What cannot be read changes nothing.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn revoke(&self, pem: String) -> anyhow::Result<()> {
        let read = Lists::read(pem.as_bytes());
        self.lists_stale.store(read.is_err(), Relaxed);
        let lists = read?;
        let new = self.lists.send_if_modified(|old| old.replace(pem.clone()).as_ref() != Some(&pem));
        if new && !pem.is_empty() {
            tracing::info!(lists = lists.len(), entries = lists.entries(), "revocation lists are published");
        }
        Ok(())
    }

    /// The newest revocation lists could not be had: those of before stay.
    pub fn lists_failed(&self) {
        self.lists_stale.store(true, Relaxed);
    }

    /// Could they not be read the last time?
    pub fn lists_stale(&self) -> bool {
        self.lists_stale.load(Relaxed)
    }

    /// The revocation lists, PEM, and their changes. None: they are not known.
    pub fn lists(&self) -> watch::Receiver<Option<String>> {
        self.lists.subscribe()
    }

    /// [`Signer::sign`].
    pub fn sign(&self, csr_pem: &str, id: &Identity, lifetime: std::time::Duration) -> Result<Vec<String>, Refusal> {
        self.signer.load().sign(csr_pem, id, lifetime)
    }

    /// [`Signer::serving`].
    pub fn serving(&self, names: &[String], lifetime: std::time::Duration) -> anyhow::Result<(String, String)> {
        self.signer.load().serving(names, lifetime)
    }
}

/// A certificate that signs, and the way to its root.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    /// Between leaf and root, PEM; none if the root itself signs.
    chain: Vec<String>,
    root_pem: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The request cannot be read or has a key that is too weak.
    #[error("csr: {0}")]
    Csr(String),
    /// The lifetime is out of range.
    #[error("validity_duration: {0}")]
    Lifetime(String),
    /// Our own fault.
    #[error("signing failed: {0}")]
    Internal(String),
}

impl Signer {
    /// Opens the authority in the data directory (ca-cert.pem, ca-key.pem), or makes one.
    pub fn open(dir: &Path, trust_domain: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {} (--data-dir)", dir.display()))?;
        let (cert, key) = (dir.join("ca-cert.pem"), dir.join("ca-key.pem"));
        ensure!(
            cert.exists() == key.exists(),
            "{} holds only one of ca-cert.pem and ca-key.pem: restore the other, or remove both to create a new authority",
            dir.display()
        );
        if !key.exists() {
            let (root, pair) = Self::generate(trust_domain)?;
            write_private(&key, &pair)?;
            fs::write(&cert, root).with_context(|| format!("cannot write {}", cert.display()))?;
        }
        let read = |p: &Path| fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
        let (root_pem, key_pem) = (read(&cert)?, read(&key)?);
        Self::from_pem(&root_pem, &key_pem).with_context(|| format!("authority in {}", dir.display()))
    }

    /// A new root: certificate and key, PEM.
    pub fn generate(trust_domain: &str) -> anyhow::Result<(String, String)> {
        let pair = KeyPair::generate()?;
        Ok((root_params(trust_domain).self_signed(&pair)?.pem(), pair.serialize_pem()))
    }

    /// A root that signs itself.
    pub fn from_pem(cert: &str, key: &str) -> anyhow::Result<Self> {
        Self::new(cert, key, vec![], cert)
    }

    /// An intermediate authority with the certificates up to its root, as in Istio's Secret `cacerts`.
    pub fn plugged_in(cert: &str, key: &str, chain: &str, root: &str) -> anyhow::Result<Self> {
        let mut between = blocks(chain);
        if between.is_empty() {
            between = blocks(cert);
        }
        let roots = blocks(root);
        between.retain(|c| !roots.contains(c));
        Self::new(cert, key, between, root)
    }

    fn new(cert: &str, key: &str, chain: Vec<String>, root: &str) -> anyhow::Result<Self> {
        let pair = KeyPair::from_pem(key).context("ca-key.pem is not a private key in PEM format")?;
        let (not_before, not_after) = check_root(cert, &pair).context("ca-cert.pem")?;
        let issuer = Issuer::from_ca_cert_pem(cert, pair).context("ca-cert.pem is not a CA certificate")?;
        let a = Self { issuer, cert_pem: cert.into(), chain, root_pem: root.into(), not_before, not_after };
        a.check().context("certificates signed by it do not chain to root-cert.pem (through cert-chain.pem)")?;
        Ok(a)
    }

    /// Does a certificate of ours verify against our root, as peers will see it?
    fn check(&self) -> anyhow::Result<()> {
        use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"));
        let leaf =
            self.leaf(vec![SanType::DnsName("check".to_string().try_into()?)], std::time::Duration::from_secs(60))?;
        let leaf = leaf.signed_by(&KeyPair::generate()?, &self.issuer)?;
        let roots = CertificateDer::pem_slice_iter(self.root_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| anyhow::anyhow!("root-cert.pem: {e}"))?;
        let anchors = roots.iter().map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
        let between = self.chain.iter().map(|c| der(c)).collect::<anyhow::Result<Vec<_>>>()?;
        webpki::EndEntityCert::try_from(leaf.der())?.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &between,
            UnixTime::since_unix_epoch(clock::since_epoch()),
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )?;
        Ok(())
    }

    /// The certificate that signs, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Does one of the roots lead to both? Then peers that hold the one accept what the other has signed.
    pub fn overlaps(&self, other: &Self) -> bool {
        let mine = blocks(&self.root_pem);
        blocks(&other.root_pem).iter().any(|r| mine.contains(r))
    }

    /// When the first of the roots expires, and when the certificate that signs or one between it and the root does: in seconds
    /// since 1970.
    pub fn expire(&self) -> (i64, i64) {
        let own = self.not_after.unix_timestamp();
        let first = |pem: &str| {
            let all = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes()).filter_map(Result::ok);
            all.filter_map(|pem| Some(pem.parse_x509().ok()?.validity().not_after.timestamp())).min()
        };
        let between = self.chain.iter().filter_map(|pem| first(pem)).min();
        (first(&self.root_pem).unwrap_or(own), between.map_or(own, |end| end.min(own)))
    }

    /// Has less than a fifth of its life left (Istio's share).
    pub fn is_due(&self) -> bool {
        let left = self.not_after - now();
        left * 5 < self.not_after - self.not_before
    }

    /// The same root with a new lifetime: the same key and the same name, so that whoever trusts the one trusts the other, in
    /// both directions, while the change is under way.
    pub fn renewed(&self) -> anyhow::Result<String> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.cert_pem.as_bytes()).context("the root cannot be read")?;
        let old = pem.parse_x509().context("the root cannot be read")?;
        let mut params = root_params("");
        params.distinguished_name = same_name(old.subject())?;
        for e in old.extensions() {
            if let ParsedExtension::SubjectKeyIdentifier(id) = e.parsed_extension() {
                params.key_identifier_method = KeyIdMethod::PreSpecified(id.0.to_vec());
            }
        }
        Ok(params.self_signed(self.issuer.key())?.pem())
    }

    /// The private key, PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs for an identity: the chain as the protocol wants it, leaf first, root bundle last.
    pub fn sign(&self, csr_pem: &str, id: &Identity, lifetime: std::time::Duration) -> Result<Vec<String>, Refusal> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|e| Refusal::Csr(e.to_string()))?;
        strong_enough(&csr)?;
        let uri = id.to_string().try_into().map_err(|e| Refusal::Internal(format!("{e}")))?;
        let leaf = self.leaf(vec![SanType::URI(uri)], lifetime)?;
        let cert = leaf.signed_by(&csr.public_key, &self.issuer).map_err(|e| Refusal::Internal(e.to_string()))?;
        let mut chain = vec![cert.pem()];
        chain.extend(self.chain.iter().cloned());
        chain.push(self.root_pem.clone());
        Ok(chain)
    }

    /// A certificate for a server of the controller's own.
    pub fn serving(&self, names: &[String], lifetime: std::time::Duration) -> anyhow::Result<(String, String)> {
        let sans = names.iter().map(|name| match name.parse() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => name
                .clone()
                .try_into()
                .map(SanType::DnsName)
                .with_context(|| format!("--server-names: {name:?} is not a DNS name")),
        });
        let leaf = self.leaf(sans.collect::<anyhow::Result<_>>()?, lifetime)?;
        let key = KeyPair::generate()?;
        let mut pem = leaf.signed_by(&key, &self.issuer)?.pem();
        self.chain.iter().for_each(|c| pem.push_str(c));
        Ok((pem, key.serialize_pem()))
    }

    fn leaf(&self, sans: Vec<SanType>, lifetime: std::time::Duration) -> Result<CertificateParams, Refusal> {
        let now = now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new(); // empty: the SAN extension is then critical
        params.subject_alt_names = sans;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        params.not_before = now - BACKDATE;
        params.not_after = (now + lifetime).min(self.not_after);
        if params.not_after <= now {
            return Err(Refusal::Internal("the root certificate has expired".into()));
        }
        Ok(params)
    }
}

fn now() -> OffsetDateTime {
    clock::wall().into()
}

fn serial() -> SerialNumber {
    let mut bytes = [0u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[0] &= 0x7f; // positive
    bytes[0] |= 0x40; // always 16 bytes
    SerialNumber::from_slice(&bytes)
}

fn root_params(trust_domain: &str) -> CertificateParams {
    let now = now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(365 * ROOT_YEARS);
    params
}

/// The name byte by byte: peers compare names as they are encoded.
fn same_name(name: &x509_parser::x509::X509Name<'_>) -> anyhow::Result<DistinguishedName> {
    let mut out = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter().context("the root's name cannot be read")?.collect();
        let text = attribute.as_str().context("the root's name cannot be read")?;
        let value = match attribute.attr_value().header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.into()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into()?),
            t => anyhow::bail!("the root's name has a value of type {t}: renew it by hand"),
        };
        out.push(DnType::from_oid(&oid), value);
    }
    Ok(out)
}

/// The PEM blocks of a text, each with its newline.
fn blocks(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = pem.split_inclusive(END).filter(|p| p.contains("-----BEGIN CERTIFICATE-----"));
    parts.filter_map(|p| Some(format!("{}\n", &p[p.find("-----BEGIN")?..]))).collect()
}

/// Is this a CA certificate for this key? Gives its life.
fn check_root(pem: &str, key: &KeyPair) -> anyhow::Result<(OffsetDateTime, OffsetDateTime)> {
    use rcgen::PublicKeyData;
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("is not a certificate in PEM format")?;
    let certificate = pem.parse_x509().context("is not an X.509 certificate")?;
    ensure!(certificate.is_ca(), "is not a CA certificate (basicConstraints)");
    ensure!(certificate.public_key().raw == key.subject_public_key_info(), "does not belong to ca-key.pem");
    let end = certificate.validity().not_after.to_datetime();
    ensure!(end > now(), "expired at {end}");
    Ok((certificate.validity().not_before.to_datetime(), end))
}

/// ECDSA on P-256 or P-384, Ed25519, or RSA from 2048 bits.
fn strong_enough(csr: &CertificateSigningRequestParams) -> Result<(), Refusal> {
    use rcgen::PublicKeyData;
    let spki = csr.public_key.subject_public_key_info();
    let (_, k) = <x509_parser::x509::SubjectPublicKeyInfo<'_> as x509_parser::prelude::FromDer<_>>::from_der(&spki)
        .map_err(|e| Refusal::Csr(e.to_string()))?;
    match k.parsed() {
        Ok(x509_parser::public_key::PublicKey::RSA(r)) if r.key_size() >= 2048 => Ok(()),
        Ok(x509_parser::public_key::PublicKey::RSA(r)) => {
            Err(Refusal::Csr(format!("RSA key of {} bits: use at least 2048, or ECDSA P-256", r.key_size())))
        }
        Ok(x509_parser::public_key::PublicKey::EC(p)) if p.key_size() >= 256 => Ok(()),
        Ok(x509_parser::public_key::PublicKey::Unknown(b)) if b.len() == 32 => Ok(()), // Ed25519
        _ => Err(Refusal::Csr("key type is not supported: use ECDSA P-256".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> (Signer, std::path::PathBuf) {
        let d = std::env::temp_dir().join(format!("karst-ca-{}-{:x}", std::process::id(), rand::random::<u32>()));
        (Signer::open(&d, "td").unwrap(), d)
    }

    #[test]
    fn only_the_key_is_taken_from_a_request() {
        let (ca, d) = authority();
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::new(vec!["evil.example".to_string()]).unwrap();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.subject_alt_names.push(SanType::URI("spiffe://td/ns/evil/sa/evil".to_string().try_into().unwrap()));
        p.distinguished_name.push(DnType::CommonName, "evil");
        let csr = p.serialize_request(&key).unwrap().pem().unwrap();
        let id = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let chain = ca.sign(&csr, &id, std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(chain.len(), 2);
        let (_, pem) = x509_parser::pem::parse_x509_pem(chain[0].as_bytes()).unwrap();
        let c = pem.parse_x509().unwrap();
        let san = c.subject_alternative_name().unwrap().unwrap();
        assert!(san.critical);
        assert_eq!(format!("{:?}", san.value.general_names), "[URI(\"spiffe://td/ns/a/sa/b\")]");
        assert!(!c.is_ca() && c.subject().iter().next().is_none());
        let life = c.validity().not_after.timestamp() - c.validity().not_before.timestamp();
        assert_eq!(life, 60 + 120);
        assert!(ca.sign("nonsense", &id, std::time::Duration::from_secs(60)).is_err());
        fs::remove_dir_all(d).unwrap();
    }

    #[test]
    fn revocation_lists_that_cannot_be_read_change_nothing() {
        let (ca, d) = authority();
        let list = rcgen::CertificateRevocationListParams {
            this_update: OffsetDateTime::now_utc(),
            next_update: OffsetDateTime::now_utc() + Duration::days(1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&ca.issuer).unwrap().pem().unwrap();
        let a = CertificateAuthority::new(ca);
        let mut lists = a.lists();
        assert!(a.revoke("nonsense".into()).is_err());
        assert_eq!((lists.borrow_and_update().clone(), a.lists_stale()), (None, true));
        a.revoke(list.clone()).unwrap();
        assert_eq!((lists.borrow_and_update().clone(), a.lists_stale()), (Some(list.clone()), false));
        a.revoke(list.clone()).unwrap();
        assert!(a.revoke(list[..list.len() / 2].into()).is_err());
        assert!(!lists.has_changed().unwrap() && a.lists_stale());
        // Taken out of the Secret: there are none.
        a.revoke(String::new()).unwrap();
        assert_eq!(lists.borrow_and_update().as_deref(), Some(""));
        fs::remove_dir_all(d).unwrap();
    }

    #[test]
    fn an_intermediate_signs_with_its_chain() {
        let (root, key) = Signer::generate("root").unwrap();
        let issuer = Issuer::from_ca_cert_pem(&root, KeyPair::from_pem(&key).unwrap()).unwrap();
        let pair = KeyPair::generate().unwrap();
        let mut params = root_params("between");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let between = params.signed_by(&pair, &issuer).unwrap().pem();
        let ca = Signer::plugged_in(&between, &pair.serialize_pem(), &format!("{between}{root}"), &root).unwrap();
        let csr = CertificateParams::new(vec![]).unwrap().serialize_request(&KeyPair::generate().unwrap()).unwrap();
        let id = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let chain = ca.sign(&csr.pem().unwrap(), &id, std::time::Duration::from_secs(60)).unwrap();
        assert_eq!((chain.len(), blocks(&chain[1]), blocks(&chain[2])), (3, blocks(&between), blocks(&root)));
        // A root that it does not lead to.
        let (other, _) = Signer::generate("other").unwrap();
        let e = Signer::plugged_in(&between, &pair.serialize_pem(), &between, &other).err().unwrap();
        assert!(format!("{e:#}").contains("do not chain to root-cert.pem"), "{e:#}");
    }

    #[test]
    fn a_half_authority_is_refused() {
        let (_, d) = authority();
        fs::remove_file(d.join("ca-key.pem")).unwrap();
        assert!(Signer::open(&d, "td").err().unwrap().to_string().contains("only one of"));
        fs::write(d.join("ca-key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let e = format!("{:#}", Signer::open(&d, "td").err().unwrap());
        assert!(e.contains("does not belong"), "{e}");
        fs::remove_dir_all(d).unwrap();
    }

    /// Before and after a renewal of the root, each certificate verifies against each root.
    #[test]
    fn a_renewed_root_and_the_old_one_trust_the_same() {
        use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
        let (_, key) = Signer::generate("td").unwrap();
        let pair = KeyPair::from_pem(&key).unwrap();
        let mut p = root_params("td");
        // As Istio's own authority writes it, and with a key identifier that we would not choose.
        p.distinguished_name = DistinguishedName::new();
        p.distinguished_name.push(DnType::OrganizationName, DnValue::PrintableString("td".try_into().unwrap()));
        p.distinguished_name.push(DnType::CommonName, "the root");
        p.key_identifier_method = KeyIdMethod::PreSpecified(vec![1, 2, 3]);
        (p.not_before, p.not_after) =
            (OffsetDateTime::now_utc() - Duration::days(90), OffsetDateTime::now_utc() + Duration::days(10));
        let old = Signer::from_pem(&p.self_signed(&pair).unwrap().pem(), &key).unwrap();
        assert!(old.is_due());
        let new = Signer::from_pem(&old.renewed().unwrap(), &old.key_pem()).unwrap();
        assert!(!new.is_due() && new.cert_pem() != old.cert_pem());
        let facts = |s: &Signer| {
            let (_, pem) = x509_parser::pem::parse_x509_pem(s.cert_pem.as_bytes()).unwrap();
            let c = pem.parse_x509().unwrap();
            let id = c.iter_extensions().find_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            });
            (c.subject().as_raw().to_vec(), id, c.serial.clone())
        };
        let (old_facts, new_facts) = (facts(&old), facts(&new));
        assert_eq!((&old_facts.0, &old_facts.1), (&new_facts.0, &new_facts.1));
        assert_eq!(new_facts.1, Some(vec![1, 2, 3]));
        assert_ne!(old_facts.2, new_facts.2);
        for signer in [&old, &new] {
            for root in [&old, &new] {
                let (leaf, _) = signer.serving(&["a.b".into()], std::time::Duration::from_secs(60)).unwrap();
                let leaf = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
                let anchor = CertificateDer::from_pem_slice(root.root_pem.as_bytes()).unwrap();
                let anchors = [webpki::anchor_from_trusted_cert(&anchor).unwrap()];
                let usage = webpki::KeyUsage::server_auth();
                let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
                leaf.verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, &[], UnixTime::now(), usage, None, None)
                    .unwrap();
            }
        }
        let other = Signer::generate("td").unwrap();
        let other = Signer::from_pem(&other.0, &other.1).unwrap();
        assert!(!other.overlaps(&old) && old.overlaps(&old));
    }
}
