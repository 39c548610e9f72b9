//! The validation webhook: what the CRDs' schemas cannot say is refused when it is applied, with the object, the field and
//! the fix. It answers by the same rules that the model is compiled by ([`check`]).
//!
//! The webhook's configuration comes from the chart with `failurePolicy: Ignore`. Once the API server has been seen to
//! get a refusal through it, it becomes `Fail` ([`keep`]): an installation that cannot be reached blocks nobody, and one that
//! can be reached lets nothing by.

use crate::{
    convert::{
        Mesh, Revision, check,
        finding::{Finding, Reason},
        of_gateway, of_listener_set,
    },
    metrics::reviews::{Reviewed, Reviews, Why},
    tls::Connection,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use karst_kube::{Kube, WebhookState};
use karst_manifest::{
    Object, kinds, parse,
    unsupported::{UnsupportedKind, unsupported},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{convert::Infallible, net::SocketAddr, pin::Pin, rc::Rc, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::{Stream, StreamExt};

/// Largest review that is read, in bytes. The API server's own limit for an object is 3 MiB, and an update has two.
const MAX_BODY: usize = 8 << 20;
/// A review must be done within this time (the API server gives up after 10 s).
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to bring the configuration in order.
const RETRY: Duration = Duration::from_secs(2);
/// An object with this annotation is always refused: so it is found out whether the API server reaches us (Istio's name).
const ALWAYS_REFUSED: &str = "internal.istio.io/webhook-always-reject";

#[derive(Deserialize)]
struct Review {
    #[serde(default)]
    request: Option<AdmissionRequest>,
}
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AdmissionRequest {
    uid: String,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Value,
}
#[derive(Default, Deserialize)]
#[serde(default)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

/// What is wrong with an object, and what is to be said of it besides.
#[derive(Default)]
struct Judged {
    problems: Vec<String>,
    warnings: Vec<String>,
    /// Why it is refused, if there are problems.
    why: Option<Why>,
}

impl Judged {
    fn refused(problem: String, why: Why) -> Self {
        Self { problems: vec![problem], warnings: vec![], why: Some(why) }
    }
}

/// What is to be said of an object among those that are there.
type Around = Box<dyn Fn(Object) -> Pin<Box<dyn Future<Output = Vec<Finding>>>>>;

/// What reviews are answered by.
pub struct Validator {
    pub mesh: Mesh,
    pub around: Around,
    pub counts: Arc<Reviews>,
}

/// What is asked for by the path: objects of our own kinds are refused, those of others only warned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WebhookPath {
    Validate,
    Warn,
    /// Objects that are for another revision: all that is said is that nobody may be that one.
    Others,
}

/// Why a review has no answer.
#[derive(Debug, thiserror::Error)]
enum ReviewError {
    #[error("not an AdmissionReview: {0}")]
    NotAReview(#[from] serde_json::Error),
    #[error("an AdmissionReview without a request")]
    NoRequest,
}

/// Answers a review.
async fn answer(body: &[u8], asked: WebhookPath, by: &Validator) -> Result<Value, ReviewError> {
    let review: Review = serde_json::from_slice(body)?;
    let ask = review.request.ok_or(ReviewError::NoRequest)?;
    if asked == WebhookPath::Others {
        let warnings = unknown_revision(ask, by).await;
        return Ok(review_of(json!({ "uid": warnings.0, "allowed": true, "warnings": warnings.1 })));
    }
    let what = Reviewed::of(&ask.kind.group, &ask.kind.version, &ask.kind.kind);
    let Judged { mut problems, mut warnings, why } = validate(ask.kind, &ask.operation, ask.object, by).await;
    if asked == WebhookPath::Warn {
        // Its status says the same; who tries what another version of the API has is not to be stopped.
        warnings = problems.drain(..).chain(warnings).collect();
        let mut response = json!({ "uid": ask.uid, "allowed": true });
        if !warnings.is_empty() {
            response["warnings"] = json!(warnings);
        }
        return Ok(review_of(response));
    }
    let allowed = problems.is_empty();
    by.counts.note(what, why);
    let mut response = json!({ "uid": ask.uid, "allowed": allowed });
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    if !allowed {
        response["status"] = json!({ "code": 422, "reason": "Invalid", "message": problems.join("; ") });
    }
    Ok(review_of(response))
}

fn review_of(response: Value) -> Value {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
}

/// What is to be said of an object whose label names a revision, if nobody is that one; with the uid of the review.
async fn unknown_revision(ask: AdmissionRequest, by: &Validator) -> (String, Vec<String>) {
    let is_written = matches!(ask.operation.as_str(), "CREATE" | "UPDATE");
    let known = kinds::known(&ask.kind.kind, &ask.kind.group).filter(|_| is_written);
    // What is wrong with it is not for this revision to say.
    let Some(Ok(object)) = known.map(|(kind, ..)| parse::value(kind, ask.object)) else { return (ask.uid, vec![]) };
    let found = (by.around)(object).await;
    let said = found.iter().filter(|finding| finding.reason == Reason::RevisionNotFound).map(Finding::text);
    (ask.uid, said.collect())
}

/// How a revision's webhook signs the refusal that says that it is reached.
fn refused_by(namespace: &str, revision: &str) -> String {
    format!("by {namespace}/{revision}")
}

/// Judges an object as it is written, and among those that are there.
async fn validate(kind: Kind, operation: &str, object: Value, by: &Validator) -> Judged {
    if !matches!(operation, "CREATE" | "UPDATE") {
        return Judged::default();
    }
    if object.pointer("/metadata/annotations").is_some_and(|a| a.get(ALWAYS_REFUSED).is_some()) {
        let by = refused_by(&by.mesh.root_namespace, by.mesh.revision.name());
        return Judged::refused(
            format!(
                "metadata.annotations[{ALWAYS_REFUSED}]: objects with this annotation are always rejected [KARST-0900] {by}"
            ),
            Why::Invalid,
        );
    }
    // On its way out: a finalizer must be removable whatever the object says.
    if object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null()) {
        return Judged::default();
    }
    let written = check::written(&kind.kind, &kind.group, &object);
    let Some((known, ..)) = kinds::known(&kind.kind, &kind.group) else {
        let name = |f: &str| object.pointer(&format!("/metadata/{f}")).and_then(Value::as_str).unwrap_or_default();
        return match unsupported(&kind.kind, &kind.group) {
            Some(UnsupportedKind::Refused(text)) => {
                let problem = format!("{} {}/{}: {text}", kind.kind, name("namespace"), name("name"));
                Judged::refused(problem, Why::UnknownType)
            }
            Some(UnsupportedKind::Warned(_)) | None => Judged { warnings: written, ..Judged::default() },
        };
    };
    match parse::value(known, object) {
        Err(p) => Judged::refused(p.to_string(), Why::Unconvertible),
        Ok(object) => {
            let around = (by.around)(object.clone()).await.into_iter().map(|f| f.text());
            let listeners = match &object {
                Object::Gateway(g) => of_gateway(g),
                Object::ListenerSet(s) => of_listener_set(s),
                _ => vec![],
            };
            let warnings = written.into_iter().chain(around).chain(listeners).collect();
            // A Gateway alone lacks the Secrets that it names, a ListenerSet its Gateway: the status says what of it can be.
            let alone = matches!(object, Object::Gateway(_) | Object::ListenerSet(_) | Object::BackendTLSPolicy(_));
            let problems = if alone { vec![] } else { check::problems(object, &by.mesh) };
            let why = (!problems.is_empty()).then_some(Why::Invalid);
            Judged { problems: problems.iter().map(ToString::to_string).collect(), warnings, why }
        }
    }
}

/// Serves reviews until the process ends. Must run in a `LocalSet`.
pub async fn serve(mut connections: impl Stream<Item = std::io::Result<Connection>> + Unpin, by: Validator) {
    let by = Rc::new(by);
    while let Some(stream) = connections.next().await {
        let Ok(stream) = stream else { continue };
        let by = by.clone();
        tokio::task::spawn_local(async move {
            let review = service_fn(move |r: Request<Incoming>| {
                let by = by.clone();
                async move { Ok::<_, Infallible>(respond(r, &by).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            let served = http.keep_alive(false).serve_connection(TokioIo::new(stream), review);
            match tokio::time::timeout(PATIENCE, served).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => tracing::debug!(error = %e, "webhook connection failed"),
                Err(_) => tracing::debug!("webhook connection took too long"),
            }
        });
    }
}

async fn respond(request: Request<Incoming>, by: &Validator) -> Response<Full<Bytes>> {
    let text = |status: u16, t: String| {
        let mut r = Response::new(Full::new(Bytes::from(t)));
        *r.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
        r
    };
    let asked = match request.uri().path() {
        p if p.starts_with("/validate") => WebhookPath::Validate,
        "/warn" => WebhookPath::Warn,
        "/others" => WebhookPath::Others,
        _ => return text(404, "POST an AdmissionReview to /validate, /warn or /others\n".into()),
    };
    if request.method() != hyper::Method::POST {
        return text(404, "POST an AdmissionReview to /validate, /warn or /others\n".into());
    }
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(b) => b.to_bytes(),
        Err(e) => return text(413, format!("the review cannot be read: {e}\n")),
    };
    let answered = answer(&body, asked, by).await;
    if answered.is_err() {
        by.counts.note(Reviewed::of("", "", ""), Some(Why::Undecodable));
    }
    match answered {
        Ok(v) => {
            let mut response = text(200, v.to_string());
            let json = hyper::header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
            response
        }
        Err(e) => text(400, format!("{e}\n")),
    }
}

/// Where the webhook listens.
///
/// # Errors
/// If the address is taken.
pub async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    karst_rt::admin::bind(addr, "--webhook-addr").await
}

/// The name of a revision's ValidatingWebhookConfiguration (Istio's).
pub fn configuration(revision: &Revision, namespace: &str) -> String {
    format!("{}-{namespace}", revision.named("istio-validator"))
}

/// Istio's name of the configuration for objects without a label, where the default revision is a named one.
const DEFAULT_VALIDATOR: &str = "istiod-default-validator";

/// A configuration that this revision may have to keep in order.
#[derive(Clone, Debug)]
pub struct Kept {
    name: String,
    namespace: String,
    /// The one whose server it must lead to.
    revision: String,
    /// Label of an object that it judges. None: those without one.
    probe: Option<String>,
    /// It need not be there.
    is_optional: bool,
    /// The Service that leads to us.
    service: String,
}

impl Kept {
    /// Those of a revision: its own, and the one of the default revision, which may be this one.
    pub fn of(revision: &Revision, namespace: &str) -> [Self; 2] {
        let (namespace, of) = (namespace.to_string(), revision.name().to_string());
        let own = Self {
            name: configuration(revision, &namespace),
            namespace: namespace.clone(),
            revision: of.clone(),
            probe: (!revision.is_default()).then(|| of.clone()),
            is_optional: false,
            service: revision.named("istiod"),
        };
        let name = DEFAULT_VALIDATOR.to_string();
        let service = own.service.clone();
        let default = Self { name, namespace, revision: of, probe: None, is_optional: true, service };
        [own, default]
    }
}

/// Keeps a configuration in order, while we lead our revision: the root that its webhooks are verified by, and `Fail` once the
/// API server has been seen to reach them. (One writer: during a renewal replicas hold different roots, and would write them in turns.)
pub async fn keep(kube: Kube, kept: Kept, mut roots: watch::Receiver<String>, mut leads: watch::Receiver<bool>) {
    let mut told = String::new();
    loop {
        if leads.wait_for(|l| *l).await.is_err() {
            return;
        }
        let root = roots.borrow_and_update().clone();
        let result = step(&kube, &kept, root).await;
        let text = match &result {
            Ok(Done::Whole(None)) if !kept.is_optional => {
                "the ValidatingWebhookConfiguration does not exist: invalid objects are only reported".into()
            }
            Ok(Done::Waits) => {
                "the API server does not reach the webhook yet: invalid objects are only reported".into()
            }
            Ok(Done::Step | Done::Whole(_)) => String::new(),
            Err(e) => format!("{e:#}"),
        };
        if text != told && !text.is_empty() {
            tracing::warn!(webhook = kept.name, "{text}");
        }
        told = text;
        match result {
            Ok(Done::Step) => {}
            Ok(Done::Whole(now)) => tokio::select! {
                () = kube.webhook_differs(&kept.name, now.as_ref()) => {}
                r = roots.changed() => if r.is_err() { return },
            },
            Ok(Done::Waits) | Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

enum Done {
    /// Something was written; there may be more to do.
    Step,
    /// It is not reached yet.
    Waits,
    /// There is nothing to do until it says something else than this.
    Whole(Option<WebhookState>),
}

async fn step(kube: &Kube, kept: &Kept, root: String) -> anyhow::Result<Done> {
    let name = kept.name.as_str();
    let Some(now) = kube.webhook(name).await? else { return Ok(Done::Whole(None)) };
    // It leads to another revision, whose leader keeps it, or to somebody else's control plane.
    if now.revision != kept.revision || now.service != (kept.namespace.clone(), kept.service.clone()) {
        return Ok(Done::Whole(Some(now)));
    }
    if now.root != root.as_bytes() {
        // Not `Fail` before it has been tried with a root of ours (`fail` says so); a renewed one is as good as the one before.
        let want = WebhookState { root: root.into_bytes(), ..now };
        kube.set_webhook(name, &want).await?;
        return Ok(Done::Step);
    }
    if now.fail {
        return Ok(Done::Whole(Some(now)));
    }
    let probe = (kept.namespace.as_str(), "karst-webhook-probe");
    let by = refused_by(&kept.namespace, &kept.revision);
    if !kube.is_refused(probe, ALWAYS_REFUSED, kept.probe.as_deref(), &by).await? {
        return Ok(Done::Waits);
    }
    kube.set_webhook(name, &WebhookState { fail: true, ..now }).await?;
    tracing::info!(webhook = name, "the API server reaches the webhook: invalid objects are rejected from now on");
    Ok(Done::Step)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::convert::{around, compile, tests::mesh};
    use karst_manifest::{State, code};

    /// Whether it is let in, and what kubectl prints.
    fn reviewed(asked: WebhookPath, there: &str, kind: (&str, &str), object: &str) -> (bool, Vec<String>) {
        let objects = parse::file("t.yaml".as_ref(), there).unwrap().into_iter().map(Arc::new).collect();
        let state = State { objects, ..State::default() };
        let model = compile(&state, &mesh()).0;
        let by = Validator {
            mesh: mesh(),
            around: Box::new(move |o| Box::pin(std::future::ready(around(&o, &state, &model, &mesh())))),
            counts: Arc::default(),
        };
        let object: Value = serde_yaml_ng::from_str(object).unwrap();
        let kind = json!({ "group": kind.0, "kind": kind.1 });
        let ask = json!({ "request": { "uid": "u", "kind": kind, "operation": "CREATE", "object": object } });
        let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let a = rt.block_on(answer(ask.to_string().as_bytes(), asked, &by)).unwrap();
        let warnings = a["response"]["warnings"].as_array().cloned().unwrap_or_default();
        let texts = warnings.iter().map(|w| w.as_str().unwrap().to_string()).collect();
        (a["response"]["allowed"].as_bool().unwrap(), texts)
    }

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";

    #[test]
    fn what_nobody_executes_is_let_in_with_a_warning() {
        let route =
            "metadata: {name: v, namespace: a}\nspec: {hosts: [HOST], http: [{route: [{destination: {host: s}}]}]}";
        let istio = |host: &str| {
            reviewed(
                WebhookPath::Validate,
                SERVICE,
                ("networking.istio.io", "VirtualService"),
                &route.replace("HOST", host),
            )
        };
        let text = "spec.hosts[0]: s.a.svc.cluster.local uses no waypoint, so this has no effect: label the service or its namespace istio.io/use-waypoint [KARST-0701]";
        assert_eq!(istio("s"), (true, vec![text.to_string()]));
        let text = "spec.hosts[0]: service \"none\" does not exist: this has no effect until it does [KARST-0307]";
        assert_eq!(istio("none"), (true, vec![text.to_string()]));
        let route = "metadata: {name: r, namespace: a}\nspec: {parentRefs: [{group: '', kind: Service, name: s}], rules: [{matches: [{path: {type: TYPE, value: '('}}], backendRefs: [{name: s, port: 80}]}]}";
        let api = |kind: &str| {
            let api = ("gateway.networking.k8s.io", "HTTPRoute");
            reviewed(WebhookPath::Warn, SERVICE, api, &route.replace("TYPE", kind))
        };
        let (allowed, warnings) = api("RegularExpression");
        assert!(allowed && warnings.len() == 2, "a route that cannot be used is told, not refused: {warnings:?}");
        assert!(warnings[0].contains("invalid regular expression") && warnings[1].starts_with("spec.parentRefs[0]: "));
        let namespace = |label: &str| {
            let object = format!("metadata: {{name: a, labels: {{istio-injection: {label}}}}}");
            reviewed(WebhookPath::Warn, SERVICE, ("", "Namespace"), &object)
        };
        let text = "metadata.labels[istio-injection]: has no effect, because the mesh has no sidecars: to add its pods to the mesh, use the label istio.io/dataplane-mode=ambient [KARST-0707]";
        assert_eq!(namespace("enabled"), (true, vec![text.to_string()]));
        assert_eq!(namespace("disabled"), (true, vec![]));
    }

    /// The rows of docs/refused.md that are let in.
    #[test]
    fn what_is_accepted_with_a_warning_is() {
        let doc = include_str!("../../docs/refused.md");
        let (_, accepted) = doc.split_once("## What is accepted with a warning").unwrap();
        let rows: Vec<&str> = accepted.lines().filter(|l| l.starts_with("| ") && l.contains('`')).collect();
        assert!(rows.len() >= 15);
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, kind, spec, text, _] = cells[..] else { panic!("{row}") };
            // Of the two Gateways Istio's.
            let ours = kinds::KINDS.iter().find(|(k, g, _)| kinds::api_kind(k) == kind && g.ends_with("istio.io"));
            let group = ours.map(|k| k.1).or(idle_group(kind)).unwrap();
            let object = format!("metadata: {{name: x, namespace: default}}\nspec: {}\n", spec.trim_matches('`'));
            let (allowed, warnings) = reviewed(WebhookPath::Validate, "", (group, kind), &object);
            assert!(warnings.iter().all(|w| code::of(w).is_some()), "has no code: {warnings:?}");
            assert!(allowed && warnings.first().is_some_and(|w| w == text.trim_matches('`')), "{row}: {warnings:?}");
        }
    }

    fn idle_group(kind: &str) -> Option<&'static str> {
        karst_manifest::unsupported::UNSUPPORTED.iter().find(|(k, ..)| *k == kind).map(|(_, g, _)| *g)
    }

    /// Whoever labels an object for a revision that nobody is hears of it, and of nothing else that is wrong with it.
    #[test]
    fn a_revision_that_nobody_is_is_told_at_apply() {
        let control_plane = "apiVersion: v1\nkind: Service\nmetadata: {name: istiod-canary, namespace: istio-system, labels: {app: istiod, istio.io/rev: canary}}\nspec: {}\n";
        let review = |kind: (&str, &str), label: &str, spec: &str| {
            let object =
                format!("metadata: {{name: p, namespace: a, labels: {{istio.io/rev: {label}}}}}\nspec: {spec}\n");
            let (allowed, warnings) = reviewed(WebhookPath::Others, control_plane, kind, &object);
            assert!(allowed);
            warnings
        };
        let policy = ("security.istio.io", "AuthorizationPolicy");
        let gateway = ("gateway.networking.k8s.io", "Gateway");
        for (kind, spec) in [(policy, "{rules: [{from: []}]}"), (gateway, "{gatewayClassName: istio}")] {
            let warnings = review(kind, "canry", spec);
            assert!(warnings.len() == 1 && warnings[0].contains("revision \"canry\""), "{kind:?} {warnings:?}");
            assert!(review(kind, "canary", spec).is_empty(), "its own revision judges it");
        }
        assert!(review(policy, "canry", "{unknown: 1}").is_empty());
    }

    #[test]
    fn a_revision_keeps_its_own_webhooks() {
        let of = |name: &str| {
            let revision = Revision { name: name.into(), tags: vec![] };
            Kept::of(&revision, "istio-system").map(|kept| (kept.name, kept.revision, kept.probe))
        };
        let default = || "default".to_string();
        let [own, shared] = of("");
        assert_eq!(own, ("istio-validator-istio-system".into(), default(), None));
        assert_eq!(shared, ("istiod-default-validator".into(), default(), None));
        let [own, shared] = of("x");
        assert_eq!(own, ("istio-validator-x-istio-system".into(), "x".into(), Some("x".into())));
        assert_eq!(shared, ("istiod-default-validator".into(), "x".into(), None));
    }

    #[test]
    fn gateways_are_not_missed_secrets() {
        let object = "metadata: {name: g, namespace: a}\nspec: {gatewayClassName: istio, listeners: [{name: s, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]}}]}";
        let is = reviewed(WebhookPath::Warn, SERVICE, ("gateway.networking.k8s.io", "Gateway"), object);
        assert_eq!(is, (true, vec![]));
        let gateway = ("gateway.networking.k8s.io", "Gateway");
        let frontend = object.replace("spec: {", "spec: {tls: {frontend: {default: {validation: {}}}}, ");
        assert_eq!(reviewed(WebhookPath::Warn, SERVICE, gateway, &frontend), (true, vec![]));
        // What is refused whatever is there is told.
        let own = object.replace("tls: {", "tls: {frontendValidation: {}, ");
        let (allowed, said) = reviewed(WebhookPath::Warn, SERVICE, gateway, &own);
        assert!(allowed && said.len() == 1, "{said:?}");
        let filtered =
            |filters: &str| object.replace("protocol: HTTPS", &format!("protocol: HTTPS, filters: {filters}"));
        assert_eq!(reviewed(WebhookPath::Warn, SERVICE, gateway, &filtered("{requests: []}")), (true, vec![]));
        for (filters, says) in
            [("{connection: []}", "filters: "), ("{requests: [{type: CORS}]}", "filters.requests[0]: ")]
        {
            let (allowed, said) = reviewed(WebhookPath::Warn, SERVICE, gateway, &filtered(filters));
            let says = format!("spec.listeners[s]: {says}");
            assert!(allowed && said.len() == 1 && said[0].starts_with(&says), "{said:?}");
        }
        let set = "metadata: {name: g, namespace: a}\nspec: {parentRef: {name: g}, listeners: [{name: s, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: c}]FRONTEND}}]}";
        let kind = ("gateway.networking.k8s.io", "ListenerSet");
        assert_eq!(reviewed(WebhookPath::Warn, SERVICE, kind, &set.replace("FRONTEND", "")), (true, vec![]));
        let asks = set.replace("FRONTEND", ", frontendValidation: {}");
        let (allowed, said) = reviewed(WebhookPath::Warn, SERVICE, kind, &asks);
        assert!(allowed && said.len() == 1, "{said:?}");
        assert!(said[0].starts_with("spec.listeners[s]: tls.frontendValidation: "), "{said:?}");
    }
}
