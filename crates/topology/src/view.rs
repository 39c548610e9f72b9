//! What somebody sees of the whole who may look into some namespaces only.
//!
//! - An edge is seen by whoever may look into the namespace of one of its ends. Of an end in another namespace neither name nor
//!   identity is told: all of them are one node.
//! - A service, an identity and a policy are named to whoever may look into their own namespaces. What was refused is told to whoever
//!   may look into the namespace that was called.
//! - What is outside of the mesh is in no namespace: it is named beside an end that is seen.
//! - Sums are of what is seen. Asked for a namespace that somebody may not look into, there is nothing: else they would learn which of
//!   the ends without a name are in it.

use crate::{
    edge::Tracked,
    graph::{Edge, Graph, HIDDEN, Node},
    history::{History, SLOT},
    place::{Between, End, Kind, account},
    topology::{Topology, is_in},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// In the place of a caller or policy that is not named.
const UNNAMED: &str = "one of another namespace";

/// The namespaces that somebody may look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All, and what is in none that is known.
    All,
    /// These.
    Of(BTreeSet<Arc<str>>),
}

impl Sight {
    /// May they look into this one? Into none that has no name, unless they may look into all.
    pub fn has(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Of(names) => !namespace.is_empty() && names.contains(namespace),
        }
    }
}

/// The namespaces that anything is in: those that a [`Sight`] decides about.
pub fn namespaces(topology: &Topology) -> BTreeSet<Arc<str>> {
    let mut all = BTreeSet::new();
    for edge in topology.tracked() {
        let Between { source, destination, service } = &edge.between;
        [source, destination].into_iter().for_each(|end| add(&mut all, &end.namespace));
        add(&mut all, &End::service(service, "").namespace);
        for principal in [&edge.source_principal, &edge.destination_principal] {
            add(&mut all, account(principal).map_or("", |(namespace, _)| namespace));
        }
        for refusal in &edge.refusals {
            add(&mut all, account(&refusal.caller).map_or("", |(namespace, _)| namespace));
            add(&mut all, refusal.policy.split_once('/').map_or("", |(namespace, _)| namespace));
        }
    }
    all
}

fn add(all: &mut BTreeSet<Arc<str>>, namespace: &str) {
    if !namespace.is_empty() && !all.contains(namespace) {
        all.insert(namespace.into());
    }
}

/// The whole, as somebody sees it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    topology: &'a Topology,
    sight: &'a Sight,
}

impl<'a> View<'a> {
    /// Of somebody with this sight.
    pub fn new(topology: &'a Topology, sight: &'a Sight) -> Self {
        Self { topology, sight }
    }

    /// See [`Topology::graph`].
    pub fn graph(&self, namespace: Option<&str>) -> Graph {
        let mut live = self.topology.live(|edge| self.is_asked_for(edge, namespace));
        for (tracked, edge) in &mut live {
            self.hide(&tracked.between, edge);
        }
        self.topology.assemble(live, &|end| match self.names(end) {
            true => Node::of(end, self.topology.kind(end)),
            false => Node::hidden(),
        })
    }

    /// One edge as it is now; None: there is none of that number that is seen.
    pub fn edge_now(&self, id: u32) -> Option<Edge> {
        let (tracked, mut edge) = self.topology.one(id).filter(|(tracked, _)| self.sees(tracked))?;
        self.hide(&tracked.between, &mut edge);
        Some(edge)
    }

    /// See [`Topology::history`]; None: there is no such edge.
    pub fn history(&self, id: u32) -> Option<History> {
        self.topology.kept(id).filter(|edge| self.sees(edge)).map(|_| self.topology.history(id))
    }

    /// See [`Topology::total`].
    pub fn total(&self, namespace: Option<&str>) -> History {
        if namespace.is_some_and(|name| !self.sight.has(name)) {
            return History { slot: SLOT, points: vec![] };
        }
        self.topology.sum(|edge| self.is_asked_for(edge, namespace))
    }

    /// See [`Topology::sparks`].
    pub fn sparks(&self) -> BTreeMap<u32, Vec<f32>> {
        let mut all = self.topology.sparks();
        if *self.sight != Sight::All {
            all.retain(|id, _| self.topology.kept(*id).is_some_and(|edge| self.sees(edge)));
        }
        all
    }

    fn is_asked_for(&self, edge: &Tracked, namespace: Option<&str>) -> bool {
        self.sees(edge) && namespace.is_none_or(|name| self.sight.has(name)) && is_in(edge, namespace)
    }

    fn sees(&self, edge: &Tracked) -> bool {
        [&edge.between.source, &edge.between.destination].iter().any(|end| self.sight.has(&end.namespace))
    }

    /// Is this end of an edge that is seen named?
    fn names(&self, end: &End) -> bool {
        self.sight.has(&end.namespace) || end.kind == Kind::Outside
    }

    fn knows(&self, principal: &str) -> bool {
        account(principal).is_some_and(|(namespace, _)| self.sight.has(namespace))
    }

    /// Takes out what is not to be told of an edge that is seen.
    fn hide(&self, between: &Between, edge: &mut Edge) {
        if *self.sight == Sight::All {
            return;
        }
        for (end, id) in [(&between.source, &mut edge.source), (&between.destination, &mut edge.target)] {
            if !self.names(end) {
                HIDDEN.clone_into(id);
            }
        }
        for principal in [&mut edge.source_principal, &mut edge.destination_principal] {
            if !self.knows(principal) {
                principal.clear();
            }
        }
        if !self.names(&between.destination) || !self.names(&End::service(&between.service, "")) {
            edge.service.clear();
        }
        if !self.sight.has(&between.destination.namespace) {
            edge.refusals.clear();
        }
        for refusal in &mut edge.refusals {
            if account(&refusal.caller).is_some() && !self.knows(&refusal.caller) {
                UNNAMED.clone_into(&mut refusal.caller);
            }
            let policy = refusal.policy.split_once('/').map_or("", |(namespace, _)| namespace);
            if !refusal.policy.is_empty() && !self.sight.has(policy) {
                UNNAMED.clone_into(&mut refusal.policy);
            }
        }
    }
}
