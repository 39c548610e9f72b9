//! What of an object that is deployed for a Gateway is more than its own: another account, Secrets, tokens, the node, pods of
//! others, or anything that PodSecurity's level `restricted` does not let everybody have. Who writes a ConfigMap with parameters
//! adds none of it ([`super::overlay`]). Pure; `parameters_give_no_rights` goes through all of it.

use karst_manifest::kinds::GATEWAY_NAME;
use serde_json::Value;
use std::collections::BTreeSet;

/// Volumes that have nothing of others in them.
const VOLUMES: [&str; 6] = ["name", "configMap", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"];
/// Parts of a projected volume that have not.
const SOURCES: [&str; 3] = ["configMap", "downwardAPI", "clusterTrustBundle"];
/// Fields of a security context with which nothing is gained.
const HARMLESS: [&str; 7] = [
    "runAsGroup",
    "fsGroup",
    "fsGroupChangePolicy",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "readOnlyRootFilesystem",
    "capabilities",
];

/// Each as its field and value.
pub(crate) fn of(kind: &str, object: &Value) -> BTreeSet<String> {
    let mut out = Found(BTreeSet::new());
    for field in ["selector", "scaleTargetRef", "externalIPs", "externalName"] {
        out.note(format!("spec.{field}"), at(object, &["spec", field]));
    }
    if kind == "Deployment" {
        let template = at(object, &["spec", "template"]);
        out.note("the label of its Gateway".into(), at(template, &["metadata", "labels", GATEWAY_NAME]));
        for (k, v) in at(template, &["metadata", "annotations"]).as_object().into_iter().flatten() {
            if k.starts_with("container.apparmor.security.beta.kubernetes.io/") {
                out.note(k.clone(), v);
            }
        }
        out.pod(at(template, &["spec"]));
    }
    out.0
}

struct Found(BTreeSet<String>);

impl Found {
    fn note(&mut self, field: String, value: &Value) {
        self.0.insert(format!("{field}: {value}"));
    }

    fn pod(&mut self, pod: &Value) {
        self.note("serviceAccountName".into(), at(pod, &["serviceAccountName"]));
        for field in ["serviceAccount", "nodeName", "hostNetwork", "hostPID", "hostIPC"] {
            let v = at(pod, &[field]);
            if !matches!(v, Value::Null | Value::Bool(false)) {
                self.note(field.into(), v);
            }
        }
        let mounts = at(pod, &["automountServiceAccountToken"]);
        if *mounts != false {
            self.note("automountServiceAccountToken".into(), mounts);
        }
        let own = at(pod, &["securityContext"]);
        self.security("securityContext", own);
        for list in ["containers", "initContainers"] {
            for c in items(pod, list) {
                let at = format!("{list}[{}]", at(c, &["name"]).as_str().unwrap_or_default());
                self.container(&at, c, own);
            }
        }
        for volume in items(pod, "volumes") {
            let name = at(volume, &["name"]).as_str().unwrap_or_default();
            for (k, what) in volume.as_object().into_iter().flatten().filter(|(k, _)| !VOLUMES.contains(&k.as_str())) {
                if k != "projected" {
                    self.note(format!("volumes[{name}].{k}"), what);
                }
            }
            let sources = items(at(volume, &["projected"]), "sources").filter_map(Value::as_object).flatten();
            for (k, what) in sources.filter(|(k, _)| !SOURCES.contains(&k.as_str())) {
                self.note(format!("volumes[{name}].projected.sources.{k}"), what);
            }
        }
    }

    fn container(&mut self, path: &str, container: &Value, pod: &Value) {
        let own = at(container, &["securityContext"]);
        let context = format!("{path}.securityContext");
        self.security(&context, own);
        let escalation = at(own, &["allowPrivilegeEscalation"]);
        if *escalation != false {
            self.note(format!("{context}.allowPrivilegeEscalation"), escalation);
        }
        let either = |field: &str| Some(at(own, &[field])).filter(|v| !v.is_null()).unwrap_or(at(pod, &[field]));
        if *either("runAsNonRoot") != true {
            self.note(format!("{context}.runAsNonRoot"), either("runAsNonRoot"));
        }
        if either("seccompProfile").is_null() {
            self.note(format!("{context}.seccompProfile"), &Value::Null);
        }
        let capabilities = at(own, &["capabilities"]);
        if !items(capabilities, "drop").any(|c| c == "ALL") {
            self.note(format!("{context}.capabilities.drop"), at(capabilities, &["drop"]));
        }
        if items(capabilities, "add").any(|c| c != "NET_BIND_SERVICE") {
            self.note(format!("{context}.capabilities.add"), at(capabilities, &["add"]));
        }
        for p in items(container, "ports").map(|p| at(p, &["hostPort"])).filter(|p| !p.is_null() && **p != 0) {
            self.note(format!("{path}.ports.hostPort"), p);
        }
        let named = items(container, "env").map(|e| at(e, &["valueFrom", "secretKeyRef"]));
        for secret in named.chain(items(container, "envFrom").map(|e| at(e, &["secretRef"]))).filter(|s| !s.is_null()) {
            self.note(format!("{path}.env: Secret"), secret);
        }
    }

    /// What of a security context loosens. (What it lacks is looked at where it counts.)
    fn security(&mut self, path: &str, context: &Value) {
        for (key, value) in context.as_object().into_iter().flatten() {
            let fine = match key.as_str() {
                "runAsUser" => *value != 0,
                "runAsNonRoot" => *value != false,
                "privileged" | "allowPrivilegeEscalation" => *value == false,
                "seccompProfile" => matches!(at(value, &["type"]).as_str(), Some("RuntimeDefault" | "Localhost")),
                known => HARMLESS.contains(&known),
            };
            if !fine && !value.is_null() {
                self.note(format!("{path}.{key}"), value);
            }
        }
    }
}

/// What is at a path; null if nothing is.
fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().try_fold(value, |v, step| v.get(step)).unwrap_or(&Value::Null)
}

fn items<'a>(value: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    at(value, &[list]).as_array().into_iter().flatten()
}
