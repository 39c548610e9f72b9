//! Requests through one route, as many as the gateway takes, with meshbench.

use crate::{
    objects::{self, EDGE},
    options::Options,
    report::{Aim, Report},
    world::{World, program},
};
use anyhow::{Context, Result, ensure};
use karst_e2e::link;
use serde_json::Value;
use std::process::{Child, Command, Stdio};

/// Connections at a time.
const CONNECTIONS: [usize; 3] = [1, 16, 512];
/// Bytes of a request's body, and of the answer's.
const BODIES: [usize; 2] = [0, 4096];
/// Of one measurement.
const SECONDS: &str = "5";

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All of them.
pub fn run(world: &mut World, _: &Options, report: &mut Report) -> Result<()> {
    let (test, name, host) = ("traffic", "traffic", "traffic.example.com");
    let pod = world.run_pod(name, name, &world.away)?;
    let meshbench = program("meshbench")?;
    let serve = || Command::new(&meshbench).args(["serve", "--name", name]).stderr(Stdio::null()).spawn();
    let _server = Ended(pod.netns().run(serve)?.context("meshbench serve")?);
    let mut api = world.proxy.api();
    api.create(&objects::core(EDGE, "services"), &objects::service(name, name, &[(80, 8080)]))?;
    let rules = [objects::rule("/", name, 80)];
    api.create(&objects::routes(EDGE), &objects::route(name, &[objects::parent(objects::GATEWAY)], host, &rules))?;
    world.until(host, "/", |status| status == 200)?;
    for size in BODIES {
        for connections in CONNECTIONS {
            let before = world.process.cpu()?;
            let seen = ask(world, host, connections, size)?;
            let cpu = world.process.cpu()? - before;
            let (case, number) = (format!("{connections} connections, {size} bytes"), |key: &str| seen[key].as_f64());
            let failed: f64 = seen["errors"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_f64()).sum();
            report.note(test, &format!("{case}: errors"), Aim::Exactly(0.0), failed, "");
            for (key, unit) in [("rps", "requests/s"), ("p50_us", "us"), ("p90_us", "us"), ("p99_us", "us")] {
                let seen = number(key).with_context(|| format!("meshbench does not tell {key}: {seen}"))?;
                report.note(test, &format!("{case}: {key}"), Aim::Told, seen, unit);
            }
            let requests = number("requests").unwrap_or(0.0).max(1.0);
            // Those of the warm-up are in the CPU time, too, and not in the count: an upper bound.
            report.note(test, &format!("{case}: gateway"), Aim::Told, cpu / requests * 1e4, "CPU s/10,000");
        }
    }
    api.delete(&format!("{}/{name}", objects::routes(EDGE)))
}

fn ask(world: &World, host: &str, connections: usize, size: usize) -> Result<Value> {
    let (to, connections, size) = (world.gateway.to_string(), connections.to_string(), size.to_string());
    let mut command = Command::new(program("meshbench")?);
    command.args(["rr", "--to", &to, "--proto", "http", "--host", host, "--secs", SECONDS, "--conns", &connections]);
    command.args(["--size", &size, "--warmup", "0.5"]);
    let out = link().run(|| command.output())?.context("meshbench rr")?;
    ensure!(out.status.success(), "meshbench rr: {}", String::from_utf8_lossy(&out.stderr));
    Ok(serde_json::from_slice(&out.stdout)?)
}
