//! Waypoints and gateways: pods with a process of ours in them.

use super::{
    CONTROLLER, World,
    pod::{Pod, PodSpec},
    process::{bin, kill},
    wait::{PATIENCE, wait_for},
};
use crate::http;
use anyhow::Result;
use std::{net::SocketAddr, path::Path, process::Child};

/// Value of the label by which the deployer marks gateways that are no waypoints (Istio's).
const GATEWAY: &str = "istio.io-gateway-controller";

impl World {
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
        self.launch_waypoint(p, program, env).expect("the waypoint starts");
        wait_for("the waypoint ready", PATIENCE, || self.is_waypoint_ready(p).then_some(()));
        self.settle();
    }

    /// The same, and waits for nothing.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch_waypoint(&mut self, p: &Pod, program: &Path, env: &[(&str, &str)]) -> Result<()> {
        let (s, node) = (&p.spec, self.nodes[p.spec.node].name.clone());
        let account = format!("{}/{}", s.namespace, s.account);
        let token = self.token(&p.ns, &account, &s.name, &p.ns, &node)?;
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
        let child = self.spawn(&p.ns, &log, program, args, &all)?;
        self.waypoints.insert(p.ns.clone(), child);
        Ok(())
    }

    /// Does a waypoint say that it is ready?
    pub fn is_waypoint_ready(&self, p: &Pod) -> bool {
        self.waypoint_page(p, 15021, "/healthz/ready").is_ok_and(|(status, _)| status == 200)
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

    /// Tells a waypoint's process to stop, and gives it.
    pub fn leave_waypoint(&mut self, p: &Pod) -> Child {
        let child = self.waypoints.remove(&p.ns).expect("it runs");
        kill(child.id(), libc::SIGTERM);
        child
    }

    /// Ends a waypoint's process by signal and waits for it.
    pub fn stop_waypoint(&mut self, p: &Pod, signal: i32) {
        Self::end(&mut self.waypoints.remove(&p.ns), signal);
    }
}
