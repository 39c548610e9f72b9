//! Objects that no webhook judges when they are applied: those without the label `istio.io/rev` while no revision is the default one,
//! and those with a tag that only `karst tag set` has made. It is so in Istio, too, which does not tell of it. (A control plane may
//! write only to configurations whose names its chart knows.)

use super::objects::{Item, Objects};
use crate::analysis::{Level, Message};
use serde_json::Value;
use std::collections::BTreeMap;

const GROUP: &str = "admissionregistration.k8s.io";
const REVISION: &str = "/metadata/labels/istio.io~1rev";
const TAG: &str = "/metadata/labels/istio.io~1tag";

/// Labels `istio.io/rev` whose objects are not judged (KARST-0721, KARST-0722).
pub(super) fn unjudged(objects: &Objects) -> Vec<Message> {
    let configurations = objects.of("ValidatingWebhookConfiguration", GROUP);
    let Some(first) = configurations.clone().find(|one| judges(&one.value).next().is_some()) else { return vec![] };
    let nobody_judges = |label: Option<&str>| is_unjudged(configurations.clone().map(|one| &one.value), label);
    let mut out = vec![];
    if nobody_judges(None) {
        let message = format!(
            "objects without the label istio.io/rev are not judged when they are applied, since no revision is the default \
             one: `karst tag set default --revision {}`, or defaultRevision of the chart base [KARST-0721]",
            first.text(REVISION)
        );
        out.push(first.say("KARST-0721", Level::Warning, message));
    }
    for (tag, (revision, item)) in tags(objects) {
        // Where the tag `default` leads, its own configuration does, which is for objects without a label; nobody writes it on one.
        if tag != "default" && nobody_judges(Some(tag)) {
            out.push(item.say("KARST-0722", Level::Warning, unjudged_tag(tag, revision)));
        }
    }
    out
}

/// What to know of a tag that its revision's chart does not know.
pub fn unjudged_tag(tag: &str, revision: &str) -> String {
    format!(
        "objects with the label istio.io/rev={tag} are not judged when they are applied, and invalid ones are only reported: add \
         {tag} to revisionTags of the chart istiod of revision {revision} (`karst upgrade --revision {revision} --set \
         'values.revisionTags[0]={tag}'`, or helm) [KARST-0722]"
    )
}

/// Does none of these ValidatingWebhookConfigurations judge objects with this label `istio.io/rev` (None: without one)? If none
/// of them judges anything, no webhook is wanted (`global.configValidation: false`), and that is not to be told.
pub fn is_unjudged<'a>(configurations: impl Iterator<Item = &'a Value>, label: Option<&str>) -> bool {
    let mut webhooks = configurations.flat_map(judges).peekable();
    webhooks.peek().is_some() && !webhooks.any(|webhook| selects(webhook, label))
}

/// Does a webhook judge all objects with this label?
fn selects(webhook: &Value, label: Option<&str>) -> bool {
    // By namespaces, or by other labels: some of the objects only.
    let has = |at: &str| webhook.pointer(at).and_then(Value::as_object).is_some_and(|all| !all.is_empty());
    if has("/namespaceSelector") || has("/objectSelector/matchLabels") {
        return false;
    }
    let expressions = webhook.pointer("/objectSelector/matchExpressions").and_then(Value::as_array);
    expressions.is_none_or(|all| all.iter().all(|one| fits(one, label)))
}

fn fits(expression: &Value, label: Option<&str>) -> bool {
    let values = expression["values"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_in = || label.is_some_and(|label| values.iter().any(|value| value == label));
    match (expression["key"].as_str(), expression["operator"].as_str()) {
        (Some("istio.io/rev"), Some("In")) => is_in(),
        (Some("istio.io/rev"), Some("NotIn")) => !is_in(),
        (Some("istio.io/rev"), Some("Exists")) => label.is_some(),
        (Some("istio.io/rev"), Some("DoesNotExist")) => label.is_none(),
        // By another label: of some objects only.
        _ => false,
    }
}

/// Its webhooks that refuse what is invalid.
fn judges(configuration: &Value) -> impl Iterator<Item = &Value> {
    let all = configuration["webhooks"].as_array().into_iter().flatten();
    all.filter(|webhook| {
        let rules = webhook["rules"].as_array().into_iter().flatten();
        let mut groups = rules.filter_map(|rule| rule["apiGroups"].as_array()).flatten();
        groups.any(|group| group == "karst.io") && webhook["clientConfig"]["service"]["path"] == "/validate"
    })
}

/// Tags with their revisions; the Service counts.
fn tags(objects: &Objects) -> BTreeMap<&str, (&str, &Item)> {
    let mut tags = BTreeMap::new();
    let services = objects.of("Service", "").filter(|one| one.namespace() == objects.root_namespace);
    for item in objects.of("MutatingWebhookConfiguration", GROUP).chain(services) {
        let (tag, revision) = (item.text(TAG), item.text(REVISION));
        if !tag.is_empty() && !revision.is_empty() {
            tags.insert(tag, (revision, item));
        }
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::super::tests::codes;

    const OWN: &str = "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {name: \
                       istio-validator-canary-istio-system, labels: {istio.io/rev: canary}}\nwebhooks:\n- clientConfig: \
                       {service: {path: /validate}}\n  rules: [{apiGroups: [security.istio.io, karst.io]}]\n  objectSelector: \
                       {matchExpressions: [{key: istio.io/rev, operator: SELECTS}]}\n";

    fn own(selects: &str) -> String {
        OWN.replace("SELECTS", selects)
    }

    #[test]
    fn a_sole_revision_with_a_name_judges_nothing_without_a_label() {
        let name = "ValidatingWebhookConfiguration istio-validator-canary-istio-system";
        assert_eq!(codes(&own("In, values: [canary]")), [("KARST-0721".to_owned(), name.to_owned())]);
        let default = own("DoesNotExist").replace("-canary-istio-system", "-default");
        assert_eq!(codes(&format!("{}---\n{default}", own("In, values: [canary]"))), []);
        assert_eq!(codes(&own("DoesNotExist")), []);
        let of_some = own("DoesNotExist").replace("{matchExp", "{matchLabels: {team: a}, matchExp");
        assert_eq!(codes(&of_some).len(), 1, "objects of one team are not all");
        let of_istio = own("In, values: [canary]").replace(", karst.io", "");
        assert_eq!(codes(&of_istio), [], "another control plane's");
    }

    #[test]
    fn a_tag_that_the_chart_does_not_know_is_told_of() {
        let tag = "apiVersion: v1\nkind: Service\nmetadata: {name: istiod-revision-tag-prod, namespace: istio-system, labels: \
                   {istio.io/rev: canary, istio.io/tag: prod, app: istiod}}\nspec: {ports: [{name: grpc-xds, port: 15010}]}\n";
        let all = own("DoesNotExist").replace("-canary-istio-system", "-default");
        let with = |values: &str| format!("{tag}---\n{all}---\n{}", own(&format!("In, values: [{values}]")));
        let told = codes(&with("canary"));
        assert_eq!(told, [("KARST-0722".to_owned(), "Service istio-system/istiod-revision-tag-prod".to_owned())]);
        assert_eq!(codes(&with("canary, prod")), []);
    }
}
