//! Gateway API's conformance suite on the local cluster: the official Go module, with echo images that are built here.

mod features;

use crate::{
    cluster::{self, Cluster, image::Image},
    images, setup,
};
use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

/// What to run.
#[derive(Args)]
pub struct What {
    /// Which part of the suite.
    #[arg(long, value_enum, default_value = "all")]
    part: Part,
    /// Use the cluster that runs, with the charts that are installed there; else a fresh one is made and removed.
    #[arg(long)]
    keep: bool,
    /// Write the official report there.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Only this test, by its short name.
    #[arg(long)]
    only: Option<String>,
}

impl What {
    /// Ten minutes of it on a fresh cluster.
    pub fn for_tests() -> Self {
        Self { part: Part::Short, keep: false, report: None, only: None }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// All seven profiles, in one report.
    All,
    /// Of all tests some of each kind, which take ten minutes at most; `cargo xtask test` runs these.
    Short,
    /// MESH-HTTP and MESH-GRPC with all extended features, and the tests that no profile counts.
    Mesh,
    /// GATEWAY-HTTP, GATEWAY-GRPC, GATEWAY-TLS, GATEWAY-TCP and GATEWAY-UDP.
    Gateway,
}

impl Part {
    fn has_mesh(self) -> bool {
        self != Self::Gateway
    }

    fn has_gateways(self) -> bool {
        self != Self::Mesh
    }

    /// The suite is ended after this, and has failed.
    fn longest(self) -> &'static str {
        match self {
            Part::Short => "10m",
            Part::All => "150m",
            Part::Mesh | Part::Gateway => "90m",
        }
    }
}

/// The namespaces of the mesh's tests.
const NAMESPACES: [&str; 2] = ["gateway-conformance-mesh", "gateway-conformance-mesh-consumer"];
/// The suite, and where the echo programs' sources are (in place of a module that the Go module proxy does not have).
const SUITE: &str = "sigs.k8s.io/gateway-api/conformance";
const ECHO: &str = "sigs.k8s.io/gateway-api-conformance-images";
/// The module with the names of all features.
const API: &str = "sigs.k8s.io/gateway-api";
/// Of the addresses that tests give, the one that a Gateway of the suite asks for; and one that it cannot have (RFC 5737).
const USABLE: u32 = 0xff01;
const UNUSABLE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: gateway-conformance-mesh, labels: {istio.io/waypoint-for: service}}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}\n";

/// Runs it.
pub fn run(what: &What) -> Result<()> {
    let c = Cluster::new()?;
    if !what.keep {
        cluster::for_tests()?;
    }
    let result = suite(&c, what);
    if what.keep { result } else { c.end(result, false) }
}

fn suite(c: &Cluster, what: &What) -> Result<()> {
    let is_whole = what.part != Part::Short && what.only.is_none();
    ensure!(is_whole || what.report.is_none(), "a report of a part says that the rest has succeeded: run all of it");
    let out = std::path::absolute("target/conformance")?;
    fs::create_dir_all(&out)?;
    let go = &setup::go()?;
    let declared = match what.part {
        Part::All | Part::Short => features::all(),
        Part::Mesh => features::mesh(),
        Part::Gateway => features::gateways(),
    };
    let unknown = features::unknown(&declared, &sources(&module(go, API)?.join("pkg/features"))?);
    ensure!(unknown.is_empty(), "the suite has no features {unknown:?}: correct xtask/src/conformance/features.rs");
    let tests = sources(&module(go, SUITE)?.join("tests"))?;
    let left_out = match what.part {
        Part::Short => features::left_out(&tests).map_err(|missing| {
            anyhow!("the suite has no tests {missing:?}: correct xtask/src/conformance/features.rs")
        })?,
        Part::All | Part::Mesh | Part::Gateway => vec![],
    };
    println!("building the suite and the echo images");
    let test = out.join("conformance.test");
    build(
        go,
        Path::new("tests/conformance"),
        &["test", "-c", "-trimpath", "-gcflags=all=-N -l -dwarf=false", "-ldflags=-s -w", "-o"],
        &test,
        ".",
    )?;
    c.load(&echo_images(go, &module(go, SUITE)?, &module(go, ECHO)?, &out)?)?;
    // Features of the experimental channel are declared, too. Over CRDs of the standard one, as a cluster that runs may have them, theirs
    // are not let in (Gateway API's ValidatingAdmissionPolicy).
    let crds = if what.keep { "gateway-api.yaml" } else { "gateway-api-experimental.yaml" };
    c.kubectl(&["apply", "--server-side", "-f", &c.bin.join(crds).display().to_string()])?;
    // The controller sees the kinds soon, and makes its classes.
    for until in ["create", "condition=Accepted"] {
        c.kubectl(&["wait", &format!("--for={until}"), "--timeout=60s", "gatewayclass/istio"])?;
    }
    let mut labels = "istio.io/dataplane-mode=ambient".to_string();
    if what.part.has_mesh() {
        labels += ",istio.io/use-waypoint=waypoint";
        for ns in NAMESPACES {
            let file = out.join("namespace.yaml");
            fs::write(&file, format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {ns}}}\n"))?;
            c.kubectl(&["apply", "-f", &file.display().to_string()])?;
        }
        let file = out.join("waypoint.yaml");
        fs::write(&file, WAYPOINT)?;
        c.kubectl(&["apply", "-f", &file.display().to_string()])?;
        let gateway = ["-n", NAMESPACES[0], "gateways.gateway.networking.k8s.io/waypoint"];
        c.kubectl(&[&["wait", "--for=condition=Programmed", "--timeout=60s"], &gateway[..]].concat())?;
    }
    let done = Arc::new(AtomicBool::new(false));
    let balancer = what.part.has_gateways().then(|| balance(done.clone())).transpose()?;
    let mut run = c.inside(&test);
    run.args([
        "-test.v",
        "-mode=default",
        "-organization=karst",
        "-project=karst",
        "-url=https://karst.io",
        "-contact=-",
    ]);
    run.arg(format!("-test.timeout={}", what.part.longest()));
    run.arg(format!("-version={}", env!("CARGO_PKG_VERSION"))).arg(format!("-namespace-labels={labels}"));
    run.args(["-cleanup-base-resources=false", "-gateway-class=istio"]);
    run.arg(format!("-conformance-profiles={}", declared.profiles.join(",")));
    run.arg(format!("-supported-features={}", declared.features.join(",")));
    run.arg(format!("-usable-address={}", cluster::balanced(USABLE))).arg(format!("-unusable-address={UNUSABLE}"));
    if let Some(t) = &what.only {
        run.arg(format!("-run-test={t}"));
    }
    if !left_out.is_empty() {
        run.arg(format!("-skip-tests={}", left_out.join(",")));
    }
    let report = out.join("report.yaml");
    let _ = fs::remove_file(&report);
    run.arg(format!("-report-output={}", report.display()));
    let log = out.join("log.txt");
    let file = fs::File::create(&log)?;
    println!("running it; its words go to {}", log.display());
    let status = run.stdout(file.try_clone()?).stderr(file).status().context("the suite")?;
    done.store(true, Relaxed);
    if let Some(b) = balancer {
        let _ = b.join();
    }
    summary(&fs::read_to_string(&log)?);
    if let (Some(to), true) = (&what.report, report.is_file()) {
        fs::copy(&report, to).with_context(|| format!("{}", to.display()))?;
    }
    ensure!(status.success(), "the suite has failed: see {}", log.display());
    Ok(())
}

/// What became of each test that was not skipped.
fn summary(log: &str) {
    let mut seen = [0; 3];
    for l in log.lines() {
        let Some(rest) = l.strip_prefix("    --- ").filter(|r| r.contains(": ")) else { continue };
        let (what, name) = rest.split_once(": ").unwrap_or((rest, ""));
        seen[match what {
            "PASS" => 0,
            "FAIL" => 1,
            _ => 2,
        }] += 1;
        if what != "SKIP" {
            println!("{what:<5} {name}");
        }
    }
    println!("{} passed, {} failed, {} skipped", seen[0], seen[1], seen[2]);
}

/// Where the sources of a module of `tests/conformance` lie.
fn module(go: &Path, name: &str) -> Result<PathBuf> {
    let dir = "tests/conformance";
    let got = Command::new(go).current_dir(dir).args(["list", "-mod=mod", "-m", "-f", "{{.Dir}}", name]).output()?;
    let text = String::from_utf8_lossy(&got.stdout).trim().to_string();
    if got.status.success() && !text.is_empty() {
        return Ok(text.into());
    }
    let got = Command::new(go).current_dir(dir).args(["mod", "download"]).output().context("cannot start go")?;
    ensure!(got.status.success(), "{name}: {}", String::from_utf8_lossy(&got.stderr));
    let got = Command::new(go).current_dir(dir).args(["list", "-m", "-f", "{{.Dir}}", name]).output()?;
    Ok(String::from_utf8_lossy(&got.stdout).trim().into())
}

/// The text of all Go files of a folder and those in it.
fn sources(dir: &Path) -> Result<String> {
    let mut all = String::new();
    for entry in fs::read_dir(dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            all += &sources(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "go") {
            all += &fs::read_to_string(&path)?;
        }
    }
    Ok(all)
}

fn build(go: &Path, dir: &Path, args: &[&str], out: &Path, what: &str) -> Result<()> {
    let status = Command::new(go).current_dir(dir).env("CGO_ENABLED", "0").args(args).arg(out).arg(what).status();
    ensure!(status.context("cannot start go")?.success(), "{} does not build", dir.display());
    Ok(())
}

/// The images that the suite's manifests name. The simple echo (HTTP, gRPC, TCP, UDP) is the suite's own program, by the sources of its
/// version before; the one that can call others is ours.
fn echo_images(go: &Path, suite: &Path, echo: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let mut names = BTreeSet::new();
    let mut dirs = vec![suite.join("base"), suite.join("mesh"), suite.join("tests")];
    while let Some(d) = dirs.pop() {
        for e in fs::read_dir(&d)?.flatten() {
            let p = e.path();
            if p.is_dir() {
                dirs.push(p);
            } else if p.extension().is_some_and(|x| x == "yaml") {
                let text = fs::read_to_string(&p)?;
                let found = text.lines().filter_map(|l| l.trim().trim_start_matches("- ").strip_prefix("image: "));
                names.extend(found.map(|n| n.trim().trim_matches('"').to_string()));
            }
        }
    }
    // Its go.mod is hidden from the module that it lies in.
    let source = out.join("echo-basic");
    let _ = Command::new("chmod").args(["-R", "u+w"]).arg(&source).stderr(std::process::Stdio::null()).status();
    let _ = fs::remove_dir_all(&source);
    let status = Command::new("cp").arg("-r").arg(echo.join("echo-basic")).arg(&source).status()?;
    ensure!(status.success(), "the sources of echo-basic cannot be copied");
    let _ = Command::new("chmod").args(["-R", "u+w"]).arg(&source).status();
    for f in ["mod", "sum"] {
        fs::rename(source.join(format!(".go.{f}")), source.join(format!("go.{f}")))?;
    }
    let basic = out.join("echo-basic.bin");
    build(go, &source, &["build", "-trimpath", "-ldflags=-s -w", "-o"], &basic, ".")?;
    let ours = images::strip(&crate::bin("sample-echo")?, out)?;
    let mut files = vec![];
    for (i, n) in names.iter().enumerate() {
        let image = if n.contains("/echo-basic:") {
            Image::new(n, &["/echo-basic"]).file(&basic, "/echo-basic")
        } else if n.contains("/echo-advanced:") {
            Image::new(n, &["/usr/local/bin/server"])
                .file(&ours, "/usr/local/bin/server")
                .link("/usr/local/bin/client", "/usr/local/bin/server")
        } else {
            continue;
        };
        let file = out.join(format!("image{i}.tar"));
        image.write(&file)?;
        files.push(file);
    }
    Ok(files)
}

/// Gives Services of type LoadBalancer addresses, as a cloud would, until it is told to stop.
fn balance(done: Arc<AtomicBool>) -> Result<std::thread::JoinHandle<()>> {
    let c = Cluster::new()?;
    c.route_to_services(cluster::BALANCED)?;
    Ok(std::thread::spawn(move || {
        let mut next = 1u32;
        while !done.load(Relaxed) {
            if let Ok(Some(text)) = c.output(&["get", "services", "-A", "-o", "json"])
                && let Ok(all) = serde_json::from_str::<Value>(&text)
            {
                for (ns, name, ip) in assignments(&all, &mut next) {
                    let status = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{ip}"}}]}}}}}}"#);
                    let _ = c.output(&["-n", ns, "patch", "service", name, "--subresource=status", "-p", &status]);
                }
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }))
}

/// Who gets which address: the one that is asked for, if it is one of ours and nobody has it, and else none; the next, if none is
/// asked for. (Namespace, name, address.)
fn assignments<'a>(services: &'a Value, next: &mut u32) -> Vec<(&'a str, &'a str, Ipv4Addr)> {
    let all = services["items"].as_array().into_iter().flatten();
    let all: Vec<&'a Value> = all.filter(|s| s["spec"]["type"] == "LoadBalancer").collect();
    let has = |s: &Value| s["status"]["loadBalancer"]["ingress"][0]["ip"].as_str()?.parse::<Ipv4Addr>().ok();
    let mut taken: BTreeSet<Ipv4Addr> = all.iter().copied().filter_map(has).collect();
    let mut out = vec![];
    for s in all {
        let (Some(ns), Some(name)) = (s["metadata"]["namespace"].as_str(), s["metadata"]["name"].as_str()) else {
            continue;
        };
        let ip = match s["spec"]["loadBalancerIP"].as_str().filter(|asked| !asked.is_empty()) {
            Some(asked) => asked.parse::<Ipv4Addr>().ok().filter(|ip| cluster::is_balanced(*ip) && !taken.contains(ip)),
            None if has(s).is_some() => None,
            None => {
                let free = (*next..).map(cluster::balanced).find(|ip| !taken.contains(ip));
                *next += 1;
                free
            }
        };
        if let Some(ip) = ip {
            taken.insert(ip);
            out.push((ns, name, ip));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_that_are_asked_for_are_given_if_they_are_ours_and_free() {
        let usable = cluster::balanced(USABLE).to_string();
        let service = |name: &str, asked: &str, has: &str| {
            let ingress = if has.is_empty() { json!(null) } else { json!([{ "ip": has }]) };
            json!({
                "metadata": { "namespace": "a", "name": name },
                "spec": { "type": "LoadBalancer", "loadBalancerIP": asked },
                "status": { "loadBalancer": { "ingress": ingress } },
            })
        };
        let given = |all: &[Value], mut next: u32| -> Vec<String> {
            let services = json!({ "items": all });
            let all = assignments(&services, &mut next);
            all.into_iter().map(|(_, name, ip)| format!("{name} {ip}")).collect()
        };
        assert_eq!(given(&[service("x", "", ""), service("y", "", "")], 1), ["x 10.98.0.1", "y 10.98.0.2"]);
        assert_eq!(
            given(&[service("x", &usable, ""), service("y", "", "")], 1),
            [format!("x {usable}").as_str(), "y 10.98.0.1"]
        );
        // Pending: not ours, not an address, somebody else's.
        assert!(given(&[service("x", &UNUSABLE.to_string(), ""), service("y", "x", "")], 1).is_empty());
        assert!(given(&[service("x", &usable, &usable), service("y", &usable, "")], 1).is_empty());
        // Who asks for another one gets that; nobody is given what somebody has.
        assert_eq!(given(&[service("x", &usable, "10.98.0.1")], 2), [format!("x {usable}")]);
        assert_eq!(given(&[service("x", "10.98.0.1", ""), service("y", "", "")], 1), ["x 10.98.0.1", "y 10.98.0.2"]);
        let mut other = service("x", "", "");
        other["spec"]["type"] = json!("ClusterIP");
        assert!(given(&[other, service("y", "", "10.98.0.1")], 2).is_empty());
    }
}
