//! Bad input gets one clear error that names what is wrong and the fix (docs/operations.md, "Errors").
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{Options, World, bin, http, wait_for};
use std::{fs, net::SocketAddr, path::PathBuf, process::Command, time::Duration};

fn dir(name: &str) -> PathBuf {
    let d = std::env::temp_dir().join(format!("karst-errors-{}-{name}", std::process::id()));
    fs::create_dir_all(&d).unwrap();
    d
}

/// Runs a program that must fail, and gives what it says.
fn fails(program: &str, args: &[&str], env: &[(&str, &str)]) -> String {
    let out =
        Command::new("timeout").arg("10").arg(bin(program)).args(args).envs(env.iter().copied()).output().unwrap();
    assert!(
        !out.status.success() && out.status.code() != Some(124),
        "{program} {args:?} should end with an error: {out:?}"
    );
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn wrong_starts_are_explained() {
    let (manifests, data, half) = (dir("manifests"), dir("data"), dir("half"));
    fs::write(half.join("ca-cert.pem"), "x").unwrap();
    let source = format!("dir:{}", manifests.display());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let (data_s, half_s) = (data.display().to_string(), half.display().to_string());
    let no_bpffs = data.join("bpf").display().to_string();
    let zds = data.join("zds.sock").display().to_string();
    let table: Vec<(&str, String, Vec<&str>)> = vec![
        ("no source", fails("karst-controller", &[], &[]), vec!["--source", "dir:PATH, the directory of manifests"]),
        (
            "no such directory",
            fails("karst-controller", &["--source", "dir:/nowhere", "--data-dir", &data_s], &[]),
            vec!["/nowhere", "no such directory"],
        ),
        (
            "half an authority",
            fails("karst-controller", &["--source", &source, "--data-dir", &half_s], &[]),
            vec!["only one of ca-cert.pem and ca-key.pem", "restore the other"],
        ),
        (
            "port taken, controller",
            fails("karst-controller", &["--source", &source, "--data-dir", &data_s, "--grpc-addr", &port], &[]),
            vec!["cannot listen on", "--grpc-addr"],
        ),
        (
            "port taken, ztunnel",
            fails("ztunnel", &[], &[("ADMIN_ADDR", &port)]),
            vec!["cannot listen on", "ADMIN_ADDR"],
        ),
        ("wrong number", fails("ztunnel", &[], &[("HTTP2_FRAME_SIZE", "12")]), vec!["--max-frame", "16384"]),
        ("wrong log format", fails("ztunnel", &["--log-format", "xml"], &[]), vec!["xml", "text or json"]),
        ("agent without node", fails("karst-cni", &["--source", &source], &[]), vec!["--node (NODE_NAME) is missing"]),
        (
            "no bpffs",
            fails("karst-cni", &["--source", &source, "--node", "n", "--bpf-dir", &no_bpffs, "--zds", &zds], &[]),
            vec!["is not on a bpffs", "mount -t bpf"],
        ),
        (
            "no cgroup2 there",
            fails(
                "karst-cni",
                &[
                    "--source",
                    &source,
                    "--node",
                    "n",
                    "--bpf-dir",
                    "/sys/fs/bpf/karst-test/errors",
                    "--cgroup",
                    "/proc",
                    "--zds",
                    &zds,
                ],
                &[],
            ),
            vec!["cgroup", "Linux 5.8"],
        ),
    ];
    for (what, said, parts) in &table {
        println!("error {what}: {}", said.trim());
        assert!(parts.iter().all(|p| said.contains(p)), "{what}: {said}\nshould hold {parts:?}");
    }
    let _ = fs::remove_dir_all("/sys/fs/bpf/karst-test/errors");
    for d in [manifests, data, half] {
        fs::remove_dir_all(d).unwrap();
    }
}

#[test]
fn bad_manifests_are_reported_and_the_last_good_state_stays() {
    let w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: x}\nspec: {clusterIP: 10.96.0.1}\n");
    let services = || w.get(0, 15000, "/config_dump").unwrap().1.matches("a.x.svc.cluster.local").count();
    let before = services();
    assert!(before > 0);
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: x}\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  - port: eighty\n");
    assert_eq!(services(), before, "the last good state stays");
    let log = w.log_text("controller.log");
    assert!(log.contains("svc.yaml:7: Service x/a: spec.ports[0].port: "), "{log}");
}

/// The manifests together, and each of the exercises by itself: they are for one after the other.
#[test]
fn the_samples_manifests_are_good() {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples");
    let check = |dir: &str| {
        let out =
            Command::new(bin("karst-controller")).args(["--source", &format!("dir:{dir}"), "check"]).output().unwrap();
        assert!(
            out.status.success(),
            "{dir}: {}{}",
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    };
    check(&format!("{samples}/manifests"));
    let alone = std::env::temp_dir().join(format!("karst-exercise-{}", std::process::id()));
    let mut exercises = 0;
    for f in fs::read_dir(format!("{samples}/exercises")).unwrap() {
        let f = f.unwrap();
        fs::create_dir_all(&alone).unwrap();
        fs::copy(f.path(), alone.join(f.file_name())).unwrap();
        check(alone.to_str().unwrap());
        fs::remove_dir_all(&alone).unwrap();
        exercises += 1;
    }
    assert!(exercises >= 9);
}

#[test]
fn the_log_level_changes_at_run_time() {
    let w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    let post = |query: &str| {
        let s = w.nodes[0].netns.run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], 15000)))).unwrap().unwrap();
        http::request(s, "POST", &format!("/logging{query}")).unwrap()
    };
    assert_eq!(post(""), (200, "current log level is info\n".into()));
    assert!(!w.log_text("ztunnel0.log").contains("\tdebug\t"));
    assert_eq!(post("?level=h2:debug,warn"), (200, "current log level is h2=debug,warn\n".into()));
    // The controller has something to say.
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: x}\nspec: {clusterIP: 10.96.0.1}\n");
    wait_for("finer lines", Duration::from_secs(5), || w.log_text("ztunnel0.log").contains("\tdebug\t").then_some(()));
    let (status, said) = post("?level=loud");
    assert!(status == 400 && said.contains("loud"), "{status} {said}");
    assert_eq!(post("?reset").1, "current log level is info\n");
}
