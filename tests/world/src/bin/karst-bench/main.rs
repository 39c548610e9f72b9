//! `cargo xtask bench l4`, `l7` and `mesh`: all variants of a case interleaved in one run, medians and spread.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod envoy;
mod l4;
mod l7;
mod measure;
mod mesh;

use anyhow::{Context, Result, bail};
use measure::Opts;
use serde_json::Value;
use std::{collections::BTreeMap, fs};

/// What it takes, each as --NAME=VALUE; `cargo xtask bench l4 --help`, `l7 --help` and `mesh --help` explain them.
const ARGS: [&str; 16] = [
    "rounds",
    "secs",
    "processes",
    "only",
    "variants",
    "ztunnel",
    "envoy",
    "waypoint",
    "services",
    "pods",
    "nodes",
    "called",
    "report",
    "access-log",
    "wide",
    "protocols",
];

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let mut given = BTreeMap::new();
    for a in args {
        let known = a.strip_prefix("--").and_then(|a| a.split_once('=')).filter(|(k, _)| ARGS.contains(k));
        let (k, v) = known.with_context(|| format!("{a}: use --NAME=VALUE with one of {}", ARGS.join(", ")))?;
        given.insert(k.to_string(), v.to_string());
    }
    let o = Opts::new(given)?;
    let (samples, base) = match what.as_str() {
        "l4" => (l4::run(&o)?, "relay"),
        "l7" => (l7::run(&o)?, "envoy"),
        "mesh" => (mesh::run(&o)?, "all"),
        _ => bail!("usage: karst-bench l4|l7|mesh [--NAME=VALUE]..."),
    };
    let rows = samples.rows();
    print(&rows, base);
    if let Some(p) = o.text("report") {
        fs::write(p, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

/// The table; the last column but one compares with the variant `base` of the same case, the last one with the goal.
fn print(rows: &[Value], base: &str) {
    let get = |r: &Value, k: &str| r[k].as_str().unwrap_or("").to_string();
    let of_base = |case: &str, unit: &str| {
        rows.iter()
            .find(|r| get(r, "case") == case && get(r, "unit") == unit && get(r, "variant") == base)
            .and_then(|r| r["median"].as_f64())
    };
    println!(
        "\n{:<18} {:<18} {:<20} {:>10} {:>10} {:>10} {:>9}  goal",
        "case",
        "variant",
        "unit",
        "median",
        "low",
        "high",
        format!("to {base}")
    );
    for r in rows {
        let (case, unit, m) = (get(r, "case"), get(r, "unit"), r["median"].as_f64().unwrap_or(0.0));
        let ratio = of_base(&case, &unit).map(|x| format!("{:.2}", m / x)).unwrap_or_default();
        let verdict = |goal: f64| format!("  {goal} {}", if m <= goal { "met" } else { "NOT MET" });
        let goal = r["goal"].as_f64().map(verdict).unwrap_or_default();
        println!(
            "{case:<18} {:<18} {unit:<20} {m:>10.2} {:>10.2} {:>10.2} {ratio:>9}{goal}",
            get(r, "variant"),
            r["low"].as_f64().unwrap_or(0.0),
            r["high"].as_f64().unwrap_or(0.0)
        );
    }
}
