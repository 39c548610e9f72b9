//! The revisions that there are in a cluster, and which of them an object belongs to (Istio's rules): the one that its
//! label `istio.io/rev` names, else the one that its namespace's label names, else the default one. A name is a revision's own or
//! a tag's. Each revision has a Service in the root namespace (labels `app: istiod` and `istio.io/rev`). Each tag has one, or, as
//! Istio makes them, a MutatingWebhookConfiguration (labels `istio.io/tag` and `istio.io/rev`).

use crate::convert::objects::revision::{DEFAULT, LABEL, Revision, named};
use karst_manifest::{
    Object,
    kinds::{Labels, Meta},
};
use std::collections::{BTreeMap, BTreeSet};

/// Label of a Service: the tag that it stands for.
const TAG: &str = "istio.io/tag";

/// What is known of the revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revisions {
    own: Revision,
    /// Those that have a Service.
    there: BTreeSet<String>,
    /// Revisions by tag.
    tags: BTreeMap<String, String>,
}

/// Whom a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named<'a> {
    /// This control plane.
    Own,
    /// Another one.
    Other(&'a str),
    /// None that is there.
    Nobody,
}

impl Revisions {
    /// Those of a cluster, as this revision sees them.
    pub(crate) fn of<'a>(objects: impl Iterator<Item = &'a Object>, root: &str, own: &Revision) -> Self {
        let (mut webhooks, mut services) = (vec![], vec![]);
        for object in objects {
            match object {
                Object::MutatingWebhookConfiguration(webhook) => webhooks.push(&webhook.metadata.labels),
                Object::Service(service) if service.metadata.namespace == root => {
                    services.push(&service.metadata.labels);
                }
                _ => {}
            }
        }
        Self::of_labels(webhooks.into_iter().chain(services), own)
    }

    /// The same, of the labels of webhooks and of the Services of the root namespace, which come last and count more.
    pub(crate) fn of_labels<'a>(all: impl Iterator<Item = &'a Labels>, own: &Revision) -> Self {
        let own_tags = own.tags.iter().filter(|tag| !tag.is_empty()).map(|tag| (tag.clone(), own.name().to_string()));
        let (mut there, mut tags) = (BTreeSet::from([own.name().to_string()]), own_tags.collect::<BTreeMap<_, _>>());
        for labels in all {
            let Some(revision) = named(labels) else { continue };
            match labels.get(TAG) {
                // An object says where a tag leads now, an option where it led at the start.
                Some(tag) => drop(tags.insert(tag.clone(), revision.to_string())),
                None if labels.get("app").is_some_and(|app| app == "istiod") => {
                    there.insert(revision.to_string());
                }
                None => {}
            }
        }
        Self { own: own.clone(), there, tags }
    }

    /// Whom a label means. A tag comes before a revision of the same name.
    pub(crate) fn named<'a>(&'a self, name: &'a str) -> Named<'a> {
        // One that leads to nobody does not hide the revision of its name: a tag that was left behind takes nothing out of force.
        let leads = |to: &&String| self.there.contains(*to) || !self.there.contains(name);
        let revision = self.tags.get(name).filter(leads).map_or(name, String::as_str);
        match revision {
            own if own == self.own.name() => Named::Own,
            other if self.there.contains(other) => Named::Other(other),
            _ => Named::Nobody,
        }
    }

    /// Whom an object without a label belongs to: the tag `default`, else the revision of this name, else the only one.
    fn default(&self) -> Named<'_> {
        match (self.named(DEFAULT), self.there.len()) {
            (Named::Nobody, 1) => Named::Own,
            (found, _) => found,
        }
    }

    /// Is this the revision of the objects without a label?
    pub(crate) fn is_default(&self) -> bool {
        self.default() == Named::Own
    }

    /// Is there no other?
    pub(crate) fn is_only_one(&self) -> bool {
        self.there.len() == 1
    }

    /// The revision that runs and tends an object.
    pub(crate) fn owner<'a>(&'a self, labels: &'a Labels, namespace: Option<&'a Labels>) -> Named<'a> {
        match named(labels).or(namespace.and_then(named)) {
            Some(name) => self.named(name),
            None => self.default(),
        }
    }

    /// Whom an object is for that only one revision reads, if that is not this one.
    pub(crate) fn other<'a>(&'a self, object: &'a Object) -> Option<Named<'a>> {
        let name = Revision::label(object)?;
        // Parameters of classes are the chart's that has written them, wherever a tag of that name leads.
        if matches!(object, Object::ConfigMap(_)) && self.there.contains(name) {
            return (name != self.own.name()).then_some(Named::Other(name));
        }
        let named = self.named(name);
        (named != Named::Own).then_some(named)
    }

    /// What is wrong with the label of an object, if nobody is the revision that it names; for its status, and for who applies it.
    pub(crate) fn unknown(&self, meta: &Meta) -> Option<(String, String)> {
        let name = named(&meta.labels)?;
        if self.named(name) != Named::Nobody {
            return None;
        }
        let there: Vec<&str> = self.there.iter().chain(self.tags.keys()).map(String::as_str).collect();
        let text = format!(
            "no control plane of this cluster is revision {name:?}, so this has no effect: remove the label, or use one of {}; `karst tag set {name} --revision REVISION` makes {name:?} another name of a revision [KARST-0711]",
            there.join(", ")
        );
        Some((format!("metadata.labels[{LABEL}]"), text))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_manifest::parse;

    /// A policy with this label.
    fn object(kind: &str, labels: &str) -> Object {
        let text =
            format!("kind: {kind}\nmetadata: {{name: x, namespace: istio-system, labels: {{{labels}}}}}\nspec: {{}}\n");
        let version = match kind {
            "PeerAuthentication" => "security.istio.io/v1",
            "Gateway" => "gateway.networking.k8s.io/v1",
            _ => "v1",
        };
        let text = if kind == "ConfigMap" { text.replace("spec: {}\n", "") } else { text };
        parse::file("x.yaml".as_ref(), &format!("apiVersion: {version}\n{text}")).unwrap().remove(0).object
    }

    fn seen_by(own: &str, services: &[&str]) -> Revisions {
        let all: Vec<Object> = services.iter().map(|labels| object("Service", labels)).collect();
        Revisions::of(all.iter(), "istio-system", &Revision { name: own.into(), tags: vec![] })
    }

    const DEFAULT_ONE: &str = "app: istiod, istio.io/rev: default";
    const CANARY: &str = "app: istiod, istio.io/rev: canary";

    #[test]
    fn an_object_without_a_label_belongs_to_the_default_revision() {
        let none = Labels::new();
        for (own, services, is_ours) in [
            ("default", &[][..], true),
            ("", &[], true),
            ("default", &[DEFAULT_ONE, CANARY], true),
            ("canary", &[DEFAULT_ONE, CANARY], false),
            ("canary", &[CANARY], true),
            // Several, and none of them is the default one.
            ("canary", &[CANARY, "app: istiod, istio.io/rev: blue"], false),
            // The tag wins over the revision of this name.
            ("canary", &[DEFAULT_ONE, CANARY, "istio.io/tag: default, istio.io/rev: canary"], true),
            ("default", &[DEFAULT_ONE, CANARY, "istio.io/tag: default, istio.io/rev: canary"], false),
        ] {
            let revisions = seen_by(own, services);
            assert_eq!(revisions.owner(&none, None) == Named::Own, is_ours, "{own} {services:?}");
            assert_eq!(revisions.is_default(), is_ours);
        }
    }

    #[test]
    fn a_label_of_the_namespace_is_for_objects_without_one() {
        let services = [DEFAULT_ONE, CANARY, "istio.io/tag: prod, istio.io/rev: canary"];
        let label = |name: &str| Labels::from([(LABEL.to_string(), name.to_string())]);
        let (revisions, none) = (seen_by("canary", &services), Labels::new());
        assert_eq!(revisions.owner(&none, Some(&label("prod"))), Named::Own);
        assert_eq!(revisions.owner(&none, Some(&label("canary"))), Named::Own);
        assert_eq!(revisions.owner(&label("default"), Some(&label("canary"))), Named::Other("default"));
        assert_eq!(revisions.owner(&label("old"), Some(&label("canary"))), Named::Nobody);
        assert_eq!(revisions.owner(&label(""), Some(&none)), Named::Other("default"));
    }

    #[test]
    fn a_tag_leads_where_its_service_says() {
        let own = Revision { name: "canary".into(), tags: vec!["prod".into()] };
        let moved = object("Service", "istio.io/tag: prod, istio.io/rev: blue");
        let blue = object("Service", "app: istiod, istio.io/rev: blue");
        let revisions = |all: &[&Object]| Revisions::of(all.iter().copied(), "istio-system", &own);
        assert_eq!(revisions(&[]).named("prod"), Named::Own, "as its option says");
        assert_eq!(revisions(&[&blue, &moved]).named("prod"), Named::Other("blue"));
        assert_eq!(revisions(&[&moved]).named("prod"), Named::Nobody, "that revision is gone");
        // As Istio makes them; what it has left behind does not count beside a Service.
        let webhook = |labels: &str| {
            let text = format!(
                "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {{name: w, labels: {{{labels}}}}}\nwebhooks: [{{name: rev.namespace.sidecar-injector.istio.io}}]\n"
            );
            parse::file("x.yaml".as_ref(), &text).unwrap().remove(0).object
        };
        let (of_istio, none) = (webhook("istio.io/tag: new, istio.io/rev: canary"), webhook("istio.io/rev: blue"));
        assert_eq!(revisions(&[&of_istio, &none]).named("new"), Named::Own);
        assert_eq!(revisions(&[&none]).named("blue"), Named::Nobody, "an injector's webhook is no control plane");
        // A tag `default` that an installation of Istio has left behind takes nothing from the revision of that name.
        let left = [webhook("istio.io/tag: default, istio.io/rev: 1-24")];
        let default = Revision { name: "default".into(), tags: vec![] };
        assert_eq!(Revisions::of(left.iter(), "istio-system", &default).named("default"), Named::Own);
        let old = webhook("istio.io/tag: prod, istio.io/rev: canary");
        assert_eq!(revisions(&[&moved, &blue, &old]).named("prod"), Named::Other("blue"));
    }

    #[test]
    fn only_what_configures_the_mesh_is_left_to_others() {
        let canary = seen_by("canary", &[DEFAULT_ONE, CANARY]);
        for (kind, labels, other) in [
            ("PeerAuthentication", "", None),
            ("PeerAuthentication", "istio.io/rev: canary", None),
            ("PeerAuthentication", "istio.io/rev: default", Some(Named::Other("default"))),
            ("PeerAuthentication", "istio.io/rev: gone", Some(Named::Nobody)),
            ("ConfigMap", "istio.io/rev: default", Some(Named::Other("default"))),
            ("Service", "istio.io/rev: default", None),
            // Proxies of all revisions send requests through it.
            ("Gateway", "istio.io/rev: default", None),
        ] {
            assert_eq!(canary.other(&object(kind, labels)), other, "{kind} {labels}");
        }
        // A tag that takes a revision's name does not take its class parameters.
        let canary = seen_by("canary", &[DEFAULT_ONE, CANARY, "istio.io/tag: default, istio.io/rev: canary"]);
        let of = |kind: &str| object(kind, "istio.io/rev: default");
        assert_eq!(canary.other(&of("ConfigMap")), Some(Named::Other("default")));
        assert_eq!(canary.other(&of("PeerAuthentication")), None);
    }

    #[test]
    fn a_revision_that_nobody_is_is_named_with_those_that_are_there() {
        let revisions = seen_by("default", &[DEFAULT_ONE, CANARY, "istio.io/tag: prod, istio.io/rev: canary"]);
        let unknown = |labels: &str| revisions.unknown(object("PeerAuthentication", labels).meta());
        assert_eq!(unknown(""), None);
        assert_eq!(unknown("istio.io/rev: prod"), None);
        let (field, text) = unknown("istio.io/rev: gone").unwrap();
        assert_eq!(field, "metadata.labels[istio.io/rev]");
        assert!(text.contains("revision \"gone\"") && text.contains("canary, default, prod"), "{text}");
    }
}
