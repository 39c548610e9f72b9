//! Requests without a waypoint, counted in truth: what both ztunnels tell is what the applications have counted themselves, to the
//! last one, whatever clients do: pipelines, streams, gRPC, websockets, connections and streams that break off, and garbage.
//! `SEED=n` for another run; the long form has a million requests (`cargo xtask soak --long-tests`).
//!
//! Clients break off only when it is known what has passed both ztunnels (the application has answered it, or something behind
//! it): otherwise nobody could say what is to be counted.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test's failure is a panic"
)]

#[path = "signals_truth/garbage.rs"]
mod garbage;
#[path = "signals_truth/http1.rs"]
mod http1;
#[path = "signals_truth/http2.rs"]
mod http2;
#[path = "signals_truth/pipeline.rs"]
mod pipeline;
#[path = "signals_truth/route.rs"]
mod route;
#[path = "signals_truth/streams.rs"]
mod streams;
#[path = "signals_truth/tally.rs"]
mod tally;

use karst_world::{Options, Pod, PodSpec, World, wait_for, web::Acceptor};
use rand::{Rng, SeedableRng, rngs::StdRng};
use route::Route;
use std::{
    thread,
    time::{Duration, Instant},
};
use tally::Tally;

/// Clients at a time, from each node to each node's application.
const CLIENTS: usize = 2;
/// Counts that are not there after this long never come.
const PATIENCE: Duration = Duration::from_secs(15);

/// Two ports are declared to be HTTP by their names, and two are not declared.
const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: appNODE, namespace: app}\nspec: {clusterIP: 10.96.1.1NODE, selector: {app: appNODE}, ports: [{name: http, port: 80, targetPort: 8080}, {name: any, port: 81, targetPort: 8081}, {name: http-hole, port: 82, targetPort: 8082}, {name: hole, port: 83, targetPort: 8083}]}\n";

fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

/// The application of a node: HTTP/1, HTTP/2, and what takes garbage.
fn serve(pod: &Pod, tally: &Tally) -> [Acceptor; 4] {
    let (one, two) = (tally.clone(), tally.clone());
    // A connection that ends otherwise than it should is missed in the counts.
    let hole = |port| Acceptor::at(pod, port, |s| drop(garbage::serve(&s)));
    [
        Acceptor::at(pod, 8080, move |s| drop(http1::serve(&s, &one))),
        Acceptor::at(pod, 8081, move |s| drop(http2::serve(s, &two))),
        hole(8082),
        hole(8083),
    ]
}

/// Connections of a client, one after another, until it has asked often enough; how often that was.
fn ask(route: &Route, rng: &mut StdRng, enough: u64) -> anyhow::Result<u64> {
    let mut asked = 0;
    while asked < enough {
        asked += match rng.random_range(0..20) {
            0..9 => pipeline::session(route, rng)?,
            9..17 => streams::session(route, rng)?,
            17..19 => pipeline::upgraded(route, rng)?,
            _ => garbage::session(route, rng).map(|()| 0)?,
        };
    }
    Ok(asked)
}

fn counts_are_the_applications_own(requests: u64) {
    let seed = seed();
    println!("SEED={seed}");
    let mut w = World::start(Options::default()).unwrap();
    w.namespace("app", true);
    let mut pods = |name: &str| [0, 1].map(|node| w.pod(PodSpec::new("app", &format!("{name}{node}"), node)));
    let (clients, servers) = (pods("client"), pods("app"));
    clients.iter().chain(&servers).for_each(|p| w.wait_redirected(p));
    for node in ["0", "1"] {
        w.apply(&format!("app{node}"), &SERVICE.replace("NODE", node));
    }
    let tallies = [Tally::default(), Tally::default()];
    let _applications: Vec<_> = servers.iter().zip(&tallies).map(|(pod, tally)| serve(pod, tally)).collect();
    let routes = clients.iter().enumerate().flat_map(|(number, client)| {
        tallies.iter().zip(10..).map(move |(tally, last)| Route {
            client: client.clone(),
            number,
            service: [10, 96, 1, last].into(),
            tally: tally.clone(),
        })
    });
    let routes: Vec<Route> = routes.collect();
    let began = Instant::now();
    let asked: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..routes.len() * CLIENTS)
            .map(|n| {
                let route = &routes[n / CLIENTS];
                let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(n as u64));
                let enough = requests.div_ceil((routes.len() * CLIENTS) as u64);
                scope.spawn(move || ask(route, &mut rng, enough).unwrap_or_else(|e| panic!("client {n}: {e:#}")))
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    println!("{asked} requests in {:.1} s", began.elapsed().as_secs_f64());
    // Connections end, and the last exchanges with them, after their clients have gone.
    let end = Instant::now() + PATIENCE;
    let wrong = wait_for("the metrics can be read", PATIENCE + Duration::from_secs(20), || {
        let wrong = tally::differences(&w, &tallies);
        (wrong.is_empty() || Instant::now() > end).then_some(wrong)
    });
    assert!(wrong.is_empty(), "SEED={seed}:\n{}", wrong.join("\n"));
    let served: u64 = tallies.iter().map(Tally::requests).sum();
    assert!(served == asked && asked >= requests, "SEED={seed}: {asked} asked, {served} served");
    let flags: Vec<&str> = tallies.iter().flat_map(Tally::flags).collect();
    assert!(["-", "DC", "UC", "UR"].iter().all(|f| flags.contains(f)), "{flags:?}");
}

#[test]
fn counts_of_mixed_requests_are_the_applications_own() {
    counts_are_the_applications_own(20_000);
}

/// The figure of the acceptance: `cargo xtask soak --long-tests`.
#[test]
#[ignore = "soak: some minutes"]
fn a_million_counts_are_the_applications_own() {
    counts_are_the_applications_own(1_000_000);
}
