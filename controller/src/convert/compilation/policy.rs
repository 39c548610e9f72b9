//! AuthorizationPolicies to L4 policies, and to whom those apply (reference control-plane §2.7).

use crate::convert::{
    compilation::{peer::Peer, provider},
    facts::{
        attached::target,
        policy::{Judged, Unread, is_dry_run, scope},
        udp,
    },
    objects::{Objects, problem, selects},
};
use karst_manifest::{Problem, kinds::*, parse::Located};
use karst_policy::{Action, Connection, Match, Policy, Rule, Scope, Verdict, authorize};
use std::{collections::BTreeMap, net::Ipv4Addr};

/// The compiled policies and to whom the selector ones apply.
pub(crate) struct Policies {
    all: BTreeMap<String, Policy>,
    /// Namespace (None: all), selector, key.
    selectors: Vec<Selects>,
    /// The same of policies in dry run.
    dry_runs: Vec<Selects>,
    peer: Peer,
    /// All that are enforced, as who sends datagrams meets them; none where nobody does.
    of_datagrams: Vec<Policy>,
}

type Selects = (Option<String>, Labels, String);

impl Policies {
    /// The keys of the policies that a workload must name: sorted.
    pub(crate) fn of(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let mut out = selecting(&self.selectors, namespace, labels);
        out.extend(self.peer.keys(namespace, labels));
        out.sort();
        out.dedup();
        out
    }
    /// The keys of the policies in dry run that select a workload: sorted.
    pub(crate) fn dry_runs(&self, namespace: &str, labels: &Labels) -> Vec<String> {
        let mut out = selecting(&self.dry_runs, namespace, labels);
        out.sort();
        out
    }
    /// What forbids who has no identity to send to a port of a workload, in words. (ztunnel captures no datagrams: who sends some
    /// keeps to its policies himself.)
    pub(crate) fn closed_to_datagrams(&self, namespace: &str, labels: &Labels, port: u16) -> Option<String> {
        let names = self.of(namespace, labels);
        let applies = |p: &&Policy| match p.scope {
            Scope::Global => true,
            Scope::Namespace => *p.namespace == *namespace,
            Scope::WorkloadSelector => names.binary_search(&p.key()).is_ok(),
        };
        let nobody = Connection {
            source_identity: None,
            source_ip: Ipv4Addr::UNSPECIFIED.into(),
            destination_ip: Ipv4Addr::UNSPECIFIED.into(),
            destination_port: port,
        };
        match authorize(self.of_datagrams.iter().filter(applies), &nobody) {
            Verdict::Allow => None,
            Verdict::DeniedBy(by, _) if by.contains("/istio_converted_") || by.contains("/converted_peer_") => {
                Some("PeerAuthentication with mode STRICT".into())
            }
            Verdict::DeniedBy(by, _) => Some(format!("AuthorizationPolicy {by}")),
            Verdict::NotAllowed => {
                Some("AuthorizationPolicies, none of which allows callers without an identity".into())
            }
        }
    }
    /// The policies themselves; what is left says to whom they apply.
    pub(crate) fn take(&mut self) -> BTreeMap<String, Policy> {
        std::mem::take(&mut self.all)
    }
}

fn selecting(all: &[Selects], namespace: &str, labels: &Labels) -> Vec<String> {
    let hit = |(ns, sel, key): &Selects| {
        (ns.as_deref().is_none_or(|n| n == namespace) && selects(sel, labels)).then(|| key.clone())
    };
    all.iter().filter_map(hit).collect()
}

pub(crate) fn compile(
    objects: &Objects<'_>,
    policies: &[(&Located, Judged<'_>)],
    problems: &mut Vec<Problem>,
) -> Policies {
    let mut all = BTreeMap::new();
    let (mut selectors, mut dry_runs) = (Vec::new(), Vec::new());
    for (at, judged) in policies {
        let written = judged.written;
        problems.extend(judged.dropped.iter().map(|(field, message)| problem(at, field, message)));
        if judged.compiled.is_ok() {
            problems.extend(provider::problem(objects, written).map(|(field, message)| problem(at, field, message)));
        }
        let policy = match &judged.compiled {
            Ok(Some(policy)) => policy.clone(),
            Ok(None) => continue,
            Err((field, message)) => {
                problems.push(problem(at, field, message));
                // A waypoint closes what it is attached to.
                let root = written.metadata.namespace == objects.mesh.root_namespace;
                let mut targets = written.spec.targets().peekable();
                if targets.peek().is_some() && targets.all(|(at, t)| target(t, &at, root).is_ok()) {
                    continue;
                }
                // What was meant cannot be known; where it was meant to apply, nothing is allowed until it is mended.
                let Some(closed) = closed(objects, written) else { continue };
                closed
            }
        };
        if policy.scope == Scope::WorkloadSelector {
            let labels = written.spec.selector.as_ref().map(|s| s.match_labels.clone()).unwrap_or_default();
            let namespace = &written.metadata.namespace;
            let namespace = (*namespace != objects.mesh.root_namespace).then(|| namespace.clone());
            let list = if policy.dry_run { &mut dry_runs } else { &mut selectors };
            list.push((namespace, labels, policy.key()));
        }
        all.insert(policy.key(), policy);
    }
    let peer = Peer::compile(objects, &mut all, problems);
    let of_datagrams = match udp::is_used(objects) {
        true => all.values().filter(|p| !p.dry_run).cloned().map(without_addresses).collect(),
        false => vec![],
    };
    Policies { all, selectors, dry_runs, peer, of_datagrams }
}

/// A policy as it is met by who may have any address: what it says of addresses never lets anybody in, and never lets anybody go.
fn without_addresses(mut policy: Policy) -> Policy {
    let matches = policy.rules.iter_mut().flat_map(|r| &mut r.clauses).flat_map(|c| &mut c.matches);
    for one in matches {
        let addresses =
            [&mut one.source_ips, &mut one.not_source_ips, &mut one.destination_ips, &mut one.not_destination_ips];
        let mut has = false;
        for list in addresses {
            has |= !std::mem::take(list).is_empty();
        }
        // Of what is denied the rest of the match decides, if there is a rest.
        one.unknown |= has && (policy.action == Action::Allow || *one == Match::default());
    }
    policy
}

/// What stands for a policy that cannot be read, where ztunnel decides. (Of one in dry run it is known that it is to refuse nobody.)
fn closed(objects: &Objects<'_>, policy: &AuthorizationPolicy) -> Option<Policy> {
    let (action, rules) = match Unread::of(policy) {
        Unread::AllowsNobody => (Action::Allow, vec![]),
        Unread::DeniesAll => (Action::Deny, vec![Rule::default()]),
        Unread::AuditsNothing => return None,
    };
    Some(Policy {
        name: policy.metadata.name.as_str().into(),
        namespace: policy.metadata.namespace.as_str().into(),
        scope: scope(objects, policy),
        action,
        rules,
        dry_run: is_dry_run(policy),
    })
}
