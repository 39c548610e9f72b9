//! Who may read the page in the cluster: whoever logs in with a token that the API server knows, and of each namespace whoever may
//! list its pods.
//!
//! - The token is shown once, and kept in this process's memory while the session lasts: in no cookie, no file, no log. The browser
//!   keeps a secret of the session for one tab, and sends it as a header. So no other site can send it (CSRF), no other server of the
//!   same host is sent it, as cookies are (a port-forward is on the user's localhost), and it is good for nothing but this page.
//! - The API server is asked again about a token every minute, and about rights every few seconds, so what is taken away is gone then.
//!   What it does not say is not shown.
//! - Requests under a name that is not ours (DNS rebinding) or from another site are refused.

use super::{
    judge::{Judge, JudgeError, User},
    request::{Refused, TOKEN, own_site, text},
    session::{Session, Sessions},
};
use futures_util::{StreamExt, stream};
use hyper::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, HOST},
};
use karst_core::untrusted::Untrusted;
use karst_topology::Sight;
use std::{collections::BTreeSet, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Longest token, in bytes: those of identity providers have some thousands.
const LONGEST_TOKEN: usize = 16 << 10;
/// Tokens that are asked about at a time, so that whoever guesses does not keep the API server busy.
const LOGINS: usize = 8;
/// Whoever waits longer for that is told to try again.
const PATIENCE: Duration = Duration::from_secs(10);
/// A token that is refused takes up one of these places for this long.
const PENALTY: Duration = Duration::from_secs(1);
/// Questions about rights that the API server is asked at a time, for all sessions.
const AT_ONCE: usize = 8;
/// Names by which every user may reach the page: a port-forward.
const LOOPBACK: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// Why something is not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no such session, or it has ended.
    #[error("log in with your Kubernetes token")]
    NoSession,
    /// No token was shown.
    #[error("no token: paste one, as `kubectl create token ACCOUNT` prints it")]
    NoToken,
    /// It is nobody's.
    #[error("the API server does not accept this token: it may have expired, or be of another cluster")]
    Refused,
    /// Others are logging in.
    #[error("many are logging in: try again")]
    Busy,
    /// The API server cannot be asked.
    #[error("the API server cannot be asked at the moment: try again")]
    Unreachable,
}

impl Denied {
    /// The status to answer with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::NoSession | Self::NoToken | Self::Refused => StatusCode::UNAUTHORIZED,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// What is said of logins, for the log. No token is in it.
pub type Log = Box<dyn Fn(&str)>;

/// Lets users in.
pub struct Guard {
    judge: Rc<dyn Judge>,
    hosts: Vec<String>,
    sessions: Sessions,
    logins: Semaphore,
    questions: Semaphore,
    log: Log,
}

/// The host of `host` or `host:port`.
fn without_port(authority: &str) -> &str {
    let end = authority.rfind(':').filter(|at| !authority.ends_with(']') && *at > 0);
    end.map_or(authority, |at| authority.get(..at).unwrap_or_default())
}

impl Guard {
    /// `hosts`: names that the page is reached by, beside a port-forward's.
    pub fn new(judge: Rc<dyn Judge>, hosts: Vec<String>, log: Log) -> Self {
        let (sessions, logins, questions) = (Sessions::default(), Semaphore::new(LOGINS), Semaphore::new(AT_ONCE));
        Self { judge, hosts, sessions, logins, questions, log }
    }

    /// Is the request meant for this server?
    ///
    /// # Errors
    /// The status to answer with, and why.
    pub fn named(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let name = without_port(text(headers, HOST).unwrap_or_default());
        let mut own = LOOPBACK.into_iter().chain(self.hosts.iter().map(String::as_str));
        match own.any(|own| own.eq_ignore_ascii_case(name)) {
            true => Ok(()),
            false => Err((
                StatusCode::MISDIRECTED_REQUEST,
                "not a name of this server: those that it is reached by are set in dashboard.hosts",
            )),
        }
    }

    /// The same, and it is not sent by another site. (A gateway in front may have ended TLS.)
    ///
    /// # Errors
    /// The status to answer with, and why.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Refused> {
        self.named(headers)?;
        own_site(headers, text(headers, HOST).unwrap_or_default(), &["http://", "https://"])
    }

    /// A session for the token of `authorization`: its secret, and whose it is.
    ///
    /// # Errors
    /// If the API server does not say that the token is somebody's.
    pub async fn login(&self, headers: &HeaderMap) -> Result<(String, Rc<User>), Denied> {
        let token = text(headers, AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
        let token = token.filter(|token| (1..=LONGEST_TOKEN).contains(&token.len())).ok_or(Denied::NoToken)?;
        let Ok(Ok(_place)) = tokio::time::timeout(PATIENCE, self.logins.acquire()).await else {
            return Err(Denied::Busy);
        };
        match self.judge.user(token).await {
            Ok(user) => {
                (self.log)(&format!("logged in: {}", Untrusted(&user.name)));
                let session = Rc::new(Session::new(token, user));
                self.sessions.add(session.clone());
                Ok((session.secret().to_owned(), session.user()))
            }
            Err(JudgeError::Refused) => {
                (self.log)("a login was refused: the API server does not accept the token");
                tokio::time::sleep(PENALTY).await;
                Err(Denied::Refused)
            }
            Err(JudgeError::Unreachable(problem)) => {
                (self.log)(&format!("a login was not possible: {problem}"));
                Err(Denied::Unreachable)
            }
        }
    }

    /// Ends the session of a request.
    pub fn logout(&self, headers: &HeaderMap) {
        if let Some(session) = self.find(headers) {
            (self.log)(&format!("logged out: {}", Untrusted(&session.user().name)));
            self.sessions.end(session.secret());
        }
    }

    /// Who asks.
    ///
    /// # Errors
    /// If that is nobody who has logged in.
    pub async fn user(&self, headers: &HeaderMap) -> Result<Rc<User>, Denied> {
        Ok(self.session(headers).await?.user())
    }

    /// Which namespaces whoever asks may look into. `all`: those that there are; asked for only if they may not look into all.
    ///
    /// # Errors
    /// If that is nobody who has logged in, or their rights cannot be asked for.
    pub async fn sight(&self, headers: &HeaderMap, all: impl FnOnce() -> BTreeSet<Arc<str>>) -> Result<Sight, Denied> {
        let session = self.session(headers).await?;
        let everywhere = match session.everywhere() {
            Some(known) => known,
            None => self.ask(&session, None).await?,
        };
        if everywhere {
            return Ok(Sight::All);
        }
        let asked = stream::iter(session.due(&all())).map(|name| {
            let session = &session;
            async move { self.ask(session, Some(name)).await }
        });
        let mut answers = std::pin::pin!(asked.buffer_unordered(AT_ONCE));
        while let Some(answer) = answers.next().await {
            answer?;
        }
        Ok(Sight::Of(session.readable()))
    }

    fn find(&self, headers: &HeaderMap) -> Option<Rc<Session>> {
        self.sessions.find(text(headers, TOKEN)?)
    }

    /// The session of a request, whose token the API server has accepted lately.
    async fn session(&self, headers: &HeaderMap) -> Result<Rc<Session>, Denied> {
        let session = self.find(headers).ok_or(Denied::NoSession)?;
        if session.is_reviewed() {
            return Ok(session);
        }
        let is_theirs = match self.judge.user(session.token()).await {
            Ok(user) => session.review(user),
            Err(JudgeError::Refused) => false,
            Err(JudgeError::Unreachable(problem)) => return Err(self.unreachable(&problem)),
        };
        if is_theirs {
            return Ok(session);
        }
        (self.log)(&format!("session ended, its token is not accepted any more: {}", Untrusted(&session.user().name)));
        self.sessions.end(session.secret());
        Err(Denied::NoSession)
    }

    async fn ask(&self, session: &Session, namespace: Option<Arc<str>>) -> Result<bool, Denied> {
        // It is never closed.
        let _place = self.questions.acquire().await;
        let user = session.user();
        let may = self.judge.may_list_pods(&user, namespace.as_deref()).await;
        let may = may.map_err(|e| self.unreachable(&e))?;
        session.note(namespace.as_ref(), may);
        Ok(may)
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> Denied {
        let why = why.to_string();
        (self.log)(&format!("rights cannot be asked for: {}", why.lines().next().unwrap_or_default()));
        Denied::Unreachable
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::{page::judge::Judged, problem::Problem};
    use hyper::header::HeaderName;
    use std::cell::{Cell, RefCell};

    /// An API server: tokens and their users, who may list pods of the namespaces that are their groups; `*` is all.
    #[derive(Default)]
    struct Server {
        users: RefCell<Vec<(&'static str, User)>>,
        is_away: Cell<bool>,
        asked: Cell<usize>,
    }

    fn user(name: &str, namespaces: &[&str]) -> User {
        User { name: name.into(), groups: namespaces.iter().map(ToString::to_string).collect(), ..User::default() }
    }

    impl Server {
        fn away(&self) -> Result<(), JudgeError> {
            if self.is_away.get() { Err(Problem::new("connection refused").into()) } else { Ok(()) }
        }
    }

    impl Judge for Server {
        fn user<'a>(&'a self, token: &'a str) -> Judged<'a, User> {
            Box::pin(async move {
                self.away()?;
                let users = self.users.borrow();
                let found = users.iter().find(|(known, _)| *known == token);
                found.map(|(_, user)| user.clone()).ok_or(JudgeError::Refused)
            })
        }
        fn may_list_pods<'a>(&'a self, user: &'a User, namespace: Option<&'a str>) -> Judged<'a, bool> {
            Box::pin(async move {
                self.away()?;
                self.asked.set(self.asked.get() + 1);
                Ok(user.groups.iter().any(|group| group == namespace.unwrap_or("*")))
            })
        }
    }

    fn guard() -> (Rc<Server>, Guard, Rc<RefCell<String>>) {
        let (server, said) = (Rc::new(Server::default()), Rc::new(RefCell::new(String::new())));
        let log = said.clone();
        server.users.replace(vec![
            ("admins-token", user("admin", &["*"])),
            ("shops-token", user("system:serviceaccount:shop:viewer", &["shop"])),
        ]);
        let log: Log = Box::new(move |line| log.borrow_mut().push_str(line));
        (server.clone(), Guard::new(server, vec!["mesh.example.com".into()], log), said)
    }

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    async fn log_in(guard: &Guard, token: &str) -> HeaderMap {
        let (secret, _) = guard.login(&headers(&[("authorization", &format!("Bearer {token}"))])).await.unwrap();
        assert!(secret.len() == 64 && !secret.contains(token));
        headers(&[("x-karst-token", &secret)])
    }

    fn all() -> BTreeSet<Arc<str>> {
        ["bank", "istio-system", "shop"].into_iter().map(Arc::from).collect()
    }

    fn of(names: &[&str]) -> Sight {
        Sight::Of(names.iter().map(|name| (*name).into()).collect())
    }

    #[test]
    fn only_its_own_names_and_site_come_in() {
        let (_, guard, _) = guard();
        let status = |all: &[(&'static str, &str)]| guard.check(&headers(all)).err().map(|(status, _)| status.as_u16());
        for host in [
            "localhost:9090",
            "127.0.0.1",
            "[::1]",
            "[::1]:8080",
            "LocalHost:1",
            "mesh.example.com",
            "mesh.example.com:443",
        ] {
            assert_eq!(status(&[("host", host)]), None, "{host}");
            let origin = format!("https://{host}");
            assert_eq!(status(&[("host", host), ("origin", origin.as_str())]), None, "{host}");
        }
        for host in
            ["", "evil.example", "mesh.example.com.evil.example", "xmesh.example.com", ":8080", "127.0.0.1@evil"]
        {
            assert_eq!(status(&[("host", host)]), Some(421), "{host}");
        }
        let own = ("host", "mesh.example.com");
        for (name, value) in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "https://mesh.example.com:8443"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(status(&[own, (name, value)]), Some(403), "{name}: {value}");
        }
        // A link on another site may lead here: the page has nothing of the mesh.
        assert!(guard.named(&headers(&[own, ("sec-fetch-site", "cross-site")])).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_comes_in_without_a_token_that_the_api_server_knows() {
        let (server, guard, said) = guard();
        let login = async |value: &str| guard.login(&headers(&[("authorization", value)])).await.err();
        assert_eq!(guard.login(&headers(&[])).await.err(), Some(Denied::NoToken));
        for value in ["", "Bearer", "Bearer ", "Basic YTpi", "shops-token"] {
            assert_eq!(login(value).await, Some(Denied::NoToken), "{value:?}");
        }
        assert_eq!(login(&format!("Bearer {}", "x".repeat(LONGEST_TOKEN + 1))).await, Some(Denied::NoToken));
        for value in ["Bearer other", "Bearer shops-token2", "Bearer SHOPS-TOKEN"] {
            assert_eq!(login(value).await, Some(Denied::Refused), "{value:?}");
        }
        for secret in ["", "shops-token", &"0".repeat(64)] {
            let nobody = guard.sight(&headers(&[("x-karst-token", secret)]), all).await;
            assert_eq!(nobody, Err(Denied::NoSession), "{secret:?}: the token itself is no session");
        }
        server.is_away.set(true);
        assert_eq!(login("Bearer shops-token").await, Some(Denied::Unreachable));
        server.is_away.set(false);
        let own = log_in(&guard, "shops-token").await;
        assert_eq!(guard.user(&own).await.unwrap().name, "system:serviceaccount:shop:viewer");
        guard.logout(&own);
        assert_eq!(guard.user(&own).await.err(), Some(Denied::NoSession));
        let said = said.borrow();
        assert!(said.contains("logged in: system:serviceaccount:shop:viewer") && said.contains("logged out"), "{said}");
        assert!(!said.contains("shops-token"), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_is_seen_by_whoever_may_list_its_pods() {
        let (server, guard, _) = guard();
        let (admin, shop) = (log_in(&guard, "admins-token").await, log_in(&guard, "shops-token").await);
        assert_eq!(guard.sight(&admin, || unreachable!()).await, Ok(Sight::All));
        assert_eq!(server.asked.get(), 1, "one question");
        assert_eq!(guard.sight(&shop, all).await, Ok(of(&["shop"])));
        assert_eq!(server.asked.get(), 5, "about all namespaces, and about each");
        for _ in 0..10 {
            assert_eq!(guard.sight(&shop, all).await, Ok(of(&["shop"])));
        }
        assert_eq!(server.asked.get(), 5, "what is known is not asked for again");
        // What is taken away is gone after a few seconds, and so is whoever is deleted after a minute.
        server.users.borrow_mut()[1].1.groups = vec!["bank".into()];
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(guard.sight(&shop, all).await, Ok(of(&["bank"])));
        server.users.borrow_mut().truncate(1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(guard.sight(&shop, all).await, Err(Denied::NoSession));
        assert_eq!(guard.sight(&admin, all).await, Ok(Sight::All));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_shown_while_the_api_server_cannot_be_asked() {
        let (server, guard, _) = guard();
        let (admin, shop) = (log_in(&guard, "admins-token").await, log_in(&guard, "shops-token").await);
        assert_eq!(guard.sight(&shop, all).await, Ok(of(&["shop"])));
        server.is_away.set(true);
        assert_eq!(guard.sight(&admin, all).await, Err(Denied::Unreachable), "never asked");
        tokio::time::advance(Duration::from_secs(15)).await;
        assert_eq!(guard.sight(&shop, all).await, Err(Denied::Unreachable), "asked too long ago");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(guard.user(&shop).await.err(), Some(Denied::Unreachable));
        server.is_away.set(false);
        assert_eq!(guard.sight(&shop, all).await, Ok(of(&["shop"])), "the session has not ended by it");
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_are_few_and_do_not_keep_others_out() {
        let (_, guard, _) = guard();
        let began = tokio::time::Instant::now();
        let guesses = stream::iter(0..5 * LOGINS).map(|n| {
            let guard = &guard;
            async move { guard.login(&headers(&[("authorization", &format!("Bearer guess-{n}"))])).await.err() }
        });
        let guesses = guesses.buffer_unordered(5 * LOGINS).collect::<Vec<_>>();
        let (all, ()) = tokio::join!(guesses, async {
            tokio::task::yield_now().await;
            log_in(&guard, "shops-token").await;
            assert!(began.elapsed() <= 6 * PENALTY, "{:?}", began.elapsed());
        });
        assert!(all.iter().all(|end| *end == Some(Denied::Refused)), "{all:?}");
        assert!(began.elapsed() >= 5 * PENALTY, "{:?}", began.elapsed());
    }
}
