//! What policies in dry run (`istio.io/dry-run: "true"`) would have done, counted by policy: the same series at both proxies, with
//! the labels that Envoy's have in Istio. A series goes when its policy does, or when that is no longer in dry run.

use crate::labels::put;
pub use karst_policy::Would;
use karst_rt::exposition::{Kind, Page};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Most series; beyond, new ones are not counted until the next reading of the page has taken out those that are gone.
const MAX_SERIES: usize = 10_000;
/// Most policies that one line of the log names; the count tells of all.
const LOGGED: usize = 8;
const NAME: &str = "karst_authz_dry_run_total";

/// The action of a policy: `allow` or `deny`.
type Action = &'static str;

/// The counters of a process.
#[derive(Debug, Default)]
pub struct DryRuns(Mutex<BTreeMap<(String, Action, Would), u64>>);

impl DryRuns {
    /// A policy (`namespace/name`) would have decided about a connection or a request.
    pub fn count(&self, policy: &str, deny: bool, would: Would) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (policy.to_string(), if deny { "deny" } else { "allow" }, would);
        if all.len() < MAX_SERIES || all.contains_key(&key) {
            *all.entry(key).or_default() += 1;
        }
    }

    /// Adds them to the metrics page. `known`: is this a policy in dry run still?
    pub fn render(&self, page: &mut Page, known: impl Fn(&str) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(policy, ..), _| known(policy));
        let mut family = page.family(
            NAME,
            Kind::Counter,
            "Connections (at a waypoint: requests) that a policy in dry run would have allowed or denied.",
        );
        for ((policy, action, would), count) in all.iter() {
            let mut labels = String::new();
            put(&mut labels, "policy", policy);
            put(&mut labels, "authz_dry_run_action", action);
            put(&mut labels, "authz_dry_run_result", would.result());
            family.series(&labels, count);
        }
    }
}

/// What a line of the log says of several policies: what would have become of the connection, and by which of them.
pub fn summary<'a>(all: impl Iterator<Item = (&'a str, Would)> + Clone) -> Option<(Would, String)> {
    let would = all.clone().map(|(_, w)| w).max()?;
    let mut names = all.filter(|(_, w)| *w == would).map(|(p, _)| p);
    let mut out = names.by_ref().take(LOGGED).collect::<Vec<_>>().join(",");
    if names.next().is_some() {
        out.push_str(",...");
    }
    Some((would, out))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use karst_rt::exposition;

    fn page(d: &DryRuns, known: &[&str]) -> Vec<String> {
        let page = exposition::page(|page| d.render(page, |p| known.contains(&p)));
        page.lines().filter(|l| !l.starts_with('#')).map(String::from).collect()
    }

    #[test]
    fn a_series_goes_when_its_policy_does() {
        let d = DryRuns::default();
        d.count("app/a", true, Would::Deny);
        d.count("app/a", true, Would::Deny);
        d.count("app/b", false, Would::Allow);
        let a = "karst_authz_dry_run_total{policy=\"app/a\",authz_dry_run_action=\"deny\",authz_dry_run_result=\"denied\"} 2";
        let b = "karst_authz_dry_run_total{policy=\"app/b\",authz_dry_run_action=\"allow\",authz_dry_run_result=\"allowed\"} 1";
        assert_eq!(page(&d, &["app/a", "app/b"]), [a, b]);
        assert_eq!(page(&d, &["app/b"]), [b]);
        assert_eq!(page(&d, &["app/a", "app/b"]), [b], "it does not come back with its old count");
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let d = DryRuns::default();
        for i in 0..MAX_SERIES + 10 {
            d.count(&format!("app/{i:06}"), true, Would::Deny);
        }
        d.count("app/000000", true, Would::Deny);
        let out = exposition::page(|page| d.render(page, |_| true));
        assert_eq!(out.lines().count(), MAX_SERIES + 2);
        assert!(out.contains("\"app/000000\",authz_dry_run_action=\"deny\",authz_dry_run_result=\"denied\"} 2"));
    }

    #[test]
    fn a_line_names_who_would_have_decided() {
        let say = |v: &[(&str, Would)]| summary(v.iter().copied());
        assert_eq!(say(&[]), None);
        assert_eq!(say(&[("n/a", Would::Allow)]), Some((Would::Allow, "n/a".into())));
        let mixed = [("n/a", Would::Allow), ("n/b", Would::Deny), ("n/c", Would::Deny)];
        assert_eq!(say(&mixed), Some((Would::Deny, "n/b,n/c".into())));
        let many = [("n/a", Would::Deny); LOGGED + 1];
        let (_, text) = say(&many).unwrap();
        assert_eq!((text.matches("n/a").count(), text.ends_with(",...")), (LOGGED, true));
    }
}
