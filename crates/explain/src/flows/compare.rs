//! What other policies would newly refuse or allow of what was seen.

use super::judge::{Judge, Judgement};
use crate::world::World;
use karst_flows::{Flow, Verdict};
use serde::Serialize;

/// What would become of a flow that is not as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// It is let in now, and would be refused.
    Refused,
    /// It is refused now, and would be let in.
    Allowed,
    /// It cannot be said.
    Unknown,
}

/// A flow whose end would be another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Judged {
    /// What would become of it.
    pub change: Change,
    /// The policy that would refuse it, or refuses it now; empty: no ALLOW policy matches.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Why it cannot be said.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    /// The flow.
    #[serde(flatten)]
    pub flow: Flow,
}

/// What would become of all flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Flows that were judged.
    pub flows: usize,
    /// Connections and requests of these.
    pub calls: u64,
    /// Flows that end otherwise by the present policies than they did when they were seen: policies have changed since.
    pub changed_since: usize,
    /// Those whose end would be another, or cannot be said: the refused first, and then by how many there were.
    pub changes: Vec<Judged>,
}

impl Comparison {
    /// How many flows and calls would change so.
    pub fn count(&self, change: Change) -> (usize, u64) {
        let of = self.changes.iter().filter(|judged| judged.change == change);
        of.fold((0, 0), |(flows, calls), judged| (flows + 1, calls + judged.flow.count))
    }
}

/// Judges flows by the objects as they are, and as they would be.
pub fn compare(present: &World, wanted: &World, flows: &[Flow]) -> Comparison {
    let (present, wanted) = (Judge::new(present), Judge::new(wanted));
    let mut all = Comparison { flows: flows.len(), ..Comparison::default() };
    for flow in flows {
        all.calls += flow.count;
        let (before, after) = (present.judge(flow), wanted.judge(flow));
        let was_allowed = flow.key.verdict == Verdict::Allowed;
        all.changed_since += usize::from(match &before {
            Judgement::Allowed => !was_allowed,
            Judgement::Refused(_) => was_allowed,
            Judgement::Unknown(_) => false,
        });
        let (change, policy, why) = match (before, after) {
            (_, Judgement::Unknown(why)) | (Judgement::Unknown(why), _) => (Change::Unknown, String::new(), why),
            (Judgement::Allowed, Judgement::Refused(policy)) => (Change::Refused, policy, ""),
            (Judgement::Refused(policy), Judgement::Allowed) => (Change::Allowed, policy, ""),
            (Judgement::Allowed, Judgement::Allowed) | (Judgement::Refused(_), Judgement::Refused(_)) => continue,
        };
        all.changes.push(Judged { change, policy, why, flow: flow.clone() });
    }
    all.changes.sort_by(|a, b| {
        (a.change, std::cmp::Reverse(a.flow.count), &a.flow.key).cmp(&(
            b.change,
            std::cmp::Reverse(b.flow.count),
            &b.flow.key,
        ))
    });
    all
}
