//! Documents of a small workspace, and of this one.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
use super::{
    graph::{embed, locked, parse},
    parts::Part,
    *,
};
use std::collections::BTreeSet;

const LINKED: &str = "0\tapp v0.1.0 (/w/app)\tApache-2.0\n1\tcodec v1.2.0\tMIT/Apache-2.0\n2\tbytes v1.0.0\tMIT\n1\tbytes v1.0.0\tMIT\n1\tkarst-ebpf v0.1.0 (/w/ebpf)\tApache-2.0\n\n0\tother v0.1.0 (/w/other)\tApache-2.0\n1\tcodec v1.2.0\tMIT/Apache-2.0 (*)\n1\tbytes v2.0.0+spec-1\tMIT\n";
const PROGRAMS_TREE: &str =
    "0\tkarst-ebpf-programs v0.1.0 (/w/programs)\tApache-2.0\n1\taya-ebpf v0.2.1\tMIT OR Apache-2.0\n";
const LOCK: &str = "version = 4\n\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\ndependencies = [\n \"bytes 1.0.0\",\n]\n\n[[package]]\nname = \"bytes\"\nversion = \"1.0.0\"\nsource = \"registry+x\"\nchecksum = \"b1\"\n\n[[package]]\nname = \"bytes\"\nversion = \"2.0.0+spec-1\"\nsource = \"registry+x\"\nchecksum = \"b2\"\n\n[[package]]\nname = \"codec\"\nversion = \"1.2.0\"\nchecksum = \"c\"\n\n[[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\nchecksum = \"a\"\n\n[[package]]\nname = \"cc\"\nversion = \"1.0.0\"\nchecksum = \"cc\"\n";

fn sources() -> Sources {
    let graph = |more: &str| {
        let mut g = parse(&(LINKED.to_string() + more)).unwrap();
        embed(&mut g, parse(PROGRAMS_TREE).unwrap()).unwrap();
        g
    };
    let build = "\n0\tcodec v1.2.0\tMIT/Apache-2.0\n1\tcc v1.0.0\tMIT\n";
    let glibc = Part { name: "glibc", version: "2.41".into(), license: "LGPL-2.1-or-later", purl: None };
    Sources { linked: graph(""), all: graph(build), checksums: locked(LOCK), parts: vec![glibc] }
}

fn subject<'a>(package: &'a str, digest: &'a str) -> Content<'a> {
    let subject = Subject::Image { name: "hub/x/app", digest };
    Content { subject, version: "1", package, program: Some(b"program"), debian: &[] }
}

/// Each component, with its scope.
fn scopes(d: &Value) -> Vec<String> {
    let one = |c: &Value| format!("{} {}", c["bom-ref"].as_str().unwrap(), c["scope"].as_str().unwrap());
    d["components"].as_array().unwrap().iter().map(one).collect()
}

#[test]
fn a_document_has_the_programs_own_closure_and_nobody_elses() {
    let d = sources().document(&subject("app", "sha256:00")).unwrap();
    assert_eq!(
        scopes(&d),
        [
            "app@0.1.0 required",
            "aya-ebpf@0.2.1 required",
            "bytes@1.0.0 required",
            "cc@1.0.0 excluded",
            "codec@1.2.0 required",
            "karst-ebpf-programs@0.1.0 required",
            "karst-ebpf@0.1.0 required",
            "glibc@2.41 required"
        ]
    );
    let other = sources().document(&subject("other", "sha256:00")).unwrap();
    assert_eq!(
        scopes(&other),
        [
            "bytes@1.0.0 required",
            "bytes@2.0.0+spec-1 required",
            "cc@1.0.0 excluded",
            "codec@1.2.0 required",
            "other@0.1.0 required",
            "glibc@2.41 required"
        ]
    );
    assert!(sources().document(&subject("nobody", "sha256:00")).is_err());
}

#[test]
fn components_have_checksums_licences_and_package_urls() {
    let d = sources().document(&subject("other", "sha256:0f")).unwrap();
    let of = |id: &str| d["components"].as_array().unwrap().iter().find(|c| c["bom-ref"] == id).unwrap().clone();
    let bytes = of("bytes@2.0.0+spec-1");
    assert_eq!(bytes["hashes"][0], json!({ "alg": "SHA-256", "content": "b2" }));
    assert_eq!(bytes["purl"], "pkg:cargo/bytes@2.0.0%2Bspec-1");
    assert_eq!(of("codec@1.2.0")["licenses"][0]["expression"], "MIT OR Apache-2.0");
    let own = of("other@0.1.0");
    assert_eq!((&own["type"], &own["purl"]), (&json!("application"), &Value::Null));
    assert_eq!(own["hashes"][0]["content"], hex(b"program"));
    let image = &d["metadata"]["component"];
    assert_eq!((&image["hashes"][0]["content"], &image["type"]), (&json!("0f"), &json!("container")));
    assert_eq!(image["purl"], "pkg:oci/app@sha256%3A0f?repository_url=hub%2Fx%2Fapp&tag=1");
    // What Cargo.lock does not vouch for is not written down.
    let mut s = sources();
    s.checksums.remove("codec@1.2.0");
    let e = s.document(&subject("other", "sha256:0f")).unwrap_err();
    assert_eq!(e.to_string(), "Cargo.lock has no checksum of codec@1.2.0");
}

/// The command line is no image: it has a version and its own hash, and no digest.
#[test]
fn a_program_by_itself_has_its_own_hash() {
    let content = Content { subject: Subject::Program("karst"), ..subject("app", "none") };
    let d = sources().document(&content).unwrap();
    let component = &d["metadata"]["component"];
    assert_eq!((&component["name"], &component["version"]), (&json!("karst"), &json!("1")));
    assert_eq!((&component["hashes"][0]["content"], &component["purl"]), (&json!(hex(b"program")), &Value::Null));
    assert_eq!(d["dependencies"][0]["ref"], "program");
    assert!(sources().document(&subject("app", "none")).is_err(), "an image has a digest");
}

#[test]
fn the_same_sources_give_the_same_document_and_others_another_serial() {
    let d = |digest: &str| sources().document(&subject("app", digest)).unwrap();
    assert_eq!(d("sha256:00").to_string(), d("sha256:00").to_string());
    let (a, b) = (d("sha256:00")["serialNumber"].clone(), d("sha256:01")["serialNumber"].clone());
    assert!(a != b, "{a}");
    let groups: Vec<usize> = a.as_str().unwrap().trim_start_matches("urn:uuid:").split('-').map(str::len).collect();
    assert_eq!(groups, [8, 4, 4, 4, 12]);
}

/// This workspace: every reference is to a component, every crate of a registry has its checksum, and each program has what
/// it is known to be made of.
#[test]
fn the_programs_of_this_workspace_have_documents() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let s = Sources::read(&root, "x86_64-unknown-linux-gnu").unwrap();
    for (package, has, lacks) in [
        ("karst-ztunnel", vec!["rustls", "aws-lc-sys", "hickory-proto"], vec!["kube-client", "aya-ebpf"]),
        ("karst-cni", vec!["aya", "aya-ebpf", "karst-ebpf-programs", "kube-client"], vec!["hickory-proto"]),
        ("karst-controller", vec!["kube-client", "rcgen", "cel"], vec!["aya-ebpf"]),
        ("karst-waypoint", vec!["rustls", "cel", "jsonwebtoken"], vec!["kube-client", "aya-ebpf"]),
    ] {
        let d = s.document(&subject(package, "sha256:00")).unwrap();
        let components = d["components"].as_array().unwrap();
        let required: BTreeSet<&str> =
            components.iter().filter(|c| c["scope"] == "required").map(|c| c["name"].as_str().unwrap()).collect();
        for name in has.iter().chain(&["rust-std", "glibc", "libgcc"]) {
            assert!(required.contains(name), "{package} has no {name}");
        }
        for name in lacks.iter().chain(&["karst-world", "karst-e2e", "ring", "prost-build", "xtask"]) {
            assert!(!required.contains(name), "{package} has {name}");
        }
        assert!(components.iter().any(|c| c["name"] == "prost-build" && c["scope"] == "excluded"), "{package}");
        let refs: BTreeSet<&str> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
        assert_eq!(refs.len(), components.len(), "{package}");
        for link in d["dependencies"].as_array().unwrap() {
            for to in link["dependsOn"].as_array().unwrap() {
                assert!(refs.contains(to.as_str().unwrap()), "{package}: {} needs {to}", link["ref"]);
            }
        }
    }
}
