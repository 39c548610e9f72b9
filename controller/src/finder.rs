//! The thread that looks for what nobody executes: for the webhook, one object among those that are there, and for the log, the
//! metric and the statuses, all of them. To look, all objects are indexed: once for a state, however many ask, and apart from
//! the thread that serves discovery and certificates.
//!
//! A fault of ours that one object brings to light ends one search and no more: it is logged and counted, and the thread goes on.

use crate::{
    convert::{self, Mesh, finding::Finding},
    model::Model,
};
use karst_manifest::{Object, State};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};
use tokio::sync::oneshot;

/// So many may ask at once. Others are told nothing: warnings are a courtesy, and all is looked at again later.
const QUEUE: usize = 256;
/// An object that is applied waits no longer than this for its warnings.
const PATIENCE: Duration = Duration::from_secs(1);

/// The newest objects, and what was made from them.
pub type Newest = Box<dyn Fn() -> (Arc<State>, Arc<Model>) + Send>;

/// Asks the thread, which ends with it.
#[derive(Clone)]
pub struct Finder(mpsc::SyncSender<Search>);

struct Search {
    /// None: all that are there.
    object: Option<Object>,
    answer: oneshot::Sender<Vec<Finding>>,
}

impl Finder {
    /// Starts the thread, which counts the searches that fail.
    ///
    /// # Errors
    /// If there can be no thread more.
    pub fn start(newest: Newest, mesh: Mesh, failed: Arc<AtomicU64>) -> std::io::Result<Self> {
        let (tx, rx) = mpsc::sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("finder".into());
        thread.spawn(move || run_again(&rx, &newest, &mesh, &failed))?;
        Ok(Self(tx))
    }

    /// What is to be said of an object that is applied.
    pub async fn around(&self, object: &Object) -> Vec<Finding> {
        if let Some(found) = convert::alone(object) {
            return found;
        }
        let Some(answer) = self.ask(Some(object.clone())) else { return vec![] };
        tokio::time::timeout(PATIENCE, answer).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// What is to be said of all that are there. None: too many ask.
    pub fn all(&self) -> Option<oneshot::Receiver<Vec<Finding>>> {
        self.ask(None)
    }

    fn ask(&self, object: Option<Object>) -> Option<oneshot::Receiver<Vec<Finding>>> {
        let (answer, rx) = oneshot::channel();
        self.0.try_send(Search { object, answer }).ok().map(|()| rx)
    }
}

/// Answers until nobody can ask any more, whatever ends a search meanwhile. (Who has asked for that hears that there is no answer. Of
/// a search nothing is left: what it reads does not change, and what it makes goes with it.)
fn run_again(asks: &mpsc::Receiver<Search>, newest: &Newest, mesh: &Mesh, failed: &AtomicU64) {
    while catch_unwind(AssertUnwindSafe(|| run(asks, newest, mesh))).is_err() {
        // The panic itself has been printed, with its place.
        let times = failed.fetch_add(1, Relaxed) + 1;
        if times.is_power_of_two() {
            tracing::error!(times, "a search for objects without effect has failed; it is made again");
        }
    }
}

/// Answers until nobody can ask any more. Gives back how often all was indexed.
fn run(asks: &mpsc::Receiver<Search>, newest: &Newest, mesh: &Mesh) -> usize {
    let mut indexed = 0;
    let mut next = asks.recv().ok();
    while let Some(first) = next.take() {
        if first.answer.is_closed() {
            next = asks.recv().ok();
            continue;
        }
        let (state, model) = newest();
        indexed += 1;
        next = convert::with_view(&state, &model, mesh, |view| {
            let mut ask = first;
            loop {
                // Who has given up waiting costs nothing more.
                if !ask.answer.is_closed() {
                    let found = match &ask.object {
                        Some(o) => view.applied(o),
                        None => view.all(&state),
                    };
                    let _ = ask.answer.send(found);
                }
                ask = asks.recv().ok()?;
                if !Arc::ptr_eq(&newest().0, &state) {
                    return Some(ask);
                }
            }
        });
    }
    indexed
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::convert::{compile, tests::mesh};
    use karst_manifest::parse;
    use std::sync::Mutex;

    fn object(text: &str) -> Object {
        parse::file("t.yaml".as_ref(), text).unwrap().remove(0).object
    }

    fn vs() -> Object {
        object(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v, namespace: a}\nspec: {hosts: [none], http: [{route: [{destination: {host: none}}]}]}\n",
        )
    }

    /// However many reviews: one index for a state, and none for a route that is attached to a Gateway alone.
    #[test]
    fn a_state_is_indexed_once() {
        let new = || (Arc::new(State::default()), Arc::new(compile(&State::default(), &mesh()).0));
        let now = Arc::new(Mutex::new(new()));
        let (tx, rx) = mpsc::sync_channel(QUEUE);
        let finder = Finder(tx);
        let newest = now.clone();
        let thread = std::thread::spawn(move || {
            run(&rx, &(Box::new(move || newest.lock().unwrap().clone()) as Newest), &mesh())
        });
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..2 {
            for _ in 0..50 {
                assert_eq!(rt.block_on(finder.around(&vs())).len(), 2);
            }
            *now.lock().unwrap() = new();
        }
        let attached = object(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: a}\nspec: {parentRefs: [{name: g}]}\n",
        );
        assert_eq!(rt.block_on(finder.around(&attached)), vec![]);
        drop(finder);
        assert_eq!(thread.join().unwrap(), 2);
    }

    /// An object that our own code cannot stand ends its own search, and none after it.
    #[test]
    fn a_search_that_panics_is_not_the_last() {
        let failed = Arc::new(AtomicU64::new(0));
        let searches = AtomicU64::new(0);
        let newest = move || {
            assert!(searches.fetch_add(1, Relaxed) != 0, "the first one fails");
            (Arc::new(State::default()), Arc::new(Model::default()))
        };
        let finder = Finder::start(Box::new(newest), mesh(), failed.clone()).unwrap();
        assert!(finder.all().unwrap().blocking_recv().is_err());
        assert_eq!(finder.all().unwrap().blocking_recv().unwrap(), vec![]);
        assert_eq!(failed.load(Relaxed), 1);
    }

    /// Nobody waits for warnings for long, and what nobody waits for is not looked at.
    #[test]
    fn who_gives_up_costs_nothing() {
        let (tx, rx) = mpsc::sync_channel(QUEUE);
        let finder = Finder(tx);
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(rt.block_on(finder.around(&vs())), vec![], "nobody answers");
        let all = finder.all().unwrap();
        let newest = || (Arc::new(State::default()), Arc::new(Model::default()));
        drop(finder);
        assert_eq!(run(&rx, &(Box::new(newest) as Newest), &mesh()), 1);
        assert_eq!(all.blocking_recv().unwrap(), vec![]);
    }
}
