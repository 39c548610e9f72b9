//! Watches kinds of objects and keeps their newest state.

use crate::{
    Kube,
    counts::{Happened, WatchCounts},
};
use futures_util::{StreamExt, TryStreamExt};
use karst_manifest::{Object, Problem, State, closed, kinds, parse, parse::Located};
use karst_rt::repeated::Repeated;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::Instant};

/// Changes that come within this time are taken together.
const SETTLE: Duration = Duration::from_millis(2);
/// One that comes so long after the last ones is alone, and told at once.
const QUIET: Duration = Duration::from_millis(5);
/// Objects in one answer when everything is listed.
const PAGE: u32 = 500;
/// A kind that the API server does not know (its CRD is not installed) is asked for again after this long.
const ABSENT_RETRY: Duration = Duration::from_secs(5);

/// What to watch.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Kind, one of [`kinds::KINDS`].
    pub kind: &'static str,
    /// API versions without the group, as `v1`: the first that the API server knows is watched.
    pub versions: &'static [&'static str],
    /// Field selector; empty: all.
    pub fields: String,
    /// Label selector; empty: all.
    pub labels: String,
    /// One can do without it: where it must not be read (rights of an older chart) it counts as absent.
    pub is_optional: bool,
    /// Takes out of each object what is not looked at, so that it is not kept, and a change of it is none.
    pub lean: Option<fn(&mut Object)>,
}

impl Watch {
    /// All objects of a kind, at version v1.
    pub fn all(kind: &'static str) -> Self {
        Self { kind, versions: &["v1"], fields: String::new(), labels: String::new(), is_optional: false, lean: None }
    }
}

type Key = (usize, String);

/// An object as it was and as it is.
pub type ChangedObject = (Option<Arc<Located>>, Option<Arc<Located>>);

/// What has changed since the state was read, where only objects have.
#[derive(Debug)]
pub struct ChangedObjects {
    /// In order; an object that has changed twice is there twice.
    pub objects: Vec<ChangedObject>,
    /// As [`State::digest`].
    pub digest: u64,
}

/// Changes that are remembered one by one; of more the whole state is read.
const CHANGES: usize = 4096;

enum Change {
    /// The list starts anew.
    Start,
    Object(Box<DynamicObject>, bool),
    Gone(String),
    /// The list is whole.
    Whole,
    /// The API server does not know the kind.
    Absent,
}

/// Watched objects.
pub struct Watched {
    watches: Vec<Watch>,
    events: mpsc::Receiver<(usize, Change)>,
    objects: BTreeMap<Key, Arc<Located>>,
    problems: BTreeMap<Key, Problem>,
    /// Of the objects, those that stand for one that was never read: they are made anew when it is written anew.
    stand_ins: HashSet<Key>,
    /// Of a list under way: what it has shown.
    listing: HashMap<usize, HashSet<String>>,
    waiting: HashSet<usize>,
    /// Kinds that the API server does not know.
    absent: HashSet<usize>,
    changes: u64,
    counts: Arc<WatchCounts>,
    /// Of these, those in the state that was read last.
    read: u64,
    /// When a change was told last.
    told: Option<Instant>,
    /// What has changed since then, if that is only objects. None: the whole state is to be read.
    changed: Option<Vec<ChangedObject>>,
}

impl Watched {
    /// Starts watching.
    pub fn start(kube: &Kube, watches: Vec<Watch>) -> Self {
        let (tx, events) = mpsc::channel(1024);
        for (index, wanted) in watches.iter().enumerate() {
            tokio::spawn(watch(kube.clone(), index, wanted.clone(), tx.clone()));
        }
        Self::of(watches, events)
    }

    fn of(watches: Vec<Watch>, events: mpsc::Receiver<(usize, Change)>) -> Self {
        let waiting = (0..watches.len()).collect();
        Self {
            watches,
            events,
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
            stand_ins: HashSet::new(),
            listing: HashMap::new(),
            waiting,
            absent: HashSet::new(),
            changes: 0,
            counts: Arc::default(),
            read: 0,
            told: None,
            changed: None,
        }
    }

    /// What has happened to objects so far; goes on counting.
    pub fn counts(&self) -> Arc<WatchCounts> {
        self.counts.clone()
    }

    /// Waits until every kind has been listed once (or is not known to the API server).
    pub async fn synced(&mut self) {
        while !self.waiting.is_empty() {
            let Some((index, change)) = self.events.recv().await else { return };
            self.apply(index, change);
        }
    }

    /// Waits for a change of an object since the state was read. Who stops waiting misses nothing: a change is there until it is
    /// read.
    pub async fn changed(&mut self) {
        // In a list that starts anew objects are only added or replaced; what has gone goes at its end. So no state between is
        // half, and one kind that cannot be listed holds up no other.
        while self.changes == self.read {
            let Some((index, change)) = self.events.recv().await else { return std::future::pending().await };
            self.apply(index, change);
        }
        if self.told.is_some_and(|told| told.elapsed() < QUIET) {
            tokio::time::sleep(SETTLE).await;
        }
        while let Ok((index, change)) = self.events.try_recv() {
            self.apply(index, change);
        }
        self.told = Some(Instant::now());
    }

    /// What has changed since the state was read, if it is only objects that are of those kinds; they then count as read.
    pub fn changes(&mut self, are_meant: impl Fn(&Located) -> bool) -> Option<ChangedObjects> {
        let is_meant = |(before, now): &ChangedObject| before.iter().chain(now).all(|one| are_meant(one));
        let objects = self.changed.as_mut().filter(|all| all.iter().all(is_meant)).map(std::mem::take)?;
        self.read = self.changes;
        Some(ChangedObjects { objects, digest: self.changes })
    }

    /// The state now.
    pub fn state(&mut self) -> State {
        self.read = self.changes;
        self.changed = Some(vec![]);
        State {
            objects: self.objects.values().cloned().collect(),
            problems: self.problems.values().cloned().collect(),
            digest: self.changes,
            absent: self.absent.iter().map(|i| self.watches[*i].kind).collect(),
            ..State::default()
        }
    }

    fn apply(&mut self, index: usize, change: Change) {
        match change {
            Change::Start => {
                self.listing.insert(index, HashSet::new());
            }
            Change::Object(o, listed) => {
                let name = key(&o);
                if listed && let Some(seen) = self.listing.get_mut(&index) {
                    seen.insert(name.clone());
                }
                self.put((index, name), *o);
            }
            Change::Gone(name) => self.drop_one(&(index, name)),
            Change::Whole => {
                let seen = self.listing.remove(&index).unwrap_or_default();
                let known = self.objects.keys().chain(self.problems.keys());
                let stale: Vec<Key> = known.filter(|k| k.0 == index && !seen.contains(&k.1)).cloned().collect();
                stale.iter().for_each(|k| self.drop_one(k));
                if self.waiting.remove(&index) | self.absent.remove(&index) {
                    self.note_more();
                }
            }
            Change::Absent => {
                self.listing.remove(&index);
                let known = self.objects.keys().chain(self.problems.keys());
                let stale: Vec<Key> = known.filter(|k| k.0 == index).cloned().collect();
                stale.iter().for_each(|k| self.drop_one(k));
                if self.waiting.remove(&index) | self.absent.insert(index) {
                    self.note_more();
                }
            }
        }
    }

    /// An object has changed.
    fn note(&mut self, before: Option<Arc<Located>>, now: Option<Arc<Located>>) {
        self.changes += 1;
        match &mut self.changed {
            Some(all) if all.len() < CHANGES => all.push((before, now)),
            Some(_) | None => self.changed = None,
        }
    }

    /// Something else has changed than an object.
    fn note_more(&mut self) {
        self.changes += 1;
        self.changed = None;
    }

    fn put(&mut self, key: Key, object: DynamicObject) {
        let kind = self.watches[key.0].kind;
        let was_there = self.objects.contains_key(&key) || self.problems.contains_key(&key);
        let before = self.changes;
        self.take_in(key, kind, object);
        self.counts.note(
            kind,
            match (was_there, before == self.changes) {
                (false, _) => Happened::Add,
                (true, false) => Happened::Update,
                (true, true) => Happened::UpdateSame,
            },
        );
    }

    fn take_in(&mut self, key: Key, kind: &'static str, mut object: DynamicObject) {
        // Not read, and large.
        object.metadata.managed_fields = None;
        let value = match serde_json::to_value(object) {
            Ok(v) => v,
            Err(e) => {
                self.problems.insert(key.clone(), parse::unreadable(kind, &key.1, e.to_string()));
                self.note_more();
                return;
            }
        };
        let spare = closed::has_closed(kind).then(|| value.clone());
        match parse::value(kind, value) {
            Ok(mut object) => {
                if let Some(lean) = self.watches[key.0].lean {
                    lean(&mut object);
                }
                let mended = self.problems.remove(&key).is_some();
                self.stand_ins.remove(&key);
                let new = Located { object, file: PathBuf::new(), line: 0 };
                // Much of what is written to objects is in fields that are not read here.
                if !mended && self.objects.get(&key).is_some_and(|known| **known == new) {
                    return;
                }
                let new = Arc::new(new);
                let before = self.objects.insert(key, new.clone());
                self.note(before, Some(new));
                if mended {
                    self.changed = None;
                }
            }
            Err(p) => {
                let told = self.problems.insert(key.clone(), p.clone());
                if self.close(key, kind, spare) || told != Some(p) {
                    self.note_more();
                }
            }
        }
    }

    /// The last good state of an object that cannot be read stays. Without one, what it is to restrict is closed, as it is written
    /// now. Says whether something is another by that.
    fn close(&mut self, key: Key, kind: &str, raw: Option<serde_json::Value>) -> bool {
        let Some(raw) = raw else { return false };
        let uid = raw.pointer("/metadata/uid").and_then(|u| u.as_str()).unwrap_or_default();
        let known = self.objects.get(&key);
        // One of the same name that was there before has no good state of this one's.
        let is_good = |known: &Located| !self.stand_ins.contains(&key) && known.object.meta().uid == uid;
        if known.is_some_and(|known| is_good(known)) {
            return false;
        }
        let Some(object) = closed::closed(kind, raw) else { return false };
        let new = Located { object, file: PathBuf::new(), line: 0 };
        let is_other = known.is_none_or(|known| **known != new);
        self.stand_ins.insert(key.clone());
        self.objects.insert(key, Arc::new(new));
        is_other
    }

    fn drop_one(&mut self, key: &Key) {
        let known = self.objects.remove(key);
        let bad = self.problems.remove(key).is_some();
        self.stand_ins.remove(key);
        if known.is_some() || bad {
            self.counts.note(self.watches[key.0].kind, Happened::Delete);
            match bad {
                true => self.note_more(),
                false => self.note(known, None),
            }
        }
    }
}

fn key(object: &DynamicObject) -> String {
    let (ns, name) =
        (object.metadata.namespace.as_deref().unwrap_or(""), object.metadata.name.as_deref().unwrap_or(""));
    format!("{ns}/{name}")
}

async fn watch(kube: Kube, index: usize, wanted: Watch, tx: mpsc::Sender<(usize, Change)>) {
    let group = kinds::KINDS.iter().find(|k| k.0 == wanted.kind).map_or("", |k| k.1);
    let resources: Vec<ApiResource> = wanted
        .versions
        .iter()
        .map(|v| ApiResource::from_gvk(&GroupVersionKind::gvk(group, v, kinds::api_kind(wanted.kind))))
        .collect();
    let mut at = 0;
    let mut told = false;
    let mut errors = Repeated::default();
    'versions: loop {
        let api: Api<DynamicObject> = Api::all_with(kube.client.clone(), &resources[at]);
        let mut config = watcher::Config::default().page_size(PAGE);
        if !wanted.fields.is_empty() {
            config = config.fields(&wanted.fields);
        }
        if !wanted.labels.is_empty() {
            config = config.labels(&wanted.labels);
        }
        let stream = watcher::watcher(api.clone(), config).default_backoff();
        let mut stream = stream.map_err(Box::new).boxed();
        while let Some(event) = stream.next().await {
            // A list begins with Init also where it then fails.
            if matches!(event, Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_))) {
                for line in errors.end_round() {
                    tracing::info!(kind = wanted.kind, "watched again; {line}");
                }
            }
            let change = match event {
                Ok(Event::Init) => Change::Start,
                Ok(Event::InitApply(o)) => Change::Object(Box::new(o), true),
                Ok(Event::InitDone) => {
                    told = false;
                    Change::Whole
                }
                Ok(Event::Apply(o)) => Change::Object(Box::new(o), false),
                Ok(Event::Delete(o)) => Change::Gone(key(&o)),
                Err(e) if is_absent(&e) && at + 1 < resources.len() => {
                    at += 1;
                    continue 'versions;
                }
                Err(e) if is_absent(&e) || wanted.is_optional && is_forbidden(&e) => {
                    at = 0;
                    if !std::mem::replace(&mut told, true) {
                        let kind = wanted.kind;
                        match is_forbidden(&e) {
                            true => tracing::warn!(
                                kind,
                                group,
                                "no right to read this kind: upgrade the chart too; until then it counts as absent"
                            ),
                            false => tracing::info!(
                                kind,
                                group,
                                "the API server does not know this kind; it is watched once it does"
                            ),
                        }
                    }
                    if tx.send((index, Change::Absent)).await.is_err() {
                        return;
                    }
                    break;
                }
                Err(e) => {
                    // Each try is a round: the first is told, and then how often.
                    if let Some(error) = errors.note(&e.to_string()) {
                        tracing::warn!(kind = wanted.kind, error, "watch interrupted");
                    }
                    errors.end_round();
                    continue;
                }
            };
            if tx.send((index, change)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(ABSENT_RETRY).await;
    }
}

/// Does the API server not know the kind, or not any more? Its watch is then closed, and cannot be started again: without a list
/// anew nobody would learn that it is gone.
fn is_absent(e: &watcher::Error) -> bool {
    has_code(e, 404)
}

fn is_forbidden(e: &watcher::Error) -> bool {
    has_code(e, 403)
}

fn has_code(e: &watcher::Error, code: u16) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(e, InitialListFailed(kube::Error::Api(s)) | WatchStartFailed(kube::Error::Api(s)) if s.code == code)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use kube::client::Body;
    use serde_json::json;
    use std::{
        convert::Infallible,
        pin::Pin,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::{Context, Poll},
    };
    use tokio::sync::watch;

    #[tokio::test]
    async fn a_change_is_there_until_it_is_read() {
        let (tx, events) = mpsc::channel(1);
        let mut all = Watched::of(vec![Watch::all("Pod")], events);
        tx.send((0, Change::Absent)).await.unwrap();
        // It is not alone.
        all.told = Some(Instant::now());
        let second = Duration::from_secs(1);
        // Who waits gives up in the midst of it.
        while all.changes == all.read {
            let _ = tokio::time::timeout(Duration::ZERO, all.changed()).await;
        }
        tokio::time::timeout(second, all.changed()).await.unwrap();
        assert!(all.state().absent.contains("Pod"));
        assert!(tokio::time::timeout(10 * SETTLE, all.changed()).await.is_err(), "it has been read");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_comes_alone_is_told_at_once() {
        let (tx, events) = mpsc::channel(1);
        let mut all = Watched::of(vec![Watch::all("Pod")], events);
        for (number, pause, waits) in [(0, Duration::ZERO, false), (1, Duration::ZERO, true), (2, QUIET, false)] {
            tokio::time::sleep(pause).await;
            let raw = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("p{number}"), "namespace": "n" } });
            tx.send((0, Change::Object(Box::new(serde_json::from_value(raw).unwrap()), false))).await.unwrap();
            let begun = Instant::now();
            all.changed().await;
            assert_eq!(begun.elapsed() >= SETTLE, waits, "{number}");
            assert_eq!(all.state().objects.len(), number + 1);
        }
    }

    #[test]
    fn changes_of_objects_are_told_one_by_one() {
        let (_tx, events) = mpsc::channel(1);
        let mut all = Watched::of(vec![Watch::all("Pod"), Watch::all("Service")], events);
        let object = |kind: &str, name: &str, label: &str| {
            let raw = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name, "namespace": "n", "labels": { "l": label } } });
            Change::Object(Box::new(serde_json::from_value(raw).unwrap()), false)
        };
        let told = |all: &mut Watched| {
            let are_pods = |one: &Located| matches!(one.object, kinds::Object::Pod(_));
            let label = |one: &Option<Arc<Located>>| one.as_ref()?.object.meta().labels.get("l").cloned();
            let changes = all.changes(are_pods)?;
            assert_eq!(changes.digest, all.changes);
            Some(changes.objects.iter().map(|(before, now)| (label(before), label(now))).collect::<Vec<_>>())
        };
        let of = |one: &str| Some(one.to_string());
        all.apply(0, object("Pod", "a", "1"));
        assert_eq!(told(&mut all), None, "the state was never read");
        all.state();
        assert_eq!(told(&mut all), Some(vec![]));
        for change in
            [object("Pod", "a", "2"), object("Pod", "b", "1"), object("Pod", "a", "2"), Change::Gone("n/a".into())]
        {
            all.apply(0, change);
        }
        assert_eq!(told(&mut all), Some(vec![(of("1"), of("2")), (None, of("1")), (of("2"), None)]));
        assert_eq!((told(&mut all), all.changes == all.read), (Some(vec![]), true));
        // Others among them: everything is to be read, and nothing is lost.
        all.apply(0, object("Pod", "b", "3"));
        all.apply(1, object("Service", "s", "1"));
        assert_eq!(told(&mut all), None);
        assert!(all.changes != all.read && all.state().objects.len() == 2);
        all.apply(0, Change::Absent);
        assert_eq!(told(&mut all), None, "a kind has gone");
        all.state();
        (0..=CHANGES).for_each(|n| all.apply(0, object("Pod", &format!("p{n}"), "1")));
        assert_eq!(told(&mut all), None, "too many");
    }

    #[test]
    fn what_happens_to_objects_is_counted_by_kind() {
        let (_tx, events) = mpsc::channel(1);
        let mut all = Watched::of(vec![Watch::all("Service")], events);
        let object = |port: u16, version: &str| {
            let raw = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "n", "resourceVersion": version },
                "spec": { "ports": [{ "port": port }] },
            });
            Change::Object(Box::new(serde_json::from_value(raw).unwrap()), false)
        };
        for change in
            [object(80, "1"), object(80, "2"), object(81, "3"), Change::Gone("n/s".into()), Change::Gone("n/s".into())]
        {
            all.apply(0, change);
        }
        let told: Vec<_> = all.counts().all().into_iter().map(|(kind, what, n)| (kind, what.text(), n)).collect();
        let once = |what| ("Service", what, 1);
        assert_eq!(told, [once("add"), once("update"), once("updatesame"), once("delete")]);
    }

    /// A policy that cannot be read, and is edited: it closes what it selects now.
    #[test]
    fn what_stands_for_an_object_follows_its_edits() {
        let (_tx, events) = mpsc::channel(1);
        let mut all = Watched::of(vec![Watch::all("AuthorizationPolicy")], events);
        let mut put = |uid: &str, app: &str, action: &str, field: &str| {
            let raw = serde_json::json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": { "name": "p", "namespace": "n", "uid": uid },
                "spec": { "action": action, "selector": { "matchLabels": { "app": app } }, "rules": [{ field: [] }] },
            });
            all.put((0, "n/p".into()), serde_json::from_value(raw).unwrap());
            let kinds::Object::AuthorizationPolicy(policy) = &all.state().objects[0].object else { panic!("none") };
            let spec = policy.spec.clone();
            let selected = spec.selector.unwrap().match_labels.get("app").cloned().unwrap();
            (selected, spec.action.unwrap_or_default(), all.changes)
        };
        let is = |app: &str, action: &str, changes: u64| (app.to_string(), action.to_string(), changes);
        assert_eq!(put("1", "a", "ALLOW", "new"), is("a", "ALLOW", 1));
        assert_eq!(put("1", "b", "DENY", "new"), is("b", "DENY", 2));
        assert_eq!(put("1", "b", "DENY", "new"), is("b", "DENY", 2), "nothing is another");
        assert_eq!(put("1", "c", "DENY", "newer"), is("c", "DENY", 3));
        // Once it has been read, that stays.
        assert_eq!(put("1", "c", "ALLOW", "from"), is("c", "ALLOW", 4));
        assert_eq!(put("1", "d", "DENY", "new"), is("c", "ALLOW", 5));
        // But it is nobody else's.
        assert_eq!(put("2", "d", "DENY", "new"), is("d", "DENY", 6));
        assert!(all.stand_ins.contains(&(0, "n/p".into())));
        all.drop_one(&(0, "n/p".into()));
        assert!(all.stand_ins.is_empty() && all.state().objects.is_empty());
    }

    /// The CRD is removed while its objects are watched.
    #[test]
    fn a_kind_that_is_removed_is_absent() {
        let said = |code: u16| {
            let status = serde_json::json!({ "status": "Failure", "message": "404 page not found", "code": code });
            kube::Error::Api(serde_json::from_value(status).unwrap())
        };
        assert!(is_absent(&watcher::Error::InitialListFailed(said(404))));
        assert!(is_absent(&watcher::Error::WatchStartFailed(said(404))));
        assert!(!is_absent(&watcher::Error::WatchStartFailed(said(410))));
        assert!(is_forbidden(&watcher::Error::InitialListFailed(said(403))));
    }

    /// An API server in memory that knows a kind, or does not.
    #[derive(Clone)]
    struct Server {
        knows: watch::Receiver<bool>,
        asked: Arc<AtomicUsize>,
    }

    impl tower_service::Service<http::Request<Body>> for Server {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let Self { mut knows, asked } = self.clone();
            asked.fetch_add(1, Relaxed);
            Box::pin(async move {
                let watches = request.uri().query().is_some_and(|q| q.contains("watch=true"));
                if watches {
                    // Nothing changes until the kind is gone; then the watch ends.
                    let _ = knows.wait_for(|knows| !knows).await;
                }
                let (status, answer) = match *knows.borrow() && !watches {
                    true => (200, json!({ "kind": "List", "metadata": { "resourceVersion": "1" }, "items": [] })),
                    false => {
                        let message = "the server could not find the requested resource";
                        (
                            404,
                            json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "message": message, "code": 404 }),
                        )
                    }
                };
                let response = http::Response::builder().status(status).body(answer.to_string().into_bytes().into());
                Ok(response.unwrap())
            })
        }
    }

    /// Keeps the lines of the log, from INFO on.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::INFO
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn event(&self, event: &tracing::Event<'_>) {
            let mut line = String::new();
            event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
                line += &format!("{field}={value:?} ");
            });
            self.0.lock().unwrap().push(line);
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    /// It was 4 warnings a second, for each of Gateway API's kinds.
    #[tokio::test(start_paused = true)]
    async fn a_kind_that_is_removed_fills_no_log_and_is_found_again() {
        let lines = Lines::default();
        let _log = tracing::subscriber::set_default(lines.clone());
        let (knows, asked) = (watch::Sender::new(true), Arc::<AtomicUsize>::default());
        let server = Server { knows: knows.subscribe(), asked: asked.clone() };
        let kube = Kube { client: kube::Client::new(server, "default") };
        let mut all = Watched::start(&kube, vec![Watch::all("HTTPRoute")]);
        all.synced().await;
        assert!(all.state().absent.is_empty());
        knows.send_replace(false);
        all.changed().await;
        assert!(all.state().absent.contains("HTTPRoute"));
        let before = asked.load(Relaxed);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let (tries, told) = (asked.load(Relaxed) - before, std::mem::take(&mut *lines.0.lock().unwrap()));
        assert!((100..=200).contains(&tries), "asked {tries} times in ten minutes");
        assert!((1..=10).contains(&told.len()), "no more than a line a minute: {told:#?}");
        assert!(told[0].contains("does not know this kind"), "{told:?}");
        knows.send_replace(true);
        all.changed().await;
        assert!(all.state().absent.is_empty(), "it is watched again");
    }
}
