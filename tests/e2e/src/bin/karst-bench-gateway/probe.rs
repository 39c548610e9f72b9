//! How soon a new route is in force, and what becomes of requests while a route changes.

use crate::{
    api::Api,
    http::Client,
    load,
    objects::{self, EDGE},
    options::Options,
    report::{Aim, Report, percentile},
    world::World,
};
use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Between two looks at a route.
const LOOK: Duration = Duration::from_millis(5);
/// A route that is not in force by then has failed.
const LIMIT: Duration = Duration::from_secs(30);
/// A line each so many routes.
const TOLD: usize = 250;
/// After each change of a route.
const GRACE: Duration = Duration::from_millis(200);

/// On a gateway with no other load.
pub fn alone(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    measure("propagation", world, options, report)
}

/// While pods are replaced and routes are changed beside it.
pub fn under_load(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    let test = "propagation under load";
    if world.loaded.is_none() {
        load::fill(world, options, report)?;
    }
    let (world, stop) = (&*world, AtomicBool::new(false));
    let jitter = std::thread::scope(|scope| {
        let beside = scope.spawn(|| load::jitter(world, &stop));
        let measured = measure(test, world, options, report);
        stop.store(true, Relaxed);
        let jitter = beside.join().unwrap_or_else(|_| bail!("the load has panicked"));
        measured.and(jitter)
    })?;
    report.note(test, "changes meanwhile", Aim::Told, jitter as f64, "");
    let of = |test: &str| report.seen(test, MEDIAN);
    if let (Some(alone), Some(loaded)) = (of("propagation"), of(test)) {
        // No slower, but for what the machine itself makes of two medians: 3 per cent.
        report.note(test, "median beside that without load", Aim::Under(1.03), loaded / alone, "times");
    }
    Ok(())
}

const MEDIAN: &str = "median, created to first answer";

/// One route after the other, each looked at until it answers 200: 404 is waited out, anything else is an error.
fn measure(test: &str, world: &World, options: &Options, report: &mut Report) -> Result<()> {
    let (count, mut api) = (options.number("probe-routes"), world.proxy.api());
    // Of each test its own: routes of the last one may still be going.
    let name = format!("probe-{}", if world.loaded.is_some() { "loaded" } else { "alone" });
    let namespace = format!("bench-{name}");
    let _backend = world.backend(&name, &[(80, 8080)])?;
    objects::namespace(&mut api, &namespace)?;
    grant(&mut api, &name, &namespace)?;
    let mut client = world.client();
    let (mut times, mut errors) = (vec![], 0);
    for number in 0..count {
        let host = format!("{number}-{name}.example.com");
        let path = format!("/{number}");
        api.create(&objects::routes(&namespace), &probe(number, &host, &path, &name))?;
        let created = Instant::now();
        match seen(&mut client, &host, &path, created)? {
            Some(took) => times.push(took),
            None => errors += 1,
        }
        if (number + 1) % TOLD == 0 {
            let lately = &mut times[times.len().saturating_sub(TOLD)..].to_vec();
            lately.sort_by(f64::total_cmp);
            report.say(&format!("{test}: {} routes, median of the last {:.1} ms", number + 1, percentile(lately, 50)));
        }
    }
    times.sort_by(f64::total_cmp);
    report.note(test, "routes", Aim::Told, count as f64, "");
    report.note(test, "errors", Aim::Exactly(0.0), f64::from(errors), "");
    report.note(test, MEDIAN, Aim::Under(10.0), percentile(&times, 50), "ms");
    report.note(test, "p99", Aim::Told, percentile(&times, 99), "ms");
    report.note(test, "at most", Aim::Told, percentile(&times, 100), "ms");
    report.note(test, "gateway's memory", Aim::Told, world.process.memory()?, "MiB");
    world.remove(&[namespace])
}

/// A rule to the backend that changes headers both ways, and one to a Service that is not there.
fn probe(number: usize, host: &str, path: &str, service: &str) -> Value {
    let mut rule = objects::rule(path, service, 80);
    rule["backendRefs"][0]["namespace"] = json!(EDGE);
    let value = number.to_string();
    rule["filters"] = json!([
        objects::header("RequestHeaderModifier", "x-probe", &value),
        objects::header("ResponseHeaderModifier", "x-probe", &value),
    ]);
    let rest = objects::rule("/", "nowhere", 80);
    objects::route(&format!("probe-{number}"), &[objects::parent(objects::GATEWAY)], host, &[rule, rest])
}

/// Routes of a namespace may use a Service of the gateway's.
fn grant(api: &mut Api, service: &str, namespace: &str) -> Result<()> {
    let group = "gateway.networking.k8s.io";
    let object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant", "metadata": { "name": service },
        "spec": {
            "from": [{ "group": group, "kind": "HTTPRoute", "namespace": namespace }],
            "to": [{ "group": "", "kind": "Service", "name": service }],
        },
    });
    api.create(&format!("/apis/{group}/v1beta1/namespaces/{EDGE}/referencegrants"), &object).map(drop)
}

/// Milliseconds until a route answers 200; None: it answers something else than that or 404.
fn seen(client: &mut Client, host: &str, path: &str, created: Instant) -> Result<Option<f64>> {
    loop {
        let asked = Instant::now();
        match client.get(host, path)?.status {
            200 => return Ok(Some(created.elapsed().as_secs_f64() * 1e3)),
            404 => ensure!(created.elapsed() < LIMIT, "{host} is not in force after {} s", LIMIT.as_secs()),
            _ => return Ok(None),
        }
        std::thread::sleep(LOOK.saturating_sub(asked.elapsed()));
    }
}

/// Requests without pause while a route's port and header change: none may fail.
pub fn changes(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    let (test, name, host) = ("route changes", "change", "change.example.com");
    let _backends = world.backend(name, &[(80, 8080), (8080, 8081)])?;
    let mut api = world.proxy.api();
    let rules = |port: u16| {
        let mut rule = objects::rule("/", name, port);
        rule["filters"] = json!([objects::header("ResponseHeaderModifier", "x-port", &port.to_string())]);
        json!([rule])
    };
    let mut route = objects::route(name, &[objects::parent(objects::GATEWAY)], host, &[]);
    route["spec"]["rules"] = rules(80);
    api.create(&objects::routes(EDGE), &route)?;
    world.until(host, "/", |status| status == 200)?;
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(None));
    // Which port has answered last.
    let last = Mutex::new(String::new());
    let edited = std::thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut client = world.client();
            while !stop.load(Relaxed) {
                asked.fetch_add(1, Relaxed);
                let bad = match client.get(host, "/") {
                    Ok(answer) if answer.status == 200 => {
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = answer.text();
                        continue;
                    }
                    Ok(answer) => format!("status {}", answer.status),
                    Err(error) => error.to_string(),
                };
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(bad);
                return;
            }
        });
        let edit = |number: usize, api: &mut Api| -> Result<Option<f64>> {
            let (port, target) = if number.is_multiple_of(2) { (8080, 8081) } else { (80, 8080) };
            api.patch(&format!("{}/{name}", objects::routes(EDGE)), &json!({ "spec": { "rules": rules(port) } }))?;
            let wanted = format!("{name}-{target}");
            let (edited, mut took) = (Instant::now(), None);
            while edited.elapsed() < GRACE {
                if took.is_none() && *last.lock().unwrap_or_else(PoisonError::into_inner) == wanted {
                    took = Some(edited.elapsed().as_secs_f64() * 1e3);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(took)
        };
        let edited: Result<Vec<Option<f64>>> =
            (0..options.number("changes")).map(|number| edit(number, &mut api)).collect();
        stop.store(true, Relaxed);
        let _ = requests.join();
        edited
    })?;
    if let Some(why) = failed.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        report.say(&format!("{test}: a request has failed: {why}"));
    }
    let has_failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner).is_some();
    let mut times: Vec<f64> = edited.iter().copied().flatten().collect();
    times.sort_by(f64::total_cmp);
    report.note(test, "requests meanwhile", Aim::Told, asked.load(Relaxed) as f64, "");
    report.note(test, "failed requests (the first ends it)", Aim::Exactly(0.0), f64::from(has_failed), "");
    let late = edited.len() - times.len();
    report.note(test, "changes not seen within 200 ms", Aim::Exactly(0.0), late as f64, "");
    report.note(test, "median, changed to first answer by it", Aim::Told, percentile(&times, 50), "ms");
    api.delete(&format!("{}/{name}", objects::routes(EDGE)))
}
