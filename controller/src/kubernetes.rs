//! What the controller does only on Kubernetes: the objects that it watches, its authority's Secret, and the root
//! certificate and revocation lists that every namespace gets.

use crate::{
    ca::{CertificateAuthority, Signer},
    config::Config,
    convert::{MANAGED, Writes, deploy},
    teller::Teller,
};
use anyhow::{Context, bail};
use karst_kube::{Kube, Source, Watch, Watched};
use karst_manifest::{Object, State, mesh_config};
use karst_rt::{backoff::Backoff, repeated::Repeated};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// Istio's name of the ConfigMap with the root certificate.
const ROOT_CONFIG_MAP: &str = "istio-ca-root-cert";
const ROOT_KEY: &str = "root-cert.pem";
/// And of the one with the revocation lists.
const LISTS_CONFIG_MAP: &str = "istio-ca-crl";
const LISTS_KEY: &str = "ca-crl.pem";
/// Name of the copy of the mesh configuration in the namespaces of ztunnels that are not in ours, with the revision's name for all
/// but the default one (the chart ztunnel knows it by this rule, too).
const MESH_CONFIG_MAP: &str = "karst-mesh-config";
/// Between two looks at the revocation lists in the authority's Secret: who is revoked is to be out soon.
const LISTS_CHECK: Duration = Duration::from_secs(10);
/// Namespaces in which no workload of a mesh can be (Istio's list).
const NO_ROOT: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
const RETRY: Duration = Duration::from_secs(1);
/// The longest time between two tries of what fails again and again.
const RETRY_CAP: Duration = Duration::from_secs(30);

/// Starts to watch, and waits until everything has been listed.
pub async fn source(kube: &Kube, secrets: bool) -> Source {
    let mut watches: Vec<Watch> = [
        "Namespace",
        "Node",
        "Pod",
        "Service",
        "EndpointSlice",
        "GatewayClass",
        "Gateway",
        "ServiceEntry",
        "WorkloadEntry",
        "AuthorizationPolicy",
        "PeerAuthentication",
        "RequestAuthentication",
        "Telemetry",
        "VirtualService",
        "IstioGateway",
        "DestinationRule",
        "HTTPRoute",
        "GRPCRoute",
    ]
    .map(Watch::all)
    .into();
    watches.iter_mut().filter(|watch| watch.kind == "Pod").for_each(|watch| watch.lean = Some(lean));
    // These have a v1 in newer releases only.
    watches.push(Watch { versions: &["v1", "v1beta1"], ..Watch::all("ReferenceGrant") });
    // In Gateway API since 1.5; older charts do not give the right to it.
    watches.push(Watch { is_optional: true, ..Watch::all("ListenerSet") });
    watches.push(Watch { versions: &["v1", "v1alpha2"], ..Watch::all("TCPRoute") });
    // Older charts do not give the right to them.
    watches.push(Watch { versions: &["v1", "v1alpha2"], is_optional: true, ..Watch::all("UDPRoute") });
    watches.push(Watch { versions: &["v1", "v1alpha3", "v1alpha2"], ..Watch::all("TLSRoute") });
    watches.push(Watch { versions: &["v1alpha1"], ..Watch::all("HTTPFilter") });
    watches.push(Watch { versions: &["v1", "v1alpha3"], ..Watch::all("BackendTLSPolicy") });
    // Of Gateway API's experimental channel; older charts do not give the right to it.
    let policies = Watch { versions: &["v1alpha1"], ..Watch::all("XBackendTrafficPolicy") };
    watches.push(Watch { is_optional: true, ..policies });
    watches.push(Watch::all("ConfigMap"));
    watches.push(Watch { labels: MANAGED.into(), ..Watch::all("Deployment") });
    // The charts of the first releases do not give the right to it.
    let tags = Watch { labels: "istio.io/tag".into(), ..Watch::all("MutatingWebhookConfiguration") };
    watches.push(Watch { is_optional: true, ..tags });
    // In Kubernetes since 1.27, of v1 since 1.37; off by default before that. Older charts do not give the right to it.
    let bundles = Watch { versions: &["v1", "v1beta1", "v1alpha1"], ..Watch::all("ClusterTrustBundle") };
    watches.push(Watch { is_optional: true, ..bundles });
    // In Kubernetes since 1.31; and what Gateways' statuses may say. Older charts do not give the right to them.
    watches.push(Watch { versions: &["v1", "v1beta1"], is_optional: true, ..Watch::all("ServiceCIDR") });
    let fields = "metadata.name=gateways.gateway.networking.k8s.io".to_string();
    watches.push(Watch { fields, is_optional: true, ..Watch::all("CustomResourceDefinition") });
    // Those of helm are large, and those of service accounts are none of a gateway's.
    let fields = "type!=helm.sh/release.v1,type!=kubernetes.io/service-account-token".to_string();
    watches.extend(secrets.then(|| Watch { fields, ..Watch::all("Secret") }));
    let mut s = Watched::start(kube, watches);
    s.synced().await;
    Source::Kubernetes(Box::new(s))
}

/// There are a hundred thousand pods: of what is in each that is not looked at here, nothing is kept.
fn lean(object: &mut Object) {
    let Object::Pod(pod) = object else { return };
    pod.metadata.annotations.retain(|name, _| name.contains("istio.io/") || name.contains("karst.io/"));
    pod.status.conditions.retain(|condition| condition.kind == "Ready");
    pod.status.conditions.shrink_to_fit();
}

const PLUGGED_IN: &str = "cacerts";
const SELF_SIGNED: &str = "istio-ca-secret";

/// What signs: `cacerts`, if the operator has given one, else `istio-ca-secret`, made at first start.
pub async fn authority(kube: &Kube, config: &Config) -> anyhow::Result<Signer> {
    let ns = &config.root_namespace;
    if let Some(s) = plugged_in(kube, ns).await? {
        tracing::info!(secret = format!("{ns}/{PLUGGED_IN}"), "certificates are signed by the authority plugged in");
        return Ok(s);
    }
    // Twice: another replica may have made it since.
    for _ in 0..2 {
        if let Some(data) = kube.secret(ns, SELF_SIGNED).await? {
            return self_signed(&data).with_context(|| format!("Secret {ns}/{SELF_SIGNED}"));
        }
        let (cert, key) = Signer::generate(&config.trust_domain)?;
        if kube.create_secret(ns, SELF_SIGNED, "istio.io/ca-root", pair(cert, key)).await? {
            tracing::info!(secret = format!("{ns}/{SELF_SIGNED}"), "created a certificate authority");
        }
    }
    bail!("Secret {ns}/{SELF_SIGNED} can be neither read nor created")
}

async fn plugged_in(kube: &Kube, ns: &str) -> anyhow::Result<Option<Signer>> {
    let Some(data) = kube.secret(ns, PLUGGED_IN).await? else { return Ok(None) };
    let get = |names: [&str; 2]| names.iter().find_map(|n| text(&data, n));
    let need = |names: [&str; 2]| {
        get(names).with_context(|| format!("Secret {ns}/{PLUGGED_IN}: data.{} (or {}) is missing", names[0], names[1]))
    };
    let (cert, key) = (need(["ca-cert.pem", "tls.crt"])?, need(["ca-key.pem", "tls.key"])?);
    let root = need(["root-cert.pem", "ca.crt"])?;
    let chain = get(["cert-chain.pem", "tls.crt"]).unwrap_or_default();
    let s = Signer::plugged_in(&cert, &key, &chain, &root);
    s.map(Some).with_context(|| format!("Secret {ns}/{PLUGGED_IN}"))
}

fn self_signed(data: &BTreeMap<String, Vec<u8>>) -> anyhow::Result<Signer> {
    let get = |k: &str| text(data, k).with_context(|| format!("data.{k} is missing"));
    Signer::from_pem(&get("ca-cert.pem")?, &get("ca-key.pem")?)
}

fn pair(cert: String, key: String) -> BTreeMap<String, Vec<u8>> {
    [("ca-cert.pem", cert), ("ca-key.pem", key)].map(|(k, v)| (k.to_string(), v.into_bytes())).into()
}

/// Follows the Secret, and, while we hold the Lease, renews a root of our own in time.
pub async fn keep_authority(
    kube: Kube,
    config: Config,
    authority: Arc<CertificateAuthority>,
    mut leads: watch::Receiver<bool>,
) {
    loop {
        let leading = *leads.borrow_and_update();
        if let Err(e) = follow(&kube, &config, &authority, leading).await {
            tracing::warn!(error = format!("{e:#}"), "the authority stays as it is");
        }
        // Who begins to lead has the newest root before it writes it anywhere for long.
        let wait = Duration::from_secs(config.root_check);
        if let Ok(Err(_)) = tokio::time::timeout(wait, leads.changed()).await {
            return;
        }
    }
}

/// The revocation lists in the data of `cacerts`; empty: there are none. `known`: those of before.
fn lists(data: Option<BTreeMap<String, Vec<u8>>>, known: &str) -> anyhow::Result<String> {
    match data.map(|mut d| d.remove(LISTS_KEY)) {
        Some(Some(bytes)) => String::from_utf8(bytes).context("is not PEM"),
        // Taken out of it on purpose.
        Some(None) => Ok(String::new()),
        // It may be about to be made anew, and meanwhile nobody is to come back in.
        None if !known.is_empty() => bail!("the Secret is gone"),
        None => Ok(String::new()),
    }
}

/// Follows the revocation lists in `cacerts`.
pub async fn keep_lists(kube: Kube, namespace: String, authority: Arc<CertificateAuthority>) {
    let mut told = String::new();
    loop {
        let known = authority.lists().borrow().clone().unwrap_or_default();
        let secret = kube.secret(&namespace, PLUGGED_IN).await;
        let done = secret.and_then(|data| lists(data, &known)).and_then(|pem| authority.revoke(pem));
        let fault = done.err().map(|e| format!("{e:#}")).unwrap_or_default();
        if !fault.is_empty() {
            authority.lists_failed();
            if fault != told {
                tracing::warn!(
                    error = fault,
                    "Secret {namespace}/{PLUGGED_IN}: data.{LISTS_KEY}: the revocation lists stay as they are"
                );
            }
        }
        told = fault;
        tokio::time::sleep(LISTS_CHECK).await;
    }
}

async fn follow(kube: &Kube, config: &Config, authority: &CertificateAuthority, leading: bool) -> anyhow::Result<()> {
    let (ns, now) = (&config.root_namespace, authority.signer());
    if let Some(signer) = plugged_in(kube, ns).await? {
        if signer.cert_pem() != now.cert_pem() {
            // Peers hold the old root: what the new one signs must mean something to them.
            if !signer.overlaps(&now) {
                bail!(
                    "Secret {ns}/{PLUGGED_IN} has a different root: to replace it without breaking connections, put both roots into root-cert.pem first, or restart the controller"
                );
            }
            authority.replace(signer);
            tracing::info!(secret = format!("{ns}/{PLUGGED_IN}"), "the certificate authority has been replaced");
        }
        return Ok(());
    }
    let Some(data) = kube.secret(ns, SELF_SIGNED).await? else {
        bail!(
            "Secret {ns}/{SELF_SIGNED} is gone: certificates are still signed, but a restart will create a new authority"
        );
    };
    let signer = self_signed(&data).with_context(|| format!("Secret {ns}/{SELF_SIGNED}"))?;
    if signer.key_pem() != now.key_pem() {
        bail!(
            "Secret {ns}/{SELF_SIGNED} has a different key: proxies with the present root do not accept certificates signed by it; restart the controller to use it anyway"
        );
    }
    if signer.is_due() && leading {
        let new = pair(signer.renewed()?, signer.key_pem());
        if kube.replace_secret(ns, SELF_SIGNED, &data, new.clone()).await? {
            tracing::info!(secret = format!("{ns}/{SELF_SIGNED}"), "the root is renewed, with the same key");
            authority.replace(self_signed(&new)?);
        }
        // Else another replica was first: seen next time.
    } else if signer.cert_pem() != now.cert_pem() {
        authority.replace(signer);
        tracing::info!(secret = format!("{ns}/{SELF_SIGNED}"), "the root has been renewed");
    }
    Ok(())
}

fn text(data: &BTreeMap<String, Vec<u8>>, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.clone()).ok()
}

/// What is written into every namespace.
pub struct Publisher {
    authority: Arc<CertificateAuthority>,
    root: Published,
    lists: Published,
    mesh_config: Published,
}

impl Publisher {
    /// Starts it.
    pub fn start(kube: &Kube, config: &Config, authority: Arc<CertificateAuthority>, leading: &Leading) -> Self {
        let one = |place: Place, leads: &watch::Receiver<bool>| Published::start(kube.clone(), place, leads.clone());
        Self {
            authority,
            root: one(Place::everywhere(ROOT_CONFIG_MAP, ROOT_KEY), &leading.mesh),
            lists: one(Place::everywhere(LISTS_CONFIG_MAP, LISTS_KEY), &leading.mesh),
            mesh_config: one(Place::of_node_proxies(config), &leading.revision),
        }
    }

    /// Looks where the mesh configuration in force lacks.
    pub fn note_mesh_config(&self, state: &State, text: &str) {
        // A ztunnel tells one that says nothing from one that it does not see.
        let text = if text.trim().is_empty() { "{}\n" } else { text };
        self.mesh_config.note(state, Some(text.to_string()));
    }

    /// Looks where something lacks.
    pub fn note(&self, state: &State) {
        self.root.note(state, Some(self.authority.root_pem()));
        self.lists.note(state, self.authority.lists().borrow().clone());
    }
}

/// A ConfigMap, and its one key.
#[derive(Clone, Debug)]
struct Place {
    name: String,
    key: &'static str,
    /// The namespaces that have it; None: all in which workloads of a mesh can be.
    only: Option<BTreeSet<String>>,
}

impl Place {
    fn everywhere(name: &str, key: &'static str) -> Self {
        Self { name: name.into(), key, only: None }
    }

    /// The mesh configuration where ztunnels are that cannot read ours.
    fn of_node_proxies(config: &Config) -> Self {
        let namespaces = config.trusted_node_accounts.iter().filter_map(|account| account.split_once('/'));
        let elsewhere = namespaces.map(|(namespace, _)| namespace).filter(|name| *name != config.root_namespace);
        let only = Some(elsewhere.map(String::from).collect());
        Self { name: config.revision().named(MESH_CONFIG_MAP), key: mesh_config::KEY, only }
    }

    fn has(&self, namespace: &str) -> bool {
        match &self.only {
            Some(only) => only.contains(namespace),
            None => !NO_ROOT.contains(&namespace),
        }
    }
}

/// Writes a text into a ConfigMap of every namespace of its, and again where it is edited or removed; while we hold the Lease.
struct Published {
    place: Place,
    missing: watch::Sender<Missing>,
}

/// The namespaces that lack a text.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Missing {
    text: String,
    namespaces: BTreeSet<String>,
}

impl Published {
    fn start(kube: Kube, place: Place, mut leads: watch::Receiver<bool>) -> Self {
        let (missing, mut rx) = watch::channel(Missing::default());
        let at = place.clone();
        tokio::spawn(async move {
            let mut tries = Tries::new();
            while leads.wait_for(|l| *l).await.is_ok() {
                let todo = rx.borrow_and_update().clone();
                for ns in &todo.namespaces {
                    let labels = [("istio.io/config", "true")];
                    if let Err(e) = kube.config_map(ns, &at.name, &labels, &[(at.key, &todo.text)]).await {
                        tries.failed(&format!("{} cannot be written yet: {e:#}", at.key));
                    }
                }
                let wait = tries.end().unwrap_or(RETRY);
                // Written again until the watch has shown it: an edit of the same moment must not stay.
                let changed = rx.changed();
                let over = if todo.namespaces.is_empty() {
                    changed.await.is_err()
                } else {
                    tokio::time::timeout(wait, changed).await.is_ok_and(|r| r.is_err())
                };
                if over {
                    return;
                }
            }
        });
        Self { place, missing }
    }

    /// Looks where it lacks. None: the text is not known, and what is there stays.
    fn note(&self, state: &State, text: Option<String>) {
        let new = text.map(|t| missing(state, &self.place, t)).unwrap_or_default();
        self.missing.send_if_modified(|m| {
            // The same namespaces with another text are new, too. What is there wakes nobody.
            let tell = *m != new && !new.namespaces.is_empty();
            *m = new;
            tell
        });
    }
}

/// The namespaces without this text. An empty one is only written in place of another.
fn missing(state: &State, place: &Place, text: String) -> Missing {
    let mut namespaces = BTreeSet::new();
    for o in &state.objects {
        if let Object::Namespace(namespace) = &o.object
            && namespace.metadata.deletion_timestamp.is_none()
            && place.has(&namespace.metadata.name)
        {
            namespaces.insert(namespace.metadata.name.clone());
        }
    }
    let mut found = BTreeMap::new();
    for o in &state.objects {
        if let Object::ConfigMap(map) = &o.object
            && map.metadata.name == place.name
        {
            found.insert(map.metadata.namespace.clone(), map.data.get(place.key).is_some_and(|t| *t == text));
        }
    }
    namespaces.retain(|ns| match found.get(ns) {
        Some(same) => !same,
        None => !text.is_empty(),
    });
    Missing { text, namespaces }
}

/// Name of the Lease of a revision's leader, with the revision's name for all but the default one.
const LEASE: &str = "istio-leader";
/// Name of the Lease of who writes what there is once in a mesh, whatever its revisions. (A name of its own: with the name that
/// the default revision has, another revision could keep that one from writing.)
const MESH_LEASE: &str = "istio-mesh-leader";
/// Field manager of what the deployer makes.
const DEPLOYER: &str = "istio.io/gateway-controller";

/// What a replica leads. Each revision tends what is its own, whichever of them writes what there is once.
#[derive(Clone)]
pub struct Leading {
    /// The mesh: its root certificate and its lists, in every namespace.
    pub mesh: watch::Receiver<bool>,
    /// Its revision: statuses, what runs Gateways, the webhook.
    pub revision: watch::Receiver<bool>,
}

/// Takes part in both elections.
pub fn elect(kube: &Kube, config: &Config) -> Leading {
    let [mesh, revision] = leases(config).map(|lease| {
        let (sender, leads) = watch::channel(false);
        let (namespace, me) = (config.root_namespace.clone(), config.pod_name.clone());
        tokio::spawn(karst_kube::lease::elect(kube.clone(), namespace, lease, me, sender));
        leads
    });
    Leading { mesh, revision }
}

/// We stop: another replica may go on at once.
pub async fn release(kube: &Kube, config: &Config) {
    for lease in leases(config) {
        karst_kube::lease::release(kube, &config.root_namespace, &lease, &config.pod_name).await;
    }
}

/// The Leases of the mesh and of the revision.
fn leases(config: &Config) -> [String; 2] {
    [MESH_LEASE.into(), config.revision().named(LEASE)]
}

/// Writes statuses and what Gateways need, on the replica that leads its revision.
pub struct StatusWriter {
    /// For what is said on objects otherwise than by a status.
    pub teller: Teller,
    todo: watch::Sender<Writes>,
}

impl StatusWriter {
    /// Starts it.
    pub fn start(kube: Kube, me: &str, leads: watch::Receiver<bool>) -> Self {
        let (todo, rx) = watch::channel(Writes::default());
        let teller = Teller::start(&kube, me, leads.clone());
        tokio::spawn(write(kube, leads, rx));
        Self { teller, todo }
    }

    /// What is to be written now; replaces what was to be written before.
    pub fn set(&self, writes: Writes) {
        self.todo.send_if_modified(|t| {
            let new = *t != writes;
            *t = writes;
            new
        });
    }
}

/// Tries that may fail for long: errors are logged once and counted, and there is more and more time between two tries.
struct Tries {
    errors: Repeated,
    backoff: Backoff,
    failed: bool,
}

impl Tries {
    fn new() -> Self {
        Self { errors: Repeated::default(), backoff: Backoff::new(RETRY, RETRY_CAP), failed: false }
    }

    /// Something is to be tried again.
    fn failed(&mut self, error: &str) {
        self.failed = true;
        self.note(error);
    }

    /// Something is wrong that another try does not mend.
    fn note(&mut self, error: &str) {
        if let Some(line) = self.errors.note(error) {
            tracing::warn!("{line}");
        }
    }

    /// After all has been tried: the time until the next try, if there is to be one.
    fn end(&mut self) -> Option<Duration> {
        for line in self.errors.end_round() {
            tracing::info!("{line}");
        }
        if !std::mem::take(&mut self.failed) {
            self.backoff.reset();
            return None;
        }
        Some(self.backoff.next_delay())
    }
}

async fn write(kube: Kube, mut leads: watch::Receiver<bool>, mut todo: watch::Receiver<Writes>) {
    let mut tries = Tries::new();
    loop {
        if leads.wait_for(|l| *l).await.is_err() {
            return;
        }
        let writes = todo.borrow_and_update().clone();
        // What belongs to one Gateway is written in its order, and what follows on a failure waits: the digest on the last of it
        // says that all is there.
        let mut waiting: BTreeSet<&str> = BTreeSet::new();
        for (r, owner) in &writes.removed {
            if let Err(e) = kube.remove(r, MANAGED).await {
                tries.failed(&format!("not removed yet: {e:#}"));
                waiting.insert(owner);
            }
        }
        for (reference, fields) in &writes.objects {
            let owner = deploy::owner(fields);
            if owner.is_some_and(|o| waiting.contains(o)) {
                continue;
            }
            let done = match kube.is_foreign(reference, MANAGED).await {
                Ok(false) => kube.apply(reference, DEPLOYER, fields.clone()).await,
                Ok(true) => {
                    let label = MANAGED;
                    tries.note(&format!(
                        "{reference} is not managed by Karst (label {label} missing); leaving it untouched [KARST-0511]"
                    ));
                    continue;
                }
                Err(e) => Err(e),
            };
            if let Err(e) = done {
                tries.failed(&format!("not written yet: {e:#}"));
                waiting.extend(owner);
            }
        }
        for s in &writes.statuses {
            if let Err(e) = kube.apply_status(&s.to, s.manager, s.status.clone()).await {
                tries.failed(&format!("not written yet: {e:#}"));
            }
        }
        let over = match tries.end() {
            Some(wait) => {
                // However often something else changes meanwhile.
                let least = wait.min(RETRY);
                tokio::time::sleep(least).await;
                tokio::time::timeout(wait - least, todo.changed()).await.is_ok_and(|r| r.is_err())
            }
            None => todo.changed().await.is_err(),
        };
        if over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::config::Cli;
    use clap::Parser;

    #[test]
    fn of_a_pod_what_is_not_looked_at_is_not_kept() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: ns, labels: {app: a}, annotations: {ambient.istio.io/redirection: enabled, prometheus.io/port: '9090', karst.io/x: y}}\nstatus: {phase: Running, conditions: [{type: PodScheduled, status: 'True'}, {type: Ready, status: 'True'}]}\n";
        let mut object = karst_manifest::parse::file(std::path::Path::new("x.yaml"), text).unwrap().remove(0).object;
        lean(&mut object);
        let Object::Pod(pod) = object else { unreachable!("it is a Pod") };
        let annotations: Vec<&str> = pod.metadata.annotations.keys().map(String::as_str).collect();
        assert_eq!(annotations, ["ambient.istio.io/redirection", "karst.io/x"]);
        assert_eq!((pod.metadata.labels.len(), pod.status.conditions.len()), (1, 1));
        assert!(karst_manifest::enrol::is_ready(&pod));
    }

    /// A revision that leads keeps no other from tending its own; the default one's Lease has the name that it had in older
    /// releases, so that an old replica and a new one of it never write at once.
    #[test]
    fn each_revision_has_a_lease_of_its_own() {
        let of = |revision: &str| {
            let config = Cli::try_parse_from(["karst-controller", "--revision", revision]).unwrap().config;
            leases(&config)
        };
        assert_eq!(of("default"), ["istio-mesh-leader", "istio-leader"]);
        assert_eq!(of("canary"), ["istio-mesh-leader", "istio-leader-canary"]);
    }

    /// A ztunnel that is in another namespace than we reads the mesh configuration there, also one that says nothing.
    #[test]
    fn the_mesh_configuration_is_where_ztunnels_are() {
        let place = |accounts: &str| {
            let arguments = ["karst-controller", "--revision", "canary", "--trusted-node-accounts", accounts];
            Place::of_node_proxies(&Cli::try_parse_from(arguments).unwrap().config)
        };
        let text = ["istio-system", "kube-system", "app"]
            .map(|name| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"));
        let objects = karst_manifest::parse::file(std::path::Path::new("x.yaml"), &text.join("---\n")).unwrap();
        let state = State { objects: objects.into_iter().map(Arc::new).collect(), ..State::default() };
        let of = |accounts: &str| missing(&state, &place(accounts), "{}\n".into()).namespaces;
        assert_eq!(of("istio-system/ztunnel"), BTreeSet::new());
        assert_eq!(of("kube-system/ztunnel,istio-system/other"), BTreeSet::from(["kube-system".to_string()]));
        assert_eq!(place("a/b").name, "karst-mesh-config-canary");
    }

    /// The root is renewed before the watch has shown that the one before was written: nothing has changed about which
    /// namespaces lack it, and still there is something to write.
    #[test]
    fn a_root_that_changes_while_it_is_written_is_told_again() {
        let (missing, mut told) = watch::channel(Missing::default());
        let publisher = Published { place: Place::everywhere(ROOT_CONFIG_MAP, ROOT_KEY), missing };
        let mut state = State::default();
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app}\n";
        let objects = karst_manifest::parse::file(std::path::Path::new("app.yaml"), text).unwrap();
        state.objects = objects.into_iter().map(Arc::new).collect();
        publisher.note(&state, Some("one".into()));
        assert_eq!(told.borrow_and_update().text, "one");
        publisher.note(&state, Some("one".into()));
        assert!(!told.has_changed().unwrap(), "nothing new");
        publisher.note(&state, Some("two".into()));
        assert!(told.has_changed().unwrap());
        assert_eq!(told.borrow_and_update().text, "two");
    }

    /// A kind that is not there for an hour: a few tries a minute, not four a second.
    #[test]
    fn what_fails_for_long_is_tried_less_and_less_often() {
        let mut tries = Tries::new();
        let (mut waited, mut count) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(3600) {
            (0..4).for_each(|_| tries.failed("the API server does not know GatewayClass"));
            waited += tries.end().unwrap();
            count += 1;
        }
        assert!(count < 260, "{count}");
        assert_eq!(tries.end(), None);
        tries.failed("x");
        assert!(tries.end().unwrap() <= RETRY, "after a success it begins anew");
    }

    #[test]
    fn lists_are_written_everywhere_and_emptied_where_they_were() {
        let mut state = State::default();
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n---\n\
            apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio-ca-crl, namespace: a}\ndata: {ca-crl.pem: old}\n";
        let objects = karst_manifest::parse::file(std::path::Path::new("x.yaml"), text).unwrap();
        state.objects = objects.into_iter().map(Arc::new).collect();
        let place = Place::everywhere(LISTS_CONFIG_MAP, LISTS_KEY);
        let of = |t: &str| missing(&state, &place, t.into()).namespaces.into_iter().collect::<Vec<_>>();
        assert_eq!(of("new"), ["a", "b"]);
        assert_eq!(of("old"), ["b"]);
        // None of it any more: no ConfigMap is made to say so.
        assert_eq!(of(""), ["a"]);
        assert_eq!(lists(None, "").unwrap(), "");
        assert_eq!(lists(Some(BTreeMap::new()), "old").unwrap(), "");
        assert!(lists(None, "old").is_err(), "a Secret that is made anew lets nobody back in");
        // Not known (they cannot be read): what is there stays.
        let (sender, told) = watch::channel(Missing::default());
        Published { place, missing: sender }.note(&state, None);
        assert!(!told.has_changed().unwrap_or(false));
    }
}
