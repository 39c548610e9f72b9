//! Addresses of pod ranges that nobody has told of, for whatever goes there without a tunnel. It may be for a member that is so new that the control plane
//! has not told of it yet, so it waits: until it is told who is there, or until the control plane has said twice, some time
//! apart, that it knows of nobody. (Once is not enough: the kubelet tells of a pod's address a while after the pod has it, and a
//! control plane that has lagged behind answers before it has caught up.) Without an answer nothing goes there
//! (`restarts::an_address_that_is_not_told_yet_is_held`).
//!
//! Where the control plane tells only what is asked for, everything that is called comes here first ([`ask`]): one answer is enough
//! then, since more is told when there is more, unless the address is of a pod range.

use crate::{
    demand::Book,
    state::{Mark, Name, Snapshot},
};
use karst_core::limits::{ASK_PAUSE, DEMAND_PAUSE, MAX_ASKED, MAX_QUESTIONS};
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

/// What is there of this name? What there is, is told as everything is told; the answer only says that all of that has come.
pub struct Question {
    name: Name,
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
        let answer = ask([Name::Address(ip)], &mut self.stream, &self.questions);
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
            ask([Name::Address(ip)], &mut stream, &questions).await;
            sleep(again).await;
            ask([Name::Address(ip)], &mut stream, &questions).await;
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

/// Asks for names, and waits until each is answered; a stream that has ended answers nothing, and the next one is asked.
pub async fn ask(
    names: impl IntoIterator<Item = Name>,
    stream: &mut watch::Receiver<bool>,
    questions: &mpsc::Sender<Question>,
) {
    let mut open: Vec<Name> = names.into_iter().collect();
    while !open.is_empty() {
        let up = stream.wait_for(|up| *up).await.is_ok();
        let mut asked = Vec::with_capacity(open.len());
        for name in open.drain(..) {
            let (answer, wait) = oneshot::channel();
            if !up || questions.send(Question { name: name.clone(), answer }).await.is_err() {
                // There is nobody to ask.
                return std::future::pending().await;
            }
            asked.push((name, wait));
        }
        for (name, wait) in asked {
            if wait.await.is_err() {
                open.push(name);
            }
        }
    }
}

/// What is to be asked of the control plane, and what not any more.
#[derive(Debug, Default)]
pub struct Asks {
    /// Names that are asked for.
    pub names: Vec<String>,
    /// Names that are followed no more, where only what is asked for is told.
    pub left: Vec<(String, Name)>,
}

/// The questions about a name that are not answered.
type Open = (Name, Vec<oneshot::Sender<()>>);

/// Carries the questions of all workers to the control plane.
pub struct Asker {
    questions: mpsc::Receiver<Question>,
    network: String,
    pause: Duration,
    next: Vec<Question>,
    not_before: Instant,
    /// Asked and not answered, by name.
    open: RefCell<HashMap<String, Open>>,
    /// What is followed, where only what is asked for is told.
    book: Option<RefCell<Book>>,
    /// Of that, what has had to go.
    left: Vec<(String, Name)>,
}

impl Asker {
    /// For names of a network, besides everything; and where questions are put.
    pub fn new(network: &str) -> (mpsc::Sender<Question>, Self) {
        let (tx, questions) = mpsc::channel(MAX_QUESTIONS);
        let (network, pause, not_before) = (network.to_string(), ASK_PAUSE, Instant::now());
        let (open, book) = Default::default();
        (tx, Self { questions, network, pause, next: vec![], not_before, open, book, left: vec![] })
    }

    /// The same for all that is told. What is asked for is followed in the book.
    pub fn on_demand(self, book: Book) -> Self {
        Self { pause: DEMAND_PAUSE, book: Some(RefCell::new(book)), ..self }
    }

    /// What a stream that begins is to ask for. None: everything.
    pub fn names(&self) -> Option<Vec<String>> {
        Some(self.book.as_ref()?.borrow().wire())
    }

    /// Waits for questions, and gives the names to ask for; or for names that are not used any more. Dropping it loses nothing.
    pub async fn wanted(&mut self) -> Asks {
        loop {
            if !self.left.is_empty() {
                return Asks { left: std::mem::take(&mut self.left), ..Asks::default() };
            }
            if self.next.is_empty() {
                let due = self.book.as_ref().map(|book| book.borrow().due());
                let turn = async {
                    match due {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    question = self.questions.recv() => match question {
                        Some(q) => self.next.push(q),
                        None => std::future::pending().await,
                    },
                    () = turn => {
                        self.left.extend(self.book.iter().flat_map(|book| book.borrow_mut().turn()));
                        continue;
                    }
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
            let open = self.open.get_mut();
            open.retain(|_, (_, waits)| waits.iter().any(|wait| !wait.is_closed()));
            if self.next.is_empty() {
                continue;
            }
            self.not_before = Instant::now() + self.pause;
            let mut names = vec![];
            for Question { name, answer } in self.next.drain(..) {
                let wire = name.wire(&self.network);
                open.entry(wire.clone()).or_insert_with(|| (name, vec![])).1.push(answer);
                names.push(wire);
            }
            names.sort();
            names.dedup();
            return Asks { names, ..Asks::default() };
        }
    }

    /// These names are answered, and followed from now on, where only what is asked for is told. Before those who wait are told.
    pub fn follow<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> Vec<(Name, Arc<Mark>)> {
        let Some(book) = &self.book else { return vec![] };
        let (mut book, open) = (book.borrow_mut(), self.open.borrow());
        let one = |wire: N| {
            let wire = wire.as_ref();
            let name = open.get(wire).map(|(name, _)| name).or_else(|| book.name(wire))?.clone();
            Some((name.clone(), book.put(wire, name)))
        };
        names.into_iter().filter_map(one).collect()
    }

    /// These names are answered.
    pub fn answered<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) {
        let mut open = self.open.borrow_mut();
        for (_, waits) in names.into_iter().filter_map(|name| open.remove(name.as_ref())) {
            for wait in waits {
                let _ = wait.send(());
            }
        }
    }

    /// Names that are too many to be followed. `has`: is there anything of a name?
    pub fn shrink(&mut self, has: impl Fn(&Name) -> bool) -> Vec<Name> {
        let gone = self.book.as_ref().map(|book| book.borrow_mut().shrink(has)).unwrap_or_default();
        self.left.extend(gone.iter().cloned());
        gone.into_iter().map(|(_, name)| name).collect()
    }

    /// There is a stream.
    pub fn connected(&self) {
        self.book.iter().for_each(|book| book.borrow_mut().connected());
    }

    /// The stream has ended: what was asked is not answered any more. Gives the names of which nothing is believed any more.
    pub fn disconnected(&self, has: impl Fn(&Name) -> bool) -> Vec<Name> {
        self.open.borrow_mut().clear();
        let gone = self.book.as_ref().map(|book| book.borrow_mut().disconnected(has)).unwrap_or_default();
        gone.into_iter().map(|(_, name)| name).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::testing::with_range as mesh;

    // Short, and in this order.
    const AGAIN: Duration = Duration::from_millis(150);
    const LIMIT: Duration = Duration::from_millis(1500);

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
            let names = self.asker.wanted().await.names;
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
        let names = p.asker.wanted().await.names;
        p.state.send_replace(mesh(&[("a", "10.0.0.9")]));
        p.asker.answered(&names);
        assert_eq!(w.await.unwrap().0, Told::Known);
    }

    #[tokio::test]
    async fn without_an_answer_nothing_goes_on() {
        let mut frozen = Plane::new(true);
        let w = frozen.wait();
        let _unanswered = frozen.asker.wanted().await;
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
        let _lost = p.asker.wanted().await;
        p.stream.send_replace(false);
        p.asker.disconnected(|_| false);
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
                asks = p.asker.wanted() => {
                    assert_eq!(asks.names, ["/10.0.0.9"]);
                    p.asker.answered(&asks.names);
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
        assert!(timeout_at(Instant::now() + ASK_PAUSE * 2, p.asker.wanted()).await.is_err());
    }
}
