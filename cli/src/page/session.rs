//! A user who has logged in, and what is known of their rights: for seconds, and no right that could not be asked for.

use super::{
    judge::User,
    request::{random, same},
};
use karst_rt::clock::Instant;
use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// Most sessions; beyond, the one unused for longest ends, of the user who has the most.
const SESSIONS: usize = 256;
/// Of them one user's; beyond, the own one unused for longest ends.
const PER_USER: usize = 8;
/// A session ends when nobody has asked for this long; a page that is open asks every two seconds.
const IDLE: Duration = Duration::from_secs(30 * 60);
/// And after this time, whatever is asked.
const LONGEST: Duration = Duration::from_secs(12 * 3600);
/// The API server is asked again about a token after this time.
const REVIEW: Duration = Duration::from_secs(60);
/// And about a right that there was.
const ALLOWED: Duration = Duration::from_secs(15);
/// And about one that there was not.
const NOT_ALLOWED: Duration = Duration::from_secs(60);
/// Namespaces of one session about which the API server is asked for one request of the page; the others are not shown until the
/// next ones have asked.
const ASKED: usize = 64;

#[derive(Clone, Copy)]
struct Right {
    may: bool,
    at: Instant,
}

impl Right {
    fn holds(self, now: Instant) -> bool {
        now.duration_since(self.at) < if self.may { ALLOWED } else { NOT_ALLOWED }
    }
}

/// A user who has logged in.
pub(super) struct Session {
    secret: String,
    /// As it was shown: to ask about it again. Never written anywhere.
    token: String,
    user: RefCell<Rc<User>>,
    begun: Instant,
    used: Cell<Instant>,
    reviewed: Cell<Instant>,
    /// May they look into all namespaces?
    everywhere: Cell<Option<Right>>,
    rights: RefCell<HashMap<Arc<str>, Right>>,
}

impl Session {
    pub(super) fn new(token: &str, user: User) -> Self {
        let now = Instant::now();
        Self {
            secret: random(),
            token: token.to_owned(),
            user: RefCell::new(Rc::new(user)),
            begun: now,
            used: Cell::new(now),
            reviewed: Cell::new(now),
            everywhere: Cell::new(None),
            rights: RefCell::default(),
        }
    }

    /// What the page shows in place of the token.
    pub(super) fn secret(&self) -> &str {
        &self.secret
    }

    pub(super) fn token(&self) -> &str {
        &self.token
    }

    pub(super) fn user(&self) -> Rc<User> {
        self.user.borrow().clone()
    }

    /// Has the API server been asked about the token lately?
    pub(super) fn is_reviewed(&self) -> bool {
        self.reviewed.get().elapsed() < REVIEW
    }

    /// What the API server says now. False: the token is another's.
    pub(super) fn review(&self, user: User) -> bool {
        let known = self.user();
        if (&known.name, &known.uid) != (&user.name, &user.uid) {
            return false;
        }
        if *known != user {
            self.everywhere.set(None);
            self.rights.borrow_mut().clear();
            self.user.replace(Rc::new(user));
        }
        self.reviewed.set(Instant::now());
        true
    }

    /// May they look into all namespaces? None: that is to be asked for.
    pub(super) fn everywhere(&self) -> Option<bool> {
        self.everywhere.get().filter(|right| right.holds(Instant::now())).map(|right| right.may)
    }

    /// Notes a right; None: in all namespaces.
    pub(super) fn note(&self, namespace: Option<&Arc<str>>, may: bool) {
        let right = Right { may, at: Instant::now() };
        match namespace {
            Some(name) => drop(self.rights.borrow_mut().insert(name.clone(), right)),
            None => self.everywhere.set(Some(right)),
        }
    }

    /// Those of the namespaces that are to be asked about: what may be shown at present first, then what is new. What is not there any
    /// more is forgotten.
    pub(super) fn due(&self, all: &BTreeSet<Arc<str>>) -> Vec<Arc<str>> {
        let (mut rights, now) = (self.rights.borrow_mut(), Instant::now());
        rights.retain(|name, _| all.contains(name));
        let rank = |name: &Arc<str>| match rights.get(name) {
            Some(right) if right.holds(now) => None,
            Some(right) => Some(if right.may { 0 } else { 2 }),
            None => Some(1),
        };
        let mut due: Vec<(i32, &Arc<str>)> = all.iter().filter_map(|name| Some((rank(name)?, name))).collect();
        due.sort_by_key(|(rank, _)| *rank);
        due.into_iter().take(ASKED).map(|(_, name)| name.clone()).collect()
    }

    /// Those that they may look into, as it was said lately.
    pub(super) fn readable(&self) -> BTreeSet<Arc<str>> {
        let now = Instant::now();
        let rights = self.rights.borrow();
        rights.iter().filter(|(_, right)| right.may && right.holds(now)).map(|(name, _)| name.clone()).collect()
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.used.get()) >= IDLE || now.duration_since(self.begun) >= LONGEST
    }
}

/// Those who have logged in.
#[derive(Default)]
pub(super) struct Sessions(RefCell<Vec<Rc<Session>>>);

impl Sessions {
    /// Adds one; there is always room.
    pub(super) fn add(&self, session: Rc<Session>) {
        let (mut all, now) = (self.0.borrow_mut(), Instant::now());
        all.retain(|one| !one.is_over(now));
        let mut counts: HashMap<String, usize> = HashMap::new();
        all.iter().for_each(|one| *counts.entry(one.user().name.clone()).or_default() += 1);
        let name = &session.user().name;
        let count = |name: &str| counts.get(name).copied().unwrap_or_default();
        let is_full = count(name) >= PER_USER;
        if is_full || all.len() >= SESSIONS {
            let candidates = all.iter().enumerate().filter(|(_, one)| !is_full || one.user().name == *name);
            let worst = candidates.min_by_key(|(_, one)| (Reverse(count(&one.user().name)), one.used.get()));
            if let Some(at) = worst.map(|(at, _)| at) {
                all.swap_remove(at);
            }
        }
        all.push(session);
    }

    /// The one with a secret; it is in use.
    pub(super) fn find(&self, secret: &str) -> Option<Rc<Session>> {
        let (mut all, now) = (self.0.borrow_mut(), Instant::now());
        all.retain(|one| !one.is_over(now));
        let found = all.iter().find(|one| same(&one.secret, secret))?;
        found.used.set(now);
        Some(found.clone())
    }

    /// Ends the one with a secret.
    pub(super) fn end(&self, secret: &str) {
        self.0.borrow_mut().retain(|one| !same(&one.secret, secret));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User { name: name.into(), groups: vec!["all".into()], ..User::default() }
    }

    fn log_in(sessions: &Sessions, name: &str) -> Rc<Session> {
        let session = Rc::new(Session::new("token", user(name)));
        sessions.add(session.clone());
        session
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_nobody_asks_and_after_half_a_day() {
        let sessions = Sessions::default();
        let (used, idle) = (log_in(&sessions, "a"), log_in(&sessions, "b"));
        for _ in 0..IDLE.as_secs() / 60 {
            tokio::time::advance(Duration::from_secs(60)).await;
            assert!(sessions.find(used.secret()).is_some());
        }
        assert!(sessions.find(idle.secret()).is_none());
        while used.begun.elapsed() + IDLE / 2 < LONGEST {
            tokio::time::advance(IDLE / 2).await;
            assert!(sessions.find(used.secret()).is_some());
        }
        tokio::time::advance(IDLE / 2).await;
        assert!(sessions.find(used.secret()).is_none(), "in use, and too old");
        let other = log_in(&sessions, "a");
        assert!(sessions.find(&"0".repeat(64)).is_none() && sessions.find("").is_none());
        sessions.end(other.secret());
        assert!(sessions.find(other.secret()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_logs_in_again_and_again_pushes_nobody_else_out() {
        let sessions = Sessions::default();
        let quiet = log_in(&sessions, "quiet");
        let mut all = vec![];
        for n in 0..3 * SESSIONS {
            tokio::time::advance(Duration::from_millis(10)).await;
            all.push(log_in(&sessions, if n % 2 == 0 { "loud" } else { "louder" }));
        }
        assert!(sessions.find(quiet.secret()).is_some());
        let left = all.iter().filter(|one| sessions.find(one.secret()).is_some()).count();
        assert_eq!(left, 2 * PER_USER);
        // Many users, one of whom has several: the oldest of that one's goes.
        let sessions = Sessions::default();
        let several: Vec<Rc<Session>> = (0..3).map(|_| log_in(&sessions, "several")).collect();
        for n in 0..SESSIONS - 2 {
            tokio::time::advance(Duration::from_millis(10)).await;
            log_in(&sessions, &format!("user-{n}"));
        }
        let left = several.iter().filter(|one| sessions.find(one.secret()).is_some()).count();
        assert_eq!((left, sessions.0.borrow().len()), (2, SESSIONS));
    }

    fn names(count: usize) -> BTreeSet<Arc<str>> {
        (0..count).map(|n| format!("ns-{n:04}").into()).collect()
    }

    /// Whoever may look into some of very many namespaces goes on to see these, whatever else is to be asked.
    #[tokio::test(start_paused = true)]
    async fn rights_are_asked_for_again_and_those_that_there_were_first() {
        let session = Session::new("token", user("a"));
        let all = names(3 * ASKED);
        let mine = |name: &Arc<str>| name.ends_with('7');
        let ask = || {
            let due = session.due(&all);
            due.iter().for_each(|name| session.note(Some(name), mine(name)));
            due.len()
        };
        assert_eq!([ask(), ask(), ask(), ask()], [ASKED, ASKED, ASKED, 0], "so many at a time");
        let readable = all.iter().filter(|name| mine(name)).count();
        assert_eq!(session.readable().len(), readable);
        tokio::time::advance(ALLOWED).await;
        assert!(session.readable().is_empty(), "what was not asked for again is not shown");
        assert_eq!((ask(), session.readable().len()), (readable, readable), "refusals are remembered for longer");
        tokio::time::advance(NOT_ALLOWED).await;
        let due = session.due(&all);
        assert!(due.len() == ASKED && due.iter().take(readable).all(mine), "{due:?}");
        session.due(&names(1));
        assert!(session.rights.borrow().len() <= 1, "of namespaces that are gone nothing is kept");
    }

    #[tokio::test(start_paused = true)]
    async fn other_groups_have_other_rights_and_another_user_is_nobody() {
        let session = Session::new("token", user("a"));
        session.note(None, true);
        session.note(Some(&"shop".into()), true);
        assert!(session.is_reviewed() && session.everywhere() == Some(true));
        tokio::time::advance(REVIEW).await;
        assert!(!session.is_reviewed() && session.everywhere().is_none());
        session.note(None, true);
        assert!(session.review(user("a")) && session.is_reviewed() && session.everywhere() == Some(true));
        assert!(session.review(User { groups: vec![], ..user("a") }));
        assert!(session.everywhere().is_none() && session.readable().is_empty());
        for other in [user("b"), User { uid: "2".into(), ..user("a") }] {
            assert!(!session.review(other));
        }
    }
}
