//! ztunnel without a controller: the mesh from a file (the lists of a `/config_dump`), certificates from a directory.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{Options, PodSpec, World, app, wait_for};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};

const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";

fn certificates(dir: &Path, accounts: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut p = CertificateParams::default();
    p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = p.self_signed(&key).unwrap().pem();
    let issuer = Issuer::from_ca_cert_pem(&root, key).unwrap();
    for a in accounts {
        let key = KeyPair::generate().unwrap();
        let mut p = CertificateParams::default();
        p.subject_alt_names = vec![SanType::URI(format!("spiffe://cluster.local/ns/app/sa/{a}").try_into().unwrap())];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = p.signed_by(&key, &issuer).unwrap();
        let dir = dir.join("cluster.local/ns/app/sa").join(a);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("cert-chain.pem"), cert.pem()).unwrap();
        fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        fs::write(dir.join("root-cert.pem"), &root).unwrap();
    }
}

#[test]
fn a_file_and_certificates_are_enough() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let (a, b, c) = (
        w.mesh_pod(PodSpec::new("app", "a", 0)),
        w.mesh_pod(PodSpec::new("app", "b", 1)),
        w.mesh_pod(PodSpec::new("app", "c", 0)),
    );
    w.apply("policy", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-a, namespace: app}\nspec: {selector: {matchLabels: {app: b}}, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/a]}}]}]}\n");
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {app: b}, ports: [{name: http, port: 80, targetPort: 8080}]}\n");
    w.settle();
    let _echo = app::Echo::start(&b, 8080, "");
    let (_, dump) = w.get(0, 15000, "/config_dump").unwrap();
    let dump: Value = serde_json::from_str(&dump).unwrap();
    let tmp = std::env::temp_dir().join(format!("karst-local-{}", std::process::id()));
    fs::create_dir_all(&tmp).unwrap();
    let file = tmp.join("mesh.yaml");
    let write = |policies: &Value| {
        let v =
            serde_json::json!({ "workloads": dump["workloads"], "services": dump["services"], "policies": policies });
        fs::write(&file, serde_json::to_string_pretty(&v).unwrap()).unwrap();
    };
    write(&dump["policies"]);
    certificates(&tmp.join("certs"), &["a", "b", "c"]);

    // From here on there is no controller.
    w.stop_controller(libc::SIGKILL);
    for n in 0..2 {
        w.stop_ztunnel(n, libc::SIGKILL);
    }
    w.set_ztunnel_env(vec![
        ("LOCAL_XDS_PATH".into(), file.display().to_string()),
        ("KARST_LOCAL_CERTS".into(), tmp.join("certs").display().to_string()),
        ("XDS_ADDRESS".into(), "https://nobody.invalid:1".into()),
        ("CA_ADDRESS".into(), "https://nobody.invalid:1".into()),
    ]);
    for n in 0..2 {
        w.start_ztunnel(n).unwrap();
        w.wait_ztunnel(n);
    }
    let sniffer = w.sniffer(MARK);
    let vip = ([10, 96, 0, 10], 80).into();
    for to in [b.at(8080), vip] {
        let mut s = a.connect(to).unwrap();
        app::ping(&mut s, MARK).unwrap();
        assert!(c.connect(to).and_then(|mut s| app::ping(&mut s, MARK)).is_err(), "c is refused at {to}");
    }
    let seen = sniffer.seen();
    assert!(seen.marked == 0 && seen.hbone > 0, "{seen:?}");
    let (_, now) = w.get(0, 15000, "/config_dump").unwrap();
    let now: Value = serde_json::from_str(&now).unwrap();
    for list in ["workloads", "services", "policies"] {
        assert_eq!(now[list], dump[list], "{list}: what was dumped and read is dumped the same");
    }

    // A broken file changes nothing; a changed one does, without a restart.
    fs::write(&file, "workloads: [{uid: x, colour: red}]").unwrap();
    wait_for("the broken file is reported", Duration::from_secs(5), || {
        w.log_text("ztunnel1.log").contains("unknown field `colour`").then_some(())
    });
    app::ping(&mut a.connect(b.at(8080)).unwrap(), MARK).unwrap();
    let other = dump["policies"].to_string().replace("ns/app/sa/a", "ns/app/sa/c");
    write(&serde_json::from_str(&other).unwrap());
    wait_for("c is let in", Duration::from_secs(5), || {
        c.connect(b.at(8080)).and_then(|mut s| app::ping(&mut s, MARK)).ok()
    });
    let _ = fs::remove_dir_all(&tmp);
}
