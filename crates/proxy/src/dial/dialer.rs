//! A worker's connections and tunnels to endpoints.

use super::{
    candidate::{Candidate, Patience},
    error::DialError,
};
use crate::{
    resolve::Resolver,
    secrets::Secrets,
    state::{Snapshot, Workload},
};
use http::HeaderMap;
use karst_core::{Identity, limits};
use karst_hbone::{
    Settings,
    client::{self, ClientError},
    pool::{Opened, Pool},
};
use karst_rt::{
    backoff::Backoff,
    clock::Instant,
    socket::{self, Keepalive, NetnsConnector},
    turns,
};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpStream;

/// The next stream of an interrupted connection is asked for this long, and so often.
const AGAIN_FOR: Duration = Duration::from_secs(10);
const AGAIN_FIRST: Duration = Duration::from_millis(10);
const AGAIN_CAP: Duration = Duration::from_millis(500);

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
    /// Makes what a CONNECT says, for each that is sent: see [`super::headers()`].
    pub headers: &'a dyn Fn() -> HeaderMap,
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
    patience: Patience,
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
            patience: Patience::default(),
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
        self.patience.reach(candidate, work).await
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
            let (mut settings, expected) = (self.settings.clone(), target.expected.to_vec());
            let of_pod = |key: &TunnelKey| key.pod == target.pod;
            // A process's own are shared by all whom it serves: they are nobody's, and have no share.
            let share = if target.pod.is_empty() { None } else { turns::current() };
            if !target.pod.is_empty() {
                let tunnels = self.pool.make_room(of_pod, limits::MAX_IDLE_TUNNELS_OF_POD);
                settings = settings.beside(tunnels);
            }
            let drives = share.clone();
            let connecting = async move {
                let tcp = connector
                    .connect(to, limits::CONNECT_TIMEOUT)
                    .await
                    .map_err(|e| ClientError::Connect(to, e.into()))?;
                if let Some(k) = &keepalive {
                    socket::keepalive(&tcp, k);
                }
                let (send, drive) = client::handshake(tcp, to, &creds, &expected, &settings).await?;
                Ok::<_, ClientError>((send, turns::of(drives, Box::pin(drive))))
            };
            turns::of(share, Box::pin(connecting))
        };
        let work = pin!(async { Ok(self.pool.open(&key, connect, target.authority, target.headers).await?) });
        self.patience.reach(candidate, work).await
    }

    /// The next stream of a connection whose stream was interrupted (docs/hbone.md §10.6): the headers name the token. The process that
    /// has the connection may not be there yet, so it is asked for some time, as long as nobody can have taken the token: it works once.
    ///
    /// # Errors
    /// There is none, and will be none: see [`DialError`].
    pub async fn again(&self, target: &Target<'_>) -> Result<Opened, DialError> {
        self.insistently(target, DialError::may_retry).await
    }

    /// The next stream of a connection whose tunnel has broken (docs/hbone.md §11). The headers name the token, and how far our side has
    /// come: so it may be asked again also where there was no answer.
    ///
    /// # Errors
    /// As above.
    pub async fn go_on(&self, target: &Target<'_>) -> Result<Opened, DialError> {
        let may_retry = |e: &DialError| e.may_retry() || matches!(e, DialError::Tunnel(ClientError::Unanswered(_)));
        self.insistently(target, may_retry).await
    }

    async fn insistently(
        &self,
        target: &Target<'_>,
        may_retry: impl Fn(&DialError) -> bool,
    ) -> Result<Opened, DialError> {
        let (until, mut backoff) = (Instant::now() + AGAIN_FOR, Backoff::new(AGAIN_FIRST, AGAIN_CAP));
        loop {
            match self.tunnel(target, None).await {
                Ok(opened) => return Ok(opened),
                Err(e) if may_retry(&e) && Instant::now() < until => tokio::time::sleep(backoff.next_delay()).await,
                Err(e) => return Err(e),
            }
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]
mod tests {
    use super::*;
    use crate::{
        dial::{headers, testing::Learnt},
        testing::{Ca, pod, snapshot},
        trace::SpanContext,
    };
    use http::{HeaderValue, Response};
    use karst_hbone::{
        continuation::{self, Token},
        server,
    };
    use karst_rt::drain;
    use std::{
        cell::{Cell, RefCell},
        io,
        time::Duration,
    };
    use tokio::{
        net::TcpListener,
        task::{LocalSet, spawn_local},
        time::{Instant, timeout},
    };

    // Short, and in this order (limits has FIRST_TRY, AVOID and CONNECT_TIMEOUT).
    const TRY: Duration = Duration::from_millis(300);
    const PATIENCE: Duration = Duration::from_secs(5);

    /// What a peer does with a stream, by its number.
    #[derive(Clone, Copy)]
    enum Does {
        Answer(u16),
        /// It goes on with the connection.
        Continue,
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
            Self::serve(ca, who, Rc::new(does)).await
        }

        async fn serve(ca: &Ca, who: &Identity, does: Rc<dyn Fn(usize) -> Does>) -> Rc<Self> {
            let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = l.local_addr().unwrap();
            let peer = Rc::new(Self { at, tunnels: Cell::new(0), streams: Cell::new(0), headers: RefCell::default() });
            let (creds, me) = (Rc::new(ca.credentials(who)), peer.clone());
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
                                Does::Continue => {
                                    let mut r = Response::new(());
                                    continuation::announce(r.headers_mut());
                                    let _ = c.respond.send_response(r, true);
                                }
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
            dialer.patience = Patience { first_try: TRY, unanswered: TRY / 3 };
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
                headers: &HeaderMap::new,
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
            (502, true),
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
    async fn the_next_stream_is_asked_for_until_somebody_has_the_connection() {
        run(async |ca, c| {
            let token = Token::new().unwrap();
            let headers = || {
                let mut headers = HeaderMap::new();
                continuation::name(&mut headers, &token);
                headers
            };
            let asked = |at: SocketAddr| Target { headers: &headers, ..c.target(at) };
            let does = |n| if n < 3 { Does::Answer(503) } else { Does::Continue };
            let p = Peer::start(&ca, &c.to.identity, does).await;
            timeout(PATIENCE, c.dialer.again(&asked(p.at))).await.unwrap().unwrap();
            assert_eq!(p.streams.get(), 4);
            // One that has begun another connection, and one that will never go on with it.
            for status in [200, 400] {
                let p = Peer::start(&ca, &c.to.identity, move |_| Does::Answer(status)).await;
                let e = timeout(PATIENCE, c.dialer.again(&asked(p.at))).await.unwrap().err().unwrap();
                assert!(!e.may_retry() && p.streams.get() == 1, "{e}");
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_stream_says_who_has_opened_it() {
        run(async |ca, c| {
            let p = Peer::start(&ca, &c.to.identity, |_| Does::Answer(200)).await;
            let from = "192.0.2.1:5".parse().unwrap();
            let ask = async |service: Option<&str>, trace: Option<SpanContext>| {
                let baggage = HeaderValue::from_static("k8s.pod.name=a");
                let headers = || headers(Some(&baggage), from, service, trace);
                c.dialer.tunnel(&Target { headers: &headers, ..c.target(p.at) }, None).await.unwrap();
                let h = p.headers.borrow();
                ["baggage", "forwarded", "traceparent"]
                    .map(|n| h.get(n).map_or(String::new(), |v| v.to_str().unwrap().into()))
            };
            let span = SpanContext { trace: 0xab, span: 0xcd };
            let [baggage, forwarded, trace] = ask(Some("web.app"), Some(span)).await;
            assert_eq!((&*baggage, &*forwarded), ("k8s.pod.name=a", "for=\"192.0.2.1:5\";host=web.app"));
            assert_eq!(trace, "00-000000000000000000000000000000ab-00000000000000cd-01");
            for none in [None, Some("")] {
                let [_, forwarded, trace] = ask(none, None).await;
                assert_eq!((&*forwarded, &*trace), ("for=\"192.0.2.1:5\"", ""), "no trace is made up");
            }
        })
        .await;
    }
}
