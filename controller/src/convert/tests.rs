//! Objects in, model out.

use super::*;
use crate::{
    convert::{objects::OWN_GROUP, status::Write},
    model::Model,
};

mod addresses;
mod backend_traffic;
mod datagrams;
mod deploys;
mod gateways;
mod golden;
mod listener_sets;
mod messages;
mod policies;
mod precedence;
mod revisions;
mod routes;
mod scopes;
mod services;
mod sessions;
mod statuses;
mod tcp_routes;
mod topology;
mod virtual_services;
mod work;
mod workloads;

use karst_manifest::{
    Problem, State, code,
    kinds::*,
    parse::{self, Located},
};
use karst_policy::{Connection, authorize};
use std::{collections::BTreeSet, sync::Arc};

pub(crate) fn mesh() -> Mesh {
    Mesh {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
        network: String::new(),
        root_namespace: "istio-system".into(),
        revision: Revision::default(),
        virtual_services_are_for: vec!["*".into()],
        destination_rules_are_for: vec!["*".into()],
        privileged_parameters: false,
    }
}
fn run(text: &str) -> (Model, Vec<Problem>) {
    let mut s = State {
        objects: parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(std::sync::Arc::new).collect(),
        ..State::default()
    };
    s.enrolled.insert("a/p".into());
    let (model, problems) = compile(&s, &mesh());
    for p in &problems {
        assert!(code::of(&p.message).is_some(), "has no code: {p}");
    }
    (model, problems)
}
const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {app: web, version: v2}}\nspec: {nodeName: n, serviceAccountName: sa, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}\n---\n";

fn policy(spec: &str) -> String {
    format!(
        "{POD}apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: ap, namespace: a}}\nspec: {spec}\n"
    )
}

/// The rows of docs/refused.md: object, spec, annotations, by whom, text. The cluster's tests try the same on an API server.
fn refused() -> Vec<[String; 5]> {
    let doc = include_str!("../../../docs/refused.md");
    let row = |l: &str| {
        let cells: Vec<&str> = l.split('|').map(str::trim).collect();
        let [_, _, kind, spec, by, text, _] = cells[..] else { panic!("{l}") };
        let codes: Vec<&str> = spec.split('`').skip(1).step_by(2).collect();
        let annotations = codes.get(1).copied().unwrap_or("{}");
        [kind, codes[0], annotations, by, text.trim_matches('`')].map(String::from)
    };
    doc.lines().filter(|l| l.starts_with("| ") && l.as_bytes()[2].is_ascii_digit()).map(row).collect()
}

/// Everything that a code can stand in: the sources, and the rules of the CRDs.
fn sources(dir: &std::path::Path, out: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "yaml")
            && !["code.rs", "tests.rs"].iter().any(|f| path.ends_with(f))
        {
            out.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: a, uid: u, generation: 3}\nspec: {gatewayClassName: istio-waypoint, infrastructure: {labels: {team: x}}, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\nSTATUS\n---\n";
const BOUND: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: NS, labels: {istio.io/use-waypoint: w, istio.io/use-waypoint-namespace: a}}\nspec: {clusterIP: 10.96.0.1}\n---\n";
const READY: &str = "status: {addresses: [{type: Hostname, value: w.a.svc.cluster.local}]}";

fn written_with(state: &State, template: &Template, found: Option<&[finding::Finding]>) -> Writes {
    let mut c = Compiler::new(mesh());
    c.update(state);
    c.writes(state, template, found, "2026-01-01T00:00:00Z")
}

fn written(text: &str) -> Writes {
    let objects = parse::file("t.yaml".as_ref(), text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    let state = State { objects, ..State::default() };
    let template = Template { image: "hub/waypoint:1".into(), pull_policy: "Never".into(), ..Template::default() };
    let found = findings(&state, &compile(&state, &mesh()).0, &mesh());
    written_with(&state, &template, Some(&found))
}

/// What a condition says that is False and no refusal.
const REFERS: [&str; 3] = ["No errors found", "see Accepted", "see the other conditions"];

/// Object, type, status, reason of each condition that is written.
fn conditions(w: &Writes) -> Vec<String> {
    let one = |w: &Write| {
        let of = w.status["conditions"].as_array().cloned().unwrap_or_default();
        let to = w.to.to_string();
        for c in of.iter().filter(|c| c["status"] == "False") {
            let text = c["message"].as_str().unwrap();
            assert!(code::of(text).is_some() || REFERS.contains(&text), "has no code: {c}");
        }
        of.into_iter().map(move |c| format!("{to}: {} {} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
    };
    w.statuses.iter().flat_map(one).collect()
}

const INGRESS: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: gw, namespace: edge, labels: {istio: ingressgateway}}\nspec: {nodeName: n}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.9}], conditions: [{type: Ready, status: 'True'}]}\n---\n";
const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n";

/// Istio's Gateway for the pods of [`INGRESS`].
fn servers(name: &str, list: &[(u16, &str)]) -> String {
    let one = |(i, (port, host)): (usize, &(u16, &str))| {
        format!("{{port: {{number: {port}, name: p{i}, protocol: HTTP}}, hosts: ['{host}']}}")
    };
    let all: Vec<String> = list.iter().enumerate().map(one).collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: a}}\nspec: {{selector: {{istio: ingressgateway}}, servers: [{}]}}\n---\n",
        all.join(", ")
    )
}

fn virtual_service(meta: &str, spec: &str) -> String {
    format!("apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{{meta}}}\nspec: {{{spec}}}\n---\n")
}

/// What the names of the virtual hosts of a gateway's port begin with.
fn virtual_hosts(m: &Model, port: u32) -> String {
    let listeners = &m.gateways["edge/gw"].listeners;
    let mut all: Vec<_> = listeners.iter().filter(|l| l.port == port).map(|l| l.routes.clone()).collect();
    all.dedup();
    assert_eq!(all.len(), 1, "{listeners:?}");
    all.remove(0)
}

/// Where the rules of a table come from, in order.
fn origins(table: Option<&karst_api::route::Table>) -> Vec<String> {
    let name = |o: &str| o.trim_start_matches("VirtualService a/").to_string();
    table.into_iter().flat_map(|t| &t.http).map(|r| name(&r.origin)).collect()
}
