//! What running proxies know, from their own pages: a ztunnel's `/config_dump`, and `/config_dump/karst?resources` of a waypoint or
//! gateway. Where there is one, it decides in place of what the objects compile to.

use base64::{Engine, prelude::BASE64_STANDARD};
use karst_proxy::{
    dump::{self, DumpError},
    state::Snapshot,
};
use karst_waypoint::decision::Waypoint;
use karst_ztunnel::mesh_config::OutboundMode;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// A proxy's page cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObservedError {
    /// What it knows of the mesh cannot be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The page of a waypoint without its resources.
    #[error("{0}: it has no resources: save the page /config_dump/karst?resources of a waypoint or gateway")]
    NoResources(String),
    /// A resource that cannot be read.
    #[error("resource {name}: {error}: save the page again")]
    Resource {
        /// Its name.
        name: String,
        /// What is wrong.
        error: base64::DecodeError,
    },
}

/// The pages of proxies.
#[derive(Clone, Default)]
pub(crate) struct Observed {
    /// By node; without a name: of all nodes that no other is of.
    ztunnels: BTreeMap<String, Ztunnel>,
    /// By pod, `namespace/name`.
    proxies: BTreeMap<String, Proxy>,
}

/// What a ztunnel knows.
#[derive(Clone)]
pub(crate) struct Ztunnel {
    pub(crate) mesh: Snapshot,
    /// None: it does not say (Istio's).
    pub(crate) outbound: Option<OutboundMode>,
    pub(crate) page: Value,
}

/// What a waypoint or gateway knows.
#[derive(Clone)]
pub(crate) struct Proxy {
    mesh: Snapshot,
    pub(crate) told: Vec<Told>,
    /// What it knows of the mesh, as it has written it.
    pub(crate) page: Value,
}

/// A resource as the control plane sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) type_url: String,
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Deserialize)]
struct Encoded {
    r#type: String,
    name: String,
    body: String,
}

impl Observed {
    pub(crate) fn put_ztunnel(&mut self, node: &str, page: Value, root: &str) -> Result<(), ObservedError> {
        let mesh = dump::snapshot(&page, root)?;
        let outbound = serde_json::from_value(page["outboundTrafficPolicy"].clone()).ok();
        self.ztunnels.insert(node.into(), Ztunnel { mesh, outbound, page });
        Ok(())
    }

    pub(crate) fn put_proxy(&mut self, pod: &str, page: &Value, root: &str) -> Result<(), ObservedError> {
        let no_resources = || ObservedError::NoResources(pod.into());
        let listed = page.get("resources").cloned().ok_or_else(no_resources)?;
        let encoded: Vec<Encoded> = serde_json::from_value(listed).map_err(|_| no_resources())?;
        let mut told = vec![];
        for one in encoded {
            let decoded = BASE64_STANDARD.decode(&one.body);
            let bytes = decoded.map_err(|error| ObservedError::Resource { name: one.name.clone(), error })?;
            told.push(Told { type_url: one.r#type, name: one.name, bytes });
        }
        let mesh = dump::snapshot(&page["mesh"], root)?;
        self.proxies.insert(pod.into(), Proxy { mesh, told, page: page["mesh"].clone() });
        Ok(())
    }

    pub(crate) fn ztunnel(&self, node: &str) -> Option<&Ztunnel> {
        self.ztunnels.get(node).or_else(|| self.ztunnels.get(""))
    }

    pub(crate) fn ztunnels(&self) -> impl Iterator<Item = (&str, &Ztunnel)> {
        self.ztunnels.iter().map(|(node, ztunnel)| (node.as_str(), ztunnel))
    }

    pub(crate) fn proxies(&self) -> impl Iterator<Item = (&str, &Proxy)> {
        self.proxies.iter().map(|(pod, proxy)| (pod.as_str(), proxy))
    }

    pub(crate) fn proxy(&self, pod: &str) -> Option<&Proxy> {
        self.proxies.get(pod)
    }
}

impl Proxy {
    /// A waypoint or gateway that knows this.
    pub(crate) fn told_to(&self, empty: Waypoint) -> Waypoint {
        let mut proxy = empty.with_mesh(self.mesh.clone());
        for told in &self.told {
            // What is refused is in force as the proxy has it in force.
            let _ = proxy.put_outline(&told.type_url, &told.name, &told.bytes);
        }
        proxy
    }
}
