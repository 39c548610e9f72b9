//! The groups of what waypoints execute, by what a service names its waypoint by (a service's name, or an address), and of what
//! gateways execute, by what their listeners call their routes.

use karst_api::{
    route::Gateway,
    workload::{GatewayAddress, Service, gateway_address::Destination},
};
use karst_core::addr::ip_from_bytes;
use karst_xds::{LISTENER_GROUP, WAYPOINT_GROUP};
use std::net::IpAddr;

/// The waypoint of this service key (`namespace/hostname`).
pub fn called(key: &str) -> String {
    format!("{WAYPOINT_GROUP}{key}")
}

/// The waypoint at this address.
pub fn at(ip: IpAddr) -> String {
    format!("{WAYPOINT_GROUP}{ip}")
}

/// The waypoints of a service, those that get a part of it included.
pub fn of(service: &Service) -> Vec<String> {
    let weighted = service.weighted_waypoints.iter().filter_map(|w| w.destination.as_ref());
    let mut groups: Vec<String> = service.waypoint.iter().chain(weighted).filter_map(of_address).collect();
    groups.sort();
    groups.dedup();
    groups
}

/// All virtual hosts of the listeners of a gateway.
pub fn listened(gateway: &Gateway) -> impl Iterator<Item = String> {
    let routes = gateway.listeners.iter().map(|listener| &listener.routes);
    routes.chain(gateway.udp.iter().map(|listener| &listener.routes)).map(|routes| of_listener(routes))
}

/// The group of a virtual host: it is called as its listener calls its routes, a slash and the host.
pub fn of_virtual_host(key: &str) -> Option<String> {
    key.rsplit_once('/').map(|(routes, _)| of_listener(routes))
}

fn of_listener(routes: &str) -> String {
    format!("{LISTENER_GROUP}{routes}")
}

fn of_address(address: &GatewayAddress) -> Option<String> {
    match address.destination.as_ref()? {
        Destination::Hostname(name) => Some(called(&format!("{}/{}", name.namespace, name.hostname))),
        Destination::Address(address) => ip_from_bytes(&address.address).map(at),
    }
}
