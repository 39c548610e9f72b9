//! How an event is shown.

use super::explain::{protocol, reason, verdict, word};
use karst_ebpf::trace::Event;
use std::net::SocketAddr;

/// An end, without a port that could not be read.
fn end(address: SocketAddr) -> String {
    if address.port() == 0 { address.ip().to_string() } else { address.to_string() }
}

pub(super) fn row(columns: [&str; 6]) -> String {
    let [time, pod, what, protocol, ends, reason] = columns;
    format!("{time:<12} {pod:<32} {what:<9} {protocol:<8} {ends:<44} {reason}").trim_end().to_string()
}

pub(super) fn text(event: &Event, pod: &str, closed: Option<&str>) -> String {
    let time = karst_rt::log::timestamp(event.at);
    let ends = event.ends.map_or_else(|| "-".into(), |(from, to)| format!("{} -> {}", end(from), end(to)));
    let (why, fix) = reason(event, closed);
    let why = fix.map_or_else(|| why.clone(), |f| format!("{why}; {f}"));
    // Hours to milliseconds of 2026-01-31T12:34:56.789012Z.
    let time = time.get(11..23).unwrap_or(&time);
    row([time, pod, word(verdict(event.what)), &protocol(event), &ends, &why])
}

pub(super) fn json(event: &Event, pod: &str, closed: Option<&str>) -> serde_json::Value {
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
    use crate::trace::explain::tests::event;
    use karst_ebpf::Counter;

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
}
