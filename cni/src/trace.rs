//! `karst-cni trace`: shows live what the programs of this node's pods drop or pass by, and why. Reads what is pinned, so it works
//! whether or not the agent runs. What ztunnel refuses is in its access log.

use crate::records::{self, Record};
use karst_ebpf::{
    Counter,
    trace::{Event, Tracer},
};
use karst_rt::clock::Instant;
use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

/// The programs tell for this long after each time that they are asked: all that a trace that was killed leaves behind.
const ASK_FOR: Duration = Duration::from_secs(3);
/// They are asked again, and the pods' names are read again, after this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The ring buffer is looked at this often.
const LOOK: Duration = Duration::from_millis(50);
/// `lo`, in every network namespace.
const LO: u32 = 1;
const HBONE_PORT: u16 = 15008;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What to show, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct How {
    /// Show only this pod: NAMESPACE/NAME, or NAME alone. Default: all pods of this node.
    pub pod: Option<String>,
    /// Show only dropped and refused packets, not those that bypass ztunnel.
    #[arg(long)]
    pub drops: bool,
    /// Output format: a table, or one JSON object per line.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// JSON for programs.
    Json,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It never left the pod.
    Dropped,
    /// Its sender gets a reset, or nothing.
    Refused,
    /// It went its way without the mesh.
    PassedBy,
    /// It went to ztunnel, or came from there, or never left the pod's own loopback. The programs do not tell of these.
    Untold,
}

/// Shows events until it is interrupted, or nobody reads its output any more. `bpf_dir` has what is pinned, `run_dir` what is known
/// of the pods.
pub fn run(bpf_dir: &Path, run_dir: &Path, how: &How) -> anyhow::Result<()> {
    anyhow::ensure!(bpf_dir.exists(), "nothing is redirected on this node ({} does not exist)", bpf_dir.display());
    match show(bpf_dir, run_dir, how) {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => Ok(()),
        ended => ended,
    }
}

fn show(bpf_dir: &Path, run_dir: &Path, how: &How) -> anyhow::Result<()> {
    let read_pods = || Pods(records::load(&run_dir.join("pods")));
    let mut pods = read_pods();
    let mut of = how.pod.as_deref().map(|p| pods.find(p)).transpose()?;
    let what: Vec<Counter> = Counter::ALL.into_iter().filter(|c| is_wanted(*c, how.drops)).collect();
    let mut tracer = Tracer::open(bpf_dir)?;
    let mut withheld = tracer.totals()?.withheld;
    tracer.ask(of, &what, ASK_FOR)?;
    let mut out = io::stdout().lock();
    let whose = how.pod.as_deref().unwrap_or("all pods of this node");
    eprintln!("dropped and bypassing connections of {whose} from now on; press Ctrl-C to stop");
    if how.output == Output::Table {
        writeln!(out, "{}", row(["TIME (UTC)", "POD", "WHAT", "PROTOCOL", "SOURCE -> DESTINATION", "REASON"]))?;
        out.flush()?;
    }
    let mut asked = Instant::now();
    loop {
        while let Some(event) = tracer.read()? {
            let name = event.pod.map_or_else(|| "?".into(), |ip| pods.name(ip));
            let closed = event.pod.and_then(|ip| pods.closed(ip));
            let line = match how.output {
                Output::Table => text(&event, &name, closed),
                Output::Json => json(&event, &name, closed).to_string(),
            };
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        std::thread::sleep(LOOK);
        if asked.elapsed() < ASK_AGAIN {
            continue;
        }
        asked = Instant::now();
        pods = read_pods();
        // A pod that was made again has another address; one that is gone may still be heard of.
        if let Some(found) = how.pod.as_deref().and_then(|p| pods.find(p).ok()) {
            of = Some(found);
        }
        tracer.ask(of, &what, ASK_FOR)?;
        let now = tracer.totals()?.withheld;
        if now > withheld {
            eprintln!(
                "{} more were left out, because there were too many; specify a pod, or use --drops, to see fewer",
                now - withheld
            );
        }
        withheld = now;
    }
}

fn is_wanted(counter: Counter, drops: bool) -> bool {
    match verdict(counter) {
        Verdict::Dropped | Verdict::Refused => true,
        Verdict::PassedBy => !drops,
        Verdict::Untold => false,
    }
}

/// Why a pod cannot be traced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum FindError {
    #[error("pod {0} has no address yet")]
    NoAddress(String),
    #[error("no pod {wanted} is redirected on this node: run this on the node of the pod (redirected here: {names})")]
    NotHere { wanted: String, names: String },
    #[error("{count} pods of this node have the name {wanted}: use NAMESPACE/{wanted}")]
    Ambiguous { count: usize, wanted: String },
}

/// The node's redirected pods.
struct Pods(Vec<Record>);

impl Pods {
    /// The address by which the programs know a pod.
    fn find(&self, wanted: &str) -> Result<IpAddr, FindError> {
        let is = |r: &&Record| wanted == r.name || wanted == r.uid || wanted == full(r);
        let found: Vec<&Record> = self.0.iter().filter(is).collect();
        match found[..] {
            [one] => one.ips.first().copied().ok_or_else(|| FindError::NoAddress(full(one))),
            [] => {
                let mut names: Vec<String> = self.0.iter().map(full).collect();
                names.sort();
                let names = if names.is_empty() { "none are".into() } else { names.join(", ") };
                Err(FindError::NotHere { wanted: wanted.into(), names })
            }
            _ => Err(FindError::Ambiguous { count: found.len(), wanted: wanted.into() }),
        }
    }
    fn by_address(&self, ip: IpAddr) -> Option<&Record> {
        self.0.iter().find(|r| r.ips.first() == Some(&ip))
    }
    fn name(&self, ip: IpAddr) -> String {
        self.by_address(ip).map_or_else(|| ip.to_string(), full)
    }
    /// Why a pod is closed, if it is.
    fn closed(&self, ip: IpAddr) -> Option<&str> {
        self.by_address(ip)?.closed.as_deref()
    }
}

fn full(record: &Record) -> String {
    format!("{}/{}", record.namespace, record.name)
}

fn verdict(counter: Counter) -> Verdict {
    match counter {
        Counter::GuardDrop | Counter::GuardUnparsable | Counter::GuardProtocol => Verdict::Dropped,
        Counter::NoListener => Verdict::Refused,
        Counter::Probe | Counter::OptOut | Counter::OwnFlow | Counter::OtherDevice => Verdict::PassedBy,
        Counter::Hbone | Counter::Plaintext | Counter::Outbound | Counter::Forwarded => Verdict::Untold,
        Counter::Dns | Counter::GuardPass | Counter::Local => Verdict::Untold,
    }
}

/// Why, and what can be done where something can. `closed`: why the pod is closed, if it is.
fn reason(event: &Event, closed: Option<&str>) -> (String, Option<&'static str>) {
    let plain = |text: &str, fix| (text.to_string(), fix);
    if let (Counter::GuardDrop, Some(why)) = (event.what, closed) {
        return (format!("the pod is closed, all its TCP traffic is dropped: {why}"), None);
    }
    match event.what {
        Counter::GuardDrop => plain(
            "a connection left the pod bypassing ztunnel: through a raw socket, a socket bound to a device (SO_BINDTODEVICE) or changed routing rules; or the pod only forwarded it",
            Some(
                "use an ordinary socket that is bound to no device, or remove the pod from the mesh (istio.io/dataplane-mode: none)",
            ),
        ),
        Counter::GuardUnparsable => plain(
            "the packet ends before its TCP flags, or has more than six IPv6 extension headers",
            Some("send complete headers in the first fragment"),
        ),
        Counter::GuardProtocol => (
            format!("the frame is neither IP nor ARP, or has a VLAN tag (EtherType {:#06x})", event.ether_type),
            Some("annotate the pod with karst.io/allow-other-protocols: \"true\" if it needs to send these"),
        ),
        Counter::NoListener => (
            format!("ztunnel does not listen for {} of this pod", direction(event)),
            Some("check that the pods of ztunnel and karst-cni run on this node, and check their logs"),
        ),
        Counter::Probe => {
            plain("just opened by the node itself, like the kubelet's probes: exempt from policies", None)
        }
        Counter::OptOut => plain(
            "the pod accepts plaintext that bypasses the mesh (ambient.istio.io/bypass-inbound-capture)",
            Some("remove the annotation for policies to apply"),
        ),
        Counter::OwnFlow => plain("ztunnel's own connection, back at its pod", None),
        Counter::OtherDevice => (
            format!(
                "arrived on a device without an address of the pod (index {}), for an address that is not the pod's",
                event.device
            ),
            Some("annotate the pod with karst.io/capture-all-devices: \"true\" to have it captured"),
        ),
        Counter::Local => plain("within the pod", None),
        Counter::Hbone | Counter::Plaintext | Counter::Outbound | Counter::Forwarded => {
            plain("redirected to ztunnel", None)
        }
        Counter::Dns | Counter::GuardPass => plain("redirected to ztunnel, or sent by it", None),
    }
}

/// Which listener's affair a connection is.
fn direction(event: &Event) -> &'static str {
    let to_hbone = event.ends.is_some_and(|(_, to)| to.port() == HBONE_PORT);
    match (event.device, event.protocol) {
        (_, UDP) => "DNS queries",
        (LO, _) => "outbound connections",
        _ if to_hbone => "tunnels (HBONE)",
        _ => "inbound connections, or those that the pod forwards,",
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Dropped => "dropped",
        Verdict::Refused => "refused",
        Verdict::PassedBy => "passed by",
        Verdict::Untold => "untold",
    }
}

fn protocol(event: &Event) -> String {
    match event.protocol {
        0 if event.ends.is_none() => "-".into(),
        1 => "icmp".into(),
        TCP => "tcp".into(),
        UDP => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        n => n.to_string(),
    }
}

/// An end, without a port that could not be read.
fn end(address: SocketAddr) -> String {
    if address.port() == 0 { address.ip().to_string() } else { address.to_string() }
}

fn row(columns: [&str; 6]) -> String {
    let [time, pod, what, protocol, ends, reason] = columns;
    format!("{time:<12} {pod:<32} {what:<9} {protocol:<8} {ends:<44} {reason}").trim_end().to_string()
}

fn text(event: &Event, pod: &str, closed: Option<&str>) -> String {
    let time = karst_rt::log::timestamp(event.at);
    let ends = event.ends.map_or_else(|| "-".into(), |(from, to)| format!("{} -> {}", end(from), end(to)));
    let (why, fix) = reason(event, closed);
    let why = fix.map_or_else(|| why.clone(), |f| format!("{why}; {f}"));
    // Hours to milliseconds of 2026-01-31T12:34:56.789012Z.
    let time = time.get(11..23).unwrap_or(&time);
    row([time, pod, word(verdict(event.what)), &protocol(event), &ends, &why])
}

fn json(event: &Event, pod: &str, closed: Option<&str>) -> serde_json::Value {
    let (reason, fix) = reason(event, closed);
    let ether_type = (event.ether_type != 0).then(|| format!("{:#06x}", event.ether_type));
    serde_json::json!({
        "time": karst_rt::log::timestamp(event.at),
        "pod": pod,
        "what": word(verdict(event.what)),
        "counter": event.what.name(),
        "protocol": protocol(event),
        "source": event.ends.map(|(from, _)| end(from)),
        "destination": event.ends.map(|(_, to)| end(to)),
        "device": event.device,
        "etherType": ether_type,
        "reason": reason,
        "fix": fix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn pods() -> Pods {
        let record = |uid: &str, ns: &str, name: &str, ips: &[&str]| {
            let json = serde_json::json!({"uid": uid, "namespace": ns, "name": name, "netns": "", "ips": ips});
            serde_json::from_value::<Record>(json).unwrap()
        };
        Pods(vec![
            record("u1", "app", "web", &["10.0.0.5", "fd00::5"]),
            record("u2", "app", "db", &["fd00::6"]),
            record("u3", "shop", "web", &["10.0.0.7"]),
            record("u4", "shop", "new", &[]),
        ])
    }
    fn event(what: Counter) -> Event {
        Event {
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456),
            pod: Some("10.0.0.5".parse().unwrap()),
            what,
            ends: Some(("10.0.0.5:40000".parse().unwrap(), "10.0.1.7:8080".parse().unwrap())),
            protocol: TCP,
            ether_type: 0x0800,
            device: 2,
        }
    }

    #[test]
    fn a_pod_is_found_by_each_of_its_names() {
        let pods = pods();
        let ip = |s: &str| Ok(s.parse::<IpAddr>().unwrap());
        assert_eq!(pods.find("app/web"), ip("10.0.0.5"));
        assert_eq!(pods.find("u3"), ip("10.0.0.7"));
        assert_eq!(pods.find("db"), ip("fd00::6"), "the only one of this name");
        assert!(pods.find("web").unwrap_err().to_string().contains("use NAMESPACE/web"));
        assert!(pods.find("new").unwrap_err().to_string().contains("no address"));
        assert!(pods.find("gone").unwrap_err().to_string().ends_with("app/db, app/web, shop/new, shop/web)"));
        assert_eq!(pods.name("fd00::6".parse().unwrap()), "app/db");
        assert_eq!(pods.name("10.9.9.9".parse().unwrap()), "10.9.9.9", "a pod that is gone");
    }

    #[test]
    fn a_line_says_who_what_where_and_why() {
        let line = text(&event(Counter::GuardDrop), "app/web", None);
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..7], ["08:00:00.123", "app/web", "dropped", "tcp", "10.0.0.5:40000", "->", "10.0.1.7:8080"]);
        assert!(line.contains("SO_BINDTODEVICE") && line.contains("; use an ordinary socket"), "{line}");
        let unread = Event { ends: None, protocol: 0, ether_type: 0x88b5, ..event(Counter::GuardProtocol) };
        let line = text(&unread, "app/web", None);
        assert!(line.contains("dropped   -        -") && line.contains("(EtherType 0x88b5)"), "{line}");
        let v6 = ("[fd00::5]:0".parse().unwrap(), "[fd00::9]:0".parse().unwrap());
        let line = text(&Event { ends: Some(v6), ..event(Counter::GuardUnparsable) }, "app/web", None);
        assert!(line.contains(" fd00::5 -> fd00::9 "), "ports that could not be read are not shown: {line}");
        let line = text(&event(Counter::GuardDrop), "app/web", Some("gVisor has its addresses"));
        assert!(
            line.ends_with("the pod is closed, all its TCP traffic is dropped: gVisor has its addresses"),
            "{line}"
        );
    }

    #[test]
    fn programs_read_it_too() {
        let j = json(&event(Counter::Probe), "app/web", None);
        for (field, expected) in [
            ("pod", "app/web"),
            ("what", "passed by"),
            ("counter", "probe"),
            ("protocol", "tcp"),
            ("source", "10.0.0.5:40000"),
            ("destination", "10.0.1.7:8080"),
            ("time", "2027-01-15T08:00:00.123456Z"),
        ] {
            assert_eq!(j[field], expected, "{field}");
        }
        assert!(j["fix"].is_null() && j["reason"].as_str().unwrap().contains("kubelet"));
    }

    #[test]
    fn whose_listener_is_missing_is_said() {
        let why = |device, protocol, port: u16| {
            let to = SocketAddr::from(([10, 0, 0, 5], port));
            let e = Event { device, protocol, ends: Some((to, to)), ..event(Counter::NoListener) };
            reason(&e, None).0
        };
        assert!(why(LO, TCP, 80).contains("outbound connections"));
        assert!(why(LO, UDP, 53).contains("DNS queries"));
        assert!(why(2, TCP, HBONE_PORT).contains("tunnels"));
        assert!(why(2, TCP, 8080).contains("inbound connections"));
    }

    #[test]
    fn what_is_carried_is_never_asked_for() {
        let asked =
            |drops| Counter::ALL.into_iter().filter(|c| is_wanted(*c, drops)).map(Counter::name).collect::<Vec<_>>();
        assert_eq!(asked(true), ["no_listener", "guard_drop", "guard_unparsable", "guard_protocol"]);
        assert_eq!(asked(false).len(), 8);
        assert!(!asked(false).contains(&"outbound"));
    }
}
