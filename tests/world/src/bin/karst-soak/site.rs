//! The mesh of a soak: what is where, and what is known of its processes.

use crate::{
    objects::{EDGE, FORBIDDEN, GATE, OBJECTS, routes},
    oracle,
    shared::Shared,
};
use anyhow::Result;
use karst_world::{
    Options, Pod, PodSpec, World,
    app::Echo,
    net::ip_in,
    soak::{faults::Clock, judge::Place},
    wait_for, web,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Lifetime of certificates, seconds.
const LIFETIME: &str = "20";
/// Environment of the waypoint and the gateway.
pub const PROXY_ENV: [(&str, &str); 1] = [("SECRET_TTL", LIFETIME)];
/// Environment of ztunnels: as the charts have it, but for the certificates.
const ZTUNNEL_ENV: [(&str, &str); 3] =
    [("SECRET_TTL", LIFETIME), ("KARST_WARM_SPARE", "true"), ("TERMINATION_GRACE_PERIOD_SECONDS", "64")];
/// The small disk, and how long a log on it may become.
const DISK_MIB: u32 = 96;
const LOG_BYTES: u64 = 4 << 20;
/// The node whose processes are left alone, and the roles of those whose memory is to be flat.
const CALM: usize = 2;
pub const STEADY: [&str; 3] = ["agent of node 2", "waypoint of node 2", "ztunnel of node 2"];
/// What is left after a panic (of one task: the process goes on).
const PANICKED: &str = "panicked at";
/// What the world needs until something is there.
const LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked what there is.
const LOOK: Duration = Duration::from_secs(1);
/// A spare that is there for so long has what it needs.
const SPARE_READY: Duration = Duration::from_secs(5);
/// Numbers of pods that come, in their addresses; those before are of pods that stay.
const FIRST_NUMBER: u8 = 100;
const LAST_NUMBER: u8 = 249;

/// A proxy of requests that is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Of the namespace `app`.
    Waypoint,
    /// Of the namespace `edge`.
    Gateway,
}

impl Role {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
        }
    }
}

/// See above.
pub struct Site {
    /// The world.
    pub world: World,
    /// Whoever calls, on node 0.
    pub caller: Pod,
    /// A client that is no member, on node 0.
    pub outside: Pod,
    /// Whom a policy forbids everything, on node 0.
    pub intruder: Pod,
    /// Servers on nodes 0, 1 and 2.
    servers: Vec<Pod>,
    _echoes: Vec<Echo>,
    shops: Vec<web::Web>,
    proxies: BTreeMap<Role, Pod>,
    /// On node 2, and never replaced.
    calm_waypoint: Pod,
    /// Where each node's ztunnel has its pages.
    ports: Vec<u16>,
    /// Each node's second process, and since when it is there.
    spares: BTreeMap<usize, (u32, Duration)>,
    now: Duration,
    next_look: Duration,
    /// Counts what comes anew.
    number: u64,
    /// The next address of each node.
    addresses: Vec<u8>,
    /// Certificates of the server on the calm node that were seen.
    serials: BTreeSet<String>,
    /// Panics in logs that are gone.
    panics: usize,
    has_full_disk: bool,
}

impl Site {
    /// Builds it; everything works on return.
    pub fn new() -> Result<Self> {
        let ztunnel_env = ZTUNNEL_ENV.map(|(k, v)| (k.to_string(), v.to_string())).to_vec();
        let options = Options { nodes: 3, ztunnel_env, disk_mib: Some(DISK_MIB), clocks: true, ..Options::default() };
        let mut world = World::start(options)?;
        world.apply("app", OBJECTS);
        let caller = world.mesh_pod(PodSpec::new("app", "caller", 0));
        let intruder = world.mesh_pod(PodSpec::new("app", "intruder", 0));
        let outside = world.pod(PodSpec::new("out", "outside", 0));
        let server = |world: &mut World, name: &str, node, part| {
            world.mesh_pod(PodSpec::new("app", name, node).label("part", part))
        };
        let servers = [("near", 0, "web"), ("far", 1, "web"), ("calm", CALM, "calm")]
            .map(|(name, node, part)| server(&mut world, name, node, part))
            .to_vec();
        let shops =
            [("shop-v1", 0, "shop", "v1"), ("shop-v2", 1, "shop", "v2"), ("calm-shop", CALM, "calm-shop", "v0")].map(
                |(name, node, part, version)| {
                    let spec = PodSpec::new("app", name, node).label("part", part).label("version", version);
                    world.mesh_pod(spec)
                },
            );
        let mut echoes: Vec<Echo> = servers.iter().map(|pod| Echo::start(pod, 8080, "")).collect();
        echoes.extend(servers.get(CALM).map(|pod| Echo::start(pod, GATE, "")));
        let answer = |asked: &web::Message| -> web::Answer { (200, vec![], oracle::answer(asked.path())) };
        let shops = shops.iter().map(|pod| web::Web::start(pod, 8080, answer)).collect();
        let waypoint = world.waypoint("app", "waypoint", 0, &PROXY_ENV);
        let calm_waypoint = world.waypoint("app", "calm-waypoint", CALM, &PROXY_ENV);
        let named = [("gateway.networking.k8s.io/gateway-name", "gateway")];
        let gateway = world.gateway_pod("edge", "gateway", 0, &named);
        world.start_waypoint(&gateway, &PROXY_ENV);
        world.apply("edge", EDGE);
        world.apply("routes", &routes(50, 0));
        let site = Self {
            caller,
            outside,
            intruder,
            servers,
            _echoes: echoes,
            shops,
            proxies: BTreeMap::from([(Role::Waypoint, waypoint), (Role::Gateway, gateway)]),
            calm_waypoint,
            ports: vec![15000; 3],
            spares: BTreeMap::new(),
            now: Duration::ZERO,
            next_look: Duration::ZERO,
            number: 0,
            addresses: vec![FIRST_NUMBER; 3],
            serials: BTreeSet::new(),
            panics: 0,
            has_full_disk: false,
            world,
        };
        site.wait_until_it_works();
        site.forbid();
        Ok(site)
    }

    fn wait_until_it_works(&self) {
        let asked = self.shops().map(|(place, to)| (place, &self.caller, to));
        for (place, from, to) in asked.into_iter().chain([(Place::Gateway, &self.outside, self.gateway_at())]) {
            wait_for(&place.to_string(), LIMIT, || {
                let answer = web::ask(from, to, oracle::host(place), "/", &[]).ok()?;
                (answer.status() == 200).then_some(())
            });
        }
        for (place, to) in self.targets() {
            wait_for(&format!("{place}: {to}"), LIMIT, || oracle::is_served(&self.caller, to).then_some(()));
        }
        wait_for("the gate is open", LIMIT, || oracle::is_served(&self.caller, self.gate()).then_some(()));
    }

    /// From now on, nothing is served to the intruder; until now everything was.
    fn forbid(&self) {
        let served = |is: bool| {
            for to in self.forbidden() {
                let what = format!("the intruder at {to}: served: {is}");
                wait_for(&what, LIMIT, || (oracle::is_served(&self.intruder, to) == is).then_some(()));
            }
        };
        served(true);
        self.world.apply("intruder", FORBIDDEN);
        served(false);
    }

    /// What new connections go to. (A service has an IPv4 address only.)
    pub fn targets(&self) -> Vec<(Place, SocketAddr)> {
        let places = [Place::SameNode, Place::OtherNode, Place::CalmNode];
        let both = |(place, pod): (Place, &Pod)| [(place, pod.at(8080)), (place, pod.at6(8080))];
        let service: [(Place, SocketAddr); 2] = [(Place::Service, ([10, 96, 0, 10], 80).into()); 2];
        places.into_iter().zip(&self.servers).flat_map(both).chain(service).collect()
    }

    /// What connections are held to.
    pub fn held(&self) -> [(Place, SocketAddr); 2] {
        [(Place::HeldSame, self.servers[0].at(8080)), (Place::HeldOther, self.servers[1].at(8080))]
    }

    /// What the intruder calls.
    pub fn forbidden(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|pod| pod.at(8080)).collect()
    }

    /// The service behind the waypoint.
    pub fn shop(&self) -> SocketAddr {
        ([10, 96, 1, 1], 80).into()
    }

    /// The services behind waypoints.
    pub fn shops(&self) -> [(Place, SocketAddr); 2] {
        [(Place::Waypoint, self.shop()), (Place::CalmWaypoint, ([10, 96, 1, 4], 80).into())]
    }

    /// What a policy closes now and then.
    pub fn gate(&self) -> SocketAddr {
        self.servers[CALM].at(GATE)
    }

    /// Where the gateway listens.
    pub fn gateway_at(&self) -> SocketAddr {
        self.proxy(Role::Gateway).at(80)
    }

    /// The pod that has a role now.
    pub fn proxy(&self, role: Role) -> &Pod {
        self.proxies.get(&role).expect("there is one from the start")
    }

    /// Another pod has it from now on. Gives the one before.
    pub fn succeed(&mut self, role: Role, next: &Pod) -> Pod {
        self.proxies.insert(role, next.clone()).expect("there is one from the start")
    }

    /// A number that was not given before.
    pub fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// A pod at an address that nobody has now, though somebody may have had it.
    pub fn fresh_pod(&mut self, spec: PodSpec, ready: bool) -> Pod {
        let node = spec.node;
        let taken: BTreeSet<_> = self.world.pods().into_iter().map(|pod| pod.ip).collect();
        loop {
            let number = self.addresses[node];
            self.addresses[node] = if number == LAST_NUMBER { FIRST_NUMBER } else { number + 1 };
            if !taken.contains(&IpAddr::from([10, 77, node as u8, number])) {
                self.world.next_address(node, number);
                break;
            }
        }
        let pod = if ready { self.world.pod(spec) } else { self.world.unready_pod(spec) };
        // Who has the address of a pod before looks again.
        for ns in [&self.world.nodes[node].ns, &self.caller.ns, &self.outside.ns] {
            let _ = ip_in(ns, &format!("neigh flush to {}", pod.ip));
        }
        pod
    }

    /// Where the next ztunnel of a node has its pages.
    pub fn other_port(&self, node: usize) -> u16 {
        if self.ports[node] == 15000 { 16000 } else { 15000 }
    }

    /// A node's ztunnel has its pages there from now on.
    pub fn has_port(&mut self, node: usize, port: u16) {
        self.ports[node] = port;
        self.spares.remove(&node);
    }

    /// Is a ztunnel ready that has its pages there?
    pub fn is_ready_at(&self, node: usize, port: u16) -> bool {
        self.world.get(node, port + 21, "/healthz/ready").is_ok_and(|(status, _)| status == 200)
    }

    /// Is the ztunnel of a node ready?
    pub fn is_ztunnel_ready(&self, node: usize) -> bool {
        self.is_ready_at(node, self.ports[node])
    }

    /// Has a node a spare that can take over?
    pub fn has_spare(&self, node: usize) -> bool {
        let Some((known, since)) = self.spares.get(&node) else { return false };
        let is_there = matches!(self.world.ztunnel_children(node)[..], [_, spare] if spare == *known);
        is_there && self.now.saturating_sub(*since) >= SPARE_READY
    }

    /// Looks at what there is, if it is time.
    pub fn look(&mut self, shared: &Shared) -> Result<()> {
        self.now = shared.now();
        if self.now < self.next_look {
            return Ok(());
        }
        self.next_look = self.now + LOOK;
        for node in 0..CALM {
            match self.world.ztunnel_children(node)[..] {
                [_, spare] => {
                    let known = self.spares.entry(node).or_insert((spare, self.now));
                    if known.0 != spare {
                        *known = (spare, self.now);
                    }
                }
                _ => {
                    self.spares.remove(&node);
                }
            }
        }
        let serial = self.serial();
        self.serials.extend(serial);
        // What servers note is not needed.
        self.shops.iter().for_each(|shop| drop(shop.take()));
        if self.has_full_disk {
            // There would be room.
            return Ok(());
        }
        let panics = &mut self.panics;
        self.world.shorten_logs(LOG_BYTES, |text| *panics += text.matches(PANICKED).count())
    }

    /// A disk is full, or is not any more.
    pub fn set_full_disk(&mut self, is_full: bool) {
        self.has_full_disk = is_full;
    }

    /// Removes a log.
    pub fn forget_log(&mut self, name: &str) {
        self.panics += self.world.log_text(name).matches(PANICKED).count();
        let _ = fs::remove_file(self.world.dir.join("logs").join(name));
    }

    /// Panics in all logs.
    pub fn panics(&self) -> usize {
        let texts = fs::read_dir(self.world.dir.join("logs")).into_iter().flatten().flatten();
        let count =
            |file: fs::DirEntry| self.world.log_text(&file.file_name().to_string_lossy()).matches(PANICKED).count();
        self.panics + texts.map(count).sum::<usize>()
    }

    /// Processes that go by a clock, as far as they are there.
    pub fn by_clock(&self, clock: Clock) -> Vec<u32> {
        match clock {
            Clock::Controller => self.world.has_controller().then(|| self.world.controller_pid()).into_iter().collect(),
            Clock::Node(node) => {
                let worker = self.world.ztunnel_children(node).first().copied();
                let proxies = self.proxies.values().filter(|pod| pod.spec.node == node);
                let proxies = proxies.map(|pod| self.world.waypoint_pid(pod));
                worker.into_iter().chain(self.world.agent_pid(node)).chain(proxies).collect()
            }
        }
    }

    /// Does the caller's ztunnel know that a pod is a member? Before, it calls it as it calls anybody: in plaintext.
    pub fn is_member_to_the_caller(&self, pod: &Pod) -> bool {
        let node = self.caller.spec.node;
        let Ok((_, page)) = self.world.get(node, self.ports[node], "/config_dump") else { return false };
        let dump: serde_json::Value = serde_json::from_str(&page).unwrap_or_default();
        let is_it = |w: &serde_json::Value| w["name"] == *pod.spec.name && w["protocol"] == "HBONE";
        dump["workloads"].as_array().is_some_and(|all| all.iter().any(is_it))
    }

    /// The certificate of the server on the calm node.
    fn serial(&self) -> Option<String> {
        let (_, page) = self.world.get(CALM, self.ports[CALM], "/config_dump").ok()?;
        let dump: serde_json::Value = serde_json::from_str(&page).ok()?;
        let of_it = |c: &&serde_json::Value| c["identity"] == "spiffe://cluster.local/ns/app/sa/calm";
        let own = dump["certificates"].as_array()?.iter().find(of_it)?;
        Some(own["certChain"][0]["serialNumber"].as_str()?.to_string())
    }

    /// How many certificates that server has had.
    pub fn rotations(&self) -> usize {
        self.serials.len()
    }

    /// The processes of the mesh, by role.
    pub fn processes(&self) -> Vec<(String, u32)> {
        let mut all = Vec::new();
        for node in 0..self.world.nodes.len() {
            let serves = self.world.ztunnel_children(node).first().copied();
            all.extend(serves.map(|pid| (format!("ztunnel of node {node}"), pid)));
            all.extend(self.world.agent_pid(node).map(|pid| (format!("agent of node {node}"), pid)));
        }
        if self.world.has_controller() {
            all.push(("controller".into(), self.world.controller_pid()));
        }
        for (role, pod) in &self.proxies {
            all.push((role.name().into(), self.world.waypoint_pid(pod)));
        }
        all.push((format!("waypoint of node {CALM}"), self.world.waypoint_pid(&self.calm_waypoint)));
        all
    }

    /// Is a role that of one process, from start to end?
    pub fn is_steady(role: &str) -> bool {
        STEADY.contains(&role)
    }
}
