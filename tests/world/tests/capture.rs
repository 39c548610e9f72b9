//! Capture: who is redirected, in both families and directions, and what stays as it was (T53).

use karst_world::{Options, PodSpec, World, app};

const MARK: &[u8] = b"karst-plaintext-marker-7f3a91c2";

#[test]
fn cross_node_traffic_is_redirected_and_encrypted() {
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 1)));
    let echo = app::Echo::start(&b, 8080, "");
    let sniffer = w.sniffer(MARK);
    for to in [b.at(8080), b.at6(8080)] {
        let mut s = a.connect(to).unwrap();
        assert_eq!(s.peer_addr().unwrap(), to, "the application sees the address it called");
        assert_eq!(app::exchange(&mut s, MARK).unwrap(), MARK);
        let from = if to.is_ipv4() { a.ip } else { a.ip6 };
        assert_eq!(echo.last_peer().unwrap().ip(), from, "the server sees its client");
    }
    let seen = sniffer.seen();
    println!("capture seen={seen:?}");
    println!("{}", w.status(0).unwrap());
    assert_eq!((seen.marked, seen.other_tcp), (0, 0));
    assert!(seen.hbone > 10);
    assert!(w.log_text("ztunnel1.log").contains("src.identity=\"spiffe://cluster.local/ns/app/sa/a\""));
}
