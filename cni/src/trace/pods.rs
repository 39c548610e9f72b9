//! Which pod is meant, and whose a packet was.

use crate::records::Record;
use std::net::IpAddr;

/// Why a pod cannot be traced.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FindError {
    #[error("pod {0} has no address yet")]
    NoAddress(String),
    #[error("no pod {wanted} is redirected on this node: run this on the node of the pod (redirected here: {names})")]
    NotHere { wanted: String, names: String },
    #[error("{count} pods of this node have the name {wanted}: use NAMESPACE/{wanted}")]
    Ambiguous { count: usize, wanted: String },
}

/// The node's redirected pods.
pub(super) struct Pods(pub(super) Vec<Record>);

impl Pods {
    /// The address by which the programs know a pod.
    pub(super) fn find(&self, wanted: &str) -> Result<IpAddr, FindError> {
        let is = |r: &&Record| wanted == r.name || wanted == r.uid || wanted == full(r);
        let found: Vec<&Record> = self.0.iter().filter(is).collect();
        match found[..] {
            [one] => one.ips.first().copied().ok_or_else(|| FindError::NoAddress(full(one))),
            [] => {
                let mut names: Vec<String> = self.0.iter().map(full).collect();
                names.sort();
                let names = if names.is_empty() { "none are".into() } else { names.join(", ") };
                Err(FindError::NotHere { wanted: wanted.into(), names })
            }
            _ => Err(FindError::Ambiguous { count: found.len(), wanted: wanted.into() }),
        }
    }
    fn by_address(&self, ip: IpAddr) -> Option<&Record> {
        self.0.iter().find(|r| r.ips.first() == Some(&ip))
    }
    /// What a pod is called, by its first address.
    pub(super) fn name(&self, ip: IpAddr) -> String {
        self.by_address(ip).map_or_else(|| ip.to_string(), full)
    }
    /// Why a pod is closed, if it is.
    pub(super) fn closed(&self, ip: IpAddr) -> Option<&str> {
        self.by_address(ip)?.closed.as_deref()
    }
}

fn full(record: &Record) -> String {
    format!("{}/{}", record.namespace, record.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Pods {
        let record = |uid: &str, ns: &str, name: &str, ips: &[&str]| {
            let json = serde_json::json!({"uid": uid, "namespace": ns, "name": name, "netns": "", "ips": ips});
            serde_json::from_value::<Record>(json).unwrap()
        };
        Pods(vec![
            record("u1", "app", "web", &["10.0.0.5", "fd00::5"]),
            record("u2", "app", "db", &["fd00::6"]),
            record("u3", "shop", "web", &["10.0.0.7"]),
            record("u4", "shop", "new", &[]),
        ])
    }

    #[test]
    fn a_pod_is_found_by_each_of_its_names() {
        let pods = pods();
        let ip = |s: &str| Ok(s.parse::<IpAddr>().unwrap());
        assert_eq!(pods.find("app/web"), ip("10.0.0.5"));
        assert_eq!(pods.find("u3"), ip("10.0.0.7"));
        assert_eq!(pods.find("db"), ip("fd00::6"), "the only one of this name");
        assert!(pods.find("web").unwrap_err().to_string().contains("use NAMESPACE/web"));
        assert!(pods.find("new").unwrap_err().to_string().contains("no address"));
        assert!(pods.find("gone").unwrap_err().to_string().ends_with("app/db, app/web, shop/new, shop/web)"));
        assert_eq!(pods.name("fd00::6".parse().unwrap()), "app/db");
        assert_eq!(pods.name("10.9.9.9".parse().unwrap()), "10.9.9.9", "a pod that is gone");
    }
}
