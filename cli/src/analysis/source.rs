//! Objects to be judged: of files, directories, standard input, and of the cluster.

use crate::{
    cluster::{Cluster, Resource},
    input,
    problem::{Exit, Problem},
};
use karst_controller::analysis::{Sort, Statement};
use karst_manifest::{
    State, code, dir,
    kinds::{self, KINDS},
    parse::{self, Located},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Code of a list in a file (KARST-0003): the mesh's own directories have none, and a command line reads them.
const LIST: u16 = 3;

/// What was read of files.
#[derive(Debug, Default)]
pub struct Input {
    /// Each document as it is written, with its place.
    pub documents: Vec<(PathBuf, usize, Value)>,
    /// What is not YAML, or not as its kind is, of all files.
    pub problems: Vec<karst_manifest::Problem>,
    /// The objects of files without problems.
    pub objects: Vec<Arc<Located>>,
}

/// The files that the paths stand for: a directory is all of its manifests.
///
/// # Errors
/// If a path does not exist, or a directory has sub-directories and `recursive` is not wanted.
pub fn files(paths: &[PathBuf], recursive: bool) -> Result<Vec<PathBuf>, Problem> {
    let mut out = vec![];
    for path in paths {
        if path.as_os_str() == "-" || path.is_file() {
            out.push(path.clone());
        } else if path.is_dir() {
            let direct = |file: &PathBuf| recursive || file.parent() == Some(path);
            out.extend(dir::files(path).into_iter().filter(direct));
        } else {
            return Err(Problem::new(format!("{}: no such file or directory", path.display()))
                .next("check the path; - reads standard input")
                .exit(Exit::Data));
        }
    }
    Ok(out)
}

/// Reads files.
///
/// # Errors
/// If one cannot be read.
pub fn read(files: &[PathBuf], namespace: &str) -> Result<Input, Problem> {
    let mut read = Input::default();
    for file in files {
        let text = input::read(file)?;
        let name = if file == Path::new("-") { Path::new("stdin") } else { file.as_path() };
        for (line, document) in parse::values(&text) {
            match items(&document) {
                Some(items) => read.take_items(items, name, line, namespace),
                None => read.documents.push((name.into(), line, in_namespace(document, namespace))),
            }
        }
        // A list is read item by item, as `kubectl get -o yaml` writes it.
        let problems = parse::file(name, &text).err().unwrap_or_default();
        read.problems.extend(problems.into_iter().filter(|problem| code::of(&problem.message) != Some(LIST)));
    }
    // From the documents and not from the text: the namespace is that of -n.
    for (file, line, document) in &read.documents {
        let at = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let group = at("/apiVersion").split_once('/').map_or("", |(group, _)| group);
        let Some((kind, ..)) = kinds::known(at("/kind"), group) else { continue };
        if let Ok(object) = parse::value(kind, document.clone()) {
            read.objects.push(Arc::new(Located { object, file: file.clone(), line: *line }));
        }
    }
    Ok(read)
}

/// The items of a list; none if it is no list.
fn items(document: &Value) -> Option<&Vec<Value>> {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    document.get("items").and_then(Value::as_array).filter(|_| kind.ends_with("List"))
}

fn in_namespace(mut document: Value, namespace: &str) -> Value {
    default_namespace(&mut document, namespace);
    document
}

fn default_namespace(document: &mut Value, namespace: &str) {
    let text = |document: &Value, pointer: &str| {
        document.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (kind, version) = (text(document, "/kind"), text(document, "/apiVersion"));
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let is_namespaced = kinds::known(&kind, group).is_none_or(|(_, _, namespaced)| *namespaced);
    if is_namespaced
        && text(document, "/metadata/namespace").is_empty()
        && let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("namespace".into(), namespace.into());
    }
}

impl Input {
    /// Takes the items of a list; what is wrong with one has the list's line.
    fn take_items(&mut self, items: &[Value], file: &Path, line: usize, namespace: &str) {
        for item in items {
            let document = in_namespace(item.clone(), namespace);
            let at = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let group = at("/apiVersion").split_once('/').map_or("", |(group, _)| group);
            let known = kinds::known(at("/kind"), group);
            if let Some(Err(problem)) = known.map(|(kind, ..)| parse::value(kind, document.clone())) {
                self.problems.push(karst_manifest::Problem { file: file.into(), line, ..problem });
            }
            self.documents.push((file.into(), line, document));
        }
    }

    /// The state that these files are among the objects of `others`, which they replace by name.
    pub fn over(&self, others: Vec<Arc<Located>>) -> State {
        let key = |one: &Arc<Located>| {
            let meta = one.object.meta();
            (one.object.kind(), meta.namespace.clone(), meta.name.clone())
        };
        let own: BTreeSet<_> = self.objects.iter().map(key).collect();
        let mut objects: Vec<Arc<Located>> = others.into_iter().filter(|one| !own.contains(&key(one))).collect();
        objects.extend(self.objects.iter().cloned());
        State { objects, ..State::default() }
    }

    /// Documents that are no YAML or have no kind, and kinds that are refused: what no object stands for.
    pub fn unread(&self) -> Vec<Statement> {
        self.problems
            .iter()
            .map(Statement::from)
            .map(|statement| Statement { sort: Sort::Problem, ..statement })
            .collect()
    }
}

/// What the cluster has.
#[derive(Debug, Default)]
pub struct Stored {
    /// The objects, as the mesh reads them.
    pub objects: Vec<Arc<Located>>,
    /// The same as they are stored, with those that cannot be read. Without Secrets.
    pub values: Vec<Value>,
    /// Kinds that could not be had.
    pub notes: Vec<String>,
}

/// All objects of the cluster that Karst reads, and notes on kinds that could not be read.
///
/// # Errors
/// If the API server cannot be reached.
pub async fn from_cluster(cluster: &Cluster) -> Result<(Vec<Arc<Located>>, Vec<String>), Problem> {
    of_the_mesh(cluster).await.map(|stored| (stored.objects, stored.notes))
}

/// The same, and as they are stored; with what says which objects are judged when they are applied.
///
/// # Errors
/// If the API server cannot be reached.
pub async fn all_stored(cluster: &Cluster) -> Result<Stored, Problem> {
    let mut all = of_the_mesh(cluster).await?;
    match cluster.list(Resource::VALIDATING_WEBHOOK, None, "app=istiod").await {
        Ok(found) => all.values.extend(found.into_iter().flatten().filter_map(|one| serde_json::to_value(one).ok())),
        Err(problem) => all.notes.push(format!("note: {problem}")),
    }
    Ok(all)
}

async fn of_the_mesh(cluster: &Cluster) -> Result<Stored, Problem> {
    let Stored { mut objects, mut values, mut notes } = Stored::default();
    // What the control plane looks at in CRDs is which of its statuses it may write: nothing to judge.
    for (kind, group, _) in KINDS.iter().filter(|(kind, ..)| *kind != "CustomResourceDefinition") {
        let listed = match stored(cluster, kind, group).await {
            Ok(listed) => listed,
            // Secrets most of all: what depends on them is then said of, wrongly or not, and the note tells why.
            Err(problem) if matches!(*kind, "Secret" | "ConfigMap" | "ClusterTrustBundle" | "ServiceCIDR") => {
                notes.push(format!("note: {problem}"));
                continue;
            }
            Err(problem) => return Err(problem),
        };
        if *kind != "Secret" {
            values.extend(listed.iter().cloned());
        }
        for value in listed {
            // An object that another version of the API has written is the control plane's to tell of.
            match parse::value(kind, value) {
                Ok(object) => objects.push(Arc::new(Located { object, file: PathBuf::new(), line: 0 })),
                Err(problem) => notes.push(format!("note: {problem}")),
            }
        }
    }
    Ok(Stored { objects, values, notes })
}

/// The objects of a kind as they are stored; none if the API server does not know it.
///
/// # Errors
/// If the API server refuses or cannot be reached.
pub async fn stored(cluster: &Cluster, kind: &'static str, group: &'static str) -> Result<Vec<Value>, Problem> {
    let name = kinds::api_kind(kind);
    for version in versions(kind) {
        let resource = Resource::new(group, version, name, plural(kind));
        if let Some(found) = cluster.list(resource, None, "").await? {
            return Ok(found.into_iter().filter_map(|one| serde_json::to_value(one).ok()).collect());
        }
    }
    Ok(vec![])
}

/// The versions that are asked for, as the controller does.
fn versions(kind: &str) -> &'static [&'static str] {
    match kind {
        "ReferenceGrant" => &["v1", "v1beta1"],
        "TCPRoute" | "UDPRoute" => &["v1", "v1alpha2"],
        "TLSRoute" => &["v1", "v1alpha3", "v1alpha2"],
        "BackendTLSPolicy" => &["v1", "v1alpha3"],
        "HTTPFilter" | "XBackendTrafficPolicy" => &["v1alpha1"],
        "ClusterTrustBundle" => &["v1", "v1beta1", "v1alpha1"],
        "ServiceCIDR" => &["v1", "v1beta1"],
        _ => &["v1"],
    }
}

fn plural(kind: &str) -> &'static str {
    const PLURALS: &[(&str, &str)] = &[
        ("Namespace", "namespaces"),
        ("Node", "nodes"),
        ("Pod", "pods"),
        ("Service", "services"),
        ("ServiceAccount", "serviceaccounts"),
        ("ConfigMap", "configmaps"),
        ("Secret", "secrets"),
        ("Deployment", "deployments"),
        ("EndpointSlice", "endpointslices"),
        ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        ("ClusterTrustBundle", "clustertrustbundles"),
        ("ServiceCIDR", "servicecidrs"),
        ("CustomResourceDefinition", "customresourcedefinitions"),
        ("GatewayClass", "gatewayclasses"),
        ("Gateway", "gateways"),
        ("ListenerSet", "listenersets"),
        ("HTTPRoute", "httproutes"),
        ("GRPCRoute", "grpcroutes"),
        ("TCPRoute", "tcproutes"),
        ("TLSRoute", "tlsroutes"),
        ("UDPRoute", "udproutes"),
        ("BackendTLSPolicy", "backendtlspolicies"),
        ("XBackendTrafficPolicy", "xbackendtrafficpolicies"),
        ("ReferenceGrant", "referencegrants"),
        ("VirtualService", "virtualservices"),
        ("IstioGateway", "gateways"),
        ("DestinationRule", "destinationrules"),
        ("ServiceEntry", "serviceentries"),
        ("WorkloadEntry", "workloadentries"),
        ("AuthorizationPolicy", "authorizationpolicies"),
        ("PeerAuthentication", "peerauthentications"),
        ("RequestAuthentication", "requestauthentications"),
        ("Telemetry", "telemetries"),
        ("HTTPFilter", "httpfilters"),
    ];
    PLURALS.iter().find(|(name, _)| *name == kind).map_or("", |(_, plural)| plural)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_plural() {
        for (kind, ..) in KINDS {
            assert!(!plural(kind).is_empty(), "{kind}: without it `analyze` asks for no objects of the kind");
        }
    }

    #[test]
    fn a_list_is_read_item_by_item() {
        let file = std::env::temp_dir().join(format!("karst-list-{}.yaml", std::process::id()));
        let item = |name: &str, spec: &str| {
            format!(
                "- apiVersion: security.istio.io/v1\n  kind: AuthorizationPolicy\n  metadata: {{name: {name}}}\n  spec: {spec}\n"
            )
        };
        let list =
            format!("apiVersion: v1\nkind: List\nitems:\n{}{}", item("good", "{}"), item("bad", "{acton: DENY}"));
        std::fs::write(&file, list).unwrap();
        let input = read(std::slice::from_ref(&file), "shop");
        std::fs::remove_file(&file).unwrap();
        let input = input.unwrap();
        let names: Vec<&str> = input.objects.iter().map(|one| one.object.meta().name.as_str()).collect();
        assert_eq!((input.documents.len(), names), (2, vec!["good"]));
        assert_eq!(input.problems.len(), 1, "{:?}", input.problems);
        assert_eq!((input.problems[0].file.clone(), input.problems[0].line), (file, 1));
    }

    #[test]
    fn a_document_without_a_namespace_is_of_the_wanted_one() {
        let mut route = serde_json::json!({ "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "a" } });
        default_namespace(&mut route, "shop");
        assert_eq!(route.pointer("/metadata/namespace").and_then(Value::as_str), Some("shop"));
        let mut namespace = serde_json::json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "a" } });
        default_namespace(&mut namespace, "shop");
        assert_eq!(namespace.pointer("/metadata/namespace"), None);
    }
}
