//! What one version was otherwise than the next: what it takes to go back. It costs as much as has changed.

use super::moment::Moment;
use crate::push::{REMEMBERED, Secrets};
use imbl::ordmap::DiffItem;
use karst_api::{route, secrets};
use karst_xds::{Entry, Resources, Set};
use prost::Message;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// The resources of a version: by the number of their type ([`REMEMBERED`]) and their name.
pub(super) type State = BTreeMap<(u32, String), Arc<[u8]>>;

/// The way back from a version to the one before. Encoded it lasts no longer than the process, so its form is nobody else's.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Change {
    /// When the older version ended, since the newer one came in force; [`Moment::millis`].
    #[prost(uint64, tag = "1")]
    ended: u64,
    /// Number of the older version.
    #[prost(uint64, tag = "2")]
    pub(super) version: u64,
    /// The resources that are other, as the older version had them.
    #[prost(message, repeated, tag = "3")]
    values: Vec<Value>,
    /// Their bytes: resources that share them have them once.
    #[prost(bytes = "vec", repeated, tag = "4")]
    bodies: Vec<Vec<u8>>,
}

/// A resource of the older version.
#[derive(Clone, PartialEq, Message)]
struct Value {
    /// Number of its type.
    #[prost(uint32, tag = "1")]
    kind: u32,
    /// Its name.
    #[prost(string, tag = "2")]
    name: String,
    /// Which of the bodies it has, from 1; 0: the older version did not have it.
    #[prost(uint32, tag = "3")]
    body: u32,
}

impl Change {
    /// The way back from `new` to `old`. None: they are the same.
    pub(super) fn between(old: &Resources, new: &Resources, ended: Moment) -> Option<Self> {
        let mut change = Self { ended: ended.millis(), version: old.version, ..Self::default() };
        let nothing = Set::new();
        for (kind, remembered) in (0..).zip(REMEMBERED) {
            let (old, new) = (set(old, remembered.set, &nothing), set(new, remembered.set, &nothing));
            // Bodies by where they are: while the older version is there, nothing else can be there.
            let mut known: HashMap<*const u8, u32> = HashMap::new();
            for item in old.diff(new) {
                let (name, before) = match item {
                    DiffItem::Add(name, _) => (name, None),
                    DiffItem::Update { old: (_, before), new: (_, after) } if before.bytes == after.bytes => continue,
                    DiffItem::Update { old: (name, before), .. } | DiffItem::Remove(name, before) => {
                        (name, Some(before))
                    }
                };
                let body = before.map_or(0, |entry| change.body(&mut known, remembered.held, entry));
                change.values.push(Value { kind, name: name.clone(), body });
            }
        }
        Some(change).filter(|change| !change.values.is_empty())
    }

    /// The number of an entry's body.
    fn body(&mut self, known: &mut HashMap<*const u8, u32>, held: Secrets, entry: &Entry) -> u32 {
        *known.entry(entry.bytes.as_ptr()).or_insert_with(|| {
            self.bodies.push(without(held, &entry.bytes).into_owned());
            u32::try_from(self.bodies.len()).unwrap_or(u32::MAX)
        })
    }

    /// When the older version ended.
    pub(super) fn ended(&self) -> Moment {
        Moment::from_millis(self.ended)
    }

    /// Goes back: the newer state becomes the older one.
    pub(super) fn undo(self, state: &mut State) {
        let bodies: Vec<Arc<[u8]>> = self.bodies.into_iter().map(Arc::from).collect();
        for Value { kind, name, body } in self.values {
            let index = usize::try_from(body).ok().and_then(|body| body.checked_sub(1));
            match index.and_then(|index| bodies.get(index)) {
                Some(body) => state.insert((kind, name), body.clone()),
                None => state.remove(&(kind, name)),
            };
        }
    }
}

/// The state of a version, as it may be shown.
pub(super) fn state(resources: &Resources) -> State {
    let nothing = Set::new();
    let mut state = State::new();
    for (kind, remembered) in (0..).zip(REMEMBERED) {
        for (name, entry) in set(resources, remembered.set, &nothing) {
            let bytes = match without(remembered.held, &entry.bytes) {
                Cow::Borrowed(_) => entry.bytes.clone(),
                Cow::Owned(shown) => shown.into(),
            };
            state.insert((kind, name.clone()), bytes);
        }
    }
    state
}

fn set<'a>(resources: &'a Resources, name: &str, nothing: &'a Set) -> &'a Set {
    resources.types.get(name).unwrap_or(nothing)
}

/// A resource without what only its subscriber may have; nothing of it, if it cannot be read.
fn without(held: Secrets, bytes: &[u8]) -> Cow<'_, [u8]> {
    match held {
        Secrets::None => Cow::Borrowed(bytes),
        Secrets::Keys => {
            let gateway = route::Gateway::decode(bytes).map(|gateway| secrets::without_keys(gateway).encode_to_vec());
            Cow::Owned(gateway.unwrap_or_default())
        }
        Secrets::Tokens => {
            let access = route::Access::decode(bytes).map(|mut access| {
                secrets::without_secrets(&mut access);
                access.encode_to_vec()
            });
            Cow::Owned(access.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_api::{ACCESS_TYPE, BACKEND_TYPE, GATEWAY_TYPE};

    fn resources(version: u64, type_url: &'static str, entries: &[(&str, Entry)]) -> Resources {
        let set = entries.iter().map(|(name, entry)| (name.to_string(), entry.clone())).collect();
        Resources::new([(type_url, set)].into(), version)
    }

    #[test]
    fn resources_that_share_their_bytes_are_kept_once() {
        let shared = Entry::new(vec![7; 1000], vec![]);
        let names = ["a", "b", "c"];
        let old = resources(1, BACKEND_TYPE, &names.map(|name| (name, shared.clone())));
        let new = resources(2, BACKEND_TYPE, &names.map(|name| (name, Entry::new(vec![8; 10], vec![]))));
        let change = Change::between(&old, &new, Moment::default()).unwrap();
        assert_eq!((change.values.len(), change.bodies.len(), change.version), (3, 1, 1));
        let mut now = state(&new);
        change.undo(&mut now);
        assert_eq!(now, state(&old));
        assert_eq!(Change::between(&old, &old, Moment::default()), None);
    }

    /// Neither in what is kept of older versions, nor in what is told of the newest.
    #[test]
    fn keys_are_not_kept() {
        let pair = route::KeyPair { chain: "chain".into(), key: "secret".into() };
        let session_keys = vec![route::SessionKey { secret: "secret".into() }];
        let credentials = [("c".to_string(), pair)].into();
        let gateway = route::Gateway { credentials, session_keys, ..Default::default() };
        let jwks = r#"{"keys":[{"kty":"oct","k":"secret"}]}"#;
        let tokens = vec![route::Jwt { jwks: jwks.into(), ..Default::default() }];
        let access = route::Access { tokens, ..Default::default() };
        for (type_url, bytes) in [(GATEWAY_TYPE, gateway.encode_to_vec()), (ACCESS_TYPE, access.encode_to_vec())] {
            let has_secret = |bytes: &[u8]| bytes.windows(6).any(|part| part == b"secret");
            assert!(has_secret(&bytes));
            let old = resources(1, type_url, &[("shop/one", Entry::new(bytes, vec![]))]);
            let change = Change::between(&old, &Resources::default(), Moment::default()).unwrap();
            assert!(!has_secret(&change.encode_to_vec()), "{type_url}");
            let told = state(&old);
            assert!(told.len() == 1 && told.values().all(|bytes| !has_secret(bytes)), "{type_url}");
            let mut undone = State::new();
            change.undo(&mut undone);
            assert_eq!(undone, told, "{type_url}: what is kept is what would have been told");
        }
    }
}
