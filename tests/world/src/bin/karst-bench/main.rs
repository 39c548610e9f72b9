//! `cargo xtask bench l4` and `l7`: all variants of a case interleaved in one run, medians and spread.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod l4;
mod l7;

use anyhow::{Context, Result, bail, ensure};
use karst_world::{Pod, bin};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::{Child, Stdio},
};

/// What it takes, each as --NAME=VALUE; `cargo xtask bench l4 --help` and `l7 --help` explain them.
const ARGS: [&str; 8] = ["rounds", "secs", "only", "variants", "ztunnel", "envoy", "waypoint", "report"];

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
        _ => bail!("usage: karst-bench l4|l7 [--NAME=VALUE]..."),
    };
    let rows = samples.rows();
    print(&rows, base);
    if let Some(p) = o.text("report") {
        fs::write(p, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(())
}

/// How to measure.
struct Opts {
    given: BTreeMap<String, String>,
    rounds: usize,
    /// Seconds of each measurement.
    secs: f64,
    /// Only cases whose name contains this.
    only: String,
}

impl Opts {
    fn new(given: BTreeMap<String, String>) -> Result<Self> {
        let number = |k: &str, default: f64| match given.get(k) {
            None => Ok(default),
            Some(v) => v.parse().with_context(|| format!("--{k}={v} is no number")),
        };
        let (rounds, secs) = (number("rounds", 5.0)?, number("secs", 3.0)?);
        ensure!(rounds >= 1.0 && secs > 0.0, "--rounds must be at least 1, --secs more than 0");
        let only = given.get("only").cloned().unwrap_or_default();
        Ok(Self { given, rounds: rounds as usize, secs, only })
    }
    fn text(&self, k: &str) -> Option<&str> {
        self.given.get(k).map(String::as_str).filter(|v| !v.is_empty())
    }
    fn skips(&self, variant: &str) -> bool {
        self.text("variants").is_some_and(|v| !v.split(',').any(|x| x == variant))
    }
}

/// A process of the benchmark's, ended with it.
struct App(Child);
impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Default)]
struct Samples(BTreeMap<(String, String, &'static str), Vec<f64>>);

impl Samples {
    fn add(&mut self, case: &str, variant: &str, unit: &'static str, v: f64) {
        self.0.entry((case.into(), variant.into(), unit)).or_default().push(v);
    }
    fn rows(&self) -> Vec<Value> {
        let row = |((case, variant, unit), v): (&(String, String, &'static str), &Vec<f64>)| {
            let mut v = v.clone();
            v.sort_by(f64::total_cmp);
            let median = (v[(v.len() - 1) / 2] + v[v.len() / 2]) / 2.0;
            serde_json::json!({ "case": case, "variant": variant, "unit": unit, "median": median, "low": v[0], "high": v[v.len() - 1] })
        };
        self.0.iter().map(row).collect()
    }
}

/// The servers of a pod.
fn serve(p: &Pod) -> Result<App> {
    let c =
        p.command(bin("meshbench")).args(["serve", "--bind", "::", "--threads", "2"]).stderr(Stdio::null()).spawn()?;
    Ok(App(c))
}

/// One measurement: `kind` of meshbench with so many connections and these arguments besides. `cpu`: whose counts.
fn measure(
    s: &mut Samples,
    o: &Opts,
    case: &str,
    variant: &str,
    (client, to): (&Pod, SocketAddr),
    cpu: &[u32],
    (kind, n, more): (&str, usize, &[&str]),
) -> Result<()> {
    let mut args = vec![kind.to_string()];
    for (k, v) in [("--to", to.to_string()), ("--conns", n.to_string()), ("--secs", o.secs.to_string())] {
        args.extend([k.into(), v]);
    }
    if kind == "rr" {
        args.extend(["--proto".into(), "http".into()]);
    }
    args.extend(more.iter().map(ToString::to_string));
    let before = cpu_seconds(cpu);
    let out = client.command(bin("meshbench")).args(&args).output()?;
    let used = cpu_seconds(cpu) - before;
    let j: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("{case} {variant}: {}", String::from_utf8_lossy(&out.stderr)))?;
    let f = |k: &str| j[k].as_f64().unwrap_or(0.0);
    if kind == "bulk" {
        s.add(case, variant, "Gbit/s", f("gbit_s"));
        if !cpu.is_empty() {
            s.add(case, variant, "CPU s per GB", used / (f("bytes") / 1e9));
        }
    } else {
        s.add(case, variant, "per second", f("rps"));
        s.add(case, variant, "p50 us", f("p50_us"));
        s.add(case, variant, "p99 us", f("p99_us"));
        if !cpu.is_empty() {
            // Warm-up included in both.
            let all = f("requests") * (f("secs") + 0.5) / f("secs");
            s.add(case, variant, "CPU s per 10,000", used / all * 1e4);
        }
    }
    if let Some(e) = j["errors"].as_object().filter(|e| !e.is_empty()) {
        println!("   errors: {e:?}");
        s.add(case, variant, "errors", e.values().filter_map(Value::as_f64).sum());
    }
    Ok(())
}

fn cpu_seconds(pids: &[u32]) -> f64 {
    let one = |p: &u32| -> Option<f64> {
        let t = fs::read_to_string(format!("/proc/{p}/stat")).ok()?;
        let f: Vec<&str> = t.rsplit_once(')')?.1.split_whitespace().collect();
        Some((f[11].parse::<f64>().ok()? + f[12].parse::<f64>().ok()?) / 100.0)
    };
    pids.iter().filter_map(one).sum()
}

fn rss_kib(pid: u32) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    t.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// The table; the last column compares with the variant `base` of the same case.
fn print(rows: &[Value], base: &str) {
    let get = |r: &Value, k: &str| r[k].as_str().unwrap_or("").to_string();
    let of_base = |case: &str, unit: &str| {
        rows.iter()
            .find(|r| get(r, "case") == case && get(r, "unit") == unit && get(r, "variant") == base)
            .and_then(|r| r["median"].as_f64())
    };
    println!(
        "\n{:<18} {:<18} {:<20} {:>10} {:>10} {:>10} {:>9}",
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
        println!(
            "{case:<18} {:<18} {unit:<20} {m:>10.2} {:>10.2} {:>10.2} {ratio:>9}",
            get(r, "variant"),
            r["low"].as_f64().unwrap_or(0.0),
            r["high"].as_f64().unwrap_or(0.0)
        );
    }
}
