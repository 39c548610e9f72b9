//! The running controller: watches the source, keeps model and snapshot, serves discovery and certificates.

use crate::{
    authn::{self, Caller},
    ca::{CertificateAuthority, Refusal, Signer},
    config::Config,
    convert::{self, Change, Compiler, Mesh, Stepped, check, finding::Finding},
    debug::{
        access, control_z,
        pages::{self, View},
        stream,
        subscribers::{Subscriber, Subscribers},
    },
    finder::Finder,
    gate::{Gate, Known, Link},
    history::{self, History, Moment},
    intake::Intake,
    jwks::Fetcher,
    kubernetes,
    local_tokens::Keys,
    metrics::{self, Counts, pushes::Trigger},
    model::Model,
    push, session_keys, teller, tls,
    token_review::Tokens,
    webhook,
};
use anyhow::Context;
use arc_swap::ArcSwap;
use karst_api::{
    TOKEN_AUDIENCE,
    ads::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
    },
};
use karst_kube::{Events, ObjectSource, Source, WatchCounts};
use karst_manifest::{Dir, Object, State};
use karst_rt::{admin, clock, exposition};
use karst_xds::{Hub, server};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

struct Shared {
    config: Config,
    tokens: Tokens,
    authority: Arc<CertificateAuthority>,
    model: ArcSwap<Model>,
    /// The objects that the model was made from.
    state: ArcSwap<State>,
    /// Objects with problems, by kind and reason.
    problems: ArcSwap<BTreeMap<(&'static str, &'static str), u64>>,
    hub: Arc<Hub>,
    /// The versions of the snapshot.
    history: ArcSwap<History>,
    /// An older version is made anew for one who asks at a time: it takes memory and a thread.
    rebuilds: Arc<Semaphore>,
    subscribers: Subscribers,
    /// Digest of the manifests that the current snapshot was made from.
    digest: AtomicU64,
    counts: Counts,
    /// For what is said on objects by whoever notices it.
    events: Option<Events>,
    /// Changes of the API server's objects.
    watched: Option<Arc<WatchCounts>>,
    /// Places for connections: each server has its own.
    discovery_gate: Arc<Gate>,
    webhook_gate: Arc<Gate>,
    known: Known,
}

impl Shared {
    /// Number of the newest snapshot, and who is subscribed.
    fn subscribers(&self) -> (u64, Vec<Subscriber>) {
        let (version, current) = self.hub.taken_in();
        (version, self.subscribers.all(version, &current))
    }

    /// What the debug pages show.
    fn view(&self) -> View {
        let (version, subscribers) = self.subscribers();
        View {
            subscribers,
            model: self.model.load_full(),
            pod: self.config.pod_name.clone(),
            version,
            manifests: self.digest.load(Ordering::Relaxed),
            history: self.history.load_full(),
            mesh: serde_json::json!({
                "trustDomain": self.config.trust_domain,
                "rootNamespace": self.config.root_namespace,
                "defaultVirtualServiceExportTo": self.config.virtual_services_are_for,
                "defaultDestinationRuleExportTo": self.config.destination_rules_are_for,
                "defaultConfig": { "discoveryAddress": self.config.server_names.first().map(|name| format!("{name}:15012")) },
            }),
        }
    }
}

/// Serves until told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut leads = None;
    let (source, authority, tokens, kube, session_keys) = match config.object_source()? {
        ObjectSource::Dir(directory) => {
            let authority = Signer::open(&config.data_dir, &config.trust_domain).context("certificate authority")?;
            let keys = Keys::open(&config.data_dir).context("token key")?;
            let root = config.data_dir.join("root-cert.pem");
            let authority = Arc::new(CertificateAuthority::new(authority));
            std::fs::write(&root, authority.root_pem()).with_context(|| format!("cannot write {}", root.display()))?;
            let session_keys = session_keys::open(&config.data_dir).context("session keys")?;
            (Source::Dir(Dir::watch(&directory)?), authority, Tokens::Local(keys), None, session_keys)
        }
        ObjectSource::Kubernetes => {
            let kube = karst_kube::Kube::connect().await?;
            let authority = kubernetes::authority(&kube, &config).await.context("certificate authority")?;
            let authority = Arc::new(CertificateAuthority::new(authority));
            let source = kubernetes::source(&kube, config.gateway_secrets).await;
            let leading = kubernetes::elect(&kube, &config);
            leads = Some(leading.revision.clone());
            let publisher = kubernetes::Publisher::start(&kube, &config, authority.clone(), &leading);
            let session_keys = session_keys::start(&kube, &config.root_namespace, leading.mesh.clone()).await;
            tokio::spawn(kubernetes::keep_lists(kube.clone(), config.root_namespace.clone(), authority.clone()));
            let keep = kubernetes::keep_authority(kube.clone(), config.clone(), authority.clone(), leading.mesh);
            tokio::spawn(keep);
            let writer = kubernetes::StatusWriter::start(kube.clone(), &config.pod_name, leading.revision);
            (source, authority, Tokens::Kubernetes(kube), Some((publisher, writer)), session_keys)
        }
    };
    let serving = tls::Serving::start(authority.clone(), config.server_names.clone())?;
    // Before anything is made from them: what changes meanwhile is seen.
    let (roots, lists) = (authority.roots(), authority.lists());
    let mesh = Mesh::from(&config);
    let shared = Arc::new(Shared {
        tokens,
        authority,
        model: ArcSwap::default(),
        state: ArcSwap::default(),
        problems: ArcSwap::default(),
        hub: Arc::default(),
        history: ArcSwap::default(),
        rebuilds: Arc::new(Semaphore::new(1)),
        subscribers: Subscribers::default(),
        digest: AtomicU64::new(0),
        counts: Counts::default(),
        events: kube.as_ref().map(|(_, writer)| writer.teller.events()),
        watched: source.counts(),
        discovery_gate: Arc::default(),
        webhook_gate: Arc::new(Gate::for_strangers()),
        known: Known::default(),
        config,
    });
    let mut intake = Intake::new(source, &shared.config);
    let mut log = Problems::default();
    let mut compiler = Compiler::new(mesh.clone());
    let keys = Fetcher::start(shared.config.jwks()).map_err(anyhow::Error::msg)?;
    let keys = Keyrings { issuers: keys, sessions: session_keys };
    update(&shared, &mut intake, &keys, kube.as_ref(), &mut compiler, &mut log);
    // The lists that the API server has sent, and what was read of them and is not kept, are the most that is ever freed at once.
    tokio::task::spawn_blocking(karst_rt::process::trim_memory);
    let newest = shared.clone();
    let newest = Box::new(move || (newest.state.load_full(), newest.model.load_full()));
    let finder =
        Finder::start(newest, mesh.clone(), shared.counts.failed_searches.clone()).context("cannot start a thread")?;
    let grpc = tokio::net::TcpListener::bind(shared.config.grpc_addr).await.with_context(|| {
        format!("cannot listen on {}; choose another address with --grpc-addr", shared.config.grpc_addr)
    })?;
    serve_pages(&shared).await?;
    if let (Tokens::Kubernetes(kube), Some(leads)) = (&shared.tokens, leads) {
        let (shared, config) = (shared.clone(), &shared.config);
        let (listener, acceptor) = (webhook::bind(config.webhook_addr).await?, serving.acceptor(b"http/1.1")?);
        let connections = tls::incoming(listener, acceptor, shared.webhook_gate.clone(), |_| false);
        let finder = finder.clone();
        let judge = webhook::Validator {
            mesh: mesh.clone(),
            around: Box::new(move |o| {
                let finder = finder.clone();
                Box::pin(async move { finder.around(&o).await })
            }),
            counts: shared.counts.reviews.clone(),
        };
        tokio::task::spawn_local(webhook::serve(connections, judge));
        for kept in webhook::Kept::of(&config.revision(), &config.root_namespace) {
            tokio::spawn(webhook::keep(kube.clone(), kept, shared.authority.roots(), leads.clone()));
        }
    }
    let service = Service(shared.clone());
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(AggregatedDiscoveryServiceServer::new(service.clone()).max_decoding_message_size(64 << 20))
        .add_service(IstioCertificateServiceServer::new(service));
    let s = shared.clone();
    let known = move |ip| s.known.has(ip, &s.model.load(), &s.config.trusted_node_accounts);
    let incoming = tls::incoming(grpc, serving.acceptor(b"h2")?, shared.discovery_gate.clone(), known);
    tracing::info!(source = shared.config.source, discovery = %shared.config.grpc_addr, "controller is up");
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut watcher = Watcher {
        shared: &shared,
        intake,
        keys,
        kube: kube.as_ref(),
        compiler,
        log,
        finder,
        roots,
        lists,
        stepped: None,
        unwritten: Some(Instant::now() + WRITE_AFTER),
        is_behind: false,
        rest: Instant::now(),
        is_held: false,
    };
    tokio::select! {
        r = server.serve_with_incoming(incoming) => r.context("discovery server"),
        () = watcher.run() => Ok(()),
        _ = term.recv() => {
            if let Tokens::Kubernetes(kube) = &shared.tokens {
                let _ = tokio::time::timeout(Duration::from_secs(2), kubernetes::release(kube, &shared.config)).await;
            }
            tracing::info!("controller is stopping; proxies keep their configuration");
            Ok(())
        }
    }
}

/// The pages for those who run it: metrics and debugging, readiness, log levels.
async fn serve_pages(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let monitoring = admin::bind(shared.config.monitoring_addr, "--monitoring-addr").await?;
    tokio::task::spawn_local(admin::serve_requests(monitoring, monitoring_pages(shared.clone())));
    if let Some(at) = shared.config.ready_addr {
        let ready = admin::pages(|_, path, _| match path {
            "/ready" => admin::text(200, "ok\n"),
            _ => admin::text(404, "page: /ready\n"),
        });
        tokio::task::spawn_local(admin::serve(admin::bind(at, "--ready-addr").await?, ready));
    }
    if let Some(at) = shared.config.controlz_addr {
        let levels = Rc::new(|asked| Box::pin(std::future::ready(control_z::answer(&asked))) as _);
        tokio::task::spawn_local(admin::serve_requests(admin::bind(at, "--controlz-addr").await?, levels));
    }
    Ok(())
}

/// Keys that are not among the objects.
struct Keyrings {
    issuers: Fetcher,
    /// What sessions are sealed with.
    sessions: watch::Receiver<session_keys::Told>,
}

/// Who watches for changes of objects, keys and certificates, and makes the model anew.
struct Watcher<'a> {
    shared: &'a Shared,
    intake: Intake,
    keys: Keyrings,
    kube: Option<&'a (kubernetes::Publisher, kubernetes::StatusWriter)>,
    compiler: Compiler,
    log: Problems,
    finder: Finder,
    roots: watch::Receiver<String>,
    lists: watch::Receiver<Option<String>>,
    /// When everything is to be looked at, after steps that did not.
    stepped: Option<Instant>,
    /// Steps have taken in more than pods: what was compiled is not of the objects as they were read last.
    is_behind: bool,
    /// When it is to be found out what is to be written, after changes of which it was not.
    unwritten: Option<Instant>,
    /// Until then a look at everything that an object asks for by its change waits for further changes.
    rest: Instant,
    /// One waits so.
    is_held: bool,
}

impl Watcher<'_> {
    async fn run(&mut self) {
        let (mut found, mut sessions) = (self.keys.issuers.found.clone(), self.keys.sessions.clone());
        // When the findings are to be looked at: after a while, for many changes together.
        let mut due = Some(Instant::now());
        let mut looking: Option<oneshot::Receiver<Vec<Finding>>> = None;
        loop {
            let at = due;
            let look = async move {
                match at {
                    Some(t) => tokio::time::sleep_until(t).await,
                    None => std::future::pending().await,
                }
            };
            let found_all = async {
                match &mut looking {
                    Some(answer) => answer.await,
                    None => std::future::pending().await,
                }
            };
            // What steps have left behind is taken in by a look at everything.
            let behind = self.stepped;
            let whole = async move {
                match behind {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Not at once: proxies are told by other tasks of this thread, and many changes are written together.
            let unwritten = self.unwritten;
            let write = async move {
                match unwritten {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // A new root is written everywhere. (What the source was about to tell is taken in, too.)
            let published = tokio::select! {
                () = self.intake.changed() => {
                    if (!self.is_held && self.step()) || self.holds() {
                        continue;
                    }
                    false
                }
                () = whole => false,
                () = write => {
                    if self.write() {
                        due = Some(sooner(due));
                    }
                    continue;
                }
                Ok(()) = found.changed() => false,
                Ok(()) = sessions.changed() => false,
                Ok(()) = self.roots.changed() => true,
                Ok(()) = self.lists.changed() => true,
                () = look => {
                    looking = self.finder.all();
                    due = looking.is_none().then(|| Instant::now() + LOOK_AFTER);
                    continue;
                }
                all = found_all => {
                    looking = None;
                    if self.catch_up() {
                        due = Some(sooner(due));
                    }
                    match all {
                        Ok(all) => note(self.shared, self.kube, &mut self.compiler, &mut self.log, all),
                        // The same objects would most likely end the search once more. Others come sooner.
                        Err(_) => due = Some(Instant::now() + LOOK_AGAIN),
                    }
                    continue;
                }
            };
            if self.update() {
                due = Some(sooner(due));
            }
            if let Some((publisher, _)) = self.kube.filter(|_| published) {
                publisher.note(&self.shared.state.load());
            }
        }
    }

    fn update(&mut self) -> bool {
        (self.stepped, self.is_behind, self.is_held) = (None, false, false);
        let began = Instant::now();
        let left = update(self.shared, &mut self.intake, &self.keys, self.kube, &mut self.compiler, &mut self.log);
        // As long a pause as it took, whatever else the machine does: of a thousand Services that come at once none is waited for
        // longer than that, and the look is not made a thousand times.
        self.rest = Instant::now() + began.elapsed().min(LONGEST_REST);
        if left.write {
            self.unwritten.get_or_insert_with(|| Instant::now() + WRITE_AFTER);
        }
        left.look
    }

    /// Is a look at everything to wait, for which an object has changed?
    fn holds(&mut self) -> bool {
        self.is_held = Instant::now() < self.rest;
        if self.is_held {
            self.stepped = Some(self.stepped.map_or(self.rest, |at| at.min(self.rest)));
        }
        self.is_held
    }

    /// Looks at everything, if what was compiled is not of the objects that are known. True: what is to be said of them may be another.
    fn catch_up(&mut self) -> bool {
        self.is_behind && self.update()
    }

    /// Finds out what is to be written. True: what is to be said of objects may be another.
    fn write(&mut self) -> bool {
        let look = self.catch_up();
        self.unwritten = None;
        let Some((publisher, writer)) = self.kube else { return look };
        let state = self.shared.state.load_full();
        publisher.note(&state);
        publisher.note_mesh_config(&state, self.intake.mesh_config());
        self.log.behind = false;
        set_writes(self.shared, writer, &mut self.compiler, &state, &self.log);
        look
    }

    /// Takes in changes of pods that decide about nothing else, and of routes of Gateway API, without a look at all other objects: of
    /// 100,000 pods a thousand may change in a second, and of thousands of routes each is to be in force at once. False: there are
    /// other changes. What is not told to proxies (the objects of the debug pages, what the webhook compares with) follows within
    /// [`WHOLE_AFTER`], and soon where there is something to be written.
    fn step(&mut self) -> bool {
        let seen = clock::Instant::now();
        let Some(changes) = self.intake.changes() else { return false };
        let Some(change) = self.compiler.step(&changes.objects) else { return false };
        self.is_behind |= self.compiler.last_step() != Stepped::Pods;
        let after = match self.compiler.last_step() {
            Stepped::Routes => {
                self.unwritten.get_or_insert(seen + WRITE_AFTER);
                WHOLE_AFTER
            }
            Stepped::Statuses => LOOK_AFTER,
            Stepped::Pods => WHOLE_AFTER,
        };
        self.stepped = Some(self.stepped.map_or(seen + after, |at| at.min(seen + after)));
        publish(self.shared, &self.compiler, &change, seen);
        self.shared.digest.store(changes.digest, Ordering::Relaxed);
        true
    }
}

/// Takes in what was found of objects that nobody executes: for the log, the metric and the statuses.
fn note(
    shared: &Shared,
    kube: Option<&(kubernetes::Publisher, kubernetes::StatusWriter)>,
    compiler: &mut Compiler,
    log: &mut Problems,
    findings: Vec<Finding>,
) {
    let state = shared.state.load();
    let problems = state.problems.iter().chain(compiler.problems());
    shared.problems.store(Arc::new(convert::finding::count(&findings, problems)));
    if let Some((_, writer)) = kube {
        writer.teller.set(compiler.notices(&state));
    }
    if !std::mem::take(&mut log.behind) && log.findings.as_ref() == Some(&findings) {
        return;
    }
    let texts = |all: &[Finding]| all.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
    let (old, new) = (texts(log.findings.as_deref().unwrap_or_default()), texts(&findings));
    for f in new.difference(&old) {
        tracing::info!("{f}");
    }
    for f in old.difference(&new) {
        tracing::info!("fixed: {f}");
    }
    log.findings = Some(findings);
    if let Some((_, writer)) = kube {
        set_writes(shared, writer, compiler, &state, log);
    }
}

/// Has written what is not yet as it should be at the API server.
fn set_writes(
    shared: &Shared,
    writer: &kubernetes::StatusWriter,
    compiler: &mut Compiler,
    state: &State,
    log: &Problems,
) {
    writer.set(compiler.writes(state, &shared.config.template(), log.findings.as_deref(), &timestamp()));
}

/// `karst-controller check`.
pub fn check(config: &Config) -> anyhow::Result<()> {
    let ObjectSource::Dir(manifests) = config.object_source()? else {
        anyhow::bail!(
            "--source: check reads a directory of manifests (dir:PATH), or, with --cluster, the stored objects"
        )
    };
    let dir = Dir::watch(&manifests)?;
    tell(&Intake::new(Source::Dir(dir), config).read(), config, warnings(&manifests))
}

/// `karst-controller check --cluster`. (Fields without effect are told only of manifests: of what is stored it is not known who has
/// written them.)
pub async fn check_cluster(config: &Config) -> anyhow::Result<()> {
    let kube = karst_kube::Kube::connect().await?;
    let source = kubernetes::source(&kube, config.gateway_secrets).await;
    tell(&Intake::new(source, config).read(), config, vec![])
}

/// Prints what is wrong, and what comes of it.
fn tell(state: &State, config: &Config, warnings: Vec<String>) -> anyhow::Result<()> {
    let mesh = Mesh::from(config);
    let (model, meaning) = convert::compile(state, &mesh);
    let problems: Vec<_> = state.problems.iter().chain(&meaning).collect();
    for p in &problems {
        println!("{p}");
    }
    for line in convert::closing(state, &mesh).into_iter().chain(warnings) {
        println!("{line}");
    }
    for f in convert::findings(state, &model, &mesh) {
        println!("warning: {f}");
    }
    println!(
        "{} workloads, {} services, {} policies, {} problems",
        model.workloads.len(),
        model.services.len(),
        model.policies.len(),
        problems.len()
    );
    anyhow::ensure!(problems.is_empty(), "{} problems", problems.len());
    Ok(())
}

/// What is to be said of the objects in a directory as they are written.
fn warnings(manifests: &Path) -> Vec<String> {
    let mut out = vec![];
    for file in karst_manifest::dir::files(manifests) {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        for (line, object) in karst_manifest::parse::values(&text) {
            let at = |p: &str| object.pointer(p).and_then(|v| v.as_str()).unwrap_or_default();
            let (kind, group) = (at("/kind"), at("/apiVersion").split_once('/').map_or("", |(g, _)| g));
            let namespace = if at("/metadata/namespace").is_empty() { "default" } else { at("/metadata/namespace") };
            let name = format!("{}:{line}: warning: {kind} {namespace}/{}", file.display(), at("/metadata/name"));
            out.extend(check::written(kind, group, &object).into_iter().map(|w| format!("{name}: {w}")));
        }
    }
    out
}

/// Problems that are logged once, and again when they come back.
#[derive(Default)]
struct Problems {
    problems: BTreeSet<String>,
    /// None before they were looked for.
    findings: Option<Vec<Finding>>,
    /// Statuses have changed since it was last found out what is to be written.
    behind: bool,
}

/// After a change, more changes are awaited for this long before findings are looked for.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// After a change, more changes are awaited for this long before it is found out what is to be written.
const WRITE_AFTER: Duration = Duration::from_millis(50);
/// The longest pause between two looks at everything for which objects have changed.
const LONGEST_REST: Duration = Duration::from_millis(100);
/// After steps that looked at pods alone, everything is looked at after this time.
const WHOLE_AFTER: Duration = Duration::from_secs(10);
/// A search for findings that has failed is made again after this time, if no object changes before.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// When findings are to be looked for after a change, where they were `due` before.
fn sooner(due: Option<Instant>) -> Instant {
    let soon = Instant::now() + LOOK_AFTER;
    due.map_or(soon, |at| at.min(soon))
}

/// What a change leaves to do. No proxy waits for it.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// What is to be said of objects may be another.
    look: bool,
    /// What is to be written of them may be.
    write: bool,
}

/// Takes in what has changed.
fn update(
    shared: &Shared,
    intake: &mut Intake,
    keys: &Keyrings,
    kube: Option<&(kubernetes::Publisher, kubernetes::StatusWriter)>,
    compiler: &mut Compiler,
    log: &mut Problems,
) -> Left {
    let seen = clock::Instant::now();
    let (issuers, session_keys) = (keys.issuers.found.borrow().clone(), keys.sessions.borrow().clone());
    let state = State { keys: issuers, session_keys, ..intake.read() };
    shared.counts.mesh_config_stale.store(!intake.is_current(), Ordering::Relaxed);
    if let (Some(fault), Some((_, writer))) = (intake.fault(), kube) {
        writer.teller.fault(fault);
    }
    let change = compiler.update(&state);
    publish(shared, compiler, &change, seen);
    if compiler.was_whole() {
        keys.issuers.want(&state);
    }
    // Nothing is compiled from them, but their statuses are for somebody to write.
    let are_others_elsewhere = shared.state.load().elsewhere != state.elsewhere;
    log.behind |= compiler.was_told();
    let now: BTreeSet<String> = state.problems.iter().chain(compiler.problems()).map(ToString::to_string).collect();
    for p in now.difference(&log.problems) {
        tracing::warn!("{p}");
    }
    for p in log.problems.difference(&now) {
        tracing::info!("fixed: {p}");
    }
    shared.counts.problems.store(now.len() as u64, Ordering::Relaxed);
    let mended_or_new = now != log.problems;
    log.problems = now;
    shared.digest.store(state.digest, Ordering::Relaxed);
    shared.state.store(Arc::new(state));
    Left {
        look: mended_or_new || compiler.was_whole() || compiler.was_told(),
        write: compiler.was_whole() || are_others_elsewhere,
    }
}

/// Tells proxies what has changed since then.
fn publish(shared: &Shared, compiler: &Compiler, change: &Change, seen: clock::Instant) {
    let model = compiler.model();
    // Facts of pods that no proxy is told may have changed as well.
    let old = shared.model.swap(Arc::new(model.clone()));
    if *change == Change::Nothing {
        return;
    }
    let version = shared.counts.versions.fetch_add(1, Ordering::Relaxed) + 1;
    let before = shared.hub.newest();
    let resources = match change {
        Change::Workloads(uids) => push::update(&before, model, (uids, &[]), version),
        Change::Routes { workloads, routes } => push::update(&before, model, (workloads, routes), version),
        Change::Everything | Change::Nothing => push::resources(model, version, Some((&old, &before))),
    };
    let trigger = if matches!(change, Change::Workloads(_)) { Trigger::Endpoint } else { Trigger::Config };
    shared.counts.pushes.made(version, trigger, seen, seen.elapsed());
    let resources = Arc::new(resources);
    shared.hub.publish(resources.clone());
    // After the proxies are told: they do not wait for it.
    let history = shared.history.load().record(resources, Moment::now());
    shared.history.store(Arc::new(history));
}

/// Now, as statuses have it.
fn timestamp() -> String {
    let now = time::OffsetDateTime::from(clock::wall());
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

#[derive(Clone)]
struct Service(Arc<Shared>);

impl Service {
    /// Notes in the log, and counts, that somebody is refused; gives what it is told.
    fn refuse(&self, link: Option<&Link>, what: &str, why: &str) -> Status {
        self.0.counts.refused.fetch_add(1, Ordering::Relaxed);
        let peer = link.map(|link| link.peer().to_string());
        tracing::warn!(target: "audit", peer, what, reason = why, "refused");
        Status::unauthenticated("authentication failed; the controller's log has the reason")
    }
    /// Says on the caller's pod that it gets none.
    fn no_certificate(&self, caller: &Caller, why: &str) {
        if let Some(events) = &self.0.events {
            events.tell(teller::certificate(caller, &self.0.model.load(), why));
        }
    }
    /// The reason stays in our log: a caller that is refused is told nothing it could use.
    async fn caller(&self, token: Option<String>, link: Option<&Link>, what: &str) -> Result<Caller, Status> {
        let refuse = |why: String| self.refuse(link, what, &why);
        let token = token.ok_or_else(|| refuse("no bearer token".into()))?;
        let claims = self.0.tokens.verify(&token, TOKEN_AUDIENCE, &self.0.model.load()).await;
        let claims = claims.map_err(|e| refuse(e.to_string()))?;
        let caller = authn::caller(&claims, &self.0.model.load()).map_err(|e| refuse(e.to_string()))?;
        if let Some(l) = link {
            self.0.known.note(l.peer().ip());
            l.authenticated(&format!("{}/{}", caller.namespace, caller.pod)).map_err(|e| {
                tracing::warn!(target: "audit", caller = caller.name(), what, reason = %e, "refused");
                Status::resource_exhausted("too many connections from this caller")
            })?;
        }
        Ok(caller)
    }
}

fn bearer<T>(request: &Request<T>) -> Option<String> {
    let header = request.metadata().get("authorization")?.to_str().ok()?;
    header.strip_prefix("Bearer ").map(String::from)
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    /// Debug types only, for accounts of the root namespace: istioctl's token is bound to no pod.
    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let link = request.extensions().get::<Link>().cloned();
        let shared = self.0.clone();
        let root = &shared.config.root_namespace;
        let account = access::over_xds(&shared.tokens, bearer(&request), root).await;
        let account = account.map_err(|why| self.refuse(link.as_ref(), "debug", &why.to_string()))?;
        let name = format!("{}/{} (debug)", account.namespace, account.name);
        if let Some(link) = &link {
            link.authenticated(&name).map_err(|e| {
                tracing::warn!(target: "audit", caller = name, what = "debug", reason = %e, "refused");
                Status::resource_exhausted("too many connections from this caller")
            })?;
        }
        tracing::info!(target: "audit", caller = name, what = "debug", "reads");
        let in_use = link.as_ref().and_then(Link::in_use);
        let (answers, stream) = tokio::sync::mpsc::channel(1);
        let exchange = async move {
            let mut requests = request.into_inner();
            let mut nonce = 0;
            while let Ok(Some(asked)) = requests.message().await {
                if !stream::asks(&asked, nonce) {
                    continue;
                }
                nonce += 1;
                let answer = stream::answer(&asked, &shared.view(), nonce);
                let refused = answer.is_err();
                if answers.send(answer).await.is_err() || refused {
                    break;
                }
            }
            drop(in_use);
        };
        // Whoever may read now may not for ever: the token was reviewed once.
        tokio::spawn(tokio::time::timeout(stream::LONGEST, exchange));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let link = request.extensions().get::<Link>().cloned();
        let caller = self.caller(bearer(&request), link.as_ref(), "discovery").await?;
        let in_use = link.as_ref().and_then(Link::in_use);
        let (tx, rx) = server::channel();
        let shared = self.0.clone();
        let stream = shared.hub.join();
        let (own, near) = (format!("{}/{}", caller.namespace, caller.pod), push::near(&caller.node));
        let peer = server::Peer { name: caller.name(), own, near };
        tracing::info!(peer = peer.name, "proxy subscribes");
        let id = stream.id();
        let subscriber = Subscriber::new(peer.name.clone(), caller.namespace, caller.pod, karst_rt::clock::wall());
        shared.subscribers.add(id, subscriber);
        tokio::spawn(async move {
            let connected = clock::Instant::now();
            let on_event = |peer: &server::Peer, event: server::Event| {
                shared.subscribers.note(id, &event, clock::wall());
                shared.counts.pushes.note(&event, connected, clock::Instant::now());
                match event {
                    server::Event::Nack { type_url, error } => {
                        let error = karst_core::untrusted::Untrusted(&error);
                        tracing::warn!(peer = peer.name, type_url, %error, "proxy rejected configuration");
                    }
                    server::Event::Failed { error } => {
                        let error = karst_core::untrusted::Untrusted(&error);
                        tracing::warn!(peer = peer.name, %error, "the proxy's stream ends: it cannot be served");
                    }
                    _ => {}
                }
            };
            let name = peer.name.clone();
            server::serve(peer, request.into_inner(), stream, push::TYPES, tx, on_event).await;
            drop(in_use);
            shared.subscribers.remove(id);
            tracing::info!(peer = name, "proxy disconnected");
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let shared = &self.0;
        let link = request.extensions().get::<Link>();
        let caller = self.caller(bearer(&request), link, "certificate").await?;
        shared.counts.requests.fetch_add(1, Ordering::Relaxed);
        let message = request.get_ref();
        let wanted =
            message.metadata.as_ref().and_then(|s| s.fields.get("ImpersonatedIdentity")).and_then(|v| match &v.kind {
                Some(prost_types::value::Kind::StringValue(s)) => Some(s.as_str()),
                _ => None,
            });
        let id = authn::subject(
            &caller,
            wanted,
            &shared.model.load(),
            &shared.config.trust_domain,
            &shared.config.trusted_node_accounts,
        )
        .map_err(|why| {
            shared.counts.refused.fetch_add(1, Ordering::Relaxed);
            // The same that the caller is told: the reason stays in our log.
            self.no_certificate(&caller, "not entitled to this identity; the controller's log has the reason");
            tracing::warn!(target: "audit", caller = caller.name(), what = "certificate", reason = %karst_core::untrusted::Untrusted(&why.to_string()), "refused");
            Status::unauthenticated("not entitled to this identity; the controller's log has the reason")
        })?;
        let ttl = match message.validity_duration {
            0 => shared.config.default_cert_ttl,
            n => u64::try_from(n).ok().filter(|n| *n <= shared.config.max_cert_ttl).ok_or_else(|| {
                shared.counts.bad_lifetimes.fetch_add(1, Ordering::Relaxed);
                let range = format!("{n} s is not between 1 and {} s", shared.config.max_cert_ttl);
                let why = Refusal::Lifetime(range).to_string();
                self.no_certificate(&caller, &why);
                Status::invalid_argument(why)
            })?,
        };
        match shared.authority.sign(&message.csr, &id, Duration::from_secs(ttl)) {
            Ok(cert_chain) => {
                shared.counts.signed.fetch_add(1, Ordering::Relaxed);
                tracing::info!(target: "audit", caller = caller.name(), identity = %id, ttl_s = ttl, "signed");
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(e) => {
                let (count, status) = match e {
                    Refusal::Csr(_) => (&shared.counts.bad_requests, Status::invalid_argument(e.to_string())),
                    Refusal::Lifetime(_) => (&shared.counts.bad_lifetimes, Status::invalid_argument(e.to_string())),
                    Refusal::Internal(_) => (&shared.counts.sign_failures, Status::internal(e.to_string())),
                };
                count.fetch_add(1, Ordering::Relaxed);
                self.no_certificate(&caller, status.message());
                Err(status)
            }
        }
    }
}

/// All pages of the monitoring port: those under `/debug` are not for everybody.
fn monitoring_pages(shared: Arc<Shared>) -> admin::RequestHandler {
    let open = handler(shared.clone());
    Rc::new(move |asked| {
        let (shared, open) = (shared.clone(), open.clone());
        Box::pin(async move {
            if asked.path != "/debug" && !asked.path.starts_with("/debug/") {
                return open(&asked.method, &asked.path, &asked.query).await;
            }
            if let Err(why) = access::over_http(&shared.tokens, &asked, &shared.config.root_namespace).await {
                shared.counts.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(target: "audit", peer = %asked.from, what = "debug page", reason = %why, "refused");
                return access::refusal(&why);
            }
            match history::page::asked(&asked.query).filter(|_| asked.path == pages::HISTORY) {
                Some(time) => past(&shared, time.into()).await,
                None => pages::answer(&asked.path, &asked.query, &shared.view()),
            }
        })
    })
}

/// The configuration of a time, made on a thread of its own.
async fn past(shared: &Shared, time: String) -> admin::Answer {
    let Ok(permit) = shared.rebuilds.clone().try_acquire_owned() else {
        return admin::text(503, "an older version is being read by somebody else: try again in a few seconds\n");
    };
    let (history, pod) = (shared.history.load_full(), shared.config.pod_name.clone());
    let made = tokio::task::spawn_blocking(move || {
        let answer = history::page::answer(&history, &time, Moment::now(), &pod);
        drop(permit);
        answer
    });
    made.await.unwrap_or_else(|e| admin::text(500, format!("the older version cannot be read: {e}\n")))
}

fn metrics_page(shared: &Shared) -> String {
    let (model, state) = (shared.model.load(), shared.state.load());
    let is_virtual = |object: &Object| matches!(object, Object::VirtualService(_));
    metrics::page(&metrics::Facts {
        counts: &shared.counts,
        subscribers: &shared.subscribers().1,
        watched: shared.watched.as_deref(),
        signer: &shared.authority.signer(),
        lists_stale: shared.authority.lists_stale(),
        workloads: model.workloads.len(),
        services: model.services.len(),
        virtual_services: state.objects.iter().filter(|at| is_virtual(&at.object)).count(),
        problems: &shared.problems.load(),
        discovery_gate: &shared.discovery_gate,
        webhook_gate: &shared.webhook_gate,
        history: &shared.history.load(),
        now: clock::since_epoch().as_secs_f64(),
    })
}

fn handler(shared: Arc<Shared>) -> admin::Handler {
    admin::pages(move |_, path, _| match path {
        "/metrics" => admin::typed(200, exposition::CONTENT_TYPE, metrics_page(&shared)),
        "/healthz" | "/ready" => admin::text(200, "ok\n"),
        "/version" => admin::text(200, pages::version()),
        _ => admin::text(404, "pages: /metrics /ready /version /debug\n"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    /// `check` says what kubectl is told at apply, with file and line.
    #[test]
    fn check_warns_of_what_has_no_effect() {
        let dir = std::env::temp_dir().join(format!("karst-check-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: a}\nspec: {host: s, trafficPolicy: {connectionPool: {tcp: {maxConnectionDuration: 1h}}}}\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s}\n";
        std::fs::write(dir.join("a.yaml"), text).unwrap();
        let lines = warnings(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        let ends = [
            "a.yaml:5: warning: DestinationRule a/d: spec.trafficPolicy.connectionPool.tcp.maxConnectionDuration: has no effect in this version [KARST-0030]",
            "a.yaml:10: warning: Sidecar default/s: Sidecar has no effect: the mesh has no sidecars; use AuthorizationPolicy to control which workloads may call each other [KARST-0008]",
        ];
        assert!(lines.len() == 2 && lines.iter().zip(ends).all(|(l, e)| l.ends_with(e)), "{lines:?}");
    }
}
