//! What the schemas of the CRDs cannot say: refused at admission ([`crate::webhook`]), reported when it comes another way. Rules:
//! Istio's validation (reference control-plane §9), texts our own.

use crate::convert::{
    compilation::{model::compile, routes::gateway_api, telemetry, tokens},
    facts::{listener, policy},
    no_effect,
    objects::Mesh,
};
use karst_manifest::{
    Object, Problem, State, code,
    kinds::{self, *},
    parse::{self, Located},
    unsupported::{UnsupportedKind, unsupported},
};
use serde_json::Value;
use std::{path::PathBuf, sync::Arc};

/// A Service, host or filter is not found ([`code::CODES`]).
const NOT_FOUND: u16 = 307;

/// Everything that is wrong with an object by itself.
pub fn problems(object: Object, mesh: &Mesh) -> Vec<Problem> {
    // What it is for is there or comes later: its status says so.
    let refers = matches!(object, Object::XBackendTrafficPolicy(_));
    let one = Located { object, file: PathBuf::new(), line: 0 };
    let mut all = compile(&State { objects: vec![Arc::new(one)], ..State::default() }, mesh).1;
    all.retain(|problem| !refers || code::of(&problem.message) != Some(NOT_FOUND));
    all
}

/// What is to be said of an object as it is written.
pub fn written(kind: &str, group: &str, object: &Value) -> Vec<String> {
    match (kinds::known(kind, group), unsupported(kind, group)) {
        (Some((kind, ..)), _) => {
            let typed = parse::value(kind, object.clone()).map(|o| warnings(&o)).unwrap_or_default();
            no_effect::warnings(kind, object).into_iter().chain(typed).collect()
        }
        (None, Some(UnsupportedKind::Warned(text))) => vec![text.into()],
        (None, Some(UnsupportedKind::Refused(_)) | None) => vec![],
    }
}

/// What is valid, and yet hardly what was meant.
fn warnings(object: &Object) -> Vec<String> {
    match object {
        Object::AuthorizationPolicy(p) => policy::warnings(p),
        Object::RequestAuthentication(r) => tokens::warnings(r),
        Object::Gateway(g) => listener::idle_options(&g.spec.listeners),
        Object::ListenerSet(s) => listener::idle_options(&s.spec.listeners),
        Object::ServiceEntry(e) => export_to(e),
        Object::Telemetry(t) => telemetry::warnings(t),
        Object::HTTPRoute(r) => {
            gateway_api::warnings(r.spec.rules.iter().map(|r| (&r.filters[..], &r.backend_refs[..])))
        }
        Object::GRPCRoute(r) => {
            gateway_api::warnings(r.spec.rules.iter().map(|r| (&r.filters[..], &r.backend_refs[..])))
        }
        _ => vec![],
    }
}

fn export_to(entry: &ServiceEntry) -> Vec<String> {
    let names = |n: &&String| ![".", "*", "~", entry.metadata.namespace.as_str()].contains(&n.as_str());
    let others = entry.spec.export_to.iter().find(names);
    let text = |n| {
        format!(
            "spec.exportTo: {n:?} exports it to all namespaces: only \".\", \"*\" and \"~\" are supported [KARST-0206]"
        )
    };
    others.map(text).into_iter().collect()
}
