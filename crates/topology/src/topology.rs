//! The whole: takes pages in, and keeps edges and time line.

use crate::{
    cell::is_error,
    edge::{Tracked, WINDOW},
    graph::{self, Graph, Node},
    history::{History, Line, Point, Row, SLOT},
    place::{Between, End, Kind, Labels},
    refusal::{self, Refusal},
    series::{Counters, counter},
    text::{self, Sample},
};
use karst_flows::Flow;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

/// Most edges; what comes beyond is not kept, and counted as dropped. About 2 KiB each.
const MAX_EDGES: usize = 20_000;
/// An edge of which nothing was seen for this long is forgotten, in milliseconds: the time line has nothing of it any more.
const FORGET: u64 = 3_610_000;
/// Points of a sparkline.
const SPARK: u64 = 60;

/// The series that are read.
const WANTED: [&str; 7] = [
    "istio_requests_total",
    "istio_request_duration_milliseconds_bucket",
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_failed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
    refusal::COUNTER,
];

/// Edges and nodes, from what proxies tell. Times are in milliseconds since 1970, as the caller has them.
#[derive(Default)]
pub struct Topology {
    edges: BTreeMap<u32, Tracked>,
    by_ends: HashMap<Between, u32>,
    next: u32,
    proxies: BTreeMap<String, Proxy>,
    /// Workloads by their identities: metrics name both, books of flows only the identity.
    callers: HashMap<Arc<str>, End>,
    kinds: HashMap<(String, String), Kind>,
    line: Line,
    slot: u64,
    /// When each round was settled that is in the live window, and how long it was.
    rounds: VecDeque<(u64, u64)>,
    dropped: u64,
    /// Nobody reads books of flows: refusals are those of the metrics.
    without_books: bool,
}

#[derive(Default)]
struct Proxy {
    counters: Counters,
    flows: Counters,
}

impl Topology {
    /// Nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same for a reader who has metrics only, and no books of flows: what policies have refused is taken from them, too. (A
    /// reader who has both would count it twice.)
    pub fn without_books() -> Self {
        Self { without_books: true, ..Self::default() }
    }

    /// Which workloads (namespace, name) are gateways and waypoints.
    pub fn set_kinds(&mut self, kinds: impl IntoIterator<Item = ((String, String), Kind)>) {
        self.kinds = kinds.into_iter().collect();
    }

    /// Takes in the metrics page of a proxy. Nothing of a page that cannot be read is counted.
    ///
    /// # Errors
    /// If it is not in Prometheus' text format.
    pub fn read(&mut self, proxy: &str, page: &str, now: u64) -> Result<(), text::Error> {
        let samples = text::read(page, |name| WANTED.contains(&name))?;
        let mut counters = std::mem::take(&mut self.proxies.entry(proxy.to_owned()).or_default().counters);
        let mut round = counters.begin(now);
        for sample in &samples {
            let Some(value) = counter(sample) else { continue };
            let by = round.growth(&sample.series, value);
            match by {
                0 if round.is_first() => self.learn(sample),
                0 => {}
                by if sample.name == refusal::COUNTER => self.count_refused(sample, value, by, now),
                by => self.count(sample, by, now),
            }
        }
        round.end();
        if let Some(proxy) = self.proxies.get_mut(proxy) {
            proxy.counters = counters;
        }
        Ok(())
    }

    /// Who is behind an identity, from a series that has not grown.
    fn learn(&mut self, sample: &Sample<'_>) {
        if !sample.name.ends_with("_bucket")
            && let Some(labels) = Labels::read(sample)
        {
            self.remember(&labels);
        }
    }

    fn remember(&mut self, labels: &Labels) {
        let source = &labels.between.source;
        let is_known = self.callers.get(&labels.source_principal).is_some_and(|known| known == source);
        let has_room = self.callers.len() < MAX_EDGES || self.callers.contains_key(&labels.source_principal);
        if !is_known && has_room && !labels.source_principal.is_empty() {
            self.callers.insert(labels.source_principal.clone(), source.clone());
        }
    }

    fn count(&mut self, sample: &Sample<'_>, by: u64, now: u64) {
        let Some(labels) = Labels::read(sample) else { return };
        self.remember(&labels);
        let Some(id) = self.edge(&labels.between, now) else { return };
        let Some(edge) = self.edges.get_mut(&id) else { return };
        for (known, told) in [
            (&mut edge.source_principal, &labels.source_principal),
            (&mut edge.destination_principal, &labels.destination_principal),
        ] {
            if !told.is_empty() {
                known.clone_from(told);
            }
        }
        let cell = edge.pending(labels.reporter);
        match sample.name {
            "istio_requests_total" => {
                cell.requests += by;
                cell.errors += if is_error(labels.code, labels.grpc) { by } else { 0 };
                cell.client_errors += if (400..500).contains(&labels.code) { by } else { 0 };
                cell.code(labels.code, by);
                cell.flag(&labels.flags, by);
            }
            "istio_request_duration_milliseconds_bucket" => {
                let bound = labels.le.and_then(|le| crate::cell::BOUNDS.iter().position(|bound| *bound == le));
                if let Some(count) = bound.and_then(|at| cell.buckets.get_mut(at)) {
                    *count += by;
                }
                return;
            }
            "istio_tcp_connections_opened_total" => cell.opened += by,
            "istio_tcp_connections_failed_total" => {
                cell.failed += by;
                cell.flag(&labels.flags, by);
                return;
            }
            "istio_tcp_sent_bytes_total" => {
                cell.sent += by;
                return;
            }
            _ => {
                cell.received += by;
                return;
            }
        }
        match labels.mtls {
            Some(true) => cell.mtls += by,
            Some(false) => cell.plain += by,
            None => {}
        }
        edge.protocol = edge.protocol.max(labels.protocol);
    }

    fn count_refused(&mut self, sample: &Sample<'_>, all: u64, by: u64, now: u64) {
        if !self.without_books {
            return;
        }
        let Some(refused) = refusal::Refused::read(sample, all, now / 1000) else { return };
        let Some(id) = self.edge_of(refused.between, &refused.identity, now) else { return };
        if let Some(edge) = self.edges.get_mut(&id) {
            edge.refuse(refused.refusal);
            edge.refused += by;
        }
    }

    /// The edge between two ends; it is made if there is room.
    fn edge(&mut self, between: &Between, now: u64) -> Option<u32> {
        if let Some(id) = self.by_ends.get(between) {
            return Some(*id);
        }
        if self.edges.len() >= MAX_EDGES {
            self.dropped += 1;
            return None;
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.edges.insert(id, Tracked::new(between.clone(), now));
        self.by_ends.insert(between.clone(), id);
        Some(id)
    }

    /// Takes in the book of flows of a proxy: what policies have refused.
    pub fn read_flows(&mut self, proxy: &str, flows: &[Flow], now: u64) {
        let mut counters = std::mem::take(&mut self.proxies.entry(proxy.to_owned()).or_default().flows);
        let mut round = counters.begin(now);
        for flow in flows {
            let by = round.growth(&flow.key, flow.count);
            let Some(refusal) = Refusal::of(flow) else { continue };
            let Some(id) = self.edge_of(refusal::between(flow), refusal::identity(flow), now) else { continue };
            if let Some(edge) = self.edges.get_mut(&id) {
                edge.refuse(refusal);
                edge.refused += by;
            }
        }
        round.end();
        if let Some(proxy) = self.proxies.get_mut(proxy) {
            proxy.flows = counters;
        }
    }

    /// The edge that a refusal belongs to: of its caller's identity, to its workload or, at a waypoint, its service.
    fn edge_of(&mut self, mut wanted: Between, identity: &str, now: u64) -> Option<u32> {
        if let Some(source) = self.callers.get(identity) {
            wanted.source = source.clone();
        }
        let fits = |edge: &Tracked| {
            edge.between.source == wanted.source
                && edge.between.destination == wanted.destination
                && (wanted.destination.kind == Kind::Workload || edge.between.service == wanted.service)
        };
        let known = self.edges.iter().find(|(_, edge)| fits(edge)).map(|(id, _)| *id);
        let id = known.or_else(|| self.edge(&wanted, now))?;
        if let Some(edge) = self.edges.get_mut(&id)
            && !identity.is_empty()
        {
            edge.source_principal = identity.into();
        }
        Some(id)
    }

    /// Forgets the counters of proxies that are gone. What they have counted stays in the time line.
    pub fn keep_proxies(&mut self, is_there: impl Fn(&str) -> bool) {
        self.proxies.retain(|name, _| is_there(name));
    }

    /// Ends a round: what was read since the last one is counted.
    pub fn settle(&mut self, now: u64) {
        let before = self.rounds.back().map_or(now.saturating_sub(2000), |(at, _)| *at);
        self.rounds.push_back((now, now.saturating_sub(before)));
        while self.rounds.front().is_some_and(|(at, _)| at + WINDOW <= now) {
            self.rounds.pop_front();
        }
        let waypoints: HashSet<(End, Arc<str>)> = self
            .edges
            .values()
            .filter(|edge| edge.has_waypoint(now))
            .map(|edge| (edge.between.source.clone(), edge.between.service.clone()))
            .collect();
        let kinds = &self.kinds;
        for edge in self.edges.values_mut() {
            let to_service = match kind_of(kinds, &edge.between.destination) {
                Kind::Service | Kind::Waypoint => true,
                Kind::Workload | Kind::Gateway | Kind::Outside => false,
            };
            let same = (edge.between.source.clone(), edge.between.service.clone());
            let behind = to_service && !same.1.is_empty() && waypoints.contains(&same);
            // What a waypoint answers itself has no workload, and is told by nobody else.
            edge.settle(now, behind && !edge.has_waypoint(now));
        }
        self.turn(now);
        let by_ends = &mut self.by_ends;
        self.edges.retain(|_, edge| {
            let stays = now.saturating_sub(edge.last) < FORGET;
            if !stays {
                by_ends.remove(&edge.between);
            }
            stays
        });
    }

    /// A slot of the time line that has ended.
    fn turn(&mut self, now: u64) {
        let slot = now / 1000 / SLOT;
        if self.slot == 0 {
            self.slot = slot;
        }
        if slot == self.slot {
            return;
        }
        let mut rows = vec![];
        for (id, edge) in &mut self.edges {
            let cell = std::mem::take(&mut edge.slot);
            if !cell.is_empty() {
                rows.push(Row::new(*id, &cell));
            }
        }
        self.line.push(slot * SLOT, slot.saturating_sub(self.slot) * SLOT, rows);
        self.slot = slot;
    }

    /// The graph as it is now. `namespace`: only edges that begin or end there.
    pub fn graph(&self, namespace: Option<&str>) -> Graph {
        self.assemble(self.live(|edge| is_in(edge, namespace)), &|end| Node::of(end, self.kind(end)))
    }

    /// The wanted edges as they are now, but for old ones.
    pub(crate) fn live(&self, wanted: impl Fn(&Tracked) -> bool) -> Vec<(&Tracked, graph::Edge)> {
        let (now, seconds) = self.window();
        let found = self.edges.iter().filter(|(_, edge)| wanted(edge));
        let live = found.map(|(id, edge)| (edge, graph::Edge::live(*id, edge, seconds, now, &|end| self.kind(end))));
        live.filter(|(_, edge)| !edge.is_old).collect()
    }

    /// A graph of these edges.
    pub(crate) fn assemble(&self, live: Vec<(&Tracked, graph::Edge)>, node: &dyn Fn(&End) -> Node) -> Graph {
        Graph {
            at: self.window().0,
            since: self.line.since(),
            dropped: self.dropped,
            nodes: graph::nodes(live.iter().map(|(edge, _)| *edge), node),
            edges: live.into_iter().map(|(_, edge)| edge).collect(),
        }
    }

    /// When the last round was settled, and how long the live window is, in seconds.
    fn window(&self) -> (u64, f64) {
        let now = self.rounds.back().map_or(0, |(at, _)| *at);
        (now, self.rounds.iter().map(|(_, took)| *took).sum::<u64>() as f64 / 1000.0)
    }

    /// One edge, as it is kept; None: there is none of that number.
    pub(crate) fn kept(&self, id: u32) -> Option<&Tracked> {
        self.edges.get(&id)
    }

    /// One edge, as it is kept and as it is now.
    pub(crate) fn one(&self, id: u32) -> Option<(&Tracked, graph::Edge)> {
        let (edge, (now, seconds)) = (self.kept(id)?, self.window());
        Some((edge, graph::Edge::live(id, edge, seconds, now, &|end| self.kind(end))))
    }

    /// All edges, old ones too.
    pub(crate) fn tracked(&self) -> impl Iterator<Item = &Tracked> {
        self.edges.values()
    }

    /// The last hour of one edge.
    pub fn history(&self, id: u32) -> History {
        self.line.of(id)
    }

    /// The last hour of all edges that begin or end in a namespace. Hops to and from waypoints are left out: what passes them is
    /// told by the waypoint.
    pub fn total(&self, namespace: Option<&str>) -> History {
        self.sum(|edge| is_in(edge, namespace))
    }

    /// The same of the wanted edges.
    pub(crate) fn sum(&self, wanted: impl Fn(&Tracked) -> bool) -> History {
        self.line.sum(|id| self.edges.get(&id).is_some_and(|edge| wanted(edge) && !self.is_hop(edge)))
    }

    /// Of each edge, requests (else connections) per second in each of the last 60 minutes, the newest last.
    pub fn sparks(&self) -> BTreeMap<u32, Vec<f32>> {
        let newest = self.slot * SLOT;
        let mut all: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
        self.line.each(|seconds, edge, Point { at, rate, opened, .. }| {
            let minutes = newest.saturating_sub(at) / 60;
            let Some(place) = (SPARK - 1).checked_sub(minutes) else { return };
            let line = all.entry(edge).or_insert_with(|| vec![0.0; SPARK as usize]);
            if let Some(value) = line.get_mut(place as usize) {
                *value += ((if rate > 0.0 { rate } else { opened }) * seconds as f64 / 60.0) as f32;
            }
        });
        all
    }

    fn is_hop(&self, edge: &Tracked) -> bool {
        [&edge.between.source, &edge.between.destination].iter().any(|end| self.kind(end) == Kind::Waypoint)
    }

    pub(crate) fn kind(&self, end: &End) -> Kind {
        kind_of(&self.kinds, end)
    }

    /// Bytes that all of it takes, without the allocator's own and the names.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let counters = self.proxies.values().map(|proxy| proxy.counters.bytes() + proxy.flows.bytes()).sum::<usize>();
        self.line.bytes() + self.edges.values().map(Tracked::bytes).sum::<usize>() + counters
    }
}

fn kind_of(kinds: &HashMap<(String, String), Kind>, end: &End) -> Kind {
    match end.kind {
        Kind::Workload => {
            let known = kinds.get(&(end.namespace.to_string(), end.name.to_string()));
            known.copied().unwrap_or_default()
        }
        kind => kind,
    }
}

/// Does it begin or end in the namespace? None: any.
pub(crate) fn is_in(edge: &Tracked, namespace: Option<&str>) -> bool {
    let ends = [&edge.between.source, &edge.between.destination];
    namespace.is_none_or(|name| ends.iter().any(|end| &*end.namespace == name))
}
