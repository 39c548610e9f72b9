//! The objects by name, and which of them stands behind what proxies say.

use crate::answer::Object;
use karst_manifest::{
    Object as Read, State,
    kinds::{Labels, Namespace, Pod, Service},
    parse::Located,
};
use std::{collections::BTreeMap, sync::Arc};

/// The objects by kind, namespace and name.
#[derive(Default)]
pub(crate) struct Objects {
    by_name: BTreeMap<(&'static str, String, String), Arc<Located>>,
}

impl Objects {
    pub(crate) fn new(state: &State) -> Self {
        let key = |o: &Arc<Located>| {
            let meta = o.object.meta();
            ((o.object.kind(), meta.namespace.clone(), meta.name.clone()), o.clone())
        };
        Self { by_name: state.objects.iter().map(key).collect() }
    }

    pub(crate) fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Arc<Located>> {
        let mut all = self.by_name.iter();
        all.find(|((k, ns, n), _)| *k == kind && ns == namespace && n == name).map(|(_, o)| o)
    }

    /// All of a kind.
    pub(crate) fn all(&self, kind: &'static str) -> impl Iterator<Item = &Arc<Located>> {
        self.by_name.iter().filter(move |((k, ..), _)| *k == kind).map(|(_, o)| o)
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = (&Arc<Located>, &Pod)> {
        self.all("Pod").filter_map(|o| if let Read::Pod(pod) = &o.object { Some((o, &**pod)) } else { None })
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<(&Arc<Located>, &Pod)> {
        self.pods().find(|(_, p)| p.metadata.namespace == namespace && p.metadata.name == name)
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<&Namespace> {
        match &self.get("Namespace", "", name)?.object {
            Read::Namespace(n) => Some(n),
            _ => None,
        }
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        match &self.get("Service", namespace, name)?.object {
            Read::Service(s) => Some(s),
            _ => None,
        }
    }

    /// The Gateway that a ListenerSet adds listeners to: namespace and name.
    pub(crate) fn gateway_of_set(&self, namespace: &str, name: &str) -> Option<(&str, &str)> {
        let Read::ListenerSet(set) = &self.get("ListenerSet", namespace, name)?.object else { return None };
        let to = &set.spec.parent_ref;
        Some((to.namespace.as_deref().unwrap_or(&set.metadata.namespace), to.name.as_str()))
    }

    /// The object that a rule says it comes from: `Kind namespace/name …`.
    pub(crate) fn of_origin(&self, origin: &str) -> Option<Object> {
        let mut words = origin.split(' ');
        let (kind, (namespace, name)) = (words.next()?, words.next()?.split_once('/')?);
        self.named(kind, namespace, name)
    }

    /// The object of this name, if it is there.
    pub(crate) fn named(&self, kind: &str, namespace: &str, name: &str) -> Option<Object> {
        self.get(kind, namespace, name).map(|o| shown(o))
    }
}

/// As it is shown.
pub(crate) fn shown(located: &Located) -> Object {
    let meta = located.object.meta();
    Object {
        kind: karst_manifest::kinds::api_kind(located.object.kind()).into(),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        file: Some(located.file.clone()).filter(|f| !f.as_os_str().is_empty()),
        line: located.line,
    }
}

/// Does a selector select these labels?
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
