//! Every field of every kind that users write is in one list: used, for people only, told to have no effect ([`FIELDS`]), or
//! refused. Of Istio's kinds and ours the schemas say which fields there are, of Gateway API's the types that read them.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use super::*;
use crate::convert::{check, tests::mesh};
use karst_manifest::{gatewayapi, kinds, parse};
use serde::{
    Deserialize,
    de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::json;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

const ATTACHED: [&str; 3] = [
    "spec.selector.matchLabels.*",
    "spec.targetRef.{group,kind,name,namespace}",
    "spec.targetRefs[].{group,kind,name,namespace}",
];
const ROUTE: [&str; 2] = [
    "spec.parentRefs[].{group,kind,namespace,name,sectionName,port}",
    "spec.rules[].backendRefs[].{group,kind,name,namespace,port,weight}",
];
const LISTENERS: [&str; 2] = [
    "spec.listeners[].{name,hostname,port,protocol,filters,tls.{mode,frontendValidation,options.*,certificateRefs[].{group,kind,name,namespace}}}",
    "spec.listeners[].allowedRoutes.{kinds[].{group,kind},namespaces.{from,selector.{matchLabels.*,matchExpressions[].{key,operator,values[]}}}}",
];
const SESSION: &str = "spec.rules[].sessionPersistence.{type,absoluteTimeout,idleTimeout,cookie.{name,path,lifetimeType},header.name,sessionName,cookieConfig.lifetimeType}";
const FAULT: &str =
    "fault.{delay.{percent,percentage.value,fixedDelay},abort.{percent,percentage.value,httpStatus,grpcStatus}}";

/// What is executed. `{a,b}` are both.
const USED: &[(&str, &[&str])] = &[
    (
        "AuthorizationPolicy",
        &[
            ATTACHED[0],
            ATTACHED[1],
            ATTACHED[2],
            "spec.action",
            "spec.provider.name",
            "spec.rules[].from[].source.{principals,notPrincipals,requestPrincipals,notRequestPrincipals,namespaces,notNamespaces,serviceAccounts,notServiceAccounts,ipBlocks,notIpBlocks,remoteIpBlocks,notRemoteIpBlocks}[]",
            "spec.rules[].to[].operation.{hosts,notHosts,ports,notPorts,methods,notMethods,paths,notPaths}[]",
            "spec.rules[].when[].{key,values[],notValues[]}",
        ],
    ),
    ("PeerAuthentication", &[ATTACHED[0], "spec.mtls.mode", "spec.portLevelMtls.*.mode"]),
    (
        "RequestAuthentication",
        &[
            ATTACHED[0],
            ATTACHED[1],
            ATTACHED[2],
            "spec.jwtRules[].{issuer,audiences[],jwksUri,jwks,fromHeaders[].{name,prefix},fromParams[],fromCookies[],outputPayloadToHeader,forwardOriginalToken,outputClaimToHeaders[].{header,claim},spaceDelimitedClaims[]}",
        ],
    ),
    (
        "Telemetry",
        &[
            ATTACHED[0],
            ATTACHED[1],
            ATTACHED[2],
            "spec.accessLogging[].{disabled,filter.expression,match.mode,providers[].name}",
            "spec.tracing[].{disableSpanReporting,randomSamplingPercentage,disableContextPropagation,enableIstioTags,useRequestIdForTraceSampling,match.mode,providers[].name}",
            "spec.tracing[].customTags.*.{literal.value,formatter.value,environment.{name,defaultValue},header.{name,defaultValue}}",
            "spec.metrics[].{providers[].name,overrides[].{disabled,match.{metric,customMetric,mode},tagOverrides.*.{operation,value}}}",
        ],
    ),
    (
        "HTTPFilter",
        &[
            "spec.targetRefs[].{group,kind,name,sectionName}",
            "spec.rateLimits[].{requests,per,burst,by,keys[].{type,name},scope}",
            "spec.maxRequestBytes",
            "spec.compression.{minBytes,contentTypes[]}",
        ],
    ),
    (
        "ServiceEntry",
        &[
            "spec.{hosts[],addresses[],exportTo[],resolution,subjectAltNames[],workloadSelector.labels.*}",
            "spec.ports[].{number,name,protocol,targetPort}",
            "spec.endpoints[].{address,labels.*,locality,network,ports.*,serviceAccount,weight}",
        ],
    ),
    ("WorkloadEntry", &["spec.{address,labels.*,locality,network,ports.*,serviceAccount,weight}"]),
    (
        "VirtualService",
        &[
            "spec.{hosts[],gateways[],exportTo[]}",
            "spec.http[].match[].{uri,scheme,method,authority,headers.*,queryParams.*,withoutHeaders.*}.{exact,prefix,regex}",
            "spec.http[].match[].{port,sourceLabels.*,sourceNamespace,gateways[],ignoreUriCase}",
            "spec.http[].{route[].destination,mirror,mirrors[].destination}.{host,subset,port.number}",
            "spec.http[].{headers,route[].headers}.{request,response}.{set.*,add.*,remove[]}",
            "spec.http[].{route[].weight,timeout,mirrorPercent,mirrorPercentage.value,mirrors[].percentage.value}",
            "spec.http[].redirect.{uri,authority,port,derivePort,scheme,redirectCode}",
            "spec.http[].directResponse.{status,body.{string,bytes}}",
            "spec.http[].delegate.{name,namespace}",
            "spec.http[].rewrite.{uri,authority,uriRegexRewrite.{match,rewrite}}",
            "spec.http[].retries.{attempts,perTryTimeout,retryOn,backoff,retryIgnorePreviousHosts}",
            "spec.http[].corsPolicy.{allowOrigins[].{exact,prefix,regex},allowOrigin[],allowMethods[],allowHeaders[],exposeHeaders[],maxAge,allowCredentials,unmatchedPreflights}",
            "spec.{tcp,tls}[].match[].{port,sourceLabels.*,sourceNamespace,gateways[]}",
            "spec.tls[].match[].sniHosts[]",
            "spec.{tcp,tls}[].route[].{weight,destination.{host,subset,port.number}}",
        ],
    ),
    (
        "DestinationRule",
        &[
            "spec.{host,exportTo[],subsets[].{name,labels.*}}",
            "spec.trafficPolicy.portLevelSettings[].port.number",
            "spec.trafficPolicy.loadBalancer.{simple,warmupDurationSecs,warmup.{duration,minimumPercent,aggression}}",
            "spec.trafficPolicy.loadBalancer.consistentHash.{httpHeaderName,httpCookie.{name,path,ttl},useSourceIp,httpQueryParameterName,ringHash.minimumRingSize,maglev.tableSize,minimumRingSize}",
            "spec.trafficPolicy.loadBalancer.localityLbSetting.{enabled,distribute[].{from,to.*},failover[].{from,to},failoverPriority[]}",
            "spec.trafficPolicy.connectionPool.{tcp.{maxConnections,connectTimeout,idleTimeout},http.{http1MaxPendingRequests,http2MaxRequests,maxRequestsPerConnection,maxRetries,idleTimeout,maxConcurrentStreams}}",
            "spec.trafficPolicy.outlierDetection.{consecutive5xxErrors,consecutiveGatewayErrors,consecutiveErrors,consecutiveLocalOriginFailures,splitExternalLocalOriginErrors,interval,baseEjectionTime,maxEjectionPercent,minHealthPercent}",
            "spec.trafficPolicy.tls.{mode,credentialName,subjectAltNames[],sni,insecureSkipVerify}",
            "spec.trafficPolicy.retryBudget.{percent,minRetryConcurrency}",
            "spec.trafficPolicy.proxyProtocol.version",
        ],
    ),
    (
        "IstioGateway",
        &[
            "spec.selector.*",
            "spec.servers[].{hosts[],port.{number,protocol}}",
            "spec.servers[].tls.{mode,httpsRedirect,insecureSkipVerify,credentialName,credentialNames[],caCertCredentialName,subjectAltNames[],minProtocolVersion,maxProtocolVersion,cipherSuites[]}",
        ],
    ),
    (
        "Gateway",
        &[
            "spec.{gatewayClassName,addresses[].{type,value,routability}}",
            "spec.infrastructure.{labels.*,annotations.*,parametersRef.{group,kind,name}}",
            LISTENERS[0],
            LISTENERS[1],
            "spec.tls.backend.clientCertificateRef.{group,kind,name,namespace}",
            "spec.tls.frontend.perPort[].port",
            "spec.tls.frontend.{default,perPort[].tls}.validation.{mode,caCertificateRefs[].{group,kind,name,namespace}}",
            "spec.allowedListeners.namespaces.{from,selector.{matchLabels.*,matchExpressions[].{key,operator,values[]}}}",
        ],
    ),
    ("ListenerSet", &["spec.parentRef.{group,kind,namespace,name}", LISTENERS[0], LISTENERS[1]]),
    (
        "HTTPRoute",
        &[
            ROUTE[0],
            ROUTE[1],
            "spec.hostnames[]",
            "spec.rules[].matches[].{method,path.{type,value},headers[].{type,name,value},queryParams[].{type,name,value}}",
            "spec.rules[].{filters[],backendRefs[].filters[]}.{type,extensionRef.{group,kind,name}}",
            "spec.rules[].{filters[],backendRefs[].filters[]}.{requestHeaderModifier,responseHeaderModifier}.{set[].{name,value},add[].{name,value},remove[]}",
            "spec.rules[].{filters[],backendRefs[].filters[]}.urlRewrite.{hostname,path.{type,replaceFullPath,replacePrefixMatch}}",
            "spec.rules[].filters[].requestRedirect.{scheme,hostname,port,statusCode,path.{type,replaceFullPath,replacePrefixMatch}}",
            "spec.rules[].filters[].requestMirror.{percent,fraction.{numerator,denominator},backendRef.{group,kind,name,namespace,port}}",
            "spec.rules[].filters[].externalAuth.{protocol,backendRef.{group,kind,name,namespace,port},grpc.allowedHeaders[],http.{path,allowedHeaders[],allowedResponseHeaders[]},forwardBody.maxSize}",
            "spec.rules[].filters[].cors.{allowOrigins[],allowMethods[],allowHeaders[],exposeHeaders[],allowCredentials,maxAge}",
            "spec.rules[].{timeouts.{request,backendRequest},retry.{codes[],attempts,backoff}}",
            SESSION,
        ],
    ),
    (
        "GRPCRoute",
        &[
            ROUTE[0],
            ROUTE[1],
            "spec.hostnames[]",
            "spec.rules[].matches[].{method.{type,service,method},headers[].{type,name,value}}",
            "spec.rules[].{filters[],backendRefs[].filters[]}.{type,extensionRef.{group,kind,name}}",
            "spec.rules[].{filters[],backendRefs[].filters[]}.{requestHeaderModifier,responseHeaderModifier}.{set[].{name,value},add[].{name,value},remove[]}",
            "spec.rules[].filters[].requestMirror.{percent,fraction.{numerator,denominator},backendRef.{group,kind,name,namespace,port}}",
            SESSION,
        ],
    ),
    ("TCPRoute", &ROUTE),
    ("TLSRoute", &[ROUTE[0], ROUTE[1], "spec.hostnames[]"]),
    ("UDPRoute", &ROUTE),
    (
        "BackendTLSPolicy",
        &[
            "spec.targetRefs[].{group,kind,name,sectionName}",
            "spec.validation.{hostname,wellKnownCACertificates,caCertificateRefs[].{group,kind,name},subjectAltNames[].{type,hostname,uri}}",
        ],
    ),
    (
        "XBackendTrafficPolicy",
        &[
            "spec.targetRefs[].{group,kind,name}",
            "spec.retryConstraint.{budget.{percent,interval},minRetryRate.{count,interval}}",
            "spec.sessionPersistence.{type,absoluteTimeout,idleTimeout,cookie.{name,path,lifetimeType},header.name,sessionName,cookieConfig.lifetimeType}",
        ],
    ),
    ("ReferenceGrant", &["spec.{from[].{group,kind,namespace},to[].{group,kind,name}}"]),
];

/// For people: there is nothing to do about them. (`location`: who is of the mesh is known by address.)
const FOR_PEOPLE: &[(&str, &[&str])] = &[
    ("VirtualService", &["spec.http[].{name,match[].name}"]),
    ("IstioGateway", &["spec.servers[].{name,port.name}"]),
    ("ServiceEntry", &["spec.location"]),
    ("HTTPRoute", &["spec.rules[].name"]),
    ("GRPCRoute", &["spec.rules[].name"]),
    ("TCPRoute", &["spec.rules[].name"]),
    ("TLSRoute", &["spec.rules[].name"]),
    ("UDPRoute", &["spec.rules[].name"]),
];

/// What is refused, and a spec that is, for this field.
const REFUSED: &[(&str, &str, &str)] = &[
    ("DestinationRule", "spec.trafficPolicy.tunnel", "{host: a, trafficPolicy: {tunnel: {targetHost: b}}}"),
    (
        "DestinationRule",
        "spec.trafficPolicy.tls.clientCertificate",
        "{host: a, trafficPolicy: {tls: {mode: SIMPLE, clientCertificate: /f}}}",
    ),
    (
        "DestinationRule",
        "spec.trafficPolicy.tls.privateKey",
        "{host: a, trafficPolicy: {tls: {mode: SIMPLE, privateKey: /f}}}",
    ),
    (
        "DestinationRule",
        "spec.trafficPolicy.tls.caCertificates",
        "{host: a, trafficPolicy: {tls: {mode: SIMPLE, caCertificates: /f}}}",
    ),
    ("DestinationRule", "spec.trafficPolicy.tls.caCrl", "{host: a, trafficPolicy: {tls: {mode: SIMPLE, caCrl: /f}}}"),
    (
        "VirtualService",
        "spec.tcp[].match[].sourceSubnet",
        "{hosts: [a], tcp: [{match: [{sourceSubnet: 10.0.0.0/8}], route: [{destination: {host: a}}]}]}",
    ),
    (
        "VirtualService",
        "spec.tcp[].match[].destinationSubnets[]",
        "{hosts: [a], tcp: [{match: [{destinationSubnets: [10.0.0.0/8]}], route: [{destination: {host: a}}]}]}",
    ),
    (
        "VirtualService",
        "spec.tls[].match[].destinationSubnets[]",
        "{hosts: [a], tls: [{match: [{sniHosts: [a], destinationSubnets: [10.0.0.0/8]}], route: [{destination: {host: a}}]}]}",
    ),
    ("IstioGateway", "spec.servers[].bind", "BIND"),
    ("IstioGateway", "spec.servers[].tls.serverCertificate", "TLS"),
    ("IstioGateway", "spec.servers[].tls.privateKey", "TLS"),
    ("IstioGateway", "spec.servers[].tls.caCertificates", "TLS"),
    ("IstioGateway", "spec.servers[].tls.caCrl", "TLS"),
    ("IstioGateway", "spec.servers[].tls.tlsCertificates[]", "TLS"),
    ("IstioGateway", "spec.servers[].tls.verifyCertificateHash[]", "TLS"),
    ("IstioGateway", "spec.servers[].tls.verifyCertificateSpki[]", "TLS"),
];

/// What our types take and the API does not have: its schema refuses it.
const NOT_IN_THE_API: [&str; 11] = [
    "TCPRoute spec.rules[].backendRefs[].filters[].",
    "TLSRoute spec.rules[].backendRefs[].filters[].",
    "TCPRoute spec.hostnames[]",
    "UDPRoute spec.rules[].backendRefs[].filters[].",
    "UDPRoute spec.hostnames[]",
    ".requestMirror.backendRef.weight",
    ".requestMirror.backendRef.filters",
    ".externalAuth.backendRef.weight",
    ".externalAuth.backendRef.filters",
    "GRPCRoute spec.rules[].filters[].",
    "GRPCRoute spec.rules[].backendRefs[].filters[].",
];

/// All that `{a,b}` stand for.
fn expand(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else { return vec![pattern.to_string()] };
    let (mut depth, mut parts, mut from, mut close) = (0, vec![], open + 1, pattern.len());
    for (i, c) in pattern.char_indices().skip(open) {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => {
                parts.push(&pattern[from..i]);
                close = i;
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 1 => {
                parts.push(&pattern[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    let rest = &pattern[close + 1..];
    parts.iter().flat_map(|p| expand(&format!("{}{p}{rest}", &pattern[..open]))).collect()
}

#[test]
fn braces_are_expanded() {
    assert_eq!(expand("a.{b,c.{d,e}[]}.f"), ["a.b.f", "a.c.d[].f", "a.c.e[].f"]);
}

/// The leaves of a schema.
fn of_schema(s: &Value, at: &str, out: &mut BTreeSet<String>) {
    let before = out.len();
    for (k, v) in s["properties"].as_object().into_iter().flatten() {
        of_schema(v, &format!("{at}.{k}"), out);
    }
    if s["items"].is_object() {
        of_schema(&s["items"], &format!("{at}[]"), out);
    }
    if s["additionalProperties"].is_object() {
        of_schema(&s["additionalProperties"], &format!("{at}.*"), out);
    }
    if out.len() == before {
        out.insert(at.to_string());
    }
}

/// The fields of Istio's kinds and ours, by kind.
fn of_crds() -> BTreeMap<String, BTreeSet<String>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/base/files/crds");
    let mut out = BTreeMap::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let crd: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        let name = |f: &str| crd["spec"][f].as_str().or(crd["spec"]["names"][f].as_str()).unwrap().to_string();
        if karst_manifest::unsupported::unsupported(&name("kind"), &name("group")).is_some() {
            continue;
        }
        let (kind, ..) = kinds::known(&name("kind"), &name("group")).unwrap();
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let fields: &mut BTreeSet<String> = out.entry(kind.to_string()).or_default();
            let mut leaves = BTreeSet::new();
            of_schema(&version["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec", &mut leaves);
            fields.extend(leaves.iter().map(|l| one_policy(l)));
        }
    }
    out
}

/// A policy of a DestinationRule is the same everywhere.
fn one_policy(path: &str) -> String {
    let path = path.replace("spec.subsets[].trafficPolicy.", "spec.trafficPolicy.");
    if path.contains("portLevelSettings[].port.") { path } else { path.replace("portLevelSettings[].", "") }
}

/// Deserializes anything from nothing, and notes each field that is asked for.
#[derive(Clone)]
struct Walk<'a> {
    at: String,
    /// Types around: one that has itself in it is not gone into again.
    around: Vec<&'static str>,
    found: &'a RefCell<BTreeSet<String>>,
}

#[derive(Debug)]
struct Fault(String);
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Fault {}
impl de::Error for Fault {
    fn custom<T: fmt::Display>(t: T) -> Self {
        Self(t.to_string())
    }
}

impl Walk<'_> {
    fn below(&self, step: &str) -> Self {
        Self { at: format!("{}{step}", self.at), ..self.clone() }
    }
    fn leaf(&self) {
        self.found.borrow_mut().insert(self.at.clone());
    }
}

macro_rules! leaves {
    ($($method:ident $visit:ident $value:expr),* $(,)?) => { $(
        fn $method<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
            self.leaf();
            v.$visit($value)
        }
    )* };
}

impl<'de> de::Deserializer<'de> for Walk<'_> {
    type Error = Fault;
    leaves!(
        deserialize_bool visit_bool true,
        deserialize_i8 visit_i8 1, deserialize_i16 visit_i16 1, deserialize_i32 visit_i32 1, deserialize_i64 visit_i64 1,
        deserialize_u8 visit_u8 1, deserialize_u16 visit_u16 1, deserialize_u32 visit_u32 1, deserialize_u64 visit_u64 1,
        deserialize_f32 visit_f32 1.0, deserialize_f64 visit_f64 1.0, deserialize_char visit_char 'x',
        deserialize_str visit_str "x", deserialize_string visit_str "x", deserialize_bytes visit_bytes b"x",
        deserialize_byte_buf visit_bytes b"x", deserialize_identifier visit_str "x",
    );
    fn deserialize_any<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        self.leaf();
        v.visit_unit()
    }
    fn deserialize_option<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        v.visit_some(self)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, v: V) -> Result<V::Value, Fault> {
        v.visit_newtype_struct(self)
    }
    fn deserialize_seq<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        v.visit_seq(Once(Some(self.below("[]"))))
    }
    fn deserialize_map<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        v.visit_map(Fields { keys: ["*"].iter(), next: "*", of: self })
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Fault> {
        let mut of = self;
        if of.around.iter().filter(|a| **a == name).count() > 1 {
            return v.visit_map(Fields { keys: [].iter(), next: "", of });
        }
        of.around.push(name);
        v.visit_map(Fields { keys: fields.iter(), next: "", of })
    }
    serde::forward_to_deserialize_any! { i128 u128 unit unit_struct tuple tuple_struct enum ignored_any }
}

/// A list of one.
struct Once<'a>(Option<Walk<'a>>);
impl<'de> SeqAccess<'de> for Once<'_> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.0.take().map(|w| seed.deserialize(w)).transpose()
    }
}

struct Fields<'a> {
    keys: std::slice::Iter<'static, &'static str>,
    next: &'static str,
    of: Walk<'a>,
}
impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Fault;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some(key) = self.keys.next().copied() else { return Ok(None) };
        self.next = key;
        seed.deserialize(key.into_deserializer()).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        seed.deserialize(self.of.below(&format!(".{}", self.next)))
    }
}

/// The fields of a type.
fn of_type<'de, T: Deserialize<'de>>() -> BTreeSet<String> {
    let found = RefCell::default();
    T::deserialize(Walk { at: "spec".into(), around: vec![], found: &found }).map(drop).unwrap();
    found.into_inner()
}

fn all_fields() -> BTreeMap<String, BTreeSet<String>> {
    let mut all = of_crds();
    for (kind, fields) in [
        ("Gateway", of_type::<kinds::GatewaySpec>()),
        ("ListenerSet", of_type::<kinds::ListenerSetSpec>()),
        ("HTTPRoute", of_type::<gatewayapi::HttpRouteSpec>()),
        ("GRPCRoute", of_type::<gatewayapi::GrpcRouteSpec>()),
        ("TCPRoute", of_type::<gatewayapi::TcpRouteSpec>()),
        ("TLSRoute", of_type::<gatewayapi::TlsRouteSpec>()),
        ("UDPRoute", of_type::<gatewayapi::UdpRouteSpec>()),
        ("BackendTLSPolicy", of_type::<gatewayapi::BackendTlsSpec>()),
        ("XBackendTrafficPolicy", of_type::<gatewayapi::BackendTrafficSpec>()),
        ("ReferenceGrant", of_type::<gatewayapi::ReferenceGrantSpec>()),
    ] {
        all.insert(kind.into(), fields);
    }
    all
}

/// An object with nothing but this field.
fn with(path: &str) -> Value {
    let full = path.replace('…', "spec.");
    segments(&full).iter().rev().fold(json!("x"), |inner, step| match *step {
        "[]" => json!([inner]),
        "*" => json!({ "k": inner }),
        name => json!({ name: inner }),
    })
}

#[test]
fn every_field_is_used_told_or_refused() {
    let listed = |lists: &[(&str, &[&str])]| -> BTreeSet<String> {
        lists
            .iter()
            .flat_map(|(kind, all)| all.iter().flat_map(|p| expand(p)).map(move |p| format!("{kind} {p}")))
            .collect()
    };
    let (mut used, people) = (listed(USED), listed(FOR_PEOPLE));
    used.extend(
        ["VirtualService spec.http[]", "HTTPFilter spec"].iter().flat_map(|at| expand(&format!("{at}.{FAULT}"))),
    );
    let refused: BTreeSet<String> = REFUSED.iter().map(|(kind, path, _)| format!("{kind} {path}")).collect();
    let (mut wrong, mut seen) = (vec![], BTreeSet::new());
    for (kind, fields) in all_fields() {
        for path in fields {
            let field = format!("{kind} {path}");
            let told = !warnings(&kind, &with(&path)).is_empty();
            let in_lists = [used.contains(&field), people.contains(&field), refused.contains(&field), told];
            let count = in_lists.iter().filter(|l| **l).count();
            let foreign = count == 0 && NOT_IN_THE_API.iter().any(|n| field.contains(n));
            if count != 1 && !foreign {
                wrong.push(format!("{field}: in {count} lists"));
            }
            seen.insert(field);
        }
    }
    let lists = used.iter().chain(&people).chain(&refused);
    wrong.extend(lists.filter(|f| !seen.contains(*f)).map(|f| format!("{f}: there is no such field")));
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen.len() > 400, "{}", seen.len());
}

#[test]
fn what_has_no_effect_is_told_once_where_it_stands() {
    for (kind, path, text) in FIELDS {
        let said = warnings(kind, &with(path));
        assert!(said.len() == 1 && said[0].ends_with(&format!(": {text}")), "{kind} {path}: {said:?}");
    }
    let rule = json!({ "spec": {
        "host": "a", "trafficPolicy": { "connectionPool": { "tcp": { "maxConnectionDuration": "1s" } } },
        "subsets": [{ "name": "v1" }, { "name": "v2", "trafficPolicy": { "portLevelSettings": [
            { "port": { "number": 1 }, "connectionPool": { "http": { "useClientProtocol": true } } },
            { "port": { "number": 2 }, "connectionPool": { "http": { "useClientProtocol": false } } },
        ] } }],
    } });
    let mut said = warnings("DestinationRule", &rule);
    said.sort();
    assert_eq!(
        said,
        [
            "spec.subsets[1].trafficPolicy.portLevelSettings[0].connectionPool.http.useClientProtocol: has no effect in this version [KARST-0030]",
            "spec.trafficPolicy.connectionPool.tcp.maxConnectionDuration: has no effect in this version [KARST-0030]",
        ]
    );
    // What is asked for with all its defaults is still asked for.
    let route = json!({ "spec": { "rules": [{ "backendRefs": [{ "filters": [{ "cors": {} }] }] }] } });
    assert_eq!(warnings("HTTPRoute", &route).len(), 1);
    assert!(warnings("Pod", &route).is_empty());
}

#[test]
fn what_is_refused_is() {
    for (kind, path, spec) in REFUSED {
        let last = path.trim_end_matches("[]").rsplit('.').next().unwrap();
        let spec: Value = match *spec {
            "BIND" => {
                json!({ "servers": [{ "port": { "number": 80, "name": "h", "protocol": "HTTP" }, "hosts": ["*"], "bind": "127.0.0.1" }] })
            }
            "TLS" => {
                let value = if path.ends_with("[]") { json!(["x"]) } else { json!("x") };
                let tls = json!({ "mode": "SIMPLE", "credentialName": "c", last: value });
                json!({ "servers": [{ "port": { "number": 443, "name": "s", "protocol": "HTTPS" }, "hosts": ["*"], "tls": tls }] })
            }
            text => serde_yaml_ng::from_str(text).unwrap(),
        };
        let object =
            parse::value(kind, json!({ "metadata": { "name": "x", "namespace": "default" }, "spec": spec })).unwrap();
        let problems = check::problems(object, &mesh());
        let part = path.trim_end_matches("[]").rsplit('.').find(|s| *s != "name").unwrap();
        assert!(problems.iter().any(|p| p.field.contains(part)), "{kind} {path}: {problems:?}");
    }
}
