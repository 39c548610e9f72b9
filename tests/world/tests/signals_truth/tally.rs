//! What an application has counted itself, and what ztunnel's metrics say of the same.

use karst_world::World;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Requests; messages of gRPC in them, and in their answers.
pub type Counts = [u64; 3];

/// What tells requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    pub client: usize,
    pub is_grpc: bool,
    /// 0: there was no answer.
    pub code: u16,
    pub grpc_status: Option<u16>,
    /// As `response_flags` has it.
    pub flag: &'static str,
}

#[derive(Default)]
struct Told {
    served: BTreeMap<Kind, Counts>,
    /// By client and reason.
    given_up: BTreeMap<(usize, &'static str), u64>,
}

/// Of one application.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Told>>);

impl Tally {
    /// The application has served a request, as far as its kind says.
    pub fn served(&self, kind: Kind, request_messages: u64, response_messages: u64) {
        let mut told = self.0.lock().unwrap();
        let counts = told.served.entry(kind).or_default();
        let more = if kind.is_grpc { [1, request_messages, response_messages] } else { [1, 0, 0] };
        counts.iter_mut().zip(more).for_each(|(count, n)| *count += n);
    }

    /// One that is not gRPC.
    pub fn http(&self, client: usize, code: u16, flag: &'static str) {
        self.served(Kind { client, is_grpc: false, code, grpc_status: None, flag }, 0, 0);
    }

    /// A client has said something after which nobody can go on reading.
    pub fn gave_up(&self, client: usize, reason: &'static str) {
        *self.0.lock().unwrap().given_up.entry((client, reason)).or_default() += 1;
    }

    /// All requests.
    pub fn requests(&self) -> u64 {
        self.0.lock().unwrap().served.values().map(|counts| counts[0]).sum()
    }

    /// The flags of which it has some.
    pub fn flags(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().served.keys().map(|kind| kind.flag).collect()
    }
}

/// Counts by what they are of.
type Page = BTreeMap<String, Counts>;

/// What a node's ztunnel must say, when these are the applications of node 0 and of node 1.
fn wanted(tallies: &[Tally; 2], node: usize) -> Page {
    let mut page = Page::new();
    for (app, tally) in tallies.iter().enumerate() {
        let told = tally.0.lock().unwrap();
        for (kind, counts) in &told.served {
            let Kind { client, is_grpc, code, grpc_status, flag } = kind;
            let protocol = if *is_grpc { "grpc" } else { "http" };
            let status = grpc_status.map(|s| s.to_string()).unwrap_or_default();
            for (reporter, at) in [("source", *client), ("destination", app)] {
                if at == node {
                    let key = format!("{reporter} client{client} app{app} {protocol} {code} '{status}' {flag}");
                    page.insert(key, *counts);
                }
            }
        }
        for ((client, reason), count) in &told.given_up {
            // One process reads it once, also where it stands at both sides.
            if *client == node || app == node {
                page.entry(format!("gave up: {reason}")).or_default()[0] += count;
            }
        }
    }
    page
}

/// A label's value.
fn label<'a>(line: &'a str, name: &str) -> &'a str {
    let value = line.split_once(&format!("{name}=\"")).map(|(_, rest)| rest);
    value.and_then(|v| v.split_once('"')).map_or("", |(value, _)| value)
}

/// What a line counts.
fn count(line: &str) -> u64 {
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// What a node's ztunnel says; and how many of its connections are open.
fn said(w: &World, node: usize) -> (Page, u64) {
    let (_, text) = w.get(node, 15020, "/metrics").unwrap();
    let lines = |name: &'static str| text.lines().filter(move |l| l.starts_with(name));
    let mut page = Page::new();
    for (place, name) in ["istio_requests_total{", "istio_request_messages_total{", "istio_response_messages_total{"]
        .into_iter()
        .enumerate()
    {
        for line in lines(name) {
            let client = label(line, "source_principal").rsplit('/').next().unwrap_or_default();
            let app = label(line, "destination_service").split('.').next().unwrap_or_default();
            let key = format!(
                "{} {client} {app} {} {} '{}' {}",
                label(line, "reporter"),
                label(line, "request_protocol"),
                label(line, "response_code"),
                label(line, "grpc_response_status"),
                label(line, "response_flags"),
            );
            page.entry(key).or_default()[place] += count(line);
        }
    }
    for line in lines("karst_http_signals_given_up_total{") {
        page.insert(format!("gave up: {}", label(line, "reason")), [count(line), 0, 0]);
    }
    page.retain(|_, counts| *counts != [0; 3]);
    let all = |name| lines(name).map(count).sum::<u64>();
    let (opened, closed) = (all("istio_tcp_connections_opened_total{"), all("istio_tcp_connections_closed_total{"));
    (page, opened.abs_diff(closed))
}

/// Where they differ: none, when all connections have ended and each count is the application's own.
pub fn differences(w: &World, tallies: &[Tally; 2]) -> Vec<String> {
    let mut all = vec![];
    for node in 0..2 {
        let (said, open) = said(w, node);
        let wanted = wanted(tallies, node);
        if open > 0 {
            all.push(format!("node {node}: {open} connections are open"));
        }
        let mut keys: Vec<&String> = said.keys().chain(wanted.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys.into_iter().filter(|k| said.get(*k) != wanted.get(*k)) {
            let of = |page: &Page| page.get(key).copied().unwrap_or_default();
            all.push(format!("node {node}: {key}: applications {:?}, ztunnel {:?}", of(&wanted), of(&said)));
        }
    }
    all
}
