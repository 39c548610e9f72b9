//! Clusters, routes, endpoints and the bootstrap, in istioctl's columns.

use super::envoy::{Dump, list, origin, text};
use crate::output::{Cell, Table, Tone};
use serde_json::Value;

/// What is asked for; what is none is not asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Only<'a> {
    pub host: Option<&'a str>,
    pub port: Option<u16>,
    pub subset: Option<&'a str>,
    pub direction: Option<&'a str>,
    pub cluster: Option<&'a str>,
    pub address: Option<&'a str>,
    pub status: Option<&'a str>,
}

impl Only<'_> {
    /// Whether a cluster is asked for.
    pub fn has_cluster(&self, cluster: &Value) -> bool {
        let Name { direction, port, subset, host } = Name::of(text(cluster, "/name"));
        self.host.is_none_or(|wanted| wanted == host)
            && self.port.is_none_or(|wanted| port.parse() == Ok(wanted))
            && self.subset.is_none_or(|wanted| wanted == subset)
            && self.direction.is_none_or(|wanted| wanted == direction)
    }
}

/// The parts of a cluster's name: `direction|port|subset|host`.
struct Name<'a> {
    direction: &'a str,
    port: &'a str,
    subset: &'a str,
    host: &'a str,
}

impl<'a> Name<'a> {
    fn of(name: &'a str) -> Self {
        match name.split('|').collect::<Vec<_>>().as_slice() {
            [direction, port, subset, host] => Self { direction, port, subset, host },
            _ => Self { direction: "", port: "", subset: "", host: name },
        }
    }
}

/// Clusters.
pub fn clusters(dump: &Dump, only: &Only<'_>) -> Table {
    let mut table = Table::new(&["SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE"]);
    for cluster in dump.clusters().filter(|cluster| only.has_cluster(cluster)) {
        let Name { direction, port, subset, host } = Name::of(text(cluster, "/name"));
        let rule = Cell::from(origin(cluster));
        table.row([host.into(), port.into(), subset.into(), direction.into(), text(cluster, "/type").into(), rule]);
    }
    table.sort();
    table
}

/// Routes.
pub fn routes(dump: &Dump, name: Option<&str>) -> Table {
    let mut table = Table::new(&["NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE"]);
    for config in dump.routes().filter(|config| name.is_none_or(|name| text(config, "/name") == name)) {
        for host in list(config, "/virtual_hosts") {
            let domains: Vec<&str> = list(host, "/domains").filter_map(Value::as_str).collect();
            for route in list(host, "/routes") {
                table.row([
                    text(config, "/name").into(),
                    text(host, "/name").into(),
                    domains.join(", ").into(),
                    matching(route).into(),
                    Cell::from(origin(route)),
                ]);
            }
        }
    }
    table
}

/// What a route matches, as istioctl writes it: `/path*` for a prefix.
fn matching(route: &Value) -> String {
    let at = |field: &str| route.pointer(&format!("/match{field}")).and_then(Value::as_str);
    let conditions = list(route, "/match/headers").count() + list(route, "/match/query_parameters").count();
    let more = if conditions > 0 { format!(" +{conditions} conditions") } else { String::new() };
    let path = at("/path")
        .map(str::to_owned)
        .or_else(|| at("/prefix").map(|prefix| format!("{prefix}*")))
        .or_else(|| at("/path_separated_prefix").map(|prefix| format!("PathPrefix:{prefix}")))
        .or_else(|| at("/safe_regex/regex").map(|pattern| format!("regex {pattern}")));
    path.unwrap_or_else(|| "*".into()) + &more
}

/// Endpoints.
pub fn endpoints(dump: &Dump, only: &Only<'_>) -> Table {
    let mut table = Table::new(&["ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER"]);
    for config in dump.endpoints() {
        let cluster = text(config, "/cluster_name");
        for group in list(config, "/endpoints") {
            for endpoint in list(group, "/lb_endpoints") {
                let at = "/endpoint/address/socket_address";
                let ip = text(endpoint, &format!("{at}/address"));
                let port = endpoint.pointer(&format!("{at}/port_value")).and_then(Value::as_u64).unwrap_or_default();
                let status = text(endpoint, "/health_status");
                let fits = only.cluster.is_none_or(|wanted| wanted == cluster)
                    && only.address.is_none_or(|wanted| wanted == ip)
                    && only.port.is_none_or(|wanted| u64::from(wanted) == port)
                    && only.status.is_none_or(|wanted| wanted.eq_ignore_ascii_case(status));
                if !fits {
                    continue;
                }
                let address = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
                let tone = if status == "HEALTHY" { Tone::Good } else { Tone::Warning };
                table.row([address.into(), Cell::new(status, tone), "OK".into(), cluster.into()]);
            }
        }
    }
    table.sort();
    table
}

/// Endpoints with where they are.
pub fn localities(dump: &Dump) -> Table {
    let mut table = Table::new(&["NAME", "STATUS", "LOCALITY", "CLUSTER"]);
    for config in dump.endpoints() {
        for group in list(config, "/endpoints") {
            let parts = ["region", "zone", "sub_zone"].map(|part| text(group, &format!("/locality/{part}")));
            let place: Vec<&str> = parts.into_iter().take_while(|part| !part.is_empty()).collect();
            for endpoint in list(group, "/lb_endpoints") {
                let at = "/endpoint/address/socket_address";
                let port = endpoint.pointer(&format!("{at}/port_value")).and_then(Value::as_u64).unwrap_or_default();
                let name = format!("{}:{port}", text(endpoint, &format!("{at}/address")));
                let status = text(endpoint, "/health_status");
                table.row([name.into(), status.into(), place.join("/").into(), text(config, "/cluster_name").into()]);
            }
        }
    }
    table.sort();
    table
}

/// Who the proxy is.
pub fn bootstrap(dump: &Dump) -> Table {
    let mut table = Table::new(&["FIELD", "VALUE"]);
    let Some(node) = dump.section("BootstrapConfigDump").and_then(|section| section.pointer("/bootstrap/node")) else {
        return table;
    };
    table.row(["id".into(), text(node, "/id").into()]);
    for (name, value) in node.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        table.row([name.clone().into(), value.as_str().unwrap_or_default().into()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As waypoint/src/envoy writes it.
    const PAGE: &str = r#"{"configs": [
      {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
       "bootstrap": {"node": {"id": "waypoint~10.0.0.1~w-1.ns~x", "metadata": {"ISTIO_VERSION": "0.1.0"}}}},
      {"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [
        {"cluster": {"name": "inbound-vip|80|http/v1|web.ns.svc.cluster.local", "type": "EDS",
          "metadata": {"filter_metadata": {"istio": {"config": "/apis/networking.istio.io/v1/namespaces/ns/destination-rule/web"}}}}},
        {"cluster": {"name": "main_internal", "type": "STATIC"}}]},
      {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump", "dynamic_route_configs": [{"route_config": {
        "name": "inbound-vip|80|http|web.ns.svc.cluster.local", "virtual_hosts": [{"name": "inbound|http|80", "domains": ["*"],
          "routes": [{"name": "VirtualService ns/r http[0]", "match": {"path_separated_prefix": "/a", "headers": [{}]},
            "route": {"cluster": "c"}, "metadata": {"filter_metadata": {"istio": {
              "config": "/apis/networking.istio.io/v1/namespaces/ns/virtual-service/r"}}}}]}]}}]},
      {"@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump", "dynamic_endpoint_configs": [{"endpoint_config": {
        "cluster_name": "c", "endpoints": [{"locality": {"region": "eu", "zone": "a"}, "lb_endpoints": [
          {"endpoint": {"address": {"socket_address": {"address": "10.0.0.7", "port_value": 8080}}}, "health_status": "HEALTHY"},
          {"endpoint": {"address": {"socket_address": {"address": "fd00::7", "port_value": 8080}}}, "health_status": "DRAINING"}]}]}}]}
    ]}"#;

    #[test]
    fn tables_are_istios() {
        let (dump, none) = (Dump::parse(PAGE, "test").unwrap(), Only::default());
        let expected = "\
SERVICE FQDN               PORT   SUBSET    DIRECTION     TYPE     DESTINATION RULE
main_internal              -      -         -             STATIC   -
web.ns.svc.cluster.local   80     http/v1   inbound-vip   EDS      web.ns
";
        assert_eq!(clusters(&dump, &none).render(false), expected);
        let expected = "\
NAME                                           VHOST NAME        DOMAINS   MATCH                         VIRTUAL SERVICE
inbound-vip|80|http|web.ns.svc.cluster.local   inbound|http|80   *         PathPrefix:/a +1 conditions   r.ns
";
        assert_eq!(routes(&dump, None).render(false), expected);
        let expected = "\
ENDPOINT         STATUS     OUTLIER CHECK   CLUSTER
10.0.0.7:8080    HEALTHY    OK              c
[fd00::7]:8080   DRAINING   OK              c
";
        assert_eq!(endpoints(&dump, &none).render(false), expected);
        assert!(
            localities(&dump).render(false).contains("10.0.0.7:8080   HEALTHY    eu/a       c"),
            "{:?}",
            localities(&dump)
        );
        assert!(bootstrap(&dump).render(false).contains("ISTIO_VERSION   0.1.0"));
    }

    #[test]
    fn what_is_asked_for_is_chosen() {
        let dump = Dump::parse(PAGE, "test").unwrap();
        let lines = |table: Table| table.render(false).lines().count() - 1;
        assert_eq!(lines(clusters(&dump, &Only { port: Some(80), ..Only::default() })), 1);
        assert_eq!(lines(clusters(&dump, &Only { subset: Some("v2"), ..Only::default() })), 0);
        assert_eq!(lines(endpoints(&dump, &Only { status: Some("healthy"), ..Only::default() })), 1);
        assert_eq!(lines(routes(&dump, Some("other"))), 0);
    }

    #[test]
    fn our_own_dump_is_told_from_envoys() {
        let refused = Dump::parse("{\"routes\": []}", "x").unwrap_err().to_string();
        assert!(
            refused.starts_with("x: not a dump in Envoy's form: it has no list named configs\n  next: "),
            "{refused}"
        );
    }
}
