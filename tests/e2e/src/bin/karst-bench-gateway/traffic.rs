//! Requests through one route, as many as the gateway takes, with meshbench; and the same through Envoy.

use crate::{
    envoy::{self, Envoy},
    objects::{self, EDGE},
    options::Options,
    report::{Aim, Report},
    usage::Process,
    world::{Ended, World, program},
};
use anyhow::{Context, Result, ensure};
use karst_e2e::link;
use serde_json::Value;
use std::{
    net::SocketAddr,
    process::{Command, Stdio},
};

const TEST: &str = "traffic";
const HOST: &str = "traffic.example.com";
/// Connections at a time.
const CONNECTIONS: [usize; 3] = [1, 16, 512];
/// Bytes of a request's body, and of the answer's.
const BODIES: [usize; 2] = [0, 4096];
/// Of one measurement.
const SECONDS: &str = "5";

/// All of them.
pub fn run(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    let (world, name) = (&*world, "traffic");
    let pod = world.run_pod(name, name, &world.away)?;
    let meshbench = program("meshbench")?;
    let serve = || Command::new(&meshbench).args(["serve", "--name", name]).stderr(Stdio::null()).spawn();
    let _server = Ended(pod.netns().run(serve)?.context("meshbench serve")?);
    let mut api = world.proxy.api();
    api.create(&objects::core(EDGE, "services"), &objects::service(name, name, &[(80, 8080)]))?;
    let rules = [objects::rule("/", name, 80)];
    api.create(&objects::routes(EDGE), &objects::route(name, &[objects::parent(objects::GATEWAY)], HOST, &rules))?;
    world.until(HOST, "/", |status| status == 200)?;
    let beside = options.envoy().map(|program| {
        let (hosts, clusters) =
            ([envoy::host(HOST, &[envoy::route("/", name)])], [envoy::cluster(name, &[pod.at(8080)])]);
        Envoy::start(world, &program, "envoy-traffic", &hosts, &clusters)
    });
    let beside = beside.transpose()?;
    for size in BODIES {
        for connections in CONNECTIONS {
            let case = format!("{connections} connections, {size} bytes");
            let ours = measure(&case, (world.gateway, &world.process), (connections, size), report)?;
            if let Some(envoy) = &beside {
                let theirs =
                    measure(&format!("Envoy, {case}"), (envoy.at, &envoy.process()), (connections, size), report)?;
                report.note(TEST, &format!("{case}: CPU beside Envoy's"), Aim::Told, ours / theirs, "times");
            }
        }
    }
    api.delete(&format!("{}/{name}", objects::routes(EDGE)))
}

/// One case through one proxy; gives its CPU seconds for 10,000 requests.
fn measure(
    case: &str,
    (to, process): (SocketAddr, &Process),
    (connections, size): (usize, usize),
    report: &mut Report,
) -> Result<f64> {
    let before = process.cpu()?;
    let seen = ask(to, connections, size)?;
    let (cpu, number) = (process.cpu()? - before, |key: &str| seen[key].as_f64());
    let failed: f64 = seen["errors"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_f64()).sum();
    report.note(TEST, &format!("{case}: errors"), Aim::Exactly(0.0), failed, "");
    for (key, unit) in [("rps", "requests/s"), ("p50_us", "us"), ("p90_us", "us"), ("p99_us", "us")] {
        let seen = number(key).with_context(|| format!("meshbench does not tell {key}: {seen}"))?;
        report.note(TEST, &format!("{case}: {key}"), Aim::Told, seen, unit);
    }
    // Those of the warm-up are in the CPU time, too, and not in the count: an upper bound.
    let each = cpu / number("requests").unwrap_or(0.0).max(1.0) * 1e4;
    report.note(TEST, &format!("{case}: proxy"), Aim::Told, each, "CPU s/10,000");
    Ok(each)
}

fn ask(to: SocketAddr, connections: usize, size: usize) -> Result<Value> {
    let (to, connections, size) = (to.to_string(), connections.to_string(), size.to_string());
    let mut command = Command::new(program("meshbench")?);
    command.args(["rr", "--to", &to, "--proto", "http", "--host", HOST, "--secs", SECONDS, "--conns", &connections]);
    command.args(["--size", &size, "--warmup", "0.5"]);
    let out = link().run(|| command.output())?.context("meshbench rr")?;
    ensure!(out.status.success(), "meshbench rr: {}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}
