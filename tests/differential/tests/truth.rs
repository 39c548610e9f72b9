//! What `karst explain` says is what happens: 2,000 random worlds and calls. The same objects are compiled by the controller; the
//! call is put through ztunnel's plan, a waypoint in memory (its CONNECT, its request path, its byte streams) and ztunnel's
//! decision at the endpoint. Compared: whether it gets through, the policy that refuses, the status, the rule, and every
//! endpoint that can be chosen.
//!
//! `SEED=n` and `WORLDS=n` for another run. A world that fails is printed with as little in it as it takes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

use crate::common::state;
use karst_controller::offline::{self, Resource};
use karst_core::Identity;
use karst_differential::{
    seed,
    shrink::shrink,
    worlds::{self, AT_GATEWAY, CALLED, CALLERS, GATEWAY, GATEWAY_IP, Question, WAYPOINT},
};
use karst_explain::{Call, Enrolment, Explanation, Head, Outcome, Stage, Verdict, World, explain};
use karst_manifest::State;
use karst_proxy::{
    state::{OwnPod, Snapshot, Workload},
    xds::ApplyResource,
};
use karst_waypoint::live::{Answer, Live};
use karst_ztunnel::{
    fuzz::forbids,
    plan::{Draw, Plan, plan},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

/// Calls for each world.
const CALLS: usize = 3;

/// Pods of namespaces with the label, as the agent would have it.
fn enrolled(objects: &[Value]) -> BTreeSet<String> {
    let mode = |v: &Value| v["metadata"]["labels"]["istio.io/dataplane-mode"].as_str().map(String::from);
    let of = |kind: &'static str| objects.iter().filter(move |v| v["kind"] == kind);
    let namespaces: BTreeMap<_, _> =
        of("Namespace").map(|v| (v["metadata"]["name"].as_str().unwrap_or_default(), mode(v))).collect();
    let wanted = of("Pod").filter(|v| {
        let namespace = v["metadata"]["namespace"].as_str().unwrap_or_default();
        let own = mode(v).or_else(|| namespaces.get(namespace).cloned().flatten());
        own.as_deref() == Some("ambient") && v["status"]["podIPs"][0]["ip"].is_string()
    });
    let name = |v: &Value, field: &str| v["metadata"][field].as_str().unwrap_or_default().to_string();
    wanted.map(|v| format!("{}/{}", name(v, "namespace"), name(v, "name"))).collect()
}

/// Where a call came to: address, let in or not, and by which policy not.
type Arrival = (SocketAddr, bool, Option<String>);

/// What has happened.
#[derive(Debug, Default, PartialEq)]
struct Happened {
    arrivals: BTreeSet<Arrival>,
    /// It went somewhere that nobody judges.
    passed: bool,
    /// Statuses of the waypoint's own, or 0 where it was not sent at all.
    refused: BTreeSet<u16>,
    /// The policy at the waypoint.
    policy: Option<String>,
    /// The rule.
    routes: BTreeSet<String>,
}

impl Happened {
    fn verdict(&self) -> Verdict {
        let good = self.passed
            || self.arrivals.iter().any(|(_, allowed, _)| *allowed)
            || self.refused.iter().any(|s| (1..400).contains(s));
        let bad =
            self.arrivals.iter().any(|(_, allowed, _)| !allowed) || self.refused.iter().any(|s| *s == 0 || *s >= 400);
        match (good, bad) {
            (true, true) => Verdict::Partly,
            (true, false) => Verdict::Allowed,
            (false, true) => Verdict::Refused,
            (false, false) => Verdict::Unknown,
        }
    }
}

/// The product, told of some objects.
struct Product<'a> {
    objects: &'a [Value],
    told: Vec<Resource>,
    mesh: Snapshot,
}

impl<'a> Product<'a> {
    fn new(objects: &'a [Value]) -> Self {
        let told = offline::compile(&State { enrolled: enrolled(objects), ..state(objects) }).unwrap().resources;
        let mut mesh = Snapshot::new("");
        for r in &told {
            let types = [karst_api::ADDRESS_TYPE, karst_api::AUTHORIZATION_TYPE, karst_api::POD_RANGES_TYPE];
            if types.contains(&r.type_url) {
                let _ = mesh.put(r.type_url, &r.name, &r.bytes);
            }
        }
        Self { objects, told, mesh }
    }

    fn at(&self, address: SocketAddr) -> Option<&Arc<Workload>> {
        self.mesh.workload(address.ip())
    }

    fn arrive(&self, to: SocketAddr, identity: Option<&Identity>, from: SocketAddr, out: &mut Happened) {
        let Some(workload) = self.at(to).filter(|w| w.hbone) else {
            if self.at(to).is_some() {
                out.arrivals.insert((to, true, None));
            } else {
                out.passed = true;
            }
            return;
        };
        let account = workload.identity.service_account().to_string();
        let (namespace, name) = (&*workload.namespace, &*workload.name);
        let own = OwnPod { namespace, name, account: &account, uid: None };
        let by = forbids(&self.mesh, &own, (identity.cloned(), from.ip()), to);
        out.arrivals.insert((to, by.is_none(), by));
    }

    fn happens(&self, question: &Question) -> Happened {
        let (_, ip, namespace, account) = CALLERS[question.caller];
        let from = SocketAddr::new(ip.parse().unwrap(), 40_000);
        let to = SocketAddr::new(CALLED[question.called].1.parse().unwrap(), question.port);
        let mut out = Happened::default();
        let Some(source) = self.at(from).filter(|w| w.hbone) else {
            self.kubernetes(question, from, to, &mut out);
            return out;
        };
        let identity = Identity::new("cluster.local", namespace, account).unwrap();
        for draw in 0..12 {
            match plan(&self.mesh, source, to, &[], &mut Draw(draw)) {
                Plan::Refuse(_) | Plan::Untold { .. } => drop(out.refused.insert(0)),
                Plan::Resolve(_) => out.passed = true,
                Plan::Plain { to, .. } if to.ip().to_string() == GATEWAY_IP => {
                    if draw == 0 {
                        self.gateway(question, to, from, &mut out);
                    }
                }
                Plan::Plain { to, .. } => self.arrive(to, None, from, &mut out),
                Plan::Tunnel(t) if !t.waypoint => self.arrive(t.target, Some(&identity), from, &mut out),
                Plan::Tunnel(t) => {
                    assert_eq!([&*t.peer.namespace, &*t.peer.name], [WAYPOINT[0], WAYPOINT[1]]);
                    if draw == 0 {
                        self.waypoint(question, t.target, &identity, from, &mut out);
                    }
                }
            }
        }
        out
    }

    /// From outside of the mesh: kube-proxy, on what the objects say.
    fn kubernetes(&self, question: &Question, from: SocketAddr, to: SocketAddr, out: &mut Happened) {
        let service = self.objects.iter().find(|v| {
            v["kind"] == "Service" && v["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok()) == Some(to.ip())
        });
        let Some(service) = service else { return self.arrive(to, None, from, out) };
        let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let Some(port) = ports.iter().find(|p| p["port"] == to.port()) else {
            out.refused.insert(0);
            return;
        };
        let target = match &port["targetPort"] {
            Value::Null => Some(to.port()),
            Value::Number(n) => n.as_u64().and_then(|n| u16::try_from(n).ok()),
            _ => None,
        };
        let empty = serde_json::Map::new();
        let selector = service["spec"]["selector"].as_object().unwrap_or(&empty);
        let pods = self.objects.iter().filter(|v| {
            v["kind"] == "Pod"
                && v["metadata"]["namespace"] == service["metadata"]["namespace"]
                && v["status"]["conditions"][0]["status"] == "True"
                && !selector.is_empty()
                && selector.iter().all(|(key, value)| v["metadata"]["labels"][key] == *value)
        });
        let addresses: Vec<SocketAddr> = pods
            .filter_map(|v| Some(SocketAddr::new(v["status"]["podIPs"][0]["ip"].as_str()?.parse().ok()?, target?)))
            .collect();
        if addresses.is_empty() {
            out.refused.insert(0);
        }
        for at in addresses {
            match at.ip().to_string() == GATEWAY_IP {
                true => self.gateway(question, at, from, out),
                false => self.arrive(at, None, from, out),
            }
        }
    }

    fn head(question: &Question) -> http::Request<()> {
        let head = http::Request::builder().method(question.method).uri(question.path).header("host", question.host);
        let head = question.header.into_iter().fold(head, |head, (name, value)| head.header(name, value));
        head.body(()).unwrap()
    }

    fn gateway(&self, question: &Question, to: SocketAddr, from: SocketAddr, out: &mut Happened) {
        let told: Vec<_> = self.told.iter().map(|r| (r.type_url, &*r.name, &r.bytes[..])).collect();
        let live = Live::gateway(GATEWAY, &told);
        let own = Identity::new("cluster.local", GATEWAY[0], GATEWAY[2]).unwrap();
        let at = SocketAddr::new(GATEWAY_IP.parse().unwrap(), 40_000);
        self.until_nothing_new(&own, at, out, || live.enter(to, from, Self::head(question)));
    }

    fn waypoint(&self, question: &Question, to: SocketAddr, peer: &Identity, from: SocketAddr, out: &mut Happened) {
        let told: Vec<_> = self.told.iter().map(|r| (r.type_url, &*r.name, &r.bytes[..])).collect();
        let live = Live::new(WAYPOINT, &told);
        let own = Identity::new("cluster.local", WAYPOINT[0], WAYPOINT[2]).unwrap();
        let at = SocketAddr::new("10.0.0.50".parse().unwrap(), 40_000);
        self.until_nothing_new(&own, at, out, || {
            live.call(&to.to_string(), peer.clone(), from, Some(Self::head(question)))
        });
    }

    /// Calls until nothing new has come for long: each choice has been made then. `own`: whom endpoints see, from where.
    ///
    /// The rarest choice is one endpoint of three of a destination of 10 per cent, which only a VirtualService has, else one
    /// of three of every other request: each is left out once in a million times.
    fn until_nothing_new(&self, own: &Identity, at: SocketAddr, out: &mut Happened, call: impl Fn() -> Answer) {
        let enough = if self.objects.iter().any(|v| v["kind"] == "VirtualService") { 400 } else { 80 };
        let mut quiet = 0;
        while quiet < enough {
            let before = (out.arrivals.len(), out.refused.len(), out.routes.len());
            let went = match call() {
                Answer::Connect(status) => {
                    out.refused.insert(status);
                    return;
                }
                Answer::Request(status, went, line) => {
                    if went.is_none() {
                        out.refused.insert(status);
                    }
                    out.policy = out.policy.take().or(denied(&line));
                    let route = line.rsplit('"').nth(1).unwrap_or_default();
                    out.routes.extend(Some(route.to_string()).filter(|r| !["-", "default"].contains(&&**r)));
                    went
                }
                Answer::Bytes(went, why) => {
                    if went.is_none() {
                        out.refused.insert(0);
                    }
                    out.policy = out.policy.take().or(denied(&why));
                    went
                }
            };
            if let Some(went) = went {
                let identity = Some(own).filter(|_| self.at(went).is_some_and(|w| w.hbone));
                self.arrive(went, identity, at, out);
            }
            let after = (out.arrivals.len(), out.refused.len(), out.routes.len());
            quiet = if before == after { quiet + 1 } else { 0 };
        }
    }
}

/// The policy in a line of the log; empty: none allows it.
fn denied(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("rbac_access_denied_matched_policy[")?;
    let Some(rest) = rest.strip_prefix("ns[") else { return Some(String::new()) };
    let (namespace, rest) = rest.split_once("]-policy[")?;
    let (name, _) = rest.split_once(']')?;
    Some(format!("{namespace}/{name}"))
}

fn said(objects: &[Value], question: &Question) -> Explanation {
    let world = World::new(state(objects), Enrolment::Expected).unwrap();
    let header = |(name, value): (&str, &str)| (name.to_string(), value.to_string());
    let call = Call {
        from: CALLERS[question.caller].0.into(),
        to: CALLED[question.called].0.into(),
        namespace: String::new(),
        port: Some(question.port),
        request: Some(Head {
            method: question.method.into(),
            path: question.path.into(),
            host: Some(question.host.into()),
            headers: question.header.map(header).into_iter().collect(),
            claims: None,
        }),
        server_name: None,
        now: 0,
    };
    explain(&world, &call).unwrap()
}

/// What differs between what is said and what happens.
fn difference(objects: &[Value], question: &Question) -> Option<String> {
    compared(said(objects, question), objects, question)
}

fn compared(said: Explanation, objects: &[Value], question: &Question) -> Option<String> {
    let happened = Product::new(objects).happens(question);
    let endpoints: BTreeSet<Arrival> =
        said.endpoints.iter().map(|e| (e.address, e.allowed, e.policy.clone())).collect();
    let mut wrong = vec![];
    if said.verdict != happened.verdict() {
        wrong.push(format!("verdict: said {:?}, happened {:?}", said.verdict, happened.verdict()));
    }
    if endpoints != happened.arrivals {
        wrong.push(format!("endpoints: said {endpoints:?}"));
    }
    if happened.policy.is_some() && said.policy != happened.policy {
        wrong.push(format!("policy: said {:?}", said.policy));
    }
    let own = happened.refused.iter().find(|s| **s > 0);
    if own.is_some_and(|status| said.status != Some(*status)) {
        wrong.push(format!("status: said {:?}", said.status));
    }
    for route in &happened.routes {
        let matches = format!("{route} matches");
        if !said.steps.iter().any(|s| s.step == Stage::Route && s.outcome == Outcome::Pass && s.why == matches) {
            wrong.push(format!("route {route}: not said"));
        }
    }
    wrong.extend(settings(&said, objects));
    (!wrong.is_empty()).then(|| format!("{}\nhappened: {happened:?}\nsaid: {said:#?}", wrong.join("\n")))
}

/// What is only named is named where it applies, and nowhere else: the rate limit of the service that is called, and the breaker of
/// the service that requests are sent to.
fn settings(said: &Explanation, objects: &[Value]) -> Vec<String> {
    let there = |kind: &str, name: &str| objects.iter().any(|v| v["kind"] == kind && v["metadata"]["name"] == name);
    let named = |kind: &str, name: &str| {
        let mut all = said.steps.iter().filter(|s| s.step == Stage::Settings).filter_map(|s| s.object.as_ref());
        all.any(|object| object.kind == kind && object.name == name)
    };
    let passes = |stage: Stage, text: &str| said.steps.iter().any(|s| s.step == stage && s.why.contains(text));
    let is_at_waypoint = passes(Stage::Plan, "is bound to a waypoint");
    let is_routed = said.steps.iter().any(|s| s.step == Stage::Route && s.outcome == Outcome::Pass);
    let is_web = said.service.as_deref() == Some("shop/web.shop.svc.cluster.local");
    // Bytes have no rate limits: there is no way to say how many requests they are.
    let is_bytes = passes(Stage::Waypoint, "is declared as TCP");
    let limited = there("HTTPFilter", "limit") && is_at_waypoint && is_web && is_routed && !is_bytes;
    let other = "shop/other.shop.svc.cluster.local port 80";
    let sent =
        said.steps.iter().any(|s| s.step == Stage::Backend && s.outcome == Outcome::Pass && s.why.starts_with(other));
    let broken = there("DestinationRule", "breaker") && sent;
    let mut wrong = vec![];
    for (kind, name, expected) in [("HTTPFilter", "limit", limited), ("DestinationRule", "breaker", broken)] {
        if named(kind, name) != expected {
            wrong.push(format!("{kind} {name}: expected {expected} among the settings"));
        }
    }
    wrong
}

fn whole(objects: &[Value], question: &Question) -> bool {
    let address = |kind: &str, ip: &str| {
        objects
            .iter()
            .any(|v| v["kind"] == kind && (v["spec"]["clusterIP"] == ip || v["status"]["podIPs"][0]["ip"] == ip))
    };
    let has_gateway = ["Gateway", "GatewayClass"].iter().all(|kind| {
        objects
            .iter()
            .any(|v| v["kind"] == *kind && ["front", "istio"].iter().any(|name| v["metadata"]["name"] == *name))
    });
    if question.called == AT_GATEWAY && !(has_gateway && address("Pod", GATEWAY_IP)) {
        return false;
    }
    // A proxy that is not whom it takes itself for refuses everything: that is another fault than the one to be made small.
    let is_itself = |[namespace, name, account]: [&str; 3]| {
        let is =
            |v: &&Value| v["kind"] == "Pod" && v["metadata"]["namespace"] == namespace && v["metadata"]["name"] == name;
        objects.iter().filter(is).all(|v| v["spec"]["serviceAccountName"] == account)
    };
    if !is_itself(WAYPOINT) || !is_itself(GATEWAY) {
        return false;
    }
    let called = CALLED[question.called];
    let caller = CALLERS[question.caller];
    (called.0.starts_with("198") || address(if called.0.starts_with("pod/") { "Pod" } else { "Service" }, called.1))
        && (caller.2.is_empty() || address("Pod", caller.1))
}

#[test]
fn what_is_explained_is_what_happens() {
    let worlds = std::env::var("WORLDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..worlds {
        let mut random = StdRng::seed_from_u64(seed().wrapping_mul(1_000_003).wrapping_add(number));
        let objects = worlds::world(&mut random);
        for _ in 0..CALLS {
            let question = worlds::question(&mut random);
            let said = said(&objects, &question);
            let key = said
                .cause
                .map_or_else(|| format!("{:?}", said.verdict), |cause| format!("{:?} {cause:?}", said.verdict));
            *seen.entry(key).or_default() += 1;
            if said.steps.iter().any(|s| s.step == Stage::Identity) {
                *seen.entry("by a waypoint".into()).or_default() += 1;
            }
            if question.called == AT_GATEWAY && said.steps.iter().any(|s| s.step == Stage::Backend) {
                *seen.entry("through a gateway".into()).or_default() += 1;
            }
            if difference(&objects, &question).is_some() {
                let fails = |o: &[Value]| whole(o, &question) && difference(o, &question).is_some();
                let small = shrink(objects.clone(), fails);
                let text = difference(&small, &question).unwrap_or_default();
                let yaml: Vec<String> = small.iter().map(ToString::to_string).collect();
                panic!("world {number}, {question:?}\n{}\n{text}", yaml.join("\n"));
            }
        }
        let _: u8 = random.random();
    }
    println!("{worlds} worlds: {seen:#?}");
    // Each way to end has been seen often enough to be compared.
    if worlds >= 2_000 {
        for cause in [
            "Allowed",
            "Refused DeniedByPolicy",
            "Refused NotAllowedByAnyPolicy",
            "Refused StrictMtlsOutsider",
            "Refused NoSuchPort",
            "Refused NoReadyEndpoint",
            "Refused SelectorMatchesNoPod",
            "Refused NoRouteMatches",
            "Refused HttpPolicyOnTcpPort",
            "by a waypoint",
            "Refused NoRouteForHost",
            "through a gateway",
        ] {
            assert!(seen.get(cause).is_some_and(|n| *n >= 5), "{cause}: {seen:#?}");
        }
    }
}

/// Of an explanation that knew nothing of one kind of objects, the comparison would tell.
#[test]
fn an_explanation_that_ignores_a_kind_is_found() {
    for kind in
        ["AuthorizationPolicy", "PeerAuthentication", "HTTPRoute", "VirtualService", "DestinationRule", "Gateway"]
    {
        let found = (0..400).any(|number| {
            let mut random = StdRng::seed_from_u64(number);
            let objects = worlds::world(&mut random);
            let less: Vec<Value> = objects.iter().filter(|v| v["kind"] != kind).cloned().collect();
            if less.len() == objects.len() {
                return false;
            }
            let question =
                Question { called: 0, caller: 2 * (number as usize % 2), port: 80, ..worlds::question(&mut random) };
            compared(said(&less, &question), &objects, &question).is_some()
        });
        assert!(found, "{kind}");
    }
}
