//! The keys that clients' sessions are sealed with: made once, kept where all replicas and the next release find them (a Secret; in
//! directory mode a file), and rotated by the replica that leads. Each gateway is told keys of its own that are derived from them, so
//! that the pods of one gateway cannot read or write what another one's clients have. What always holds: a key is in use before it
//! seals, and for [`KEPT`] rotations; no text of a log or error has anything of one. Proven by the tests below.

use crate::private_file::write_private;
use anyhow::{Context, bail};
use aws_lc_rs::{
    aead::AES_256_GCM_SIV,
    hkdf::{HKDF_SHA256, Salt},
    rand,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use karst_api::route as ir;
use karst_kube::Kube;
use karst_manifest::dir::SessionKey;
use karst_rt::clock::since_epoch;
use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};
use tokio::sync::watch;

/// The Secret, in the root namespace, and its one field.
const SECRET: &str = "karst-session-keys";
const KIND: &str = "Opaque";
const FIELD: &str = "keys";
/// The file, in directory mode, in which keys stay as they are.
const FILE: &str = "session-keys";
/// So old is the newest key when another one is made.
const ROTATION: Duration = Duration::from_secs(30 * 86_400);
/// So many are kept: who comes back within two rotations finds the endpoint.
const KEPT: usize = 3;
/// So old is a key when it begins to seal: every controller and every proxy knows it by then.
const SPREAD: Duration = Duration::from_secs(600);
/// Between two looks at the Secret.
const CHECK: Duration = Duration::from_secs(60);

/// The keys, in the order of their use.
pub type Told = Arc<Vec<SessionKey>>;

/// Why keys are not there.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeysError {
    /// There is no randomness.
    #[error("the system gives no random bytes")]
    Random,
    /// There is none in it.
    #[error("it contains no key")]
    Empty,
    /// A line is no key.
    #[error("line {0} is not a time in seconds and 32 bytes in base64")]
    Line(usize),
    /// The Secret has no such field.
    #[error("data.keys is missing")]
    Field,
}

/// A key, and when it was made, in seconds since 1970.
#[derive(Clone, PartialEq, Eq)]
struct Kept {
    made: u64,
    key: SessionKey,
}

/// All keys, the newest first.
#[derive(Clone, PartialEq, Eq)]
struct Keys(Vec<Kept>);

impl Keys {
    /// A first one.
    fn new(now: Duration) -> Result<Self, KeysError> {
        Self(vec![]).with_another(now)
    }

    /// The same and a new one; without what is too old.
    fn with_another(&self, now: Duration) -> Result<Self, KeysError> {
        let mut secret = [0; 32];
        rand::fill(&mut secret).map_err(|_| KeysError::Random)?;
        let new = Kept { made: now.as_secs(), key: SessionKey(secret) };
        Ok(Self([new].into_iter().chain(self.0.iter().cloned()).take(KEPT).collect()))
    }

    /// Reads what [`Keys::text`] has written.
    fn read(text: &str) -> Result<Self, KeysError> {
        let one = |(number, line): (usize, &str)| {
            let kept = line.split_once(' ').and_then(|(made, secret)| {
                let secret = STANDARD.decode(secret.trim()).ok()?;
                Some(Kept { made: made.parse().ok()?, key: SessionKey(secret.try_into().ok()?) })
            });
            kept.ok_or(KeysError::Line(number + 1))
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let mut all = lines.map(one).collect::<Result<Vec<_>, _>>()?;
        all.sort_by_key(|kept| std::cmp::Reverse(kept.made));
        if all.is_empty() { Err(KeysError::Empty) } else { Ok(Self(all)) }
    }

    fn text(&self) -> String {
        self.0.iter().map(|kept| format!("{} {}\n", kept.made, STANDARD.encode(kept.key.0))).collect()
    }

    fn of_secret(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, KeysError> {
        let text = data.get(FIELD).ok_or(KeysError::Field)?;
        Self::read(std::str::from_utf8(text).map_err(|_| KeysError::Line(1))?)
    }

    fn secret(&self) -> BTreeMap<String, Vec<u8>> {
        [(FIELD.to_string(), self.text().into_bytes())].into()
    }

    fn is_due(&self, now: Duration) -> bool {
        self.0.first().is_none_or(|newest| now.as_secs().saturating_sub(newest.made) >= ROTATION.as_secs())
    }

    /// In the order of their use: first the newest that all know, or, if there is none, the oldest; the others open.
    fn in_use(&self, now: Duration) -> Vec<SessionKey> {
        let is_known = |kept: &Kept| now.as_secs().saturating_sub(kept.made) >= SPREAD.as_secs();
        let seals = self.0.iter().position(is_known).or(self.0.len().checked_sub(1));
        let mut keys: Vec<SessionKey> = self.0.iter().map(|kept| kept.key.clone()).collect();
        if let Some(seals) = seals {
            // One of the keys: there are as many.
            keys[..=seals].rotate_right(1);
        }
        keys
    }
}

/// The keys of a gateway, out of those of the mesh. `name`: what its pods have in common, and no other gateway's.
pub(crate) fn of_gateway(keys: &[SessionKey], name: &str) -> Vec<ir::SessionKey> {
    let one = |key: &SessionKey| {
        let mut secret = vec![0; 32];
        let master = Salt::new(HKDF_SHA256, b"karst session keys").extract(&key.0);
        let derived = master.expand(&[name.as_bytes()], &AES_256_GCM_SIV).and_then(|key| key.fill(&mut secret));
        derived.is_ok().then_some(ir::SessionKey { secret })
    };
    keys.iter().filter_map(one).collect()
}

/// The keys of the data directory, made at the first start.
pub fn open(dir: &Path) -> anyhow::Result<watch::Receiver<Told>> {
    let path = dir.join(FILE);
    if !path.exists() {
        write_private(&path, &Keys::new(since_epoch())?.text())?;
    }
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let keys = Keys::read(&text).with_context(|| format!("{}: remove it to create new keys", path.display()))?;
    Ok(watch::channel(Arc::new(keys.in_use(since_epoch()))).1)
}

/// The keys in the Secret, and their changes. Waits for the first, so that nothing is told without them: proxies that have some would
/// forget all sessions. Without them the rest goes on.
pub async fn start(kube: &Kube, namespace: &str, leads: watch::Receiver<bool>) -> watch::Receiver<Told> {
    let mut said = String::new();
    let first = follow(kube, namespace, false).await.unwrap_or_else(|e| {
        note(&mut said, namespace, Some(e));
        vec![]
    });
    let (told, keys) = watch::channel(Arc::new(first));
    tokio::spawn(keep(kube.clone(), namespace.to_string(), leads, told, said));
    keys
}

async fn keep(
    kube: Kube,
    namespace: String,
    mut leads: watch::Receiver<bool>,
    told: watch::Sender<Told>,
    mut said: String,
) {
    loop {
        if let Ok(Err(_)) = tokio::time::timeout(CHECK, leads.changed()).await {
            return;
        }
        let leading = *leads.borrow_and_update();
        match follow(&kube, &namespace, leading).await {
            Ok(keys) => {
                note(&mut said, &namespace, None);
                told.send_if_modified(|old| {
                    let is_new = **old != keys;
                    *old = Arc::new(keys);
                    is_new
                });
            }
            // Those of before stay.
            Err(e) => note(&mut said, &namespace, Some(e)),
        }
    }
}

/// Says what is wrong, once.
fn note(said: &mut String, namespace: &str, error: Option<anyhow::Error>) {
    let text = error.map(|e| format!("{e:#}")).unwrap_or_default();
    if !text.is_empty() && text != *said {
        tracing::warn!(error = text, "Secret {namespace}/{SECRET}: the keys of sessions stay as they are");
    }
    *said = text;
}

/// The keys now; made if there are none, and rotated in time by who leads.
async fn follow(kube: &Kube, namespace: &str, leading: bool) -> anyhow::Result<Vec<SessionKey>> {
    let now = since_epoch();
    // Twice: another replica may have made it since.
    for _ in 0..2 {
        if let Some(data) = kube.secret(namespace, SECRET).await? {
            let keys = Keys::of_secret(&data).context("it cannot be read: delete it to create new keys")?;
            if !leading || !keys.is_due(now) {
                return Ok(keys.in_use(now));
            }
            let new = keys.with_another(now)?;
            if kube.replace_secret(namespace, SECRET, &data, new.secret()).await? {
                tracing::info!(secret = format!("{namespace}/{SECRET}"), "the keys of sessions are rotated");
                return Ok(new.in_use(now));
            }
            // Another replica was first: seen next time.
            return Ok(keys.in_use(now));
        }
        let keys = Keys::new(now)?;
        if kube.create_secret(namespace, SECRET, KIND, keys.secret()).await? {
            tracing::info!(secret = format!("{namespace}/{SECRET}"), "created the keys of sessions");
            return Ok(keys.in_use(now));
        }
    }
    bail!("it can be neither read nor created")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(days: u32) -> Duration {
        DAY * 20_000 + DAY * days
    }

    #[test]
    fn keys_are_read_as_they_are_written() {
        let keys = Keys::new(at(0)).unwrap().with_another(at(1)).unwrap();
        assert!(Keys::read(&keys.text()).is_ok_and(|read| read == keys));
        assert!(Keys::of_secret(&keys.secret()).is_ok_and(|read| read == keys));
        let reversed: String = keys.text().lines().rev().map(|line| format!("\n{line}\n")).collect();
        assert!(Keys::read(&reversed).is_ok_and(|read| read == keys), "the newest first, however it is written");
        for (text, want) in [
            ("", KeysError::Empty),
            ("\n \n", KeysError::Empty),
            ("secret", KeysError::Line(1)),
            ("1 c2VjcmV0", KeysError::Line(1)),
            ("x AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", KeysError::Line(1)),
        ] {
            let error = Keys::read(text).err().unwrap();
            assert_eq!(error, want, "{text}");
            assert!(!error.to_string().contains("secret") && !error.to_string().contains("c2Vj"), "{error}");
        }
        assert_eq!(Keys::of_secret(&BTreeMap::new()).err(), Some(KeysError::Field));
    }

    #[test]
    fn a_new_key_opens_before_it_seals_and_the_former_ones_go_on_opening() {
        let first = Keys::new(at(0)).unwrap();
        assert_eq!(first.in_use(at(0)).len(), 1, "the first one seals at once");
        assert!(!first.is_due(at(29)) && first.is_due(at(30)));
        let second = first.with_another(at(30)).unwrap();
        let (old, new) = (first.0[0].key.clone(), second.0[0].key.clone());
        assert_ne!(old, new);
        let soon = SPREAD - Duration::from_secs(1);
        assert_eq!(second.in_use(at(30) + soon), [old.clone(), new.clone()]);
        assert_eq!(second.in_use(at(30) + SPREAD), [new.clone(), old.clone()]);
        let fourth = second.with_another(at(60)).unwrap().with_another(at(90)).unwrap();
        let all = fourth.in_use(at(90));
        assert_eq!((all.len(), all.contains(&old), all[2].clone()), (KEPT, false, new.clone()));
        assert_eq!(all[0], fourth.0[1].key, "the newest that all know");
        // A clock that is behind.
        assert_eq!(second.in_use(at(0)), [old, new]);
        assert!(!second.is_due(at(0)));
    }

    #[test]
    fn each_gateway_has_keys_of_its_own() {
        let keys = Keys::new(at(0)).unwrap().with_another(at(1)).unwrap().in_use(at(2));
        let secrets = |name: &str| of_gateway(&keys, name).into_iter().map(|key| key.secret).collect::<Vec<_>>();
        let one = secrets("a/g");
        assert!(one.len() == 2 && one[0] != one[1] && one.iter().all(|secret| secret.len() == 32));
        assert_eq!(one, secrets("a/g"), "every replica of the controller tells the same");
        assert!(secrets("a/h").iter().all(|secret| !one.contains(secret)));
        assert!(one.iter().all(|secret| keys.iter().all(|key| key.0[..] != secret[..])));
        assert!(of_gateway(&[], "a/g").is_empty());
    }

    #[test]
    fn the_keys_of_a_directory_survive_a_restart() {
        let dir = std::env::temp_dir().join(format!("karst-session-keys-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let first = open(&dir).unwrap().borrow().clone();
        assert_eq!(open(&dir).unwrap().borrow().clone(), first);
        fs::write(dir.join(FILE), "secret").unwrap();
        let error = format!("{:#}", open(&dir).err().unwrap());
        assert!(error.contains("remove it to create new keys") && error.contains("line 1"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
