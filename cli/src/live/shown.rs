//! A request or connection as one line for people.

use crate::output::{Tone, shown};
use karst_flows::tap::{Event, Peer, Phase, Record, Verdict};
use std::time::Duration;

/// Who it is: `namespace/pod`, or what is known. Only an address where nothing else is.
pub fn peer(peer: &Peer<'_>) -> String {
    match (peer.pod, peer.workload, peer.address) {
        ("", "", Some(address)) => address.ip().to_canonical().to_string(),
        ("", "", None) => peer.namespace.into(),
        ("", workload, _) => format!("{}/{workload}", peer.namespace),
        (pod, ..) => format!("{}/{pod}", peer.namespace),
    }
}

/// What is called: the service if it is known, else the pod; and the port.
pub fn called(event: &Event<'_>) -> String {
    let port = event.destination.address.map_or(String::new(), |address| format!(":{}", address.port()));
    match event.service.split_once('/') {
        Some((namespace, host)) => format!("{namespace}/{}{port}", host.split('.').next().unwrap_or_default()),
        None => peer(&event.destination) + &port,
    }
}

/// A duration to three digits: `850us`, `12.3ms`, `4.50s`.
pub fn short(time: Duration) -> String {
    let (us, ms, s) = (time.as_micros(), time.as_secs_f64() * 1e3, time.as_secs_f64());
    match us {
        0..1000 => format!("{us}us"),
        1000..10_000 => format!("{ms:.2}ms"),
        10_000..100_000 => format!("{ms:.1}ms"),
        100_000..1_000_000 => format!("{ms:.0}ms"),
        1_000_000..100_000_000 => format!("{s:.2}s"),
        _ => format!("{s:.0}s"),
    }
}

/// The line, without its newline: of at most `width` columns, in colours if it may have them.
pub fn line(record: &Record, width: Option<usize>, colour: bool) -> String {
    let event = record.event();
    let (verdict, tone) = match event.verdict {
        Verdict::Forwarded => ("FORWARDED", Tone::Good),
        Verdict::Dropped => ("DROPPED", Tone::Bad),
        Verdict::Error => ("ERROR", Tone::Warning),
    };
    let time = record.time.get(11..23).unwrap_or(&record.time);
    let rest = format!("{} -> {}  {}", peer(&event.source), called(&event), what(&event));
    // Time, two spaces, verdict of nine columns, two spaces.
    let room = width.map_or(usize::MAX, |width| width.saturating_sub(time.len() + 13));
    let rest: String = shown(&rest).chars().take(room).collect();
    let pad = " ".repeat(9 - verdict.len().min(9));
    format!("{}  {}{pad}  {rest}", shown(time), tone.paint(verdict, colour))
}

fn what(event: &Event<'_>) -> String {
    let mut text = match (&event.request, event.phase) {
        (Some(request), _) => {
            let status = if request.status == 0 { "-".into() } else { request.status.to_string() };
            let grpc = request.grpc.map(|code| format!(" grpc-status {code}")).unwrap_or_default();
            // What is not known is `-`.
            format!("{} {} {status}{grpc} {}", shown(request.method), shown(request.path), short(event.took))
        }
        (None, Phase::Open) => "tcp opened".into(),
        (None, _) if event.verdict == Verdict::Forwarded => {
            format!("tcp closed {} in {} out {}", short(event.took), event.received, event.sent)
        }
        (None, _) => "tcp".into(),
    };
    if !event.mtls {
        text += " plaintext";
    }
    if event.flags != "-" {
        text = format!("{text} {}", event.flags);
    }
    if !event.reason.is_empty() {
        text = format!("{text}: {}", event.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        let all = [850, 1234, 12_345, 123_456, 4_500_000, 120_000_000].map(|us| short(Duration::from_micros(us)));
        assert_eq!(all, ["850us", "1.23ms", "12.3ms", "123ms", "4.50s", "120s"]);
    }
}
