//! What tells the series of requests apart. As with destinations ([`crate::cluster::key`]), a request looks for its own
//! by a key that owns nothing.

use crate::telemetry::flag::ResponseFlag;
use hashbrown::Equivalent;
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// What tells series apart.
#[derive(Clone, Debug)]
pub struct Key {
    source: Option<Arc<str>>,
    principal: Option<Arc<str>>,
    workload: Option<Arc<str>>,
    service: Option<Arc<str>>,
    status: u16,
    grpc: Option<u16>,
    flag: ResponseFlag,
    is_grpc: bool,
    /// See [`KeyRef::telemetry_generation`].
    pub telemetry_generation: u64,
    /// See [`KeyRef::values`].
    pub values: Vec<String>,
}

/// A [`Key`] that owns nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyRef<'a> {
    pub source: Option<&'a Arc<str>>,
    pub principal: Option<&'a Arc<str>>,
    /// Who has answered; where clients think of names, what they have called.
    pub workload: Option<&'a Arc<str>>,
    pub service: Option<&'a Arc<str>>,
    pub status: u16,
    pub grpc: Option<u16>,
    pub flag: ResponseFlag,
    pub is_grpc: bool,
    /// Since when the same Telemetry says what its labels are ([`crate::snapshot::Snapshot::telemetry_generation`]).
    pub telemetry_generation: u64,
    /// Values that it asks for.
    pub values: &'a [String],
}

impl KeyRef<'_> {
    /// The same, to be kept.
    pub fn to_key(self) -> Key {
        Key {
            source: self.source.cloned(),
            principal: self.principal.cloned(),
            workload: self.workload.cloned(),
            service: self.service.cloned(),
            status: self.status,
            grpc: self.grpc,
            flag: self.flag,
            is_grpc: self.is_grpc,
            telemetry_generation: self.telemetry_generation,
            values: self.values.to_vec(),
        }
    }
}

impl Key {
    /// The same, not owned.
    pub fn as_ref(&self) -> KeyRef<'_> {
        KeyRef {
            source: self.source.as_ref(),
            principal: self.principal.as_ref(),
            workload: self.workload.as_ref(),
            service: self.service.as_ref(),
            status: self.status,
            grpc: self.grpc,
            flag: self.flag,
            is_grpc: self.is_grpc,
            telemetry_generation: self.telemetry_generation,
            values: &self.values,
        }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_ref() == other.as_ref()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

/// So a table of [`Key`]s is asked: both kinds of keys have the same hash.
impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
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
        let (name, values) = (Arc::<str>::from("a"), vec!["v".to_string()]);
        let with = |status| KeyRef {
            source: None,
            principal: None,
            workload: Some(&name),
            service: Some(&name),
            status,
            grpc: Some(2),
            flag: ResponseFlag::None,
            is_grpc: true,
            telemetry_generation: 1,
            values: &values,
        };
        let all: HashMap<Key, u16, RandomState> =
            [200, 404].map(|status| (with(status).to_key(), status)).into_iter().collect();
        let find = |key: KeyRef<'_>| (all.get(&key).copied(), all.get(&key.to_key()).copied());
        assert_eq!(find(with(404)), (Some(404), Some(404)));
        assert_eq!(find(with(500)), (None, None));
        assert_eq!(find(KeyRef { service: None, ..with(404) }), (None, None));
        assert_eq!(find(KeyRef { values: &[], ..with(404) }), (None, None));
    }
}
