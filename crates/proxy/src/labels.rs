//! Labels of Istio's traffic metrics.

use crate::state::Workload;
use std::fmt::Write;

/// What labels are put into: the text of the page, or a list that is still to be changed.
pub trait Labels {
    /// Adds one.
    fn add(&mut self, k: &str, v: &str);
}
impl Labels for String {
    fn add(&mut self, k: &str, v: &str) {
        if !self.is_empty() {
            self.push(',');
        }
        let _ = write!(self, "{k}=\"{}\"", v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"));
    }
}
impl Labels for Vec<(String, String)> {
    fn add(&mut self, k: &str, v: &str) {
        self.push((k.into(), v.into()));
    }
}

/// Adds a label; an empty value is `unknown`.
pub fn put(out: &mut impl Labels, k: &str, v: &str) {
    out.add(k, if v.is_empty() { "unknown" } else { v });
}

/// The labels of one side. `place`: with region and zone.
pub fn side(out: &mut impl Labels, side: &str, w: Option<&Workload>, mtls: bool, place: bool) {
    let of = |f: fn(&Workload) -> &str| w.map_or("", f);
    let principal = w.filter(|_| mtls).map(|w| w.identity.to_string()).unwrap_or_default();
    put(out, &format!("{side}_workload"), of(|w| &w.workload_name));
    put(out, &format!("{side}_canonical_service"), of(|w| &w.canonical_name));
    put(out, &format!("{side}_canonical_revision"), of(|w| &w.canonical_revision));
    put(out, &format!("{side}_workload_namespace"), of(|w| &w.namespace));
    put(out, &format!("{side}_principal"), &principal);
    put(out, &format!("{side}_app"), of(|w| &w.canonical_name));
    put(out, &format!("{side}_version"), of(|w| &w.canonical_revision));
    put(out, &format!("{side}_cluster"), of(|w| &w.cluster));
    if place {
        put(out, &format!("{side}_region"), of(|w| &w.region));
        put(out, &format!("{side}_zone"), of(|w| &w.zone));
    }
}
