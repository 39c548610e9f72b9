//! The fuzz targets in `tests/fuzz`, built with coverage instrumentation and run for a while each.

use anyhow::{Context, Result, ensure};
use std::{fs, path::Path, process::Command};

/// What libFuzzer needs of the compiler (rustc's own LLVM pass: no nightly). Kept in a target folder of its own, because every
/// crate is compiled differently.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
const DIR: &str = "target/fuzz";

/// Builds and runs them, `seconds` each; only that of this name, if it is given. A crash fails, and says which input it was.
pub fn run(seconds: u32, only: Option<&str>) -> Result<()> {
    let out = Command::new("rustc").arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let host = text.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let args = ["build", "--release", "--locked", "-p", "karst-fuzz", "--features", "libfuzzer", "--bins"];
    crate::cargo(
        &[&args[..], &["--target", host, "--target-dir", DIR]].concat(),
        &[
            ("RUSTFLAGS", FLAGS),
            ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true"),
            ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true"),
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
        ],
    )?;
    let mut names: Vec<String> = fs::read_dir("tests/fuzz/seeds")
        .context("tests/fuzz/seeds")?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| only.is_none_or(|o| o == n))
        .collect();
    names.sort();
    ensure!(!names.is_empty(), "no fuzz target {}", only.unwrap_or_default());
    println!("{:<12} {:>12} {:>10}", "target", "inputs tried", "verdict");
    for n in names {
        one(&Path::new(DIR).join(host).join("release"), &n, seconds)?;
    }
    Ok(())
}

fn one(bins: &Path, name: &str, seconds: u32) -> Result<()> {
    let (corpus, crashes) = (format!("{DIR}/corpus/{name}"), format!("{DIR}/crashes"));
    for d in [&corpus, &crashes] {
        fs::create_dir_all(d).with_context(|| d.clone())?;
    }
    let out = Command::new(bins.join(name))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-rss_limit_mb=1024", "-timeout=5"])
        .arg(format!("-artifact_prefix={crashes}/{name}-"))
        .args([&corpus, &format!("tests/fuzz/seeds/{name}")])
        .output()
        .with_context(|| format!("cannot start the fuzz target {name}"))?;
    let log = String::from_utf8_lossy(&out.stderr);
    let tried = log.lines().find_map(|l| l.strip_prefix("Done ")?.split(' ').next()).unwrap_or("?");
    println!("{name:<12} {tried:>12} {:>10}", if out.status.success() { "ok" } else { "CRASH" });
    if !out.status.success() {
        let tail: Vec<&str> = log.lines().rev().take(40).collect();
        eprintln!("{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    ensure!(out.status.success(), "fuzz target {name} found an input that breaks it: it lies in {crashes}");
    Ok(())
}
