//! The processes of the mesh: controller, agents, ztunnels.

use super::{
    CONTROLLER, World,
    process::{bin, in_netns, kill},
    wait::{PATIENCE, wait_for},
};
use crate::{http, istio::IstioAgent};
use anyhow::{Result, bail, ensure};
use karst_rt::netns::Netns;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

impl World {
    fn log(&self, name: &str) -> Result<Stdio> {
        let path = self.dir.join("logs").join(name);
        Ok(fs::OpenOptions::new().create(true).append(true).open(path)?.into())
    }

    pub(super) fn spawn(
        &self,
        ns: &str,
        log: &str,
        program: &Path,
        args: &[String],
        env: &[(String, String)],
    ) -> Result<Child> {
        ensure!(program.is_file(), "{} is not built: run cargo xtask build", program.display());
        let mut c = in_netns(ns, program);
        let child = c
            .args(args)
            .envs(env.iter().cloned())
            .envs(self.clock_env(ns)?)
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
    pub(super) fn token(&self, file: &str, account: &str, pod: &str, uid: &str, node: &str) -> Result<PathBuf> {
        let mut args = self.controller_args();
        let of = ["token", "--service-account", account, "--pod", pod, "--pod-uid", uid, "--node-name", node];
        args.extend(of.map(String::from));
        let out = Command::new(bin("karst-controller")).args(&args).output()?;
        ensure!(out.status.success(), "token: {}", String::from_utf8_lossy(&out.stderr));
        let path = self.dir.join("tokens").join(file);
        fs::write(&path, out.stdout)?;
        Ok(path)
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

    /// Starts Istio's agent on a node, in place of one that may run: it knows the node's pods that are in the mesh.
    pub fn start_istio_agent(&mut self, node: usize) -> Result<()> {
        self.nodes[node].istio.take();
        let known = karst_manifest::status::read(&self.dir.join("manifests"));
        let here =
            |p: &crate::Pod| p.spec.node == node && known.contains(&format!("{}/{}", p.spec.namespace, p.spec.name));
        let pods: Vec<_> = self.pods().into_iter().filter(here).collect();
        self.nodes[node].istio = Some(IstioAgent::start(&self.zds(node), &pods)?);
        Ok(())
    }

    /// Environment for the ztunnels that are started from now on.
    pub fn set_ztunnel_env(&mut self, env: Vec<(String, String)>) {
        self.options.ztunnel_env = env;
    }

    /// The program of the ztunnels that are started from now on; None: ours.
    pub fn set_ztunnel_bin(&mut self, program: Option<PathBuf>) {
        self.options.ztunnel_bin = program;
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

    /// Ends a process by signal and waits for it.
    pub(super) fn end(c: &mut Option<Child>, signal: i32) {
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
        self.succeed_ztunnel(node, new)
    }

    /// Another ztunnel of a node that is ready takes the place of the one that was there, which is told to stop. Gives the old one.
    pub fn succeed_ztunnel(&mut self, node: usize, new: Child) -> Child {
        let old = self.nodes[node].ztunnel.replace(new).expect("one was running");
        kill(old.id(), libc::SIGTERM);
        old
    }

    /// Process id of a node's agent; None while it is away.
    pub fn agent_pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].agent.as_ref().map(Child::id)
    }

    /// Process id of the controller.
    pub fn controller_pid(&self) -> u32 {
        self.controller.as_ref().expect("it runs").id()
    }

    /// Is there a controller?
    pub fn has_controller(&self) -> bool {
        self.controller.is_some()
    }

    /// Process id of a node's ztunnel.
    pub fn ztunnel_pid(&self, node: usize) -> u32 {
        self.nodes[node].ztunnel.as_ref().expect("it runs").id()
    }

    /// Process ids of what a node's ztunnel has started (KARST_WARM_SPARE), the oldest first: the process that serves, and the one
    /// that stands by, if it is there.
    pub fn ztunnel_children(&self, node: usize) -> Vec<u32> {
        let parent = self.ztunnel_pid(node);
        let mut found: Vec<(u64, u32)> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                // From the third field on: state, parent; the 22nd is when it was started.
                let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
                let runs = *fields.first()? != "Z" && fields.get(1)?.parse::<u32>() == Ok(parent);
                runs.then_some((fields.get(19)?.parse().ok()?, pid))
            })
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, pid)| pid).collect()
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
}
