//! Endpoints that could not be reached a moment ago: one worker's memory of them, so that what comes next goes to others, where
//! there are any. It is short, since nobody says when an endpoint is back.

use crate::dial::Endpoint;
use karst_core::limits;
use std::{
    cell::{RefCell, RefMut},
    collections::VecDeque,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// Endpoints that are avoided, by the names of their workloads. Each for the port of the service that was called, since an
/// application may listen at one of its ports and not at another; or for all (None).
pub struct Unreachable {
    avoid: Duration,
    /// Those that are avoided longest are last.
    all: RefCell<VecDeque<Avoided>>,
}

struct Avoided {
    uid: Arc<str>,
    port: Option<u16>,
    until: Instant,
}

impl Unreachable {
    /// Remembers endpoints for so long.
    pub fn new(avoid: Duration) -> Self {
        Self { avoid, all: RefCell::default() }
    }

    /// One of them, for who tries it.
    pub fn endpoint<'a>(&'a self, uid: &'a Arc<str>, port: Option<u16>) -> Named<'a> {
        Named { all: self, uid, port }
    }

    /// This endpoint could not be reached.
    pub fn add(&self, uid: &Arc<str>, port: Option<u16>) {
        let mut all = self.all.borrow_mut();
        all.retain(|a| (&a.uid, a.port) != (uid, port));
        if all.len() >= limits::MAX_AVOIDED {
            all.pop_front();
        }
        all.push_back(Avoided { uid: uid.clone(), port, until: Instant::now() + self.avoid });
    }

    /// Is this endpoint avoided now at this port?
    pub fn avoids(&self, uid: &str, port: u16) -> bool {
        self.now().iter().any(|a| &*a.uid == uid && a.is_at(port))
    }

    /// Those that are avoided now at this port, besides `tried`. Mostly none.
    pub fn besides(&self, tried: &[Arc<str>], port: u16) -> Vec<Arc<str>> {
        let all = self.now();
        let here = all.iter().filter(|a| a.is_at(port)).map(|a| &a.uid);
        here.filter(|u| !tried.contains(u)).cloned().collect()
    }

    /// Those that are avoided now.
    fn now(&self) -> RefMut<'_, VecDeque<Avoided>> {
        let mut all = self.all.borrow_mut();
        if !all.is_empty() {
            let now = Instant::now();
            while all.front().is_some_and(|a| a.until <= now) {
                all.pop_front();
            }
        }
        all
    }
}

impl Avoided {
    fn is_at(&self, port: u16) -> bool {
        self.port.is_none_or(|p| p == port)
    }
}

/// An endpoint that is tried, by the name of its workload.
pub struct Named<'a> {
    all: &'a Unreachable,
    uid: &'a Arc<str>,
    port: Option<u16>,
}

impl Endpoint for Named<'_> {
    fn avoid(&self) {
        self.all.add(self.uid, self.port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 80;

    #[test]
    fn one_that_does_not_listen_at_a_port_is_not_avoided_at_another() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let u = Unreachable::new(limits::AVOID);
        u.endpoint(&a, Some(9000)).avoid();
        u.endpoint(&b, None).avoid();
        assert_eq!(u.besides(&[], PORT), std::slice::from_ref(&b));
        assert_eq!(u.besides(&[], 9000), [a.clone(), b]);
        assert_eq!(
            [("a", PORT), ("a", 9000), ("b", PORT), ("c", PORT)].map(|(n, p)| u.avoids(n, p)),
            [false, true, true, false]
        );
        u.add(&a, Some(PORT));
        assert!(
            u.besides(&[], PORT).contains(&a) && u.besides(&[], 9000).contains(&a),
            "one does not replace the other"
        );
    }

    #[tokio::test]
    async fn an_endpoint_that_is_avoided_comes_back() {
        const AVOID: Duration = Duration::from_millis(200);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let u = Unreachable::new(AVOID);
        assert!(u.besides(&[], PORT).is_empty());
        u.add(&a, Some(PORT));
        tokio::time::sleep(AVOID * 3 / 4).await;
        u.add(&b, Some(PORT));
        let only_b = std::slice::from_ref(&b);
        assert_eq!(u.besides(&[], PORT), [a.clone(), b.clone()]);
        assert_eq!(u.besides(std::slice::from_ref(&a), PORT), only_b);
        tokio::time::sleep(AVOID / 2).await;
        assert_eq!(u.besides(&[], PORT), only_b, "the first one's time is over");
        // One that fails again is avoided anew, once.
        u.add(&b, Some(PORT));
        u.add(&b, Some(PORT));
        assert_eq!(u.besides(&[], PORT), only_b);
        tokio::time::sleep(AVOID * 5 / 4).await;
        assert!(u.besides(&[], PORT).is_empty());
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let u = Unreachable::new(limits::AVOID);
        for i in 0..limits::MAX_AVOIDED + 10 {
            u.add(&i.to_string().into(), None);
        }
        let all = u.besides(&[], PORT);
        assert_eq!((all.len(), &*all[0]), (limits::MAX_AVOIDED, "10"));
    }
}
