//! What a waypoint tells of its callers' certificates.

use super::*;
use crate::downstream::gateway::Gateway;

/// A waypoint that is told this.
fn told(mode: ir::ForwardClientCert) -> impl FnOnce(&mut Snapshot) {
    let topology = Some(ir::Topology { forward_client_cert: mode as i32, trusted_proxies: 1, ..Default::default() });
    let gateway = Gateway::new(&ir::Gateway { topology, ..Default::default() }).unwrap();
    move |s| s.gateway = Some(Arc::new(gateway))
}

#[test]
fn a_waypoint_tells_of_identities_where_it_is_asked_to() {
    use ir::ForwardClientCert as Mode;
    let (sent, known) =
        ("URI=forged", "By=spiffe://cluster.local/ns/ns/sa/own;URI=spiffe://cluster.local/ns/app/sa/web");
    let both = format!("{sent},{known}");
    run(async move {
        for (mode, want) in [
            (Mode::Standard, None),
            (Mode::Sanitize, None),
            (Mode::ForwardOnly, Some(sent)),
            (Mode::AppendForward, Some(both.as_str())),
            (Mode::SanitizeSet, Some(known)),
            (Mode::AlwaysForwardOnly, Some(sent)),
        ] {
            let m = Mesh::of(told(mode), |_, _| status(200));
            let mut r = get("/");
            r.headers_mut().insert("x-forwarded-client-cert", sent.parse().unwrap());
            r.headers_mut().insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
            assert_eq!(m.ask(r).await.0, 200);
            let seen = m.seen.borrow();
            let got = seen[0].headers.get("x-forwarded-client-cert").map(|v| v.to_str().unwrap());
            assert_eq!(got, want, "{mode:?}");
            // Whom the caller names is nobody's business here.
            assert_eq!(seen[0].headers["x-forwarded-for"], "192.0.2.1");
            assert!(logged(" 10.0.0.99:1234 "));
        }
    });
}
