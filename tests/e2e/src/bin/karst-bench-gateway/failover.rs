//! What requests see of an endpoint that refuses connections now and then, of a pod that goes, and of a node without power.

use crate::{
    api::{Api, GATEWAY_API},
    backend::Backend,
    envoy::{self, Envoy},
    http::Client,
    objects::{self, EDGE, GATEWAY},
    options::Options,
    report::{Aim, Report},
    world::{World, xtask},
};
use anyhow::{Result, bail};
use karst_e2e::{Pod, apply, kubectl, link, try_kubectl};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The Service, its pods' label, and the host.
const NAME: &str = "flapping";
const HOST: &str = "flapping.example.com";
/// Routes, and rules of each.
const ROUTES: usize = 16;
const RULES: usize = 16;
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// The name of the endpoint that is bad at times.
const BAD: &str = "flapping-0";
const OUTLIER: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: flapping, namespace: bench}
spec:
  host: flapping.bench.svc.cluster.local
  trafficPolicy:
    outlierDetection:
      consecutive5xxErrors: 5
      consecutiveGatewayErrors: 5
      consecutiveLocalOriginFailures: 5
      splitExternalLocalOriginErrors: true
      baseEjectionTime: 10s
      maxEjectionPercent: 100
";

/// What requests have seen.
#[derive(Default)]
struct Seen {
    /// By endpoint.
    answers: BTreeMap<String, usize>,
    failed: usize,
    /// Between two good answers, ms.
    longest_gap: f64,
}

impl Seen {
    fn total(&self) -> usize {
        self.answers.values().sum::<usize>() + self.failed
    }

    /// Parts of a hundred.
    fn of_all(&self, count: usize) -> f64 {
        count as f64 * 100.0 / self.total().max(1) as f64
    }

    fn add(&mut self, other: Seen) {
        for (name, count) in other.answers {
            *self.answers.entry(name).or_default() += count;
        }
        self.failed += other.failed;
        self.longest_gap = self.longest_gap.max(other.longest_gap);
    }
}

/// All of them.
pub fn run(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    let (world, mut pods, mut backends) = (&*world, vec![], vec![]);
    // The bad one and one more beside the gateway, two on the other node.
    for (number, node) in [&world.home, &world.home, &world.away, &world.away].into_iter().enumerate() {
        let name = format!("{NAME}-{number}");
        pods.push(world.run_pod(&name, NAME, node)?);
        backends.push(Backend::start(&pods[number], 8080, &name)?);
    }
    let mut api = world.proxy.api();
    api.create(&objects::core(EDGE, "services"), &objects::service(NAME, NAME, &[(80, 8080)]))?;
    let keeps_retry = make_routes(&mut api)?;
    for number in 0..ROUTES * RULES {
        world.until(HOST, &path(number), |status| status == 200)?;
    }
    if !keeps_retry {
        let why = "the CRD of HTTPRoute has no `retry` (Gateway API 1.7 has): standard retries are in force, not none";
        report.left_out("failover", why, false);
    }
    let beside = |name: &str, outlier: Option<Value>| {
        let envoy = options.envoy().map(|program| start_envoy(world, &program, name, &pods, outlier));
        envoy.transpose()
    };
    let envoy = beside("envoy-plain", None)?;
    endpoint("failover, plain", false, (world, options, &mut backends), envoy.as_ref(), report)?;
    drop(envoy);
    apply(OUTLIER);
    let envoy = beside("envoy-outlier", Some(outlier()))?;
    endpoint("failover, outlier detection", true, (world, options, &mut backends), envoy.as_ref(), report)?;
    drop(envoy);
    kubectl(&["-n", EDGE, "delete", "destinationrule", NAME]);
    // From here on with the retries that are standard.
    for number in 0..ROUTES {
        let rules: Vec<Value> = (0..RULES).map(|rule| objects::rule(&path(number * RULES + rule), NAME, 80)).collect();
        let at = format!("{}/{NAME}-{number}", objects::routes(EDGE));
        api.patch(&at, &json!({ "spec": { "rules": rules } }))?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let pod = || {
        kubectl(&["-n", EDGE, "delete", "pod", &format!("{NAME}-3"), "--force", "--grace-period=0"]);
        Ok(())
    };
    lost("failover, pod lost", 20, pod, world, report)?;
    let number = world.away.trim_start_matches('n').to_string();
    // Until its pods are no endpoints any more: 20 s on this cluster (`--node-monitor-grace-period`), and then some.
    lost("failover, node lost", 45, || xtask(&["cluster", "stop-node", &number]), world, report)?;
    xtask(&["cluster", "start-node", &number])?;
    kubectl(&["wait", "--for=condition=Ready", &format!("node/{}", world.away), "--timeout=120s"]);
    for number in 0..ROUTES {
        api.delete(&format!("{}/{NAME}-{number}", objects::routes(EDGE)))?;
    }
    let _ = try_kubectl(&["-n", EDGE, "delete", "pod", "-l", &format!("app={NAME}"), "--force", "--grace-period=0"]);
    Ok(())
}

/// As the DestinationRule has it, in Envoy's words (as Istio writes them).
fn outlier() -> Value {
    json!({
        "consecutive_5xx": 5, "consecutive_gateway_failure": 5, "enforcing_consecutive_gateway_failure": 100,
        "consecutive_local_origin_failure": 5, "split_external_local_origin_errors": true,
        "base_ejection_time": "10s", "max_ejection_percent": 100,
    })
}

/// An Envoy with the same prefixes and endpoints, and no retries.
fn start_envoy(
    world: &World,
    program: &std::path::Path,
    name: &str,
    pods: &[Pod],
    outlier: Option<Value>,
) -> Result<Envoy> {
    let routes: Vec<Value> = (0..ROUTES * RULES).map(|number| envoy::route(&path(number), NAME)).collect();
    let mut cluster = envoy::cluster(NAME, &pods.iter().map(|pod| pod.at(8080)).collect::<Vec<_>>());
    if let Some(outlier) = outlier {
        cluster["outlier_detection"] = outlier;
    }
    Envoy::start(world, program, name, &[envoy::host(HOST, &routes)], &[cluster])
}

/// Prefixes of which none is one of another's segments.
fn path(number: usize) -> String {
    format!("/p{number}")
}

/// Makes the routes, without retries; gives whether the CRD can say so.
fn make_routes(api: &mut Api) -> Result<bool> {
    let mut keeps = true;
    for number in 0..ROUTES {
        let rule = |rule: usize| {
            let mut rule = objects::rule(&path(number * RULES + rule), NAME, 80);
            rule["retry"] = json!({ "attempts": 0 });
            rule
        };
        let rules: Vec<Value> = (0..RULES).map(rule).collect();
        let route = objects::route(&format!("{NAME}-{number}"), &[objects::parent(GATEWAY)], HOST, &rules);
        let made = api.create(&format!("{GATEWAY_API}/namespaces/{EDGE}/httproutes"), &route)?;
        keeps &= !made["spec"]["rules"][0]["retry"].is_null();
    }
    Ok(keeps)
}

/// Requests one after the other, over all prefixes, until they are to stop.
fn ask(to: SocketAddr, stop: &AtomicBool) -> Seen {
    let (mut client, mut seen, mut number) = (Client::new(&link(), to), Seen::default(), 0);
    let mut last = Instant::now();
    while !stop.load(Relaxed) {
        let began = Instant::now();
        match client.get(HOST, &path(number % (ROUTES * RULES))) {
            Ok(answer) if answer.status == 200 => {
                *seen.answers.entry(answer.text()).or_default() += 1;
                seen.longest_gap = seen.longest_gap.max(last.elapsed().as_secs_f64() * 1e3);
                last = Instant::now();
            }
            Ok(_) | Err(_) => seen.failed += 1,
        }
        number += 1;
        std::thread::sleep(PAUSE.saturating_sub(began.elapsed()));
    }
    // One that has not ended counts, too.
    seen.longest_gap = seen.longest_gap.max(last.elapsed().as_secs_f64() * 1e3);
    seen
}

/// What is seen through each proxy while something is done.
fn seen_while(through: &[SocketAddr], what: impl FnOnce() -> Result<()>) -> Result<Vec<Seen>> {
    let stop = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking: Vec<_> = through.iter().map(|to| scope.spawn(move || ask(*to, stop))).collect();
        let done = what();
        stop.store(true, Relaxed);
        let seen: Result<Vec<Seen>> =
            asking.into_iter().map(|one| one.join().or_else(|_| bail!("who asks has panicked"))).collect();
        done.and(seen)
    })
}

/// What one proxy's clients have seen in all rounds.
#[derive(Default)]
struct Rounds {
    while_bad: Seen,
    while_good: Seen,
    /// The part of the bad endpoint when it was well, in the last round.
    last: f64,
}

/// Rounds in which one endpoint refuses connections, and is well again; the same for an Envoy at the same time.
fn endpoint(
    test: &str,
    has_outlier: bool,
    (world, options, backends): (&World, &Options, &mut [Backend]),
    envoy: Option<&Envoy>,
    report: &mut Report,
) -> Result<()> {
    let length = Duration::from_secs(options.number("secs") as u64);
    let wait = || {
        std::thread::sleep(length);
        Ok(())
    };
    let through: Vec<SocketAddr> = [world.gateway].into_iter().chain(envoy.map(|envoy| envoy.at)).collect();
    let mut all: Vec<Rounds> = through.iter().map(|_| Rounds::default()).collect();
    for round in 0..options.number("rounds").max(1) {
        backends[0].pause();
        let bad = seen_while(&through, wait)?;
        backends[0].resume()?;
        let good = seen_while(&through, wait)?;
        for (own, (bad, good)) in all.iter_mut().zip(bad.into_iter().zip(good)) {
            own.last = good.of_all(good.answers.get(BAD).copied().unwrap_or(0));
            report.say(&format!("{test}: round {}: failed {} and {}", round + 1, bad.failed, good.failed));
            own.while_bad.add(bad);
            own.while_good.add(good);
        }
    }
    for (own, whose) in all.iter().zip(["", "Envoy, "]) {
        // An ejected endpoint is tried again after 10 s, then 20 s: a few failures each time.
        let aim = if has_outlier && whose.is_empty() { Aim::Under(1.0) } else { Aim::Told };
        let (bad, good) = (&own.while_bad, &own.while_good);
        report.note(test, &format!("{whose}failed while it is bad"), aim, bad.of_all(bad.failed), "%");
        report.note(test, &format!("{whose}failed while it is well"), Aim::Told, good.of_all(good.failed), "%");
        report.note(test, &format!("{whose}its share when it is well, last round"), Aim::Told, own.last, "%");
    }
    Ok(())
}

/// What is seen of something that goes and does not come back.
fn lost(test: &str, seconds: u64, what: impl FnOnce() -> Result<()>, world: &World, report: &mut Report) -> Result<()> {
    let all = seen_while(&[world.gateway], || {
        what()?;
        std::thread::sleep(Duration::from_secs(seconds));
        Ok(())
    })?;
    let mut seen = Seen::default();
    all.into_iter().for_each(|one| seen.add(one));
    report.note(test, "requests", Aim::Told, seen.total() as f64, "");
    report.note(test, "failed", Aim::Told, seen.failed as f64, "");
    report.note(test, "longest time without an answer", Aim::Told, seen.longest_gap, "ms");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_adds_up() {
        let one = |failed, gap| Seen { answers: [("a".to_string(), 3)].into(), failed, longest_gap: gap };
        let mut all = one(1, 5.0);
        all.add(one(1, 7.0));
        assert_eq!((all.total(), all.failed, all.longest_gap, all.answers["a"]), (8, 2, 7.0, 6));
        assert_eq!((all.of_all(2), Seen::default().of_all(0)), (25.0, 0.0));
    }
}
