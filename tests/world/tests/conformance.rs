//! docs/hbone.md, checked from outside on the ztunnel of a real pod, as a server and as a client.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

use karst_world::{Options, Pod, PodSpec, World, app, bin};
use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

fn tool(w: &World, from: &Pod, role: &str, identity: &str, expect: &str, args: &[String]) -> Command {
    let mut c = from.command(bin("hbone-conformance"));
    let ca = |f: &str| w.dir.join("controller").join(f);
    c.arg(role).arg("--ca-cert").arg(ca("ca-cert.pem")).arg("--ca-key").arg(ca("ca-key.pem"));
    c.args(["--identity", identity, "--expect", expect]).args(args);
    c
}

#[test]
fn ztunnel_is_a_server_as_specified() {
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let (b, c) = (w.mesh_pod(PodSpec::new("app", "b", 0)), w.mesh_pod(PodSpec::new("app", "c", 0)));
    let peer = w.pod(PodSpec::new("out", "peer", 0));
    w.settle();
    let _echoes = [&b, &c].map(|pod| app::Echo::start(pod, 8080, ""));
    // By both families beside each other: most of the time it is waited for a peer that is silent to be closed.
    let families = [(b.at(15008), b.at(8080), c.at(15008)), (b.at6(15008), b.at6(8080), c.at6(15008))];
    let tools = families.map(|(b15008, b8080, c15008)| {
        let args = [("--to", b15008), ("--application", b8080), ("--neighbour", c15008)];
        let args = args.map(|(name, at)| [name.to_string(), at.to_string()]).concat();
        let id = ["spiffe://cluster.local/ns/out/sa/peer", "spiffe://cluster.local/ns/app/sa/b"];
        tool(&w, &peer, "server", id[0], id[1], &args).stdout(Stdio::piped()).spawn().unwrap()
    });
    let said = tools.map(|tool| tool.wait_with_output().unwrap());
    for out in said {
        println!("{}", String::from_utf8_lossy(&out.stdout));
        assert!(out.status.success(), "a check fails: the table says which");
    }
}

#[test]
fn ztunnel_is_a_client_as_specified() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    w.namespace("out", false);
    let a = w.mesh_pod(PodSpec::new("app", "a", 0));
    // Speaks HBONE by itself (networking.istio.io/tunnel: http), so nothing is redirected there.
    let peer = w.pod(PodSpec::new("out", "peer", 1).label("networking.istio.io/tunnel", "http"));
    w.settle();
    let args = ["--listen".into(), peer.at(15008).to_string()];
    let id = ["spiffe://cluster.local/ns/out/sa/peer", "spiffe://cluster.local/ns/app/sa/a"];
    let mut tool = tool(&w, &peer, "client", id[0], id[1], &args).spawn().unwrap();
    let done = AtomicBool::new(false);
    let (status, (echoed, continued)) = std::thread::scope(|s| {
        let load = s.spawn(|| {
            let (mut echoed, mut continued) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let r = a.connect(peer.at(8080)).and_then(|mut s| app::exchange(&mut s, b"hello"));
                match r.as_deref() {
                    Ok(b"hello") => echoed += 1,
                    // Before the tool leaves (docs/hbone.md §10), and after.
                    Ok(b"hellohello") => continued += 1,
                    Ok(_) | Err(_) => {}
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            (echoed, continued)
        });
        let status = tool.wait().unwrap();
        done.store(true, Ordering::Relaxed);
        (status, load.join().unwrap())
    });
    assert!(status.success(), "a check fails: the table says which");
    assert!(echoed >= 1, "the application was served where all was as it should be");
    assert_eq!(continued, 1, "one connection went on when the tool left, and no other");
}
