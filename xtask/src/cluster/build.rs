//! Programs and images of the test cluster, from Go modules.

use super::{image::Image, shell::said};
use crate::images::NOBODY;
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const KUBERNETES: &str = "v1.34.4";
/// The CRDs of the local cluster: those of the conformance suite (`tests/conformance/go.mod`).
pub const GATEWAY_API: &str = "v1.7.0";
/// Other names of the program `kube`.
const COMPONENTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

/// What Prometheus says that it is: version 3.16.0 is the module's v0.316.0.
const PROMETHEUS: &str = "3.16.0";

/// What Jaeger says that it is.
const JAEGER: &str = "v1.76.0";

/// The module from which Istio's own programs are built.
const ISTIO: &str = "xtask/istioctl";
/// What they say that they are.
const ISTIO_VERSION: &str = "-X istio.io/istio/pkg/version.buildVersion=1.32-dev";

/// Builds programs of the module in `directory`; `out`: a file, or a folder with a slash behind it. Not optimised: that saves a
/// quarter of the time.
fn go_build(directory: &str, flags: &str, out: &str, programs: &[&str]) -> Result<()> {
    go_build_with(directory, "", flags, out, programs)
}

/// The same with build tags, apart by commas.
fn go_build_with(directory: &str, tags: &str, flags: &str, out: &str, programs: &[&str]) -> Result<()> {
    let status = Command::new("go")
        .current_dir(directory)
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-gcflags=all=-N -l -dwarf=false"])
        .args([&format!("-tags={tags}"), &format!("-ldflags=-s -w {flags}"), "-o", out])
        .args(programs)
        .status()
        .context("cannot start go: install Go 1.26 or newer")?;
    ensure!(status.success(), "{} of {directory} does not build", programs.join(", "));
    Ok(())
}

/// Builds all programs; quick when nothing has changed.
pub fn run(out: &Path) -> Result<()> {
    let fresh = !out.join("kube").is_file();
    if fresh {
        println!("building Kubernetes {KUBERNETES}, etcd, CoreDNS and helm from Go modules; 4 to 10 minutes");
    }
    fs::create_dir_all(out)?;
    let version = "k8s.io/component-base/version";
    let flags = [
        format!("{version}.gitVersion={KUBERNETES}"),
        format!("{version}.gitMajor=1"),
        format!("{version}.gitMinor=34"),
        format!("{version}.gitCommit=unknown"),
        format!("{version}.gitTreeState=clean"),
        format!("{version}.buildDate=2025-01-01T00:00:00Z"),
        format!("k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"),
    ]
    .map(|f| format!("-X {f}"))
    .join(" ");
    let kubectl = out.join("kubectl");
    if kubectl.is_symlink() {
        // As yet another name of `kube`, which would be overwritten through it.
        fs::remove_file(&kubectl).with_context(|| format!("{}", kubectl.display()))?;
    }
    let all = ["./kube", "./kubectl", "./coredns", "helm.sh/helm/v3/cmd/helm"];
    go_build("xtask/cluster", &flags, &format!("{}/", out.display()), &all)?;
    for c in COMPONENTS {
        let link = out.join(c);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink("kube", link)?;
        }
    }
    gateway_api(out)
}

/// Istio's own istioctl, for the tests of what it shows of Karst; quick when nothing has changed, else about 3 minutes on two cores.
/// The module is the one of `xtask/istioctl/go.mod`.
pub fn istioctl(out: &Path) -> Result<()> {
    if !out.join("istioctl").is_file() {
        println!("building istioctl from Go modules; about 3 minutes");
    }
    fs::create_dir_all(out)?;
    let program = out.join("istioctl").display().to_string();
    go_build(ISTIO, ISTIO_VERSION, &program, &["istio.io/istio/istioctl/cmd/istioctl"])
}

/// The registry that a release is installed from in the tests, and what fills it; quick when nothing has changed, else about
/// a minute on two cores. The modules are those of `xtask/registry/go.mod`.
pub fn registry(out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    go_build("xtask/registry", "", &out.join("registry").display().to_string(), &["."])
}

/// Open Policy Agent's engine behind Envoy's ext_authz, for the tests of external authorization (`xtask/opa`); gives the
/// file of the image `registry.local/opa:1`. Quick when nothing has changed, else about half a minute on two cores.
pub fn opa(bin: &Path) -> Result<PathBuf> {
    let program = bin.join("opa");
    fs::create_dir_all(bin)?;
    go_build("xtask/opa", "", &program.display().to_string(), &["."])?;
    let image = Image::new("registry.local/opa:1", &["/bin/opa"]).file(program, "/bin/opa");
    let file = bin.join("opa.tar");
    image.write(&file)?;
    Ok(file)
}

/// Prometheus and promtool from the module of `xtask/prometheus/go.mod`, with discovery in Kubernetes only and without pages for
/// people (Prometheus builds those with npm); gives the file of the image `registry.local/prometheus:1`. Quick when nothing has changed.
pub fn prometheus(bin: &Path) -> Result<PathBuf> {
    if !bin.join("prometheus").is_file() {
        println!("building Prometheus from Go modules; 11 to 19 minutes");
    }
    fs::create_dir_all(bin)?;
    let module = "github.com/prometheus/prometheus";
    let programs = ["prometheus", "promtool"].map(|name| format!("{module}/cmd/{name}"));
    let version = format!("-X github.com/prometheus/common/version.Version={PROMETHEUS}");
    let tags = "remove_all_sd,enable_kubernetes_sd";
    let programs = [programs[0].as_str(), programs[1].as_str()];
    go_build_with("xtask/prometheus", tags, &version, &format!("{}/", bin.display()), &programs)?;
    let image =
        Image::new("registry.local/prometheus:1", &["/bin/prometheus"]).file(bin.join("prometheus"), "/bin/prometheus");
    let file = bin.join("prometheus.tar");
    image.write(&file)?;
    Ok(file)
}

/// Jaeger in one process, traces in memory, from the module of `xtask/jaeger/go.mod`: version 1, the newest of which there is a
/// module, and of the two the one with fewer packages. Its page for people is a placeholder (Jaeger builds that with npm); its API for
/// queries is all there. Gives the file of the image `registry.local/jaeger:1`. Quick when nothing has changed.
pub fn jaeger(bin: &Path) -> Result<PathBuf> {
    let program = bin.join("jaeger");
    if !program.is_file() {
        println!("building Jaeger from Go modules; it takes minutes");
    }
    fs::create_dir_all(bin)?;
    let module = "github.com/jaegertracing/jaeger";
    let version = format!("-X {module}/internal/version.latestVersion={JAEGER}");
    go_build("xtask/jaeger", &version, &program.display().to_string(), &[&format!("{module}/cmd/all-in-one")])?;
    let image = Image::new("registry.local/jaeger:1", &["/bin/jaeger"]).file(program, "/bin/jaeger");
    let file = bin.join("jaeger.tar");
    image.write(&file)?;
    Ok(file)
}

/// Where Istio's node agent is to be found by its chart: hub, name and tag.
const ISTIO_AGENT: &str = "registry.local/istio/install-cni:1";

/// Where Istio's control plane is to be found by its chart.
const ISTIOD: &str = "registry.local/istio/pilot:1";

/// Beside the programs, `istio-charts` leads to the charts of Istio's module.
fn istio_charts(bin: &Path) -> Result<()> {
    let module = said("go", &["list", "-m", "-f", "{{.Dir}}", "istio.io/istio"], Path::new(ISTIO))?;
    let charts = bin.join("istio-charts");
    let _ = fs::remove_file(&charts);
    Ok(std::os::unix::fs::symlink(Path::new(module.trim()).join("manifests/charts"), charts)?)
}

/// Istio's control plane, from the module of `xtask/istioctl/go.mod`; gives its image's file, for the chart
/// `istio-charts/istio-control/istio-discovery` beside the programs. Quick when nothing has changed, else some minutes on two cores.
pub fn istiod(bin: &Path, out: &Path) -> Result<PathBuf> {
    let program = bin.join("pilot-discovery");
    if !program.is_file() {
        println!("building Istio's control plane from Go modules; it takes minutes");
    }
    fs::create_dir_all(bin)?;
    fs::create_dir_all(out)?;
    let all = ["istio.io/istio/pilot/cmd/pilot-discovery"];
    go_build(ISTIO, ISTIO_VERSION, &program.display().to_string(), &all)?;
    istio_charts(bin)?;
    let entry = "/usr/local/bin/pilot-discovery";
    let file = out.join("istio-pilot.tar");
    // As in Istio's image: its chart has `runAsNonRoot`, and no user.
    Image::new(ISTIOD, &[entry]).user(NOBODY).file(program, entry).write(&file)?;
    Ok(file)
}

/// Istio's node agent and its CNI plugin, from the module of `xtask/istioctl/go.mod`, in an image with nft of this machine (Istio's own
/// image has it from a distribution); gives the image's file, for the chart `istio-charts/istio-cni` beside the programs.
/// Quick when nothing has changed, else about 3 minutes on two cores.
pub fn istio_agent(bin: &Path, out: &Path) -> Result<PathBuf> {
    if !bin.join("install-cni").is_file() {
        println!("building Istio's node agent from Go modules; about 3 minutes");
    }
    fs::create_dir_all(bin)?;
    fs::create_dir_all(out)?;
    let programs = ["istio.io/istio/cni/cmd/install-cni", "istio.io/istio/cni/cmd/istio-cni"];
    go_build(ISTIO, ISTIO_VERSION, &format!("{}/", bin.display()), &programs)?;
    istio_charts(bin)?;
    let nft = PathBuf::from("/usr/sbin/nft");
    let mut image = Image::new(ISTIO_AGENT, &["/usr/local/bin/install-cni"])
        .file(bin.join("install-cni"), "/usr/local/bin/install-cni")
        .file(bin.join("istio-cni"), "/opt/cni/bin/istio-cni")
        .file(&nft, "/usr/sbin/nft");
    for library in libraries(&said("ldd", &["/usr/sbin/nft"], Path::new("/"))?) {
        image = image.file(library, library);
    }
    let file = out.join("istio-install-cni.tar");
    image.write(&file)?;
    Ok(file)
}

/// The files that a program needs, as ldd lists them.
fn libraries(ldd: &str) -> impl Iterator<Item = &str> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// Gateway API's channels, and the file with the CRDs of each.
const CHANNELS: [(&str, &str); 2] =
    [("standard", "gateway-api.yaml"), ("experimental", "gateway-api-experimental.yaml")];

/// The CRDs of Gateway API, as one file for each channel.
fn gateway_api(out: &Path) -> Result<()> {
    let version = format!("bundle-version: {GATEWAY_API}");
    let is_there = |file: &str| fs::read_to_string(out.join(file)).is_ok_and(|text| text.contains(&version));
    if CHANNELS.iter().all(|(_, file)| is_there(file)) {
        return Ok(());
    }
    let module = format!("sigs.k8s.io/gateway-api@{GATEWAY_API}");
    let go = crate::setup::go()?;
    let got = Command::new(go).current_dir(out).args(["mod", "download", "-json", &module]).output()?;
    ensure!(got.status.success(), "{module}: {}", String::from_utf8_lossy(&got.stderr));
    let told: serde_json::Value = serde_json::from_slice(&got.stdout)?;
    let dir = Path::new(told["Dir"].as_str().context("go mod download names no Dir")?).join("config/crd");
    for (channel, file) in CHANNELS {
        let mut crds: Vec<_> = fs::read_dir(dir.join(channel))?.flatten().map(|e| e.path()).collect();
        // That one lists the others.
        crds.retain(|path| path.file_name().is_some_and(|name| name != "kustomization.yaml"));
        crds.sort();
        let mut all = String::new();
        for crd in crds {
            all += &format!("---\n{}\n", fs::read_to_string(&crd)?);
        }
        fs::write(out.join(file), all)?;
    }
    Ok(())
}

/// Images that every node has: what holds a pod, a shell, and CoreDNS.
pub fn images(bin: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let pause = out.join("pause");
    let status = Command::new("gcc")
        .args(["-static", "-Os", "-s", "-o"])
        .arg(&pause)
        .arg("xtask/cluster/pause.c")
        .status()
        .context("cannot start gcc")?;
    ensure!(status.success(), "xtask/cluster/pause.c does not compile");
    let passwd = out.join("passwd");
    fs::write(&passwd, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")?;
    let mut busybox = Image::new("registry.local/busybox:1", &["/bin/sh"])
        .file("/bin/busybox", "/bin/busybox")
        .file(&passwd, "/etc/passwd");
    for c in [
        "sh", "cat", "ls", "ps", "wget", "httpd", "nc", "sleep", "hostname", "mkdir", "ip", "grep", "echo", "date",
        "nslookup", "id",
    ] {
        busybox = busybox.link(&format!("/bin/{c}"), "/bin/busybox");
    }
    [
        Image::new("registry.local/pause:1", &["/pause"]).file(&pause, "/pause"),
        busybox,
        Image::new("registry.local/coredns:1", &["/coredns"]).file(bin.join("coredns"), "/coredns"),
    ]
    .into_iter()
    .zip(["pause", "busybox", "coredns"])
    .map(|(i, n)| {
        let path = out.join(format!("{n}.tar"));
        i.write(&path).map(|_| path)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let all: Vec<&str> = libraries(ldd).collect();
        assert_eq!(all, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(libraries("\tstatically linked\n").next(), None);
    }
}
