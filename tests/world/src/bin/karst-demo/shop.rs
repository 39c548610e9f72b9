//! The shop that the demo is played in: a client, three pods of a service on two nodes, an intruder, and their applications.

use karst_world::{Pod, PodSpec, World, bin, http, wait_for};
use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    time::Duration,
};

/// Pods, and the address of their service.
pub struct Shop {
    /// A client on node 0.
    pub cart: Pod,
    /// The service's pods.
    pub stock: Vec<Pod>,
    /// The one on node 1.
    pub far: Pod,
    /// A member of the mesh from another namespace.
    pub intruder: Pod,
    /// The service.
    pub vip: SocketAddr,
}

impl Shop {
    /// Makes them; namespace `shop` is not of the mesh yet.
    pub fn new(w: &mut World) -> Self {
        w.namespace("shop", false);
        w.namespace("other", true);
        let cart = w.pod(PodSpec::new("shop", "cart", 0));
        let mut stock: Vec<Pod> = vec![];
        for i in 0..3 {
            let spec = PodSpec::new("shop", &format!("stock-{i}"), i % 2);
            stock.push(w.pod(spec.label("app", "stock").account("stock")));
        }
        let intruder = w.mesh_pod(PodSpec::new("other", "intruder", 0));
        w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: stock, namespace: shop}\nspec: {clusterIP: 10.96.0.10, selector: {app: stock}, ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 90, targetPort: 9090}]}\n");
        // Pods on node 1 are the far ones.
        let far = stock[1].clone();
        Self { cart, stock, far, intruder, vip: ([10, 96, 0, 10], 80).into() }
    }
}

/// The application processes of a pod; ended when dropped.
pub struct Apps(Vec<Child>);
impl Drop for Apps {
    fn drop(&mut self) {
        for c in &mut self.0 {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

/// The samples: HTTP on 8080, gRPC on 9090, raw TCP on 9000.
pub fn serve(p: &Pod) -> Apps {
    let programs =
        [("sample-http", None, 8080), ("sample-grpc", Some("serve"), 9090), ("sample-tcp", Some("serve"), 9000)];
    let start = |(program, role, port): (&str, Option<&str>, u16)| {
        let mut c = p.command(bin(program));
        c.args(role).args(["--listen", &format!("[::]:{port}"), "--name", &p.spec.name]);
        let child = c.stdout(Stdio::null()).spawn().expect("a sample starts");
        wait_for("application listens", Duration::from_secs(5), || {
            p.netns().run(|| http::connect(SocketAddr::from(([127, 0, 0, 1], port)))).ok()?.ok()
        });
        child
    };
    Apps(programs.into_iter().map(start).collect())
}

/// Who answers?
pub fn id(from: &Pod, to: SocketAddr) -> std::io::Result<String> {
    let (_, text) = http::get(from.connect(to)?, "/")?;
    let v: serde_json::Value = serde_json::from_str(&text).map_err(std::io::Error::other)?;
    v["name"].as_str().map(String::from).ok_or_else(|| std::io::Error::other("an answer without a name"))
}
