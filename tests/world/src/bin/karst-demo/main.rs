//! The demo: a two-node mesh with real processes, and a table of what is claimed, expected and measured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

mod l7;
mod table;

use anyhow::{Result, ensure};
use karst_world::{Options, Pod, PodSpec, World, app, bin, http, wait_for};
use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    time::{Duration, Instant},
};
use table::Table;

const MARK: &[u8] = b"karst-demo-secret-4711-do-not-leak";

/// The application processes of a pod; ended when dropped.
struct Apps(Vec<Child>);
impl Drop for Apps {
    fn drop(&mut self) {
        for c in &mut self.0 {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

/// The samples: HTTP on 8080, gRPC on 9090, raw TCP on 9000.
fn serve(p: &Pod) -> Apps {
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
fn id(from: &Pod, to: SocketAddr) -> std::io::Result<String> {
    let (_, text) = http::get(from.connect(to)?, "/")?;
    let v: serde_json::Value = serde_json::from_str(&text).map_err(std::io::Error::other)?;
    v["name"].as_str().map(String::from).ok_or_else(|| std::io::Error::other("an answer without a name"))
}

/// What an unprivileged process, and a stranger with a port scanner, can do.
fn attacks(w: &mut World, t: &mut Table, cart: &Pod, outsider: &Pod, far: &Pod) -> Result<()> {
    let victim = w.mesh_pod(PodSpec::new("shop", "victim", 0));
    let echo = app::Echo::start(&victim, 8080, "");
    let bound = |source: &str| -> std::io::Result<()> {
        let source: SocketAddr = source.parse().map_err(std::io::Error::other)?;
        let mut s = cart.netns().run(|| {
            let s = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            s.bind(&source.into())?;
            s.connect_timeout(&victim.at(8080).into(), Duration::from_secs(3))?;
            std::io::Result::Ok(std::net::TcpStream::from(s))
        })??;
        app::ping(&mut s, b"who am I?")
    };
    let (loopback, usual) = (bound("127.0.0.1:0"), bound("0.0.0.0:0"));
    let peers: Vec<String> =
        echo.peers.lock().map(|p| p.iter().map(|a| a.ip().to_string()).collect()).unwrap_or_default();
    let refused = if loopback.is_err() { "refused" } else { "served" };
    t.row(
        "a process binds 127.0.0.1 and calls its neighbour on the node",
        "refused; the neighbour sees the pod's address only",
        format!("{refused}; it has seen {}", peers.join(", ")),
        loopback.is_err() && usual.is_ok() && peers == [cart.ip.to_string()],
    );

    let descriptors =
        |w: &World| Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{}/fd", w.ztunnel_pid(0)))?.count());
    let before = descriptors(w)?;
    let begun = Instant::now();
    let failed = std::thread::scope(|s| {
        let scan = s.spawn(|| {
            outsider.netns().run(|| {
                (1..=65_535u16).for_each(|port| {
                    let _ = std::net::TcpStream::connect_timeout(&victim.at(port), Duration::from_secs(2));
                });
            })
        });
        let mut failed = 0;
        while !scan.is_finished() {
            failed += usize::from(id(cart, far.at(8080)).is_err());
            std::thread::sleep(Duration::from_millis(20));
        }
        failed
    });
    let back = wait_for("the descriptors come back", Duration::from_secs(20), || {
        descriptors(w).ok().filter(|n| *n < before + 100)
    });
    t.row(
        "a stranger scans all ports of a pod, ztunnel's too",
        "0 of the node's other connections fail",
        format!("{failed} failed in {:.1} s; descriptors {before}, then {back}", begun.elapsed().as_secs_f64()),
        failed == 0,
    );
    drop(echo);
    w.remove_pod(&victim);
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let keep = args.iter().any(|a| a == "--keep");
    let report = args.iter().find_map(|a| a.strip_prefix("--report="));
    let mut t = Table::new();

    t.step("starting two nodes, each with agent and ztunnel, and a controller");
    let mut w = World::start(Options::default())?;
    w.namespace("shop", false);
    w.namespace("other", true);
    let cart = w.pod(PodSpec::new("shop", "cart", 0));
    let mut stock: Vec<Pod> = vec![];
    for i in 0..3 {
        stock.push(w.pod(PodSpec::new("shop", &format!("stock-{i}"), i % 2).label("app", "stock").account("stock")));
    }
    let intruder = w.mesh_pod(PodSpec::new("other", "intruder", 0));
    w.apply("svc", "apiVersion: v1\nkind: Service\nmetadata: {name: stock, namespace: shop}\nspec: {clusterIP: 10.96.0.10, selector: {app: stock}, ports: [{name: http, port: 80, targetPort: 8080}, {name: grpc, port: 90, targetPort: 9090}]}\n");
    let vip: SocketAddr = ([10, 96, 0, 10], 80).into();
    t.step("starting the applications (samples/: HTTP, gRPC, raw TCP), which know nothing of the mesh");
    let mut apps: Vec<Option<Apps>> = stock.iter().map(|p| Some(serve(p))).collect();
    // Pods on node 1 are the far ones.
    let far = stock[1].clone();

    let sniffer = w.sniffer(MARK);
    app::exchange(&mut cart.connect(far.at(9000))?, MARK)?;
    let before = sniffer.seen();
    t.row(
        "before enrolment the wire is readable",
        "marker seen",
        format!("marker in {} frames", before.marked),
        before.marked > 0,
    );
    drop(sniffer);

    let mut held: Vec<_> = (0..20).map(|_| cart.connect(far.at(9000)).unwrap()).collect();
    let label = Instant::now();
    w.namespace("shop", true);
    for p in [&cart].into_iter().chain(&stock) {
        w.wait_enrolled(p);
    }
    let ms = label.elapsed().as_millis();
    let broken = held.iter_mut().filter_map(|s| app::ping(s, b"still here").err()).count();
    t.row(
        "label a namespace: its 4 running pods join",
        "0 restarts, 0 broken",
        format!("{ms} ms, {broken} of 20 open connections broken"),
        broken == 0,
    );

    let sniffer = w.sniffer(MARK);
    let mut sizes = 0;
    for to in [far.at(9000), far.at6(9000)] {
        sizes += app::exchange(&mut cart.connect(to)?, &MARK.repeat(1000))?.len();
    }
    let seen = sniffer.seen();
    t.row(
        "bytes between the nodes are encrypted, IPv4 and IPv6",
        "0 frames with the marker, only port 15008",
        format!("{} of {} frames, {} TCP frames on other ports", seen.marked, seen.frames, seen.other_tcp),
        seen.marked == 0 && seen.other_tcp == 0 && seen.hbone > 0 && sizes == 2 * 1000 * MARK.len(),
    );
    drop(sniffer);

    std::thread::sleep(Duration::from_millis(50));
    let log = w.log_text("ztunnel1.log");
    let identity = "spiffe://cluster.local/ns/shop/sa/cart";
    let known = log.contains(&format!("src.identity=\"{identity}\""));
    t.row(
        "the server side knows its caller",
        identity,
        if known { identity.into() } else { "not in the access log".into() },
        known,
    );

    let mut by = std::collections::BTreeMap::new();
    for _ in 0..60 {
        *by.entry(id(&cart, vip)?).or_insert(0) += 1;
    }
    let all = by.len() == 3 && by.values().all(|n| *n >= 8);
    t.row(
        "a service address balances over its pods",
        "3 pods, each at least 8 of 60",
        format!("{:?}", by.values().collect::<Vec<_>>()),
        all,
    );

    let grpc = SocketAddr::new(vip.ip(), 90).to_string();
    let out = cart.command(bin("sample-grpc")).args(["call", &grpc, "--calls", "100", "--stream", "1000"]).output()?;
    let said = String::from_utf8_lossy(if out.status.success() { &out.stdout } else { &out.stderr }).trim().to_string();
    t.row(
        "gRPC: 100 calls and a stream of 1000 replies on a connection",
        "1100 replies of one pod",
        said.clone(),
        out.status.success() && said.ends_with(": 1100 replies"),
    );

    w.apply("allow", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-cart, namespace: shop}\nspec: {selector: {matchLabels: {app: stock}}, action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}\n");
    let (yes, no) = (id(&cart, vip).is_ok(), id(&intruder, vip).is_err());
    t.row(
        "policy by identity",
        "cart allowed, intruder refused",
        format!(
            "cart {}, intruder {}",
            if yes { "allowed" } else { "refused" },
            if no { "refused" } else { "allowed" }
        ),
        yes && no,
    );
    w.delete("allow");

    let mut open = intruder.connect(far.at(9000))?;
    app::ping(&mut open, b"open")?;
    let change = Instant::now();
    w.write("deny", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-others, namespace: shop}\nspec: {selector: {matchLabels: {app: stock}}, action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}]}\n")?;
    open.set_read_timeout(Some(Duration::from_secs(3)))?;
    let closed =
        !matches!(std::io::Read::read(&mut open, &mut [0; 1]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
    t.row(
        "a new deny policy closes open connections too",
        "closed",
        format!("{} after {} ms", if closed { "closed" } else { "open" }, change.elapsed().as_millis()),
        closed,
    );
    w.delete("deny");

    let outsider = {
        w.namespace("legacy", false);
        let p = w.pod(PodSpec::new("legacy", "old", 0));
        w.settle();
        p
    };
    let permissive = id(&outsider, far.at(8080)).is_ok();
    w.apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n");
    let (plaintext, member) = (id(&outsider, far.at(8080)), id(&cart, far.at(8080)));
    let seen = |r: &std::io::Result<String>| match r {
        Ok(_) => "served".to_string(),
        Err(e) if e.kind() == std::io::ErrorKind::TimedOut => "no answer".into(),
        Err(_) => "refused".into(),
    };
    t.row(
        "STRICT refuses plaintext",
        "before: served, after: refused; a member: served",
        format!(
            "before: {}, after: {}; a member: {}",
            if permissive { "served" } else { "refused" },
            seen(&plaintext),
            seen(&member)
        ),
        permissive && plaintext.is_err() && member.is_ok(),
    );

    attacks(&mut w, &mut t, &cart, &outsider, &far)?;
    let probe = w.nodes[1].netns.run(|| http::connect(far.at(8080)))?.and_then(|s| http::get(s, "/")).is_ok();
    t.row(
        "the node's own probes still reach the pods",
        "answered",
        if probe { "answered" } else { "refused" }.into(),
        probe,
    );

    apps[0].take();
    let ok = (0..40).filter(|_| id(&cart, vip).is_ok()).count();
    t.row("an endpoint does not listen any more: no connection is lost", "40 of 40", format!("{ok} of 40"), ok == 40);
    w.write_pod(&stock[0], false);
    w.settle();
    let ok = (0..40).filter(|_| id(&cart, vip).is_ok()).count();
    t.row("a pod dies: the others take over", "40 of 40", format!("{ok} of 40"), ok == 40);

    l7::show(&mut w, &mut t);
    l7::gateway(&mut w, &mut t);
    l7::egress(&mut w, &mut t);

    let kill = |w: &mut World, what: &str, t: &mut Table| {
        let (c, to) = (cart.clone(), far.at(8080));
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let st = stop.clone();
        let load = std::thread::spawn(move || {
            let (mut ok, mut refused, mut slowest) = (0, 0, Duration::ZERO);
            while !st.load(std::sync::atomic::Ordering::Relaxed) {
                let at = Instant::now();
                match c.connect(to) {
                    Ok(s) => ok += usize::from(http::get(s, "/").is_ok()),
                    Err(_) => refused += 1,
                }
                slowest = slowest.max(at.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            (ok, refused, slowest)
        });
        std::thread::sleep(Duration::from_millis(300));
        match what {
            "ztunnel" => {
                w.stop_ztunnel(0, 9);
                w.start_ztunnel(0).unwrap();
                w.wait_ztunnel(0);
            }
            "agent" => {
                w.stop_agent(0, 9);
                w.start_agent(0).unwrap();
            }
            _ => w.stop_controller(9),
        }
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (ok, refused, slowest) = load.join().unwrap();
        t.row(
            &format!("kill -9 {what} under load"),
            "0 connections refused",
            format!("{refused} refused, {ok} served, longest wait {} ms", slowest.as_millis()),
            refused == 0 && ok > 20,
        );
    };
    kill(&mut w, "ztunnel", &mut t);
    kill(&mut w, "agent", &mut t);
    kill(&mut w, "controller", &mut t);

    t.print();
    if let Some(path) = report {
        std::fs::write(path, serde_json::to_string_pretty(&t.json())?)?;
    }
    let all = t.all_hold();
    if keep {
        w.start_controller()?;
        let (node, ns) = (w.nodes[0].ns.clone(), cart.ns.clone());
        apps.into_iter().flatten().for_each(std::mem::forget);
        let status =
            format!("ip netns exec {node} {} {} --status", bin("karst-cni").display(), w.agent_args(0).join(" "));
        let dir = w.keep();
        std::fs::write(dir.join("keep"), "")?;
        println!("\nThe mesh is left running. Try:");
        println!("  ip netns exec {ns} curl -s http://10.96.0.10/              # call the service from the cart's pod");
        println!("  tail -f {}/logs/ztunnel1.log                # the access log of node 1", dir.display());
        println!("  ip netns exec {node} curl -s http://127.0.0.1:15000/config_dump  # the admin page of node 0");
        println!("  {status}");
        println!("  ls {}/manifests                              # edit them and watch", dir.display());
        println!(
            "Remove it: rm {}/keep, then run the demo again (it sweeps what is left of earlier ones).",
            dir.display()
        );
    }
    ensure!(all, "a claim does not hold");
    Ok(())
}
