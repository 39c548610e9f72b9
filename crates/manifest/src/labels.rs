//! Labels and annotations: few texts by short keys, of which every object has two maps.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{collections::BTreeMap, fmt, mem, slice, vec};

/// For how many entries room is made before they are read, at most: whoever writes them says how many there are.
const MOST_EXPECTED: usize = 64;

/// Texts by their keys, in the order of the keys; each key is there once, and of several values that are given for it the last
/// one counts, as with a `BTreeMap<String, String>`. There is room for what is in it and no more: 48 bytes for each entry beside
/// its texts, and nothing where there is none. (A B-tree's first entry takes 544 bytes, and each of a hundred thousand pods has
/// two maps.) What adds a key or takes one away copies the list.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Box<[(String, String)]>);

impl Labels {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Of entries in any order.
    fn of(mut all: Vec<(String, String)>) -> Self {
        // Those of one key stay in their order.
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            if is_same {
                mem::swap(later, kept);
            }
            is_same
        });
        Self(all.into_boxed_slice())
    }

    /// Where a key is, or would have to be.
    fn position(&self, key: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(own, _)| own.as_str().cmp(key))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&String> {
        let at = self.position(key).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Is there a value for this key?
    pub fn contains_key(&self, key: &str) -> bool {
        self.position(key).is_ok()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// The keys, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &String> {
        self.0.iter().map(|(_, value)| value)
    }

    /// Sets the value of a key, and gives the one that it had.
    pub fn insert(&mut self, key: String, value: String) -> Option<String> {
        match self.position(&key) {
            Ok(at) => self.0.get_mut(at).map(|(_, old)| mem::replace(old, value)),
            Err(at) => {
                let mut all = mem::take(&mut self.0).into_vec();
                all.reserve_exact(1);
                all.insert(at, (key, value));
                self.0 = all.into_boxed_slice();
                None
            }
        }
    }

    /// Keeps those of which this is said, and the memory of no others.
    pub fn retain(&mut self, mut keep: impl FnMut(&String, &String) -> bool) {
        let mut all = mem::take(&mut self.0).into_vec();
        all.retain(|(key, value)| keep(key, value));
        self.0 = all.into_boxed_slice();
    }

    /// The same as a B-tree, for what wants one.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.clone().into_iter().collect()
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl FromIterator<(String, String)> for Labels {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(entries: I) -> Self {
        Self::of(entries.into_iter().collect())
    }
}

impl<const N: usize> From<[(String, String); N]> for Labels {
    fn from(entries: [(String, String); N]) -> Self {
        Self::of(Vec::from(entries))
    }
}

impl Extend<(String, String)> for Labels {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, entries: I) {
        let mut all = mem::take(&mut self.0).into_vec();
        all.extend(entries);
        *self = Self::of(all);
    }
}

/// Keys and values of [`Labels`], in the order of the keys.
#[derive(Clone, Debug)]
pub struct Iter<'a>(slice::Iter<'a, (String, String)>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a String, &'a String);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, value)| (key, value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = (&'a String, &'a String);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Labels {
    type Item = (String, String);
    type IntoIter = vec::IntoIter<(String, String)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_vec().into_iter()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> de::Visitor<'de> for Entries {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let expected = map.size_hint().unwrap_or_default().min(MOST_EXPECTED);
                let mut all = Vec::with_capacity(expected);
                while let Some(entry) = map.next_entry::<String, String>()? {
                    all.push(entry);
                }
                Ok(Labels::of(all))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

/// In schemas it is what a map of texts is.
#[cfg(test)]
impl schemars::JsonSchema for Labels {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Labels".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        <BTreeMap<String, String> as schemars::JsonSchema>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    type Tree = BTreeMap<String, String>;

    fn labels(entries: &[(&str, &str)]) -> Labels {
        entries.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn shown(labels: &Labels) -> Vec<String> {
        labels.iter().map(|(key, value)| format!("{key}={value}")).collect()
    }

    #[test]
    fn entries_are_sorted_and_the_last_of_a_key_counts() {
        let all = labels(&[("b", "1"), ("a", "2"), ("c", "3"), ("b", "4"), ("a", "5"), ("b", "6")]);
        assert_eq!(shown(&all), ["a=5", "b=6", "c=3"]);
        let given = [("b", "1"), ("a", "2"), ("b", "3")].map(|(key, value)| (key.to_string(), value.to_string()));
        let given = Labels::from(given);
        assert_eq!(given, labels(&[("a", "2"), ("b", "3")]));
        assert_ne!(given, labels(&[("a", "2"), ("b", "1")]));
        assert_ne!(given, labels(&[("a", "2")]));
    }

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        let all = labels(&[("app", "web"), ("app.kubernetes.io/name", "shop"), ("version", "v1")]);
        assert_eq!(all.get("app").map(String::as_str), Some("web"));
        assert_eq!(all.get("app.kubernetes.io/name").map(String::as_str), Some("shop"));
        assert_eq!(all.get("version").map(String::as_str), Some("v1"));
        for missing in ["", "ap", "app.", "versions", "z"] {
            assert_eq!((all.get(missing), all.contains_key(missing)), (None, false), "{missing}");
        }
        assert!(all.contains_key("version"));
        assert_eq!((Labels::new().get("app"), Labels::new().len()), (None, 0));
    }

    #[test]
    fn it_is_changed_in_its_order() {
        let mut all = labels(&[("b", "1"), ("d", "2")]);
        assert_eq!(all.insert("c".into(), "3".into()), None);
        assert_eq!(all.insert("a".into(), "4".into()), None);
        assert_eq!(all.insert("e".into(), "5".into()), None);
        assert_eq!(all.insert("d".into(), "6".into()).as_deref(), Some("2"));
        assert_eq!(shown(&all), ["a=4", "b=1", "c=3", "d=6", "e=5"]);
        all.extend(labels(&[("e", "7"), ("bb", "8"), ("a", "9")]));
        assert_eq!(shown(&all), ["a=9", "b=1", "bb=8", "c=3", "d=6", "e=7"]);
        all.retain(|key, value| key != "a" && value != "3");
        assert_eq!(shown(&all), ["b=1", "bb=8", "d=6", "e=7"]);
        all.retain(|_, _| false);
        assert!(all.is_empty());
        assert_eq!(all, Labels::new());
    }

    /// Whatever is asked of both.
    fn assert_same(labels: &Labels, tree: &Tree) {
        assert_eq!(&labels.to_map(), tree);
        assert!(labels.iter().eq(tree) && labels.keys().eq(tree.keys()) && labels.values().eq(tree.values()));
        assert!(labels.clone().into_iter().eq(tree.clone()));
        assert_eq!((labels.len(), labels.is_empty()), (tree.len(), tree.is_empty()));
        assert_eq!(format!("{labels:?} {labels:#?}"), format!("{tree:?} {tree:#?}"));
        assert_eq!(serde_json::to_string(labels).unwrap(), serde_json::to_string(tree).unwrap());
        for key in (0..9).map(|n| format!("k{n}")) {
            assert_eq!((labels.get(&key), labels.contains_key(&key)), (tree.get(&key), tree.contains_key(&key)));
        }
    }

    #[test]
    fn it_is_what_a_b_tree_is() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut last, mut last_tree) = (Labels::new(), Tree::new());
        for _ in 0..2_000 {
            let count = random(12);
            let entries: Vec<(String, String)> =
                (0..count).map(|_| (format!("k{}", random(8)), random(4).to_string())).collect();
            let (mut labels, mut tree): (Labels, Tree) =
                (entries.iter().cloned().collect(), entries.iter().cloned().collect());
            assert_same(&labels, &tree);
            assert_eq!(serde_json::from_value::<Labels>(serde_json::to_value(&tree).unwrap()).unwrap(), labels);
            assert_eq!((labels.cmp(&last), labels == last), (tree.cmp(&last_tree), tree == last_tree));
            let (key, value) = (format!("k{}", random(8)), random(4).to_string());
            assert_eq!(labels.insert(key.clone(), value.clone()), tree.insert(key, value));
            assert_same(&labels, &tree);
            labels.extend(last.clone());
            tree.extend(last_tree.clone());
            assert_same(&labels, &tree);
            let dropped = random(4).to_string();
            labels.retain(|_, value| *value != dropped);
            tree.retain(|_, value| *value != dropped);
            assert_same(&labels, &tree);
            (last, last_tree) = (labels, tree);
        }
    }

    #[test]
    fn it_is_read_as_a_b_tree_is() {
        for (text, is_fine) in [
            ("{}", true),
            (r#"{"b": "1", "a": "2", "b": "3"}"#, true),
            ("null", false),
            ("1", false),
            (r#""a""#, false),
            ("[]", false),
            (r#"[["a", "b"]]"#, false),
            (r#"{"a": null}"#, false),
            (r#"{"a": 1}"#, false),
            (r#"{"a": true}"#, false),
            (r#"{"a": {}}"#, false),
            (r#"{"a": "b", "c": ["d"]}"#, false),
            (r#"{"a": "b""#, false),
        ] {
            let read = serde_json::from_str::<Labels>(text).map(|all| all.to_map()).map_err(|e| e.to_string());
            assert_eq!(read.is_ok(), is_fine, "{text}");
            assert_eq!(read, serde_json::from_str::<Tree>(text).map_err(|e| e.to_string()), "{text}");
            let read = serde_yaml_ng::from_str::<Labels>(text).map(|all| all.to_map()).map_err(|e| e.to_string());
            assert_eq!(read, serde_yaml_ng::from_str::<Tree>(text).map_err(|e| e.to_string()), "{text}");
        }
        let error = |value| serde_json::from_value::<Labels>(value).unwrap_err().to_string();
        assert_eq!(error(serde_json::Value::Null), "invalid type: null, expected a map");
        assert_eq!(error(serde_json::json!({ "a": 1 })), "invalid type: integer `1`, expected a string");
    }

    /// More than there is room made for.
    #[test]
    fn many_are_read() {
        let tree: Tree = (0..3 * MOST_EXPECTED).map(|n| (format!("key-{n}"), n.to_string())).collect();
        let labels: Labels = serde_json::from_value(serde_json::to_value(&tree).unwrap()).unwrap();
        assert_same(&labels, &tree);
    }
}
