//! ListenerSets with listeners of HTTPS, one to an app, each with routes of its own. Only where the cluster has the kind and the control
//! plane takes it; else it says so.

use crate::{
    api::{Api, GATEWAY_API},
    objects::{self, EDGE, GATEWAY},
    options::Options,
    report::{Aim, Report},
    world::{PATIENCE, World},
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TEST: &str = "listener sets";
/// Namespaces, and ListenerSets in each (that of route scale would take most of the time here).
const NAMESPACES: usize = 10;
const SETS: usize = 50;
/// Routes of each.
const ROUTES: usize = 2;
/// Where one is tried first.
const TRIAL: &str = "bench-sets-trial";

fn namespace(number: usize) -> String {
    format!("bench-sets-{number}")
}

fn sets(namespace: &str) -> String {
    format!("{GATEWAY_API}/namespaces/{namespace}/listenersets")
}

fn host(namespace: &str, number: usize) -> String {
    format!("set-{number}.{namespace}.example.com")
}

/// All of them.
pub fn run(world: &mut World, _: &Options, report: &mut Report) -> Result<()> {
    let mut api = world.proxy.api();
    if api.get(&format!("{GATEWAY_API}/listenersets"))?.is_none() {
        report.left_out(TEST, "not run: the cluster has no kind ListenerSet (Gateway API 1.5 or later has)", false);
        return Ok(());
    }
    make_namespace(&mut api, TRIAL)?;
    make_set(&mut api, TRIAL, 0)?;
    if !programmed(&mut api, TRIAL, 1, Duration::from_secs(15))? {
        report.left_out(TEST, "not run: the control plane does not program a ListenerSet within 15 s", false);
        return api.delete(&format!("/api/v1/namespaces/{TRIAL}"));
    }
    let all: Vec<String> = (0..NAMESPACES).map(namespace).collect();
    all.iter().try_for_each(|name| make_namespace(&mut api, name))?;
    let (of_controller, of_gateway) = (world.controller.cpu()?, world.process.cpu()?);
    report.say(&format!("{TEST}: {} of them with {ROUTES} routes each", NAMESPACES * SETS));
    world.proxy.each(NAMESPACES * SETS, |api, number| make_set(api, &all[number / SETS], number % SETS))?;
    let created = Instant::now();
    for name in &all {
        if !programmed(&mut api, name, SETS, PATIENCE)? {
            bail!("not all ListenerSets of {name} are programmed after {} s", PATIENCE.as_secs());
        }
    }
    let took = created.elapsed().as_secs_f64();
    report.note(TEST, "ListenerSets", Aim::Told, (NAMESPACES * SETS) as f64, "");
    report.note(TEST, "all programmed, after the last one was created", Aim::Told, took, "s");
    report.note(TEST, "controller, for all of it", Aim::Told, world.controller.cpu()? - of_controller, "CPU s");
    report.note(TEST, "gateway, for all of it", Aim::Told, world.process.cpu()? - of_gateway, "CPU s");
    let before = world.controller.cpu()?;
    for name in &all {
        rotate(&mut api, name)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    report.note(
        TEST,
        "controller, for a new certificate of each namespace",
        Aim::Told,
        world.controller.cpu()? - before,
        "CPU s",
    );
    std::thread::sleep(Duration::from_secs(20));
    report.note(TEST, "gateway's memory, idle", Aim::Told, world.process.memory()?, "MiB");
    for name in all.iter().map(String::as_str).chain([TRIAL]) {
        api.delete(&format!("/api/v1/namespaces/{name}"))?;
    }
    Ok(())
}

/// The data of a Secret with a certificate for all hosts of a namespace.
fn certificate(namespace: &str) -> Result<Value> {
    let made = rcgen::generate_simple_self_signed(vec![format!("*.{namespace}.example.com")])?;
    Ok(json!({ "tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem() }))
}

fn make_namespace(api: &mut Api, name: &str) -> Result<()> {
    objects::namespace(api, name)?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "site" }, "type": "kubernetes.io/tls",
        "stringData": certificate(name)?,
    });
    api.create(&objects::core(name, "secrets"), &secret).map(drop)
}

fn rotate(api: &mut Api, namespace: &str) -> Result<()> {
    let change = json!({ "stringData": certificate(namespace)? });
    api.patch(&format!("{}/site", objects::core(namespace, "secrets")), &change).map(drop)
}

/// A ListenerSet with one listener, its Service, and routes to it.
fn make_set(api: &mut Api, namespace: &str, number: usize) -> Result<()> {
    let (name, host) = (format!("set-{number}"), host(namespace, number));
    let set = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ListenerSet", "metadata": { "name": name },
        "spec": {
            "parentRef": { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": GATEWAY, "namespace": EDGE },
            "listeners": [{
                "name": "https", "port": 443, "protocol": "HTTPS", "hostname": host,
                "tls": { "mode": "Terminate", "certificateRefs": [{ "name": "site" }] },
            }],
        },
    });
    api.create(&sets(namespace), &set)?;
    api.create(&objects::core(namespace, "services"), &objects::service(&name, &name, &[(80, 8080)]))?;
    let parent = json!({ "group": "gateway.networking.k8s.io", "kind": "ListenerSet", "name": name });
    for route in 0..ROUTES {
        let rules = [objects::rule(&format!("/{route}"), &name, 80)];
        let object = objects::route(&format!("{name}-{route}"), std::slice::from_ref(&parent), &host, &rules);
        api.create(&objects::routes(namespace), &object)?;
    }
    Ok(())
}

/// Waits until so many ListenerSets of a namespace are programmed; false: they are not in time.
fn programmed(api: &mut Api, namespace: &str, count: usize, limit: Duration) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let list = api.get(&sets(namespace))?.context("the list of ListenerSets")?;
        let is_programmed = |set: &&Value| {
            let conditions = set["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|c| c["type"] == "Programmed" && c["status"] == "True")
        };
        if list["items"].as_array().into_iter().flatten().filter(is_programmed).count() >= count {
            return Ok(true);
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
