//! Addresses of pod ranges at which the control plane knows of nobody: a virtual machine's, the node's own on its bridge. Its
//! answer holds for [`limits::NOBODY_FOR`], or each connection to such an address would wait for it anew; who calls on makes it
//! asked again in time, and nobody waits.
//!
//! What must always hold: where a pod is told of, no answer of before counts; without the control plane, which would tell of a
//! pod that comes, answers run out. Each table is one pod's or one worker's, so that nobody fills another's.

use crate::{
    state::Snapshot,
    untold::{Told, Wait},
};
use karst_core::limits;
use std::{cell::RefCell, collections::HashMap, net::IpAddr, rc::Rc, time::Duration};
use tokio::time::Instant;

struct Answer {
    until: Instant,
    /// From then on it is asked again.
    again: Instant,
}

/// Where nobody is.
pub struct Nobody {
    /// Beyond, what ends first is forgotten.
    most: usize,
    holds: Duration,
    again: Duration,
    all: RefCell<HashMap<IpAddr, Answer>>,
}

impl Nobody {
    /// Of so many addresses.
    pub fn new(most: usize) -> Rc<Self> {
        let (holds, again) = (limits::NOBODY_FOR, limits::NOBODY_AGAIN);
        Rc::new(Self { most, holds, again, all: RefCell::default() })
    }

    /// Waits as [`Wait::at`] does, if no answer holds. Runs in a `LocalSet`.
    pub async fn told<S: AsRef<Snapshot> + 'static>(self: &Rc<Self>, ip: IpAddr, wait: Wait<S>) -> Told {
        if !wait.is_untold(ip) {
            self.all.borrow_mut().remove(&ip);
            return Told::Known;
        }
        match self.answer(ip) {
            None => {
                let told = wait.at(ip).await;
                if told == Told::Nobody {
                    self.put(ip);
                }
                told
            }
            Some(asks) => {
                if asks {
                    let me = self.clone();
                    tokio::task::spawn_local(async move {
                        if wait.is_still_nobodys(ip).await {
                            me.put(ip);
                        }
                    });
                }
                Told::Nobody
            }
        }
    }

    /// Does an answer hold? And is it time to ask again? (That is told to one.)
    fn answer(&self, ip: IpAddr) -> Option<bool> {
        let (mut all, now) = (self.all.borrow_mut(), Instant::now());
        let answer = all.get_mut(&ip).filter(|a| a.until > now)?;
        let asks = answer.again <= now;
        if asks {
            answer.again = now + self.again;
        }
        Some(asks)
    }

    fn put(&self, ip: IpAddr) {
        let (mut all, now) = (self.all.borrow_mut(), Instant::now());
        if all.len() >= self.most && !all.contains_key(&ip) {
            let first = all.iter().min_by_key(|(_, a)| a.until).map(|(ip, _)| *ip);
            if let Some(ip) = first {
                all.remove(&ip);
            }
        }
        all.insert(ip, Answer { until: now + self.holds, again: now + self.again });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::{
        testing::with_range as mesh,
        untold::{Asker, Question},
    };
    use std::sync::Arc;
    use tokio::{
        sync::{mpsc, watch},
        task::{LocalSet, spawn_local},
        time::{sleep, timeout},
    };

    // Short, and in this order.
    const PAUSE: Duration = Duration::from_millis(20);
    const ASKS: Duration = Duration::from_millis(200);
    const HOLDS: Duration = Duration::from_millis(600);
    const LIMIT: Duration = Duration::from_secs(3);

    /// A control plane, and what is remembered of its answers.
    struct Plane {
        state: watch::Sender<Arc<Snapshot>>,
        stream: watch::Sender<bool>,
        questions: mpsc::Sender<Question>,
        asker: Asker,
        nobody: Rc<Nobody>,
    }

    impl Plane {
        fn new(most: usize) -> Self {
            let (questions, asker) = Asker::new("");
            let nobody = Rc::new(Nobody { most, holds: HOLDS, again: ASKS, all: RefCell::default() });
            Self { state: watch::Sender::new(mesh(&[])), stream: watch::Sender::new(true), questions, asker, nobody }
        }
        /// Somebody calls: what comes of it.
        fn call(&self, ip: &str) -> tokio::task::JoinHandle<Told> {
            let (state, stream) = (self.state.subscribe(), self.stream.subscribe());
            let until = Instant::now() + LIMIT;
            let wait = Wait { state, stream, questions: self.questions.clone(), again: PAUSE, until };
            let (nobody, ip) = (self.nobody.clone(), ip.parse().unwrap());
            spawn_local(async move { nobody.told(ip, wait).await })
        }
        /// Without a question.
        async fn at_once(&self, ip: &str) -> Option<Told> {
            timeout(PAUSE, self.call(ip)).await.ok().map(Result::unwrap)
        }
        async fn answer(&mut self) {
            let names = timeout(LIMIT, self.asker.wanted()).await.unwrap().names;
            self.asker.answered(&names);
        }
        /// The first call, which waits for two answers.
        async fn first(&mut self, ip: &str) {
            let held = self.call(ip);
            self.answer().await;
            assert!(!held.is_finished());
            self.answer().await;
            assert_eq!(held.await.unwrap(), Told::Nobody);
        }
    }

    #[tokio::test]
    async fn an_answer_holds_for_a_while() {
        let run = async {
            let mut p = Plane::new(8);
            p.first("10.0.0.9").await;
            for _ in 0..3 {
                assert_eq!(p.at_once("10.0.0.9").await, Some(Told::Nobody));
            }
            assert_eq!(p.at_once("10.0.0.8").await, None, "another address");
            // Whoever is told of counts at once, and what was said before does not count afterwards.
            p.state.send_replace(mesh(&[("a", "10.0.0.9")]));
            assert_eq!(p.at_once("10.0.0.9").await, Some(Told::Known));
            p.state.send_replace(mesh(&[]));
            assert_eq!(p.at_once("10.0.0.9").await, None);
        };
        LocalSet::new().run_until(run).await;
    }

    #[tokio::test]
    async fn it_is_asked_again_in_time_and_nobody_waits() {
        let run = async {
            let mut p = Plane::new(8);
            p.first("10.0.0.9").await;
            let began = Instant::now();
            while began.elapsed() < HOLDS * 2 {
                sleep(ASKS * 5 / 4).await;
                assert_eq!(p.at_once("10.0.0.9").await, Some(Told::Nobody), "{:?}", began.elapsed());
                assert_eq!(p.at_once("10.0.0.9").await, Some(Told::Nobody), "asked once");
                p.answer().await;
            }
            // Without answers it ends.
            p.stream.send_replace(false);
            sleep(HOLDS * 5 / 4).await;
            assert_eq!(p.at_once("10.0.0.9").await, None);
        };
        LocalSet::new().run_until(run).await;
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let run = async {
            let nobody = Nobody::new(2);
            let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
            (1..=3).for_each(|n| nobody.put(ip(n)));
            nobody.put(ip(3));
            assert_eq!([1, 2, 3].map(|n| nobody.answer(ip(n))), [None, Some(false), Some(false)]);
        };
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(run);
    }
}
