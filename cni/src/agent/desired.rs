//! What the manifests ask for: which of the node's pods are to be redirected, and how. The decision alone, without I/O
//! and without a clock.
//!
//! A pod's addresses are those that its object shows; before it does, those that the CNI plugin announced, or that an
//! earlier agent recorded. A pod without any is not redirected yet.

use crate::{
    local::{self, InvalidDevice},
    records::Record,
};
use karst_api::zds::WorkloadInfo;
use karst_ebpf::PodConfig;
use karst_manifest::{
    Object, State, enrol,
    kinds::{Labels, Namespace, Pod},
};
use karst_rt::clock::Instant;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

/// Annotation that says, in directory mode, where a pod's network namespace is.
const NETNS: &str = "karst.io/netns";
/// Annotation that names devices of the pod that lead to what is inside of it (Istio's).
const INNER_DEVICES: &str = "ambient.istio.io/reroute-virtual-interfaces";
/// An announced pod that the watch does not show after this long is gone.
const ANNOUNCED_LIMIT: Duration = Duration::from_secs(60);

/// A pod that is to be redirected.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Desired {
    pub(super) info: WorkloadInfo,
    /// metadata.uid as the API server has it.
    pub(super) uid: String,
    pub(super) config: PodConfig,
    /// Where its network namespace is; empty: found by the uid of its processes.
    pub(super) netns: PathBuf,
    /// Connections from before its redirection are to be closed.
    pub(super) close: bool,
}

impl Desired {
    /// What must be known of it later.
    pub(super) fn record(&self) -> Record {
        Record {
            uid: self.config.uid.clone(),
            namespace: self.info.namespace.clone(),
            name: self.info.name.clone(),
            netns: self.netns.display().to_string(),
            ips: self.config.ips.clone(),
            unmeshed: None,
            closed: None,
        }
    }
}

/// A pod that the CNI plugin has announced: the API server learns its addresses later.
pub(super) struct Announced {
    pub(super) pod: Pod,
    pub(super) ips: Vec<IpAddr>,
    pub(super) at: Instant,
}

impl Announced {
    /// Has the watch had time enough to show it?
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= ANNOUNCED_LIMIT
    }
}

/// Why a pod that is wanted cannot be redirected as its annotations are.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidPod {
    #[error("metadata.annotations[{annotation}]: {value:?} is neither \"true\" nor \"false\"")]
    Flag { annotation: &'static str, value: String },
    #[error(
        "metadata.annotations[{NETNS}]: is missing; in directory mode it names the pod's network namespace, such as /run/netns/x"
    )]
    NoNetns,
    #[error("metadata.annotations[{INNER_DEVICES}]: {0}")]
    Devices(#[from] InvalidDevice),
}

/// What of the agent's options the decision goes by.
pub(super) struct Rules<'a> {
    /// The agent's node.
    pub(super) node: &'a str,
    pub(super) excluded_namespaces: &'a [String],
    /// Unless the pod's annotations say otherwise.
    pub(super) dns_capture: bool,
    /// Unless the pod's annotations say otherwise.
    pub(super) close_unmeshed: bool,
    /// Directory mode: an annotation says where a pod's network namespace is.
    pub(super) annotated_netns: bool,
}

/// What is asked for.
#[derive(Default)]
pub(super) struct Selection {
    /// By `namespace/name`.
    pub(super) pods: BTreeMap<String, Desired>,
    /// Uids of those whose objects show their addresses.
    pub(super) addressed: HashSet<String>,
    /// What is wrong with those that are wanted and cannot be had, one line each.
    pub(super) invalid: Vec<String>,
}

impl Rules<'_> {
    /// Is this pod to be redirected, wherever it runs?
    pub(super) fn wants(&self, namespace: Option<&Namespace>, pod: &Pod) -> bool {
        enrol::wanted(namespace, pod) && !self.excluded_namespaces.contains(&pod.metadata.namespace)
    }

    /// The pods of this node that are to be redirected. `announced` is by uid; `recorded` gives the addresses that an
    /// earlier agent has recorded for a uid.
    pub(super) fn select(
        &self,
        state: &State,
        announced: &HashMap<String, Announced>,
        now: Instant,
        mut recorded: impl FnMut(&str) -> Option<Vec<IpAddr>>,
    ) -> Selection {
        let namespaces: HashMap<&str, &Namespace> = state
            .objects
            .iter()
            .filter_map(|o| match &o.object {
                Object::Namespace(n) => Some((n.metadata.name.as_str(), &**n)),
                _ => None,
            })
            .collect();
        let mut selection = Selection::default();
        let mut shown = HashSet::new();
        for located in &state.objects {
            let Object::Pod(pod) = &located.object else { continue };
            let meta = &pod.metadata;
            shown.insert(meta.uid.as_str());
            let namespace = namespaces.get(meta.namespace.as_str()).copied();
            if pod.spec.node_name != self.node || !self.wants(namespace, pod) {
                continue;
            }
            let mut ips = enrol::ips(pod);
            if !ips.is_empty() {
                selection.addressed.insert(meta.uid.clone());
            } else if let Some(known) = announced.get(&meta.uid) {
                ips.clone_from(&known.ips);
            } else if let Some(known) = recorded(&meta.uid) {
                // Announced to the agent before this one.
                ips = known;
            } else {
                continue;
            }
            match self.pod(pod, ips) {
                Ok(desired) => {
                    selection.pods.insert(format!("{}/{}", meta.namespace, meta.name), desired);
                }
                Err(e) => {
                    let file = match located.line {
                        0 => String::new(),
                        line => format!("{}:{line}: ", located.file.display()),
                    };
                    selection.invalid.push(format!("{file}Pod {}/{}: {e}", meta.namespace, meta.name));
                }
            }
        }
        // Announced before the watch shows them.
        for early in announced.values().filter(|a| !a.is_over(now)) {
            let meta = &early.pod.metadata;
            let key = format!("{}/{}", meta.namespace, meta.name);
            if !selection.pods.contains_key(&key)
                && !shown.contains(meta.uid.as_str())
                && let Ok(desired) = self.pod(&early.pod, early.ips.clone())
            {
                selection.pods.insert(key, desired);
            }
        }
        selection
    }

    /// One pod, as its annotations ask for it.
    pub(super) fn pod(&self, pod: &Pod, ips: Vec<IpAddr>) -> Result<Desired, InvalidPod> {
        let meta = &pod.metadata;
        let annotations = &meta.annotations;
        let netns = match self.annotated_netns {
            false => PathBuf::new(),
            true => annotations.get(NETNS).map(PathBuf::from).ok_or(InvalidPod::NoNetns)?,
        };
        let uid = match meta.uid.as_str() {
            "" => format!("{}_{}", meta.namespace, meta.name),
            uid => uid.to_string(),
        };
        let info = WorkloadInfo {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            service_account: enrol::service_account(pod).into(),
        };
        let config = PodConfig {
            uid: karst_core::zds_uid(&uid),
            closed: false,
            ips,
            bypass_inbound: flag(annotations, "ambient.istio.io/bypass-inbound-capture", false)?,
            bypass_dns: !flag(annotations, "ambient.istio.io/dns-capture", self.dns_capture)?,
            trust_mark: false,
            all_devices: flag(annotations, "karst.io/capture-all-devices", false)?,
            other_protocols: flag(annotations, "karst.io/allow-other-protocols", false)?,
            inner_devices: local::devices(annotations.get(INNER_DEVICES).map_or("", String::as_str))?,
        };
        let close = flag(annotations, "karst.io/close-unmeshed-connections", self.close_unmeshed)?;
        Ok(Desired { info, uid: meta.uid.clone(), config, netns, close })
    }
}

fn flag(annotations: &Labels, annotation: &'static str, default: bool) -> Result<bool, InvalidPod> {
    match annotations.get(annotation).map(String::as_str) {
        None | Some("") => Ok(default),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(InvalidPod::Flag { annotation, value: other.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules<'_> = Rules {
        node: "n1",
        excluded_namespaces: &[],
        dns_capture: true,
        close_unmeshed: false,
        annotated_netns: false,
    };

    fn namespace(name: &str, labels: &str) -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n---\n")
    }

    /// A pod of namespace `mesh`; `more` is of its metadata.
    fn pod(name: &str, node: &str, ip: &str, more: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: mesh, uid: u-{name}{more}}}\nspec: {{nodeName: {node}}}\nstatus: {{podIP: '{ip}'}}\n---\n"
        )
    }

    fn state(pods: &[String]) -> State {
        let text = namespace("mesh", "istio.io/dataplane-mode: ambient") + &pods.concat();
        let objects = karst_manifest::parse::file("x.yaml".as_ref(), &text).unwrap();
        State { objects: objects.into_iter().map(Into::into).collect(), ..State::default() }
    }

    fn select(rules: &Rules<'_>, state: &State) -> Selection {
        rules.select(state, &HashMap::new(), Instant::now(), |_| None)
    }

    fn names(selection: &Selection) -> Vec<&str> {
        selection.pods.keys().map(String::as_str).collect()
    }

    fn announced(name: &str, at: Instant) -> HashMap<String, Announced> {
        let state = state(&[pod(name, "n1", "", "")]);
        let pods = state.objects.iter().filter_map(|o| if let Object::Pod(p) = &o.object { Some(&**p) } else { None });
        let ips = vec!["10.0.0.9".parse().unwrap()];
        pods.map(|p| (p.metadata.uid.clone(), Announced { pod: p.clone(), ips: ips.clone(), at })).collect()
    }

    #[test]
    fn pods_of_this_node_and_the_mesh_are_asked_for() {
        let none = ", labels: {istio.io/dataplane-mode: none}";
        let all = state(&[
            pod("a", "n1", "10.0.0.1", ""),
            pod("elsewhere", "n2", "10.0.0.2", ""),
            pod("left-out", "n1", "10.0.0.3", none),
            pod("without-address", "n1", "", ""),
        ]);
        let selection = select(&RULES, &all);
        assert_eq!(names(&selection), ["mesh/a"]);
        assert_eq!(selection.addressed, HashSet::from(["u-a".to_string()]));
        let desired = &selection.pods["mesh/a"];
        assert_eq!(desired.config.ips, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((desired.uid.as_str(), desired.info.service_account.as_str()), ("u-a", "default"));
        assert!(!desired.config.bypass_dns && !desired.close && desired.netns.as_os_str().is_empty());
        let excluded = ["mesh".to_string()];
        let rules = Rules { excluded_namespaces: &excluded, ..RULES };
        assert_eq!(names(&select(&rules, &all)), [""; 0]);
    }

    #[test]
    fn addresses_are_shown_or_announced_or_recorded() {
        let now = Instant::now();
        let recorded = |uid: &str| (uid == "u-a").then(|| vec!["10.0.0.8".parse().unwrap()]);
        let address = |state: &State, announced: &HashMap<String, Announced>| -> Option<String> {
            let selection = RULES.select(state, announced, now, recorded);
            selection.pods.get("mesh/a").map(|d| d.config.ips[0].to_string())
        };
        let (shown, bare) = (state(&[pod("a", "n1", "10.0.0.1", "")]), state(&[pod("a", "n1", "", "")]));
        let early = announced("a", now);
        assert_eq!(address(&shown, &early).as_deref(), Some("10.0.0.1"));
        assert_eq!(address(&bare, &early).as_deref(), Some("10.0.0.9"));
        assert_eq!(address(&bare, &HashMap::new()).as_deref(), Some("10.0.0.8"));
        assert_eq!(address(&state(&[]), &HashMap::new()), None, "a record alone asks for nothing");
    }

    #[test]
    fn an_announced_pod_is_asked_for_until_the_watch_would_have_shown_it() {
        let now = Instant::now();
        let early = announced("a", now);
        let count = |state: &State, at: Instant| RULES.select(state, &early, at, |_| None).pods.len();
        let just_before = now + ANNOUNCED_LIMIT - Duration::from_millis(1);
        assert_eq!((count(&state(&[]), now), count(&state(&[]), just_before)), (1, 1));
        assert_eq!(count(&state(&[]), now + ANNOUNCED_LIMIT), 0);
        // One that the watch shows elsewhere is not this node's any more.
        assert_eq!(count(&state(&[pod("a", "n2", "10.0.0.1", "")]), now), 0);
    }

    #[test]
    fn annotations_say_how() {
        let all = ", annotations: {ambient.istio.io/dns-capture: 'false', karst.io/capture-all-devices: 'true', \
                   karst.io/close-unmeshed-connections: 'true', \
                   ambient.istio.io/reroute-virtual-interfaces: 'docker0, tap0', karst.io/netns: /run/netns/a}";
        let one = state(&[pod("a", "n1", "10.0.0.1", all)]);
        let rules = Rules { annotated_netns: true, ..RULES };
        let desired = select(&rules, &one).pods.remove("mesh/a").unwrap();
        assert!(desired.config.bypass_dns && desired.config.all_devices && desired.close);
        assert!(!desired.config.bypass_inbound && !desired.config.other_protocols);
        assert_eq!(desired.config.inner_devices, ["docker0", "tap0"]);
        assert_eq!(desired.netns, PathBuf::from("/run/netns/a"));
        assert_eq!(desired.record().netns, "/run/netns/a");
    }

    #[test]
    fn a_pod_that_cannot_be_had_is_named_with_its_file_and_line() {
        let rules = Rules { annotated_netns: true, ..RULES };
        let flag = ", annotations: {karst.io/netns: /x, karst.io/allow-other-protocols: 'yes'}";
        let devices = ", annotations: {karst.io/netns: /x, ambient.istio.io/reroute-virtual-interfaces: 'a b'}";
        for (more, said) in [
            (flag, "[karst.io/allow-other-protocols]: \"yes\" is neither \"true\" nor \"false\""),
            (devices, "[ambient.istio.io/reroute-virtual-interfaces]: invalid device name \"a b\""),
            ("", "[karst.io/netns]: is missing"),
        ] {
            let selection = select(&rules, &state(&[pod("a", "n1", "10.0.0.1", more)]));
            assert!(selection.pods.is_empty(), "{said}");
            let start = "x.yaml:5: Pod mesh/a: metadata.annotations";
            assert!(
                matches!(&selection.invalid[..], [text] if text.starts_with(start) && text.contains(said)),
                "{said}"
            );
        }
    }
}
