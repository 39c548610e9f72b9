//! The open byte streams of one worker (TCP, TLS that ends elsewhere, WebSockets), so that a policy that comes later closes what
//! it forbids. (Requests are judged one by one.) A stream is registered once it is open, and judged again then if the policies
//! have changed since it was let in: no change falls between.

use crate::{
    authz::access::{Access, AuthzContext, Denial, Request},
    downstream::{
        context::{Downstream, DownstreamTarget},
        gateway::Gateway,
        upgrade::Upgrade,
    },
    snapshot::Snapshot,
};
use karst_core::Identity;
use karst_policy::Path;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    ops::Deref,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::Notify;

/// Streams that are judged anew in one go. Then others of the worker have their turn: a change of policies with thousands of open
/// streams stops nobody's requests.
const AT_ONCE: usize = 16;

/// Whose policies decide.
pub enum Policies {
    /// Nobody's: everything is allowed.
    None,
    /// The service's.
    Service(Arc<Access>),
    /// This gateway's, or this waypoint's own.
    Gateway(Arc<Gateway>),
}

impl Policies {
    /// As [`Snapshot::access_to`] has it.
    pub fn of(snapshot: &Snapshot, target: &DownstreamTarget) -> Self {
        match target {
            DownstreamTarget::Service(service) if !service.is_workload_service() => {
                snapshot.access.get(&service.key).map_or(Policies::None, |a| Policies::Service(a.clone()))
            }
            DownstreamTarget::Service(_) | DownstreamTarget::Gateway(_) => {
                snapshot.gateway.as_ref().map_or(Policies::None, |g| Policies::Gateway(g.clone()))
            }
        }
    }

    /// The same as before? They are held, so that others cannot be where they were.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Policies::None, Policies::None) => true,
            (Policies::Service(a), Policies::Service(b)) => Arc::ptr_eq(a, b),
            (Policies::Gateway(a), Policies::Gateway(b)) => Arc::ptr_eq(a, b),
            (Policies::None | Policies::Service(_) | Policies::Gateway(_), _) => false,
        }
    }

    /// They themselves.
    pub fn access(&self) -> Option<&Access> {
        match self {
            Policies::None => None,
            Policies::Service(a) => Some(a),
            Policies::Gateway(g) => g.access.as_ref(),
        }
    }
}

struct Open {
    peer: Option<Identity>,
    source: IpAddr,
    /// The client, by the connection.
    from: IpAddr,
    destination: IpAddr,
    port: u16,
    sni: Option<String>,
    target: DownstreamTarget,
    request: Option<Box<Upgrade>>,
    /// By what it was judged last.
    policies: RefCell<Policies>,
    closing: RefCell<Option<Denial>>,
    notify: Notify,
}

impl Open {
    /// Judges it anew if the policies are others. True: it has to end now.
    fn recheck(&self, s: &Snapshot) -> bool {
        let new = Policies::of(s, &self.target);
        if new.same(&self.policies.borrow()) || self.closing.borrow().is_some() {
            return false;
        }
        let why = new.access().and_then(|a| self.refused(a));
        self.policies.replace(new);
        let ends = why.is_some();
        if ends {
            self.closing.replace(why);
            self.notify.notify_one();
        }
        ends
    }

    fn refused(&self, access: &Access) -> Option<Denial> {
        let shown = self.request.as_ref().and_then(|request| request.token.as_ref());
        if let Some(Err(why)) = shown.map(|shown| access.tokens.judge_again(&mut shown.borrow_mut())) {
            return Some(Denial::of_token(why));
        }
        let token = shown.and_then(|shown| shown.borrow().token());
        let path = self.request.as_ref().map(|r| Path::new(&r.path));
        let request = self.request.as_ref().zip(path.as_ref()).map(|(request, path)| Request {
            method: request.method.as_str(),
            authority: &request.authority,
            path,
            headers: &request.headers.all,
            known: request.headers.known.as_deref(),
            token: token.as_deref(),
        });
        let (peer, sni) = (self.peer.as_ref(), self.sni.as_deref());
        let (source, destination, port) = (self.source, self.destination, self.port);
        let remote = self.request.as_ref().map_or(self.from, |r| r.client);
        access.evaluate(&AuthzContext { peer, source, remote, destination, port, sni, request }).denial()
    }
}

/// The open streams of a worker.
#[derive(Default)]
pub struct Conns {
    open: RefCell<HashMap<u64, Rc<Open>>>,
    next: Cell<u64>,
}

/// A stream that is registered until this is dropped.
pub struct Guard {
    all: Rc<Conns>,
    id: u64,
    open: Rc<Open>,
}

impl Conns {
    /// Registers a stream that was let in by the policies of one snapshot, and judges it by those of the present.
    pub fn add(
        self: &Rc<Self>,
        judged: &Snapshot,
        now: &Snapshot,
        downstream: &Downstream,
        request: Option<Box<Upgrade>>,
        closed: &AtomicU64,
    ) -> Guard {
        let open = Rc::new(Open {
            peer: downstream.peer.clone(),
            source: downstream.direct(),
            from: downstream.from.ip(),
            destination: downstream.to,
            port: downstream.port,
            sni: downstream.sni().map(String::from),
            target: downstream.target.clone(),
            request,
            policies: RefCell::new(Policies::of(judged, &downstream.target)),
            closing: RefCell::default(),
            notify: Notify::new(),
        });
        if open.recheck(now) {
            closed.fetch_add(1, Relaxed);
        }
        let id = self.next.get();
        self.next.set(id + 1);
        self.open.borrow_mut().insert(id, open.clone());
        Guard { all: self.clone(), id, open }
    }

    /// After a change: ends what is no longer allowed, a few streams at a time, each by the newest of what is known then. (A change
    /// meanwhile means another pass for those that have been judged already. What is added is judged by what is then the present.)
    pub async fn recheck<S: Deref<Target = Snapshot>>(&self, newest: impl Fn() -> S, closed: &AtomicU64) {
        let all: Vec<u64> = self.open.borrow().keys().copied().collect();
        let mut rest = all.chunks(AT_ONCE).peekable();
        while let Some(some) = rest.next() {
            let snapshot = newest();
            // Those that have ended meanwhile are gone.
            let open = some.iter().filter_map(|id| self.open.borrow().get(id).cloned());
            let ended = open.filter(|o| o.recheck(&snapshot)).count();
            closed.fetch_add(ended as u64, Relaxed);
            if rest.peek().is_some() {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl Guard {
    /// Waits until a policy forbids it, and says which.
    pub async fn forbidden(&self) -> Denial {
        loop {
            if let Some(why) = self.open.closing.borrow().clone() {
                return why;
            }
            self.open.notify.notified().await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.all.open.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::downstream::upgrade::{KEPT, Kept};
    use http::{HeaderMap, HeaderName, Method};
    use karst_api::route as ir;
    use karst_policy::Attribute;
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    fn is_ready(f: impl Future) -> bool {
        pin!(f).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// A change of policies, with few streams.
    fn recheck(conns: &Conns, s: &Snapshot, closed: &AtomicU64) {
        assert!(is_ready(conns.recheck(|| s, closed)));
    }

    fn deny(attribute: Attribute, value: &str) -> ir::Access {
        let attribute = ir::Attribute::from(attribute) as i32;
        let tests = vec![ir::AccessTest { attribute, values: vec![value.into()], ..Default::default() }];
        let clauses = vec![ir::AccessClause { matches: vec![ir::AccessMatch { tests }] }];
        let mut p =
            ir::AccessPolicy { name: "ns/deny".into(), rules: vec![ir::AccessRule { clauses }], ..Default::default() };
        p.set_action(ir::AccessAction::Deny);
        ir::Access { policies: vec![p], ..Default::default() }
    }

    fn call(target: DownstreamTarget) -> Downstream {
        Downstream {
            peer: "spiffe://cluster.local/ns/app/sa/web".parse().ok(),
            from: ([10, 0, 0, 9], 4000).into(),
            source: None,
            target,
            port: 80,
            to: [10, 0, 0, 1].into(),
            hello: None,
            permit: None,
            entered: Default::default(),
            written: Default::default(),
        }
    }

    fn upgrade(path: &str) -> Option<Box<Upgrade>> {
        let (method, authority, client) = (Method::GET, "shop".to_string(), [10, 0, 0, 9].into());
        Some(Box::new(Upgrade { method, authority, path: path.into(), headers: Kept::default(), token: None, client }))
    }

    /// 10,000 open WebSockets once kept 600 MB of heads.
    #[test]
    fn of_a_long_head_only_what_policies_look_at_is_kept() {
        let mut h = HeaderMap::new();
        for (n, v) in [("x-role", "a"), ("x-role", "b"), ("x-other", "c")] {
            h.append(n, v.parse().unwrap());
        }
        let mut rule = deny(Attribute::Header, "x");
        rule.policies[0].rules[0].clauses[0].matches[0].tests[0].name = "x-role".into();
        let access = Access::new(&rule).unwrap();
        let size = |k: &Kept| k.all.iter().map(|(n, v)| n.as_str().len() + v.len()).sum::<usize>();
        let short = Kept::of(&h, None);
        assert!(short.known.is_none() && short.all["x-role"] == "a,b" && short.all["x-other"] == "c");
        h.insert("x-long", "y".repeat(KEPT).parse().unwrap());
        let (none, some) = (Kept::of(&h, None), Kept::of(&h, Some(&access)));
        assert_eq!((size(&none), size(&some)), (0, "x-rolea,b".len()));
        let role = HeaderName::from_static("x-role");
        assert_eq!([&none, &some].map(|k| k.known.as_ref().unwrap().contains(&role)), [false, true]);
    }

    #[test]
    fn a_new_deny_ends_open_streams_of_a_service() {
        let mut s = Snapshot::new("");
        s.mesh = karst_proxy::testing::snapshot(
            vec![],
            vec![karst_proxy::testing::service("shop", "10.1.0.1", &[(80, 80)])],
        );
        let service = s.mesh.services.values().next().unwrap().clone();
        let called = || call(DownstreamTarget::Service(service.clone()));
        let (conns, closed) = (Rc::new(Conns::default()), AtomicU64::new(0));
        let bytes = conns.add(&s, &s, &called(), None, &closed);
        let chat = conns.add(&s, &s, &called(), upgrade("/chat"), &closed);
        let news = conns.add(&s, &s, &called(), upgrade("/x;y/..%2f..%2fnews"), &closed);
        let before = s.clone();
        let put = |s: &mut Snapshot, a: ir::Access| {
            s.access.insert(service.key.clone(), Arc::new(Access::new(&a).unwrap()));
            recheck(&conns, s, &closed);
        };
        let ends = |g: &Guard| is_ready(g.forbidden());
        put(&mut s, deny(Attribute::Principal, "cluster.local/ns/other/*"));
        assert_eq!([&bytes, &chat, &news].map(ends), [false; 3], "another caller is meant");
        put(&mut s, deny(Attribute::Path, "/news"));
        // Of bytes it is not known what they ask for.
        assert_eq!([&bytes, &chat, &news].map(ends), [true, false, true]);
        assert_eq!(closed.load(Relaxed), 2);
        recheck(&conns, &s, &closed);
        assert_eq!(closed.load(Relaxed), 2, "each ends once");
        // One that was let in before, and is there only now.
        let late = conns.add(&before, &s, &called(), None, &closed);
        assert!(ends(&late) && closed.load(Relaxed) == 3);
        drop((bytes, chat, news, late));
        assert!(conns.open.borrow().is_empty());
    }

    #[test]
    fn many_open_streams_are_judged_a_few_at_a_time() {
        const MANY: usize = 100;
        let mut s = Snapshot::new("");
        let gateway = |access: Option<ir::Access>| {
            Some(Arc::new(Gateway::new(&ir::Gateway { access, ..Default::default() }).unwrap()))
        };
        s.gateway = gateway(None);
        let (conns, closed) = (Rc::new(Conns::default()), AtomicU64::new(0));
        let called = || call(DownstreamTarget::Gateway(Some("mail.example".into())));
        let mut guards: Vec<_> = (0..MANY).map(|_| conns.add(&s, &s, &called(), None, &closed)).collect();
        let before = s.clone();
        s.gateway = gateway(Some(deny(Attribute::Sni, "mail.*")));
        // Nothing is forbidden when the pass begins.
        let newest = RefCell::new(Arc::new(before.clone()));
        let mut f = pin!(conns.recheck(|| newest.borrow().clone(), &closed));
        let mut turn = || f.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(!turn() && closed.load(Relaxed) == 0, "others have their turn");
        newest.replace(Arc::new(s.clone()));
        assert!(!turn() && closed.load(Relaxed) == AT_ONCE as u64, "the rest is judged by what has come meanwhile");
        // Those that end meanwhile are not counted, and one that comes is judged by itself.
        guards.retain(|g| g.open.closing.borrow().is_some());
        let _late = conns.add(&before, &s, &called(), None, &closed);
        let turns = (0..MANY).take_while(|_| !turn()).count();
        assert!((1..MANY).contains(&turns), "{turns}");
        assert_eq!((guards.len(), closed.load(Relaxed)), (AT_ONCE, AT_ONCE as u64 + 1));
    }

    #[test]
    fn a_new_deny_ends_open_streams_of_a_gateway() {
        let mut s = Snapshot::new("");
        let gateway = |access: Option<ir::Access>| {
            Some(Arc::new(Gateway::new(&ir::Gateway { access, ..Default::default() }).unwrap()))
        };
        s.gateway = gateway(None);
        let (conns, closed) = (Rc::new(Conns::default()), AtomicU64::new(0));
        let [mail, web] = ["mail.example", "web.example"]
            .map(|sni| conns.add(&s, &s, &call(DownstreamTarget::Gateway(Some(sni.into()))), None, &closed));
        s.gateway = gateway(Some(deny(Attribute::Sni, "mail.*")));
        recheck(&conns, &s, &closed);
        assert!(is_ready(mail.forbidden()) && !is_ready(web.forbidden()));
    }
}
