//! How soon `attachedRoutes` of a Gateway is right, and in how many writes.

use crate::{
    api::{Api, GATEWAY_API},
    objects::{self, EDGE, GATEWAY},
    options::Options,
    report::{Aim, Report},
    world::{self, PATIENCE, World},
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    sync::mpsc::{Receiver, channel},
    time::Instant,
};

/// Where routes and apps are.
const NAMESPACE: &str = "bench-attached";

/// One Gateway.
pub fn alone(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    measure("attached routes", &[GATEWAY], world, options, report)
}

/// Three at a time: each route has all of them for parents.
pub fn together(world: &mut World, options: &Options, report: &mut Report) -> Result<()> {
    let more = ["bench-b", "bench-c"];
    let mut api = world.proxy.api();
    more.iter().try_for_each(|name| world::gateway(&mut api, name))?;
    let result = measure("attached routes together", &[GATEWAY, more[0], more[1]], world, options, report);
    for name in more {
        api.delete(&format!("{GATEWAY_API}/namespaces/{EDGE}/gateways/{name}"))?;
    }
    result
}

fn measure(test: &str, gateways: &[&str], world: &World, options: &Options, report: &mut Report) -> Result<()> {
    let (count, mut api) = (options.number("attached-routes"), world.proxy.api());
    // Another namespace each time: the last one may still be going.
    let namespace = format!("{NAMESPACE}-{}", gateways.len());
    objects::namespace(&mut api, &namespace)?;
    // What is there already is told first.
    let mut watches = gateways.iter().map(|name| Watch::start(world.proxy.api(), name)).collect::<Result<Vec<_>>>()?;
    let before: Vec<u64> = watches.iter_mut().map(Watch::first).collect::<Result<_>>()?;
    let parents: Vec<Value> = gateways.iter().map(|name| objects::parent(name)).collect();
    let cpu = world.controller.cpu()?;
    report.say(&format!("{test}: {count} apps, each a Service and an HTTPRoute"));
    world.proxy.each(count, |api, number| {
        let name = format!("app-{number}");
        let service = objects::service(&name, &name, &[(80, 80), (443, 443)]);
        api.create(&objects::core(&namespace, "services"), &service)?;
        let rule = objects::rule(&format!("/{:08x}", number.wrapping_mul(0x9e37_79b9) & 0xffff_ffff), &name, 80);
        let route = objects::route(&name, &parents, &format!("{name}.example.com"), &[rule]);
        api.create(&objects::routes(&namespace), &route).map(drop)
    })?;
    let created = Instant::now();
    for (watch, before) in watches.iter_mut().zip(&before) {
        let (at, writes) = watch.until(before + count as u64)?;
        let what = |what: &str| format!("{} {what}", watch.name);
        let seconds = at.saturating_duration_since(created).as_secs_f64();
        report.note(test, &what("set-up, after the last one was created"), Aim::Told, seconds, "s");
        report.note(test, &what("writes of the status"), Aim::Told, writes as f64, "");
    }
    world.proxy.api().delete(&objects::routes(&namespace))?;
    let deleted = Instant::now();
    for (watch, before) in watches.iter_mut().zip(&before) {
        let (at, writes) = watch.until(*before)?;
        let what = |what: &str| format!("{} {what}", watch.name);
        let seconds = at.saturating_duration_since(deleted).as_secs_f64();
        report.note(test, &what("tear-down, after the last one was deleted"), Aim::Told, seconds, "s");
        report.note(test, &what("writes of the status, tear-down"), Aim::Told, writes as f64, "");
    }
    report.note(test, "controller, for all of it", Aim::Told, world.controller.cpu()? - cpu, "CPU s");
    report.note(test, "Gateways whose count was right", Aim::Exactly(gateways.len() as f64), watches.len() as f64, "");
    world.remove(&[namespace])
}

/// Events of one Gateway.
struct Watch {
    name: String,
    events: Receiver<(Instant, u64)>,
    ends_it: std::net::TcpStream,
}

impl Watch {
    fn start(api: Api, name: &str) -> Result<Self> {
        let list = format!("{GATEWAY_API}/namespaces/{EDGE}/gateways?fieldSelector=metadata.name={name}");
        let (lines, ends_it) = api.watch(&list)?;
        let (send, events) = channel();
        std::thread::spawn(move || {
            for line in lines {
                let now = Instant::now();
                let event: Value = serde_json::from_slice(&line).unwrap_or_default();
                let listeners = &event["object"]["status"]["listeners"];
                let attached = listeners[0]["attachedRoutes"].as_u64().unwrap_or(0);
                if send.send((now, attached)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name: name.into(), events, ends_it })
    }

    /// How many are attached now.
    fn first(&mut self) -> Result<u64> {
        Ok(self.events.recv_timeout(PATIENCE).with_context(|| format!("nothing of Gateway {}", self.name))?.1)
    }

    /// Waits for this many; gives when that was, and how many writes were seen until then.
    fn until(&mut self, wanted: u64) -> Result<(Instant, u64)> {
        let (mut writes, mut last) = (0, 0);
        loop {
            let Ok((at, attached)) = self.events.recv_timeout(PATIENCE) else {
                bail!("Gateway {} has {last} attached routes, not {wanted}, {} s later", self.name, PATIENCE.as_secs());
            };
            (writes, last) = (writes + 1, attached);
            if attached == wanted {
                return Ok((at, writes));
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.ends_it.shutdown(std::net::Shutdown::Both);
    }
}
