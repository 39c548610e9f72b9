//! What the control plane tells, written into one immutable [`Snapshot`] after the other.

use crate::{
    authz::{access::Access, error::AccessError},
    downstream::gateway::{Gateway, GatewayError},
    route::{error::CompileError, table::Routes},
    snapshot::Snapshot,
    telemetry::rules::Telemetry,
};
use imbl::OrdMap;
use karst_api::{
    ACCESS_TYPE, ADDRESS_TYPE, BACKEND_TYPE, GATEWAY_TYPE, POD_RANGES_TYPE, ROUTES_TYPE, VIRTUAL_HOST_TYPE,
    route as ir,
    secrets::{without_keys, without_secrets},
};
use karst_proxy::{state::ResourceError, xds::ApplyResource};
use prost::{DecodeError, Message};
use std::{borrow::Cow, sync::Arc};

/// Types that a waypoint subscribes. The ranges of pods before the addresses: what is not told there is then known to be missing.
pub const WAYPOINT: &[&str] = &[ACCESS_TYPE, POD_RANGES_TYPE, ADDRESS_TYPE, BACKEND_TYPE, ROUTES_TYPE, GATEWAY_TYPE];
/// Types that a gateway subscribes.
pub const GATEWAY: &[&str] = &[POD_RANGES_TYPE, ADDRESS_TYPE, BACKEND_TYPE, VIRTUAL_HOST_TYPE, GATEWAY_TYPE];

/// Those of the subscribed types that must have arrived once. (istiod does not answer for the ranges of pods.)
pub fn needed(types: &[&'static str]) -> Vec<&'static str> {
    types.iter().copied().filter(|t| *t != POD_RANGES_TYPE).collect()
}

/// Why a resource is refused.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// It is no message of its type.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Of the mesh: a workload, a service, ranges of pods.
    #[error(transparent)]
    Mesh(#[from] ResourceError),
    /// Routes, which are not in force.
    #[error(transparent)]
    Routes(#[from] CompileError),
    /// What a rule does. The rest is in force.
    #[error("{0}; requests that this rule is for are answered 500 until it can be executed")]
    Rule(CompileError),
    /// What we listen on, which is not in force.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// A part of it. The rest is in force.
    #[error("{0}; this is closed until it can be used, and the rest of the gateway is in force")]
    Closed(GatewayError),
    /// Who may call.
    #[error(transparent)]
    Access(#[from] AccessError),
}

impl Snapshot {
    /// Takes in what a gateway listens on, without its keys.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn put_outline(&mut self, bytes: &[u8]) -> Result<(), PutError> {
        self.listen(Gateway::closing(&ir::Gateway::decode(bytes)?, false)?)
    }

    /// Listens, and tells of what is closed.
    fn listen(&mut self, (mut gateway, wrong): (Gateway, Option<GatewayError>)) -> Result<(), PutError> {
        if let (Some(new), Some(old)) = (gateway.telemetry.as_mut().and_then(Arc::get_mut), self.telemetry()) {
            new.keep_collectors(old);
        }
        self.gateway = Some(Arc::new(gateway));
        wrong.map_or(Ok(()), |wrong| Err(PutError::Closed(wrong)))
    }

    fn apply(&mut self, type_url: &str, key: &Arc<str>, bytes: &[u8]) -> Result<(), PutError> {
        let name = &**key;
        match type_url {
            ADDRESS_TYPE => {
                let taken = self.mesh.put_address(name, bytes);
                self.mesh.add_workload_service(name);
                taken?;
            }
            POD_RANGES_TYPE => self.mesh.put_pod_ranges(name, bytes)?,
            ROUTES_TYPE | VIRTUAL_HOST_TYPE => {
                let all = if type_url == ROUTES_TYPE { &mut self.routes } else { &mut self.hosts };
                return put_routes(all, key, bytes);
            }
            GATEWAY_TYPE => {
                let read = || Ok::<_, PutError>(Gateway::closing(&ir::Gateway::decode(bytes)?, true)?);
                return match read() {
                    Ok(read) => self.listen(read),
                    // What is not closed by itself leaves what was before; if there was nothing, nobody is let in.
                    Err(e) => {
                        self.gateway.get_or_insert_with(|| Arc::new(Gateway::closed()));
                        Err(e)
                    }
                };
            }
            ACCESS_TYPE => {
                let read = || Ok::<_, PutError>(Access::new(&ir::Access::decode(bytes)?)?);
                // What was meant is not known: nobody is let in until it is.
                let (access, wrong) = match read() {
                    Ok(access) => (access, None),
                    Err(e) => (Access::closed(), Some(e)),
                };
                self.access.insert(key.clone(), Arc::new(access));
                return wrong.map_or(Ok(()), Err);
            }
            _ => self.put_backend(key, Some(ir::Backend::decode(bytes)?)),
        }
        Ok(())
    }

    /// Keeps what was told, for the admin page. What a gateway listens on is kept without keys.
    fn keep(&mut self, type_url: &str, key: &Arc<str>, bytes: &[u8]) {
        let Some(own) = KEPT.iter().find(|own| **own == type_url) else { return };
        let kept = match *own {
            GATEWAY_TYPE => {
                let gateway = ir::Gateway::decode(bytes).map(|gateway| without_keys(gateway).encode_to_vec());
                gateway.unwrap_or_default().into()
            }
            ACCESS_TYPE => {
                let access = ir::Access::decode(bytes).map(|mut access| {
                    without_secrets(&mut access);
                    access.encode_to_vec()
                });
                access.unwrap_or_default().into()
            }
            _ => Cow::Borrowed(bytes),
        };
        self.told.insert((own, key.clone()), kept.into());
    }
}

/// Takes in routes. A rule that does what cannot be executed is closed, and everything else is in force: what it was to keep out does
/// not come in by what was before. Whom a rule is for that cannot be read is not known: then what was before stays, and if there was
/// nothing, nobody gets anywhere.
fn put_routes(all: &mut OrdMap<Arc<str>, Arc<Routes>>, name: &Arc<str>, bytes: &[u8]) -> Result<(), PutError> {
    let before = all.get(name).cloned();
    let old = before.as_deref();
    let read = || match Routes::decode(bytes, old) {
        Ok(routes) => Ok::<_, PutError>((routes, Ok(()))),
        Err(wrong) => {
            let executable = Routes::executable(&ir::Routes::decode(bytes)?).encode_to_vec();
            Ok((Routes::decode(&executable, old)?, Err(PutError::Rule(wrong))))
        }
    };
    let (routes, taken) = match (read(), &before) {
        (Ok(read), _) => read,
        (Err(wrong), None) => (Routes::closed(), Err(wrong)),
        (Err(wrong), Some(_)) => return Err(wrong),
    };
    all.insert(name.clone(), Arc::new(routes));
    taken
}

/// Types whose resources are kept as they were told: those that a snapshot has only compiled.
const KEPT: &[&str] = &[ACCESS_TYPE, BACKEND_TYPE, ROUTES_TYPE, VIRTUAL_HOST_TYPE, GATEWAY_TYPE];

impl ApplyResource for Snapshot {
    type Error = PutError;
    fn put(&mut self, type_url: &str, name: &str, bytes: &[u8]) -> Result<(), PutError> {
        // Once for all that is found by it.
        let key: Arc<str> = name.into();
        let applied = self.apply(type_url, &key, bytes);
        // What is refused leaves what was; but policies and parts of a gateway that cannot be used, and rules that cannot be executed,
        // are closed.
        let is_closed = match &applied {
            Err(PutError::Rule(_) | PutError::Closed(_)) => true,
            Ok(()) | Err(_) => type_url == ACCESS_TYPE,
        };
        if applied.is_ok() || is_closed {
            self.keep(type_url, &key, bytes);
        }
        applied
    }
    fn remove(&mut self, type_url: &str, name: &str) {
        if let Some(own) = KEPT.iter().find(|own| **own == type_url) {
            self.told.remove(&(*own, Arc::from(name)));
        }
        match type_url {
            ADDRESS_TYPE => {
                self.mesh.remove_address(name);
                self.mesh.add_workload_service(name);
            }
            POD_RANGES_TYPE => self.mesh.remove_pod_ranges(name),
            ACCESS_TYPE => drop(self.access.remove(name)),
            ROUTES_TYPE => drop(self.routes.remove(name)),
            VIRTUAL_HOST_TYPE => drop(self.hosts.remove(name)),
            GATEWAY_TYPE => self.gateway = None,
            _ => self.put_backend(&name.into(), None),
        }
    }
    fn applied(&mut self, before: &Self) {
        if !Telemetry::same(self.telemetry().map(|t| &**t), before.telemetry().map(|t| &**t)) {
            self.telemetry_generation += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use crate::route::{
        input::{RouteInput, TcpRouteInput},
        table::RouteMatch,
    };

    #[test]
    fn what_is_kept_has_no_keys_and_goes_with_the_resource() {
        let pair = || ir::KeyPair { chain: "chain".into(), key: "secret".into() };
        let traced = |value: &str| {
            let header =
                ir::CollectorHeader { name: "authorization".into(), value: value.into(), ..Default::default() };
            let collector = ir::Collector { headers: vec![header], ..Default::default() };
            ir::Tracing { collector: Some(collector), ..Default::default() }
        };
        let tls = ir::Tls { certificates: vec![pair()], ..Default::default() };
        let gateway = ir::Gateway {
            listeners: vec![ir::Listener { port: 443, tls: Some(tls), ..Default::default() }],
            credentials: [("c".to_string(), pair())].into(),
            backend_certificate: Some(ir::BackendCertificate { pair: Some(pair()), ..Default::default() }),
            telemetry: Some(ir::Telemetry { tracing: Some(traced("secret")), ..Default::default() }),
            session_keys: vec![ir::SessionKey { secret: "secret".into() }],
            ..Default::default()
        };
        let kept = without_keys(gateway).encode_to_vec();
        assert!(!kept.windows(6).any(|w| w == b"secret") && kept.windows(5).any(|w| w == b"chain"));

        let jwks = r#"{"keys":[{"kty":"oct","k":"hidden"},{"kty":"RSA","n":"number","e":"AQAB","d":"hidden"}]}"#;
        let mut access =
            ir::Access { tokens: vec![ir::Jwt { jwks: jwks.into(), ..Default::default() }], ..Default::default() };
        without_secrets(&mut access);
        assert!(!access.tokens[0].jwks.contains("hidden") && access.tokens[0].jwks.contains("number"));

        let mut snapshot = Snapshot::new("");
        let routes = ir::Routes::default().encode_to_vec();
        snapshot.put(ROUTES_TYPE, "ns/web", &routes).unwrap();
        let (told, own) = (snapshot.told.keys().next().unwrap(), snapshot.routes.keys().next().unwrap());
        assert!(snapshot.told.len() == 1 && Arc::ptr_eq(&told.1, own), "a name is there once");
        // What is refused leaves what was.
        let regex = ir::Text { kind: Some(ir::text::Kind::Regex("(".into())) };
        let wrong =
            ir::HttpRule { r#match: Some(ir::Match { path: Some(regex), ..Default::default() }), ..Default::default() };
        let wrong = ir::Routes { producer: Some(ir::Table { http: vec![wrong], tcp: vec![] }), ..Default::default() };
        assert!(snapshot.put(ROUTES_TYPE, "ns/web", &wrong.encode_to_vec()).is_err());
        let key = (ROUTES_TYPE, Arc::from("ns/web"));
        assert_eq!(**snapshot.told.get(&key).unwrap(), *routes);
        snapshot.remove(ROUTES_TYPE, "ns/web");
        assert!(snapshot.told.is_empty());
    }

    fn rule(origin: &str, path: &str) -> ir::HttpRule {
        let path = Some(ir::Text { kind: Some(ir::text::Kind::Exact(path.into())) });
        let r#match = Some(ir::Match { path, ..Default::default() });
        let destinations = vec![ir::Destination { service: "ns/web".into(), weight: 1, ..Default::default() }];
        ir::HttpRule { origin: origin.into(), r#match, destinations, ..Default::default() }
    }

    fn routes(http: Vec<ir::HttpRule>) -> Vec<u8> {
        let table = ir::Table { http, tcp: vec![] };
        ir::Routes { producer: Some(table), max_body_bytes: 7, ..Default::default() }.encode_to_vec()
    }

    /// What a rule does, by the path that a request asks for: the status that it answers itself, else 0. None: no rule is for it.
    fn found(snapshot: &Snapshot, type_url: &str, path: &str) -> Option<u32> {
        let all = if type_url == ROUTES_TYPE { &snapshot.routes } else { &snapshot.hosts };
        let (headers, labels) = (http::HeaderMap::new(), std::collections::BTreeMap::new());
        let input = RouteInput::new(path, None, "GET", "http", "a", &headers, "", &labels);
        match all.get("ns/web")?.table("").find(80, &input) {
            RouteMatch::Rule(rule) => Some(rule.response.as_ref().map_or(0, |response| response.status)),
            RouteMatch::Nothing | RouteMatch::Default => None,
        }
    }

    /// A newer controller and an older proxy: a provider that is asked in a way that is not known here, and whatever else a rule does.
    #[test]
    fn a_rule_that_cannot_be_executed_is_closed_and_the_others_are_in_force() {
        let later = |change: fn(&mut ir::HttpRule)| {
            let mut later = rule("HTTPRoute ns/guarded rule 0", "/guarded");
            change(&mut later);
            later
        };
        let all: [fn(&mut ir::HttpRule); 4] = [
            |r| {
                let (service, port) = ("ns/authz".into(), 80);
                r.authorization = Some(ir::AuthzProvider { service, port, protocol: 99, ..Default::default() });
            },
            |r| r.session = Some(ir::Session { name: "a b".into(), ..Default::default() }),
            |r| r.mirrors = vec![ir::Mirror::default()],
            |r| r.destinations[0].refuse_status = 9999,
        ];
        for type_url in [ROUTES_TYPE, VIRTUAL_HOST_TYPE] {
            for change in all {
                let mut snapshot = Snapshot::new("");
                let open = routes(vec![rule("HTTPRoute ns/guarded rule 0", "/guarded")]);
                snapshot.put(type_url, "ns/web", &open).unwrap();
                assert_eq!(found(&snapshot, type_url, "/guarded"), Some(0));
                let told = routes(vec![rule("new", "/new"), later(change)]);
                let wrong = snapshot.put(type_url, "ns/web", &told).unwrap_err().to_string();
                assert!(wrong.starts_with("HTTPRoute ns/guarded rule 0: "), "{wrong}");
                assert_eq!(found(&snapshot, type_url, "/guarded"), Some(500), "{wrong}");
                assert_eq!(found(&snapshot, type_url, "/new"), Some(0), "{wrong}");
                let all = if type_url == ROUTES_TYPE { &snapshot.routes } else { &snapshot.hosts };
                assert_eq!(all["ns/web"].max_body_bytes, 7, "what is no rule's");
                let key: (&'static str, Arc<str>) = (type_url, "ns/web".into());
                assert_eq!(**snapshot.told.get(&key).unwrap(), *told);
                // It is open again when it can be.
                snapshot.put(type_url, "ns/web", &open).unwrap();
                assert_eq!(found(&snapshot, type_url, "/guarded"), Some(0));
            }
        }
    }

    #[test]
    fn routes_whose_conditions_cannot_be_read_leave_what_was_and_are_closed_where_nothing_was() {
        let mut later = rule("later", "/later");
        later.r#match.as_mut().unwrap().path = Some(ir::Text { kind: None });
        for bytes in [routes(vec![rule("new", "/new"), later]), vec![0xff]] {
            for type_url in [ROUTES_TYPE, VIRTUAL_HOST_TYPE] {
                let mut snapshot = Snapshot::new("");
                assert!(snapshot.put(type_url, "ns/web", &bytes).is_err());
                assert_eq!(found(&snapshot, type_url, "/new"), Some(500));
                let all = if type_url == ROUTES_TYPE { &snapshot.routes } else { &snapshot.hosts };
                let labels = std::collections::BTreeMap::new();
                let input = TcpRouteInput { port: 80, namespace: "", labels: &labels, sni: None };
                let tcp = all["ns/web"].table("").find_tcp(&input).unwrap();
                assert_ne!(tcp.choose().unwrap().refuse_status, 0, "no connection goes on, either");
                assert!(snapshot.told.is_empty());
                snapshot.put(type_url, "ns/web", &routes(vec![rule("old", "/old")])).unwrap();
                assert!(snapshot.put(type_url, "ns/web", &bytes).is_err());
                assert_eq!(found(&snapshot, type_url, "/old"), Some(0), "what was before stays");
            }
        }
    }

    /// A policy of a later version, added to those of a gateway that serves: what it keeps out is not let in until it is known.
    #[test]
    fn a_gateway_whose_policies_cannot_be_read_lets_nobody_in() {
        let mut snapshot = Snapshot::new("");
        let listener = ir::Listener { port: 80, ..Default::default() };
        let open = ir::Gateway { listeners: vec![listener], ..Default::default() };
        snapshot.put(GATEWAY_TYPE, "", &open.encode_to_vec()).unwrap();
        assert!(snapshot.gateway.as_ref().unwrap().access.is_none());
        let later = ir::AccessPolicy { name: "a/later".into(), action: 99, ..Default::default() };
        let access = Some(ir::Access { policies: vec![later], ..Default::default() });
        let later = ir::Gateway { access, ..open.clone() };
        assert!(snapshot.put(GATEWAY_TYPE, "", &later.encode_to_vec()).is_err());
        let gateway = snapshot.gateway.clone().unwrap();
        assert!(gateway.ports.contains_key(&80), "it listens as it is told to");
        let enforced: Vec<_> = gateway.access.as_ref().unwrap().enforced().map(|(name, ..)| name).collect();
        assert_eq!(enforced, ["a policy that is not understood"]);
        // What else cannot be read changes nothing.
        snapshot.put(GATEWAY_TYPE, "", &open.encode_to_vec()).unwrap();
        let session_keys = vec![ir::SessionKey { secret: vec![1] }];
        let wrong = ir::Gateway { listeners: vec![], session_keys, ..open };
        assert!(snapshot.put(GATEWAY_TYPE, "", &wrong.encode_to_vec()).is_err());
        assert!(snapshot.gateway.as_ref().unwrap().ports.contains_key(&80));
    }

    /// A change of something else: whether a collector takes anything is not to be found out anew.
    #[test]
    fn collectors_outlast_a_change_of_the_gateway() {
        let collector = Some(ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() });
        let telemetry =
            ir::Telemetry { tracing: Some(ir::Tracing { collector, ..Default::default() }), ..Default::default() };
        let told = |port: u32| {
            let listeners = vec![ir::Listener { port, ..Default::default() }];
            ir::Gateway { listeners, telemetry: Some(telemetry.clone()), ..Default::default() }.encode_to_vec()
        };
        let collector = |snapshot: &Snapshot| {
            let telemetry = snapshot.telemetry().unwrap();
            telemetry.tracing.as_ref().unwrap().collector.clone()
        };
        let mut snapshot = Snapshot::new("");
        snapshot.put(GATEWAY_TYPE, "", &told(80)).unwrap();
        let before = collector(&snapshot);
        snapshot.put(GATEWAY_TYPE, "", &told(81)).unwrap();
        assert!(Arc::ptr_eq(&before, &collector(&snapshot)));
        assert!(snapshot.gateway.as_ref().unwrap().ports.contains_key(&81));
    }

    /// A listener of a later version: whom it would have asked for certificates is not served as before, and the other listeners are
    /// as they are told to be.
    #[test]
    fn a_listener_that_cannot_be_used_is_closed_and_does_not_hold_up_the_others() {
        let own = rcgen::generate_simple_self_signed(vec!["gateway".to_string()]).unwrap();
        let pair = ir::KeyPair { chain: own.cert.pem().into(), key: own.signing_key.serialize_pem().into() };
        let listener = |port: u32, client: i32| {
            let tls = ir::Tls { certificates: vec![pair.clone()], client, ..Default::default() };
            let protocol = ir::ListenerProtocol::Https as i32;
            ir::Listener { port, protocol, tls: Some(tls), ..Default::default() }
        };
        let gateway = |client: i32| {
            let listeners = vec![listener(443, client), listener(8443, 0)];
            ir::Gateway { listeners, ..Default::default() }.encode_to_vec()
        };
        let mut snapshot = Snapshot::new("");
        let ports = |snapshot: &Snapshot| -> Vec<u16> {
            snapshot.gateway.iter().flat_map(|gateway| gateway.ports.keys().copied()).collect()
        };
        snapshot.put(GATEWAY_TYPE, "", &gateway(0)).unwrap();
        assert_eq!(ports(&snapshot), [443, 8443]);
        let error = snapshot.put(GATEWAY_TYPE, "", &gateway(9)).unwrap_err().to_string();
        assert!(error.contains("client certificate 9; this is closed"), "{error}");
        assert_eq!(ports(&snapshot), [8443]);
        let key: (&'static str, Arc<str>) = (GATEWAY_TYPE, "".into());
        let told = ir::Gateway::decode(&**snapshot.told.get(&key).unwrap()).unwrap();
        assert_eq!(told.listeners.len(), 2, "what was told is what is shown");
        let mut later = listener(443, 0);
        let cipher_suites = vec!["NEW".into()];
        later.tls.as_mut().unwrap().parameters = Some(ir::TlsParameters { cipher_suites, ..Default::default() });
        let new = ir::Gateway { listeners: vec![later, listener(9443, 0)], ..Default::default() };
        let error = snapshot.put(GATEWAY_TYPE, "", &new.encode_to_vec()).unwrap_err().to_string();
        assert!(error.contains("unknown cipher suite \"NEW\""), "{error}");
        assert_eq!(ports(&snapshot), [9443], "a new listener beside it is there");
        snapshot.put(GATEWAY_TYPE, "", &gateway(0)).unwrap();
        assert_eq!(ports(&snapshot), [443, 8443]);
    }
}
