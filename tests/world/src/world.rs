//! Building, changing and removing worlds.

use crate::{
    http,
    net::{self, ip, ip_in, namespace, sysctl, veth},
    sniff::Sniffer,
};
use anyhow::{Context, Result, bail, ensure};
use karst_rt::netns::Netns;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

const CONTROLLER: &str = "10.66.0.100";
/// Everything that a world starts must be up within this time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Value of the label by which the deployer marks gateways that are no waypoints (Istio's).
const GATEWAY: &str = "istio.io-gateway-controller";

/// How a world is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes, 1 to 4.
    pub nodes: usize,
    /// Arguments for ztunnel, in addition.
    pub ztunnel: Vec<String>,
    /// Environment for ztunnel, in addition.
    pub ztunnel_env: Vec<(String, String)>,
    /// Arguments for the controller, in addition.
    pub controller: Vec<String>,
    /// Arguments for the agents, in addition. (A world has no kubelet: without `--probes` all of a node's processes may probe.)
    pub agent: Vec<String>,
    /// The ztunnel binary; None: ours.
    pub ztunnel_bin: Option<PathBuf>,
    /// How many descriptors ztunnel may have open; None: as many as this process.
    pub ztunnel_descriptors: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 2,
            ztunnel: vec![],
            ztunnel_env: vec![],
            controller: vec![],
            agent: vec![],
            ztunnel_bin: None,
            ztunnel_descriptors: None,
        }
    }
}

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Node, from 0.
    pub node: usize,
    /// Service account.
    pub account: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
}

impl PodSpec {
    /// A pod with an account of its own name and the label `app` of its name.
    pub fn new(namespace: &str, name: &str, node: usize) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            node,
            account: name.into(),
            labels: vec![("app".into(), name.into())],
            annotations: vec![],
        }
    }
    /// Another label.
    pub fn label(mut self, k: &str, v: &str) -> Self {
        self.labels.retain(|(x, _)| x != k);
        self.labels.push((k.into(), v.into()));
        self
    }
    /// Another annotation.
    pub fn annotation(mut self, k: &str, v: &str) -> Self {
        self.annotations.push((k.into(), v.into()));
        self
    }
    /// Another account.
    pub fn account(mut self, a: &str) -> Self {
        self.account = a.into();
        self
    }
}

/// A pod that exists.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it was made from.
    pub spec: PodSpec,
    /// Name of its network namespace.
    pub ns: String,
    /// IPv4 address.
    pub ip: IpAddr,
    /// IPv6 address.
    pub ip6: IpAddr,
    /// metadata.uid.
    pub uid: String,
    netns: Netns,
    /// Its number on the node, by which its addresses are, and its device on the node.
    number: u8,
    device: String,
}

impl Pod {
    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
    /// An address of the pod.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }
    /// An IPv6 address of the pod.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.ip6, port).into()
    }
    /// Connects from the pod, as an application would.
    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(8)))?
    }
    /// What a container or virtual machine inside the pod has for a network: a namespace of its own, whose `eth0` is the far end of
    /// a device of the pod's. It has these addresses, and the way out by the first ones of their networks.
    pub fn inside(&self, device: &str, v4: [u8; 4], v6: [u16; 8]) -> Pod {
        let ns = format!("{}-{device}", self.ns);
        let (ip, ip6) = (IpAddr::from(v4), IpAddr::from(v6));
        let gateway = |mut a: [u16; 8]| {
            a[7] = 1;
            IpAddr::from(a)
        };
        let make = || -> Result<()> {
            namespace(&ns)?;
            veth(&self.ns, device, &ns, "eth0")?;
            ip_in(&ns, &format!("addr add {ip}/24 dev eth0"))?;
            ip_in(&ns, &format!("addr add {ip6}/64 dev eth0 nodad"))?;
            ip_in(&ns, &format!("route add default via {}", IpAddr::from([v4[0], v4[1], v4[2], 1])))?;
            ip_in(&ns, &format!("-6 route add default via {}", gateway(v6))).map(|_| ())
        };
        make().expect("a container's network");
        let netns = Netns::open(format!("/run/netns/{ns}")).expect("the namespace was made");
        let (uid, number, device) = (self.uid.clone(), self.number, device.into());
        Pod { spec: self.spec.clone(), ns, ip, ip6, uid, netns, number, device }
    }
    /// A program in the pod's network namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        in_netns(&self.ns, program)
    }
}

/// A node.
pub struct Node {
    /// Name, as in spec.nodeName.
    pub name: String,
    /// Its network namespace.
    pub ns: String,
    /// Same, to enter.
    pub netns: Netns,
    agent: Option<Child>,
    ztunnel: Option<Child>,
}

/// A world.
pub struct World {
    /// Directory with manifests, logs, sockets, keys.
    pub dir: PathBuf,
    /// Nodes.
    pub nodes: Vec<Node>,
    options: Options,
    prefix: String,
    controller: Option<Child>,
    /// By pod.
    waypoints: BTreeMap<String, Child>,
    fabric: Netns,
    pods: BTreeMap<String, Pod>,
    next_pod: Vec<u8>,
}

static WORLDS: AtomicU32 = AtomicU32::new(0);

/// The path of one of our binaries.
pub fn bin(name: &str) -> PathBuf {
    let target = std::env::var_os("KARST_BIN_DIR").map(PathBuf::from);
    // Beside this program; tests are one level down, in deps.
    let own = || {
        let dir = std::env::current_exe().ok().and_then(|p| p.parent().map(Path::to_path_buf)).unwrap_or_default();
        if dir.ends_with("deps") { dir.join("..") } else { dir }
    };
    let p = target.unwrap_or_else(own).join(name);
    p.canonicalize().unwrap_or(p)
}

/// Builds the statically linked client of `programs/`, once, and makes sure that it is static.
pub fn static_client() -> Result<PathBuf> {
    let dir = bin("static-client");
    let out = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition=2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .arg(&dir)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/static_client.rs"))
        .output()?;
    ensure!(out.status.success(), "static client: {}", String::from_utf8_lossy(&out.stderr));
    let elf = fs::read(&dir)?;
    ensure!(!elf.windows(9).any(|w| w == b"/ld-linux"), "the client is not statically linked");
    Ok(dir)
}

/// Asks again and again until there is an answer; panics with `what` when the time is over.
pub fn wait_for<T>(what: &str, limit: Duration, mut f: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn in_netns(ns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut c = Command::new("nsenter");
    c.arg(format!("--net=/run/netns/{ns}")).arg("--").arg(program);
    c
}

impl World {
    /// Builds and starts a world.
    pub fn start(options: Options) -> Result<Self> {
        ensure!(
            fs::metadata("/proc/self/ns/net").is_ok() && is_root(),
            "worlds need root: they make network namespaces and load eBPF programs"
        );
        sweep();
        let id = WORLDS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("kw{}x{id}", std::process::id());
        let dir = std::env::temp_dir().join(format!("karst-world-{prefix}"));
        for d in ["manifests", "logs", "tokens"] {
            fs::create_dir_all(dir.join(d))?;
        }
        mount_bpffs()?;
        let fabric_ns = format!("{prefix}-fabric");
        namespace(&fabric_ns)?;
        ip_in(&fabric_ns, "link add br0 type bridge")?;
        ip_in(&fabric_ns, "link set br0 up")?;
        let fabric = Netns::open(format!("/run/netns/{fabric_ns}"))?;
        let mut w = Self {
            dir,
            nodes: vec![],
            options,
            prefix,
            controller: None,
            waypoints: BTreeMap::new(),
            fabric,
            pods: BTreeMap::new(),
            next_pod: vec![],
        };
        let control = w.ns("control");
        namespace(&control)?;
        w.plug(&control, "control", &format!("{CONTROLLER}/16"), "fd66::100/64")?;
        for i in 0..w.options.nodes {
            w.add_node(i)?;
        }
        w.routes()?;
        w.write_base()?;
        w.start_controller()?;
        for i in 0..w.options.nodes {
            w.start_agent(i)?;
            w.start_ztunnel(i)?;
        }
        for i in 0..w.options.nodes {
            w.wait_ztunnel(i);
        }
        Ok(w)
    }

    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Connects a namespace to the fabric.
    fn plug(&self, ns: &str, port: &str, v4: &str, v6: &str) -> Result<()> {
        let fabric = self.ns("fabric");
        veth(&fabric, port, ns, "eth0")?;
        ip_in(&fabric, &format!("link set {port} master br0"))?;
        ip_in(ns, &format!("addr add {v4} dev eth0"))?;
        ip_in(ns, &format!("addr add {v6} dev eth0 nodad")).map(|_| ())
    }

    fn add_node(&mut self, i: usize) -> Result<()> {
        let ns = self.ns(&format!("node{i}"));
        namespace(&ns)?;
        self.plug(&ns, &format!("node{i}"), &format!("10.66.0.{}/16", i + 1), &format!("fd66::{}/64", i + 1))?;
        // With an address of its own, as CNI plugins give it: else it is the lowest of its ports', and changes when pods come.
        ip_in(&ns, &format!("link add cni0 address 0a:58:0a:4d:{i:02x}:01 type bridge"))?;
        ip_in(&ns, &format!("addr add 10.77.{i}.1/24 dev cni0"))?;
        ip_in(&ns, &format!("addr add fd77:{i}::1/64 dev cni0 nodad"))?;
        ip_in(&ns, "link set cni0 up")?;
        sysctl(&ns, "net.ipv4.ip_forward", "1")?;
        sysctl(&ns, "net.ipv6.conf.all.forwarding", "1")?;
        let netns = Netns::open(format!("/run/netns/{ns}"))?;
        self.nodes.push(Node { name: format!("node{i}"), ns, netns, agent: None, ztunnel: None });
        self.next_pod.push(10);
        Ok(())
    }

    fn routes(&self) -> Result<()> {
        for (i, n) in self.nodes.iter().enumerate() {
            for j in (0..self.nodes.len()).filter(|j| *j != i) {
                ip_in(&n.ns, &format!("route add 10.77.{j}.0/24 via 10.66.0.{}", j + 1))?;
                ip_in(&n.ns, &format!("-6 route add fd77:{j}::/64 via fd66::{}", j + 1))?;
            }
            // Waypoints are pods, and talk to the controller.
            ip_in(&self.ns("control"), &format!("route add 10.77.{i}.0/24 via 10.66.0.{}", i + 1))?;
        }
        Ok(())
    }

    fn write_base(&self) -> Result<()> {
        let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: istio-system}\n");
        for (i, n) in self.nodes.iter().enumerate() {
            write!(
                text,
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {0}, labels: {{topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z{i}}}}}\nspec: {{podCIDRs: [10.77.{i}.0/24, 'fd77:{i}::/64']}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: ztunnel-{0}, namespace: istio-system, uid: zt-{0}}}\nspec: {{nodeName: {0}, serviceAccountName: ztunnel, hostNetwork: true}}\nstatus: {{phase: Running, podIP: 10.66.0.{1}, conditions: [{{type: Ready, status: 'True'}}]}}\n",
                n.name,
                i + 1
            )?;
        }
        self.write("base", &text)
    }

    fn log(&self, name: &str) -> Result<Stdio> {
        let path = self.dir.join("logs").join(name);
        Ok(fs::OpenOptions::new().create(true).append(true).open(path)?.into())
    }

    fn spawn(&self, ns: &str, log: &str, program: &Path, args: &[String], env: &[(String, String)]) -> Result<Child> {
        ensure!(program.is_file(), "{} is not built: run cargo xtask build", program.display());
        let mut c = in_netns(ns, program);
        let child = c
            .args(args)
            .envs(env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(self.log(log)?)
            .stderr(self.log(log)?)
            .spawn()?;
        let mut pids = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("pids"))?;
        std::io::Write::write_all(&mut pids, format!("{}\n", child.id()).as_bytes())?;
        Ok(child)
    }

    fn controller_args(&self) -> Vec<String> {
        let mut a: Vec<String> = ["--source", &format!("dir:{}", self.dir.join("manifests").display()), "--data-dir"]
            .iter()
            .map(ToString::to_string)
            .collect();
        a.push(self.dir.join("controller").display().to_string());
        a
    }

    /// Starts the controller.
    pub fn start_controller(&mut self) -> Result<()> {
        let mut args = self.controller_args();
        args.extend(["--grpc-addr", "0.0.0.0:15012", "--server-names", CONTROLLER].map(String::from));
        args.extend(self.options.controller.clone());
        self.controller =
            Some(self.spawn(&self.ns("control"), "controller.log", &bin("karst-controller"), &args, &[])?);
        let ns = Netns::open(format!("/run/netns/{}", self.ns("control")))?;
        wait_for("controller up", PATIENCE, || {
            ns.run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], 15014)))).ok()?.ok()
        });
        for i in 0..self.nodes.len() {
            let n = &self.nodes[i].name;
            self.token(n, "istio-system/ztunnel", &format!("ztunnel-{n}"), &format!("zt-{n}"), n)?;
        }
        Ok(())
    }

    /// A pod's token, in a file of this name.
    fn token(&self, file: &str, account: &str, pod: &str, uid: &str, node: &str) -> Result<PathBuf> {
        let mut args = self.controller_args();
        let of = ["token", "--service-account", account, "--pod", pod, "--pod-uid", uid, "--node-name", node];
        args.extend(of.map(String::from));
        let out = Command::new(bin("karst-controller")).args(&args).output()?;
        ensure!(out.status.success(), "token: {}", String::from_utf8_lossy(&out.stderr));
        let path = self.dir.join("tokens").join(file);
        fs::write(&path, out.stdout)?;
        Ok(path)
    }

    /// Starts a waypoint, as the deployer would: Gateway, Service, and a pod that is one. It is ready on return.
    pub fn waypoint(&mut self, namespace: &str, name: &str, node: usize, env: &[(&str, &str)]) -> Pod {
        let p = self.waypoint_pod(namespace, name, node);
        self.start_waypoint(&p, env);
        p
    }

    /// A waypoint's Gateway, Service and pod, in which nothing runs.
    pub fn waypoint_pod(&mut self, namespace: &str, name: &str, node: usize) -> Pod {
        let vip = format!("10.99.{node}.{}", self.next_pod[node]);
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{istio.io/waypoint-for: service}}}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\nstatus: {{addresses: [{{type: Hostname, value: {name}.{namespace}.svc.cluster.local}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{gateway.istio.io/managed: istio.io-mesh-controller}}}}\nspec: {{clusterIP: {vip}, selector: {{gateway.networking.k8s.io/gateway-name: {name}}}, ports: [{{name: mesh, port: 15008, appProtocol: hbone}}]}}\n"
        );
        self.write(&format!("waypoint-{namespace}-{name}"), &text).expect("manifests");
        let spec = PodSpec::new(namespace, &format!("{name}-1"), node)
            .account(name)
            .label("gateway.networking.k8s.io/gateway-name", name)
            .label("gateway.istio.io/managed", "istio.io-mesh-controller")
            .label("istio.io/dataplane-mode", "none");
        self.pod(spec)
    }

    /// Starts a pod that is a gateway, with these labels besides. It is ready on return.
    pub fn gateway(&mut self, namespace: &str, name: &str, node: usize, labels: &[(&str, &str)]) -> Pod {
        let p = self.gateway_pod(namespace, name, node, labels);
        self.start_waypoint(&p, &[]);
        p
    }

    /// The pod of a gateway, in which nothing runs.
    pub fn gateway_pod(&mut self, namespace: &str, name: &str, node: usize, labels: &[(&str, &str)]) -> Pod {
        let spec = PodSpec::new(namespace, &format!("{name}-1"), node)
            .account(name)
            .label("gateway.istio.io/managed", GATEWAY)
            .label("istio.io/dataplane-mode", "none");
        self.pod(labels.iter().fold(spec, |s, (k, v)| s.label(k, v)))
    }

    /// Starts the process of a waypoint's or a gateway's pod, and waits until it is ready and everybody knows.
    pub fn start_waypoint(&mut self, p: &Pod, env: &[(&str, &str)]) {
        self.start_waypoint_of(p, &bin("karst-waypoint"), env);
    }

    /// The same with another build.
    pub fn start_waypoint_of(&mut self, p: &Pod, program: &Path, env: &[(&str, &str)]) {
        let (s, node) = (&p.spec, self.nodes[p.spec.node].name.clone());
        let account = format!("{}/{}", s.namespace, s.account);
        let token = self.token(&p.ns, &account, &s.name, &p.ns, &node).expect("token");
        let mut all: Vec<(String, String)> = [
            ("XDS_ADDRESS", format!("https://{CONTROLLER}:15012")),
            ("XDS_ROOT_CA", self.dir.join("controller/root-cert.pem").display().to_string()),
            ("AUTH_TOKEN", token.display().to_string()),
            ("NODE_NAME", node),
            ("POD_NAME", s.name.clone()),
            ("POD_NAMESPACE", s.namespace.clone()),
            ("SERVICE_ACCOUNT", s.account.clone()),
            ("INSTANCE_IP", p.ip.to_string()),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into();
        all.extend(env.iter().map(|(k, v)| (k.to_string(), v.to_string())));
        let log = format!("waypoint-{}.log", s.name);
        let gateway = s.labels.iter().any(|(_, v)| v == GATEWAY);
        let args = if gateway { &["proxy".to_string(), "router".to_string()][..] } else { &[] };
        let child = self.spawn(&p.ns, &log, program, args, &all).expect("the waypoint starts");
        self.waypoints.insert(p.ns.clone(), child);
        wait_for("the waypoint ready", PATIENCE, || {
            (self.waypoint_page(p, 15021, "/healthz/ready").ok()?.0 == 200).then_some(())
        });
        self.settle();
    }

    /// Process id of a waypoint or gateway.
    pub fn waypoint_pid(&self, p: &Pod) -> u32 {
        self.waypoints.get(&p.ns).expect("it runs").id()
    }

    /// A page of a waypoint.
    pub fn waypoint_page(&self, p: &Pod, port: u16, path: &str) -> Result<(u16, String)> {
        let s = p.netns().run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], port))))??;
        Ok(http::get(s, path)?)
    }

    /// Ends a waypoint's process by signal and waits for it.
    pub fn stop_waypoint(&mut self, p: &Pod, signal: i32) {
        Self::end(&mut self.waypoints.remove(&p.ns), signal);
    }

    /// The node's bpffs directory.
    pub fn bpf_dir(&self, node: usize) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/karst-test/{}-{node}", self.prefix))
    }
    fn zds(&self, node: usize) -> PathBuf {
        self.dir.join(format!("zds{node}.sock"))
    }

    /// Arguments of the agent of a node.
    pub fn agent_args(&self, node: usize) -> Vec<String> {
        let arg = |k: &str, v: String| [k.to_string(), v];
        let probes = match self.options.agent.iter().any(|a| a == "--probes") {
            true => vec![],
            false => arg("--probes", "all".into()).to_vec(),
        };
        let mut args = [
            arg("--node", self.nodes[node].name.clone()),
            arg("--source", format!("dir:{}", self.dir.join("manifests").display())),
            arg("--zds", self.zds(node).display().to_string()),
            arg("--bpf-dir", self.bpf_dir(node).display().to_string()),
            arg("--run-dir", self.dir.join(format!("run{node}")).display().to_string()),
        ]
        .concat();
        args.extend(probes);
        args.extend(self.options.agent.iter().cloned());
        args
    }

    /// Arguments for the agents that are started from now on, in addition.
    pub fn set_agent_args(&mut self, args: &[&str]) {
        self.options.agent = args.iter().map(ToString::to_string).collect();
    }

    /// Starts a node's agent.
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        let args = self.agent_args(node);
        let child = self.spawn(&self.nodes[node].ns, &format!("agent{node}.log"), &bin("karst-cni"), &args, &[])?;
        self.nodes[node].agent = Some(child);
        Ok(())
    }

    /// Environment for the ztunnels that are started from now on.
    pub fn set_ztunnel_env(&mut self, env: Vec<(String, String)>) {
        self.options.ztunnel_env = env;
    }

    /// Starts a node's ztunnel, beside the one that may run.
    pub fn start_ztunnel(&mut self, node: usize) -> Result<()> {
        self.start_ztunnel_at(node, 15000).map(|c| self.nodes[node].ztunnel = Some(c))
    }

    /// Starts a ztunnel whose pages are at `port`, `port + 20`, `port + 21`.
    pub fn start_ztunnel_at(&mut self, node: usize, port: u16) -> Result<Child> {
        let n = &self.nodes[node];
        let token = self.dir.join("tokens").join(&n.name);
        let root = self.dir.join("controller/root-cert.pem");
        let mut env: Vec<(String, String)> = [
            ("XDS_ADDRESS", format!("https://{CONTROLLER}:15012")),
            ("CA_ADDRESS", format!("https://{CONTROLLER}:15012")),
            ("XDS_ROOT_CA", root.display().to_string()),
            ("CA_ROOT_CA", root.display().to_string()),
            ("AUTH_TOKEN", token.display().to_string()),
            ("NODE_NAME", n.name.clone()),
            ("POD_NAME", format!("ztunnel-{}", n.name)),
            ("POD_NAMESPACE", "istio-system".into()),
            ("INSTANCE_IP", format!("10.66.0.{}", node + 1)),
            ("INPOD_UDS", self.zds(node).display().to_string()),
            ("ADMIN_ADDR", format!("127.0.0.1:{port}")),
            ("STATS_ADDR", format!("127.0.0.1:{}", port + 20)),
            ("READINESS_ADDR", format!("127.0.0.1:{}", port + 21)),
        ]
        .map(|(k, v)| (k.to_string(), v))
        .into();
        env.extend(self.options.ztunnel_env.clone());
        let program = self.options.ztunnel_bin.clone().unwrap_or_else(|| bin("ztunnel"));
        let log = format!("ztunnel{node}.log");
        let Some(limit) = self.options.ztunnel_descriptors else {
            return self.spawn(&n.ns, &log, &program, &self.options.ztunnel, &env);
        };
        let mut args = vec![format!("--nofile={limit}"), program.display().to_string()];
        args.extend(self.options.ztunnel.clone());
        self.spawn(&n.ns, &log, Path::new("/usr/bin/prlimit"), &args, &env)
    }

    /// Waits until a node's ztunnel is ready.
    pub fn wait_ztunnel(&self, node: usize) {
        wait_for(&format!("ztunnel of node {node} ready"), PATIENCE, || {
            let (status, _) = self.get(node, 15021, "/healthz/ready").ok()?;
            (status == 200).then_some(())
        });
    }

    /// A page of a process on a node.
    pub fn get(&self, node: usize, port: u16, path: &str) -> Result<(u16, String)> {
        let s = self.nodes[node].netns.run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], port))))??;
        Ok(http::get(s, path)?)
    }

    /// Metrics of a node's ztunnel whose line starts with `name` and holds all of `parts`: their sum.
    pub fn metric(&self, node: usize, name: &str, parts: &[&str]) -> f64 {
        let (_, page) = self.get(node, 15020, "/metrics").expect("metrics page");
        let lines = page.lines().filter(|l| l.starts_with(name) && parts.iter().all(|p| l.contains(p)));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn syncz(&self) -> Result<serde_json::Value> {
        let ns = Netns::open(format!("/run/netns/{}", self.ns("control")))?;
        let s = ns.run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], 15014))))??;
        Ok(serde_json::from_str(&http::get(s, "/debug/syncz")?.1)?)
    }

    /// Waits until the controller has read the manifests of now and every proxy has taken them in.
    pub fn settle(&self) {
        let dir = self.dir.join("manifests");
        wait_for("proxies acknowledge the manifests", PATIENCE, || {
            let want = format!("{:x}", karst_manifest::dir::digest(&dir));
            let z = self.syncz().ok()?;
            let version = z["version"].as_u64()?;
            let proxies = z["proxies"].as_array()?;
            let live = self.nodes.iter().filter(|n| n.ztunnel.is_some()).count();
            let acked = proxies.iter().filter(|p| p["acked"].as_u64() >= Some(version)).count();
            (z["manifests"].as_str() == Some(&want) && proxies.len() >= live && acked == proxies.len()).then_some(())
        });
    }

    /// Writes a file of manifests without waiting.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let dir = self.dir.join("manifests");
        let tmp = dir.join(format!(".{name}"));
        fs::write(&tmp, text)?;
        fs::rename(tmp, dir.join(format!("{name}.yaml")))?;
        Ok(())
    }
    /// Changes a text in a file of manifests, which must be there, and waits until it is in force.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.dir.join("manifests").join(format!("{name}.yaml"))).unwrap();
        assert!(text.contains(from), "{name}: {from}: {text}");
        self.apply(name, &text.replace(from, to));
    }
    /// Writes a file of manifests and waits until it is in force.
    pub fn apply(&self, name: &str, text: &str) {
        self.write(name, text).unwrap();
        self.settle();
    }
    /// Removes a file of manifests and waits until it is gone from the proxies.
    pub fn delete(&self, name: &str) {
        fs::remove_file(self.dir.join("manifests").join(format!("{name}.yaml"))).unwrap();
        self.settle();
    }
    /// A namespace, in the mesh or not.
    pub fn namespace(&self, name: &str, ambient: bool) {
        let label = if ambient { "istio.io/dataplane-mode: ambient" } else { "" };
        self.apply(
            &format!("ns-{name}"),
            &format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{{label}}}\n"),
        );
    }

    /// What a node's pods send to another node's pods is lost without a word, as if the node was gone; or is not any more.
    pub fn lose(&self, node: usize, to: usize, lost: bool) {
        let ns = &self.nodes[node].ns;
        let way = |dst: String, via: String| match lost {
            true => format!("route replace blackhole {dst}"),
            false => format!("route replace {dst} via {via}"),
        };
        ip_in(ns, &way(format!("10.77.{to}.0/24"), format!("10.66.0.{}", to + 1))).expect("IPv4 route");
        ip_in(ns, &format!("-6 {}", way(format!("fd77:{to}::/64"), format!("fd66::{}", to + 1)))).expect("IPv6 route");
    }

    /// Makes a pod: its network namespace, then its manifest. Does not wait for its enrolment.
    pub fn pod(&mut self, spec: PodSpec) -> Pod {
        let i = spec.node;
        let n = self.next_pod[i];
        self.next_pod[i] += 1;
        let uid = self.netns_of(&spec);
        self.make_pod(spec, uid, n, format!("v{n}"))
    }

    /// Makes a pod in place of one that is gone ([`World::lose_pod`]): with its name, node and addresses, but another account and
    /// another uid.
    pub fn pod_again(&mut self, before: &Pod, account: &str) -> Pod {
        let spec = before.spec.clone().account(account);
        let pod = self.make_pod(spec, format!("{}-again", before.uid), before.number, format!("{}a", before.device));
        // Who has the addresses of its neighbours from the pod before looks again.
        let near = self.pods.values().filter(|p| p.spec.node == pod.spec.node).map(|p| &p.ns);
        for ns in near.chain([&self.nodes[pod.spec.node].ns]) {
            let _ = ip_in(ns, "neigh flush all");
        }
        pod
    }

    fn netns_of(&self, spec: &PodSpec) -> String {
        self.ns(&format!("{}.{}", spec.namespace, spec.name)).replace('.', "_")
    }

    fn make_pod(&mut self, spec: PodSpec, uid: String, n: u8, port: String) -> Pod {
        let i = spec.node;
        let ns = self.netns_of(&spec);
        let node = self.nodes[i].ns.clone();
        let make = || -> Result<()> {
            namespace(&ns)?;
            // The kernel takes its time with what a pod of this number had before.
            let _ = ip_in(&node, &format!("link del {port}"));
            veth(&node, &port, &ns, "eth0")?;
            ip_in(&node, &format!("link set {port} master cni0"))?;
            ip_in(&ns, &format!("addr add 10.77.{i}.{n}/24 dev eth0"))?;
            ip_in(&ns, &format!("addr add fd77:{i}::{n}/64 dev eth0 nodad"))?;
            ip_in(&ns, &format!("route add default via 10.77.{i}.1"))?;
            ip_in(&ns, &format!("-6 route add default via fd77:{i}::1")).map(|_| ())
        };
        make().expect("a pod's network");
        let netns = Netns::open(format!("/run/netns/{ns}")).expect("the namespace was made");
        let ip: IpAddr = format!("10.77.{i}.{n}").parse().unwrap();
        let ip6: IpAddr = format!("fd77:{i}::{n}").parse().unwrap();
        let pod = Pod { spec, ns, ip, ip6, uid, netns, number: n, device: port };
        self.write_pod(&pod, true);
        self.pods.insert(format!("{}/{}", pod.spec.namespace, pod.spec.name), pod.clone());
        pod
    }

    /// The next pod of a node has this number in its addresses, be it that of a pod that is gone.
    pub fn next_address(&mut self, node: usize, n: u8) {
        self.next_pod[node] = n;
    }

    /// All pods.
    pub fn pods(&self) -> Vec<Pod> {
        self.pods.values().cloned().collect()
    }

    /// Writes a pod's manifest.
    pub fn write_pod(&self, p: &Pod, ready: bool) {
        let s = &p.spec;
        let map = |v: &[(String, String)]| {
            v.iter().map(|(k, v)| format!("{k}: {}", serde_json::json!(v))).collect::<Vec<_>>().join(", ")
        };
        let mut annotations = s.annotations.clone();
        annotations.push(("karst.io/netns".into(), format!("/run/netns/{}", p.ns)));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  uid: {}\n  labels: {{{}}}\n  annotations: {{{}}}\nspec:\n  nodeName: {}\n  serviceAccountName: {}\nstatus:\n  phase: Running\n  podIPs: [{{ip: {}}}, {{ip: '{}'}}]\n  conditions: [{{type: Ready, status: '{}'}}]\n",
            s.name,
            s.namespace,
            p.uid,
            map(&s.labels),
            map(&annotations),
            self.nodes[s.node].name,
            s.account,
            p.ip,
            p.ip6,
            if ready { "True" } else { "False" },
        );
        self.write(&format!("pod-{}-{}", s.namespace, s.name), &text).unwrap();
    }

    /// Waits until a pod is redirected and everybody knows.
    pub fn wait_enrolled(&self, p: &Pod) {
        self.wait_redirected(p);
        self.settle();
    }
    /// Waits until the agent reports a pod as redirected, whatever the controller knows of it.
    pub fn wait_redirected(&self, p: &Pod) {
        let f = self
            .dir
            .join(format!("manifests/.status/{}/{}.{}", self.nodes[p.spec.node].name, p.spec.namespace, p.spec.name));
        wait_for(&format!("pod {} redirected", p.ns), PATIENCE, || f.exists().then_some(()));
    }
    /// A pod of an enrolled namespace, ready for use.
    pub fn mesh_pod(&mut self, spec: PodSpec) -> Pod {
        let p = self.pod(spec);
        self.wait_enrolled(&p);
        p
    }
    /// Removes a pod, whatever the controller may know, and waits until its node's agent has let it go.
    pub fn lose_pod(&mut self, p: &Pod) {
        let (log, key) = (format!("agent{}.log", p.spec.node), format!("{}/{}", p.spec.namespace, p.spec.name));
        let is = |l: &&str| l.contains("no longer redirected") && l.contains(&key);
        let left = || self.log_text(&log).lines().filter(is).count();
        let before = left();
        fs::remove_file(self.dir.join(format!("manifests/pod-{}-{}.yaml", p.spec.namespace, p.spec.name))).unwrap();
        wait_for(&format!("pod {} let go", p.ns), PATIENCE, || (left() > before).then_some(()));
        // The namespace lives as long as somebody has it open; the device goes at once.
        ip_in(&self.nodes[p.spec.node].ns, &format!("link del {}", p.device)).unwrap();
        ip(&format!("netns del {}", p.ns)).unwrap();
        self.pods.remove(&format!("{}/{}", p.spec.namespace, p.spec.name));
    }

    /// Removes a pod: manifest and network namespace.
    pub fn remove_pod(&mut self, p: &Pod) {
        fs::remove_file(self.dir.join(format!("manifests/pod-{}-{}.yaml", p.spec.namespace, p.spec.name))).unwrap();
        self.pods.remove(&format!("{}/{}", p.spec.namespace, p.spec.name));
        ip(&format!("netns del {}", p.ns)).unwrap();
        self.settle();
    }

    /// A sniffer between the nodes.
    pub fn sniffer(&self, marker: &[u8]) -> Sniffer {
        Sniffer::start(&self.fabric, marker)
    }

    /// Ends a process by signal and waits for it.
    fn end(c: &mut Option<Child>, signal: i32) {
        if let Some(mut c) = c.take() {
            kill(c.id(), signal);
            let _ = c.wait();
        }
    }
    /// Ends the controller.
    pub fn stop_controller(&mut self, signal: i32) {
        Self::end(&mut self.controller, signal);
    }
    /// Ends a node's agent.
    pub fn stop_agent(&mut self, node: usize, signal: i32) {
        Self::end(&mut self.nodes[node].agent, signal);
    }
    /// Ends a node's ztunnel.
    pub fn stop_ztunnel(&mut self, node: usize, signal: i32) {
        Self::end(&mut self.nodes[node].ztunnel, signal);
    }
    /// Replaces a node's ztunnel as a rollout does: the new one is ready before the old one is told to stop. Gives the old one.
    pub fn replace_ztunnel(&mut self, node: usize, port: u16) -> Child {
        let new = self.start_ztunnel_at(node, port).unwrap();
        wait_for("new ztunnel ready", PATIENCE, || {
            let (status, _) = self.get(node, port + 21, "/healthz/ready").ok()?;
            (status == 200).then_some(())
        });
        let old = self.nodes[node].ztunnel.replace(new).expect("one was running");
        kill(old.id(), libc::SIGTERM);
        old
    }
    /// Process id of the controller.
    pub fn controller_pid(&self) -> u32 {
        self.controller.as_ref().expect("it runs").id()
    }
    /// Process id of a node's ztunnel.
    pub fn ztunnel_pid(&self, node: usize) -> u32 {
        self.nodes[node].ztunnel.as_ref().expect("it runs").id()
    }
    /// A log file's text.
    pub fn log_text(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join("logs").join(name)).unwrap_or_default()
    }
    /// Output of the agent's `--status` on a node.
    pub fn status(&self, node: usize) -> Result<String> {
        let out =
            in_netns(&self.nodes[node].ns, bin("karst-cni")).args(self.agent_args(node)).arg("--status").output()?;
        if !out.status.success() {
            bail!("{}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }
    /// Everything stays when the world goes: for people who want to look.
    pub fn keep(mut self) -> PathBuf {
        let dir = self.dir.clone();
        for n in &mut self.nodes {
            n.agent.take();
            n.ztunnel.take();
        }
        self.controller.take();
        self.waypoints.clear();
        std::mem::forget(self);
        dir
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the world's logs, last lines of each ({}):", self.dir.join("logs").display());
            for f in fs::read_dir(self.dir.join("logs")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(f.path()).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("--- {}", f.file_name().to_string_lossy());
                for l in &lines[lines.len().saturating_sub(15)..] {
                    eprintln!("{l}");
                }
            }
        }
        for n in &mut self.nodes {
            Self::end(&mut n.agent, libc::SIGKILL);
            Self::end(&mut n.ztunnel, libc::SIGKILL);
        }
        for (_, c) in std::mem::take(&mut self.waypoints) {
            Self::end(&mut Some(c), libc::SIGKILL);
        }
        Self::end(&mut self.controller, libc::SIGKILL);
        for i in 0..self.nodes.len() {
            let _ = fs::remove_dir_all(self.bpf_dir(i));
        }
        remove_namespaces(&self.prefix);
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

#[allow(unsafe_code, reason = "kill(2) and geteuid(2)")]
/// Sends a signal to a process that the caller started.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: a child of ours that has not been waited for.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Stops a process of the test's own and waits until each of its threads stands: kill(2) returns before that, and a thread that
/// still runs may take another connection from a listener.
pub fn stop(pid: u32) {
    kill(pid, libc::SIGSTOP);
    wait_for("all threads stopped", Duration::from_secs(5), || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let stopped = |t: fs::DirEntry| {
            let stat = fs::read_to_string(t.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|s| s.starts_with('T'))
        };
        tasks.flatten().all(stopped).then_some(())
    });
}

#[allow(unsafe_code, reason = "kill(2) and geteuid(2)")]
fn is_root() -> bool {
    // SAFETY: no preconditions.
    unsafe { libc::geteuid() == 0 }
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if !mounts.lines().any(|l| l.split(' ').nth(2) == Some("bpf") && l.contains(" /sys/fs/bpf ")) {
        net::run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]).context("cannot mount a bpffs")?;
    }
    fs::create_dir_all("/sys/fs/bpf/karst-test").context("bpffs")?;
    Ok(())
}

fn remove_namespaces(prefix: &str) {
    for f in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = f.file_name().to_string_lossy().into_owned();
        if name.starts_with(&format!("{prefix}-")) {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

/// Removes what worlds of processes that are gone have left: their processes, namespaces, pins and directories.
fn sweep() {
    for f in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = f.file_name().to_string_lossy().into_owned();
        let Some(prefix) = name.strip_prefix("karst-world-") else { continue };
        let Some(pid) = prefix.strip_prefix("kw").and_then(|p| p.split('x').next()) else { continue };
        if Path::new("/proc").join(pid).exists() || f.path().join("keep").exists() {
            continue;
        }
        for p in fs::read_to_string(f.path().join("pids")).unwrap_or_default().lines() {
            let exe = fs::read_link(format!("/proc/{p}/exe")).unwrap_or_default();
            let ours = ["ztunnel", "karst-cni", "karst-controller", "karst-waypoint"].iter().any(|b| exe.ends_with(b));
            if let (true, Ok(p)) = (ours, p.parse()) {
                kill(p, libc::SIGKILL);
            }
        }
        remove_namespaces(prefix);
        for d in fs::read_dir("/sys/fs/bpf/karst-test").into_iter().flatten().flatten() {
            if d.file_name().to_string_lossy().starts_with(&format!("{prefix}-")) {
                let _ = fs::remove_dir_all(d.path());
            }
        }
        let _ = fs::remove_dir_all(f.path());
    }
}
