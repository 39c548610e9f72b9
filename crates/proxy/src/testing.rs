//! Small meshes for tests, of this crate and of those above it (feature `testing`).
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use crate::{remote::ControlPlaneClient, state::Snapshot};
use karst_api::{route::PodRanges, workload as pb};
use karst_core::Identity;
use karst_hbone::tls::Credentials;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::PrivateKeyDer;
use std::sync::Arc;

/// A certificate authority for tests.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    /// Makes one.
    pub fn mint() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::default();
        p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = p.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), pem }
    }
    /// Certificate and key of an identity.
    pub fn credentials(&self, id: &Identity) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::default();
        p.distinguished_name = DistinguishedName::new();
        p.subject_alt_names = vec![SanType::URI(id.to_string().try_into().unwrap())];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (p.not_before, p.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2090, 1, 1));
        let cert = p.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Credentials::new(id.clone(), &[cert.pem(), self.pem.clone()], key).unwrap()
    }
}

/// A workload for tests.
pub fn pod(name: &str, ip: &str, services: &[(&str, &[(u32, u32)])]) -> pb::Workload {
    let list = |p: &[(u32, u32)]| pb::PortList {
        ports: p.iter().map(|(s, t)| pb::Port { service_port: *s, target_port: *t, app_protocol: 0 }).collect(),
    };
    pb::Workload {
        uid: format!("Kubernetes//Pod/ns/{name}"),
        name: name.into(),
        namespace: "ns".into(),
        addresses: vec![karst_core::addr::ip_to_bytes(ip.parse().unwrap()).into()],
        tunnel_protocol: 1,
        service_account: name.into(),
        services: services.iter().map(|(k, p)| (k.to_string(), list(p))).collect(),
        ..Default::default()
    }
}
/// A service for tests.
pub fn service(name: &str, vip: &str, ports: &[(u32, u32)]) -> pb::Service {
    pb::Service {
        name: name.into(),
        namespace: "ns".into(),
        hostname: format!("{name}.ns.svc.cluster.local"),
        addresses: vec![pb::NetworkAddress {
            address: karst_core::addr::ip_to_bytes(vip.parse().unwrap()),
            ..Default::default()
        }],
        ports: ports.iter().map(|(s, t)| pb::Port { service_port: *s, target_port: *t, app_protocol: 0 }).collect(),
        ..Default::default()
    }
}
/// Puts both kinds into a snapshot.
pub fn snapshot(w: Vec<pb::Workload>, s: Vec<pb::Service>) -> Snapshot {
    let mut x = Snapshot::new("");
    for w in w {
        let name = w.uid.clone();
        x.put_address(&name, &pb::Address { r#type: Some(pb::address::Type::Workload(w)) }.encode_to_vec()).unwrap();
    }
    for s in s {
        let name = format!("{}/{}", s.namespace, s.hostname);
        x.put_address(&name, &pb::Address { r#type: Some(pb::address::Type::Service(s)) }.encode_to_vec()).unwrap();
    }
    x
}
/// Pods by name and address, of a node whose pods have addresses of 10.0.0.0/24: of the others there nobody has told.
pub fn with_range(pods: &[(&str, &str)]) -> Arc<Snapshot> {
    let mut s = snapshot(pods.iter().map(|(name, ip)| pod(name, ip, &[])).collect(), vec![]);
    s.put_pod_ranges("n", &PodRanges { ranges: vec!["10.0.0.0/24".into()] }.encode_to_vec()).unwrap();
    Arc::new(s)
}
/// A control plane that is called by nobody.
pub fn control_plane() -> ControlPlaneClient {
    ControlPlaneClient {
        address: "https://istiod:15012".into(),
        root_ca: "/dev/null".into(),
        alt_hostname: String::new(),
        auth_token: "/dev/null".into(),
        cluster_id: "c".into(),
        local_certs: None,
        impersonates: true,
    }
}
