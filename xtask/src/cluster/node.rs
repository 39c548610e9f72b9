//! One node: namespaces, containerd, kubelet, kube-proxy.

use super::{
    access::{API, Cluster, PODS},
    process,
    shell::{sh, write_script},
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

const CGROUPS: &str = "/sys/fs/cgroup";
/// From Debian's containernetworking-plugins.
const PLUGINS: [&str; 3] = ["bridge", "host-local", "loopback"];

/// Name of node `i`, from 1.
pub fn name(i: u8) -> String {
    format!("n{i}")
}
/// Its network namespace.
pub fn netns(i: u8) -> String {
    format!("karst-n{i}")
}
/// Its address.
pub fn address(i: u8) -> String {
    format!("172.31.0.1{i}")
}

/// Its address in the other family.
pub fn address6(i: u8) -> String {
    format!("fd00:31::1{i}")
}

fn dir(c: &Cluster, i: u8) -> PathBuf {
    c.run.join(name(i))
}

/// Starts the node's processes; the images are loaded into its containerd.
pub fn start(c: &Cluster, i: u8, images: &[PathBuf]) -> Result<()> {
    let (name, d, pki) = (name(i), dir(c, i), c.run.join("pki"));
    for sub in [
        "containerd",
        "run-containerd",
        "kubelet",
        "cni",
        "netns",
        "pods",
        "containers",
        "cni-conf",
        "cni-bin",
        "run-ztunnel",
        "run-istio-cni",
    ] {
        fs::create_dir_all(d.join(sub))?;
    }
    for p in PLUGINS {
        let from = Path::new("/usr/lib/cni").join(p);
        fs::copy(&from, d.join("cni-bin").join(p)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    cgroups(&name)?;
    fs::write(d.join("containerd.toml"), CONTAINERD)?;
    fs::write(d.join("resolv.conf"), format!("nameserver {}\n", API))?;
    let text = |t: &str| {
        t.replace("{name}", &name)
            .replace("{pods}", PODS)
            .replace("{pki}", &pki.display().to_string())
            .replace("{dir}", &d.display().to_string())
    };
    fs::write(d.join("kubelet.yaml"), text(KUBELET))?;
    fs::write(d.join("kube-proxy.yaml"), text(KUBE_PROXY))?;
    let script = d.join("node.sh");
    write_script(&script, include_str!("../../cluster/node.sh"))?;
    let args = [
        &format!("--net=/run/netns/{}", netns(i)),
        "unshare",
        "--mount",
        "--propagation=private",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
        &script.display().to_string(),
    ]
    .map(String::from);
    let images: Vec<String> = images.iter().map(|i| i.display().to_string()).collect();
    let env = [
        ("NODE", name.clone()),
        ("ADDRESSES", format!("{},{}", address(i), address6(i))),
        ("DIR", d.display().to_string()),
        ("BIN", c.bin.display().to_string()),
        ("LOG", c.run.join("log").display().to_string()),
        ("IMAGES", images.join(" ")),
    ];
    c.processes().start(&process(i), "nsenter", &args, &env, &c.run.join(format!("log/node-{name}.log")))
}

fn process(i: u8) -> String {
    format!("node-{}", name(i))
}

/// Does it run?
pub fn runs(c: &Cluster, i: u8) -> bool {
    c.processes().pid(&process(i)).is_some()
}

/// Ends all of its processes at once; false if there are none.
pub fn kill(c: &Cluster, i: u8) -> Result<bool> {
    c.processes().kill(&process(i))
}

/// Forgets what a machine forgets that is switched off: what is not on its disks.
pub fn forget(c: &Cluster, i: u8) -> Result<()> {
    for sub in ["run-containerd", "netns", "run-ztunnel", "run-istio-cni"] {
        let d = dir(c, i).join(sub);
        fs::remove_dir_all(&d).with_context(|| format!("cannot remove {}", d.display()))?;
    }
    Ok(())
}

/// Writes the node's CNI configuration: a bridge with the pod network's parts. It appears at once as a whole.
pub fn write_cni(c: &Cluster, i: u8, cidrs: &[String]) -> Result<()> {
    let ranges: Vec<_> = cidrs.iter().map(|c| serde_json::json!([{ "subnet": c }])).collect();
    let conf = dir(c, i).join("cni-conf");
    let text = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "karst-test",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
            "ipam": { "type": "host-local", "ranges": ranges },
        }],
    });
    fs::write(conf.join(".tmp"), serde_json::to_string_pretty(&text)?)?;
    Ok(fs::rename(conf.join(".tmp"), conf.join("10-bridge.conflist"))?)
}

/// Loads an image into a running node.
pub fn load(c: &Cluster, i: u8, image: &Path) -> Result<()> {
    let unshare = c.processes().pid(&process(i)).with_context(|| format!("node {} does not run", name(i)))?;
    let pid = process::child(unshare).with_context(|| format!("node {} does not run", name(i)))?;
    sh(
        "nsenter",
        &["-t", &pid.to_string(), "-a", "ctr", "-n", "k8s.io", "images", "import", &image.display().to_string()],
    )
}

fn cgroups(name: &str) -> Result<()> {
    let unified = Path::new(CGROUPS).join("cgroup.controllers").exists();
    // The kubelet is known by a cgroup of its own, in cgroup2 (see node.sh).
    let own = |root: &Path| fs::create_dir_all(root.join(name).join("kubelet"));
    if unified {
        fs::create_dir_all(Path::new(CGROUPS).join(name).join("init"))?;
        return Ok(own(Path::new(CGROUPS))?);
    }
    let second = Path::new(CGROUPS).join("unified");
    if second.is_dir() {
        own(&second).with_context(|| format!("cannot make a cgroup in {}", second.display()))?;
    }
    for c in ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd"] {
        let base = Path::new(CGROUPS).join(c);
        let group = base.join(name);
        fs::create_dir_all(&group).with_context(|| format!("cannot make a cgroup in {}", base.display()))?;
        let init = group.join("init");
        if c == "cpuset" {
            for f in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(group.join(f), fs::read(base.join(f))?)?;
            }
            fs::create_dir_all(&init)?;
            for f in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(init.join(f), fs::read(base.join(f))?)?;
            }
        }
        fs::create_dir_all(&init)?;
    }
    Ok(())
}

/// Removes the node's cgroups, once its processes have ended.
pub fn remove_cgroups(name: &str) {
    fn remove(d: &Path) {
        for e in fs::read_dir(d).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
            remove(&e.path());
        }
        let _ = fs::remove_dir(d);
    }
    remove(&Path::new(CGROUPS).join(name));
    for c in fs::read_dir(CGROUPS).into_iter().flatten().flatten() {
        remove(&c.path().join(name));
    }
}

// restrict_oom_score_adj: in a container without CAP_SYS_RESOURCE no sandbox would start.
const CONTAINERD: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.local/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#;

const KUBELET: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: '{pki}/ca.crt'}}
authorization: {mode: Webhook}
tlsCertFile: '{pki}/kubelet-{name}-server.crt'
tlsPrivateKeyFile: '{pki}/kubelet-{name}-server.key'
cgroupDriver: cgroupfs
cgroupRoot: /{name}
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: '{dir}/resolv.conf'
volumePluginDir: /var/lib/kubelet/volumeplugins
evictionHard: {memory.available: 100Mi, nodefs.available: 0%, imagefs.available: 0%}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
syncFrequency: 10s
nodeStatusUpdateFrequency: 4s
";

const KUBE_PROXY: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: '{pki}/kube-proxy.kubeconfig'}
mode: nftables
hostnameOverride: '{name}'
clusterCIDR: '{pods}'
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
";
