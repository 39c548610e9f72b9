//! What a waypoint tells of its callers' certificates, and whom it takes for the client.

use super::*;
use crate::downstream::gateway::Gateway;

/// A waypoint that is told this.
fn told(mode: ir::ForwardClientCert, trusted_proxies: u32) -> impl FnOnce(&mut Snapshot) {
    let topology = ir::Topology { forward_client_cert: mode as i32, trusted_proxies, ..Default::default() };
    let gateway = Gateway::new(&ir::Gateway { topology: Some(topology), ..Default::default() }).unwrap();
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
            let m = Mesh::of(told(mode, 0), |_, _| status(200));
            let mut r = get("/");
            r.headers_mut().insert("x-forwarded-client-cert", sent.parse().unwrap());
            assert_eq!(m.ask(r).await.0, 200);
            let seen = m.seen.borrow();
            let got = seen[0].headers.get("x-forwarded-client-cert").map(|v| v.to_str().unwrap());
            assert_eq!(got, want, "{mode:?}");
        }
    });
}

#[test]
fn a_waypoint_believes_its_callers_about_the_client_only_where_it_is_told_to() {
    run(async {
        for (trusted, client) in [(0, " 10.0.0.99:1234 "), (1, " 192.0.2.7:0 ")] {
            let m = Mesh::of(told(ir::ForwardClientCert::Standard, trusted), |_, _| status(200));
            let mut r = get("/");
            r.headers_mut().insert("x-forwarded-for", "192.0.2.66,192.0.2.7".parse().unwrap());
            assert_eq!(m.ask(r).await.0, 200);
            assert!(logged(client), "{trusted}");
            // It goes on as it is.
            let seen = m.seen.borrow();
            let headers = &seen[0].headers;
            assert_eq!(headers["x-forwarded-for"], "192.0.2.66,192.0.2.7");
            assert!(!headers.contains_key("x-envoy-external-address"));
        }
    });
}
