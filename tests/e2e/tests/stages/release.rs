//! A release, installed as one who has nothing else does it: the folder that `cargo xtask release` writes, a web server and a
//! registry on loopback, and a kubeconfig. What is installed comes from there: programs, charts, samples, images.

use crate::install_gateway_api;
use karst_e2e::{LONG, Pod, ask_until, kubectl, try_kubectl, wait_redirected, xtask};
use karst_world::wait_for;
use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

/// One version number in the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The control plane's network namespace: where the user sits.
const USER: &str = "karst-cp";
/// In each node's own network namespace: containerd speaks plain HTTP with loopback only.
const REGISTRY: &str = "127.0.0.1:5000";
const NAMESPACE: &str = "shelf";
const REFUSE_ALL: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: shelf}\nspec: {action: DENY, rules: [{from: [{source: {namespaces: [shelf]}}]}]}\n";
const REFUSE_A_PATH: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-headers, namespace: shelf}\nspec:\n  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}]\n  action: DENY\n  rules: [{to: [{operation: {paths: [/headers]}}]}]\n";

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// The release's folder, what serves it, and where it is unpacked.
struct Site {
    root: PathBuf,
    mirror: String,
    _running: Vec<Running>,
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// From the folder alone: installed, used, upgraded, removed.
pub fn installs_from_its_folder_alone() {
    let begun = Instant::now();
    let site = site();
    site.is_a_chart_repository();
    println!("a release is made and served after {:.0} s", begun.elapsed().as_secs_f64());
    site.unpack();
    let hub = format!("{REGISTRY}/karst");
    println!("{}", site.karst(&["install", "-y", "--set", &format!("hub={hub}")]));
    runs_from(&hub);
    assert!(site.karst(&["version"]).contains(VERSION));
    install_gateway_api();
    site.used(&hub);
    // The next release is one value away, too: here the same images under other names.
    let next = format!("{REGISTRY}/next");
    println!("{}", site.karst(&["upgrade", "-y", "--set", &format!("hub={next}")]));
    runs_from(&next);
    waypoint_runs_from(&next);
    wait_for("an answer after the upgrade", LONG, || get("/get").ok());
    println!("{}", site.karst(&["check"]));
    println!("{}", site.karst(&["uninstall", "--purge", "-y"]));
    wait_for("plain traffic", LONG, || get("/get").ok());
    kubectl(&["delete", "namespace", NAMESPACE, "istio-system", "--timeout=90s"]);
    assert!(try_kubectl(&["get", "namespace", "istio-system"]).is_err());
    println!("from the release's folder to removal: {:.0} s", begun.elapsed().as_secs_f64());
}

/// A program of the cluster.
fn program(name: &str) -> PathBuf {
    cluster("bin").join(name)
}

fn cluster(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cluster").join(part).canonicalize().unwrap()
}

/// A program in a network namespace.
fn inside(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
    command
}

/// What a program prints; it must succeed.
fn done(mut command: Command) -> String {
    let out = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {said}");
    said
}

/// Makes the release, serves its folder, and fills a registry that every node reaches at its own loopback.
fn site() -> Site {
    let root = std::env::temp_dir().join(format!("karst-release-{}", std::process::id()));
    let _ = fs::remove_dir_all(&root);
    let folder = root.join("mirror").join(VERSION);
    fs::create_dir_all(root.join("home")).unwrap();
    let release = |out: &Path| {
        xtask(&["release", "--snapshot", "--version", VERSION, "--out", out.to_str().unwrap()]);
        fs::read_to_string(out.join("SHA256SUMS")).unwrap()
    };
    assert_eq!(release(&folder), release(&root.join("again")), "two runs give equal bytes");
    let sums = done({
        let mut command = Command::new("sha256sum");
        command.args(["-c", "--strict", "SHA256SUMS"]).current_dir(&folder);
        command
    });
    println!("{sums}");
    let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let mut server = Command::new("busybox");
    server.args(["httpd", "-f", "-p", &address.to_string(), "-h"]).arg(root.join("mirror"));
    let mut running = vec![Running::start(server)];
    wait_for("the web server", LONG, || TcpStream::connect(address).ok());
    let nodes: u8 = fs::read_to_string(cluster("run").join("nodes")).unwrap().trim().parse().unwrap();
    for node in 1..=nodes {
        let mut registry = inside(&format!("karst-n{node}"), &program("registry"));
        registry.arg("serve").arg(root.join("store")).arg(REGISTRY);
        running.push(Running::start(registry));
    }
    let push = |layout: &str, hub: &str| {
        let mut command = inside("karst-n1", &program("registry"));
        let file = folder.join(format!("karst-{VERSION}-{layout}.tar"));
        let out = command.arg("push").arg(file).arg(format!("{REGISTRY}/{hub}")).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        if out.status.success() { Ok(said) } else { Err(said) }
    };
    wait_for("the registry", LONG, || push("charts", "karst").ok());
    for (layout, hub, names) in [("charts", "karst", 6), ("images", "karst", 6), ("images", "next", 6)] {
        let pushed = push(layout, hub).unwrap();
        println!("{pushed}");
        assert_eq!(pushed.lines().count(), names, "{layout}");
    }
    Site { root, mirror: format!("http://{address}"), _running: running }
}

impl Site {
    /// Helm takes the charts from the folder, and from the registry.
    fn is_a_chart_repository(&self) {
        let pulled = self.root.join("pulled");
        fs::create_dir_all(&pulled).unwrap();
        let mut repository = Command::new(program("helm"));
        repository.args(["pull", "ambient", "--version", VERSION, "--repo"]).arg(format!("{}/{VERSION}", self.mirror));
        let mut artifact = inside("karst-n1", &program("helm"));
        artifact.args(["pull", "--plain-http", "--version", VERSION]);
        artifact.arg(format!("oci://{REGISTRY}/karst/charts/istiod"));
        for mut helm in [repository, artifact] {
            done({
                helm.args(["-d"]).arg(&pulled).env("HELM_CACHE_HOME", self.root.join("helm"));
                helm
            });
        }
        let mut template = Command::new(program("helm"));
        template.args(["template", "x", "--kube-version=1.34.0"]).arg(pulled.join(format!("ambient-{VERSION}.tgz")));
        let rendered = done(template);
        assert!(rendered.contains(&format!("registry.local/karst/ztunnel:{VERSION}")), "the tag is the release's");
        assert!(pulled.join(format!("istiod-{VERSION}.tgz")).is_file());
    }

    /// By the script, as its page says: fetched and run, with a version and a mirror.
    fn unpack(&self) {
        let script = self.root.join("home/install.sh");
        let mut fetch = Command::new("busybox");
        fetch.args(["wget", "-q", "-O"]).arg(&script).arg(format!("{}/{VERSION}/install.sh", self.mirror));
        done(fetch);
        let mut install = Command::new("sh");
        install.arg(&script).args(["--version", VERSION, "--mirror", &self.mirror]).current_dir(self.root.join("home"));
        let said = done(install);
        println!("{said}");
        assert!(said.contains("its checksum is right"), "{said}");
    }

    fn unpacked(&self) -> PathBuf {
        self.root.join("home").join(format!("karst-{VERSION}"))
    }

    /// The release's own program, with a kubeconfig and away from any checkout.
    fn karst(&self, args: &[&str]) -> String {
        let mut command = inside(USER, &self.unpacked().join("bin/karst"));
        command.args(args).current_dir(self.root.join("home"));
        done({
            command.env("KUBECONFIG", cluster("run").join("pki/admin.kubeconfig"));
            command
        })
    }

    /// The samples of the archive, in the mesh, with a policy, a waypoint, and a policy at that.
    fn used(&self, hub: &str) {
        kubectl(&["create", "namespace", NAMESPACE]);
        kubectl(&["label", "namespace", NAMESPACE, "istio.io/dataplane-mode=ambient"]);
        for name in ["httpbin", "sleep"] {
            let text = fs::read_to_string(self.unpacked().join(format!("samples/manifests/{name}.yaml"))).unwrap();
            let file = self.root.join("home").join(format!("{name}.yaml"));
            fs::write(&file, text.replace("registry.local/karst", hub)).unwrap();
            kubectl(&["-n", NAMESPACE, "apply", "-f", file.to_str().unwrap()]);
            kubectl(&["-n", NAMESPACE, "rollout", "status", &format!("deploy/{name}"), "--timeout=90s"]);
        }
        wait_redirected(&[&Pod::by_label(NAMESPACE, "app=sleep"), &Pod::by_label(NAMESPACE, "app=httpbin")], true);
        wait_for("an answer", LONG, || get("/get").ok());
        karst_e2e::apply(REFUSE_ALL);
        wait_for("the refusal", LONG, || get("/get").err());
        kubectl(&["-n", NAMESPACE, "delete", "authorizationpolicy", "nobody"]);
        wait_for("an answer again", LONG, || get("/get").ok());
        let applied = self.karst(&["waypoint", "apply", "-n", NAMESPACE, "--enroll-namespace", "--wait"]);
        println!("{applied}");
        waypoint_runs_from(hub);
        karst_e2e::apply(REFUSE_A_PATH);
        wait_for("the refusal of a path", LONG, || get("/headers").err().filter(|said| said.contains("403")));
        get("/get").unwrap();
    }
}

/// One request in the mesh.
fn get(path: &str) -> Result<String, String> {
    let url = format!("http://httpbin:8000{path}");
    // Not by -T: Debian's static busybox ends with a segmentation fault then.
    let wget = ["exec", "deploy/sleep", "--", "/bin/busybox", "timeout", "3", "/bin/busybox", "wget", "-qO-", &url];
    try_kubectl(&[&["-n", NAMESPACE], &wget[..]].concat())
}

/// All pods of the system are of that hub, and the nodes have fetched their images from there.
fn runs_from(hub: &str) {
    let path = "jsonpath={range .items[*].spec.containers[*]}{.image}{\"\\n\"}{end}";
    let images =
        || kubectl(&["-n", "istio-system", "get", "pods", "--field-selector=status.phase=Running", "-o", path]);
    let ours = format!("{hub}/");
    // Those of before the upgrade are still going.
    let images = ask_until("pods of the hub alone", || {
        Some(images()).filter(|text| text.lines().count() >= 5 && text.lines().all(|image| image.starts_with(&ours)))
    });
    println!("{images}");
    let pulled = format!("Successfully pulled image \"{hub}/ztunnel:{VERSION}\"");
    let path = "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}";
    ask_until(&pulled, || {
        let said = kubectl(&["-n", "istio-system", "get", "events", "--field-selector=reason=Pulled", "-o", path]);
        // There from an earlier run of this test, and from nowhere else: names of that registry are not loaded by hand.
        let there = format!("Container image \"{hub}/ztunnel:{VERSION}\" already present");
        (said.contains(&pulled) || said.contains(&there)).then_some(())
    });
}

/// The waypoint runs from that hub, too: its controller has been told.
fn waypoint_runs_from(hub: &str) {
    let label = "gateway.networking.k8s.io/gateway-name=waypoint";
    let path = "jsonpath={.items[*].spec.containers[*].image}";
    let wanted = format!("{hub}/waypoint:{VERSION}");
    ask_until(&wanted, || {
        (kubectl(&["-n", NAMESPACE, "get", "pods", "-l", label, "-o", path]).trim() == wanted).then_some(())
    });
}
