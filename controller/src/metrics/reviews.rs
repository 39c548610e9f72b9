//! What the validation webhook has decided, counted. Label values are of fixed sets: anybody may reach the webhook.

use karst_manifest::kinds::{self, KINDS};
use karst_rt::exposition;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Versions of the APIs that objects are reviewed in.
const VERSIONS: [&str; 5] = ["v1", "v1beta1", "v1alpha3", "v1alpha2", "v1alpha1"];
const OTHER: &str = "other";

/// Why an object is refused: Istio's words, for the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The review cannot be read.
    Undecodable,
    /// There is no such kind here, and it must not seem as if.
    UnknownType,
    /// It does not have the form of its kind.
    Unconvertible,
    /// What it says cannot be.
    Invalid,
}

impl Why {
    const ALL: [Self; 4] = [Self::Undecodable, Self::UnknownType, Self::Unconvertible, Self::Invalid];

    /// As the label has it.
    pub fn text(self) -> &'static str {
        match self {
            Why::Undecodable => "yaml_decode_error",
            Why::UnknownType => "unknown_type",
            Why::Unconvertible => "crd_conversion_error",
            Why::Invalid => "invalid_resource",
        }
    }
}

/// What was reviewed: places in [`KINDS`] and [`VERSIONS`]; beyond their ends, something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reviewed {
    kind: usize,
    version: usize,
}

impl Reviewed {
    /// From what the API server says.
    pub fn of(group: &str, version: &str, kind: &str) -> Self {
        let known = kinds::known(kind, group);
        let kind = KINDS.iter().position(|one| known.is_some_and(|known| known.0 == one.0));
        let version = VERSIONS.iter().position(|known| *known == version);
        Self { kind: kind.unwrap_or(KINDS.len()), version: version.unwrap_or(VERSIONS.len()) }
    }

    /// The labels `group`, `version` and `resource`: the last is the kind's plural, as in an API path.
    pub fn labels(self) -> String {
        let (group, resource) = KINDS
            .get(self.kind)
            .map_or((OTHER, OTHER.into()), |(kind, group, _)| (*group, plural(kinds::api_kind(kind))));
        let version = VERSIONS.get(self.version).copied().unwrap_or(OTHER);
        exposition::labels(&[("group", group), ("version", version), ("resource", &resource)])
    }
}

fn plural(kind: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if kind.ends_with('s') => format!("{kind}es"),
        _ => format!("{kind}s"),
    }
}

/// Let in, and refused for each reason.
type Decided = [AtomicU64; 1 + Why::ALL.len()];

/// The counts, by kind and version.
#[derive(Debug)]
pub struct Reviews(Vec<Decided>);

impl Default for Reviews {
    fn default() -> Self {
        Self((0..(KINDS.len() + 1) * (VERSIONS.len() + 1)).map(|_| Decided::default()).collect())
    }
}

impl Reviews {
    /// One more.
    pub fn note(&self, what: Reviewed, refused: Option<Why>) {
        let place = what.kind * (VERSIONS.len() + 1) + what.version;
        let decision = refused.map_or(0, |why| 1 + why as usize);
        if let Some(count) = self.0.get(place).and_then(|all| all.get(decision)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// What was ever decided, and how often. None: let in.
    pub fn all(&self) -> Vec<(Reviewed, Option<Why>, u64)> {
        let decisions = || std::iter::once(None).chain(Why::ALL.map(Some));
        let of = |(place, counts): (usize, &Decided)| {
            let what = Reviewed { kind: place / (VERSIONS.len() + 1), version: place % (VERSIONS.len() + 1) };
            let counts: [u64; 1 + Why::ALL.len()] = std::array::from_fn(|i| counts[i].load(Relaxed));
            decisions().zip(counts).map(move |(why, count)| (what, why, count))
        };
        self.0.iter().enumerate().flat_map(of).filter(|(_, _, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_of_fixed_sets() {
        let told = |group, version, kind| {
            let labels = Reviewed::of(group, version, kind).labels();
            labels.split('"').skip(1).step_by(2).collect::<Vec<_>>().join("/")
        };
        assert_eq!(
            told("security.istio.io", "v1", "AuthorizationPolicy"),
            "security.istio.io/v1/authorizationpolicies"
        );
        assert_eq!(told("networking.istio.io", "v1", "Gateway"), "networking.istio.io/v1/gateways");
        assert_eq!(
            told("gateway.networking.k8s.io", "v1", "GatewayClass"),
            "gateway.networking.k8s.io/v1/gatewayclasses"
        );
        assert_eq!(told("x\"}", "v1\n", "Nonsense"), "other/other/other");
        let all = Reviews::default();
        (0..9).for_each(|n| all.note(Reviewed::of(&format!("g{n}"), &format!("v{n}"), "K"), None));
        all.note(Reviewed::of("networking.istio.io", "v1", "VirtualService"), Some(Why::Invalid));
        let told: Vec<_> = all.all().into_iter().map(|(what, why, count)| (what.labels(), why, count)).collect();
        let other = |version| format!("group=\"other\",version=\"{version}\",resource=\"other\"");
        assert!(told.contains(&(other("v1"), None, 1)) && told.contains(&(other("other"), None, 8)), "{told:?}");
        assert!(told.len() == 3 && told.iter().any(|(_, why, count)| (*why, *count) == (Some(Why::Invalid), 1)));
    }
}
