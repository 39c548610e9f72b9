//! ListenerSets with listeners of HTTPS, one to an app, each with routes of its own and the certificate of its namespace, which is
//! then another one.

use crate::{
    api::{Api, GATEWAY_API},
    https,
    objects::{self, EDGE, GATEWAY},
    options::Options,
    report::{Aim, Report, percentile},
    world::{PATIENCE, World},
};
use anyhow::{Context, Result, ensure};
use karst_e2e::link;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const TEST: &str = "listener sets";
/// Between two looks at what changes.
const LOOK: Duration = Duration::from_millis(20);

/// A namespace of them.
struct Place {
    name: String,
    /// The certificate that its listeners are to show, PEM.
    certificate: String,
}

impl Place {
    /// Makes it, with its certificate.
    fn make(api: &mut Api, number: usize) -> Result<Self> {
        let name = format!("bench-sets-{number}");
        objects::namespace(api, &name)?;
        let (data, certificate) = certificate(&name)?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "site" }, "type": "kubernetes.io/tls",
            "stringData": data,
        });
        api.create(&objects::core(&name, "secrets"), &secret)?;
        Ok(Self { name, certificate })
    }

    /// Gives it another certificate.
    fn rotate(&mut self, api: &mut Api) -> Result<()> {
        let (data, certificate) = certificate(&self.name)?;
        let secret = format!("{}/site", objects::core(&self.name, "secrets"));
        api.patch(&secret, &json!({ "stringData": data }))?;
        self.certificate = certificate;
        Ok(())
    }

    fn sets(&self) -> String {
        format!("{GATEWAY_API}/namespaces/{}/listenersets", self.name)
    }

    fn host(&self, set: usize) -> String {
        format!("set-{set}.{}.example.com", self.name)
    }

    /// Milliseconds until a set's route answers, with the certificate. (What answers is the gateway: there are no pods.)
    fn served(&self, world: &World, set: usize) -> Result<f64> {
        let (host, began) = (self.host(set), Instant::now());
        loop {
            let status = https::get(&link(), world.pod.at(443), &host, "/0", &self.certificate);
            if status.as_ref().is_ok_and(|status| *status != 404) {
                return Ok(began.elapsed().as_secs_f64() * 1e3);
            }
            ensure!(began.elapsed() < PATIENCE, "{host} is still answered {status:?} after {} s", PATIENCE.as_secs());
            std::thread::sleep(LOOK);
        }
    }
}

/// All of them.
pub fn run(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    let number = |name: &str| options.number(name).max(1);
    let (namespaces, sets, routes) = (number("set-namespaces"), number("sets"), number("set-routes"));
    let (world, mut api, count) = (&*world, world.proxy.api(), namespaces * sets);
    let known = api.get(&format!("{GATEWAY_API}/listenersets"))?;
    ensure!(known.is_some(), "the cluster has no kind ListenerSet: Gateway API 1.5 or later has");
    let mut all = (0..namespaces).map(|number| Place::make(&mut api, number)).collect::<Result<Vec<_>>>()?;
    let (of_controller, of_gateway) = (world.controller.cpu()?, world.process.cpu()?);
    report.say(&format!("{TEST}: {count} of them with {routes} routes each"));
    world.proxy.each(count, |api, number| make_set(api, &all[number / sets], number % sets, routes))?;
    let created = Instant::now();
    for place in &all {
        programmed(&mut api, place, sets, routes)?;
    }
    let took = created.elapsed().as_secs_f64();
    report.note(TEST, "ListenerSets", Aim::Told, count as f64, "");
    report.note(TEST, "all programmed and their routes counted, after the last", Aim::Told, took, "s");
    let attached = attached(&mut api, count)?;
    report.note(TEST, "attachedListenerSets of the Gateway", Aim::Exactly(count as f64), attached, "");
    // The last one of each namespace, by TLS.
    let served: Result<Vec<f64>> = all.iter().map(|place| place.served(world, sets - 1)).collect();
    report.note(TEST, "namespaces served by TLS", Aim::Exactly(namespaces as f64), served?.len() as f64, "");
    report.note(TEST, "controller, for all of it", Aim::Told, world.controller.cpu()? - of_controller, "CPU s");
    report.note(TEST, "gateway, for all of it", Aim::Told, world.process.cpu()? - of_gateway, "CPU s");

    let (before, mut times) = (world.controller.cpu()?, vec![]);
    for place in &mut all {
        place.rotate(&mut api)?;
        times.push(place.served(world, 0)?);
    }
    std::thread::sleep(Duration::from_secs(2));
    times.sort_by(f64::total_cmp);
    report.note(TEST, "new certificate shown, median", Aim::Told, percentile(&times, 50), "ms");
    report.note(TEST, "new certificate shown, at most", Aim::Told, percentile(&times, 100), "ms");
    let each = (world.controller.cpu()? - before) / namespaces as f64;
    report.note(TEST, "controller, for a new certificate", Aim::Told, each, "CPU s");
    std::thread::sleep(Duration::from_secs(20));
    report.note(TEST, "gateway's memory, idle", Aim::Told, world.process.memory()?, "MiB");
    world.remove(&all.into_iter().map(|place| place.name).collect::<Vec<_>>())
}

/// The data of a Secret with a certificate for all hosts of a namespace, and the certificate.
fn certificate(namespace: &str) -> Result<(Value, String)> {
    let made = rcgen::generate_simple_self_signed(vec![format!("*.{namespace}.example.com")])?;
    let certificate = made.cert.pem();
    Ok((json!({ "tls.crt": certificate, "tls.key": made.signing_key.serialize_pem() }), certificate))
}

/// A ListenerSet with one listener, its Service, and routes to it.
fn make_set(api: &mut Api, place: &Place, number: usize, routes: usize) -> Result<()> {
    let (name, host) = (format!("set-{number}"), place.host(number));
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
    api.create(&place.sets(), &set)?;
    api.create(&objects::core(&place.name, "services"), &objects::service(&name, &name, &[(80, 8080)]))?;
    let parent = json!({ "group": "gateway.networking.k8s.io", "kind": "ListenerSet", "name": name });
    for route in 0..routes {
        let rules = [objects::rule(&format!("/{route}"), &name, 80)];
        let object = objects::route(&format!("{name}-{route}"), std::slice::from_ref(&parent), &host, &rules);
        api.create(&objects::routes(&place.name), &object)?;
    }
    Ok(())
}

/// Waits until all ListenerSets of a namespace are programmed, and each has counted its routes.
fn programmed(api: &mut Api, place: &Place, count: usize, routes: usize) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let list = api.get(&place.sets())?.context("the list of ListenerSets")?;
        let found = list["items"].as_array().into_iter().flatten().filter(|set| is_programmed(set, routes)).count();
        if found >= count {
            return Ok(());
        }
        let (name, seconds) = (&place.name, PATIENCE.as_secs());
        ensure!(Instant::now() < end, "{found} of {count} ListenerSets of {name} are programmed after {seconds} s");
        std::thread::sleep(LOOK * 5);
    }
}

fn is_programmed(set: &Value, routes: usize) -> bool {
    let conditions = set["status"]["conditions"].as_array().into_iter().flatten();
    let is_so = conditions.into_iter().any(|c| c["type"] == "Programmed" && c["status"] == "True");
    is_so && set["status"]["listeners"][0]["attachedRoutes"] == routes
}

/// How many ListenerSets the Gateway has counted; waits for them.
fn attached(api: &mut Api, wanted: usize) -> Result<f64> {
    let (path, end) = (format!("{GATEWAY_API}/namespaces/{EDGE}/gateways/{GATEWAY}"), Instant::now() + PATIENCE);
    loop {
        let gateway = api.get(&path)?.context("the Gateway is gone")?;
        let seen = gateway["status"]["attachedListenerSets"].as_u64().unwrap_or(0);
        if seen == wanted as u64 || Instant::now() >= end {
            return Ok(seen as f64);
        }
        std::thread::sleep(LOOK * 5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_programmed_if_it_says_so_and_has_all_its_routes() {
        let set = |status: &str, routes: usize| {
            let conditions =
                [json!({ "type": "Accepted", "status": "True" }), json!({ "type": "Programmed", "status": status })];
            json!({ "status": { "conditions": conditions, "listeners": [{ "attachedRoutes": routes }] } })
        };
        let seen = [set("True", 2), set("False", 2), set("True", 1), json!({})].map(|set| is_programmed(&set, 2));
        assert_eq!(seen, [true, false, false, false]);
    }
}
