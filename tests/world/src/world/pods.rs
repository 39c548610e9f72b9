//! Making and removing pods.

use super::{
    World,
    pod::{Pod, PodSpec},
    wait::{PATIENCE, wait_for},
};
use crate::net::{ip, ip_in, namespace, veth};
use anyhow::Result;
use karst_rt::netns::Netns;
use std::{fs, net::IpAddr};

impl World {
    /// Makes a pod: its network namespace, then its manifest. Does not wait for its enrolment.
    pub fn pod(&mut self, spec: PodSpec) -> Pod {
        self.new_pod(spec, true)
    }

    /// The same; it is not ready ([`World::write_pod`]).
    pub fn unready_pod(&mut self, spec: PodSpec) -> Pod {
        self.new_pod(spec, false)
    }

    fn new_pod(&mut self, spec: PodSpec, ready: bool) -> Pod {
        let i = spec.node;
        let n = self.next_pod[i];
        self.next_pod[i] += 1;
        let uid = self.netns_of(&spec);
        self.make_pod(spec, uid, (n, format!("v{n}")), ready)
    }

    /// Makes a pod in place of one that is gone ([`World::lose_pod`]): with its name, node and addresses, but another account and
    /// another uid.
    pub fn pod_again(&mut self, before: &Pod, account: &str) -> Pod {
        let spec = before.spec.clone().account(account);
        let at = (before.number, format!("{}a", before.device));
        let pod = self.make_pod(spec, format!("{}-again", before.uid), at, true);
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

    fn make_pod(&mut self, spec: PodSpec, uid: String, (n, port): (u8, String), ready: bool) -> Pod {
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
        self.write_pod(&pod, ready);
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
        wait_for(&format!("pod {} redirected", p.ns), PATIENCE, || self.is_redirected(p).then_some(()));
    }

    /// Does the agent report a pod as redirected?
    pub fn is_redirected(&self, p: &Pod) -> bool {
        let node = &self.nodes[p.spec.node].name;
        self.dir.join(format!("manifests/.status/{node}/{}.{}", p.spec.namespace, p.spec.name)).exists()
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
        self.drop_pod(p).unwrap();
        self.settle();
    }

    /// Removes a pod without waiting.
    ///
    /// # Errors
    /// It is not there.
    pub fn drop_pod(&mut self, p: &Pod) -> Result<()> {
        self.erase(&format!("pod-{}-{}", p.spec.namespace, p.spec.name))?;
        self.pods.remove(&format!("{}/{}", p.spec.namespace, p.spec.name));
        ip(&format!("netns del {}", p.ns)).map(|_| ())
    }
}
