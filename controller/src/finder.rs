//! The thread that looks for what nobody executes: for the webhook, one object among those that are there, and for the log, the
//! metric and the statuses, all of them. To look, all objects are indexed: once for a state, however many ask, and apart from
//! the thread that serves discovery and certificates.

use crate::{
    convert::{self, Mesh, finding::Finding},
    model::Model,
};
use karst_manifest::{Object, State};
use std::{
    sync::{Arc, mpsc},
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
pub struct Finder(mpsc::SyncSender<Ask>);

struct Ask {
    /// None: all that are there.
    object: Option<Object>,
    answer: oneshot::Sender<Vec<Finding>>,
}

impl Finder {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there can be no thread more.
    pub fn start(newest: Newest, mesh: Mesh) -> std::io::Result<Self> {
        let (tx, rx) = mpsc::sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("finder".into());
        thread.spawn(move || run(&rx, &newest, &mesh))?;
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
        self.0.try_send(Ask { object, answer }).ok().map(|()| rx)
    }
}

/// Answers until nobody can ask any more. Gives back how often all was indexed.
fn run(asks: &mpsc::Receiver<Ask>, newest: &Newest, mesh: &Mesh) -> usize {
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
