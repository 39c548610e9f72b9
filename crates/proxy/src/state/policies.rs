//! The policies of the state, and which of them apply to a workload.

use super::{
    model::{OwnPod, Workload},
    snapshot::Snapshot,
};
use karst_policy::{Policy, Scope};
use std::sync::Arc;

/// Istio's name of the policy that stands for STRICT.
const STATIC_STRICT: &str = "/istio_converted_static_strict";

impl Snapshot {
    /// The policies that apply to a workload; Err names one that has not arrived. One in dry run is not waited for. (One that was
    /// in dry run and is now enforced applies at once, though the workload has it among the former still.)
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> Result<Vec<&'a Policy>, Arc<str>> {
        let mut out: Vec<&Policy> = self.globals.iter().map(|p| &**p).collect();
        out.extend(self.by_namespace.get(&workload.namespace).into_iter().flatten().map(|p| &**p));
        for key in &workload.policies {
            out.push(self.policies.get(key).ok_or_else(|| key.clone())?);
        }
        out.extend(workload.dry_runs.iter().filter_map(|k| self.policies.get(k)).map(|p| &**p));
        Ok(out)
    }

    /// The policies for a pod of ours; Err names one that is not known, or not whether it applies.
    pub fn policies_of_own(&self, pod: &OwnPod<'_>) -> Result<Vec<&Policy>, Arc<str>> {
        match self.own_pod(pod) {
            Some(w) => self.policies_of(w),
            None => self.policies_of_unannounced(pod.namespace),
        }
    }

    /// The policies for a pod that the control plane has not told of. Which of those with a selector apply to it is not
    /// known, so if there is any in its namespace or for all namespaces, nothing is known; Err names it.
    fn policies_of_unannounced(&self, namespace: &str) -> Result<Vec<&Policy>, Arc<str>> {
        let open = |(k, p): &(&Arc<str>, &Arc<Policy>)| {
            let here = *p.namespace == *namespace || *p.namespace == *self.root || k.ends_with(STATIC_STRICT);
            p.scope == Scope::WorkloadSelector && !p.dry_run && here
        };
        if let Some((key, _)) = self.policies.iter().find(open) {
            return Err(key.clone());
        }
        let own = self.by_namespace.get(namespace).into_iter().flatten();
        Ok(self.globals.iter().chain(own).map(|p| &**p).collect())
    }

    /// Takes in one policy.
    pub fn put_policy(&mut self, name: &str, policy: Policy) {
        self.remove_policy(name);
        let policy = Arc::new(policy);
        match policy.scope {
            Scope::Global => insert(&mut self.globals, &policy),
            Scope::Namespace => insert(self.by_namespace.entry(policy.namespace.clone()).or_default(), &policy),
            Scope::WorkloadSelector => {}
        }
        self.policies.insert(name.into(), policy);
    }
    /// Removes a policy.
    pub fn remove_policy(&mut self, name: &str) {
        let Some(old) = self.policies.remove(name) else { return };
        let other = |policy: &Arc<Policy>| !Arc::ptr_eq(policy, &old);
        match old.scope {
            Scope::Global => self.globals.retain(other),
            Scope::Namespace => {
                if let Some(all) = self.by_namespace.get_mut(&old.namespace) {
                    all.retain(other);
                    if all.is_empty() {
                        self.by_namespace.remove(&old.namespace);
                    }
                }
            }
            Scope::WorkloadSelector => {}
        }
    }
}

/// In the order of their names: of several policies that refuse, every ztunnel names the same.
fn insert(all: &mut Vec<Arc<Policy>>, policy: &Arc<Policy>) {
    let name = |p: &Arc<Policy>| (p.namespace.clone(), p.name.clone());
    let at = all.partition_point(|p| name(p) < name(policy));
    all.insert(at, policy.clone());
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::{
        state::testing::with_uid,
        testing::{pod, snapshot},
    };
    use karst_api::workload as pb;
    use karst_core::Identity;
    use prost::Message;

    #[test]
    fn policies_are_in_the_order_of_their_names_however_they_come() {
        use karst_policy::Action;
        let policy = |name: &str, scope: Scope| Policy {
            name: name.into(),
            namespace: "ns".into(),
            scope,
            action: Action::Deny,
            rules: vec![],
            dry_run: false,
        };
        let mut s = snapshot(vec![pod("a", "10.0.0.1", &[])], vec![]);
        let names = |s: &Snapshot| {
            let w = s.workload("10.0.0.1".parse().unwrap()).unwrap().clone();
            s.policies_of(&w).unwrap().iter().map(|p| p.name.to_string()).collect::<Vec<_>>()
        };
        for name in ["c", "a", "d", "b"] {
            s.put_policy(&format!("ns/{name}"), policy(name, Scope::Namespace));
        }
        assert_eq!(names(&s), ["a", "b", "c", "d"]);
        s.put_policy("ns/b", policy("b", Scope::WorkloadSelector));
        s.put_policy("ns/d", policy("d", Scope::Global));
        assert_eq!(names(&s), ["d", "a", "c"], "it has changed its scope");
        ["ns/a", "ns/c", "ns/d", "ns/d"].iter().for_each(|name| s.remove_policy(name));
        assert!(names(&s).is_empty() && s.by_namespace.is_empty() && s.globals.is_empty());
    }

    #[test]
    fn a_missing_policy_is_reported() {
        let mut w = pod("a", "10.0.0.1", &[]);
        w.authorization_policies = vec!["ns/p".into()];
        let s = snapshot(vec![w], vec![]);
        let w = s.workload("10.0.0.1".parse().unwrap()).unwrap().clone();
        assert_eq!(s.policies_of(&w).unwrap_err(), "ns/p".into());
    }

    #[test]
    fn a_dry_run_is_neither_waited_for_nor_enforced() {
        use karst_policy::{Action, Connection, Verdict, authorize};
        let policy = |name: &str, dry_run: bool| Policy {
            name: name.into(),
            namespace: "ns".into(),
            scope: Scope::WorkloadSelector,
            action: Action::Allow,
            rules: vec![],
            dry_run,
        };
        let mut w = pod("a", "10.0.0.1", &[]);
        w.karst_dry_run_policies = vec!["ns/p".into()];
        let mut s = snapshot(vec![w], vec![]);
        let w = s.workload("10.0.0.1".parse().unwrap()).unwrap().clone();
        let calls = Connection {
            source_identity: None,
            source_ip: [10, 0, 0, 9].into(),
            destination_ip: [10, 0, 0, 1].into(),
            destination_port: 80,
        };
        let judged = |s: &Snapshot| {
            let policies = s.policies_of(&w).unwrap();
            let told = karst_policy::dry_run(policies.iter().copied(), &calls).len();
            (authorize(policies.into_iter(), &calls), told)
        };
        assert_eq!(judged(&s), (Verdict::Allow, 0), "it has not arrived");
        s.put_policy("ns/p", policy("p", true));
        assert_eq!(judged(&s), (Verdict::Allow, 1));
        assert_eq!(s.policies_of_unannounced("ns").unwrap().len(), 0, "closes no pod that nobody has told of");
        s.put_policy("ns/p", policy("p", false));
        assert_eq!(judged(&s), (Verdict::NotAllowed, 0), "enforced before the workload says so");
        assert!(s.policies_of_unannounced("ns").is_err());
    }

    #[test]
    fn a_pod_made_anew_has_the_policies_of_one_that_nobody_told_of() {
        let deny = |name: &str, scope: Scope| Policy {
            name: name.into(),
            namespace: "ns".into(),
            scope,
            action: karst_policy::Action::Deny,
            rules: vec![],
            dry_run: false,
        };
        let mut told = with_uid(pod("a", "10.0.0.1", &[]), "1");
        told.authorization_policies = vec!["ns/mine".into()];
        let mut s = snapshot(vec![told], vec![]);
        s.put_policy("ns/wide", deny("wide", Scope::Namespace));
        let own = |uid| OwnPod { namespace: "ns", name: "a", account: "a", uid: Some(uid) };
        let names =
            |r: Result<Vec<&Policy>, Arc<str>>| r.map(|p| p.iter().map(|p| p.name.to_string()).collect::<Vec<_>>());
        assert_eq!(names(s.policies_of_own(&own("1"))), Err("ns/mine".into()));
        assert_eq!(names(s.policies_of_own(&own("2"))), Ok(vec!["wide".to_string()]));
        s.put_policy("ns/mine", deny("mine", Scope::WorkloadSelector));
        assert_eq!(names(s.policies_of_own(&own("1"))), Ok(vec!["wide".to_string(), "mine".to_string()]));
        assert_eq!(names(s.policies_of_own(&own("2"))), Err("ns/mine".into()), "whether it applies is not known");
    }

    #[test]
    fn policies_of_a_pod_that_nobody_told_of() {
        let policy = |name: &str, namespace: &str, scope: Scope| Policy {
            name: name.into(),
            namespace: namespace.into(),
            scope,
            action: karst_policy::Action::Deny,
            rules: vec![],
            dry_run: false,
        };
        let mut s = Snapshot::new("");
        s.put_policy("root/all", policy("all", "root", Scope::Global));
        s.put_policy("ns/wide", policy("wide", "ns", Scope::Namespace));
        s.put_policy("other/some", policy("some", "other", Scope::WorkloadSelector));
        assert_eq!(s.policies_of_unannounced("ns").unwrap().len(), 2);
        assert_eq!(s.policies_of_unannounced("third").unwrap().len(), 1);
        assert_eq!(&*s.policies_of_unannounced("other").unwrap_err(), "other/some");
        let mut rooted = s.clone().with_root("root");
        rooted.put_policy("root/dry", Policy { dry_run: true, ..policy("dry", "root", Scope::WorkloadSelector) });
        assert_eq!(rooted.policies_of_unannounced("third").unwrap().len(), 1, "one in dry run closes nothing");
        rooted.put_policy("root/some", policy("some", "root", Scope::WorkloadSelector));
        assert_eq!(&*rooted.policies_of_unannounced("third").unwrap_err(), "root/some", "for all namespaces");
        s.put_policy("root/istio_converted_static_strict", policy("x", "root", Scope::WorkloadSelector));
        assert!(s.policies_of_unannounced("ns").is_err());
    }

    /// T31: in whatever order a change arrives, nobody is let in whom the old and the new state both keep out.
    #[test]
    fn no_order_of_updates_opens_a_gap() {
        use karst_policy::{Action, Clause, Connection, Match, Rule, StringMatch, authorize};
        use rand::{SeedableRng, seq::SliceRandom};
        let allow = |name: &str, scope: Scope, account: &str| Policy {
            name: name.into(),
            namespace: "ns".into(),
            scope,
            action: Action::Allow,
            rules: vec![Rule {
                clauses: vec![Clause {
                    matches: vec![Match {
                        principals: vec![StringMatch::Exact(format!("cluster.local/ns/ns/sa/{account}").into())],
                        ..Default::default()
                    }],
                }],
            }],
            dry_run: false,
        };
        let named = |policy: &str| {
            let mut w = pod("server", "10.0.0.1", &[]);
            w.authorization_policies = vec![policy.into()];
            pb::Address { r#type: Some(pb::address::Type::Workload(w)) }.encode_to_vec()
        };
        const UID: &str = "Kubernetes//Pod/ns/server";
        const OWN: OwnPod<'static> = OwnPod { namespace: "ns", name: "server", account: "server", uid: None };
        let calls = |account: &str| Connection {
            source_identity: Some(Identity::new("cluster.local", "ns", account).unwrap()),
            source_ip: [10, 0, 0, 9].into(),
            destination_ip: [10, 0, 0, 1].into(),
            destination_port: 80,
        };
        let mut rng = rand::rngs::StdRng::seed_from_u64(31);
        let (mut held, mut judged) = (0, 0);
        for _ in 0..1000 {
            let mut s = Snapshot::new("");
            s.put_address(UID, &named("ns/old")).unwrap();
            s.put_policy("ns/old", allow("old", Scope::WorkloadSelector, "a"));
            s.put_policy("ns/wide-old", allow("wide-old", Scope::Namespace, "a"));
            type Update<'a> = Box<dyn Fn(&mut Snapshot) + 'a>;
            let mut updates: Vec<Update<'_>> = vec![
                Box::new(|s| s.put_address(UID, &named("ns/new")).unwrap()),
                Box::new(|s| s.put_policy("ns/new", allow("new", Scope::WorkloadSelector, "b"))),
                Box::new(|s| s.remove_policy("ns/old")),
                // One response replaces a namespace's policy: it is one update.
                Box::new(|s| {
                    s.put_policy("ns/wide-new", allow("wide-new", Scope::Namespace, "b"));
                    s.remove_policy("ns/wide-old");
                }),
                Box::new(|s| s.put_policy("other/x", allow("x", Scope::WorkloadSelector, "c"))),
                Box::new(|s| {
                    let w = pb::Address { r#type: Some(pb::address::Type::Workload(pod("c", "10.0.0.3", &[]))) };
                    s.put_address("Kubernetes//Pod/ns/c", &w.encode_to_vec()).unwrap();
                }),
                Box::new(|s| s.remove_address("Kubernetes//Pod/ns/gone")),
            ];
            updates.shuffle(&mut rng);
            for u in updates {
                u(&mut s);
                match s.policies_of_own(&OWN) {
                    Err(_) => held += 1,
                    Ok(p) => {
                        judged += 1;
                        assert!(!authorize(p.into_iter(), &calls("c")).is_allow(), "c was let in");
                    }
                }
            }
            let p = s.policies_of_own(&OWN).unwrap();
            assert!(authorize(p.iter().copied(), &calls("b")).is_allow());
            assert!(!authorize(p.into_iter(), &calls("a")).is_allow());
        }
        println!("T31 orders=1000 states_judged={judged} held={held} wrongly_admitted=0");
        assert!(held > 100 && judged > 100);
    }
}
