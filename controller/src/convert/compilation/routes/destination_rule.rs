//! Istio's DestinationRule.

use crate::convert::{
    compilation::routes::scalar::{duration, header_name, optional_duration, per_million},
    facts::{
        ca_certificates::of_secret,
        client_tls::{all_tls, originates, wants_tls},
        export::Export,
        host::closeness,
        hosts::Hosts,
        secret::ca_bundle,
    },
    objects::{FieldError, Objects, address, age, rename},
};
use karst_api::route as ir;
use karst_manifest::{kinds::*, parse::Located, traffic::*};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::RangeInclusive,
    sync::Arc,
};

/// Size of rings that name none (Istio).
const RING: u32 = 1024;
/// Size of Maglev's table (Istio).
const TABLE: u32 = 65_537;

/// A rule that can be executed.
struct Rule<'a> {
    export: Export<'a>,
    /// How closely its host fits those services that it is for.
    closeness: usize,
    backend: ir::Backend,
}

/// What was compiled last time: all of it stays while no rule, no Secret that one names, and no service is another.
#[derive(Default)]
pub(crate) struct Cache {
    /// Addresses of the rules, old before new.
    rules: Vec<usize>,
    secrets: Vec<usize>,
    /// What is wrong with each of the rules.
    bad: Vec<Vec<FieldError>>,
    /// Services of one namespace that the same rules are for share one.
    backends: Backends,
}

/// By service.
type Backends = BTreeMap<String, Arc<ir::Backend>>;

impl Cache {
    /// Objects are at other addresses, and mean the same.
    pub(crate) fn renamed(&mut self, now: &HashMap<usize, usize>) {
        rename(&mut self.rules, now);
    }
}

/// Services that the same rules are for, in the same way.
#[derive(PartialEq, Eq, Hash)]
struct Alike {
    owner: String,
    /// Only its own namespace knows it.
    private: bool,
    /// The wildcards that it fits.
    wild: Vec<usize>,
    /// The rules that name it.
    named: Vec<usize>,
}

/// Compiles the rules for the services that they are for; gives back what is wrong with which.
pub(crate) fn compile<'a>(
    objects: &Objects<'a>,
    hosts: &Hosts,
    mut old: Cache,
    cache: &mut Cache,
) -> (Backends, Vec<(&'a Located, Vec<FieldError>)>) {
    let mut all = objects.destination_rules.clone();
    all.sort_by_key(|(_, d)| age(&d.metadata));
    cache.rules = all.iter().map(|(_, d)| address(*d)).collect();
    cache.secrets = all.iter().flat_map(|(_, d)| secrets(objects, d)).collect();
    if (&old.rules, &old.secrets) == (&cache.rules, &cache.secrets) {
        (cache.bad, cache.backends) = (std::mem::take(&mut old.bad), std::mem::take(&mut old.backends));
    } else {
        (cache.bad, cache.backends) = anew(objects, hosts, &all);
    }
    let bad = all.iter().zip(&cache.bad).map(|((at, _), bad)| (*at, bad.clone())).collect();
    (cache.backends.clone(), bad)
}

type Compiled = (Vec<Vec<FieldError>>, Backends);

fn anew(objects: &Objects<'_>, hosts: &Hosts, all: &[(&Located, &DestinationRule)]) -> Compiled {
    let (mut bad, mut rules) = (vec![], vec![]);
    let mut named: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
    // What follows the star of wildcards, and the rules of each.
    let mut wildcards: HashMap<&str, usize> = HashMap::new();
    let mut wild: Vec<Vec<usize>> = vec![];
    for (_, rule) in all {
        let (backend, wrong) = own(objects, rule);
        bad.push(wrong);
        let Some(backend) = backend else { continue };
        match rule.spec.host.strip_prefix('*') {
            Some(suffix) => {
                let i = *wildcards.entry(suffix).or_insert(wild.len());
                wild.resize_with(wild.len().max(i + 1), Vec::new);
                wild[i].push(rules.len());
            }
            None => {
                for key in hosts.every(&rule.spec.host, &rule.metadata.namespace) {
                    named.entry(key).or_default().push(rules.len());
                }
            }
        }
        let export = Export::of_destination_rule(objects, rule);
        rules.push(Rule { export, closeness: closeness(&rule.spec.host), backend });
    }
    let mut done: HashMap<Alike, Option<Arc<ir::Backend>>> = HashMap::new();
    let mut backends = BTreeMap::new();
    for (host, keys) in &hosts.by_host {
        // A star stands for something: not for nothing.
        let ends = (1..=host.len()).filter_map(|i| host.get(i..));
        let fits: Vec<usize> = ends.filter_map(|e| wildcards.get(e).copied()).collect();
        for key in keys {
            let Some((owner, _)) = key.split_once('/') else { continue };
            let named = named.remove(key).unwrap_or_default();
            if named.is_empty() && fits.is_empty() {
                continue;
            }
            let private = hosts.private.contains(key);
            let alike = Alike { owner: owner.into(), private, wild: fits.clone(), named };
            let one = done.entry(alike).or_insert_with_key(|alike| {
                let wild = alike.wild.iter().filter_map(|i| wild.get(*i)).flatten();
                let mut found: Vec<usize> = alike.named.iter().chain(wild).copied().collect();
                found.sort_unstable();
                let found = found.into_iter().filter_map(|i| rules.get(i));
                let seen = found.filter(|r| !alike.private || r.export.namespace == alike.owner);
                of_service(&seen.collect::<Vec<_>>(), owner, &objects.mesh.root_namespace).map(Arc::new)
            });
            backends.extend(one.clone().map(|b| (key.to_string(), b)));
        }
    }
    (bad, backends)
}

/// What rules say of a service, for everybody and for the clients of namespaces.
fn of_service(found: &[&Rule<'_>], owner: &str, root: &str) -> Option<ir::Backend> {
    let mut of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, r) in found.iter().enumerate() {
        of.entry(r.export.namespace).or_default().push(i);
    }
    let everybody = chosen(found, &of, owner, root, "");
    let mut backend = merged(found, &everybody);
    let named = found.iter().flat_map(|r| r.export.namespaces().chain([r.export.namespace]));
    let clients: BTreeSet<&str> = named.chain([owner, root]).collect();
    for client in clients {
        let own = chosen(found, &of, owner, root, client);
        if own != everybody {
            let ir::Backend { policy, ports, subsets, .. } = merged(found, &own);
            backend.clients.push(ir::ClientRules { namespace: client.into(), policy, ports, subsets });
        }
    }
    // A rule that says nothing needs not be told of.
    let origin = std::mem::take(&mut backend.origin);
    (backend != ir::Backend::default()).then_some(ir::Backend { origin, ..backend })
}

/// The rules that decide for clients of a namespace (`""`: one that no rule names): those with the longest host in the first
/// namespace that has any, of the client's own, the service's, and the root namespace (Istio's PushContext.destinationRule).
fn chosen(
    found: &[&Rule<'_>],
    by_namespace: &BTreeMap<&str, Vec<usize>>,
    owner: &str,
    root: &str,
    client: &str,
) -> Vec<usize> {
    let of = |namespace: &str, fits: &dyn Fn(&Rule<'_>) -> bool| -> Vec<usize> {
        let here = || by_namespace.get(namespace).into_iter().flatten().copied();
        let all = || here().filter_map(|i| Some((i, found.get(i)?))).filter(|(_, r)| fits(r));
        let longest = all().map(|(_, r)| r.closeness).max();
        all().filter(|(_, r)| Some(r.closeness) == longest).map(|(i, _)| i).collect()
    };
    // What the root namespace says for all does not stand before what services say themselves.
    let own = of(client, &|r| r.export.is_for(client) && !(client == root && r.export.is_for_all()));
    let exported = [owner, root].into_iter().map(|namespace| of(namespace, &|r| r.export.is_for(client)));
    std::iter::once(own).chain(exported).find(|all| !all.is_empty()).unwrap_or_default()
}

/// Rules with the same host: the oldest decides, others add what it does not say.
fn merged(found: &[&Rule<'_>], all: &[usize]) -> ir::Backend {
    let mut out = ir::Backend::default();
    if let Some(first) = all.first().and_then(|i| found.get(*i)) {
        out.origin.clone_from(&first.backend.origin);
    }
    for own in all.iter().filter_map(|i| found.get(*i)).map(|r| &r.backend) {
        out.policy = out.policy.take().or_else(|| own.policy.clone());
        for (port, policy) in &own.ports {
            out.ports.entry(*port).or_insert_with(|| policy.clone());
        }
        for subset in &own.subsets {
            if !out.subsets.iter().any(|s| s.name == subset.name) {
                out.subsets.push(subset.clone());
            }
        }
    }
    out
}

/// What a rule says by itself, and what is wrong with it.
fn own(objects: &Objects<'_>, rule: &DestinationRule) -> (Option<ir::Backend>, Vec<FieldError>) {
    let ns = rule.metadata.namespace.as_str();
    let origin = || format!("DestinationRule {ns}/{}", rule.metadata.name);
    if rule.spec.host.is_empty() {
        return (
            None,
            vec![("spec.host".into(), "is empty: specify the service that the rule applies to [KARST-0010]".into())],
        );
    }
    // It is for some clients only, which are not told apart by labels: left out rather than for all. (`no_effect` tells.)
    if rule.spec.workload_selector.is_some() {
        return (None, vec![]);
    }
    // Where TLS is wanted there must be no connection without it; nor where it may be.
    let broken = |why: &str| {
        let broken = format!("{}: {why}", origin());
        let tls = Some(ir::ClientTls { broken, ..Default::default() });
        ir::Backend { policy: Some(ir::Policy { tls, ..Default::default() }), origin: origin(), ..Default::default() }
    };
    // What cannot be read, the watch has told.
    if rule.spec.is_unread {
        return (Some(broken("cannot be read: see the controller's log for the reason")), vec![]);
    }
    let secret = |name: &str| objects.secrets.get(&(ns, name)).copied();
    match backend(&rule.spec, &secret) {
        Ok(b) => (Some(ir::Backend { origin: origin(), ..b }), vec![]),
        Err(problem) if wants_tls(rule) => (Some(broken(&format!("{}: {}", problem.0, problem.1))), vec![problem]),
        Err(b) => (None, vec![b]),
    }
}

/// Finds a Secret of the rule's namespace.
type Secrets<'a> = &'a dyn Fn(&str) -> Option<&'a Secret>;

fn backend(spec: &DestinationRuleSpec, secret: Secrets<'_>) -> Result<ir::Backend, FieldError> {
    let empty = TrafficPolicy::default();
    let whole = spec.traffic_policy.as_ref().unwrap_or(&empty);
    let (policy, ports) = policies(whole, None, secret, "spec.trafficPolicy")?;
    let mut out = ir::Backend { policy: spec.traffic_policy.as_ref().map(|_| policy), ports, ..Default::default() };
    let mut names = BTreeSet::new();
    for (i, subset) in spec.subsets.iter().enumerate() {
        let at = format!("spec.subsets[{i}]");
        if subset.name.is_empty() {
            return Err((format!("{at}.name"), "is empty: routes refer to subsets by name [KARST-0010]".into()));
        }
        if !names.insert(&subset.name) {
            return Err((format!("{at}.name"), format!("{:?} is duplicated [KARST-0013]", subset.name)));
        }
        let own = subset.traffic_policy.as_ref().unwrap_or(&empty);
        let (policy, ports) = policies(own, Some(whole), secret, &format!("{at}.trafficPolicy"))?;
        out.subsets.push(ir::Subset {
            name: subset.name.clone(),
            labels: subset.labels.to_map(),
            policy: Some(policy),
            ports,
        });
    }
    Ok(out)
}

type Policies = (ir::Policy, BTreeMap<u32, ir::Policy>);

/// A policy and its ports' own. What it does not say, the policy around it does, field by field.
fn policies(
    traffic_policy: &TrafficPolicy,
    around: Option<&TrafficPolicy>,
    secret: Secrets<'_>,
    at: &str,
) -> Result<Policies, FieldError> {
    if traffic_policy.tunnel.is_some() {
        return Err((
            format!("{at}.tunnel"),
            "is not supported in this version: traffic would not be handled as specified; remove it [KARST-0029]"
                .into(),
        ));
    }
    let or = |a: &TrafficPolicy| (a.load_balancer.clone(), a.connection_pool.clone(), a.outlier_detection.clone());
    let (inner, outer) = (or(traffic_policy), around.map(or).unwrap_or_default());
    let (balance, pool, outlier) = (inner.0.or(outer.0), inner.1.or(outer.1), inner.2.or(outer.2));
    let mut whole = policy(balance.as_ref(), pool.as_ref(), outlier.as_ref(), at)?;
    let budget = traffic_policy.retry_budget.as_ref().or(around.and_then(|a| a.retry_budget.as_ref()));
    let own_tls = traffic_policy.tls.as_ref().or(around.and_then(|a| a.tls.as_ref()));
    whole.tls = tls(own_tls, secret, at)?;
    let header = traffic_policy.proxy_protocol.as_ref().or(around.and_then(|a| a.proxy_protocol.as_ref()));
    whole.set_proxy_protocol(proxy_protocol(header, at)?);
    whole.retries = budget.map(|b| retry_budget(b, &format!("{at}.retryBudget"))).transpose()?;
    let mut ports = BTreeMap::new();
    for (i, settings) in traffic_policy.port_level_settings.iter().enumerate() {
        let at = format!("{at}.portLevelSettings[{i}]");
        if settings.port.number == 0 {
            return Err((format!("{at}.port.number"), "is required [KARST-0010]".into()));
        }
        // A port's settings stand for themselves: what they leave out is the default (Istio).
        let mut one = policy(
            settings.load_balancer.as_ref(),
            settings.connection_pool.as_ref(),
            settings.outlier_detection.as_ref(),
            &at,
        )?;
        one.tls = tls(settings.tls.as_ref(), secret, &at)?;
        // They cannot say it.
        one.proxy_protocol = whole.proxy_protocol;
        ports.insert(u32::from(settings.port.number), one);
    }
    Ok((whole, ports))
}

fn policy(
    balancer: Option<&LoadBalancer>,
    pool: Option<&ConnectionPool>,
    detection: Option<&OutlierDetection>,
    at: &str,
) -> Result<ir::Policy, FieldError> {
    Ok(ir::Policy {
        balance: balancer.map(|b| balance(b, &format!("{at}.loadBalancer"))).transpose()?,
        limits: pool.map(|p| limits(p, &format!("{at}.connectionPool"))).transpose()?,
        outlier: detection.map(|o| outlier(o, &format!("{at}.outlierDetection"))).transpose()?,
        retries: None,
        tls: None,
        proxy_protocol: ir::ProxyProtocol::NoHeader as i32,
    })
}

/// The header that connections begin with.
fn proxy_protocol(header: Option<&ProxyProtocol>, at: &str) -> Result<ir::ProxyProtocol, FieldError> {
    let Some(header) = header else { return Ok(ir::ProxyProtocol::NoHeader) };
    match header.version.as_deref() {
        None | Some("" | "V1") => Ok(ir::ProxyProtocol::V1),
        Some("V2") => Ok(ir::ProxyProtocol::V2),
        Some(other) => {
            let text = format!("unsupported value {other:?}: use V1 or V2 [KARST-0016]");
            Err((format!("{at}.proxyProtocol.version"), text))
        }
    }
}

/// TLS to endpoints. None: none of ours.
fn tls(client_tls: Option<&ClientTls>, secret: Secrets<'_>, at: &str) -> Result<Option<ir::ClientTls>, FieldError> {
    let Some(client_tls) = client_tls.filter(|t| originates(t)) else { return Ok(None) };
    let at = format!("{at}.tls");
    let mutual = match client_tls.mode.as_deref().unwrap_or("") {
        "SIMPLE" => false,
        "MUTUAL" => true,
        other => {
            let text = format!("unsupported value {other:?}: use DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL [KARST-0016]");
            return Err((format!("{at}.mode"), text));
        }
    };
    for (there, field) in [
        (!client_tls.client_certificate.is_empty(), "clientCertificate"),
        (!client_tls.private_key.is_empty(), "privateKey"),
        (!matches!(client_tls.ca_certificates.as_str(), "" | "system"), "caCertificates"),
        (!client_tls.ca_crl.is_empty(), "caCrl"),
    ] {
        if there {
            let text = "file paths are not supported: use credentialName [KARST-0028]";
            return Err((format!("{at}.{field}"), text.into()));
        }
    }
    if mutual && client_tls.credential_name.is_empty() {
        let text = "is empty: specify a Secret with tls.crt, tls.key and ca.crt in the namespace of the waypoint or gateway [KARST-0010]";
        return Err((format!("{at}.credentialName"), text.into()));
    }
    let mut out = ir::ClientTls {
        sni: client_tls.sni.clone(),
        names: client_tls.subject_alt_names.clone(),
        unverified: client_tls.insecure_skip_verify == Some(true),
        credential: if mutual { client_tls.credential_name.clone() } else { String::new() },
        ..Default::default()
    };
    // The Secret may come later: until then there are no connections, as none may be made without it.
    if !client_tls.credential_name.is_empty() && !out.unverified {
        let beside = format!("{}-cacert", client_tls.credential_name);
        let both = [beside.as_str(), client_tls.credential_name.as_str()];
        match both.into_iter().filter_map(secret).find(|s| ca_bundle(s).is_some()).map(of_secret) {
            Some(Ok(found)) => (out.roots, out.lists) = (found.roots, found.lists),
            Some(Err(e)) => out.broken = e.to_string(),
            None => out.broken = format!("Secret {} with ca.crt not found [KARST-0503]", client_tls.credential_name),
        }
    }
    Ok(Some(out))
}

/// Addresses of the Secrets that a rule's TLS may be verified by.
fn secrets(objects: &Objects<'_>, rule: &DestinationRule) -> Vec<usize> {
    let ns = rule.metadata.namespace.as_str();
    let names = all_tls(rule).map(|t| &t.credential_name).filter(|n| !n.is_empty());
    let both = names.flat_map(|n| [format!("{n}-cacert"), n.clone()]);
    // One that is not there has a place, too.
    both.map(|n| objects.secrets.get(&(ns, n.as_str())).map_or(0, |s| address(*s))).collect()
}

fn retry_budget(budget: &RetryBudget, at: &str) -> Result<ir::RetryBudget, FieldError> {
    Ok(ir::RetryBudget {
        per_million: per_million(budget.percent.unwrap_or(20.0), &format!("{at}.percent"))?,
        at_least: budget.min_retry_concurrency.unwrap_or(3),
    })
}

/// Istio's localityLbSetting. None: places do not matter.
fn locality(locality: &LocalityLb, at: &str) -> Result<Option<ir::Locality>, FieldError> {
    let both = [!locality.distribute.is_empty(), !locality.failover.is_empty(), !locality.failover_priority.is_empty()];
    // failover and failoverPriority go together (Istio): where labels are named, they decide.
    if both[0] && (both[1] || both[2]) {
        return Err((
            at.into(),
            "must set only one of distribute and failover (or failoverPriority) [KARST-0014]".into(),
        ));
    }
    let mut out = ir::Locality { failover: !both[0], ..Default::default() };
    for (i, distribute) in locality.distribute.iter().enumerate() {
        let at = format!("{at}.distribute[{i}]");
        if out.distribute.iter().any(|x| x.from == distribute.from) {
            return Err((format!("{at}.from"), format!("{:?} is duplicated [KARST-0013]", distribute.from)));
        }
        for p in distribute.to.keys().chain([&distribute.from]) {
            place(p).map_err(|e| (at.clone(), e.to_string()))?;
        }
        let total: u64 = distribute.to.values().map(|n| u64::from(*n)).sum();
        if total != 100 || distribute.to.values().any(|n| *n == 0) {
            let text = format!("the weights add up to {total}: use weights above 0 that add up to 100 [KARST-0402]");
            return Err((format!("{at}.to"), text));
        }
        out.distribute.push(ir::Distribution { from: distribute.from.clone(), to: distribute.to.clone() });
    }
    for (i, failover) in locality.failover.iter().enumerate() {
        let at = format!("{at}.failover[{i}]");
        if failover.from.is_empty()
            || failover.to.is_empty()
            || failover.from == failover.to
            || (failover.from.clone() + &failover.to).contains(['/', '*'])
        {
            return Err((at, "from and to must be two different regions, without zones [KARST-0403]".into()));
        }
        if out.to_region.insert(failover.from.clone(), failover.to.clone()).is_some() {
            return Err((format!("{at}.from"), format!("{:?} is duplicated [KARST-0013]", failover.from)));
        }
    }
    for (index, priority) in locality.failover_priority.iter().enumerate() {
        if priority.split('=').next().is_none_or(str::is_empty) {
            return Err((
                format!("{at}.failoverPriority[{index}]"),
                format!("invalid label {priority:?}: use KEY or KEY=VALUE [KARST-0403]"),
            ));
        }
    }
    out.labels.clone_from(&locality.failover_priority);
    Ok((locality.enabled != Some(false)).then_some(out))
}

/// A text that is no locality.
#[derive(Debug, thiserror::Error)]
#[error(
    "invalid locality {0:?}: use region, region/zone or region/zone/subzone; only the last parts may be * [KARST-0401]"
)]
struct InvalidLocality(String);

/// region, region/zone or region/zone/subzone; after * nothing but *.
fn place(locality: &str) -> Result<(), InvalidLocality> {
    let parts: Vec<&str> = locality.split('/').collect();
    let any = parts.iter().position(|x| *x == "*").unwrap_or(parts.len());
    let inner = parts.iter().any(|x| x.is_empty() || (*x != "*" && x.contains('*')));
    if parts.len() > 3 || inner || parts[any..].iter().any(|x| *x != "*") {
        return Err(InvalidLocality(locality.into()));
    }
    Ok(())
}

/// Slow start, with Istio's defaults.
fn warmup(balancer: &LoadBalancer, at: &str) -> Result<ir::Balance, FieldError> {
    let warmup = balancer.warmup.as_ref();
    let time = warmup.and_then(|w| w.duration.as_deref()).or(balancer.warmup_duration_secs.as_deref());
    let warmup_ms = optional_duration(time, || format!("{at}.warmup.duration"))?;
    let minimum = warmup.and_then(|w| w.minimum_percent).unwrap_or(10.0);
    let minimum = per_million(minimum, &format!("{at}.warmup.minimumPercent"))?;
    let aggression = warmup.and_then(|w| w.aggression).unwrap_or(1.0);
    if !(1.0..=1000.0).contains(&aggression) {
        let text = format!("{aggression} is out of range: must be between 1 and 1000 [KARST-0017]");
        return Err((format!("{at}.warmup.aggression"), text));
    }
    Ok(match warmup_ms {
        0 => ir::Balance::default(),
        _ => ir::Balance {
            warmup_ms,
            warmup_minimum: minimum,
            warmup_aggression: (aggression * 1000.0).round() as u32,
            ..Default::default()
        },
    })
}

fn balance(balancer: &LoadBalancer, at: &str) -> Result<ir::Balance, FieldError> {
    let mut out = warmup(balancer, at)?;
    let at_locality = format!("{at}.localityLbSetting");
    out.locality = balancer.locality_lb_setting.as_ref().map(|l| locality(l, &at_locality)).transpose()?.flatten();
    let method = match (balancer.simple.as_deref(), &balancer.consistent_hash) {
        (Some(_), Some(_)) => {
            return Err((at.into(), "must set only one of simple, consistentHash [KARST-0014]".into()));
        }
        (None | Some("UNSPECIFIED" | "LEAST_REQUEST" | "LEAST_CONN"), None) => ir::Method::LeastRequest,
        (Some("ROUND_ROBIN"), None) => ir::Method::RoundRobin,
        (Some("RANDOM"), None) => ir::Method::Random,
        (Some("PEAK_EWMA"), None) => ir::Method::PeakEwma,
        (Some("PASSTHROUGH"), None) => {
            let text =
                "PASSTHROUGH is not supported: a waypoint balances over the endpoints of the service [KARST-0016]";
            return Err((format!("{at}.simple"), text.into()));
        }
        (Some(other), None) => {
            let text = format!(
                "unsupported value {other:?}: use LEAST_REQUEST, ROUND_ROBIN, RANDOM or PEAK_EWMA [KARST-0016]"
            );
            return Err((format!("{at}.simple"), text));
        }
        (None, Some(hashing)) => {
            let at = format!("{at}.consistentHash");
            out.hash = Some(hash(hashing, &at)?);
            let ring = hashing.ring_hash.as_ref().and_then(|r| r.minimum_ring_size).or(hashing.minimum_ring_size);
            match &hashing.maglev {
                Some(m) => {
                    out.ring_size = m.table_size.unwrap_or(TABLE);
                    if !is_prime(out.ring_size) {
                        let text =
                            format!("{} is not a prime number: use for example {TABLE} [KARST-0404]", out.ring_size);
                        return Err((format!("{at}.maglev.tableSize"), text));
                    }
                    ir::Method::Maglev
                }
                None => {
                    out.ring_size = ring.unwrap_or(RING).clamp(1, 8 << 20);
                    ir::Method::RingHash
                }
            }
        }
    };
    out.set_method(method);
    Ok(out)
}

/// Maglev's table has a prime size, at most five million.
fn is_prime(number: u32) -> bool {
    (2..=5_000_011).contains(&number) && (2..).take_while(|d| d * d <= number).all(|d| !number.is_multiple_of(d))
}

fn hash(hashing: &ConsistentHash, at: &str) -> Result<ir::HashOn, FieldError> {
    use ir::hash_on::Key;
    let mut keys = vec![];
    if let Some(n) = &hashing.http_header_name {
        keys.push(Key::Header(header_name(n, format!("{at}.httpHeaderName"))?));
    }
    if let Some(cookie) = &hashing.http_cookie {
        if cookie.name.is_empty() {
            return Err((format!("{at}.httpCookie.name"), "is empty [KARST-0010]".into()));
        }
        let ttl = cookie.ttl.as_deref();
        let ttl_ms = ttl.map(duration).transpose().map_err(|e| (format!("{at}.httpCookie.ttl"), e.to_string()))?;
        keys.push(Key::Cookie(ir::Cookie {
            name: cookie.name.clone(),
            path: cookie.path.clone(),
            ttl_ms: ttl_ms.unwrap_or(0),
            // With a lifetime, a client that brings none is given one.
            generate: ttl_ms.is_some(),
        }));
    }
    if hashing.use_source_ip == Some(true) {
        keys.push(Key::SourceIp(true));
    }
    if let Some(q) = &hashing.http_query_parameter_name {
        keys.push(Key::Query(q.clone()));
    }
    match keys.len() {
        1 => Ok(ir::HashOn { key: keys.pop() }),
        _ => {
            let text =
                "must set exactly one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName [KARST-0015]";
            Err((at.into(), text.into()))
        }
    }
}

fn limits(pool: &ConnectionPool, at: &str) -> Result<ir::Limits, FieldError> {
    let time = |t: &Option<String>, f: &str| optional_duration(t.as_deref(), || format!("{at}.{f}"));
    Ok(ir::Limits {
        max_connections: pool.tcp.max_connections,
        max_pending: pool.http.http1_max_pending_requests,
        max_requests: pool.http.http2_max_requests,
        max_retries: pool.http.max_retries,
        requests_per_connection: pool.http.max_requests_per_connection,
        connect_timeout_ms: time(&pool.tcp.connect_timeout, "tcp.connectTimeout")?,
        idle_timeout_ms: time(&pool.http.idle_timeout, "http.idleTimeout")?,
        concurrent_streams: pool.http.max_concurrent_streams,
        tcp_idle_ms: time(&pool.tcp.idle_timeout, "tcp.idleTimeout")?,
    })
}

fn outlier(detection: &OutlierDetection, at: &str) -> Result<ir::Outlier, FieldError> {
    const PERCENT: RangeInclusive<u32> = 0..=100;
    let time = |t: &Option<String>, default: u64, f: &str| {
        let ms = optional_duration(t.as_deref(), || format!("{at}.{f}"))?;
        Ok::<_, FieldError>(if ms == 0 { default } else { ms })
    };
    for (value, field) in
        [(detection.max_ejection_percent, "maxEjectionPercent"), (detection.min_health_percent, "minHealthPercent")]
    {
        if value.is_some_and(|v| !PERCENT.contains(&v)) {
            return Err((format!("{at}.{field}"), "is out of range: must be between 0 and 100 [KARST-0018]".into()));
        }
    }
    let local = detection.consecutive_local_origin_failures.unwrap_or(0);
    Ok(ir::Outlier {
        consecutive_5xx: detection.consecutive_5xx_errors.or(detection.consecutive_errors).unwrap_or(5),
        consecutive_gateway: detection.consecutive_gateway_errors.unwrap_or(0),
        interval_ms: time(&detection.interval, 10_000, "interval")?,
        ejection_ms: time(&detection.base_ejection_time, 30_000, "baseEjectionTime")?,
        max_ejection_percent: detection.max_ejection_percent.unwrap_or(10),
        min_health_percent: detection.min_health_percent.unwrap_or(0),
        // Envoy's 5 for Istio's 0, too.
        consecutive_local: match (detection.split_external_local_origin_errors, local) {
            (false, _) => 0,
            (true, 0) => 5,
            (true, failures) => failures,
        },
    })
}
