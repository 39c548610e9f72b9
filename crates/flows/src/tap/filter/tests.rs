#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
use super::*;
use crate::{
    flow::Reporter,
    tap::event::{Direction, Phase, Request},
};

fn peer<'a>(namespace: &'a str, workload: &'a str, pod: &'a str, identity: &'a str) -> Peer<'a> {
    Peer { namespace, workload, kind: "deployment", pod, identity, address: None }
}

fn event() -> Event<'static> {
    Event {
        reporter: Reporter::Waypoint,
        direction: Direction::Ingress,
        phase: Phase::Request,
        source: peer("front", "web", "web-1", "spiffe://cluster.local/ns/front/sa/web"),
        destination: peer("shop", "reviews-v1", "reviews-v1-x", ""),
        service: "shop/reviews.shop.svc.cluster.local",
        verdict: Verdict::Forwarded,
        policy: "",
        reason: "".into(),
        flags: "-",
        mtls: true,
        request: Some(Request {
            method: "GET",
            path: "/reviews/7?a=b",
            authority: "reviews",
            protocol: "HTTP/1.1",
            status: 503,
            grpc: None,
        }),
        received: 0,
        sent: 0,
        took: Duration::ZERO,
    }
}

#[test]
fn each_filter_lets_through_what_it_names_and_nothing_else() {
    for (query, wanted) in [
        ("", true),
        ("namespace=shop", true),
        ("namespace=front", true),
        ("namespace=other", false),
        ("from=web.front", true),
        ("from=deploy/web.front", true),
        ("from=pod/web-1", true),
        ("from=pod/web", false),
        ("from=web.shop", false),
        ("from=reviews", false),
        ("from=*.front", true),
        ("to=svc/reviews.shop", true),
        ("to=svc/reviews.front", false),
        ("to=reviews-v1.shop", true),
        ("to=svc/reviews-v1.shop", false),
        ("about=web.front", true),
        ("about=svc/reviews.shop", true),
        ("about=ratings.shop", false),
        ("method=get", true),
        ("method=POST", false),
        ("path=/reviews/*", true),
        ("path=/reviews/7", true),
        ("path=*/7", true),
        ("path=*view*", true),
        ("path=/reviews", false),
        ("status=503", true),
        ("status=5xx", true),
        ("status=2xx", false),
        ("verdict=FORWARDED", true),
        ("verdict=dropped", false),
        ("verdict=dropped&verdict=forwarded", true),
        ("identity=*/ns/front/sa/web", true),
        ("identity=spiffe://cluster.local/ns/shop/*", false),
        ("method=GET&from=web.front&status=200", false),
    ] {
        let filter = Filter::parse(query).unwrap();
        assert_eq!(filter.matches(&event()), wanted, "{query}");
        assert_eq!(Filter::parse(&filter.to_query()).unwrap(), filter, "{query}");
    }
}

/// What has no method, path or status is not shown to who asks for one.
#[test]
fn a_connection_fits_no_filter_of_requests() {
    let connection = Event { request: None, phase: Phase::Close, ..event() };
    assert!(Filter::default().matches(&connection));
    for query in ["method=GET", "path=*", "status=5xx"] {
        assert!(!Filter::parse(query).unwrap().matches(&connection), "{query}");
    }
}

#[test]
fn a_tunnel_is_shown_once_unless_both_sides_are_asked_for() {
    let mut source = Event { reporter: Reporter::Ztunnel, direction: Direction::Egress, request: None, ..event() };
    assert!(!Filter::default().matches(&source));
    assert!(Filter::parse("all=true").unwrap().matches(&source));
    source.verdict = Verdict::Error;
    assert!(Filter::default().matches(&source), "why it failed is known at the source");
    let request = Event { request: event().request, ..source.clone() };
    assert!(!Filter::default().matches(&request), "a request that fails in a tunnel is not shown twice");
    assert!(Filter::parse("all=true").unwrap().matches(&request));
    (source.verdict, source.mtls) = (Verdict::Forwarded, false);
    assert!(Filter::default().matches(&source), "nobody else tells of plaintext to the outside");
}

#[test]
fn what_is_not_understood_shows_nothing() {
    for (query, says) in [
        ("namespce=shop", "namespce: no such filter"),
        ("status=9xx", "status=\"9xx\": a status such as 503"),
        ("status=abc", "status=\"abc\""),
        ("verdict=maybe", "verdict=\"maybe\": forwarded, dropped or error"),
        ("from=cow/x", "from=\"cow/x\": cow is not a kind"),
        ("to=", "to=\"\": a name"),
        ("to=web.", "to=\"web.\": a name"),
        ("limit=0", "limit=\"0\": a number from 1 to "),
        ("limit=99999999", "a number from 1 to 2000000"),
        ("seconds=86400", "seconds=\"86400\": a number from 1 to 1800"),
        ("query=yes", "query=\"yes\": true or false"),
    ] {
        let error = Filter::parse(query).unwrap_err().to_string();
        assert!(error.contains(says), "{query}: {error}");
    }
}
