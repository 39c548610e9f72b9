//! How many connections the controller's servers hold. Who has not shown a token ends when the time is up, or when there are
//! too many of that kind; each server has places of its own, so that who fills those of one does not stop the other. Who must
//! give way is decided in [`karst_rt::admission`].

use crate::model::Model;
use karst_rt::admission::{Admission, Counts, Ended, InUse, Limits, Permit, Source};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Connections of one server that have not shown who they are.
const UNFINISHED: Limits = Limits::shared(1024);
/// Connections of callers that have, and of them those of one caller; then one without a stream gives way.
const MEMBERS: Limits = Limits { per_source: 64, ..Limits::even(16_384) };
/// From the accept to the first call with a good token; then the connection ends. (The token is reviewed by the API server.)
pub const AUTHENTICATE: Duration = Duration::from_secs(20);

/// The places of one server.
#[derive(Debug)]
pub struct Gate {
    unfinished: Admission,
    members: Admission,
    /// What limits have ended: those who have not shown who they are, and those who have.
    pub unknown: Counts,
    pub callers: Counts,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(UNFINISHED, MEMBERS)
    }
}

impl Gate {
    /// With so many places.
    pub fn new(unfinished: Limits, members: Limits) -> Self {
        Self {
            unfinished: Admission::new(unfinished),
            members: Admission::new(members),
            unknown: Counts::default(),
            callers: Counts::default(),
        }
    }

    /// For a server whose callers show nothing that they could be known by.
    pub fn for_strangers() -> Self {
        Self::new(Limits { known: 0, strangers: 0, ..UNFINISHED }, MEMBERS)
    }

    /// A connection that was just accepted. `known`: nodes' proxies call from this address, or somebody who had a token has.
    ///
    /// # Errors
    /// See [`Permit::admit`].
    pub fn admit(&self, from: IpAddr, known: bool) -> Result<Permit, Ended> {
        Permit::admit(&[&self.unfinished], &Source::address(from, known)).inspect_err(|e| self.unknown.note(*e))
    }
}

/// A connection, as those who serve its calls see it.
#[derive(Clone, Debug)]
pub struct Link(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    from: SocketAddr,
    gate: Arc<Gate>,
    permit: Mutex<Permit>,
    authenticated: AtomicBool,
}

impl Link {
    /// Of a connection with its handshake done.
    pub fn new(from: SocketAddr, gate: Arc<Gate>, permit: Permit) -> Self {
        Self(Arc::new(Inner { from, gate, permit: Mutex::new(permit), authenticated: AtomicBool::new(false) }))
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.0.from
    }

    fn permit(&self) -> MutexGuard<'_, Permit> {
        self.0.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A caller has shown by a token who it is: from now on the connection is one of its own.
    ///
    /// # Errors
    /// `Refused`: it has as many as it may, all with a stream.
    pub fn authenticated(&self, caller: &str) -> Result<(), Ended> {
        let mut permit = self.permit();
        // The first caller on a connection is whom it is counted for.
        if !self.0.authenticated.load(Relaxed) {
            let moved = permit.move_to(&[&self.0.gate.members], &Source::Named(caller.into()));
            moved.inspect_err(|e| self.0.gate.callers.note(*e))?;
            self.0.authenticated.store(true, Relaxed);
        }
        Ok(())
    }

    /// The connection has a stream until this is dropped.
    pub fn in_use(&self) -> Option<InUse> {
        self.permit().in_use()
    }

    /// Waits until the connection has to end: it must give way, or nobody has shown who he is within the time.
    pub fn ended(&self, limit: Duration) -> impl Future<Output = Ended> + Send + 'static + use<> {
        let (link, evicted) = (self.clone(), self.permit().watch());
        let until = tokio::time::Instant::now() + limit;
        async move {
            let mut evicted = std::pin::pin!(evicted);
            let in_time = tokio::time::timeout_at(until, &mut evicted).await.is_ok();
            let inner = &link.0;
            if !in_time && !inner.authenticated.load(Relaxed) {
                inner.gate.unknown.note(Ended::Late);
                return Ended::Late;
            }
            if !in_time {
                evicted.await;
            }
            let counts = if inner.authenticated.load(Relaxed) { &inner.gate.callers } else { &inner.gate.unknown };
            counts.note(Ended::Evicted);
            Ended::Evicted
        }
    }
}

/// Addresses of those who have something to ask: the nodes' proxies, as the model has them, and whoever has shown a good token.
#[derive(Debug, Default)]
pub struct Known(Mutex<Addresses>);

#[derive(Debug, Default)]
struct Addresses {
    proxies: HashSet<IpAddr>,
    /// When the model was looked at.
    at: Option<Instant>,
    /// When a token was last shown.
    shown: HashMap<IpAddr, Instant>,
}

impl Known {
    /// The model is looked at for this at most so often: strangers decide how often it is asked for.
    const LOOK: Duration = Duration::from_secs(1);
    /// Addresses that are remembered; then the older half is forgotten.
    const MOST: usize = 20_000;

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A good token was shown from there.
    pub fn note(&self, ip: IpAddr) {
        let shown = &mut self.addresses().shown;
        if shown.len() >= Self::MOST && !shown.contains_key(&ip) {
            let mut times: Vec<Instant> = shown.values().copied().collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            shown.retain(|_, t| *t > median);
        }
        shown.insert(ip, Instant::now());
    }

    /// Is it one of them? `accounts`: whose pods are nodes' proxies.
    pub fn has(&self, ip: IpAddr, model: &Model, accounts: &[String]) -> bool {
        let mut addresses = self.addresses();
        if addresses.shown.contains_key(&ip) {
            return true;
        }
        if addresses.at.is_none_or(|t| t.elapsed() >= Self::LOOK) {
            addresses.proxies = proxies(model, accounts);
            addresses.at = Some(Instant::now());
        }
        addresses.proxies.contains(&ip)
    }
}

fn proxies(model: &Model, accounts: &[String]) -> HashSet<IpAddr> {
    let accounts: Vec<_> = accounts.iter().filter_map(|a| a.split_once('/')).collect();
    let is_one = |p: &crate::model::PodInfo| {
        p.live && accounts.iter().any(|(ns, account)| p.namespace == *ns && p.service_account == *account)
    };
    model.pods.values().filter(|p| is_one(p)).flat_map(|p| p.ips.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PodInfo;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }
    fn link(gate: &Arc<Gate>, from: u8) -> Link {
        Link::new((ip(from), 1).into(), gate.clone(), gate.admit(ip(from), false).unwrap())
    }

    #[tokio::test]
    async fn who_shows_no_token_ends_when_the_time_is_up() {
        let gate = Arc::new(Gate::default());
        let (stranger, member) = (link(&gate, 1), link(&gate, 2));
        member.authenticated("app/a").unwrap();
        assert_eq!(stranger.ended(SHORT).await, Ended::Late);
        assert!(tokio::time::timeout(2 * SHORT, member.ended(SHORT)).await.is_err(), "a member stays");
        assert_eq!((gate.unknown.of(Ended::Late), gate.callers.of(Ended::Late)), (1, 0));
    }

    #[tokio::test]
    async fn strangers_give_way_and_members_do_not() {
        let gate = Arc::new(Gate::new(Limits::even(2), MEMBERS));
        let member = link(&gate, 1);
        member.authenticated("app/a").unwrap();
        let strangers: Vec<Link> = (2..6).map(|n| link(&gate, n)).collect();
        assert_eq!(strangers[0].ended(LONG).await, Ended::Evicted);
        assert_eq!(strangers[0].authenticated("app/b"), Err(Ended::Evicted), "too late");
        assert!(tokio::time::timeout(SHORT, strangers[3].ended(LONG)).await.is_err());
        assert!(tokio::time::timeout(SHORT, member.ended(LONG)).await.is_err());
    }

    #[tokio::test]
    async fn one_caller_has_its_share_and_streams_do_not_give_way() {
        let gate = Arc::new(Gate::new(UNFINISHED, Limits { per_source: 2, ..MEMBERS }));
        let of = |caller: &str| {
            let l = link(&gate, 1);
            l.authenticated(caller).map(|()| l)
        };
        let (stream, idle, other) = (of("a").unwrap(), of("a").unwrap(), of("b").unwrap());
        let _subscribed = stream.in_use();
        let third = of("a").unwrap();
        assert_eq!(idle.ended(LONG).await, Ended::Evicted);
        let _second = third.in_use();
        assert_eq!(of("a").err(), Some(Ended::Refused));
        for l in [&stream, &third, &other] {
            assert!(tokio::time::timeout(SHORT, l.ended(LONG)).await.is_err());
        }
    }

    #[test]
    fn proxies_and_who_has_shown_a_token_are_known() {
        let pod = |account: &str, live, n| PodInfo {
            uid: "u".into(),
            namespace: "istio-system".into(),
            service_account: account.into(),
            node: "n".into(),
            live,
            ips: vec![ip(n)],
        };
        let mut m = Model::default();
        for (name, p) in [("z", pod("ztunnel", true, 1)), ("gone", pod("ztunnel", false, 2)), ("x", pod("x", true, 3))]
        {
            m.pods.insert(name.into(), p.into());
        }
        let known = Known::default();
        let has = |n| known.has(ip(n), &m, &["istio-system/ztunnel".into()]);
        assert_eq!([1, 2, 3, 4].map(has), [true, false, false, false]);
        known.note(ip(4));
        assert_eq!([1, 2, 3, 4].map(has), [true, false, false, true]);
        for n in 0..=Known::MOST as u32 {
            known.note(std::net::Ipv4Addr::from_bits(n).into());
        }
        assert!(known.addresses().shown.len() <= Known::MOST / 2 + 1);
    }
}
