//! `cargo xtask bench mesh`: the memory of a node's ztunnel in a large mesh, told of all of it and on demand (`XDS_ON_DEMAND`).
//!
//! The node and its one pod are real, and so are agent, controller and ztunnel; the rest of the mesh is manifests only. The pod
//! calls services of it, whose endpoints nobody reaches: what ztunnel has to know of them it has to know before that.

use crate::measure::{Opts, Samples, status_kib};
use anyhow::{Context, Result, ensure};
use karst_world::{Options, PodSpec, World, wait_for};
use std::{fmt::Write, net::SocketAddr, time::Duration};

/// How long the controller, the agent and ztunnel may take with all those manifests.
const PATIENCE: Duration = Duration::from_secs(900);
/// Until what was freed is given back.
const REST: Duration = Duration::from_secs(10);
/// What a ztunnel on demand may need in the mesh that is the default, at any time.
const GOAL_MIB: f64 = 50.0;
/// That mesh: services, pods, nodes.
const LARGE: [usize; 3] = [10_000, 100_000, 5000];

struct Size {
    services: usize,
    pods: usize,
    nodes: usize,
    /// Services that the pod calls.
    called: usize,
}

/// Runs it.
pub fn run(o: &Opts) -> Result<Samples> {
    let [services, pods, nodes] = LARGE;
    let size = Size {
        services: o.count("services", services)?,
        pods: o.count("pods", pods)?,
        nodes: o.count("nodes", nodes)?,
        called: o.count("called", 20)?,
    };
    ensure!((1..=60_000).contains(&size.services), "--services must be at least 1, at most 60000");
    ensure!((1..=30_000).contains(&size.nodes), "--nodes must be at least 1, at most 30000");
    ensure!(size.pods.div_ceil(size.nodes) <= 250, "--pods must be at most 250 for each node");
    ensure!(size.called <= size.services, "--called must be at most --services");
    let manifests = manifests(&size)?;
    let mut samples = Samples::default();
    for (variant, on_demand) in [("all", "false"), ("on demand", "true")] {
        if !o.skips(variant) {
            one(&mut samples, variant, on_demand, &size, &manifests)?;
        }
    }
    Ok(samples)
}

fn one(s: &mut Samples, variant: &str, on_demand: &str, size: &Size, manifests: &str) -> Result<()> {
    let ztunnel_env = vec![("XDS_ON_DEMAND".into(), on_demand.into())];
    let mut w = World::start(Options { nodes: 1, ztunnel_env, ..Options::default() })?;
    w.namespace("mesh", true);
    let client = w.mesh_pod(PodSpec::new("mesh", "client", 0));
    let mut look = |case: &str| {
        std::thread::sleep(REST);
        println!("{variant}: {case}");
        s.add(case, variant, "MiB RSS", status_kib(w.ztunnel_pid(0), "VmRSS:") / 1024.0);
    };
    look("1 no mesh beside it");
    w.write("large", manifests)?;
    w.settle_within(PATIENCE);
    look("2 in the large mesh");
    for k in 0..size.called {
        let to = SocketAddr::new(service_ip(k * 997 % size.services).parse()?, 80);
        client.connect(to).with_context(|| format!("the pod's connection to {to}"))?;
    }
    if on_demand == "true" {
        wait_for("the services that were called are followed", Duration::from_secs(60), || {
            (w.metric(0, "karst_xds_names_followed", &[]) >= size.called as f64).then_some(())
        });
    }
    look("3 after calls");
    s.add("4 the most", variant, "MiB RSS", status_kib(w.ztunnel_pid(0), "VmHWM:") / 1024.0);
    // A smaller mesh says nothing about it.
    let is_large = [size.services, size.pods, size.nodes].into_iter().zip(LARGE).all(|(given, large)| given >= large);
    if on_demand == "true" && is_large {
        for case in ["2 in the large mesh", "3 after calls", "4 the most"] {
            s.goal(case, variant, "MiB RSS", GOAL_MIB);
        }
    }
    Ok(())
}

fn service_ip(service: usize) -> String {
    format!("10.96.{}.{}", service / 250, service % 250 + 1)
}

fn manifests(size: &Size) -> Result<String> {
    const NAMESPACES: usize = 50;
    let namespace = |service: usize| format!("team-{}", service % NAMESPACES);
    let mut t = String::new();
    for i in 0..NAMESPACES {
        write!(
            t,
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: team-{i}, labels: {{istio.io/dataplane-mode: ambient}}}}\n"
        )?;
        for kind in ["a", "b"] {
            write!(
                t,
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: allow-{kind}, namespace: team-{i}}}\nspec: {{selector: {{matchLabels: {{app: service-{i}}}}}, rules: [{{from: [{{source: {{namespaces: [team-{i}, {kind}]}}}}]}}]}}\n"
            )?;
        }
    }
    for i in 0..size.nodes {
        write!(
            t,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: large-{i}, labels: {{topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-{}}}}}\nspec: {{podCIDRs: [10.{}.{}.0/24]}}\n",
            i % 3,
            100 + i / 256,
            i % 256
        )?;
    }
    for i in 0..size.services {
        write!(
            t,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: service-{i}, namespace: {}}}\nspec: {{clusterIP: {}, selector: {{app: service-{i}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n",
            namespace(i),
            service_ip(i)
        )?;
    }
    let each = size.pods.div_ceil(size.nodes);
    for i in 0..size.pods {
        let (service, node, number) = (i % size.services, i / each, i % each);
        write!(
            t,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: service-{service}-7d4b9c8f6-{i:05}, namespace: {}, uid: uid-{i}, labels: {{app: service-{service}, version: v1}}, annotations: {{ambient.istio.io/redirection: enabled}}}}\nspec: {{nodeName: large-{node}, serviceAccountName: service-{service}}}\nstatus: {{phase: Running, podIP: 10.{}.{}.{}, conditions: [{{type: Ready, status: 'True'}}]}}\n",
            namespace(service),
            100 + node / 256,
            node % 256,
            number + 1
        )?;
    }
    Ok(t)
}
