//! `cargo xtask kernels`: what Karst does on real older kernels. Debian's kernels, booted one after another in qemu's software
//! emulation, each with a root file system of our static programs: `karst-cni check` and the loader's tests run inside, and are
//! read from the serial console. Prints a table; everything else stays under target/kernels. Not part of CI.

use crate::{bin, build_only, setup};
use anyhow::{Context, Result, bail, ensure};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// Debian's kernels: version, suite (none: that of this machine), how the package is called.
const KERNELS: [(&str, Option<&str>, &str); 3] = [
    ("5.10", Some("bullseye"), r"^linux-image-5\.10\.[^ ]*-cloud-amd64(-unsigned)?$"),
    ("6.1", None, r"^linux-image-6\.1\.[^ ]*-cloud-amd64(-unsigned)?$"),
    ("6.12", None, r"^linux-image-6\.12\.[^ ]*-cloud-amd64(-unsigned)?$"),
];
/// The newest of an index may have left the archive already.
const TRIES: usize = 4;
/// Modules that Debian's kernels have what we need in.
const MODULES: [&str; 4] = ["veth", "sch_ingress", "cls_bpf", "af_packet"];
/// For one kernel, from power on to power off.
const LIMIT: Duration = Duration::from_secs(300);
/// The machine's memory, in MiB: the root file system is in it.
const MEMORY: &str = "1024";
const INIT: &str = include_str!("../kernels/init.sh");

/// Which kernels.
#[derive(clap::Args)]
pub struct What {
    /// Only this one, as 6.1.
    kernel: Option<String>,
    /// More words for the kernel's command line, as ipv6.disable=1.
    #[arg(long, default_value = "")]
    append: String,
}

/// What was read of one kernel: feature or test, and the result.
type Results = Vec<(String, String)>;

/// Boots them and prints the table.
pub fn run(what: &What) -> Result<()> {
    setup::kernels()?;
    let dir = std::path::absolute("target/kernels")?;
    fs::create_dir_all(&dir)?;
    let programs = programs()?;
    let mut columns = Vec::new();
    for (version, suite, pattern) in KERNELS {
        if what.kernel.as_deref().is_some_and(|k| k != version) {
            continue;
        }
        println!("==> Linux {version}");
        let kernel = match kernel(&dir, suite, pattern) {
            Ok(k) => k,
            Err(e) => {
                println!("not to be had here: {e:#}");
                continue;
            }
        };
        let image = dir.join(format!("{version}.initramfs"));
        initramfs(&dir.join("root"), &kernel, &programs, &image)?;
        let lines = boot(&kernel, &image, &what.append)?;
        columns.push((release(&kernel)?, read(&lines)));
    }
    ensure!(!columns.is_empty(), "no kernel was run (there are: {})", KERNELS.map(|k| k.0).join(", "));
    print!("{}", table(&columns));
    Ok(())
}

/// The agent, and the loader's tests.
fn programs() -> Result<[(&'static str, PathBuf); 2]> {
    build_only(&["karst-cni"])?;
    let out = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["test", "--release", "--workspace", "--locked", "--test", "programs", "--no-run"])
        .arg("--message-format=json")
        .envs(crate::tools::quick())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(out.status.success(), "the loader's tests do not build");
    let messages = String::from_utf8_lossy(&out.stdout);
    let tests = messages
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|m| m["target"]["name"] == "programs")
        .find_map(|m| m["executable"].as_str().map(PathBuf::from));
    Ok([
        ("karst-cni", bin("karst-cni")?),
        ("programs", tests.context("cargo named no executable of the test programs")?),
    ])
}

/// A kernel's package, unpacked: downloaded if it is not here yet.
fn kernel(dir: &Path, suite: Option<&str>, pattern: &str) -> Result<PathBuf> {
    let options = match suite {
        Some(s) => other_suite(dir, s)?,
        None => vec![],
    };
    let apt = |program: &str, args: &[&str]| -> Result<String> {
        let out = Command::new(program).args(&options).args(args).current_dir(dir).output();
        let out = out.with_context(|| format!("cannot start {program} (this takes a Debian system)"))?;
        let said = String::from_utf8_lossy(&out.stderr).trim().to_string();
        ensure!(out.status.success(), "{program} {}: {said}", args.join(" "));
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let search = || apt("apt-cache", &["search", "--names-only", pattern]);
    let mut found = search()?;
    if found.is_empty() {
        apt("apt-get", &["update", "-qq"])?;
        found = search()?;
    }
    let mut names: Vec<&str> = found.lines().filter_map(|l| l.split(' ').next()).collect();
    names.sort_by_key(|n| std::cmp::Reverse(numbers(n)));
    let mut last = anyhow::anyhow!("apt-cache finds nothing for {pattern}");
    for name in names.into_iter().take(TRIES) {
        let to = dir.join(name);
        if to.join("boot").is_dir() {
            return Ok(to);
        }
        if let Err(e) = apt("apt-get", &["download", name]) {
            last = e;
            continue;
        }
        let package = entries(dir)?
            .into_iter()
            .find(|p| starts(p, &format!("{name}_")) && p.extension().is_some_and(|e| e == "deb"));
        let package = package.with_context(|| format!("apt-get left no package {name}"))?;
        must(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&to))?;
        fs::remove_file(package)?;
        return Ok(to);
    }
    Err(last)
}

/// Lists of another suite, kept apart from this machine's.
fn other_suite(dir: &Path, suite: &str) -> Result<Vec<String>> {
    let own = dir.join(suite);
    for d in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(own.join(d))?;
    }
    let list = own.join("sources.list");
    let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    fs::write(&list, format!("deb {key} http://deb.debian.org/debian {suite} main\n"))?;
    let options = vec![
        format!("-oDir::Etc::sourcelist={}", list.display()),
        "-oDir::Etc::sourceparts=-".to_string(),
        format!("-oDir::State::lists={}", own.join("lists").display()),
        format!("-oDir::Cache={}", own.join("cache").display()),
    ];
    must(Command::new("apt-get").args(&options).args(["update", "-qq"]))?;
    Ok(options)
}

/// The numbers in a package's name, to sort by.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

/// The release, as `uname -r` says it.
fn release(kernel: &Path) -> Result<String> {
    let image = image(kernel)?;
    let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(name.trim_start_matches("vmlinuz-").to_string())
}

fn image(kernel: &Path) -> Result<PathBuf> {
    let found = entries(&kernel.join("boot"))?.into_iter().find(|p| starts(p, "vmlinuz-"));
    found.with_context(|| format!("no kernel in {}", kernel.display()))
}

/// Everything that the machine has.
fn initramfs(root: &Path, kernel: &Path, programs: &[(&str, PathBuf)], to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(root);
    for d in ["bin", "usr/sbin", "karst", "modules", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(root.join(d))?;
    }
    executable(&root.join("init"), INIT)?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static")?;
    for (name, program) in programs {
        must(Command::new("strip").arg("-o").arg(root.join("karst").join(name)).arg(program))?;
    }
    executable(&root.join("karst/check"), "#!/bin/sh\nexec /karst/karst-cni check\n")?;
    executable(&root.join("karst/tests"), "#!/bin/sh\nexec /karst/programs --test-threads=1\n")?;
    for tool in ["ip", "tc"] {
        with_libraries(root, tool)?;
    }
    for module in MODULES {
        let folder = kernel.join("lib/modules");
        let Some(found) = find(&folder, &format!("{module}.ko"))? else {
            ensure!(is_built_in(&folder, module)?, "{} has no module {module}", kernel.display());
            continue;
        };
        let own = root.join("modules").join(format!("{module}.ko"));
        if found.extension().is_some_and(|e| e == "xz") {
            must(Command::new("xz").arg("-dc").arg(&found).stdout(fs::File::create(&own)?))?;
        } else {
            fs::copy(&found, &own)?;
        }
    }
    must(
        Command::new("sh")
            .args(["-c", "find . | cpio --quiet -o -H newc"])
            .current_dir(root)
            .stdout(fs::File::create(to)?),
    )
}

/// One of this machine's programs, with the libraries that it is linked with.
fn with_libraries(root: &Path, tool: &str) -> Result<()> {
    let at = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().map(|d| Path::new(d).join(tool)).find(|p| p.is_file());
    let at = at.with_context(|| format!("this machine has no {tool}"))?;
    fs::copy(&at, root.join("usr/sbin").join(tool))?;
    let out = Command::new("ldd").arg(&at).output().context("cannot start ldd")?;
    for library in String::from_utf8_lossy(&out.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a library at the root")?)?;
        fs::copy(library, to)?;
    }
    Ok(())
}

/// Runs the machine and gives what its console said.
fn boot(kernel: &Path, initramfs: &Path, append: &str) -> Result<Vec<String>> {
    let mut child = Machine(
        Command::new("nice")
            .args(["-n", "19", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", MEMORY])
            .args(["-nic", "none", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"])
            .arg("-kernel")
            .arg(image(kernel)?)
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(format!("console=ttyS0 quiet loglevel=1 panic=-1 rdinit=/init {append}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start qemu-system-x86_64")?,
    );
    let console = child.0.stdout.take().context("qemu's output")?;
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_string();
            println!("    {line}");
            if to.send(line).is_err() {
                return;
            }
        }
    });
    let until = Instant::now() + LIMIT;
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => said.push(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(said),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the machine was not done after {} s", LIMIT.as_secs()),
        }
    }
}

/// The emulator, ended with this process's interest in it.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The rows of `karst-cni check`, and the tests with their results.
fn read(lines: &[String]) -> Results {
    let mut part = "";
    let mut out = Results::new();
    for line in lines {
        if let Some(name) = line.strip_prefix("KARST begin ") {
            part = name;
        } else if let Some(end) = line.strip_prefix("KARST end ") {
            let (name, status) = end.split_once(' ').unwrap_or((end, "?"));
            out.push((format!("all of {name}"), if status == "0" { "yes".into() } else { format!("no ({status})") }));
            part = "";
        } else if part == "check" {
            let columns: Vec<&str> = line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
            if let [feature, _, since, here @ ("yes" | "no" | "unknown"), ..] = columns[..] {
                out.push((format!("{feature} ({since})"), here.into()));
            }
        } else if part == "tests"
            && let Some((name, result)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... "))
        {
            out.push((format!("test {name}"), result.into()));
        }
    }
    out
}

/// A Markdown table: what, and for each kernel the result.
fn table(columns: &[(String, Results)]) -> String {
    let mut order: Vec<&str> = Vec::new();
    for (what, _) in columns.iter().flat_map(|c| &c.1) {
        if !order.contains(&what.as_str()) {
            order.push(what);
        }
    }
    let cells: Vec<BTreeMap<&str, &str>> =
        columns.iter().map(|(_, r)| r.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()).collect();
    let mut out = String::from("| what (since Linux) |");
    columns.iter().for_each(|(kernel, _)| out += &format!(" {kernel} |"));
    out += &format!("\n|---|{}\n", "---|".repeat(columns.len()));
    for what in order {
        out += &format!("| {what} |");
        cells.iter().for_each(|c| out += &format!(" {} |", c.get(what).copied().unwrap_or("not run")));
        out += "\n";
    }
    out
}

fn executable(at: &Path, text: &str) -> Result<()> {
    fs::write(at, text)?;
    Ok(fs::set_permissions(at, fs::Permissions::from_mode(0o755))?)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let list = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    Ok(list.flatten().map(|e| e.path()).collect())
}

fn starts(path: &Path, with: &str) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(with))
}

fn find(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for p in entries(dir)? {
        if p.is_dir() {
            if let Some(found) = find(&p, name)? {
                return Ok(Some(found));
            }
        } else if starts(&p, name) {
            return Ok(Some(p));
        }
    }
    Ok(None)
}

/// Is this module a part of the kernel itself?
fn is_built_in(modules: &Path, name: &str) -> Result<bool> {
    let Some(list) = find(modules, "modules.builtin")? else { return Ok(false) };
    let file = format!("/{name}.ko");
    Ok(fs::read_to_string(list)?.lines().any(|line| line.ends_with(&file)))
}

fn must(c: &mut Command) -> Result<()> {
    let status = c.status().with_context(|| format!("cannot start {:?}", c.get_program()))?;
    ensure!(status.success(), "{c:?} failed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_read() {
        let console = "[ 0.1] noise\nKARST begin check\nFEATURE  NEEDED FOR  SINCE  HERE\ntcx      the guard   6.6    no    Invalid; instead: a filter\n\
                       this kernel has everything that Karst needs\nKARST end check 0\nKARST begin tests\nrunning 2 tests\ntest a ... ok\n\
                       test b ... FAILED\nKARST end tests 101\n";
        let lines: Vec<String> = console.lines().map(String::from).collect();
        let row = |a: &str, b: &str| (a.to_string(), b.to_string());
        let seen = read(&lines);
        assert_eq!(
            seen,
            [
                row("tcx (6.6)", "no"),
                row("all of check", "yes"),
                row("test a", "ok"),
                row("test b", "FAILED"),
                row("all of tests", "no (101)"),
            ]
        );
        let text = table(&[("6.1".into(), seen), ("6.12".into(), vec![row("tcx (6.6)", "yes")])]);
        assert!(text.contains("| tcx (6.6) | no | yes |\n") && text.contains("| test a | ok | not run |\n"), "{text}");
    }

    #[test]
    fn the_newest_package_is_first() {
        let mut names = ["linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-57-cloud-amd64-unsigned"];
        names.sort_by_key(|n| std::cmp::Reverse(numbers(n)));
        assert_eq!(names[0], "linux-image-6.1.0-57-cloud-amd64-unsigned");
    }
}
