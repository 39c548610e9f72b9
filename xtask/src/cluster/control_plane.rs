//! etcd, API server, controller manager and scheduler.

use super::{
    access::{API, Cluster, NETNS, PODS, SERVICES},
    node,
    shell::sh,
};
use crate::report::Progress;
use anyhow::Result;

impl Cluster {
    /// Starts them, one after the other.
    pub fn control_plane(&self, nodes: u8, p: &Progress) -> Result<()> {
        let pki = self.pki().display().to_string();
        let names: Vec<String> = (1..=nodes).map(|i| format!("{}={}", node::name(i), node::address(i))).collect();
        let mut args = vec!["pki", &pki, API, "10.96.0.1"];
        args.extend(names.iter().map(String::as_str));
        sh(&self.bin.join("kube").display().to_string(), &args)?;
        let start = |name: &str, args: &[&str]| -> Result<()> {
            let bin = self.bin.join(name).display().to_string();
            let mut all = vec![format!("--net=/run/netns/{NETNS}"), bin];
            all.extend(args.iter().map(|a| a.replace("{pki}", &pki).replace("{run}", &self.run.display().to_string())));
            self.processes().start(name, "nsenter", &all, &[], &self.log().join(format!("{name}.log")))
        };
        start(
            "etcd",
            &[
                "--name=e",
                "--data-dir={run}/etcd",
                "--unsafe-no-fsync",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                "--initial-cluster=e=http://127.0.0.1:2380",
            ],
        )?;
        start(
            "kube-apiserver",
            &[
                "--etcd-servers=http://127.0.0.1:2379",
                &format!("--advertise-address={API}"),
                &format!("--bind-address={API}"),
                "--secure-port=6443",
                "--tls-cert-file={pki}/apiserver.crt",
                "--tls-private-key-file={pki}/apiserver.key",
                "--client-ca-file={pki}/ca.crt",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                "--service-account-key-file={pki}/sa.pub",
                "--service-account-signing-key-file={pki}/sa.key",
                &format!("--service-cluster-ip-range={SERVICES}"),
                "--enable-aggregator-routing=true",
                "--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
                "--kubelet-client-key={pki}/apiserver-kubelet-client.key",
                "--kubelet-preferred-address-types=InternalIP",
                "--requestheader-client-ca-file={pki}/ca.crt",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--proxy-client-cert-file={pki}/front-proxy-client.crt",
                "--proxy-client-key-file={pki}/front-proxy-client.key",
            ],
        )?;
        self.until("the API server", 60, || Ok(self.output(&["get", "--raw=/readyz"])?.is_some_and(|t| t == "ok")))?;
        p.say("API server ready");
        start(
            "kube-controller-manager",
            &[
                "--kubeconfig={pki}/kube-controller-manager.kubeconfig",
                "--authentication-kubeconfig={pki}/kube-controller-manager.kubeconfig",
                "--authorization-kubeconfig={pki}/kube-controller-manager.kubeconfig",
                "--service-account-private-key-file={pki}/sa.key",
                "--root-ca-file={pki}/ca.crt",
                "--use-service-account-credentials=true",
                "--cluster-signing-cert-file={pki}/ca.crt",
                "--cluster-signing-key-file={pki}/ca.key",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                "--allocate-node-cidrs=true",
                &format!("--cluster-cidr={PODS}"),
                &format!("--service-cluster-ip-range={SERVICES}"),
                "--node-monitor-grace-period=20s",
            ],
        )?;
        start(
            "kube-scheduler",
            &[
                "--kubeconfig={pki}/kube-scheduler.kubeconfig",
                "--authentication-kubeconfig={pki}/kube-scheduler.kubeconfig",
                "--authorization-kubeconfig={pki}/kube-scheduler.kubeconfig",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
            ],
        )
    }
}
