//! Layer 4: enrolment, encryption, identity, balancing, policies, and what attackers can do.

use crate::{
    shop::{Shop, id},
    table::Table,
};
use anyhow::Result;
use karst_world::{Pod, PodSpec, World, app, bin, http, wait_for};
use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

const MARK: &[u8] = b"karst-demo-secret-4711-do-not-leak";
/// A refusal is a reset, at once. What is held is reset after 5 or 10 s (`HOLD_TIMEOUT`, `CONNECT_TIMEOUT`) or not at all: no answer.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);

/// The shop's namespace joins while it works. Gives connections from before, which stay open.
pub fn enrolment(w: &World, t: &mut Table, shop: &Shop) -> Result<Vec<TcpStream>> {
    let sniffer = w.sniffer(MARK);
    app::exchange(&mut shop.cart.connect(shop.far.at(9000))?, MARK)?;
    let before = sniffer.seen();
    t.row(
        "before enrolment the wire is readable",
        "marker seen",
        format!("marker in {} frames", before.marked),
        before.marked > 0,
    );
    drop(sniffer);

    let mut held: Vec<_> = (0..20).map(|_| shop.cart.connect(shop.far.at(9000)).unwrap()).collect();
    let label = Instant::now();
    w.namespace("shop", true);
    for p in [&shop.cart].into_iter().chain(&shop.stock) {
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
    Ok(held)
}

/// What is on the wire, and who is known behind it.
pub fn encryption(w: &World, t: &mut Table, shop: &Shop) -> Result<()> {
    let sniffer = w.sniffer(MARK);
    let mut sizes = 0;
    for to in [shop.far.at(9000), shop.far.at6(9000)] {
        sizes += app::exchange(&mut shop.cart.connect(to)?, &MARK.repeat(1000))?.len();
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
    Ok(())
}

/// The service's address, with HTTP and gRPC.
pub fn balancing(t: &mut Table, shop: &Shop) -> Result<()> {
    let mut by = std::collections::BTreeMap::new();
    for _ in 0..60 {
        *by.entry(id(&shop.cart, shop.vip)?).or_insert(0) += 1;
    }
    let all = by.len() == 3 && by.values().all(|n| *n >= 8);
    t.row(
        "a service address balances over its pods",
        "3 pods, each at least 8 of 60",
        format!("{:?}", by.values().collect::<Vec<_>>()),
        all,
    );

    let grpc = SocketAddr::new(shop.vip.ip(), 90).to_string();
    let out =
        shop.cart.command(bin("sample-grpc")).args(["call", &grpc, "--calls", "100", "--stream", "1000"]).output()?;
    let said = String::from_utf8_lossy(if out.status.success() { &out.stdout } else { &out.stderr }).trim().to_string();
    t.row(
        "gRPC: 100 calls and a stream of 1000 replies on a connection",
        "1100 replies of one pod",
        said.clone(),
        out.status.success() && said.ends_with(": 1100 replies"),
    );
    Ok(())
}

/// By identity; also for what is open already.
pub fn policies(w: &World, t: &mut Table, shop: &Shop) -> Result<()> {
    w.apply("allow", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-cart, namespace: shop}\nspec: {selector: {matchLabels: {app: stock}}, action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]}\n");
    let (yes, no) = (id(&shop.cart, shop.vip).is_ok(), id(&shop.intruder, shop.vip).is_err());
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

    let mut open = shop.intruder.connect(shop.far.at(9000))?;
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
    Ok(())
}

/// STRICT, and who calls from outside the mesh. Gives that one.
pub fn strict(w: &mut World, t: &mut Table, shop: &Shop) -> Pod {
    w.namespace("legacy", false);
    let outsider = w.pod(PodSpec::new("legacy", "old", 0));
    w.settle();
    let permissive = id(&outsider, shop.far.at(8080)).is_ok();
    w.apply("strict", "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n");
    let seen = |from: &Pod| {
        let begun = Instant::now();
        match id(from, shop.far.at(8080)) {
            Ok(_) => "served",
            Err(_) if begun.elapsed() < REFUSED_WITHIN => "refused",
            Err(_) => "no answer",
        }
    };
    let (plaintext, member) = (seen(&outsider), seen(&shop.cart));
    t.row(
        "STRICT refuses plaintext",
        "before: served, after: refused; a member: served",
        format!("before: {}, after: {plaintext}; a member: {member}", if permissive { "served" } else { "refused" }),
        permissive && plaintext == "refused" && member == "served",
    );
    outsider
}

/// What an unprivileged process, and a stranger with a port scanner, can do.
pub fn attacks(w: &mut World, t: &mut Table, cart: &Pod, outsider: &Pod, far: &Pod) -> Result<()> {
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

/// The kubelet's way to the pods.
pub fn probes(w: &World, t: &mut Table, shop: &Shop) -> Result<()> {
    let probe = w.nodes[1].netns.run(|| http::connect(shop.far.at(8080)))?.and_then(|s| http::get(s, "/")).is_ok();
    t.row(
        "the node's own probes still reach the pods",
        "answered",
        if probe { "answered" } else { "refused" }.into(),
        probe,
    );
    Ok(())
}
