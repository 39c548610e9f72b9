//! The controller's metrics: Istio's names and labels where Istio has a metric of the meaning (docs/metrics.md has the list, with
//! those that have none here).

pub mod histogram;
pub mod pushes;
pub mod reviews;

use crate::{
    ca::Signer,
    debug::subscribers::{Subscriber, serving},
    gate::Gate,
    history::{History, Moment},
};
use karst_kube::WatchCounts;
use karst_rt::{
    admission,
    exposition::{
        self,
        Kind::{Counter, Gauge, Histogram},
        Page,
    },
    process_metrics,
};
use pushes::Pushes;
use reviews::Reviews;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

/// Kinds that Istio counts as its registry's, with the names that it gives them.
const REGISTRY: [(&str, &str); 5] = [
    ("EndpointSlice", "EndpointSlice"),
    ("Namespace", "Namespaces"),
    ("Node", "Nodes"),
    ("Pod", "Pods"),
    ("Service", "Services"),
];
/// Versions of proxies that are told apart: what a proxy says of itself is not to make series without bound.
const VERSIONS: usize = 16;
/// Most characters of one.
const VERSION: usize = 32;

/// What is counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests for certificates, of callers that were authenticated.
    pub requests: AtomicU64,
    /// Certificates signed.
    pub signed: AtomicU64,
    /// Callers refused.
    pub refused: AtomicU64,
    /// Requests for certificates that cannot be read, or have a weak key.
    pub bad_requests: AtomicU64,
    /// Those whose lifetime is out of range.
    pub bad_lifetimes: AtomicU64,
    /// Those that could not be signed by a fault of ours.
    pub sign_failures: AtomicU64,
    /// Snapshots made.
    pub versions: AtomicU64,
    /// The way of configuration to the proxies.
    pub pushes: Pushes,
    /// Problems in objects now.
    pub problems: AtomicU64,
    /// The mesh configuration that is written is not in force.
    pub mesh_config_stale: AtomicBool,
    /// Searches for findings that have failed.
    pub failed_searches: Arc<AtomicU64>,
    /// The webhook's decisions.
    pub reviews: Arc<Reviews>,
}

/// What the page is made of.
pub struct Facts<'a> {
    pub counts: &'a Counts,
    /// Proxies with an open stream.
    pub subscribers: &'a [Subscriber],
    /// None from a directory.
    pub watched: Option<&'a WatchCounts>,
    pub signer: &'a Signer,
    pub lists_stale: bool,
    pub workloads: usize,
    pub services: usize,
    pub virtual_services: usize,
    /// Objects with problems, by kind and reason.
    pub problems: &'a BTreeMap<(&'static str, &'static str), u64>,
    pub discovery_gate: &'a Gate,
    pub webhook_gate: &'a Gate,
    /// The versions of the configuration.
    pub history: &'a History,
    /// Seconds since 1970.
    pub now: f64,
}

/// The page, in the text format.
pub fn page(facts: &Facts<'_>) -> String {
    exposition::page(|page| {
        certificates(page, facts);
        discovery(page, facts);
        objects(page, facts);
        let (discovery, webhook) = (facts.discovery_gate, facts.webhook_gate);
        admission::Counts::render(
            page,
            &[
                ("discovery", "handshake", &discovery.unknown),
                ("discovery", "open", &discovery.callers),
                ("webhook", "handshake", &webhook.unknown),
            ],
        );
        let mut info = page.family("pilot_info", Gauge, "1; the label has the version.");
        info.sample(&[("version", concat!("karst-", env!("CARGO_PKG_VERSION")))], 1);
        process_metrics::render(page, "pilot");
    })
}

fn certificates(page: &mut Page, facts: &Facts<'_>) {
    let of = |count: &AtomicU64| count.load(Relaxed);
    let counts = facts.counts;
    for (name, help, count) in [
        ("citadel_server_csr_count", "Requests for certificates of authenticated callers.", &counts.requests),
        ("citadel_server_success_cert_issuance_count", "Certificates signed.", &counts.signed),
        ("citadel_server_authentication_failure_count", "Callers refused.", &counts.refused),
        ("citadel_server_csr_parsing_err_count", "Requests that cannot be read.", &counts.bad_requests),
    ] {
        page.single(name, Counter, help, of(count));
    }
    let help = "Requests that were not signed, by reason.";
    let mut family = page.family("citadel_server_csr_sign_err_count", Counter, help);
    family.sample(&[("error", "TTL_ERROR")], of(&counts.bad_lifetimes));
    family.sample(&[("error", "CERT_GEN_ERROR")], of(&counts.sign_failures));
    let (root, chain) = facts.signer.expire();
    for (name, help, at) in [
        (
            "citadel_server_root_cert_expiry_timestamp",
            "When the first root certificate expires, in seconds since 1970.",
            root,
        ),
        (
            "citadel_server_cert_chain_expiry_timestamp",
            "When the certificate that signs, or one above it, expires.",
            chain,
        ),
    ] {
        page.single(name, Gauge, help, at);
    }
    for (name, help, at) in [
        ("citadel_server_root_cert_expiry_seconds", "Until the first root certificate expires, in seconds.", root),
        ("citadel_server_cert_chain_expiry_seconds", "Until the certificate that signs expires, in seconds.", chain),
    ] {
        page.single(name, Gauge, help, (at as f64 - facts.now).round());
    }
    let help = "0: ca-crl.pem of the Secret cacerts could not be read; what was published stays.";
    page.single("karst_ca_crl_current", Gauge, help, u8::from(!facts.lists_stale));
}

fn discovery(page: &mut Page, facts: &Facts<'_>) {
    let pushes = &facts.counts.pushes;
    let mut family = page.family("pilot_xds", Gauge, "Proxies that are subscribed, by version.");
    let by_version = versions(facts.subscribers);
    // None is a number, too: to KarstControlPlaneAbsent a controller without proxies would be none.
    if by_version.is_empty() {
        family.sample(&[("version", "unknown")], 0);
    }
    for (version, count) in by_version {
        family.sample(&[("version", version)], count);
    }
    let mut family = page.family("pilot_xds_pushes", Counter, "Responses sent to proxies, by type.");
    for one in &pushes.types {
        family.sample(&[("type", one.name)], one.sent.load(Relaxed));
    }
    let help = "Responses that a proxy has rejected, by type.";
    let mut family = page.family("pilot_total_xds_rejects", Counter, help);
    for one in &pushes.types {
        family.sample(&[("type", one.name)], one.rejected.load(Relaxed));
    }
    let mut family = page.family("pilot_xds_config_size_bytes", Histogram, "Sizes of responses, in bytes.");
    for one in &pushes.types {
        one.sizes.render(&mut family, &exposition::labels(&[("type", one.name)]));
    }
    for (name, help, times) in [
        ("pilot_xds_push_time", "Seconds until all that a proxy is to be told is on its way.", &pushes.push_time),
        ("pilot_proxy_convergence_time", "Seconds from a change until a proxy has taken it in.", &pushes.convergence),
        (
            "pilot_pushcontext_init_seconds",
            "Seconds to make a new configuration of changed objects.",
            &pushes.model_time,
        ),
    ] {
        times.render(&mut page.family(name, Histogram, help), "");
    }
    let help = "New versions of the configuration, by what has changed.";
    let mut family = page.family("pilot_push_triggers", Counter, help);
    family.sample(&[("type", "config")], pushes.of_config.load(Relaxed));
    family.sample(&[("type", "endpoint")], pushes.of_endpoints.load(Relaxed));
    let help = "Bytes that older versions of the configuration take (karst explain --at).";
    page.single("karst_history_bytes", Gauge, help, facts.history.bytes());
    let help = "The earliest time whose configuration is kept, in seconds since 1970.";
    let oldest = facts.history.oldest(Moment::now());
    page.single("karst_history_oldest_timestamp_seconds", Gauge, help, oldest.seconds());
    let help = "Streams that ended because they could not be served.";
    page.single("pilot_total_xds_internal_errors", Counter, help, pushes.failed.load(Relaxed));
}

/// How many proxies there are of each version, as they say it; what is no version, and too many of them, is `other`.
fn versions(subscribers: &[Subscriber]) -> BTreeMap<&str, usize> {
    let is_version = |text: &&str| {
        let plain = |sign: u8| sign.is_ascii_alphanumeric() || matches!(sign, b'.' | b'-' | b'_' | b'+');
        (1..=VERSION).contains(&text.len()) && text.bytes().all(plain)
    };
    let mut all = BTreeMap::new();
    for one in serving(subscribers) {
        let version = match one.version.as_str() {
            "" => "unknown",
            text => {
                Some(text).filter(is_version).filter(|v| all.contains_key(v) || all.len() < VERSIONS).unwrap_or("other")
            }
        };
        *all.entry(version).or_default() += 1;
    }
    all
}

fn objects(page: &mut Page, facts: &Facts<'_>) {
    let counts = facts.counts;
    page.single("pilot_services", Gauge, "Services known.", facts.services);
    page.single("pilot_virt_services", Gauge, "VirtualServices known.", facts.virtual_services);
    page.single("karst_workloads", Gauge, "Workloads known.", facts.workloads);
    page.single("karst_services", Gauge, "Services known.", facts.services);
    let (registry, config): (Vec<_>, Vec<_>) = facts
        .watched
        .map(WatchCounts::all)
        .unwrap_or_default()
        .into_iter()
        .partition(|(kind, ..)| REGISTRY.iter().any(|(known, _)| known == kind));
    for (name, help, all) in [
        ("pilot_k8s_reg_events", "Changes seen of what runs, by type and event.", registry),
        ("pilot_k8s_cfg_events", "Changes seen of what is configured, by type and event.", config),
    ] {
        let mut family = page.family(name, Counter, help);
        for (kind, event, count) in all {
            let kind = REGISTRY.iter().find(|(known, _)| *known == kind).map_or(kind, |(_, name)| *name);
            family.sample(&[("type", kind), ("event", event.text())], count);
        }
    }
    reviewed(page, facts);
    let help = "Problems in the manifests at the moment.";
    page.single("karst_manifest_problems", Gauge, help, counts.problems.load(Relaxed));
    let help = "Searches for objects without effect that a fault of ours has ended: findings are out of date.";
    page.single("karst_findings_failed_total", Counter, help, counts.failed_searches.load(Relaxed));
    let help = "0: the ConfigMap with the mesh configuration cannot be used; the last good one stays in force.";
    let is_current = u8::from(!counts.mesh_config_stale.load(Relaxed));
    page.single("karst_mesh_config_current", Gauge, help, is_current);
    let help = "Objects that cannot be used as they are written, or have no effect, by kind and reason.";
    let mut family = page.family("karst_objects_with_problems", Gauge, help);
    for ((kind, reason), count) in facts.problems {
        family.sample(&[("kind", kind), ("reason", reason)], count);
    }
}

fn reviewed(page: &mut Page, facts: &Facts<'_>) {
    let all = facts.counts.reviews.all();
    let mut family = page.family("galley_validation_passed", Counter, "Objects that the webhook let pass.");
    for (what, _, count) in all.iter().filter(|(_, why, _)| why.is_none()) {
        family.series(&what.labels(), count);
    }
    let mut family = page.family("galley_validation_failed", Counter, "Objects that the webhook refused.");
    for (what, why, count) in &all {
        let Some(why) = why else { continue };
        let mut labels = what.labels();
        exposition::label(&mut labels, "reason", why.text());
        family.series(&labels, count);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::{reviews::Reviewed, reviews::Why, *};
    use karst_xds::server::Event;
    use std::time::{Duration, SystemTime};

    fn subscriber(version: &str) -> Subscriber {
        let mut one = Subscriber::new("n".into(), "a".into(), "w".into(), SystemTime::UNIX_EPOCH);
        one.version = version.into();
        one
    }

    /// What proxies say of themselves makes no series without bound, and no line that is not one.
    #[test]
    fn versions_of_proxies_are_bounded() {
        let mut all: Vec<_> = (0..100).map(|n| subscriber(&format!("1.{n}"))).collect();
        all.extend(["", "1.0", "a\"} 1\nx{", &"9".repeat(33)].map(subscriber));
        let told = versions(&all);
        assert!(told.len() <= VERSIONS + 2, "{told:?}");
        assert_eq!((told["1.0"], told["unknown"], told["other"]), (2, 1, 100 - VERSIONS + 2));
    }

    /// The selectors of Istio's control plane dashboard.
    #[test]
    fn the_page_has_what_istios_dashboard_asks_for() {
        let (cert, key) = Signer::generate("cluster.local").unwrap();
        let signer = Signer::from_pem(&cert, &key).unwrap();
        let counts = Counts::default();
        let now = karst_rt::clock::Instant::now();
        let sent = Event::Sent { type_url: karst_api::ADDRESS_TYPE.into(), nonce: "1".into(), bytes: 10 };
        for event in [sent, Event::Pushed { took: Duration::from_millis(5) }] {
            counts.pushes.note(&event, now, now);
        }
        counts.reviews.note(Reviewed::of("networking.istio.io", "v1", "Sidecar"), None);
        counts.reviews.note(Reviewed::of("networking.istio.io", "v1", "VirtualService"), Some(Why::Invalid));
        let gate = Gate::for_strangers();
        let page_of = |subscribers: &[Subscriber]| {
            page(&Facts {
                counts: &counts,
                subscribers,
                watched: Some(&WatchCounts::default()),
                signer: &signer,
                lists_stale: false,
                workloads: 3,
                services: 2,
                virtual_services: 1,
                problems: &BTreeMap::new(),
                discovery_gate: &gate,
                webhook_gate: &gate,
                history: &History::default(),
                now: karst_rt::clock::since_epoch().as_secs_f64(),
            })
        };
        let none = page_of(&[]);
        assert!(none.contains("pilot_xds{version=\"unknown\"} 0\n"), "{none}");
        let page = page_of(&[subscriber("1.30")]);
        for line in [
            "istio_build{component=\"pilot\",tag=\"karst-",
            "pilot_info{version=\"karst-",
            "pilot_xds{version=\"1.30\"} 1\n",
            "pilot_xds_pushes{type=\"wds\"} 1\n",
            "pilot_xds_config_size_bytes_bucket{type=\"wds\",le=\"10000\"} 1\n",
            "pilot_xds_push_time_bucket{le=\"0.01\"} 1\n",
            "pilot_proxy_convergence_time_count 0\n",
            "pilot_total_xds_rejects{type=\"wads\"} 0\n",
            "pilot_total_xds_internal_errors 0\n",
            "pilot_push_triggers{type=\"config\"} 0\n",
            "karst_history_bytes 0\n",
            "# TYPE karst_history_oldest_timestamp_seconds gauge\n",
            "pilot_services 2\n",
            "pilot_virt_services 1\n",
            "# TYPE pilot_k8s_cfg_events counter\n",
            "galley_validation_failed{group=\"networking.istio.io\",version=\"v1\",resource=\"virtualservices\",reason=\"invalid_resource\"} 1\n",
            "citadel_server_csr_sign_err_count{error=\"TTL_ERROR\"} 0\n",
            "process_resident_memory_bytes ",
        ] {
            assert!(page.contains(line), "{line}: {page}");
        }
        let left = page.lines().find_map(|l| l.strip_prefix("citadel_server_root_cert_expiry_seconds ")).unwrap();
        let years = left.parse::<f64>().unwrap() / (365.0 * 86400.0);
        assert!((9.0..11.0).contains(&years), "{left}");
        // Each metric has its head once, and every line of the page is one or the other.
        let heads: Vec<_> = page.lines().filter(|l| l.starts_with("# TYPE ")).collect();
        let distinct: std::collections::BTreeSet<_> = heads.iter().collect();
        assert_eq!(heads.len(), distinct.len(), "{heads:?}");
    }
}
