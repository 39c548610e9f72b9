//! The faults that the soak makes (`cargo xtask soak`): each has the effect that it is named for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_rt::log::timestamp;
use karst_world::{Options, Pod, PodSpec, World, app, wait_for};
use std::{
    fs,
    time::{Duration, SystemTime},
};

/// By how much clocks are wrong here, milliseconds.
const WRONG: i64 = 60_000;
const LIMIT: Duration = Duration::from_secs(20);

/// When the certificate of a pod's account ends, by its node's ztunnel.
fn certificate_ends(w: &World, pod: &Pod) -> Option<String> {
    let (_, page) = w.get(pod.spec.node, 15000, "/config_dump").ok()?;
    let dump: serde_json::Value = serde_json::from_str(&page).ok()?;
    let identity = format!("spiffe://cluster.local/ns/{}/sa/{}", pod.spec.namespace, pod.spec.account);
    let own = dump["certificates"].as_array()?.iter().find(|c| c["identity"] == identity.as_str())?;
    Some(own["certChain"][0]["expirationTime"].as_str()?.to_string())
}

/// So many seconds from now, as logs and pages have it.
fn in_seconds(seconds: u64) -> String {
    timestamp(SystemTime::now() + Duration::from_secs(seconds))
}

#[test]
fn a_clock_that_is_wrong_is_in_the_certificates_and_in_the_log() {
    let mut w = World::start(Options { nodes: 1, clocks: true, ..Options::default() }).unwrap();
    w.namespace("app", true);
    let server = w.mesh_pod(PodSpec::new("app", "server", 0));
    let _echo = app::Echo::start(&server, 8080, "");
    let day = 86_400;
    let right = wait_for("the first certificate", LIMIT, || certificate_ends(&w, &server));
    assert!(right < in_seconds(day + 30), "{right}");

    let control = w.control_ns();
    w.set_clock(&control, WRONG).unwrap();
    let client = w.mesh_pod(PodSpec::new("app", "client", 0));
    let wrong = wait_for("a certificate by the wrong clock", LIMIT, || certificate_ends(&w, &client));
    assert!(in_seconds(day + 30) < wrong && wrong < in_seconds(day + 90), "{wrong}");
    w.set_clock(&control, 0).unwrap();

    let node = w.nodes[0].ns.clone();
    w.set_clock(&node, WRONG).unwrap();
    let later = in_seconds(30);
    app::ping(&mut client.connect(server.at(8080)).unwrap(), b"by a wrong clock").unwrap();
    wait_for("a line of the log by the wrong clock", LIMIT, || {
        let log = w.log_text("ztunnel0.log");
        // Lines begin with the time.
        log.lines().any(|line| line.starts_with("20") && line > later.as_str()).then_some(())
    });
    let (ztunnel, agent) = (w.ztunnel_pid(0), w.agent_pid(0).unwrap());
    assert!([ztunnel, agent].into_iter().all(|pid| w.goes_by_clock(pid, &node)), "it can be seen whose clock it is");
    assert!(w.goes_by_clock(w.controller_pid(), &control) && !w.goes_by_clock(ztunnel, &control));
    assert!(w.set_clock("nobody", WRONG).is_err());
}

#[test]
fn what_is_written_while_the_api_server_stalls_is_seen_afterwards() {
    let mut w = World::start(Options { nodes: 1, ..Options::default() }).unwrap();
    w.namespace("app", true);
    w.stall_api(true).unwrap();
    let pod = w.pod(PodSpec::new("app", "late", 0));
    w.write("gone", "apiVersion: v1\nkind: Namespace\nmetadata: {name: gone}\n").unwrap();
    w.erase("gone").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(!w.is_redirected(&pod), "nobody knows of it yet");
    w.stall_api(false).unwrap();
    w.wait_enrolled(&pod);
    assert!(!w.dir.join("manifests/gone.yaml").exists(), "in the order of its writing");
    // And it goes on.
    w.write("next", "apiVersion: v1\nkind: Namespace\nmetadata: {name: next}\n").unwrap();
    assert!(w.dir.join("manifests/next.yaml").exists());
}

#[test]
fn a_full_disk_stays_full_until_it_is_emptied() {
    let mut w = World::start(Options { nodes: 1, disk_mib: Some(32), ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 0)));
    let _echo = app::Echo::start(&b, 8080, "");
    let file = w.dir.join("logs/other.log");
    fs::write(&file, vec![b'x'; 64 << 10]).unwrap();
    w.fill_disk().unwrap();
    // What somebody lets go is used up, too.
    fs::remove_file(&file).unwrap();
    w.fill_disk().unwrap();
    assert!(fs::write(&file, vec![b'x'; 8 << 10]).is_err());
    let before = w.log_text("ztunnel0.log").len();
    app::ping(&mut a.connect(b.at(8080)).unwrap(), b"nobody waits for a log").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    // Up to the end of the page that the log had begun already.
    let grown = w.log_text("ztunnel0.log").len() - before;
    assert!(grown < 4096, "{grown} bytes");
    w.empty_disk().unwrap();
    wait_for("the log goes on", LIMIT, || {
        app::ping(&mut a.connect(b.at(8080)).unwrap(), b"again").unwrap();
        (w.log_text("ztunnel0.log").len() > before + grown).then_some(())
    });
}

/// An agent that begins anew while nothing can be written takes up what is redirected already: no connection ends, none is refused,
/// and a new pod joins. What could not be written is, once there is room.
#[test]
fn an_agent_on_a_full_disk_keeps_its_pods_and_takes_new_ones() {
    let mut w = World::start(Options { nodes: 1, disk_mib: Some(32), ..Options::default() }).unwrap();
    w.namespace("app", true);
    let (a, b) = (w.mesh_pod(PodSpec::new("app", "a", 0)), w.mesh_pod(PodSpec::new("app", "b", 0)));
    let _echo = app::Echo::start(&b, 8080, "");
    let mut held = a.connect(b.at(8080)).unwrap();
    app::ping(&mut held, b"before").unwrap();
    w.fill_disk().unwrap();
    for _ in 0..2 {
        w.stop_agent(0, libc::SIGKILL);
        w.fill_disk().unwrap();
        w.start_agent(0).unwrap();
        wait_for("the agent has taken up its pods", LIMIT, || {
            let (_, page) = w.get(0, 15014, "/metrics").ok()?;
            page.lines().any(|l| l == "karst_enrolled_pods 2").then_some(())
        });
        app::ping(&mut held, b"the same connection").unwrap();
        app::ping(&mut a.connect(b.at(8080)).unwrap(), b"another").unwrap();
    }
    let late = w.mesh_pod(PodSpec::new("app", "late", 0));
    app::ping(&mut late.connect(b.at(8080)).unwrap(), b"of a new pod").unwrap();
    let recorded = || fs::read_dir(w.dir.join("run0/pods")).unwrap().count();
    assert_eq!(recorded(), 2, "the disk was not full");
    w.empty_disk().unwrap();
    wait_for("the new pod is recorded", LIMIT, || (recorded() == 3).then_some(()));
    app::ping(&mut held, b"still the same").unwrap();
}
