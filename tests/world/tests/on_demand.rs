//! ztunnels that ask for what is called (`XDS_ON_DEMAND`), with the real controller: nothing unknown passes, whoever is away.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_world::{Options, Pod, PodSpec, World, app, wait_for};
use std::{net::SocketAddr, time::Duration};

const MARK: &[u8] = b"karst-plaintext-marker-on-demand";
const PATIENCE: Duration = Duration::from_secs(20);

fn passes(from: &Pod, to: SocketAddr) -> bool {
    from.connect(to).and_then(|mut s| app::ping(&mut s, MARK)).is_ok()
}

fn world() -> World {
    let ztunnel_env = vec![("XDS_ON_DEMAND".into(), "true".into())];
    World::start(Options { ztunnel_env, ..Options::default() }).unwrap()
}

#[test]
fn what_is_not_called_is_not_told_and_what_is_unknown_does_not_pass() {
    let mut w = world();
    w.namespace("app", true);
    w.namespace("out", false);
    let [a, b, c] = [("a", 0), ("b", 1), ("c", 1)].map(|(name, node)| w.mesh_pod(PodSpec::new("app", name, node)));
    let outside = w.pod(PodSpec::new("out", "outside", 1));
    w.settle();
    let _echoes: Vec<_> = [&b, &c, &outside].map(|pod| app::Echo::start(pod, 8080, "")).into();
    let sniffer = w.sniffer(MARK);
    assert_eq!(w.metric(0, "karst_xds_names_followed", &[]), 0.0, "nobody has called anything");
    assert!(passes(&a, b.at(8080)));
    assert!(w.metric(0, "karst_xds_names_followed", &[]) >= 1.0);
    // Of what is known the policies are those of now.
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: app}\nspec: {action: DENY, selector: {matchLabels: {app: b}}, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/a]}}]}]}\n";
    w.apply("deny", deny);
    assert!(!passes(&a, b.at(8080)));
    w.delete("deny");
    assert!(passes(&a, b.at(8080)));

    w.stop_controller(libc::SIGKILL);
    assert!(passes(&a, b.at(8080)), "what was called is known");
    assert!(!passes(&a, c.at(8080)), "a member that was not called before may be anything");
    assert!(!passes(&a, outside.at(8080)), "and so may whoever is outside of the mesh");
    let seen = sniffer.seen();
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));

    w.start_controller().unwrap();
    wait_for("the other member can be called", PATIENCE, || passes(&a, c.at(8080)).then_some(()));
    let seen = sniffer.seen();
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
    assert!(passes(&a, outside.at(8080)), "once the controller has said that it is nobody's");
    assert!(sniffer.seen().marked > 0);
    // What the controller has said of it is known, too.
    w.stop_controller(libc::SIGKILL);
    assert!(passes(&a, outside.at(8080)));
    assert!(passes(&a, b.at(8080)));
}

/// The next ztunnel of a node is told what the one before it asked for only when it is called: nobody is refused for that.
#[test]
fn a_ztunnel_that_is_replaced_asks_again() {
    let mut w = world();
    w.namespace("app", true);
    let [a, b] = [("a", 0), ("b", 1)].map(|(name, node)| w.mesh_pod(PodSpec::new("app", name, node)));
    let _echo = app::Echo::start(&b, 8080, "");
    let load = karst_world::Load::start(a.netns(), b.at(8080), 50, MARK);
    for (node, port) in [(0, 15100), (1, 15100), (0, 15000)] {
        let mut old = w.replace_ztunnel(node, port);
        let _ = old.wait();
        // Under load with each of them.
        std::thread::sleep(Duration::from_millis(500));
    }
    let karst_world::Loaded { ok, failed, slowest_ms } = load.end();
    println!("load: {ok} ok, slowest connection took {slowest_ms} ms");
    assert!(failed.is_empty() && ok > 50, "{failed:?}");
}
