//! Endpoints that could not be reached a moment ago: one worker's memory of them, so that what comes next goes to others, where
//! there are any. It is short, since nobody says when an endpoint is back.

use crate::dial::Endpoint;
use karst_core::limits;
use std::{cell::RefCell, collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Endpoints that are avoided, by the names of their workloads.
pub struct Unreachable {
    avoid: Duration,
    /// Until when; those that are avoided longest are last.
    all: RefCell<VecDeque<(Arc<str>, Instant)>>,
}

impl Unreachable {
    /// Remembers endpoints for so long.
    pub fn new(avoid: Duration) -> Self {
        Self { avoid, all: RefCell::default() }
    }

    /// One of them, for who tries it.
    pub fn endpoint<'a>(&'a self, uid: &'a Arc<str>) -> Named<'a> {
        Named { all: self, uid }
    }

    /// This endpoint could not be reached.
    pub fn add(&self, uid: &Arc<str>) {
        let mut all = self.all.borrow_mut();
        all.retain(|(u, _)| u != uid);
        if all.len() >= limits::MAX_AVOIDED {
            all.pop_front();
        }
        all.push_back((uid.clone(), Instant::now() + self.avoid));
    }

    /// Those that are avoided now, besides `tried`. Mostly none.
    pub fn besides(&self, tried: &[Arc<str>]) -> Vec<Arc<str>> {
        let mut all = self.all.borrow_mut();
        if all.is_empty() {
            return vec![];
        }
        let now = Instant::now();
        while all.front().is_some_and(|(_, until)| *until <= now) {
            all.pop_front();
        }
        all.iter().map(|(u, _)| u).filter(|u| !tried.contains(u)).cloned().collect()
    }
}

/// An endpoint that is tried, by the name of its workload.
pub struct Named<'a> {
    all: &'a Unreachable,
    uid: &'a Arc<str>,
}

impl Endpoint for Named<'_> {
    fn avoid(&self) {
        self.all.add(self.uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_endpoint_that_is_avoided_comes_back() {
        const AVOID: Duration = Duration::from_millis(200);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let u = Unreachable::new(AVOID);
        assert!(u.besides(&[]).is_empty());
        u.add(&a);
        tokio::time::sleep(AVOID * 3 / 4).await;
        u.add(&b);
        let only_b = std::slice::from_ref(&b);
        assert_eq!(u.besides(&[]), [a.clone(), b.clone()]);
        assert_eq!(u.besides(std::slice::from_ref(&a)), only_b);
        tokio::time::sleep(AVOID / 2).await;
        assert_eq!(u.besides(&[]), only_b, "the first one's time is over");
        // One that fails again is avoided anew, once.
        u.add(&b);
        u.add(&b);
        assert_eq!(u.besides(&[]), only_b);
        tokio::time::sleep(AVOID * 5 / 4).await;
        assert!(u.besides(&[]).is_empty());
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let u = Unreachable::new(limits::AVOID);
        for i in 0..limits::MAX_AVOIDED + 10 {
            u.add(&i.to_string().into());
        }
        let all = u.besides(&[]);
        assert_eq!((all.len(), &*all[0]), (limits::MAX_AVOIDED, "10"));
    }
}
