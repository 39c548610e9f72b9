//! VirtualServices and DestinationRules.

use super::objects::{Item, Objects, full_host, selects};
use crate::analysis::{Level, Message};
use serde_json::Value;
use std::collections::BTreeMap;

fn virtual_services(objects: &Objects) -> impl Iterator<Item = &Item> {
    objects.of("VirtualService", "networking.istio.io")
}

/// Whether its routes are for requests within the mesh.
fn is_of_mesh(item: &Item) -> bool {
    let gateways = item.list("/spec/gateways");
    gateways.is_empty() || gateways.iter().any(|name| name.as_str() == Some("mesh"))
}

/// Whether other namespaces see it.
fn is_exported(item: &Item) -> bool {
    let exported = item.list("/spec/exportTo");
    exported.is_empty() || exported.iter().any(|place| place.as_str() == Some("*"))
}

/// Two for the same host (IST0109).
pub(super) fn hosts(objects: &Objects) -> Vec<Message> {
    let mut seen: BTreeMap<String, Vec<&Item>> = BTreeMap::new();
    for item in virtual_services(objects).filter(|item| is_of_mesh(item)) {
        for host in item.list("/spec/hosts").iter().filter_map(Value::as_str) {
            seen.entry(full_host(host, item.namespace())).or_default().push(item);
        }
    }
    let mut out = vec![];
    for (host, items) in &seen {
        for (at, item) in items.iter().enumerate() {
            let meets =
                |other: &&&Item| other.namespace() == item.namespace() || (is_exported(item) && is_exported(other));
            for other in items.iter().skip(at + 1).filter(meets) {
                let message = format!(
                    "spec.hosts: VirtualService {}/{} is for {host}, too: make one of both",
                    other.namespace(),
                    other.name()
                );
                out.push(item.say("IST0109", Level::Error, message));
            }
        }
    }
    out
}

/// Rules and matches that an earlier one takes everything from (IST0130, IST0131).
pub(super) fn unreachable(objects: &Objects) -> Vec<Message> {
    let mut out = vec![];
    for item in virtual_services(objects) {
        for protocol in ["http", "tls", "tcp"] {
            let rules = item.list(&format!("/spec/{protocol}"));
            let mut seen: Vec<(&Value, usize)> = vec![];
            let mut catch_all: Option<usize> = None;
            for (number, rule) in rules.iter().enumerate() {
                if let Some(before) = catch_all {
                    let message = format!(
                        "spec.{protocol}[{number}]: is never reached: spec.{protocol}[{before}] matches everything; put \
                         that one last"
                    );
                    out.push(item.say("IST0130", Level::Warning, message));
                    continue;
                }
                let matches = rule.get("match").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                if matches.is_empty() || matches.iter().any(matches_all) {
                    catch_all = Some(number);
                }
                let before = |one: &Value| seen.iter().find(|(known, _)| *known == one).map(|(_, at)| *at);
                let known: Vec<Option<usize>> = matches.iter().map(before).collect();
                if let (false, Some(Some(at))) =
                    (matches.is_empty() || known.iter().any(Option::is_none), known.first())
                {
                    let message = format!(
                        "spec.{protocol}[{number}]: is never reached: its matches are those of spec.{protocol}[{at}]; remove it"
                    );
                    out.push(item.say("IST0130", Level::Warning, message));
                } else {
                    for (at, earlier) in known.iter().enumerate().filter_map(|(at, known)| Some((at, (*known)?))) {
                        let message = format!(
                            "spec.{protocol}[{number}].match[{at}]: is never reached: spec.{protocol}[{earlier}] has it, too; remove it"
                        );
                        out.push(item.say("IST0131", Level::Info, message));
                    }
                }
                seen.extend(matches.iter().map(|one| (one, number)));
            }
        }
    }
    out
}

/// Whether a match has no condition, but perhaps a name.
fn matches_all(one: &Value) -> bool {
    one.as_object().is_some_and(|fields| fields.keys().all(|field| field == "name"))
}

/// Subsets whose labels no pod of the service has (IST0173).
pub(super) fn subsets(objects: &Objects) -> Vec<Message> {
    let mut out = vec![];
    for rule in objects.of("DestinationRule", "networking.istio.io") {
        let host = full_host(rule.text("/spec/host"), rule.namespace());
        let is_it = |service: &&Item| {
            let name = format!("{}.{}", service.name(), service.namespace());
            host == name || host == format!("{name}.svc") || host.starts_with(&format!("{name}.svc."))
        };
        let Some(service) = objects.of("Service", "").find(is_it) else { continue };
        let selector = service.labels("/spec/selector");
        let pods: Vec<&Item> = objects
            .pods()
            .filter(|pod| pod.namespace() == service.namespace() && !selector.is_empty())
            .filter(|pod| selects(&selector, &pod.labels("/metadata/labels")))
            .collect();
        // Without any pod it is not the subset that is wrong.
        if pods.is_empty() {
            continue;
        }
        for (number, subset) in rule.list("/spec/subsets").iter().enumerate() {
            let labels: BTreeMap<&str, &str> = subset
                .get("labels")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
                .collect();
            if pods.iter().any(|pod| selects(&labels, &pod.labels("/metadata/labels"))) {
                continue;
            }
            let shown: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let name = subset.get("name").and_then(Value::as_str).unwrap_or_default();
            let message = format!(
                "spec.subsets[{number}]: no pod of {}/{} has the labels of subset {name} ({}): requests for it get 503; \
                 correct them, or remove the subset",
                service.namespace(),
                service.name(),
                shown.join(",")
            );
            out.push(rule.say("IST0173", Level::Error, message));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::codes;

    fn route(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: n}}\nspec: {spec}\n---\n"
        )
    }
    fn said(yaml: &str) -> Vec<String> {
        codes(yaml).into_iter().map(|(code, _)| code).collect()
    }

    #[test]
    fn a_host_has_one_virtual_service() {
        let (short, full) = ("{hosts: [web]}", "{hosts: [web.n.svc.cluster.local]}");
        assert_eq!(said(&(route("a", short) + &route("b", full))), ["IST0109"]);
        assert!(said(&(route("a", short) + &route("b", "{hosts: [web], gateways: [edge]}"))).is_empty());
        assert!(said(&(route("a", short) + &route("b", "{hosts: [other]}"))).is_empty());
    }

    #[test]
    fn rules_after_one_for_everything_are_never_reached() {
        let rules = |text: &str| said(&route("a", &format!("{{hosts: [web], http: [{text}]}}")));
        let (all, one) = ("{route: []}", "{match: [{uri: {prefix: /a}}], route: []}");
        assert!(rules(&format!("{one}, {all}")).is_empty());
        assert_eq!(rules(&format!("{all}, {one}")), ["IST0130"]);
        assert_eq!(rules(&format!("{one}, {one}, {all}")), ["IST0130"]);
        let two = "{match: [{uri: {prefix: /a}}, {uri: {prefix: /b}}], route: []}";
        assert_eq!(rules(&format!("{one}, {two}, {all}")), ["IST0131"]);
        assert!(rules(&format!("{two}, {all}")).is_empty());
    }

    #[test]
    fn a_subset_has_pods() {
        let world = |version: &str, pods: bool| {
            let pod =
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, labels: {app: web, version: v1}}\n---\n";
            format!(
                "{}apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: n}}\nspec: {{selector: {{app: web}}}}\n---\n\
                 apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: n}}\nspec: {{host: web, \
                 subsets: [{{name: s, labels: {{version: {version}}}}}]}}\n",
                if pods { pod } else { "" }
            )
        };
        assert!(said(&world("v1", true)).is_empty());
        assert_eq!(said(&world("v2", true)), ["IST0173"]);
        assert!(said(&world("v2", false)).is_empty());
    }
}
