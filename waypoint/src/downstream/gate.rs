//! How many connections there may be, of each kind: tunnels, and at a gateway what comes from outside. Who must give way is
//! decided in [`karst_rt::admission`].

use karst_core::limits;
use karst_rt::{
    admission::{Admission, Counts, Ended, Limits, Permit, Source},
    exposition::{Kind, Page},
};
use std::{
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The places of the process.
#[derive(Debug)]
pub struct Gate {
    /// Tunnels whose peers have not shown who they are.
    handshakes: Admission,
    /// Tunnels.
    tunnels: Admission,
    /// What comes to a gateway's ports, until it has greeted (TLS is done, or a request has begun).
    greetings: Admission,
    /// The same, of clients that a proxy before us has named (the PROXY protocol): by client, as all come from one address.
    named: Admission,
    /// What has come in by a gateway's ports. One without a request gives way.
    connections: Admission,
    /// UDP sessions whose clients have not sent anything after an answer.
    new_sessions: Admission,
    /// UDP sessions whose clients have.
    sessions: Admission,
    pub counts: AllCounts,
    /// How often a task has had to wait for other callers' turns.
    pub turns: Arc<AtomicU64>,
    /// Streams that were refused because their caller had too many.
    pub refused_streams: AtomicU64,
    /// Descriptors that the process may have, from which its places follow.
    descriptors: u64,
}

/// What limits have ended, as the tables.
#[derive(Debug, Default)]
pub struct AllCounts {
    pub handshakes: Counts,
    pub tunnels: Counts,
    pub greetings: Counts,
    pub connections: Counts,
    pub new_sessions: Counts,
    pub sessions: Counts,
}

impl Gate {
    /// That of a process with so many descriptors.
    pub fn new(descriptors: u64) -> Self {
        let (sessions, new_sessions) = limits::udp_sessions(descriptors);
        let tunnels = Limits {
            per_source: limits::tunnels_of_peer(descriptors),
            in_use: streams_of_caller(descriptors),
            ..Limits::even(limits::tunnels(descriptors))
        };
        Self {
            handshakes: Admission::new(handshakes(descriptors)),
            tunnels: Admission::new(tunnels),
            // Many clients may have one address (a load balancer's, a node's), so none is too much for one.
            greetings: Admission::new(Limits::even(limits::greetings(descriptors))),
            named: Admission::new(Limits::even(limits::greetings(descriptors))),
            connections: Admission::new(Limits::even(limits::connections_from_outside(descriptors))),
            new_sessions: Admission::new(Limits::even(new_sessions)),
            sessions: Admission::new(Limits::even(sessions)),
            counts: AllCounts::default(),
            turns: Arc::default(),
            refused_streams: AtomicU64::new(0),
            descriptors,
        }
    }

    /// What is open, in whatever state.
    pub fn open(&self) -> usize {
        let connections = [&self.handshakes, &self.tunnels, &self.greetings, &self.named, &self.connections];
        connections.into_iter().chain([&self.new_sessions, &self.sessions]).map(Admission::len).sum()
    }

    /// A tunnel that begins. `known`: the address is a workload's.
    ///
    /// # Errors
    /// See [`Permit::admit`].
    pub fn handshake(&self, from: IpAddr, known: bool) -> Result<Permit, Ended> {
        Permit::admit(&[&self.handshakes], &Source::address(from, known))
            .inspect_err(|e| self.counts.handshakes.note(*e))
    }

    /// A tunnel whose peer has shown who it is.
    ///
    /// # Errors
    /// See [`Permit::move_to`].
    pub fn tunnel(&self, mut p: Permit, from: IpAddr) -> Result<Rc<Permit>, Ended> {
        let moved = p.move_to(&[&self.tunnels], &Source::address(from, true));
        moved.inspect_err(|e| self.counts.tunnels.note(*e)).map(|()| Rc::new(p))
    }

    /// A connection to a gateway's port that begins.
    ///
    /// # Errors
    /// See [`Permit::admit`].
    pub fn greeting(&self, from: IpAddr) -> Result<Permit, Ended> {
        Permit::admit(&[&self.greetings], &Source::address(from, false)).inspect_err(|e| self.counts.greetings.note(*e))
    }

    /// A connection that begins, of which a proxy has told whose it is.
    ///
    /// # Errors
    /// See [`Permit::move_to`].
    pub fn named(&self, p: &mut Permit, client: IpAddr) -> Result<(), Ended> {
        p.move_to(&[&self.named], &Source::address(client, false))
    }

    /// A connection to a gateway's port that has greeted.
    ///
    /// # Errors
    /// See [`Permit::move_to`].
    pub fn connection(&self, mut p: Permit, from: IpAddr) -> Result<Rc<Permit>, Ended> {
        let moved = p.move_to(&[&self.connections], &Source::address(from, false));
        moved.inspect_err(|e| self.counts.connections.note(*e)).map(|()| Rc::new(p))
    }

    /// A UDP session that begins. Its client's address may be forged: it has a place among those of which that is not known, where
    /// the oldest of the source that has the most gives way.
    ///
    /// # Errors
    /// See [`Permit::admit`].
    pub fn session(&self, from: IpAddr) -> Result<Permit, Ended> {
        let admitted = Permit::admit(&[&self.new_sessions], &Source::address(from, false));
        admitted.inspect_err(|e| self.counts.new_sessions.note(*e))
    }

    /// A UDP session whose client has sent something after an answer.
    ///
    /// # Errors
    /// See [`Permit::move_to`].
    pub fn prove_session(&self, permit: &mut Permit, from: IpAddr) -> Result<(), Ended> {
        let moved = permit.move_to(&[&self.sessions], &Source::address(from, false));
        moved.inspect_err(|e| self.counts.sessions.note(*e))
    }

    /// Counts a connection from outside that has ended, if it had to give way.
    pub fn note_evicted(&self, permit: Option<&Permit>) {
        if permit.is_some_and(Permit::is_evicted) {
            self.counts.connections.note(Ended::Evicted);
        }
    }

    /// For the page of metrics.
    pub fn render(&self, page: &mut Page) {
        let counts = &self.counts;
        Counts::render(
            page,
            &[
                ("hbone", "handshake", &counts.handshakes),
                ("hbone", "open", &counts.tunnels),
                ("gateway", "handshake", &counts.greetings),
                ("gateway", "open", &counts.connections),
                ("udp", "handshake", &counts.new_sessions),
                ("udp", "open", &counts.sessions),
            ],
        );
        page.single(
            "karst_turns_waited_total",
            Kind::Counter,
            "How often a connection has waited because its caller had used up its turn of a worker, and others had something to do.",
            self.turns.load(Relaxed),
        );
        page.single(
            "karst_streams_refused_total",
            Kind::Counter,
            "Streams of tunnels refused because their caller had too many.",
            self.refused_streams.load(Relaxed),
        );
        let help = "Most that there may be of what callers share, of all of them together or of one.";
        let mut family = page.family("karst_share_limit", Kind::Gauge, help);
        for (share, most) in bounds(self.descriptors) {
            family.sample(&[("share", share)], most);
        }
    }
}

/// Streams that one caller may have: as many as a ztunnel would take of one peer.
fn streams_of_caller(descriptors: u64) -> usize {
    limits::connections_of_peer(descriptors)
}

fn handshakes(descriptors: u64) -> Limits {
    Limits::shared(limits::handshakes(descriptors))
}

/// What there is at most, as metrics call it, in a process with so many descriptors.
fn bounds(descriptors: u64) -> [(&'static str, usize); 21] {
    let (sessions, new_sessions) = limits::udp_sessions(descriptors);
    let handshakes = handshakes(descriptors);
    [
        ("streams", streams_of_caller(descriptors)),
        ("turn_bytes", limits::TURN),
        ("accepts", limits::ACCEPTS),
        ("callers", limits::MAX_CALLERS),
        ("tunnels", limits::tunnels(descriptors)),
        ("tunnels_of_peer", limits::tunnels_of_peer(descriptors)),
        ("handshakes", handshakes.total),
        ("handshakes_of_peer", handshakes.per_source),
        ("greetings", limits::greetings(descriptors)),
        ("connections", limits::connections_from_outside(descriptors)),
        ("udp_sessions", sessions),
        ("udp_sessions_new", new_sessions),
        ("limit_values", limits::LIMIT_VALUES),
        ("shared_limit_buckets", limits::QUOTA_BUCKETS),
        ("shared_limit_leases", limits::QUOTA_LEASES),
        ("shared_limit_waiting", limits::QUOTA_WAITING),
        ("shared_limit_questions", limits::QUOTA_QUESTIONS),
        ("tokens", limits::TOKENS),
        ("token_bytes", limits::TOKEN_BYTES),
        ("kept_answers", limits::KEPT_ANSWERS),
        ("kept_answers_bytes", limits::KEPT_ANSWERS_BYTES),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_rt::exposition;

    #[test]
    fn silent_clients_leave_room_for_who_greets() {
        let g = Gate::new(2048);
        let from = |n: usize| IpAddr::from([198, 51, 100, n as u8]);
        let places = 2048 / 16;
        let silent: Vec<_> = (0..2 * places).map(|n| g.greeting(from(n % 4)).unwrap()).collect();
        assert_eq!(silent.iter().filter(|p| !p.is_evicted()).count(), places);
        for _ in 0..2 * places {
            let p = g.greeting(from(200)).unwrap();
            assert!(!p.is_evicted());
            drop(g.connection(p, from(200)).unwrap());
        }
        let page = exposition::page(|page| g.render(page));
        assert!(page.contains("{listener=\"gateway\",stage=\"handshake\",reason=\"refused\"} 0"), "{page}");
    }

    /// A flood from forged addresses takes no place of who gets answers, and is itself bounded.
    #[test]
    fn forged_clients_take_no_proven_sessions() {
        let g = Gate::new(1024);
        let (_, new) = limits::udp_sessions(1024);
        let client = IpAddr::from([198, 51, 100, 1]);
        let mut proven = g.session(client).unwrap();
        g.prove_session(&mut proven, client).unwrap();
        let unproven = g.session(client).unwrap();
        let flood: Vec<_> =
            (0..4 * new).map(|n| g.session(IpAddr::from([10, 0, (n >> 8) as u8, n as u8])).unwrap()).collect();
        assert!(!proven.is_evicted() && unproven.is_evicted());
        assert_eq!(flood.iter().filter(|p| !p.is_evicted()).count(), new);
        assert_eq!(g.open(), new + 1);
        // Of many addresses each with one session the oldest goes; of one address with many, one of its own.
        let one = g.session(client).unwrap();
        let loud = IpAddr::from([203, 0, 113, 9]);
        let all: Vec<_> = (0..new).map(|_| g.session(loud).unwrap()).collect();
        assert!(all.iter().any(|p| !p.is_evicted()));
        let late = g.session(client).unwrap();
        let more: Vec<_> = (0..new).map(|_| g.session(loud).unwrap()).collect();
        assert!(!late.is_evicted() && !more.is_empty());
        drop(one);
        let mut evicted = all.into_iter().find(Permit::is_evicted).unwrap();
        assert_eq!(g.prove_session(&mut evicted, loud), Err(Ended::Evicted));
    }

    #[test]
    fn behind_a_proxy_who_does_not_greet_keeps_nobody_else_from_it() {
        let g = Gate::new(2048);
        let (proxy, client) = (IpAddr::from([10, 0, 0, 1]), |n: u8| IpAddr::from([198, 51, 100, n]));
        let begin = |n: u8| {
            let mut p = g.greeting(proxy).unwrap();
            g.named(&mut p, client(n)).unwrap();
            p
        };
        let greets = begin(200);
        let silent: Vec<_> = (0..2 * 2048 / 16).map(|_| begin(1)).collect();
        assert!(!greets.is_evicted() && silent.iter().any(Permit::is_evicted));
        assert_eq!(g.open(), 2048 / 16, "the places of before are given back");
    }

    #[test]
    fn one_caller_leaves_streams_to_others() {
        let g = Gate::new(1024);
        let open = |n: u8| {
            let ip = IpAddr::from([10, 0, 0, n]);
            g.tunnel(g.handshake(ip, true).unwrap(), ip).unwrap()
        };
        let (one, again, other) = (open(1), open(1), open(2));
        let most = limits::connections_of_peer(1024);
        let held: Vec<_> = (0..most).map(|n| if n % 2 == 0 { one.in_use() } else { again.in_use() }).collect();
        assert!(held.iter().all(Option::is_some) && one.in_use().is_none() && again.in_use().is_none());
        assert!(other.in_use().is_some());
        let page = exposition::page(|page| g.render(page));
        assert!(page.contains(&format!("karst_share_limit{{share=\"streams\"}} {most}\n")), "{page}");
        assert_eq!(g.open(), 3);
    }

    /// What the page says is what is enforced.
    #[test]
    fn there_are_as_many_places_as_the_page_says() {
        let g = Gate::new(2048);
        let page = karst_rt::exposition::page(|page| g.render(page));
        let most = |share: &str| -> usize {
            let start = format!("karst_share_limit{{share=\"{share}\"}} ");
            page.lines().find_map(|line| line.strip_prefix(start.as_str())).unwrap().parse().unwrap()
        };
        let ip = |n: usize| IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        let silent: Vec<_> = (0..4 * most("handshakes")).map(|_| g.handshake(ip(1), true).unwrap()).collect();
        assert_eq!(silent.iter().filter(|p| !p.is_evicted()).count(), most("handshakes_of_peer"));
        let more: Vec<_> = (2..1000).map(|n| g.handshake(ip(n), true).unwrap()).collect();
        let left = silent.iter().chain(&more).filter(|p| !p.is_evicted()).count();
        assert_eq!((left, most("handshakes")), (64, 64));
        drop((silent, more));
        let open = |n: usize| g.tunnel(g.handshake(ip(n), true).unwrap(), ip(n)).unwrap();
        let own: Vec<_> = (0..most("tunnels")).map(|_| open(1)).collect();
        assert_eq!(own.iter().filter(|p| !p.is_evicted()).count(), most("tunnels_of_peer"));
        let others: Vec<_> = (2..1000).map(open).collect();
        let left = own.iter().chain(&others).filter(|p| !p.is_evicted()).count();
        assert_eq!((left, most("tunnels")), (256, 256));
        let begun: Vec<_> = (0..1000).map(|n| g.greeting(ip(n)).unwrap()).collect();
        assert_eq!(begun.iter().filter(|p| !p.is_evicted()).count(), most("greetings"));
        drop(begun);
        let visits: Vec<_> = (0..1000).map(|n| g.connection(g.greeting(ip(n)).unwrap(), ip(n)).unwrap()).collect();
        assert_eq!(visits.iter().filter(|p| !p.is_evicted()).count(), most("connections"));
        let asked: Vec<_> = (0..1000).map(|n| g.session(ip(n)).unwrap()).collect();
        assert_eq!(asked.iter().filter(|p| !p.is_evicted()).count(), most("udp_sessions_new"));
        drop(asked);
        let proven: Vec<_> = (0..1000)
            .map(|n| {
                let mut p = g.session(ip(n)).unwrap();
                g.prove_session(&mut p, ip(n)).unwrap();
                p
            })
            .collect();
        assert_eq!(proven.iter().filter(|p| !p.is_evicted()).count(), most("udp_sessions"));
    }

    #[test]
    fn an_idle_connection_gives_way_and_one_with_a_request_does_not() {
        let g = Gate::new(256);
        let client = IpAddr::from([198, 51, 100, 1]);
        let open = || g.connection(g.greeting(client).unwrap(), client);
        let (asks, idle) = (open().unwrap(), open().unwrap());
        let request = asks.in_use();
        let more: Vec<_> = (0..63).map(|_| open().unwrap()).collect();
        assert!(!asks.is_evicted() && idle.is_evicted() && !more.iter().any(|p| p.is_evicted()));
        drop(request);
        open().unwrap();
        assert!(asks.is_evicted());
    }
}
