//! Istio's metrics of the configuration stream, and ours of what is asked for by name: the same at both proxies.

use crate::demand;
use karst_rt::exposition::{Kind, Page};
use karst_xds::client::StreamEnd;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Why a stream has ended, in the order of the counters.
const REASONS: [StreamEnd; 4] =
    [StreamEnd::ConnectionError, StreamEnd::Error, StreamEnd::Reconnect, StreamEnd::Complete];

/// The counters of a process.
#[derive(Debug, Default)]
pub struct Counts {
    ended: [AtomicU64; REASONS.len()],
    /// Number and bytes, by type.
    messages: Mutex<BTreeMap<String, (u64, u64)>>,
    /// Names that were asked for: of which there was something, and nothing.
    answered: [AtomicU64; 2],
    /// Names that are followed.
    pub demand: Arc<demand::Counts>,
}

impl Counts {
    /// A stream has ended.
    pub fn ended(&self, why: StreamEnd) {
        for (reason, count) in REASONS.iter().zip(&self.ended) {
            count.fetch_add(u64::from(*reason == why), Relaxed);
        }
    }

    /// A message has come. (What types there are the control plane says.)
    pub fn received(&self, type_url: &str, bytes: usize) {
        let mut all = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(type_url) {
            all.insert(type_url.into(), (0, 0));
        }
        if let Some((count, sum)) = all.get_mut(type_url) {
            *count += 1;
            *sum += bytes as u64;
        }
    }

    /// Names are answered: is there something of each?
    pub fn answered(&self, found: impl Iterator<Item = bool>) {
        let [something, nothing] = &self.answered;
        for found in found {
            let count = if found { something } else { nothing };
            count.fetch_add(1, Relaxed);
        }
    }

    /// Adds them to the metrics page.
    pub fn render(&self, page: &mut Page) {
        let name = "istio_xds_connection_terminations_total";
        let mut family = page.family(name, Kind::Counter, "Ends of the configuration stream.");
        for (reason, count) in REASONS.iter().zip(&self.ended) {
            family.sample(&[("reason", &format!("{reason:?}"))], count.load(Relaxed));
        }
        let all = self.messages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, pick) in [
            ("istio_xds_message_total", "Configuration messages.", (|v: &(u64, u64)| v.0) as fn(&(u64, u64)) -> u64),
            ("istio_xds_message_bytes_total", "Bytes of configuration messages.", |v| v.1),
        ] {
            let mut family = page.family(name, Kind::Counter, help);
            for (url, value) in &all {
                family.sample(&[("url", url)], pick(value));
            }
        }
        let name = "karst_xds_names_answered_total";
        let mut family = page.family(name, Kind::Counter, "Names that the controller was asked for.");
        for (answer, count) in ["found", "nothing"].into_iter().zip(&self.answered) {
            family.sample(&[("answer", answer)], count.load(Relaxed));
        }
        for (name, kind, help, count) in [
            (
                "karst_xds_names_followed",
                Kind::Gauge,
                "Names that are followed, with XDS_ON_DEMAND.",
                &self.demand.names,
            ),
            (
                "karst_xds_names_evicted_total",
                Kind::Counter,
                "Names that are followed no more, since nothing has used them.",
                &self.demand.evicted,
            ),
        ] {
            page.single(name, kind, help, count.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_ends_are_counted() {
        let c = Counts::default();
        c.received("t", 10);
        c.received("t", 5);
        c.ended(StreamEnd::Reconnect);
        c.answered([true, false, true].into_iter());
        c.demand.names.store(7, Relaxed);
        let page = karst_rt::exposition::page(|page| c.render(page));
        for line in [
            "istio_xds_message_total{url=\"t\"} 2",
            "istio_xds_message_bytes_total{url=\"t\"} 15",
            "istio_xds_connection_terminations_total{reason=\"ConnectionError\"} 0",
            "istio_xds_connection_terminations_total{reason=\"Reconnect\"} 1",
            "karst_xds_names_answered_total{answer=\"found\"} 2",
            "karst_xds_names_answered_total{answer=\"nothing\"} 1",
            "karst_xds_names_followed 7",
            "karst_xds_names_evicted_total 0",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
    }
}
