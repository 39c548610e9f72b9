//! What is done with calls besides sending them on (limits, faults, mirrors, breakers …), with the object that says so.

use crate::{
    answer::{Object, Outcome, Stage},
    l4::step,
    way::Way,
    world::World,
};
use karst_manifest::Object as Read;
use karst_waypoint::decision::{Setting, SettingKind};

/// Adds a step for each. `service`: key of the destination whose settings they are, `namespace/host`.
pub(crate) fn shown(world: &World, way: &mut Way, settings: &[Setting], service: &str) {
    for setting in settings {
        let object = match setting.origin.is_empty() {
            false => world.objects.of_origin(&setting.origin),
            true => of_destination(world, service, setting.kind),
        };
        way.push(step(Stage::Settings, Outcome::Pass, object, setting.text.clone()));
    }
}

/// The DestinationRule or BackendTLSPolicy of a service: those of its own namespace before others.
fn of_destination(world: &World, service: &str, kind: SettingKind) -> Option<Object> {
    let (namespace, host) = service.split_once('/')?;
    let short = host.split('.').next().unwrap_or_default();
    if kind == SettingKind::Tls {
        let policies = world.objects.all("BackendTLSPolicy").find(|o| match &o.object {
            Read::BackendTLSPolicy(p) => {
                p.metadata.namespace == namespace && p.spec.target_refs.iter().any(|t| t.name == short)
            }
            _ => false,
        });
        if let Some(policy) = policies {
            return Some(crate::objects::shown(policy));
        }
    }
    let is_for = |o: &&std::sync::Arc<karst_manifest::parse::Located>| match &o.object {
        Read::DestinationRule(rule) => names(&rule.spec.host, &rule.metadata.namespace, namespace, host),
        _ => false,
    };
    let mut all: Vec<_> = world.objects.all("DestinationRule").filter(is_for).collect();
    all.sort_by_key(|o| (o.object.meta().namespace != namespace, o.object.meta().name.clone()));
    all.first().map(|o| crate::objects::shown(o))
}

/// Does a host, as objects of a namespace write it, stand for the host of a service of another namespace?
pub(crate) fn names(written: &str, written_in: &str, namespace: &str, host: &str) -> bool {
    let short = host.split('.').next().unwrap_or_default();
    let wild = written.strip_prefix('*').is_some_and(|end| host.ends_with(end));
    written == host
        || wild
        || host.strip_prefix(written).is_some_and(|rest| rest.starts_with(".svc."))
        || (written == short && written_in == namespace)
}
