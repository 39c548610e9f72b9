//! The proof of the renderer: every chart, with every values file of `tests/values`, by helm and by us; the objects are the
//! same, and where one refuses, so does the other. `cargo xtask test` runs it once helm is built
//! (`target/cluster/bin/helm`; KARST_HELM and KARST_CHARTS name others).

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_install::{
    chart::{Charts, Release},
    documents,
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, env, fs, path::PathBuf, process::Command};

const KUBERNETES: &str = "v1.34.0";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn charts_folder() -> PathBuf {
    env::var_os("KARST_CHARTS").map_or_else(|| root().join("charts"), PathBuf::from)
}

/// Objects by what names them; a name that comes twice would hide one, so it is counted.
type Objects = BTreeMap<(String, String, String, usize), Value>;

fn named(objects: Vec<Value>) -> Objects {
    let mut all = Objects::new();
    for object in objects {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let metadata = &object["metadata"];
        let mut key = (text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]), 0);
        while all.contains_key(&key) {
            key.3 += 1;
        }
        all.insert(key, whole_numbers(object));
    }
    all
}

/// 1.0 and 1 are the same number.
fn whole_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Object(entries) => {
            Value::Object(entries.into_iter().map(|(key, value)| (key, whole_numbers(value))).collect())
        }
        // A text that is itself YAML (a ConfigMap's) may be folded elsewhere: it is compared by what it says.
        Value::String(text) if text.contains('\n') => match documents::read_one(&text) {
            Ok(inner @ Value::Object(_)) => whole_numbers(inner),
            _ => Value::String(text),
        },
        other => other,
    }
}

fn by_helm(chart: &str, values: &str) -> Result<Objects, String> {
    let helm = env::var_os("KARST_HELM").map_or_else(|| root().join("target/cluster/bin/helm"), PathBuf::from);
    let folder = tempfile(values);
    let out = Command::new(&helm)
        .args(["template", "mesh", "--namespace", "istio-system", "--include-crds", "--skip-tests"])
        .arg(format!("--kube-version={KUBERNETES}"))
        .arg("-f")
        .arg(&folder)
        .arg(charts_folder().join(chart))
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; cargo xtask cluster up builds it", helm.display()));
    fs::remove_file(folder).unwrap();
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    Ok(named(documents::read_all(&String::from_utf8(out.stdout).unwrap()).unwrap()))
}

fn tempfile(values: &str) -> PathBuf {
    let path = env::temp_dir().join(format!("karst-install-{}.yaml", std::process::id()));
    fs::write(&path, values).unwrap();
    path
}

fn by_us(charts: &Charts, chart: &str, values: &str) -> Result<Objects, String> {
    let release = Release {
        name: "mesh".into(),
        namespace: "istio-system".into(),
        upgrade: false,
        kubernetes: KUBERNETES.into(),
    };
    let values = match documents::read_one(values).unwrap() {
        Value::Object(values) => values,
        _ => Map::new(),
    };
    let rendered = charts.get(chart).unwrap().render(&release, values).map_err(|error| error.to_string())?;
    Ok(named(rendered.objects))
}

#[test]
#[ignore = "needs helm, which cargo xtask cluster up builds; cargo xtask test runs it"]
fn every_chart_is_rendered_as_helm_renders_it() {
    let charts = Charts::folder(&charts_folder()).unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir(root().join("crates/install/tests/values")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 20, "{} values files", files.len());
    let (mut rendered, mut refused, mut wrong) = (0, 0, Vec::new());
    for file in &files {
        let values = fs::read_to_string(file).unwrap();
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        for chart in charts.names() {
            match (by_helm(chart, &values), by_us(&charts, chart, &values)) {
                (Ok(helm), Ok(ours)) => {
                    rendered += 1;
                    wrong.extend(differences(&helm, &ours).map(|text| format!("{chart} {name}: {text}")));
                }
                (Err(_), Err(_)) => refused += 1,
                (Ok(_), Err(error)) => wrong.push(format!("{chart} {name}: only we refuse it: {error}")),
                (Err(error), Ok(_)) => wrong.push(format!("{chart} {name}: only helm refuses it: {error}")),
            }
        }
    }
    println!("{rendered} renderings are the same, {refused} are refused by both");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rendered >= 60, "{rendered} renderings: most values have to be accepted by some chart");
}

/// Nodes do not replace the addresses of clients where `externalTrafficPolicy` is Local (docs/tasks/client-addresses.md).
#[test]
fn a_gateway_may_keep_the_addresses_of_clients() {
    let charts = Charts::folder(&charts_folder()).unwrap();
    let policy = |values: &str| {
        let all = by_us(&charts, "gateway", values)?;
        let (_, service) = all.iter().find(|((kind, ..), _)| kind == "Service").unwrap();
        assert_eq!(service["spec"]["type"], "LoadBalancer");
        Ok::<_, String>(service["spec"]["externalTrafficPolicy"].as_str().map(String::from))
    };
    assert_eq!(policy("{}"), Ok(None));
    assert_eq!(policy("service: {externalTrafficPolicy: Local}"), Ok(Some("Local".into())));
    let wrong = policy("service: {externalTrafficPolicy: Nearby}").unwrap_err();
    assert!(wrong.contains("externalTrafficPolicy"), "{wrong}");
}

fn differences(helm: &Objects, ours: &Objects) -> Option<String> {
    let text = |object: Option<&Value>| object.map_or("nothing".into(), |object| format!("{object:#}"));
    let mut keys: Vec<_> = helm.keys().chain(ours.keys()).collect();
    keys.sort();
    keys.dedup();
    let different = keys.into_iter().find(|key| helm.get(*key) != ours.get(*key))?;
    let (left, right) = (text(helm.get(different)), text(ours.get(different)));
    let line = left.lines().zip(right.lines()).find(|(left, right)| left != right);
    Some(format!("{different:?}: first different lines, helm and ours: {line:?}"))
}
