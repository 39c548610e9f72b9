//! Addresses of pod ranges that nobody has told of, for whatever goes there without a tunnel. It may be for a member that is so new that the control plane
//! has not told of it yet, so it waits: until it is told who is there, or until the control plane has said twice, some time
//! apart, that it knows of nobody. (Once is not enough: the kubelet tells of a pod's address a while after the pod has it, and a
//! control plane that has lagged behind answers before it has caught up.) Without an answer nothing goes there
//! (`restarts::an_address_that_is_not_told_yet_is_held`).

use crate::state::Snapshot;
use karst_core::limits::{ASK_PAUSE, MAX_ASKED, MAX_QUESTIONS};
use std::{cell::RefCell, collections::HashMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is known who is there.
    Known,
    /// The control plane knows of nobody there.
    Nobody,
    /// Neither, in the time there was.
    Nothing,
}

/// Who is at this address? Who is known is told as everything is told; the answer only says that all of that has come.
pub struct Question {
    ip: IpAddr,
    answer: oneshot::Sender<()>,
}

/// What is waited by.
pub struct Wait<S> {
    /// What is known.
    pub state: watch::Receiver<Arc<S>>,
    /// Is there a control plane?
    pub stream: watch::Receiver<bool>,
    /// Where questions are put.
    pub questions: mpsc::Sender<Question>,
    /// From the first answer to the second question.
    pub again: Duration,
    /// Nothing goes on after this.
    pub until: Instant,
}

impl<S: AsRef<Snapshot>> Wait<S> {
    /// Is it not known who is at an address?
    pub fn is_untold(&self, ip: IpAddr) -> bool {
        S::as_ref(&self.state.borrow()).is_untold(ip)
    }

    /// Asks once more after an address at which nobody was.
    pub async fn is_still_nobodys(mut self, ip: IpAddr) -> bool {
        let answer = answered(ip, &mut self.stream, &self.questions);
        timeout_at(self.until, answer).await.is_ok() && self.is_untold(ip)
    }

    /// Waits until it is known who is at an address.
    pub async fn at(self, ip: IpAddr) -> Told {
        let Self { mut state, mut stream, questions, again, until } = self;
        let known = async {
            while S::as_ref(&state.borrow_and_update()).is_untold(ip) {
                if state.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let nobody = async {
            answered(ip, &mut stream, &questions).await;
            sleep(again).await;
            answered(ip, &mut stream, &questions).await;
        };
        let told = async {
            tokio::select! {
                // First: what the answer brought is there before the answer.
                biased;
                () = known => Told::Known,
                () = nobody => Told::Nobody,
            }
        };
        timeout_at(until, told).await.unwrap_or(Told::Nothing)
    }
}

/// Asks, and waits for an answer; a stream that has ended gives none, and the next one is asked.
async fn answered(ip: IpAddr, stream: &mut watch::Receiver<bool>, questions: &mpsc::Sender<Question>) {
    loop {
        let up = stream.wait_for(|up| *up).await.is_ok();
        let (answer, wait) = oneshot::channel();
        if !up || questions.send(Question { ip, answer }).await.is_err() {
            // There is nobody to ask.
            return std::future::pending().await;
        }
        if wait.await.is_ok() {
            return;
        }
    }
}

/// Carries the questions of all workers to the control plane.
pub struct Asker {
    questions: mpsc::Receiver<Question>,
    network: String,
    next: Vec<Question>,
    not_before: Instant,
    /// Asked and not answered, by name.
    open: RefCell<HashMap<String, Vec<oneshot::Sender<()>>>>,
}

impl Asker {
    /// For addresses of a network; and where questions are put.
    pub fn new(network: &str) -> (mpsc::Sender<Question>, Self) {
        let (tx, questions) = mpsc::channel(MAX_QUESTIONS);
        let network = network.to_string();
        (tx, Self { questions, network, next: vec![], not_before: Instant::now(), open: RefCell::default() })
    }

    /// Waits for questions, and gives the names to ask for. Dropping it loses none.
    pub async fn names(&mut self) -> Vec<String> {
        loop {
            if self.next.is_empty() {
                match self.questions.recv().await {
                    Some(q) => self.next.push(q),
                    None => std::future::pending().await,
                }
            }
            sleep_until(self.not_before).await;
            while self.next.len() < MAX_ASKED
                && let Ok(question) = self.questions.try_recv()
            {
                self.next.push(question);
            }
            // Who does not wait any more needs no answer.
            self.next.retain(|q| !q.answer.is_closed());
            if self.next.is_empty() {
                continue;
            }
            self.not_before = Instant::now() + ASK_PAUSE;
            let open = self.open.get_mut();
            for question in self.next.drain(..) {
                open.entry(format!("{}/{}", self.network, question.ip)).or_default().push(question.answer);
            }
            return open.keys().cloned().collect();
        }
    }

    /// These names are answered.
    pub fn answered<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) {
        let mut open = self.open.borrow_mut();
        for question in names.into_iter().filter_map(|name| open.remove(name.as_ref())).flatten() {
            let _ = question.send(());
        }
    }

    /// The stream has ended: what was asked is not answered any more.
    pub fn forget(&self) {
        self.open.borrow_mut().clear();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::testing::{pod, snapshot};
    use karst_api::route::PodRanges;
    use prost::Message;

    // Short, and in this order.
    const AGAIN: Duration = Duration::from_millis(150);
    const LIMIT: Duration = Duration::from_millis(1500);

    fn mesh(pods: &[(&str, &str)]) -> Arc<Snapshot> {
        let mut s = snapshot(pods.iter().map(|(name, ip)| pod(name, ip, &[])).collect(), vec![]);
        s.put_pod_ranges("n", &PodRanges { ranges: vec!["10.0.0.0/24".into()] }.encode_to_vec()).unwrap();
        Arc::new(s)
    }

    struct Plane {
        state: watch::Sender<Arc<Snapshot>>,
        stream: watch::Sender<bool>,
        questions: mpsc::Sender<Question>,
        asker: Asker,
    }

    impl Plane {
        fn new(up: bool) -> Self {
            let (questions, asker) = Asker::new("");
            let (state, stream) = (watch::Sender::new(mesh(&[])), watch::Sender::new(up));
            Self { state, stream, questions, asker }
        }
        /// Somebody waits: what comes of it, and how long it took.
        fn wait(&self) -> tokio::task::JoinHandle<(Told, Duration)> {
            let (state, stream) = (self.state.subscribe(), self.stream.subscribe());
            let (questions, began) = (self.questions.clone(), Instant::now());
            tokio::spawn(async move {
                let w = Wait { state, stream, questions, again: AGAIN, until: began + LIMIT };
                (w.at([10, 0, 0, 9].into()).await, began.elapsed())
            })
        }
        async fn answer(&mut self) {
            let names = self.asker.names().await;
            assert_eq!(names, ["/10.0.0.9"]);
            self.asker.answered(&names);
        }
    }

    #[tokio::test]
    async fn what_is_known_is_not_waited_for() {
        let p = Plane::new(true);
        p.state.send_replace(mesh(&[("a", "10.0.0.9")]));
        let (told, took) = p.wait().await.unwrap();
        assert_eq!(told, Told::Known);
        assert!(took < AGAIN, "{took:?}");
    }

    #[tokio::test]
    async fn it_goes_on_when_it_is_told() {
        let p = Plane::new(true);
        let w = p.wait();
        sleep(AGAIN).await;
        assert!(!w.is_finished());
        p.state.send_replace(mesh(&[("b", "10.0.0.8")]));
        sleep(AGAIN / 3).await;
        assert!(!w.is_finished(), "that was about another address");
        p.state.send_replace(mesh(&[("a", "10.0.0.9")]));
        assert_eq!(w.await.unwrap().0, Told::Known);
    }

    #[tokio::test]
    async fn nobody_is_believed_when_it_is_said_twice() {
        let mut p = Plane::new(true);
        let w = p.wait();
        p.answer().await;
        p.answer().await;
        let (told, took) = w.await.unwrap();
        assert_eq!(told, Told::Nobody);
        assert!(took >= AGAIN && took < LIMIT, "{took:?}");
    }

    #[tokio::test]
    async fn what_is_told_after_the_first_answer_counts() {
        let mut p = Plane::new(true);
        let w = p.wait();
        p.answer().await;
        p.state.send_replace(mesh(&[("a", "10.0.0.9")]));
        assert_eq!(w.await.unwrap().0, Told::Known);
        // What the second answer brought is there before it.
        let mut p = Plane::new(true);
        let w = p.wait();
        p.answer().await;
        let names = p.asker.names().await;
        p.state.send_replace(mesh(&[("a", "10.0.0.9")]));
        p.asker.answered(&names);
        assert_eq!(w.await.unwrap().0, Told::Known);
    }

    #[tokio::test]
    async fn without_an_answer_nothing_goes_on() {
        let mut frozen = Plane::new(true);
        let w = frozen.wait();
        let _unanswered = frozen.asker.names().await;
        let (told, took) = w.await.unwrap();
        assert_eq!(told, Told::Nothing);
        assert!(took >= LIMIT);
        let away = Plane::new(false);
        assert_eq!(away.wait().await.unwrap().0, Told::Nothing);
    }

    #[tokio::test]
    async fn the_next_stream_is_asked_again() {
        let mut p = Plane::new(true);
        let w = p.wait();
        let _lost = p.asker.names().await;
        p.stream.send_replace(false);
        p.asker.forget();
        sleep(AGAIN / 3).await;
        p.stream.send_replace(true);
        p.answer().await;
        p.answer().await;
        assert_eq!(w.await.unwrap().0, Told::Nobody);
    }

    #[tokio::test]
    async fn questions_about_one_address_are_asked_together_and_not_too_often() {
        let mut p = Plane::new(true);
        let all: Vec<_> = (0..50).map(|_| p.wait()).collect();
        tokio::task::yield_now().await;
        let (began, mut rounds) = (Instant::now(), 0);
        let mut done = std::pin::pin!(async {
            for w in all {
                assert_eq!(w.await.unwrap().0, Told::Nobody);
            }
        });
        loop {
            tokio::select! {
                () = &mut done => break,
                names = p.asker.names() => {
                    assert_eq!(names, ["/10.0.0.9"]);
                    p.asker.answered(&names);
                    rounds += 1;
                }
            }
        }
        assert!(rounds >= 2 && rounds <= began.elapsed().as_millis() / ASK_PAUSE.as_millis() + 1, "{rounds}");
        // Those who have gone are not asked for.
        let w = p.wait();
        tokio::task::yield_now().await;
        w.abort();
        let _ = w.await;
        assert!(timeout_at(Instant::now() + ASK_PAUSE * 2, p.asker.names()).await.is_err());
    }
}
