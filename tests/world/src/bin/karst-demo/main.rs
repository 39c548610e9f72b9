//! The demo: a two-node mesh with real processes, and a table of what is claimed, expected and measured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod edge;
mod l4;
mod l7;
mod restarts;
mod shop;
mod table;

use anyhow::{Result, ensure};
use karst_world::{Options, World, bin};
use shop::{Apps, Shop, serve};
use table::Table;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let keep = args.iter().any(|a| a == "--keep");
    let report = args.iter().find_map(|a| a.strip_prefix("--report="));
    let mut t = Table::new();

    t.step("starting two nodes, each with agent and ztunnel, and a controller");
    let mut w = World::start(Options::default())?;
    let shop = Shop::new(&mut w);
    t.step("starting the applications (samples/: HTTP, gRPC, raw TCP), which know nothing of the mesh");
    let mut apps: Vec<Option<Apps>> = shop.stock.iter().map(|p| Some(serve(p))).collect();

    let _held = l4::enrolment(&w, &mut t, &shop)?;
    l4::encryption(&w, &mut t, &shop)?;
    l4::balancing(&mut t, &shop)?;
    l4::policies(&w, &mut t, &shop)?;
    let outsider = l4::strict(&mut w, &mut t, &shop);
    l4::attacks(&mut w, &mut t, &shop.cart, &outsider, &shop.far)?;
    l4::probes(&w, &mut t, &shop)?;
    restarts::endpoints(&w, &mut t, &shop, &mut apps);
    l7::show(&mut w, &mut t);
    l7::gateway(&mut w, &mut t);
    edge::show(&mut w, &mut t);
    l7::egress(&mut w, &mut t);
    for what in ["ztunnel", "agent", "controller"] {
        restarts::kill(&mut w, what, &mut t, &shop);
    }

    t.print();
    if let Some(path) = report {
        std::fs::write(path, serde_json::to_string_pretty(&t.json())?)?;
    }
    if keep {
        leave_running(w, &shop, apps)?;
    }
    ensure!(t.all_hold(), "a claim does not hold");
    Ok(())
}

/// Everything stays, and what can be tried is said.
fn leave_running(mut w: World, shop: &Shop, apps: Vec<Option<Apps>>) -> Result<()> {
    w.start_controller()?;
    let (node, ns) = (w.nodes[0].ns.clone(), shop.cart.ns.clone());
    apps.into_iter().flatten().for_each(std::mem::forget);
    let status = format!("ip netns exec {node} {} {} --status", bin("karst-cni").display(), w.agent_args(0).join(" "));
    let dir = w.keep();
    std::fs::write(dir.join("keep"), "")?;
    println!("\nThe mesh is left running. Try:");
    println!("  ip netns exec {ns} curl -s http://10.96.0.10/              # call the service from the cart's pod");
    println!("  tail -f {}/logs/ztunnel1.log                # the access log of node 1", dir.display());
    println!("  ip netns exec {node} curl -s http://127.0.0.1:15000/config_dump  # the admin page of node 0");
    println!("  {status}");
    println!("  ls {}/manifests                              # edit them and watch", dir.display());
    println!("Remove it: rm {}/keep, then run the demo again (it sweeps what is left of earlier ones).", dir.display());
    Ok(())
}
