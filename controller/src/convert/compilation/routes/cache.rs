//! What routes were compiled to last time, and what that depended on.

use crate::{
    convert::{
        compilation::routes::destination_rule,
        facts::{
            hosts::{Hosts, aliases, all_numbers, is_private},
            listeners,
        },
        objects::{FieldError, Objects, address, rename},
    },
    model::Model,
};
use karst_api::route as ir;
use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

/// What was compiled last time. An object that is the same one, among the same services, is not converted again: of thousands
/// of routes only those of the services are whose rules have changed. (Who compiles keeps the objects of last time until
/// the next is done, so that an address stands for one object.)
#[derive(Default)]
pub(crate) struct Cache {
    pub(crate) context: Context,
    /// What is wrong with an object.
    pub(crate) bad: HashMap<usize, Vec<FieldError>>,
    /// The objects that contribute to a service, and what came of them.
    pub(crate) tables: HashMap<Arc<str>, (Vec<usize>, Arc<ir::Routes>)>,
    pub(crate) rules: destination_rule::Cache,
    /// UDP ports of services all of whose endpoints take no datagrams: why.
    pub(crate) closed: BTreeMap<(String, u32), ClosedBy>,
    /// What objects name services by. None: nothing was compiled.
    pub(crate) hosts: Option<Hosts>,
    /// The services and virtual hosts that an object's rules are for.
    pub(crate) targets: HashMap<usize, Vec<Arc<str>>>,
    /// Where among all problems those of objects with routes stand.
    pub(crate) told: Range<usize>,
}

/// Why an endpoint takes no datagrams of gateways.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClosedBy {
    /// These ask for an identity, which no datagram has.
    Policies(String),
    /// It is a gateway itself.
    Gateway,
}

/// What conversions depend on besides their object.
#[derive(Default, PartialEq)]
pub(crate) struct Context {
    /// With their ports, and whether only their own namespace knows them.
    services: Vec<(String, Vec<u32>, bool)>,
    /// What other names of services stand for.
    aliases: BTreeMap<String, String>,
    /// ReferenceGrants, ServiceEntries, HTTPFilters, VirtualServices without hosts, Istio's Gateways.
    others: Vec<usize>,
    /// What shares the virtual hosts of gateways.
    scopes: Vec<listeners::VirtualHostScope>,
}

impl Cache {
    /// What is wrong with an object that was compiled.
    pub(crate) fn bad<T>(&self, object: &T) -> &[FieldError] {
        self.bad.get(&address(object)).map_or(&[], Vec::as_slice)
    }

    /// Objects are at other addresses, and what was compiled of them would be the same: only their statuses are others.
    pub(crate) fn renamed(&mut self, now: &HashMap<usize, usize>) {
        for (old, new) in now {
            if let Some(bad) = self.bad.remove(old) {
                self.bad.insert(*new, bad);
            }
            if let Some(targets) = self.targets.remove(old) {
                self.targets.insert(*new, targets);
            }
        }
        self.tables.values_mut().for_each(|(c, _)| rename(c, now));
        rename(&mut self.context.others, now);
        self.rules.renamed(now);
    }

    /// The same of one object with routes that no other one reads.
    pub(crate) fn rename(&mut self, old: usize, new: usize) {
        if let Some(bad) = self.bad.remove(&old) {
            self.bad.insert(new, bad);
        }
        let Some(targets) = self.targets.remove(&old) else { return };
        for key in &targets {
            if let Some((contributors, _)) = self.tables.get_mut(key) {
                contributors.iter_mut().filter(|one| **one == old).for_each(|one| *one = new);
            }
        }
        self.targets.insert(new, targets);
    }
}

impl Context {
    pub(crate) fn new(objects: &Objects<'_>, model: &Model, listeners: &listeners::GatewayListeners) -> Self {
        let grants = objects.grants.iter().map(|g| address(*g));
        let entries = objects.service_entries.iter().map(|(_, e)| address(*e));
        let filters = objects.http_filters.iter().map(|(_, f)| address(*f));
        let gateways = objects.istio_gateways.iter().map(|(_, g)| address(*g));
        let delegates =
            objects.virtual_services.iter().filter(|(_, v)| v.spec.hosts.is_empty()).map(|(_, v)| address(*v));
        Self {
            services: model.services.iter().map(|(k, s)| (k.clone(), all_numbers(s), is_private(s))).collect(),
            aliases: aliases(objects),
            others: grants.chain(entries).chain(delegates).chain(filters).chain(gateways).collect(),
            scopes: listeners.scopes.clone(),
        }
    }
}
