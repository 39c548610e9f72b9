//! What each pod has of the process, and what it may have at most: for the page of metrics. (The bounds are in
//! [`karst_core::limits`]; who keeps to them: [`crate::worker::Budget`], [`crate::gate`], [`karst_rt::turns`], [`karst_rt::log`].)

use crate::{gate, inpod::LocalPods, worker::Shared};
use karst_core::limits;
use karst_proxy::labels::put;
use karst_rt::exposition::{Kind, Page};
use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

/// Adds both. `descriptors`: how many the process may have.
pub fn render(page: &mut Page, pods: &LocalPods, descriptors: u64) {
    let help = "Most that there may be of what pods share, of one pod or of all pods of the node together.";
    let mut family = page.family("karst_share_limit", Kind::Gauge, help);
    for (share, most) in bounds(descriptors).into_iter().chain(gate::bounds(descriptors)) {
        family.sample(&[("share", share)], most);
    }
    // In order, and a name once: while a pod goes, its successor may be here.
    let mut all = BTreeMap::new();
    for pod in pods.values() {
        let usage = &pod.usage;
        let one: &mut [u64; 4] = all.entry((&*pod.namespace, &*pod.name)).or_default();
        let open = [&usage.inbound, &usage.outbound].map(|count| count.load(Relaxed) as u64);
        let more = [open[0], open[1], usage.gate.tunnels.len() as u64, usage.turns.load(Relaxed)];
        one.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
    let pod = |(namespace, pod): (&str, &str)| {
        let mut labels = String::new();
        put(&mut labels, "namespace", namespace);
        put(&mut labels, "pod", pod);
        labels
    };
    let help = "Open connections of a pod, by who has opened them.";
    let mut family = page.family("karst_pod_connections", Kind::Gauge, help);
    for (of, [inbound, outbound, ..]) in &all {
        for (direction, open) in [("inbound", inbound), ("outbound", outbound)] {
            let mut labels = pod(*of);
            put(&mut labels, "direction", direction);
            family.series(&labels, open);
        }
    }
    let mut family = page.family("karst_pod_tunnels", Kind::Gauge, "Open tunnels to a pod.");
    for (of, [_, _, tunnels, _]) in &all {
        family.series(&pod(*of), tunnels);
    }
    let mut family = page.family(
        "karst_turns_waited_total",
        Kind::Counter,
        "How often a connection has waited because its pod had used up its turn of a worker, and others had something to do.",
    );
    for (of, [.., waited]) in &all {
        family.series(&pod(*of), waited);
    }
}

/// What is open, of all pods together, and how often somebody has had to wait or was refused: by these it is known that a flood has
/// ended.
pub fn tide(shared: &Shared) -> (usize, u64) {
    let (gate, metrics) = (&shared.gate, &shared.metrics);
    let open = [&metrics.open_source, &metrics.open_destination].map(|open| open.load(Relaxed).max(0) as usize);
    let waited: u64 = shared.pods.load().values().map(|pod| pod.usage.turns.load(Relaxed)).sum();
    let refused = metrics.tunnels_refused.load(Relaxed);
    (open.iter().sum::<usize>() + gate.tunnels.len() + gate.handshakes.len(), waited + refused)
}

/// Those of a pod; what is a gate's is there ([`gate::bounds`]).
fn bounds(descriptors: u64) -> [(&'static str, usize); 9] {
    [
        ("connections", limits::connections_per_pod(descriptors)),
        ("connections_one_way", limits::connections_of_direction(descriptors)),
        ("connections_of_peer", limits::connections_of_peer(descriptors)),
        ("unused_tunnels", limits::MAX_IDLE_TUNNELS_OF_POD),
        ("buffer_bytes", limits::POD_BUFFERS),
        ("turn_bytes", limits::TURN),
        ("accepts", limits::ACCEPTS),
        ("dns_queries", limits::DNS_MAX_PENDING),
        ("log_lines", limits::LOG_LINES_OF_POD),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inpod::LocalPod;

    #[test]
    fn each_pod_has_its_lines_once() {
        let pods = ["1", "2"].map(|uid| (uid.to_owned(), LocalPod::test("a", "a", uid)));
        for (_, pod) in &pods {
            pod.usage.inbound.store(3, Relaxed);
            pod.usage.turns.store(5, Relaxed);
        }
        let pods = LocalPods::from(pods);
        let page = karst_rt::exposition::page(|page| render(page, &pods, 4096));
        for line in [
            "karst_share_limit{share=\"connections\"} 512",
            "karst_share_limit{share=\"unused_tunnels\"} 256",
            "karst_share_limit{share=\"dns_queries\"} 512",
            "karst_share_limit{share=\"tunnels\"} 512",
            "karst_share_limit{share=\"plaintext\"} 288",
            "karst_share_limit{share=\"node_handshakes\"} 128",
            "karst_pod_connections{namespace=\"ns\",pod=\"a\",direction=\"inbound\"} 6",
            "karst_pod_connections{namespace=\"ns\",pod=\"a\",direction=\"outbound\"} 0",
            "karst_pod_tunnels{namespace=\"ns\",pod=\"a\"} 0",
            "karst_turns_waited_total{namespace=\"ns\",pod=\"a\"} 10",
        ] {
            assert_eq!(page.lines().filter(|known| *known == line).count(), 1, "{line}: {page}");
        }
    }
}
