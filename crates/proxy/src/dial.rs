//! The one way to an endpoint, for the node proxy and the layer 7 proxy: resolve its name, connect to it, or open a stream on a
//! tunnel to it whose other end has proven who it is. The choice among endpoints is the caller's, who is told which could not be
//! reached.
//!
//! What must always hold: an endpoint of a service that has not answered for [`limits::FIRST_TRY`] is not waited for where there
//! is another that is not avoided itself; it is avoided for [`limits::AVOID`]; a tunnel whose peer did not answer gets no further
//! stream ([`Pool::open`]).

use crate::{
    resolve::{ResolveError, Resolver},
    secrets::Secrets,
    state::{Snapshot, Workload},
};
use http::{HeaderMap, HeaderValue};
use karst_core::{Identity, limits};
use karst_hbone::{
    Settings,
    client::{self, ClientError},
    pool::{Opened, Pool},
};
use karst_rt::socket::{self, Keepalive, NetnsConnector};
use std::{
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

/// Why there is no connection to an endpoint. Nobody has seen a byte of what was to be sent there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    /// There is no certificate of ours to show.
    #[error("there is no certificate for {0} (yet)")]
    NoCertificate(Identity),
    /// The endpoint's host name has no address.
    #[error("{0}")]
    Resolve(Arc<ResolveError>),
    /// No connection without a tunnel.
    #[error("connect: {0}")]
    Connect(Arc<io::Error>),
    /// It has not answered, and there are others.
    #[error("connect: no answer within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// No stream on a tunnel.
    #[error(transparent)]
    Tunnel(#[from] ClientError),
}

impl DialError {
    /// May another endpoint be tried? What has gone wrong is this one's matter.
    pub fn may_retry(&self) -> bool {
        match self {
            DialError::NoCertificate(_) => false,
            DialError::Resolve(_) | DialError::Connect(_) | DialError::NoAnswer(_) => true,
            DialError::Tunnel(e) => e.may_retry(),
        }
    }
}

/// A stream on a tunnel: to whom, and what is asked for there.
pub struct Target<'a> {
    /// Where the tunnel is made from.
    pub connector: &'a NetnsConnector,
    /// The pod whose tunnel it is, by its uid; empty: this process itself.
    pub pod: &'a str,
    /// Whose certificate is shown.
    pub own: &'a Identity,
    /// Who has the address.
    pub peer: &'a Workload,
    /// Where the tunnel goes.
    pub address: SocketAddr,
    /// Who may answer; nothing is sent to anybody else.
    pub expected: &'a [Identity],
    /// The CONNECT authority.
    pub authority: &'a str,
    /// See [`headers`].
    pub headers: HeaderMap,
}

/// What is known of an endpoint by trying.
pub trait Endpoint {
    /// It could not be reached: for [`limits::AVOID`] others are better.
    fn avoid(&self);
}

/// The endpoint of a service that was chosen.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// Which.
    pub endpoint: &'a dyn Endpoint,
    /// Is there another one that would be tried, and is not avoided? Asked when this one has not answered for
    /// [`limits::FIRST_TRY`].
    pub has_other: &'a dyn Fn() -> bool,
}

/// Which tunnel: whose, to where, who must answer.
#[derive(Clone, PartialEq, Eq, Hash)]
struct TunnelKey {
    pod: String,
    to: SocketAddr,
    /// The workload that has that address: with another one there, the tunnel is another.
    peer: Arc<str>,
    expected: Identity,
}

impl TunnelKey {
    /// Is the workload still what it was when the tunnel was opened?
    fn is_current(&self, snapshot: &Snapshot) -> bool {
        snapshot.workloads.get(&self.peer).is_some_and(|w| w.ips.contains(&self.to.ip()) && w.identity == self.expected)
    }
}

/// A worker's connections to endpoints.
pub struct Dialer {
    pool: Rc<Pool<TunnelKey>>,
    secrets: Secrets,
    settings: Settings,
    keepalive: Option<Keepalive>,
    resolver: Resolver,
    first_try: Duration,
    unanswered: Duration,
}

/// Somebody waits for an endpoint's answer. One who stops waiting says nothing of it, unless that was after a while.
struct Waiting<'a> {
    endpoint: &'a dyn Endpoint,
    since: Instant,
    /// So long is a while.
    unanswered: Duration,
    over: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over && self.since.elapsed() >= self.unanswered {
            self.endpoint.avoid();
        }
    }
}

impl Dialer {
    /// A dialer without tunnels. `resolv_conf`: by which resolvers endpoints' names are looked up.
    pub fn new(secrets: Secrets, settings: Settings, keepalive: Option<Keepalive>, resolv_conf: PathBuf) -> Self {
        Self {
            pool: Pool::new(settings.pool_streams, settings.pool_idle),
            secrets,
            settings,
            keepalive,
            resolver: Resolver::new(resolv_conf),
            first_try: limits::FIRST_TRY,
            unanswered: limits::UNANSWERED,
        }
    }

    /// The addresses of an endpoint's host name, those of the wanted family if there are any. Not empty.
    ///
    /// # Errors
    /// [`DialError::Resolve`], with the name.
    pub async fn lookup(&self, host: &str, ipv4: bool) -> Result<Vec<IpAddr>, DialError> {
        self.resolver.lookup(host, ipv4).await.map_err(|e| DialError::Resolve(e.into()))
    }

    /// Connects to an endpoint that takes no tunnels. `source`: an address of the origin's that the client has chosen.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect(
        &self,
        connector: &NetnsConnector,
        source: Option<IpAddr>,
        to: SocketAddr,
        candidate: Option<Candidate<'_>>,
    ) -> Result<TcpStream, DialError> {
        let work = pin!(async {
            let done = match source {
                Some(ip) => connector.connect_from(ip, to, limits::CONNECT_TIMEOUT).await,
                None => connector.connect(to, limits::CONNECT_TIMEOUT).await,
            };
            let stream = done.map_err(|e| DialError::Connect(e.into()))?;
            if let Some(keepalive) = &self.keepalive {
                socket::keepalive(&stream, keepalive);
            }
            Ok(stream)
        });
        self.reach(candidate, work).await
    }

    /// Opens a stream on a tunnel. (The wait for a certificate of ours is not the endpoint's.)
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn tunnel(&self, target: &Target<'_>, candidate: Option<Candidate<'_>>) -> Result<Opened, DialError> {
        let (own, to) = (target.own, target.address);
        let creds = match self.secrets.now(own) {
            Some(c) => Some(c),
            None => self.secrets.clone().get(own, limits::HOLD_TIMEOUT).await,
        };
        let creds = creds.ok_or_else(|| DialError::NoCertificate(own.clone()))?;
        let key = TunnelKey {
            pod: target.pod.into(),
            to,
            peer: target.peer.uid.clone(),
            expected: target.peer.identity.clone(),
        };
        let connect = || {
            let (connector, creds, keepalive) = (target.connector.clone(), creds.clone(), self.keepalive);
            let (settings, expected) = (self.settings.clone(), target.expected.to_vec());
            async move {
                let tcp = connector
                    .connect(to, limits::CONNECT_TIMEOUT)
                    .await
                    .map_err(|e| ClientError::Connect(to, e.into()))?;
                if let Some(k) = &keepalive {
                    socket::keepalive(&tcp, k);
                }
                client::handshake(tcp, to, &creds, &expected, &settings).await
            }
        };
        let work = pin!(async { Ok(self.pool.open(&key, connect, target.authority, &target.headers).await?) });
        self.reach(candidate, work).await
    }

    /// Waits for an endpoint: not long where there are others.
    async fn reach<T>(
        &self,
        candidate: Option<Candidate<'_>>,
        work: Pin<&mut impl Future<Output = Result<T, DialError>>>,
    ) -> Result<T, DialError> {
        let Some(Candidate { endpoint, has_other }) = candidate else { return work.await };
        let (since, unanswered) = (Instant::now(), self.unanswered);
        let mut waiting = Waiting { endpoint, since, unanswered, over: false };
        let early = async {
            sleep(self.first_try).await;
            if !has_other() {
                pending::<()>().await;
            }
        };
        let done = tokio::select! {
            biased;
            r = work => r,
            () = early => Err(DialError::NoAnswer(self.first_try)),
        };
        waiting.over = true;
        if done.as_ref().is_err_and(DialError::may_retry) {
            endpoint.avoid();
        }
        done
    }

    /// Puts nothing more on tunnels to workloads that are gone, or are not what they were; what is open there goes on.
    pub fn retire(&self, snapshot: &Snapshot) {
        self.pool.retire(|k| !k.is_current(snapshot));
    }

    /// Puts nothing more on a pod's tunnels.
    pub fn retire_pod(&self, uid: &str) {
        self.pool.retire(|k| k.pod == uid);
    }
}

/// Headers of a CONNECT (docs/hbone.md §4.3). `baggage`: of who opens the stream; `from`: its client; `service`: the host name of
/// the service that was called.
pub fn headers(baggage: Option<&HeaderValue>, from: SocketAddr, service: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    if let Some(baggage) = baggage {
        headers.insert("baggage", baggage.clone());
    }
    let forwarded = match service {
        Some(host) if !host.is_empty() => format!("for=\"{from}\";host={host}"),
        Some(_) | None => format!("for=\"{from}\""),
    };
    if let Ok(value) = forwarded.try_into() {
        headers.insert("forwarded", value);
    }
    let (id, span): (u128, u64) = (rand::random(), rand::random());
    if let Ok(value) = format!("00-{id:032x}-{span:016x}-00").try_into() {
        headers.insert("traceparent", value);
    }
    headers
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::{
        testing::{Ca, pod, snapshot},
        unreachable::Unreachable,
    };
    use http::Response;
    use karst_hbone::server;
    use karst_rt::drain;
    use std::cell::{Cell, RefCell};
    use tokio::{
        net::TcpListener,
        task::{LocalSet, spawn_local},
        time::timeout,
    };

    // Short, and in this order (limits has FIRST_TRY, AVOID and CONNECT_TIMEOUT).
    const TRY: Duration = Duration::from_millis(300);
    const PATIENCE: Duration = Duration::from_secs(5);

    /// What a peer does with a stream, by its number.
    #[derive(Clone, Copy)]
    enum Does {
        Answer(u16),
        /// Nothing: as if its node was lost.
        Nothing,
    }

    /// A peer that takes tunnels.
    struct Peer {
        at: SocketAddr,
        tunnels: Cell<usize>,
        streams: Cell<usize>,
        /// Headers of the newest stream.
        headers: RefCell<HeaderMap>,
    }

    impl Peer {
        async fn start(ca: &Ca, who: &Identity, does: impl Fn(usize) -> Does + 'static) -> Rc<Self> {
            let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = l.local_addr().unwrap();
            let peer = Rc::new(Self { at, tunnels: Cell::new(0), streams: Cell::new(0), headers: RefCell::default() });
            let (creds, does, me) = (Rc::new(ca.credentials(who)), Rc::new(does), peer.clone());
            spawn_local(async move {
                while let Ok((s, _)) = l.accept().await {
                    me.tunnels.set(me.tunnels.get() + 1);
                    let (creds, does, me) = (creds.clone(), does.clone(), me.clone());
                    spawn_local(async move {
                        let Ok((stream, _)) = server::handshake(s, &creds).await else { return };
                        let ((_drain, watch), settings) = (drain::new(), Settings::default());
                        let unanswered = RefCell::new(vec![]);
                        let on_stream = |mut c: server::Connect| {
                            let n = me.streams.replace(me.streams.get() + 1);
                            *me.headers.borrow_mut() = c.request.headers().clone();
                            match does(n) {
                                Does::Nothing => unanswered.borrow_mut().push(c),
                                Does::Answer(status) => {
                                    let mut r = Response::new(());
                                    *r.status_mut() = status.try_into().unwrap();
                                    let _ = c.respond.send_response(r, true);
                                }
                            }
                        };
                        let _ = server::serve(stream, &settings, watch, on_stream).await;
                    });
                }
            });
            peer
        }
    }

    /// What is learnt of the one endpoint.
    #[derive(Default)]
    struct Learnt(Cell<bool>);

    impl Endpoint for Learnt {
        fn avoid(&self) {
            self.0.set(true);
        }
    }

    struct Client {
        dialer: Dialer,
        learnt: Learnt,
        own: Identity,
        to: Arc<Workload>,
    }

    impl Client {
        fn new(ca: &Ca) -> Self {
            let s = snapshot(vec![pod("a", "127.0.0.2", &[]), pod("b", "127.0.0.1", &[])], vec![]);
            let of = |ip: &str| s.workload(ip.parse().unwrap()).unwrap().clone();
            let own = of("127.0.0.2").identity.clone();
            let secrets = Secrets::fixed([ca.credentials(&own)]);
            let mut dialer = Dialer::new(secrets, Settings::default(), None, "/dev/null".into());
            (dialer.first_try, dialer.unanswered) = (TRY, TRY / 3);
            Self { dialer, learnt: Learnt::default(), own, to: of("127.0.0.1") }
        }
        fn target(&self, at: SocketAddr) -> Target<'_> {
            static HOST: std::sync::LazyLock<NetnsConnector> = std::sync::LazyLock::new(NetnsConnector::host);
            let (connector, own, peer) = (&*HOST, &self.own, &*self.to);
            let expected = std::slice::from_ref(&self.to.identity);
            Target {
                connector,
                pod: "",
                own,
                peer,
                address: at,
                expected,
                authority: "10.0.0.1:80",
                headers: HeaderMap::new(),
            }
        }
        /// A stream to an endpoint of a service, with others or without.
        async fn open(&self, at: SocketAddr, others: bool) -> Result<Opened, DialError> {
            let candidate = Candidate { endpoint: &self.learnt, has_other: &|| others };
            let target = self.target(at);
            let opened = self.dialer.tunnel(&target, Some(candidate));
            timeout(PATIENCE, opened).await.unwrap_or_else(|_| panic!("no end"))
        }
        fn avoids(&self) -> bool {
            self.learnt.0.get()
        }
    }

    async fn run<T>(f: impl AsyncFnOnce(Ca, Client) -> T) -> T {
        let ca = Ca::mint();
        let client = Client::new(&ca);
        LocalSet::new().run_until(f(ca, client)).await
    }

    #[tokio::test]
    async fn a_first_try_that_stays_silent_is_not_waited_for() {
        run(async |_, c| {
            // The connection is taken by the kernel, and nobody ever speaks.
            let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = l.local_addr().unwrap();
            let began = Instant::now();
            let e = c.open(at, true).await.err().unwrap();
            assert!(matches!(e, DialError::NoAnswer(_)) && e.may_retry(), "{e}");
            assert!(began.elapsed() >= TRY && began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
            assert!(c.avoids());
            // Without another one it gets all the time there is.
            let candidate = Candidate { endpoint: &c.learnt, has_other: &|| false };
            assert!(timeout(TRY * 3, c.dialer.tunnel(&c.target(at), Some(candidate))).await.is_err());
            assert!(timeout(TRY * 3, c.dialer.tunnel(&c.target(at), None)).await.is_err());
        })
        .await;
    }

    #[tokio::test]
    async fn who_stops_waiting_says_something_of_the_endpoint_after_a_while() {
        run(async |_, c| {
            let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = l.local_addr().unwrap();
            let wait = async |time: Duration| {
                let candidate = Candidate { endpoint: &c.learnt, has_other: &|| true };
                assert!(timeout(time, c.dialer.tunnel(&c.target(at), Some(candidate))).await.is_err());
                c.avoids()
            };
            assert!(!wait(TRY / 30).await, "the client has left at once");
            assert!(wait(TRY * 2 / 3).await);
        })
        .await;
    }

    #[tokio::test]
    async fn a_tunnel_without_an_answer_is_taken_out_of_use() {
        run(async |ca, c| {
            let does = |n| if n == 1 { Does::Nothing } else { Does::Answer(200) };
            let p = Peer::start(&ca, &c.to.identity, does).await;
            c.open(p.at, true).await.unwrap();
            assert!(!c.avoids());
            let e = c.open(p.at, true).await.err().unwrap();
            assert!(matches!(e, DialError::NoAnswer(_)), "{e}");
            assert_eq!((p.tunnels.get(), p.streams.get()), (1, 2), "it was asked on the tunnel that was there");
            c.open(p.at, true).await.unwrap();
            assert_eq!(p.tunnels.get(), 2, "and is asked on a fresh one");
        })
        .await;
    }

    #[tokio::test]
    async fn causes_are_told_apart() {
        run(async |ca, c| {
            // Nobody listens.
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let e = c.open(free, true).await.err().unwrap();
            let refused = |e: &io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
            assert!(matches!(&e, DialError::Tunnel(ClientError::Connect(_, io)) if refused(io)), "{e}");
            let candidate = Candidate { endpoint: &c.learnt, has_other: &|| true };
            let connector = NetnsConnector::host();
            let e = c.dialer.connect(&connector, None, free, Some(candidate)).await.err().unwrap();
            assert!(matches!(&e, DialError::Connect(io) if refused(io)) && c.avoids(), "{e}");
            // Somebody else.
            let p = Peer::start(&ca, &c.own, |_| Does::Answer(200)).await;
            let e = c.open(p.at, true).await.err().unwrap();
            assert!(matches!(&e, DialError::Tunnel(ClientError::PeerIdentity { shown, .. }) if *shown == c.own), "{e}");
            assert_eq!(p.streams.get(), 0, "nothing was sent");
            // Nobody of the mesh.
            let p = Peer::start(&Ca::mint(), &c.to.identity, |_| Does::Answer(200)).await;
            let e = c.open(p.at, true).await.err().unwrap();
            assert!(matches!(e, DialError::Tunnel(ClientError::Tls(..))), "{e}");
            // No certificate of ours.
            let nobody: Identity = "spiffe://cluster.local/ns/x/sa/x".parse().unwrap();
            let e = c.dialer.tunnel(&Target { own: &nobody, ..c.target(p.at) }, None).await.err().unwrap();
            assert!(matches!(&e, DialError::NoCertificate(id) if *id == nobody) && !e.may_retry(), "{e}");
        })
        .await;
    }

    #[tokio::test]
    async fn what_all_endpoints_would_refuse_is_held_against_none() {
        for (status, of_endpoint) in [
            (503, true),
            (504, true),
            (404, false),
            (400, false),
            (401, false),
            (403, false),
            (421, false),
            (500, false),
        ] {
            run(async |ca, c| {
                let p = Peer::start(&ca, &c.to.identity, move |_| Does::Answer(status)).await;
                let e = c.open(p.at, true).await.err().unwrap();
                assert!(matches!(&e, DialError::Tunnel(ClientError::Status(s)) if s.as_u16() == status), "{e}");
                assert_eq!((e.may_retry(), c.avoids()), (of_endpoint, of_endpoint), "{status}");
            })
            .await;
        }
    }

    #[tokio::test]
    async fn tunnels_of_workloads_that_are_gone_get_no_more_streams() {
        run(async |ca, c| {
            let p = Peer::start(&ca, &c.to.identity, |_| Does::Answer(200)).await;
            c.open(p.at, true).await.unwrap();
            let with = |name: &str| snapshot(vec![pod(name, "127.0.0.1", &[])], vec![]);
            c.dialer.retire(&with("b"));
            c.open(p.at, true).await.unwrap();
            assert_eq!(p.tunnels.get(), 1, "it is still there");
            c.dialer.retire(&with("other"));
            c.open(p.at, true).await.unwrap();
            assert_eq!(p.tunnels.get(), 2);
        })
        .await;
    }

    #[tokio::test]
    async fn a_stream_says_who_has_opened_it() {
        run(async |ca, c| {
            let p = Peer::start(&ca, &c.to.identity, |_| Does::Answer(200)).await;
            let from = "192.0.2.1:5".parse().unwrap();
            let ask = async |service: Option<&str>| {
                let headers = headers(Some(&HeaderValue::from_static("k8s.pod.name=a")), from, service);
                c.dialer.tunnel(&Target { headers, ..c.target(p.at) }, None).await.unwrap();
                let h = p.headers.borrow();
                ["baggage", "forwarded", "traceparent"].map(|n| h.get(n).unwrap().to_str().unwrap().to_string())
            };
            let [baggage, forwarded, trace] = ask(Some("web.app")).await;
            assert_eq!((&*baggage, &*forwarded), ("k8s.pod.name=a", "for=\"192.0.2.1:5\";host=web.app"));
            assert!(trace.len() == 55 && trace.starts_with("00-") && trace.ends_with("-00"), "{trace}");
            for none in [None, Some("")] {
                assert_eq!(ask(none).await[1], "for=\"192.0.2.1:5\"");
            }
        })
        .await;
    }

    /// With the limits that are in force, and a clock of the test's own: who is waited for, how long, and what is learnt of it.
    struct Reach {
        dialer: Dialer,
        learnt: Learnt,
        /// How often it was asked whether there is another endpoint.
        asked: Cell<usize>,
    }

    impl Reach {
        fn new() -> Self {
            let dialer = Dialer::new(Secrets::fixed([]), Settings::default(), None, "/dev/null".into());
            Self { dialer, learnt: Learnt::default(), asked: Cell::default() }
        }
        /// How it went with an endpoint that answers so after this time, and when.
        async fn reach(
            &self,
            after: Duration,
            answer: Result<(), DialError>,
            others: bool,
        ) -> (Result<(), DialError>, Duration) {
            let has_other = || {
                self.asked.set(self.asked.get() + 1);
                others
            };
            let candidate = Candidate { endpoint: &self.learnt, has_other: &has_other };
            let began = Instant::now();
            let work = pin!(async {
                sleep(after).await;
                answer
            });
            let result = self.dialer.reach(Some(candidate), work).await;
            (result, began.elapsed())
        }
        /// Is it avoided now? Forgets it.
        fn avoids(&self) -> bool {
            self.learnt.0.take()
        }
    }

    /// A timer ends in the millisecond after its time.
    const TICK: Duration = Duration::from_millis(2);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn the_first_try_has_its_time_and_no_more() {
        let test = Reach::new();
        let (result, took) = test.reach(LONG, Ok(()), true).await;
        assert!(matches!(result, Err(DialError::NoAnswer(limit)) if limit == limits::FIRST_TRY), "{result:?}");
        assert!((limits::FIRST_TRY..limits::FIRST_TRY + TICK).contains(&took), "{took:?}");
        assert!(test.avoids());
        assert_eq!(test.asked.get(), 1);
        // One that answers just in time is taken, and nobody asks for others.
        let (result, took) = test.reach(limits::FIRST_TRY - TICK, Ok(()), true).await;
        assert!(result.is_ok() && took < limits::FIRST_TRY && !test.avoids());
        assert_eq!(test.asked.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_only_endpoint_is_waited_for() {
        let test = Reach::new();
        let (result, took) = test.reach(LONG, Ok(()), false).await;
        assert!(result.is_ok() && took >= LONG && !test.avoids());
        assert_eq!(test.asked.get(), 1, "there was no other when its time was over");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_another_endpoint_may_heal_is_held_against_it() {
        let test = Reach::new();
        let nobody: Identity = "spiffe://cluster.local/ns/x/sa/x".parse().unwrap();
        let refused = || DialError::Connect(Arc::new(io::ErrorKind::ConnectionRefused.into()));
        for (error, avoided) in [
            (refused(), true),
            (ClientError::Stream("broken".into()).into(), true),
            (ClientError::Status(http::StatusCode::SERVICE_UNAVAILABLE).into(), true),
            (ClientError::Status(http::StatusCode::UNAUTHORIZED).into(), false),
            (DialError::NoCertificate(nobody), false),
        ] {
            let text = error.to_string();
            let (result, took) = test.reach(TICK, Err(error), true).await;
            assert!(result.is_err() && took < limits::FIRST_TRY, "{text}");
            assert_eq!(test.avoids(), avoided, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_early_says_nothing_of_the_endpoint() {
        let test = Reach::new();
        for (patience, avoided) in [(limits::UNANSWERED - TICK, false), (limits::UNANSWERED + TICK, true)] {
            assert!(timeout(patience, test.reach(LONG, Ok(()), false)).await.is_err());
            assert_eq!(test.avoids(), avoided, "{patience:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_endpoint_is_tried_again_after_a_while() {
        let (dialer, all) = (Reach::new().dialer, Unreachable::new(limits::AVOID));
        let (lost, port): (Arc<str>, u16) = ("lost".into(), 80);
        let endpoint = all.endpoint(&lost, Some(port));
        let candidate = Candidate { endpoint: &endpoint, has_other: &|| true };
        let result = dialer.reach(Some(candidate), pin!(pending::<Result<(), DialError>>())).await;
        assert!(result.is_err() && all.avoids(&lost, port));
        sleep(limits::AVOID - TICK).await;
        assert!(all.avoids(&lost, port));
        sleep(TICK * 2).await;
        assert!(!all.avoids(&lost, port));
    }
}
