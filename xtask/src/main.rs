//! `cargo xtask`: everything that developers and CI do, from one place.

mod archive;
mod bench;
mod cluster;
mod conformance;
mod dashboards;
mod deny;
mod docs;
mod fuzz;
mod images;
mod kernels;
mod lint;
mod oci;
mod page;
mod promtool;
mod release;
mod report;
mod sbom;
mod setup;
mod soak;
mod tools;
mod upgrade;
mod values;

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use report::Stages;
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use tools::{TESTED, announce, bin, build, build_only, build_plain, build_shipped, cargo};

/// Developer commands.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what this machine lacks (Debian packages, bpf-linker); says what and why.
    Setup,
    /// Build everything.
    Build,
    /// Check formatting, lints, documentation and the arrows between crates.
    Lint,
    /// Check the links and lists of names of the documentation, and build the book to target/book.
    Docs,
    /// Check the bundle of the page of `karst dashboard`, and run the page in a browser.
    Page(page::What),
    /// Run everything.
    Test {
        /// Only tests whose name contains this.
        #[arg(default_value = "")]
        filter: String,
        /// Without these, with commas between: what is left out where time is short.
        #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
        skip: Vec<Part>,
    },
    /// Show the mesh at work on two nodes: a table of claims, expected and measured.
    Demo {
        /// Also write the table as JSON.
        #[arg(long)]
        report: Option<PathBuf>,
        /// Leave the mesh running and say what to try.
        #[arg(long)]
        keep: bool,
    },
    /// Faults on top of each other under load, for an hour: no call may fail that no fault excuses, no byte be wrong, no frame be
    /// readable, no memory grow.
    Soak(soak::What),
    /// Feed the parsers of what comes from outside with inputs made by coverage.
    Fuzz {
        /// Only this target.
        target: Option<String>,
        /// For so long each.
        #[arg(long, default_value_t = 10)]
        seconds: u32,
    },
    /// Write an OCI image for each component to target/images, with its digest and a list of what is in it (CycloneDX), and load
    /// them into the local cluster if it runs.
    Images,
    /// Make what a release page holds: archive, charts, images, bills of materials, checksums, provenance, install script.
    Release(release::What),
    /// Set the version number everywhere, and give what is unreleased in CHANGELOG.md its title.
    Version(release::Bump),
    /// A real Kubernetes on this machine, to try Karst on and for the tests.
    Cluster {
        #[command(subcommand)]
        what: cluster::What,
    },
    /// Boot older kernels (Debian's) in emulation, and see there what this kernel's tests see here.
    Kernels(kernels::What),
    /// From an older release to this one and back, under load, on a fresh local cluster: no request may fail.
    Upgrade(upgrade::What),
    /// Istio's dashboards, ours and Kiali's graph on a fresh local cluster with a Prometheus: their queries must have data. The alerts,
    /// by promtool. And traces, with a Jaeger: it must have every hop.
    Dashboards(dashboards::What),
    /// Gateway API's conformance suite on the local cluster.
    Conformance(conformance::What),
    /// Write what follows from the table of the charts' values: their schemas, notes and refusals, and docs/values.md.
    Values(values::What),
    /// Measure against plain relays, interleaved in one run.
    Bench {
        #[command(subcommand)]
        what: bench::What,
    },
}

/// What `cargo xtask test` can be told to leave out; each is a command of its own, too.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// clippy's and rustdoc's looks at all crates: seven minutes on two cores. CI compiles by clippy instead.
    Lints,
    /// Five minutes of faults under load.
    Soak,
    /// Istio's own control plane with our agent and ztunnel, which is built first.
    Istiod,
    /// Of Gateway API's suite, for gateways and meshes, what takes ten minutes.
    Conformance,
    /// Queries of dashboards by a Prometheus, and traces by a Jaeger, which both are built first.
    Dashboards,
}

fn main() -> std::process::ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    let root = root();
    std::env::set_current_dir(&root)?;
    match task {
        Task::Setup => setup::run(),
        Task::Build => build(),
        Task::Lint => {
            setup::run()?;
            let mut s = Stages::new();
            text_stages(&mut s)?;
            check_stages(&mut s)?;
            lint_stages(&mut s)?;
            s.print();
            Ok(())
        }
        Task::Docs => docs::run(&Cli::command()),
        Task::Page(what) => page::run(&what),
        Task::Test { filter, skip } => test(&filter, &skip),
        Task::Demo { report, keep } => {
            announce("karst-demo", DEMO_MINUTES)?;
            build_only(DEMO)?;
            let mut args = vec![];
            if let Some(r) = report {
                args.push(format!("--report={}", std::path::absolute(r)?.display()));
            }
            if keep {
                args.push("--keep".into());
            }
            let status = Command::new(bin("karst-demo")?).args(args).status().context("cannot start the demo")?;
            ensure!(status.success(), "the demo found a claim that does not hold; its table says which");
            Ok(())
        }
        Task::Soak(what) if what.long_tests => {
            tools::optimize();
            build()?;
            worlds(&["--ignored"].into_iter().chain(what.only.as_deref()).collect::<Vec<_>>())
        }
        Task::Soak(what) => {
            // Its memory and waits are figures, too.
            tools::optimize();
            build_only(soak::PROGRAMS)?;
            soak::run(&what)
        }
        Task::Fuzz { target, seconds } => {
            setup::run()?;
            fuzz::run(seconds, target.as_deref())
        }
        Task::Images => {
            build_plain()?;
            cluster::Cluster::new()?.load(&images::write(&bin("")?)?)
        }
        Task::Release(what) => release::run(&what),
        Task::Version(what) => release::bump(&what),
        Task::Cluster { what } => cluster::run(what),
        Task::Kernels(what) => kernels::run(&what),
        Task::Upgrade(what) => upgrade::run(&what),
        Task::Dashboards(what) => dashboards::run(&what),
        Task::Conformance(what) => {
            build()?;
            conformance::run(&what)
        }
        Task::Values(what) => values::run(&what),
        Task::Bench { what } => {
            match what.is_on_cluster() {
                // Images are built with the cluster.
                true => tools::ship(),
                false => build_shipped(bench::PROGRAMS)?,
            }
            bench::run(what)
        }
    }
}

fn root() -> PathBuf {
    let p = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    p.canonicalize().unwrap_or(p)
}

/// Its programs take about so long from cold, on two cores.
const DEMO_MINUTES: usize = 13;

/// What the demo runs.
const DEMO: &[&str] = &[
    "karst-demo",
    "ztunnel",
    "karst-cni",
    "karst-controller",
    "karst-waypoint",
    "meshbench",
    "sample-grpc",
    "sample-http",
    "sample-tcp",
];

/// What needs no build, in a few seconds.
fn text_stages(s: &mut Stages) -> Result<()> {
    s.run("format", || cargo(&["fmt", "--all", "--check"], &[]))?;
    s.run("arrows between crates", lint::arrows)
}

/// Pages, licences, advisories, the eBPF programs: what checks no crate of the workspace.
fn check_stages(s: &mut Stages) -> Result<()> {
    s.run("docs", || docs::run(&Cli::command()))?;
    s.run("licences, sources, bans", || {
        setup::checks()?;
        deny::run()
    })?;
    s.run("advisories", deny::advisories)?;
    s.run("clippy: eBPF programs", lint::programs)
}

/// What checks all crates once more, those of others too.
fn lint_stages(s: &mut Stages) -> Result<()> {
    s.run("clippy", || {
        cargo(&["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[])
    })?;
    s.run("documentation", || {
        let doc = ["doc", "--release", "--workspace", "--no-deps", "--document-private-items", "--locked"];
        cargo(&[&doc[..], &TESTED].concat(), &[("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links")])
    })
}

fn test(filter: &str, skip: &[Part]) -> Result<()> {
    let mut s = Stages::new();
    // Go compiles beside cargo, on what that leaves of the cores, from the beginning: its modules are to be fetched first.
    let programs = match filter.is_empty() {
        true => {
            s.run("setup: packages", setup::cluster)?;
            let mut words = vec!["cluster", "programs"];
            if !skip.contains(&Part::Dashboards) {
                words.push("--dashboards");
            }
            Some(tools::Aside::start(&words, Path::new("target/cluster/programs.log"))?)
        }
        false => None,
    };
    s.run("setup", || {
        setup::run()?;
        setup::bpffs()
    })?;
    if filter.is_empty() {
        // Before half an hour of building, not after it.
        text_stages(&mut s)?;
    }
    s.run("build", build)?;
    if filter.is_empty() {
        check_stages(&mut s)?;
    }
    if filter.is_empty() && !skip.contains(&Part::Lints) {
        lint_stages(&mut s)?;
    }
    let unit = ["test", "--release", "--workspace", "--locked", "--exclude", "karst-world", "--exclude", "karst-e2e"];
    // Of the tests on the cluster, those that need none.
    let alone = ["--test", "panels", "--test", "traces", "--test", "exercises", "--test", "tasks"];
    let table = [&["test", "--release", "--workspace", "--locked"][..], &alone].concat();
    s.run("unit tests", || {
        cargo(&[&unit[..], &["--", filter]].concat(), &[])?;
        cargo(&[&table[..], &["--", filter]].concat(), &[])
    })?;
    if filter.is_empty() {
        // It waits for the network and a browser: Go may have the rest of the cores still.
        s.run("page in a browser", || page::run(&page::What::for_tests()))?;
    }
    if let Some(programs) = programs {
        // Before worlds, which want the cores for themselves.
        s.run("cluster: programs", || programs.wait())?;
    }
    // Worlds share the machine's two cores; one at a time keeps what they measure meaningful.
    s.run("worlds", || worlds(if filter.is_empty() { &[] } else { std::slice::from_ref(&filter) }))?;
    if filter.is_empty() && !skip.contains(&Part::Soak) {
        s.run("soak", || soak::run(&soak::What::for_tests()))?;
    }
    if filter.is_empty() {
        s.run("cluster: build and start", cluster::for_tests)?;
        s.run("charts: values", values::check)?;
        // helm is built by now. The charts by it and by us: the same objects; and the installations that the book shows.
        s.run("charts: helm and karst", || {
            let all = ["test", "--release", "--workspace", "--locked", "--test", "helm", "--test", "book"];
            cargo(&[&all[..], &["--", "--ignored"]].concat(), &[])
        })?;
        let mut result = s.run("cluster: tests", || cluster_tests(&[]));
        if result.is_ok() && !skip.contains(&Part::Istiod) {
            let swap = ["--ignored", "s9_swaps_with_istios_control_plane"];
            result = s.run("cluster: with Istio's control plane", || cluster_tests(&swap));
        }
        if result.is_err() {
            cluster::Cluster::new()?.show_logs();
        }
        s.run("cluster: removal", || cluster::Cluster::new()?.down())?;
        result?;
        // Each on a fresh cluster.
        if !skip.contains(&Part::Conformance) {
            s.run("conformance", || conformance::run(&conformance::What::for_tests()))?;
        }
        if !skip.contains(&Part::Dashboards) {
            s.run("dashboards and traces", || dashboards::run(&dashboards::What::for_tests()))?;
        }
    }
    s.print();
    Ok(())
}

/// The tests on the local cluster, with the charts installed.
fn cluster_tests(args: &[&str]) -> Result<()> {
    let all =
        ["test", "--release", "--workspace", "--locked", "--test", "cluster", "--", "--test-threads=1", "--nocapture"];
    cargo(&[&all[..], args].concat(), &[])
}

/// Tests in namespaces that need something besides, as their names have it: a database, and a ztunnel of another release.
const OF_DATABASE: &str = "soak_postgresql_survives_rollouts";
const OF_TWO_RELEASES: &str = "of_two_releases";
const FORMER: &str = "KARST_FORMER_ZTUNNEL";

/// Do these words ask for a long test of this name?
fn is_asked(test: &str, args: &[&str]) -> bool {
    args.contains(&"--ignored") && args.iter().all(|word| word.starts_with("--") || test.contains(word))
}

/// The tests in namespaces. Named one by one under `--workspace`: with `--package`, cargo would choose other features for the
/// cryptography and build it a second time.
fn worlds(args: &[&str]) -> Result<()> {
    let dir = std::fs::read_dir("tests/world/tests").context("tests/world/tests")?;
    let mut names: Vec<String> =
        dir.filter_map(|f| f.ok()?.file_name().into_string().ok()?.strip_suffix(".rs").map(String::from)).collect();
    names.sort();
    let mut all = vec!["test", "--release", "--workspace", "--locked"];
    if args.contains(&"--ignored") {
        // The long forms say what was measured: one that misses its figure does not keep the others from saying theirs.
        all.push("--no-fail-fast");
    }
    names.iter().for_each(|n| all.extend(["--test", n]));
    all.extend(["--", "--test-threads=1", "--nocapture"]);
    all.extend(args);
    if is_asked(OF_DATABASE, args) {
        setup::database()?;
    }
    // Tests are run in another directory than this.
    let former = std::env::var_os(FORMER).map(std::path::absolute).transpose()?;
    if args.contains(&"--ignored") && former.is_none() {
        println!("NOT CHECKED: rollouts of two releases ({FORMER} is to name the ztunnel of another one)");
        all.extend(["--skip", OF_TWO_RELEASES]);
    }
    let former = former.map(|path| path.display().to_string());
    let env: Vec<(&str, &str)> = former.iter().map(|path| (FORMER, path.as_str())).collect();
    cargo(&all, &env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_installed_only_for_the_test_that_needs_it() {
        let all: [(&[&str], bool); 6] = [
            (&[], false),
            (&["soak"], false),
            (&["--ignored"], true),
            (&["--ignored", "postgresql"], true),
            (&["--ignored", "soak_"], true),
            (&["--ignored", "soak_killed"], false),
        ];
        for (args, asked) in all {
            assert_eq!(is_asked(OF_DATABASE, args), asked, "{args:?}");
        }
    }
}
