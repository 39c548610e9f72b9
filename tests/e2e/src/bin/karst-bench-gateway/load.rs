//! Thousands of routes: what they cost a gateway that is idle, and what changes cost the control plane. Their pods are on nodes without a
//! kubelet, so that nothing but objects is made; their status is written here.

use crate::{
    api::{Api, Proxy},
    envoy::{self, Envoy},
    objects::{self, GATEWAY, LABEL},
    options::Options,
    report::{Aim, Report},
    usage::Process,
    world::{PATIENCE, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Nodes that are only objects.
const NODES: usize = 20;
/// Of a node's life sign (kubelet: 10 s; a node without is given up after 40 to 50).
const BEAT: Duration = Duration::from_secs(10);
/// One pod is replaced in each, on the average.
const PODS: Duration = Duration::from_secs(2);
/// One route is changed in each, on the average.
const ROUTES: Duration = Duration::from_secs(1);
/// From the last change to the first look: memory that the update has freed goes back to the system 10 s after it.
const REST: Duration = Duration::from_secs(20);
/// So long an idle gateway is looked at.
const IDLE: Duration = Duration::from_secs(20);

/// 10.200.0.0 and on: of nobody here.
const PODS_FROM: u32 = 0x0ac8_0000;

/// Numbers for names and addresses, each of them once.
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn namespace(number: usize) -> String {
    format!("bench-load-{number}")
}

fn node(number: usize) -> String {
    format!("bench-fake-{number}")
}

/// Makes the nodes, and all apps: a Service, a pod and a route each.
pub fn fill(world: &mut World, options: &Options, report: &Report) -> Result<()> {
    let (namespaces, apps) = (options.number("namespaces"), options.number("apps"));
    ensure!(namespaces > 0 && apps > 0, "--namespaces and --apps must be at least 1");
    let mut api = world.proxy.api();
    (0..NODES).try_for_each(|number| make_node(&mut api, number))?;
    beat(&mut world.proxy.api())?;
    keep_alive(&world.proxy);
    for number in 0..namespaces {
        objects::namespace(&mut api, &namespace(number))?;
    }
    // Without it no pod can be made.
    let account = |number| format!("{}/default", objects::core(&namespace(number), "serviceaccounts"));
    let end = Instant::now() + PATIENCE;
    for number in 0..namespaces {
        while api.get(&account(number))?.is_none() {
            ensure!(Instant::now() < end, "namespace {} gets no ServiceAccount", namespace(number));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    report.say(&format!("{} apps in {namespaces} namespaces, a Service, a pod and a route each", namespaces * apps));
    world.proxy.each(namespaces * apps, |api, number| make_app(api, number / apps, number % apps))?;
    report.say("all are made; until the gateway has them");
    for number in [0, namespaces / 2, namespaces - 1] {
        // What answers is the gateway: the pod is not there.
        world.until(&host(number, apps - 1), "/", |status| status != 404)?;
    }
    world.loaded = Some((namespaces, apps));
    Ok(())
}

fn host(namespace: usize, app: usize) -> String {
    format!("app-{app}.ns-{namespace}.example.com")
}

fn make_app(api: &mut Api, number: usize, app: usize) -> Result<()> {
    let (namespace, name) = (namespace(number), format!("app-{app}"));
    api.create(&objects::core(&namespace, "services"), &objects::service(&name, &name, &[(80, 8080)]))?;
    make_pod(api, &namespace, &name)?;
    let rules = [objects::rule("/", &name, 80)];
    let route = objects::route(&name, &[objects::parent(GATEWAY)], &host(number, app), &rules);
    api.create(&objects::routes(&namespace), &route).map(drop)
}

/// A pod that is said to run.
fn make_pod(api: &mut Api, namespace: &str, app: &str) -> Result<()> {
    let number = NEXT.fetch_add(1, Relaxed);
    let (name, pods) = (format!("{app}-{number}"), objects::core(namespace, "pods"));
    api.create(&pods, &objects::pod(&name, app, &node(number % NODES)))?;
    let ip = Ipv4Addr::from(PODS_FROM + number as u32 + 1).to_string();
    let is_true = |what: &str| json!({ "type": what, "status": "True" });
    let conditions = ["Initialized", "ContainersReady", "Ready", "PodScheduled"].map(is_true);
    let status = json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "conditions": conditions });
    api.patch(&format!("{pods}/{name}/status"), &json!({ "status": status })).map(drop)
}

fn make_node(api: &mut Api, number: usize) -> Result<()> {
    let (key, value) = LABEL.split_once('=').unwrap_or((LABEL, ""));
    // Without the label of an operating system: no DaemonSet is for it.
    let object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": node(number), "labels": { key: value } },
        "spec": { "taints": [{ "key": "karst-bench", "effect": "NoSchedule" }] },
    });
    api.create("/api/v1/nodes", &object)?;
    let room = json!({ "cpu": "64", "memory": "256Gi", "pods": "10000" });
    let ready = json!([{ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now()? }]);
    let status = json!({ "status": { "conditions": ready, "capacity": room, "allocatable": room } });
    api.patch(&format!("/api/v1/nodes/{}/status", node(number)), &status)?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": node(number) },
        "spec": { "holderIdentity": node(number), "leaseDurationSeconds": 40 },
    });
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    // One of an earlier run may still be there.
    match api.get(&format!("{leases}/{}", node(number)))? {
        Some(_) => Ok(()),
        None => api.create(leases, &lease).map(drop),
    }
}

/// The time, as leases have it.
fn now() -> Result<String> {
    let out = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.000000Z"]).output().context("date")?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// A life sign of all nodes.
fn beat(api: &mut Api) -> Result<()> {
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let renewed = json!({ "spec": { "renewTime": now()? } });
    (0..NODES).try_for_each(|number| api.patch(&format!("{leases}/{}", node(number)), &renewed).map(drop))
}

/// Gives life signs as long as this process lives.
fn keep_alive(proxy: &Proxy) {
    let mut api = proxy.api();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(BEAT);
            if let Err(error) = beat(&mut api) {
                eprintln!("the nodes without kubelet give no life sign: {error:#}");
            }
        }
    });
}

/// Numbers that look random, the same in each run.
struct Chance(u64);

impl Chance {
    /// Below a bound.
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64 (Marsaglia).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// A pause: normal around the mean, with a fifth of it as deviation (by the sum of twelve even ones).
    fn pause(&mut self, mean: Duration) -> Duration {
        let sum: usize = (0..12).map(|_| self.below(1001)).sum();
        let deviation = (sum as f64 / 1000.0 - 6.0) / 5.0;
        mean.mul_f64((1.0 + deviation).max(0.0))
    }
}

/// Puts another pod in the place of a random one.
fn replace_pod(api: &mut Api, (namespaces, apps): (usize, usize), chance: &mut Chance) -> Result<()> {
    let (namespace, app) = (namespace(chance.below(namespaces)), format!("app-{}", chance.below(apps)));
    let pods = objects::core(&namespace, "pods");
    let list = api.get(&format!("{pods}?labelSelector=app%3D{app}"))?.unwrap_or_default();
    for pod in list["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        api.delete(&format!("{pods}/{name}"))?;
    }
    make_pod(api, &namespace, &app)
}

/// Gives a random route another path.
fn change_route(api: &mut Api, (namespaces, apps): (usize, usize), chance: &mut Chance) -> Result<()> {
    let (number, app) = (chance.below(namespaces), format!("app-{}", chance.below(apps)));
    let path = format!("/{}", NEXT.fetch_add(1, Relaxed));
    let rules: Value = json!([objects::rule(&path, &app, 80)]);
    api.patch(&format!("{}/{app}", objects::routes(&namespace(number))), &json!({ "spec": { "rules": rules } }))
        .map(drop)
}

/// Changes pods and routes now and then, until it is told to stop; gives how many.
pub fn jitter(world: &World, stop: &AtomicBool) -> Result<usize> {
    let loaded = world.loaded.context("nothing is loaded")?;
    let (mut api, mut chance, mut count) = (world.proxy.api(), Chance(0x9e37_79b9_7f4a_7c15), 0);
    let mut pods = Instant::now() + chance.pause(PODS);
    let mut routes = Instant::now() + chance.pause(ROUTES);
    while !stop.load(Relaxed) {
        let now = Instant::now();
        if now >= pods {
            replace_pod(&mut api, loaded, &mut chance)?;
            (pods, count) = (now + chance.pause(PODS), count + 1);
        }
        if now >= routes {
            change_route(&mut api, loaded, &mut chance)?;
            (routes, count) = (now + chance.pause(ROUTES), count + 1);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(count)
}

/// The gateway with all of them, idle; and what 1,000 changes cost.
pub fn scale(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    let test = "route scale";
    let cpu = world.controller.cpu()?;
    if world.loaded.is_none() {
        fill(world, options, report)?;
    }
    let (namespaces, apps) = world.loaded.context("nothing is loaded")?;
    report.note(test, "routes", Aim::Told, (namespaces * apps) as f64, "");
    report.note(test, "controller, to compile and tell all of them", Aim::Told, world.controller.cpu()? - cpu, "CPU s");
    std::thread::sleep(REST);
    report.note(test, "gateway's CPU, idle", Aim::Under(1.0), idle(&world.process)?, "% of a core");
    report.note(test, "gateway's memory, idle", Aim::Under(40.0), world.process.memory()?, "MiB");
    report.note(test, "gateway's memory, at most so far", Aim::Told, world.process.peak()?, "MiB");
    report.note(test, "controller's memory", Aim::Told, world.controller.memory()?, "MiB");
    if let Some(program) = options.envoy() {
        let (hosts, clusters) = as_envoy(namespaces, apps);
        let envoy = Envoy::start(world, &program, "envoy-scale", &hosts, &clusters)?;
        std::thread::sleep(REST);
        report.note(test, "Envoy's CPU, idle", Aim::Told, idle(&envoy.process())?, "% of a core");
        report.note(test, "Envoy's memory, idle", Aim::Told, envoy.process().memory()?, "MiB");
    }

    let count = options.number("load-changes").max(1);
    let (mut api, mut chance) = (world.proxy.api(), Chance(0x2545_f491_4f6c_dd1d));
    let (of_controller, of_gateway, began) = (world.controller.cpu()?, world.process.cpu()?, Instant::now());
    for number in 0..count {
        match number % 2 {
            0 => replace_pod(&mut api, (namespaces, apps), &mut chance)?,
            _ => change_route(&mut api, (namespaces, apps), &mut chance)?,
        }
        if (number + 1) % 250 == 0 {
            report.say(&format!("{test}: {} of {count} changes", number + 1));
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    // What the last ones make.
    std::thread::sleep(Duration::from_secs(2));
    let per_1000 = |cpu: f64| cpu * 1000.0 / count as f64;
    let (controller, gateway) = (world.controller.cpu()? - of_controller, world.process.cpu()? - of_gateway);
    report.note(test, "changes (half of them pods, half routes)", Aim::Told, count as f64 / seconds, "a second");
    report.note(test, "controller, for 1,000 changes", Aim::Told, per_1000(controller), "CPU s");
    report.note(test, "gateway, for 1,000 changes", Aim::Told, per_1000(gateway), "CPU s");
    report.note(test, "gateway's memory, after them", Aim::Told, world.process.memory()?, "MiB");
    // As the idle one has: what the last of them have freed has gone back.
    std::thread::sleep(REST);
    report.note(test, "gateway's memory, idle again", Aim::Under(40.0), world.process.memory()?, "MiB");
    Ok(())
}

/// The part of a core that a process takes that has nothing to do, of a hundred.
fn idle(process: &Process) -> Result<f64> {
    let (before, began) = (process.cpu()?, Instant::now());
    std::thread::sleep(IDLE);
    Ok((process.cpu()? - before) / began.elapsed().as_secs_f64() * 100.0)
}

/// The same routes for Envoy: virtual hosts, and a cluster with one endpoint each.
fn as_envoy(namespaces: usize, apps: usize) -> (Vec<Value>, Vec<Value>) {
    let all = (0..namespaces * apps).map(|number| {
        let host = host(number / apps, number % apps);
        let ip = Ipv4Addr::from(PODS_FROM + number as u32 + 1);
        let cluster = envoy::cluster(&host, &[(ip, 8080).into()]);
        (envoy::host(&host, &[envoy::route("/", &host)]), cluster)
    });
    all.unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_around_their_mean() {
        let mut chance = Chance(1);
        let all: Vec<f64> = (0..10_000).map(|_| chance.pause(Duration::from_secs(1)).as_secs_f64()).collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let deviation = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
        assert!((0.98..1.02).contains(&mean) && (0.17..0.23).contains(&deviation), "{mean} {deviation}");
    }

    #[test]
    fn envoy_has_a_host_and_a_cluster_for_each_app() {
        let (hosts, clusters) = as_envoy(2, 3);
        assert_eq!((hosts.len(), clusters.len()), (6, 6));
        assert_eq!(hosts[5]["domains"][0], "app-2.ns-1.example.com");
        assert!(
            hosts.iter().zip(&clusters).all(|(host, cluster)| host["routes"][0]["route"]["cluster"] == cluster["name"])
        );
    }

    #[test]
    fn choices_are_below_their_bound_and_reach_all() {
        let mut chance = Chance(7);
        let mut seen = [0; 10];
        (0..1000).for_each(|_| seen[chance.below(10)] += 1);
        assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
        assert_eq!(chance.below(1), 0);
    }
}
