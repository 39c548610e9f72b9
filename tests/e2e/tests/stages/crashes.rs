//! The process of ztunnel's that serves a node is killed, again and again, on both nodes under load: its spare takes over (issue 18).

use super::{Apps, LONG, MARK, apps};
use karst_e2e::{Load, Pod, get, link};
use karst_world::{Loaded, sniff::Sniffer, wait_for};
use std::{fs, path::Path, process::Command, time::Duration};

/// Of each node.
const KILLS: usize = 100;
/// Between two kills, which are of the nodes in turn: each has twice as long to start another spare.
const PAUSE: Duration = Duration::from_millis(600);
/// Clients wait so long.
const LIMIT: Duration = Duration::from_millis(500);
/// The longest that one may have waited.
const LONGEST_MS: u64 = 200;

/// What is looked for in /proc/PID/stat.
struct Process {
    id: u32,
    parent: u32,
    /// In ticks since the machine's start.
    started: u64,
}

impl Process {
    /// None: it has ended.
    fn read(path: &Path) -> Option<Self> {
        let id = path.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        // From the third field on: state, parent; the 22nd is when it was started.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let runs = *fields.first()? != "Z";
        runs.then_some(Self { id, parent: fields.get(1)?.parse().ok()?, started: fields.get(19)?.parse().ok()? })
    }
}

/// What the supervisor of a ztunnel's pod has started: the process that serves, and the spare, once it is there.
fn started(ztunnel: &Pod) -> Vec<u32> {
    let group = format!("pod{}", ztunnel.uid);
    let is_of_pod = |path: &Path| fs::read_to_string(path.join("cgroup")).is_ok_and(|text| text.contains(&group));
    let paths = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let all: Vec<Process> = paths.filter(|path| is_of_pod(path)).filter_map(|path| Process::read(&path)).collect();
    let mut children: Vec<&Process> = all.iter().filter(|one| all.iter().any(|p| p.id == one.parent)).collect();
    children.sort_by_key(|one| one.started);
    children.iter().map(|one| one.id).collect()
}

fn restarts(ztunnel: &Pod) -> u64 {
    let pod = get(&["pod", "-n", &ztunnel.namespace, &ztunnel.name]);
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap()
}

/// 100 new connections a second from one node to the other, while both nodes' processes are killed.
pub fn are_a_pause() {
    let a: Apps = apps();
    a.mesh(true);
    let pods = get(&["pods", "-n", "istio-system", "-l", "app=ztunnel"]);
    let names = pods["items"].as_array().unwrap().iter().map(|p| p["metadata"]["name"].as_str().unwrap());
    let ztunnels: Vec<Pod> = names.map(|name| Pod::get("istio-system", name)).collect();
    assert_eq!(ztunnels.len(), 2, "one on each node");
    let before: Vec<u64> = ztunnels.iter().map(restarts).collect();
    let sniffer = Sniffer::start(&link(), MARK);
    let load = Load::impatient(&a.client.netns(), a.service, 100, MARK, LIMIT);
    std::thread::sleep(Duration::from_secs(1));
    for _ in 0..KILLS {
        for ztunnel in &ztunnels {
            let serving = wait_for("one serves and one stands by", LONG, || match started(ztunnel)[..] {
                [serving, _] => Some(serving),
                _ => None,
            });
            assert!(Command::new("kill").args(["-KILL", &serving.to_string()]).status().unwrap().success());
            std::thread::sleep(PAUSE);
        }
    }
    let Loaded { ok, failed, slowest_ms } = load.end();
    let seen = sniffer.seen();
    let cut = failed.iter().filter(|failed| failed.starts_with("cut")).count();
    println!(
        "crashes: kills={} ok={ok} cut={cut} refused_or_late={} longest_wait_ms={slowest_ms} marked_frames={} {failed:?}",
        2 * KILLS,
        failed.len() - cut,
        seen.marked
    );
    assert_eq!(failed.len(), cut, "refused or late: {failed:?}");
    assert!(cut <= 2 * KILLS, "more than one at a time was under way: {failed:?}");
    assert!(ok > 50 * KILLS as u64, "{ok}");
    assert!(seen.marked == 0 && seen.hbone > 0, "{} marked frames", seen.marked);
    assert_eq!(ztunnels.iter().map(restarts).collect::<Vec<_>>(), before, "kubelet has restarted a container");
    assert!(slowest_ms <= LONGEST_MS, "{slowest_ms} ms");
}
