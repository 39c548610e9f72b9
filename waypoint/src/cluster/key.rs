//! Which destination. Each request asks for one: by a key that owns nothing, since references to what all workers share
//! would be counted in one place by all of them.

use hashbrown::Equivalent;
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Which destination.
#[derive(Clone, Debug)]
pub struct ClusterKey {
    pub service: Arc<str>,
    pub port: u16,
    pub subset: Arc<str>,
    /// The client's namespace, if the service is called in a way of its own from there.
    pub client: Arc<str>,
    /// Datagrams are sent, not connections made: a number may be a port of both.
    pub udp: bool,
}

/// A [`ClusterKey`] that owns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterKeyRef<'a> {
    pub service: &'a Arc<str>,
    pub port: u16,
    pub subset: &'a Arc<str>,
    /// See [`ClusterKey::client`].
    pub client: &'a str,
    /// See [`ClusterKey::udp`].
    pub udp: bool,
}

impl ClusterKeyRef<'_> {
    /// The same, to be kept.
    pub fn to_key(self) -> ClusterKey {
        let client = if self.client.is_empty() { Arc::default() } else { self.client.into() };
        ClusterKey {
            service: self.service.clone(),
            port: self.port,
            subset: self.subset.clone(),
            client,
            udp: self.udp,
        }
    }
}

impl ClusterKey {
    /// The same, not owned.
    pub fn as_ref(&self) -> ClusterKeyRef<'_> {
        let Self { service, port, subset, client, udp } = self;
        ClusterKeyRef { service, port: *port, subset, client, udp: *udp }
    }
}

impl PartialEq for ClusterKey {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl Eq for ClusterKey {}

impl Hash for ClusterKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

/// So a table of [`ClusterKey`]s is asked: both kinds of keys have the same hash.
impl Equivalent<ClusterKey> for ClusterKeyRef<'_> {
    fn equivalent(&self, key: &ClusterKey) -> bool {
        *self == key.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hashbrown::HashMap;
    use std::hash::RandomState;

    #[test]
    fn both_kinds_of_keys_find_the_same() {
        let key = |service: &str, port, client: &str| ClusterKey {
            service: service.into(),
            port,
            subset: "v1".into(),
            client: client.into(),
            udp: false,
        };
        let datagrams = ClusterKey { udp: true, ..key("a", 80, "") };
        let all: HashMap<ClusterKey, u8, RandomState> =
            [(key("a", 80, ""), 1), (key("a", 81, ""), 2), (key("a", 80, "ns"), 3), (datagrams.clone(), 4)]
                .into_iter()
                .collect();
        let find = |key: &ClusterKey| all.get(&key.as_ref()).copied();
        let wanted = [key("a", 80, ""), key("a", 81, ""), key("a", 80, "ns"), key("b", 80, ""), datagrams];
        assert_eq!(wanted.each_ref().map(find), [Some(1), Some(2), Some(3), None, Some(4)]);
        assert_eq!(wanted.each_ref().map(|k| all.get(k).copied()), [Some(1), Some(2), Some(3), None, Some(4)]);
    }
}
