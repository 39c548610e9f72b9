//! Writes to memory that threads share, in what carries connections.
//!
//! A worker has its own runtime, tunnels, pools and tables, so that sixteen of them serve sixteen times what one does. A word that
//! each request writes, and every worker, moves from core to core each time instead. Machines here have two cores, where that hardly
//! shows; so the places are counted where they are written down. `KNOWN` has those that there are, by how often they are passed. Whoever
//! adds one makes the word the worker's own, or says here how often it is written.
//!
//! What is counted is text: the names below in product code. A reference count that is shared (`Arc::clone`) has no name of its
//! own; but for snapshots, whose every look takes a lock and such a count.

use super::modules;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Writes of atomics, locks, and looks at the newest snapshot.
const WRITES: &[&str] = &[
    ".fetch_add(",
    ".fetch_sub(",
    ".fetch_max(",
    ".fetch_min(",
    ".fetch_or(",
    ".fetch_and(",
    ".fetch_xor(",
    ".fetch_update(",
    ".compare_exchange",
    ".store(",
    ".lock()",
    ".snapshot()",
];

/// How the tests at the end of a file begin.
const TESTS: &[&str] = &["\nmod tests {", "\npub(crate) mod tests {"];

/// What carries connections.
const HOT: &[&str] = &["crates/rt/src", "crates/hbone/src", "crates/proxy/src", "ztunnel/src", "waypoint/src"];

/// How often the most frequent of a file's writes happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Often {
    /// For each piece of a byte stream.
    Piece,
    /// For each request, datagram, DNS query or line of the access log.
    Request,
    /// For each connection or stream that begins or ends.
    Connection,
    /// When something has failed, is full, or is limited; when a policy, pod or configuration has changed; for pages.
    Seldom,
}

/// Of each file that has some: how often, and in how many places.
const KNOWN: &[(&str, Often, usize)] = &[
    ("waypoint/src/telemetry/carried.rs", Often::Piece, 2),
    ("crates/proxy/src/requests.rs", Often::Request, 4),
    ("crates/rt/src/log.rs", Often::Request, 8),
    ("waypoint/src/authz/external/counts.rs", Often::Request, 1),
    ("waypoint/src/authz/token_cache.rs", Often::Request, 1),
    ("waypoint/src/cluster/balance.rs", Often::Request, 1),
    ("waypoint/src/cluster/endpoint.rs", Often::Request, 3),
    ("waypoint/src/cluster/endpoint_set.rs", Often::Request, 17),
    ("waypoint/src/cluster/retry_rate.rs", Often::Request, 1),
    ("waypoint/src/downstream/udp/counts.rs", Often::Request, 4),
    ("waypoint/src/http/permits.rs", Often::Request, 4),
    ("waypoint/src/http/reply.rs", Often::Request, 4),
    ("waypoint/src/quota/counts.rs", Often::Request, 1),
    ("waypoint/src/quota/table.rs", Often::Request, 3),
    ("waypoint/src/route/limit.rs", Often::Request, 2),
    ("waypoint/src/route/sequence.rs", Often::Request, 2),
    ("waypoint/src/spans/queue.rs", Often::Request, 1),
    ("waypoint/src/telemetry/metrics.rs", Often::Request, 9),
    ("ztunnel/src/dns.rs", Often::Request, 5),
    ("crates/proxy/src/state/asked.rs", Often::Connection, 2),
    ("crates/proxy/src/traffic.rs", Often::Connection, 4),
    ("crates/proxy/src/workers.rs", Often::Connection, 2),
    ("crates/rt/src/admission.rs", Often::Connection, 7),
    ("crates/rt/src/socket.rs", Often::Connection, 1),
    // Its own worker's entries alone; the next process reads them.
    ("crates/rt/src/survive/table.rs", Often::Connection, 1),
    ("waypoint/src/downstream/accept.rs", Often::Connection, 4),
    ("waypoint/src/downstream/edge.rs", Often::Connection, 1),
    ("waypoint/src/downstream/requests.rs", Often::Connection, 1),
    ("waypoint/src/downstream/tcp.rs", Often::Connection, 1),
    ("waypoint/src/downstream/tunnel.rs", Often::Connection, 2),
    ("waypoint/src/downstream/udp/choose.rs", Often::Connection, 2),
    ("waypoint/src/downstream/udp/serve.rs", Often::Connection, 3),
    ("waypoint/src/telemetry/request_log.rs", Often::Connection, 3),
    ("waypoint/src/upstream/open.rs", Often::Connection, 4),
    ("waypoint/src/worker.rs", Often::Connection, 1),
    ("ztunnel/src/affinity.rs", Often::Connection, 2),
    ("ztunnel/src/connect.rs", Often::Connection, 2),
    ("ztunnel/src/conns.rs", Often::Connection, 7),
    ("ztunnel/src/inbound.rs", Often::Connection, 7),
    ("ztunnel/src/outbound.rs", Often::Connection, 2),
    ("ztunnel/src/worker.rs", Often::Connection, 5),
    ("crates/hbone/src/revocation.rs", Often::Seldom, 4),
    ("crates/proxy/src/demand.rs", Often::Seldom, 3),
    ("crates/proxy/src/discovery.rs", Often::Seldom, 4),
    ("crates/proxy/src/dry_run.rs", Often::Seldom, 2),
    ("crates/proxy/src/flows.rs", Often::Seldom, 1),
    ("crates/proxy/src/refusals.rs", Often::Seldom, 2),
    ("crates/proxy/src/tap.rs", Often::Seldom, 7),
    ("crates/rt/src/apart.rs", Often::Seldom, 1),
    ("crates/rt/src/on_wake.rs", Often::Seldom, 1),
    ("crates/rt/src/process.rs", Often::Seldom, 1),
    ("crates/rt/src/ready.rs", Often::Seldom, 3),
    ("crates/rt/src/turns.rs", Often::Seldom, 1),
    ("waypoint/src/downstream/conns.rs", Often::Seldom, 2),
    // For fuzzing alone.
    ("waypoint/src/fuzz.rs", Often::Seldom, 1),
    ("waypoint/src/live.rs", Often::Seldom, 2),
    ("waypoint/src/spans/call.rs", Often::Seldom, 2),
    ("waypoint/src/spans/export.rs", Often::Seldom, 3),
    ("waypoint/src/spans/health.rs", Often::Seldom, 3),
    ("waypoint/src/upstream/reopen.rs", Often::Seldom, 2),
    ("ztunnel/src/control.rs", Often::Seldom, 5),
    ("ztunnel/src/handover/desk.rs", Often::Seldom, 3),
    ("ztunnel/src/handover/resume.rs", Often::Seldom, 6),
    ("ztunnel/src/lib.rs", Often::Seldom, 1),
    ("ztunnel/src/mesh_config.rs", Often::Seldom, 3),
    ("ztunnel/src/metrics.rs", Often::Seldom, 3),
    ("ztunnel/src/relay.rs", Often::Seldom, 3),
    ("ztunnel/src/serve.rs", Often::Seldom, 1),
    ("ztunnel/src/survival/revive.rs", Often::Seldom, 2),
];

/// Checks every file of the hot crates.
pub fn check(meta: &Value) -> Result<()> {
    let workspace = Path::new(meta["workspace_root"].as_str().unwrap_or_default());
    let read = |file: &Path| fs::read_to_string(workspace.join(file)).ok();
    let mut files = BTreeSet::new();
    let packages = meta["packages"].as_array().into_iter().flatten();
    for root in packages.flat_map(|package| modules::roots(workspace, package)) {
        if HOT.iter().any(|dir| root.starts_with(dir)) {
            files.extend(modules::read(root, &read)?.into_iter().map(|module| module.file));
        }
    }
    let mut found = BTreeMap::new();
    for file in files {
        let count = writes(&fs::read_to_string(workspace.join(&file))?);
        if count > 0 {
            found.insert(file.display().to_string(), count);
        }
    }
    let wrong = judge(KNOWN, &found);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The lines of a file, without comments and the tests at its end.
pub(super) fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = TESTS.iter().filter_map(|head| text.find(head)).min();
    let product = end.map_or(text, |end| &text[..end]);
    product.lines().map(|line| line.split("//").next().unwrap_or_default())
}

/// How many there are in a file.
fn writes(text: &str) -> usize {
    code(text).map(|line| WRITES.iter().map(|name| line.matches(name).count()).sum::<usize>()).sum()
}

/// What is wrong, by what the table says.
fn judge(known: &[(&str, Often, usize)], found: &BTreeMap<String, usize>) -> Vec<String> {
    let mut wrong = vec![];
    for (file, count) in found {
        match known.iter().find(|(name, ..)| name == file) {
            Some((_, _, n)) if n == count => {}
            Some((_, _, n)) if count < n => {
                wrong.push(format!("{file}: write {count} for {n} in xtask/src/lint/shared.rs"));
            }
            other => {
                let n = other.map_or(0, |(_, _, n)| *n);
                wrong.push(format!(
                    "{file}: {count} writes to memory that threads share, where {n} are known: make what is written the worker's own, or say in xtask/src/lint/shared.rs how often it is"
                ));
            }
        }
    }
    let gone = known.iter().filter(|(name, ..)| !found.contains_key(*name));
    wrong.extend(gone.map(|(name, ..)| format!("{name}: has none any more: take it out of xtask/src/lint/shared.rs")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_the_product_are_counted() {
        let text = "fn f() { a.fetch_add(1, Relaxed); b.lock().x(); } // c.store(1)\nfn g(w: &W) { w.snapshot(); w.load(); }\n#[cfg(test)]\nmod tests {\n    fn t() { a.store(2); }\n}\n";
        assert_eq!(writes(text), 3);
        assert_eq!(writes(&text.replace("mod tests", "pub(crate) mod tests")), 3);
        assert_eq!(writes("fn f() { x.load(Relaxed) }\n"), 0);
    }

    #[test]
    fn a_hot_path_gains_none() {
        let known = [("a.rs", Often::Request, 2), ("b.rs", Often::Seldom, 1), ("c.rs", Often::Connection, 3)];
        let found = |all: &[(&str, usize)]| -> BTreeMap<String, usize> {
            all.iter().map(|(name, n)| (name.to_string(), *n)).collect()
        };
        assert!(judge(&known, &found(&[("a.rs", 2), ("b.rs", 1), ("c.rs", 3)])).is_empty());
        let wrong = judge(&known, &found(&[("a.rs", 3), ("b.rs", 1), ("c.rs", 2), ("d.rs", 1)]));
        let starts = |text: &str| wrong.iter().any(|line| line.starts_with(text));
        assert!(starts("a.rs: 3 writes to memory that threads share, where 2 are known: make"), "{wrong:?}");
        assert!(starts("c.rs: write 2 for 3 in") && starts("d.rs: 1 writes") && wrong.len() == 3, "{wrong:?}");
        let gone = judge(&known, &found(&[("a.rs", 2), ("c.rs", 3)]));
        assert!(gone.len() == 1 && gone[0].starts_with("b.rs: has none any more"), "{gone:?}");
    }

    /// Each file once, and the frequent ones first: that is what is read here.
    #[test]
    fn the_table_is_in_order() {
        let order = |often: Often| {
            [Often::Piece, Often::Request, Often::Connection, Often::Seldom].iter().position(|o| *o == often)
        };
        let rows: Vec<_> = KNOWN.iter().map(|(file, often, _)| (order(*often), *file)).collect();
        assert!(rows.is_sorted(), "by how often, then by name");
        let mut files: Vec<_> = KNOWN.iter().map(|(file, ..)| file).collect();
        files.sort();
        files.dedup();
        assert_eq!(files.len(), KNOWN.len());
    }
}
