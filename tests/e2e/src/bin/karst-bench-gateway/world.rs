//! The gateway on the cluster, and the first test: where its parts run.

use crate::{
    api::{Api, GATEWAY_API, Proxy},
    backend::Backend,
    http::Client,
    objects::{self, EDGE, GATEWAY, LABEL},
    options::Options,
    report::{Aim, Report},
    usage::Process,
};
use anyhow::{Context, Result, ensure};
use karst_e2e::{Pod, kubectl, link, try_kubectl};
use serde_json::json;
use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

/// For what takes some seconds.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For thousands of objects to go.
const CLEARING: Duration = Duration::from_secs(600);

/// A process that ends with this.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All that the tests share.
pub struct World {
    /// The way to the API server.
    pub proxy: Proxy,
    /// Where the gateway's pod listens.
    pub gateway: SocketAddr,
    /// The gateway's pod.
    pub pod: Pod,
    /// Its process.
    pub process: Process,
    /// The control plane's.
    pub controller: Process,
    /// The node of gateway and control plane.
    pub home: String,
    /// The other node.
    pub away: String,
    /// So many namespaces are under load (route scale), with so many apps each.
    pub loaded: Option<(usize, usize)>,
}

impl World {
    /// Makes the gateway, beside the control plane, and removes what an earlier run has left.
    pub fn start(report: &Report) -> Result<Self> {
        kubectl(&["delete", "namespace", "-l", LABEL, "--timeout=600s"]);
        kubectl(&["delete", "node", "-l", LABEL]);
        let node = |label: &str| {
            kubectl(&["-n", "istio-system", "get", "pod", "-l", label, "-o", "jsonpath={.items[0].spec.nodeName}"])
        };
        let home = node("app=istiod");
        let all = kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
        let away = all.split_whitespace().find(|name| *name != home).context("the cluster has one node")?.to_string();
        let proxy = Proxy::start()?;
        let mut api = proxy.api();
        objects::namespace(&mut api, EDGE)?;
        kubectl(&["cordon", &away]);
        gateway(&mut api, GATEWAY)?;
        let own = format!("gateways.gateway.networking.k8s.io/{GATEWAY}");
        kubectl(&["-n", EDGE, "wait", "--for=condition=Programmed", "--timeout=60s", &own]);
        kubectl(&["-n", EDGE, "rollout", "status", &format!("deploy/{GATEWAY}-istio"), "--timeout=60s"]);
        kubectl(&["uncordon", &away]);
        let pod = Pod::by_label(EDGE, &format!("gateway.networking.k8s.io/gateway-name={GATEWAY}"));
        let process = Process::of(&pod, "karst-waypoint")?;
        let controller = Process::of(&Pod::by_label("istio-system", "app=istiod"), "karst-controller")?;
        report.say(&format!("the gateway runs on {home}: {}", pod.ip));
        let gateway = pod.at(80);
        Ok(Self { proxy, gateway, pod, process, controller, home, away, loaded: None })
    }

    /// A client of the gateway.
    pub fn client(&self) -> Client {
        Client::new(&link(), self.gateway)
    }

    /// A running pod in the gateway's namespace, on a node.
    pub fn run_pod(&self, name: &str, app: &str, node: &str) -> Result<Pod> {
        self.proxy.api().create(&objects::core(EDGE, "pods"), &objects::pod(name, app, node))?;
        kubectl(&["-n", EDGE, "wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]);
        Ok(Pod::get(EDGE, name))
    }

    /// A pod that answers with its name at a port, and a Service of the same name.
    pub fn backend(&self, name: &str, ports: &[(u16, u16)]) -> Result<Vec<Backend>> {
        let pod = self.run_pod(name, name, &self.home)?;
        let its = ports.iter().map(|(_, target)| Backend::start(&pod, *target, &format!("{name}-{target}")));
        let backends = its.collect::<Result<Vec<_>>>()?;
        self.proxy.api().create(&objects::core(EDGE, "services"), &objects::service(name, name, ports))?;
        Ok(backends)
    }

    /// Removes namespaces, and waits until all that was in them is gone: the next test would measure it.
    pub fn remove(&self, namespaces: &[String]) -> Result<()> {
        let path = |name: &String| format!("/api/v1/namespaces/{name}");
        let (mut api, end) = (self.proxy.api(), Instant::now() + CLEARING);
        namespaces.iter().try_for_each(|name| api.delete(&path(name)))?;
        for name in namespaces {
            while api.get(&path(name))?.is_some() {
                ensure!(Instant::now() < end, "namespace {name} is still there after {} s", CLEARING.as_secs());
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// Waits until a request is answered so.
    pub fn until(&self, host: &str, path: &str, is_it: impl Fn(u16) -> bool) -> Result<()> {
        let (mut client, end) = (self.client(), Instant::now() + PATIENCE);
        loop {
            let status = client.get(host, path).map(|answer| answer.status);
            if status.as_ref().is_ok_and(|status| is_it(*status)) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{host}{path} is still answered {status:?} after {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Makes a Gateway with one listener of HTTP that takes all routes, and all ListenerSets, where there are some.
pub fn gateway(api: &mut Api, name: &str) -> Result<()> {
    let all = json!({ "namespaces": { "from": "All" } });
    let mut object = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": name, "annotations": { "networking.istio.io/service-type": "ClusterIP" } },
        "spec": {
            "gatewayClassName": "istio",
            "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": all }],
        },
    });
    if api.get(&format!("{GATEWAY_API}/listenersets"))?.is_some() {
        object["spec"]["allowedListeners"] = all;
    }
    api.create(&format!("{GATEWAY_API}/namespaces/{EDGE}/gateways"), &object).map(drop)
}

/// One of our programs, as it was built with this one.
pub fn program(name: &str) -> Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// Runs a command of `cargo xtask`, which has started this one and says where it is.
pub fn xtask(args: &[&str]) -> Result<()> {
    let xtask = std::env::var_os("KARST_XTASK").context("KARST_XTASK is not set: cargo xtask bench gateway-api")?;
    let status = Command::new(xtask).args(args).status().context("xtask")?;
    ensure!(status.success(), "xtask {} has failed", args.join(" "));
    Ok(())
}

/// Read off, not measured: planes are split, and each Gateway has a data plane of its own, in its own namespace, of a class that was
/// there before.
pub fn architecture(world: &mut World, _: &Options, report: &mut Report) -> Result<()> {
    let test = "architecture";
    let yes = |is_so: bool| if is_so { 1.0 } else { 0.0 };
    let own = try_kubectl(&["-n", EDGE, "get", "deployment", &format!("{GATEWAY}-istio"), "-o", "name"]).is_ok();
    report.note(test, "data plane of its own in the Gateway's namespace", Aim::Exactly(1.0), yes(own), "");
    let split = Process::of(&world.pod, "karst-controller").is_err();
    report.note(test, "the control plane runs elsewhere", Aim::Exactly(1.0), yes(split), "");
    let class = try_kubectl(&["get", "gatewayclass", "istio", "-o", "name"]).is_ok();
    report.note(test, "the class was there before", Aim::Exactly(1.0), yes(class), "");
    Ok(())
}
