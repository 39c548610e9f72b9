//! Profiles, merging, and what is refused.

use super::*;
use crate::{
    chart::Charts,
    manifest::{COMPONENT, Manifest, Stage},
};
use serde_json::json;

const KUBERNETES: &str = "v1.34.0";

fn wanted(files: &[&str], sets: &[&str]) -> Wanted {
    Wanted {
        files: files
            .iter()
            .map(|spec| {
                let text = format!("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec: {spec}\n");
                ("file.yaml".to_string(), text)
            })
            .collect(),
        sets: sets.iter().map(|set| (*set).to_string()).collect(),
        revision: None,
        namespace: "istio-system".into(),
    }
}

fn manifest(wanted: &Wanted) -> Result<Manifest, SpecError> {
    Manifest::of(&wanted.spec()?, &Charts::embedded(), KUBERNETES, false)
}

fn parts(wanted: &Wanted) -> Vec<String> {
    manifest(wanted).unwrap().parts.into_iter().map(|part| part.name).collect()
}

fn refusal(wanted: &Wanted) -> String {
    manifest(wanted).unwrap_err().to_string()
}

#[test]
fn profiles_have_their_components() {
    let mesh = ["istio-base", "istiod", "istio-cni", "ztunnel"];
    assert_eq!(parts(&wanted(&[], &[])), mesh);
    assert_eq!(parts(&wanted(&[], &["profile=ambient"])), mesh);
    assert_eq!(parts(&wanted(&[], &["profile=stable"])), mesh);
    let demo = parts(&wanted(&[], &["profile=demo"]));
    assert_eq!(demo, [&mesh[..], &["istio-ingressgateway", "istio-egressgateway"]].concat());
    assert_eq!(parts(&wanted(&[], &["profile=minimal"])), ["istio-base", "istiod"]);
    assert!(parts(&wanted(&[], &["profile=empty"])).is_empty());
    assert_eq!(parts(&wanted(&[], &["profile=preview"])).len(), 5);
    for refused in ["remote", "openshift"] {
        assert!(refusal(&wanted(&[], &[&format!("profile={refused}")])).contains("cannot be honoured"), "{refused}");
    }
    assert_eq!(profile::names().count(), 9);
}

#[test]
fn files_and_sets_are_laid_over_the_profile() {
    let spec = wanted(
        &[
            "{profile: minimal, values: {pilot: {replicaCount: 2}}}",
            "{values: {pilot: {logLevel: debug}}, hub: h.io/x}",
        ],
        &["values.pilot.replicaCount=3", "components.ingressGateways[name:istio-ingressgateway].enabled=true"],
    );
    let manifest = manifest(&spec).unwrap();
    assert_eq!(manifest.parts.len(), 3);
    let deployment = manifest.objects().find(|object| object["kind"] == "Deployment").unwrap();
    assert_eq!(deployment["spec"]["replicas"], json!(3));
    let text = deployment.to_string();
    assert!(text.contains("h.io/x/pilot:") && text.contains("debug"), "{text}");
}

#[test]
fn mesh_config_and_revision_reach_the_control_plane() {
    let mut wanted = wanted(&[], &["meshConfig.trustDomain=example.org", "meshConfig.accessLogFile=/dev/stdout"]);
    wanted.revision = Some("canary".into());
    let manifest = manifest(&wanted).unwrap();
    assert_eq!(manifest.owner, "installed-state-canary");
    let config = manifest.objects().find(|object| object["metadata"]["name"] == "istio-canary").unwrap();
    assert!(config["data"]["mesh"].as_str().unwrap().contains("trustDomain: example.org"));
    assert!(manifest.objects().any(|object| object["metadata"]["name"] == "istiod-canary"));
    assert!(manifest.objects().all(|object| object["metadata"]["labels"]["istio.io/rev"].is_string()));
    // All of them are the revision's own: none is of what the cluster has one of.
    for object in manifest.objects() {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels[crate::manifest::OWNER], "installed-state-canary", "{object:#}");
        assert_eq!(labels[COMPONENT], "Pilot", "{object:#}");
    }
}

#[test]
fn a_further_revision_has_what_is_shared_only_if_the_user_says_so() {
    let canary =
        |files: &[&str], sets: &[&str]| parts(&Wanted { revision: Some("canary".into()), ..wanted(files, sets) });
    assert_eq!(canary(&[], &[]), ["istiod"]);
    assert_eq!(canary(&[], &["profile=ambient"]), ["istiod"]);
    assert_eq!(canary(&[], &["components.ztunnel.enabled=true"]), ["istiod", "ztunnel"]);
    assert_eq!(canary(&["{components: {cni: {enabled: true}}}"], &[]), ["istiod", "istio-cni"]);
    assert_eq!(canary(&["{components: {cni: {enabled: true}}}"], &["components.cni.enabled=false"]), ["istiod"]);
    assert_eq!(canary(&["{components: {base: {namespace: istio-system}}}"], &[]), ["istiod"]);
    assert_eq!(parts(&wanted(&[], &["revision=canary"])), ["istiod"]);
    assert_eq!(parts(&wanted(&[], &["revision=default"])).len(), 4);
}

/// The gateways of a profile have the same names in each revision: a further one must not take them over unasked.
#[test]
fn a_further_revision_leaves_the_gateways_to_whom_they_are() {
    let spec = |files: &[&str], sets: &[&str]| {
        let wanted = Wanted { revision: Some("canary".into()), ..wanted(files, sets) };
        (parts(&wanted), wanted.spec().unwrap().left)
    };
    let (is, left) = spec(&[], &["profile=demo"]);
    assert_eq!(is, ["istiod"]);
    assert_eq!(left, ["base", "cni", "ztunnel", "istio-ingressgateway", "istio-egressgateway"]);
    let (is, left) = spec(&[], &["profile=demo", "components.ingressGateways[name:istio-ingressgateway].enabled=true"]);
    assert_eq!((is, left.len()), (vec!["istiod".to_string(), "istio-ingressgateway".into()], 4));
    let (is, left) = spec(&["{profile: demo, components: {ingressGateways: [{name: new, enabled: true}]}}"], &[]);
    assert_eq!((is, left.len()), (vec!["istiod".to_string(), "new".into()], 5));
    // Whichever way the revision is said; and the default one has them.
    assert_eq!(parts(&wanted(&[], &["profile=demo", "values.revision=canary"])), ["istiod"]);
    assert_eq!(parts(&wanted(&["{profile: demo, revision: canary}"], &[])), ["istiod"]);
    assert_eq!(parts(&wanted(&[], &["profile=demo", "revision=default"])).len(), 6);
    assert!(wanted(&[], &["profile=demo"]).spec().unwrap().left.is_empty());
}

/// A revision may run gateways since an older version, or because it was once asked to: what it is silent on now stays.
#[test]
fn what_is_left_is_never_obsolete() {
    let canary = |sets: &[&str]| Wanted { revision: Some("canary".into()), ..wanted(&[], sets) };
    let object = |component: &str, name: &str, app: &str| {
        let labels = json!({COMPONENT: component, "app": app});
        json!({"kind": "Service", "metadata": {"name": name, "labels": labels}})
    };
    let gateway = object("IngressGateways", "istio-ingressgateway", "istio-ingressgateway");
    let silent = manifest(&canary(&["profile=demo"])).unwrap();
    assert!(silent.leaves(&gateway) && silent.leaves(&object("Cni", "istio-cni-node", "")));
    assert!(silent.leaves(&object("EgressGateways", "account", "istio-egressgateway")));
    for other in [object("IngressGateways", "more", "more"), object("Pilot", "istiod-canary", "istiod"), json!({})] {
        assert!(!silent.leaves(&other), "{other:#}");
    }
    // Who says that it is to go, or that it is this revision's, is heard.
    for said in ["true", "false"] {
        let set = format!("components.ingressGateways[name:istio-ingressgateway].enabled={said}");
        let manifest = manifest(&canary(&["profile=demo", &set])).unwrap();
        assert!(!manifest.leaves(&gateway), "{said}");
    }
    let renamed = manifest(&canary(&["profile=demo", "values.gateways.istio-ingressgateway.name=in"])).unwrap();
    assert!(renamed.leaves(&object("IngressGateways", "in", "in")));
}

/// The labels that each webhook asks for, by its name; whether it may hold up writes is by its name.
fn webhooks(wanted: &Wanted) -> Vec<(String, String)> {
    let manifest = manifest(wanted).unwrap();
    let configurations = manifest.objects().filter(|object| object["kind"] == "ValidatingWebhookConfiguration");
    let all = configurations.flat_map(|object| object["webhooks"].as_array().cloned().unwrap_or_default());
    let selector = |webhook: &serde_json::Value| {
        let labels = webhook["objectSelector"]["matchExpressions"].as_array().cloned().unwrap_or_default();
        let one = |label: &serde_json::Value| {
            assert_eq!(label["key"], "istio.io/rev");
            format!("{} {}", label["operator"].as_str().unwrap(), label["values"]).replace(" null", "")
        };
        labels.iter().map(one).collect::<Vec<_>>().join(" and ")
    };
    all.map(|webhook| (webhook["name"].as_str().unwrap().into(), selector(&webhook))).collect()
}

/// One that is down holds up only the writes of objects that are its own.
#[test]
fn webhooks_are_asked_about_the_objects_of_their_revision() {
    let of = |revision: &str, sets: &[&str]| webhooks(&Wanted { revision: Some(revision.into()), ..wanted(&[], sets) });
    let default = of("default", &[]);
    let have =
        |all: &[(String, String)], name: &str| all.iter().find(|(is, _)| is == name).map(|(_, labels)| labels.clone());
    for (name, labels) in [
        ("rev.validation.istio.io", "DoesNotExist"),
        // An empty label names nobody: it is judged as none.
        ("own.validation.istio.io", r#"In ["default",""]"#),
        ("others.karst.io", r#"Exists and NotIn ["default",""]"#),
    ] {
        assert_eq!(have(&default, name).as_deref(), Some(labels), "{name}: {default:?}");
    }
    let canary = of("canary", &["values.pilot.revisionTags[0]=prod"]);
    assert_eq!(canary.len(), 2);
    assert!(canary.iter().all(|(_, labels)| labels == r#"In ["prod","canary"]"#), "{canary:?}");
    // The tag default: objects without a label, too.
    let tagged = of("canary", &["values.pilot.revisionTags[0]=default"]);
    assert_eq!(have(&tagged, "rev.validation.istio.io").as_deref(), Some("DoesNotExist"));
    let base = of("canary", &["components.base.enabled=true", "values.defaultRevision=canary"]);
    assert_eq!(have(&base, "validation.istio.io").as_deref(), Some("DoesNotExist"));
}

/// A ztunnel that is not with istiod mounts the copy of the mesh configuration that istiod keeps for it.
#[test]
fn a_ztunnel_elsewhere_sees_the_mesh_configuration() {
    let texts = |sets: &[&str]| {
        let manifest = manifest(&wanted(&[], sets)).unwrap();
        let of = |kind: &str| {
            manifest.objects().filter(|object| object["kind"] == kind).map(ToString::to_string).collect::<String>()
        };
        (of("DaemonSet"), of("Deployment"))
    };
    let (ztunnel, _) = texts(&[]);
    assert!(
        ztunnel.contains(r#""configMap":{"items":[{"key":"mesh","path":"mesh"}],"name":"istio","optional":true}"#),
        "{ztunnel}"
    );
    let (ztunnel, istiod) = texts(&["components.ztunnel.namespace=kube-system"]);
    assert!(ztunnel.contains(r#""name":"karst-mesh-config","optional":true"#), "{ztunnel}");
    assert!(ztunnel.contains("https://istiod.istio-system.svc:15012"), "{ztunnel}");
    assert!(istiod.contains("kube-system/ztunnel"), "{istiod}");
}

#[test]
fn gateways_of_a_second_file_are_kept() {
    let files = [
        "{profile: minimal, components: {pilot: {enabled: true}}}",
        "{components: {ingressGateways: [{name: in, enabled: true}]}}",
        "{components: {ingressGateways: [{name: in, namespace: edge}, {name: more, enabled: true}]}}",
    ];
    assert_eq!(parts(&wanted(&files[..2], &[])), ["istio-base", "istiod", "in"]);
    assert_eq!(parts(&wanted(&files, &[])), ["istio-base", "istiod", "in", "more"]);
}

#[test]
fn integers_of_set_stay_integers() {
    let set = "values.pilot.env.MAX_WORKLOAD_CERT_TTL=7776000";
    let rendered = |wanted: &Wanted| {
        let manifest = manifest(wanted).unwrap();
        manifest.objects().find(|object| object["kind"] == "Deployment").unwrap().to_string()
    };
    let text = rendered(&wanted(&[], &[set]));
    assert!(text.contains("\"value\":\"7776000\""), "{text}");
    // A file's number is a float, as in Helm.
    let text = rendered(&wanted(&["{values: {pilot: {env: {MAX_WORKLOAD_CERT_TTL: 7776000}}}}"], &[]));
    assert!(text.contains("\"value\":\"7.776e+06\""), "{text}");
    let yaml = wanted(&[], &[set]).spec().unwrap().to_yaml();
    assert!(yaml.contains("MAX_WORKLOAD_CERT_TTL: 7776000\n"), "{yaml}");
}

#[test]
fn wrong_keys_are_named_with_the_nearest() {
    for (set, says) in [
        ("profile=dmo", "there is no profile \"dmo\"; did you mean demo?"),
        ("values.pilto.replicaCount=2", "spec.values.pilto: there is no such key; did you mean pilot?"),
        ("values.pilot.replicaCont=2", "replicaCont: there is no such key; did you mean replicaCount?"),
        ("components.piolt.enabled=true", "spec.components.piolt: there is no such key; did you mean pilot?"),
        ("components.pilot.enable=true", "spec.components.pilot.enable: there is no such key; did you mean enabled?"),
        ("components.pilot.enabled=yes", "spec.components.pilot.enabled: true or false is wanted, not \"yes\""),
        ("meshConfg.trustDomain=x", "spec.meshConfg: there is no such key; did you mean meshConfig?"),
        ("values.gateways.istio-ingresgateway.x=1", "did you mean istio-ingressgateway?"),
        ("components.pilot.k8s.overlays={a}", "spec.components.pilot.k8s.overlays: there is no such key"),
        ("values.pilot=2", "spec.values.pilot: a map is wanted, not 2"),
        ("a", "--set a: = is missing"),
    ] {
        let said = refusal(&wanted(&[], &[set]));
        assert!(said.contains(says), "{set}: {said}");
    }
    let other = Wanted { files: vec![("v.yaml".into(), "kind: Service".into())], ..Wanted::default() };
    assert!(other.spec().unwrap_err().to_string().contains("v.yaml: kind \"Service\" is not IstioOperator"));
}

#[test]
fn manifests_are_the_same_bytes_in_a_safe_order() {
    let wanted = wanted(&[], &["profile=demo"]);
    let manifest = manifest(&wanted).unwrap();
    let text = manifest.to_yaml();
    assert_eq!(text, super::tests::manifest(&wanted).unwrap().to_yaml());
    let documents = crate::documents::read_all(&text).unwrap();
    assert_eq!(documents.len(), manifest.objects().count());
    let stages: Vec<Stage> = documents.iter().map(Stage::of).collect();
    assert!(stages.is_sorted(), "{stages:?}");
    assert_eq!(stages.last(), Some(&Stage::Webhook));
    for document in &documents {
        assert!(manifest.objects().any(|object| object == document), "{document:#}");
    }
}
