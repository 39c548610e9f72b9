//! Events on objects, where `kubectl describe` shows them (events.k8s.io/v1). Who notices something tells it as often as it likes:
//! one task writes the same no more than once in [`REMIND`], no more than [`WORDINGS`] different texts of one object and reason in
//! [`CHANGE`], and all together no faster than one in [`PACE`] after the first [`BURST`].

use crate::{Kube, Ref};
use anyhow::Context;
use k8s_openapi::api::core::v1::ObjectReference;
use karst_rt::{clock::Instant, repeated::Repeated};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use std::{collections::HashMap, hash::BuildHasher, time::Duration};
use tokio::sync::mpsc;

/// The API server keeps events for an hour: what is still so is told again before it is forgotten.
const REMIND: Duration = Duration::from_secs(50 * 60);
/// In this time, [`WORDINGS`] texts are written on one object for one reason.
const CHANGE: Duration = Duration::from_secs(60);
/// Texts that differ: one mistake after another, of somebody who mends an object step by step. Beyond, one object would use up the
/// pace of all others; what is left out is in the log, and is told again if it stays.
const WORDINGS: usize = 8;
/// Texts of one object and reason that are remembered; one that was told before them may come again early.
const REMEMBERED: usize = 32;
/// Events that may be written at once; the rest waits.
const BURST: u32 = 25;
/// After a burst, one event in this time.
const PACE: Duration = Duration::from_secs(2);
/// What waits to be written; beyond, it is left to be told again, and is in the log.
const QUEUE: usize = 256;
/// Objects and reasons that are remembered; beyond, nothing new is told before the oldest are forgotten.
const MOST: usize = 4096;
/// Bytes of a text; the API server takes at most 1024.
const LONGEST: usize = 1000;

/// Something to be said of an object: always a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The object.
    pub about: Ref,
    /// Its uid, by which `kubectl describe` finds the event.
    pub uid: String,
    /// One word, stable, as `WaypointNotBound`.
    pub reason: &'static str,
    /// What was being done, one word.
    pub action: &'static str,
    /// What is wrong, and the fix.
    pub text: String,
}

/// The way to the one task that writes them.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Notice>);

impl Events {
    /// Starts it. `component` and `instance`: who reports, as `istio-cni` and the node.
    pub fn start(kube: &Kube, component: &str, instance: &str) -> Self {
        let (tx, rx) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: component.into(), instance: Some(instance.into()) };
        tokio::spawn(write(kube.client.clone(), reporter, rx));
        Self(tx)
    }

    /// Tells something, unless too much waits already.
    pub fn tell(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            tracing::debug!(%error, "the event is only in the log");
        }
    }

    /// Tells something once there is place for it.
    pub async fn tell_all(&self, notices: Vec<Notice>) {
        for notice in notices {
            if self.0.send(notice).await.is_err() {
                return;
            }
        }
    }
}

async fn write(client: kube::Client, reporter: Reporter, mut notices: mpsc::Receiver<Notice>) {
    let (mut told, mut pace, mut errors) = (Told::default(), Pace::new(Instant::now()), Repeated::default());
    while let Some(notice) = notices.recv().await {
        if !told.is_new(&notice, Instant::now()) {
            continue;
        }
        tokio::time::sleep(pace.wait(Instant::now())).await;
        // One recorder for each: it would count other words of the same reason as the first ones again.
        match publish(Recorder::new(client.clone(), reporter.clone()), &notice).await {
            Ok(()) => told.note(&notice, Instant::now()),
            // Told again by who notices it.
            Err(error) => {
                if let Some(error) = errors.note(&format!("{error:#}")) {
                    tracing::warn!(error, object = %notice.about, "the event is only in the log");
                }
                errors.end_round();
            }
        }
    }
}

async fn publish(recorder: Recorder, notice: &Notice) -> anyhow::Result<()> {
    let about = &notice.about;
    let version =
        if about.group.is_empty() { about.version.into() } else { format!("{}/{}", about.group, about.version) };
    let object = ObjectReference {
        api_version: Some(version),
        kind: Some(about.kind.into()),
        namespace: Some(about.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: Some(about.name.clone()),
        uid: Some(notice.uid.clone()).filter(|uid| !uid.is_empty()),
        ..Default::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: notice.reason.into(),
        note: Some(notice.text[..notice.text.floor_char_boundary(LONGEST)].to_string()),
        action: notice.action.into(),
        secondary: None,
    };
    recorder.publish(&event, &object).await.with_context(|| format!("cannot create an Event for {about}"))
}

/// What was told, and when.
#[derive(Debug, Default)]
struct Told(HashMap<(Ref, &'static str), Texts>);

/// What was told of one object for one reason.
#[derive(Debug, Default)]
struct Texts {
    /// Of the object: another one may get its name.
    uid: String,
    /// Each by its hash, and when; the newest last.
    told: Vec<(u64, Instant)>,
}

impl Told {
    /// Is it to be told now?
    fn is_new(&mut self, notice: &Notice, now: Instant) -> bool {
        let key = (notice.about.clone(), notice.reason);
        if let Some(texts) = self.0.get(&key) {
            let text = self.text(notice);
            return texts.uid != notice.uid
                || match texts.told.iter().find(|(told, _)| *told == text) {
                    Some((_, at)) => now.duration_since(*at) >= REMIND,
                    None => texts.told.iter().filter(|(_, at)| now.duration_since(*at) < CHANGE).count() < WORDINGS,
                };
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, texts| texts.told.last().is_some_and(|(_, at)| now.duration_since(*at) < REMIND));
        }
        self.0.len() < MOST
    }

    fn note(&mut self, notice: &Notice, now: Instant) {
        let text = self.text(notice);
        let texts = self.0.entry((notice.about.clone(), notice.reason)).or_default();
        if texts.uid != notice.uid {
            *texts = Texts { uid: notice.uid.clone(), told: vec![] };
        }
        texts.told.retain(|(told, _)| *told != text);
        if texts.told.len() >= REMEMBERED {
            texts.told.remove(0);
        }
        texts.told.push((text, now));
    }

    /// The text, as it is remembered: thousands of them, of 1,000 bytes each, are much.
    fn text(&self, notice: &Notice) -> u64 {
        self.0.hasher().hash_one((notice.action, &notice.text))
    }
}

/// How fast events are written: by the time when the last of a burst would be due.
#[derive(Debug)]
struct Pace(Instant);

impl Pace {
    fn new(now: Instant) -> Self {
        Self(now)
    }

    /// How long the next one waits.
    fn wait(&mut self, now: Instant) -> Duration {
        self.0 = self.0.max(now) + PACE;
        self.0.duration_since(now).saturating_sub(PACE * BURST)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use kube::client::Body;
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context as TaskContext, Poll},
    };

    fn notice(name: &str, text: &str) -> Notice {
        let about = Ref {
            group: "security.istio.io",
            version: "v1",
            kind: "AuthorizationPolicy",
            namespace: "app".into(),
            name: name.into(),
        };
        Notice { about, uid: "u1".into(), reason: "PolicyClosed", action: "Read", text: text.into() }
    }

    /// An API server that takes events, and refuses the first few.
    #[derive(Clone)]
    struct Server {
        refuses: std::sync::Arc<std::sync::atomic::AtomicUsize>,
        seen: mpsc::UnboundedSender<(String, serde_json::Value)>,
    }

    impl tower_service::Service<http::Request<Body>> for Server {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;
        fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            let server = self.clone();
            Box::pin(async move {
                let asked = format!("{} {}", request.method(), request.uri().path());
                let body = request.into_body().collect_bytes().await.unwrap();
                let less = |n: usize| n.checked_sub(1);
                let order = std::sync::atomic::Ordering::Relaxed;
                if server.refuses.fetch_update(order, order, less).is_ok() {
                    let status = serde_json::json!({ "status": "Failure", "message": "forbidden", "reason": "Forbidden", "code": 403 });
                    let answer =
                        http::Response::builder().status(403).body(Body::from(status.to_string().into_bytes()));
                    return Ok(answer.unwrap());
                }
                server.seen.send((asked, serde_json::from_slice(&body).unwrap())).unwrap();
                Ok(http::Response::new(Body::from(body.to_vec())))
            })
        }
    }

    fn started(refuses: usize) -> (Events, mpsc::UnboundedReceiver<(String, serde_json::Value)>) {
        let (seen, written) = mpsc::unbounded_channel();
        let server = Server { refuses: std::sync::Arc::new(refuses.into()), seen };
        let kube = Kube { client: kube::Client::new(server, "default") };
        (Events::start(&kube, "karst-controller", "istiod-1"), written)
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_is_written_once_until_it_would_be_forgotten() {
        let (events, mut written) = started(0);
        let first = notice("p", "denies all traffic that it selects");
        events.tell_all(vec![first.clone(); 50]).await;
        let (asked, event) = written.recv().await.unwrap();
        assert_eq!(asked, "POST /apis/events.k8s.io/v1/namespaces/app/events");
        assert_eq!((&event["reason"], &event["type"]), (&"PolicyClosed".into(), &"Warning".into()));
        assert_eq!(
            (&event["regarding"]["apiVersion"], &event["regarding"]["uid"]),
            (&"security.istio.io/v1".into(), &"u1".into())
        );
        assert_eq!(
            (&event["note"], &event["reportingController"]),
            (&first.text.clone().into(), &"karst-controller".into())
        );
        events.tell_all(vec![first, notice("q", "x")]).await;
        assert_eq!(written.recv().await.unwrap().1["regarding"]["name"], "q");
        tokio::time::sleep(REMIND).await;
        events.tell_all(vec![notice("q", "x")]).await;
        assert_eq!(written.recv().await.unwrap().1["regarding"]["name"], "q", "it is still so");
        assert!(written.try_recv().is_err());
    }

    /// Two mistakes in one mesh configuration, the second made while the first was mended: both are told, and at once.
    #[tokio::test(start_paused = true)]
    async fn another_text_for_the_same_reason_is_told_at_once_up_to_a_share() {
        let (events, mut written) = started(0);
        let start = Instant::now();
        let next = async |written: &mut mpsc::UnboundedReceiver<(String, serde_json::Value)>| {
            written.recv().await.unwrap().1["note"].as_str().unwrap().to_owned()
        };
        events.tell_all(vec![notice("p", "first"), notice("p", "second"), notice("p", "first")]).await;
        assert_eq!((next(&mut written).await, next(&mut written).await), ("first".into(), "second".into()));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        // An object whose text changes all the time leaves the pace to others, and goes on later.
        let many = |from: usize| -> Vec<Notice> { (from..from + 50).map(|n| notice("p", &n.to_string())).collect() };
        events.tell_all(many(0)).await;
        events.tell_all(vec![notice("q", "of another")]).await;
        for n in 0..WORDINGS - 2 {
            assert_eq!(next(&mut written).await, n.to_string());
        }
        assert_eq!(next(&mut written).await, "of another");
        assert!(start.elapsed() < CHANGE, "{:?}", start.elapsed());
        tokio::time::sleep(CHANGE).await;
        events.tell_all(many(1000)).await;
        assert_eq!(next(&mut written).await, "1000");
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_written_is_written_when_it_is_told_again() {
        let (events, mut written) = started(1);
        let long = notice("p", &"€".repeat(500));
        events.tell_all(vec![long.clone(), long.clone(), long]).await;
        let note = written.recv().await.unwrap().1["note"].as_str().unwrap().len();
        assert!((990..=1024).contains(&note), "the API server refuses more than 1024 bytes: {note}");
        tokio::time::sleep(CHANGE).await;
        assert!(written.try_recv().is_err(), "once");
    }

    /// Thousands of objects become wrong at once: the API server has other work.
    #[test]
    fn many_events_are_written_one_after_the_other() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let waits: Vec<_> = (0..BURST + 3).map(|_| pace.wait(start)).collect();
        assert!(waits[..BURST as usize].iter().all(Duration::is_zero));
        assert_eq!(waits[BURST as usize..], [PACE, 2 * PACE, 3 * PACE]);
        let later = start + PACE * 1000;
        assert!((0..BURST).all(|_| pace.wait(later).is_zero()), "a burst is free again");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut told, start) = (Told::default(), Instant::now());
        for n in 0..MOST + 100 {
            let one = notice(&format!("p{n}"), "x");
            if told.is_new(&one, start) {
                told.note(&one, start);
            }
        }
        assert_eq!(told.0.len(), MOST);
        assert!(told.is_new(&notice("another", "x"), start + REMIND), "the old ones are forgotten");
        // Of one object, too.
        let mut told = Told::default();
        for n in 0..5000 {
            let one = notice("p", &n.to_string());
            let now = start + CHANGE * n;
            assert!(told.is_new(&one, now));
            told.note(&one, now);
        }
        assert!(told.0.values().all(|texts| texts.told.len() == REMEMBERED));
        // An object of the same name that was made anew is another.
        let (mut told, one) = (Told::default(), notice("p", "x"));
        told.note(&one, start);
        assert!(!told.is_new(&one, start) && told.is_new(&Notice { uid: "u2".into(), ..one }, start));
    }
}
