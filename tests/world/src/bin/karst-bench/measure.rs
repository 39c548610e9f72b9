//! Measurements with meshbench, and what becomes of them.

use anyhow::{Context, Result, ensure};
use karst_world::{Pod, bin};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::{Child, Stdio},
};

/// How to measure.
pub struct Opts {
    given: BTreeMap<String, String>,
    /// Times that each case is measured.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub secs: f64,
    /// Processes of each build, which take turns by round: where a build's code and heap come to lie differs from start
    /// to start, and by more than two builds differ.
    pub processes: usize,
    /// Only cases whose name contains this.
    pub only: String,
}

impl Opts {
    /// Reads what is given.
    pub fn new(given: BTreeMap<String, String>) -> Result<Self> {
        let number = |k: &str, default: f64| match given.get(k) {
            None => Ok(default),
            Some(v) => v.parse().with_context(|| format!("--{k}={v} is no number")),
        };
        let (rounds, secs, processes) = (number("rounds", 5.0)?, number("secs", 3.0)?, number("processes", 1.0)?);
        ensure!(rounds >= 1.0 && secs > 0.0, "--rounds must be at least 1, --secs more than 0");
        ensure!((1.0..=rounds).contains(&processes), "--processes must be at least 1, at most --rounds");
        let only = given.get("only").cloned().unwrap_or_default();
        Ok(Self { given, rounds: rounds as usize, secs, processes: processes as usize, only })
    }
    /// What is given under a name, unless it is empty.
    pub fn text(&self, k: &str) -> Option<&str> {
        self.given.get(k).map(String::as_str).filter(|v| !v.is_empty())
    }
    /// Is this asked for (`--NAME=true`)?
    pub fn is_asked(&self, k: &str) -> bool {
        self.text(k) == Some("true")
    }
    /// Is this variant asked for by name? (For those that are not measured else.)
    pub fn names(&self, variant: &str) -> bool {
        self.text("variants").is_some_and(|v| v.split(',').any(|x| x == variant))
    }
    /// A number that is given under a name.
    pub fn count(&self, k: &str, default: usize) -> Result<usize> {
        self.text(k).map_or(Ok(default), |v| v.parse().with_context(|| format!("--{k}={v} is no number")))
    }
    /// Is this variant left out?
    pub fn skips(&self, variant: &str) -> bool {
        self.text("variants").is_some_and(|v| !v.split(',').any(|x| x == variant))
    }
}

/// A process of the benchmark's, ended with it.
pub struct App(pub Child);
impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is measured: case, variant and unit.
type Key = (String, String, &'static str);

/// What was measured, and what it should be at most, where that is said.
#[derive(Default)]
pub struct Samples {
    values: BTreeMap<Key, Vec<f64>>,
    goals: BTreeMap<Key, f64>,
}

impl Samples {
    /// Adds a measurement.
    pub fn add(&mut self, case: &str, variant: &str, unit: &'static str, v: f64) {
        self.values.entry((case.into(), variant.into(), unit)).or_default().push(v);
    }
    /// Says what the median should be at most.
    pub fn goal(&mut self, case: &str, variant: &str, unit: &'static str, most: f64) {
        self.goals.insert((case.into(), variant.into(), unit), most);
    }
    /// The median and the spread of each, and its goal (or null).
    pub fn rows(&self) -> Vec<Value> {
        let row = |(key, v): (&Key, &Vec<f64>)| {
            let (case, variant, unit) = key;
            let goal = self.goals.get(key);
            let mut v = v.clone();
            v.sort_by(f64::total_cmp);
            let median = (v[(v.len() - 1) / 2] + v[v.len() / 2]) / 2.0;
            serde_json::json!({ "case": case, "variant": variant, "unit": unit, "median": median, "low": v[0], "high": v[v.len() - 1], "goal": goal })
        };
        self.values.iter().map(row).collect()
    }
}

/// The servers of a pod.
pub fn serve(p: &Pod) -> Result<App> {
    let c =
        p.command(bin("meshbench")).args(["serve", "--bind", "::", "--threads", "2"]).stderr(Stdio::null()).spawn()?;
    Ok(App(c))
}

/// One measurement: `kind` of meshbench with so many connections and these arguments besides. `cpu`: whose counts.
pub fn measure(
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
    let (before, switches_before) = (cpu_seconds(cpu), switches(cpu));
    let out = client.command(bin("meshbench")).args(&args).output()?;
    let (used, switched) = (cpu_seconds(cpu) - before, switches(cpu) - switches_before);
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
            s.add(case, variant, "waits for each", switched / all);
            // It has one thread: near 1 it can ask for no more, and what the proxy could answer is not seen.
            s.add(case, variant, "client's cores", f("cpu_s") / (f("secs") + 0.5));
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

/// How often threads of these processes have waited for something: each time, somebody had to wake one.
fn switches(pids: &[u32]) -> f64 {
    let of_thread = |path: std::path::PathBuf| -> Option<f64> {
        let status = fs::read_to_string(path.join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse().ok())
    };
    let threads = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
    threads.filter_map(|thread| of_thread(thread.path())).sum()
}

/// Resident memory of a process, KiB.
pub fn rss_kib(pid: u32) -> f64 {
    status_kib(pid, "VmRSS:")
}

/// A figure of a process's memory, by its name in /proc, KiB.
pub fn status_kib(pid: u32, name: &str) -> f64 {
    let t = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    t.lines().find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}
