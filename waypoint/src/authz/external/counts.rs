//! What became of questions, counted by provider. The names of providers are the mesh configuration's, so the series are few; and a
//! place that is taken once stays, so that no lock is needed.

use karst_proxy::labels::put;
use karst_rt::exposition::{Kind, Page};
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Most providers that have series of their own; beyond, they are counted together under no name.
const PROVIDERS: usize = 32;
const NAME: &str = "karst_ext_authz_checks_total";

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider has allowed the request.
    Allowed,
    /// It has denied it.
    Denied,
    /// It was not asked: it has allowed a request like this lately.
    AllowedCached,
    /// The same of a no.
    DeniedCached,
    /// There was no answer, and the request was refused.
    Error,
    /// There was no answer, and the request went on (failOpen).
    FailedOpen,
    /// The body was too large to be sent to it.
    TooLarge,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Allowed,
        Self::Denied,
        Self::AllowedCached,
        Self::DeniedCached,
        Self::Error,
        Self::FailedOpen,
        Self::TooLarge,
    ];

    fn text(self) -> &'static str {
        match self {
            Outcome::Allowed => "allowed",
            Outcome::Denied => "denied",
            Outcome::AllowedCached => "allowed_cached",
            Outcome::DeniedCached => "denied_cached",
            Outcome::Error => "error",
            Outcome::FailedOpen => "failed_open",
            Outcome::TooLarge => "body_too_large",
        }
    }
}

/// By outcome; the second is of policies in dry run.
type Cells = [[AtomicU64; Outcome::ALL.len()]; 2];

/// The counters of a process.
#[derive(Debug, Default)]
pub struct Counts {
    providers: [OnceLock<(Arc<str>, Cells)>; PROVIDERS],
    beyond: Cells,
}

impl Counts {
    /// A provider was asked. `dry_run`: only to see what it would say.
    pub fn count(&self, provider: &Arc<str>, dry_run: bool, outcome: Outcome) {
        let mut places = self.providers.iter();
        let place = places.find(|place| place.get_or_init(|| (provider.clone(), Cells::default())).0 == *provider);
        let place = place.and_then(OnceLock::get);
        let cells = place.map_or(&self.beyond, |(_, cells)| cells);
        cells[usize::from(dry_run)][outcome as usize].fetch_add(1, Relaxed);
    }

    /// How often.
    #[cfg(test)]
    pub fn of(&self, provider: &str, dry_run: bool, outcome: Outcome) -> u64 {
        let mut all = self.providers.iter().filter_map(OnceLock::get);
        let found = all.find(|(name, _)| **name == *provider);
        found.map_or(0, |(_, cells)| cells[usize::from(dry_run)][outcome as usize].load(Relaxed))
    }

    /// Adds them to the metrics page.
    pub fn render(&self, page: &mut Page) {
        let mut family = page.family(
            NAME,
            Kind::Counter,
            "Requests about which a provider of external authorization was asked, or its earlier answer was used.",
        );
        let named = self.providers.iter().filter_map(OnceLock::get).map(|(name, cells)| (&**name, cells));
        for (provider, cells) in named.chain([("", &self.beyond)]) {
            for (cells, dry_run) in cells.iter().zip(["false", "true"]) {
                for outcome in Outcome::ALL {
                    let count = cells[outcome as usize].load(Relaxed);
                    if count > 0 {
                        let mut labels = String::new();
                        put(&mut labels, "provider", provider);
                        put(&mut labels, "outcome", outcome.text());
                        put(&mut labels, "dry_run", dry_run);
                        family.series(&labels, count);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_rt::exposition;

    #[test]
    fn outcomes_are_counted_by_provider() {
        let (counts, opa, other) = (Counts::default(), Arc::from("opa"), Arc::from("other"));
        counts.count(&opa, false, Outcome::Denied);
        counts.count(&other, false, Outcome::TooLarge);
        counts.count(&opa, false, Outcome::Denied);
        counts.count(&opa, true, Outcome::Allowed);
        let page = exposition::page(|page| counts.render(page));
        let lines: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "karst_ext_authz_checks_total{provider=\"opa\",outcome=\"denied\",dry_run=\"false\"} 2",
                "karst_ext_authz_checks_total{provider=\"opa\",outcome=\"allowed\",dry_run=\"true\"} 1",
                "karst_ext_authz_checks_total{provider=\"other\",outcome=\"body_too_large\",dry_run=\"false\"} 1",
            ]
        );
        assert_eq!(counts.of("opa", false, Outcome::Denied), 2);
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let counts = Counts::default();
        for i in 0..PROVIDERS + 10 {
            counts.count(&Arc::from(format!("p{i:03}")), false, Outcome::Allowed);
        }
        let page = exposition::page(|page| counts.render(page));
        assert_eq!(page.lines().count(), PROVIDERS + 3);
        assert!(page.contains("{provider=\"unknown\",outcome=\"allowed\",dry_run=\"false\"} 10"), "{page}");
    }
}
