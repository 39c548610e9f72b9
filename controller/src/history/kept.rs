//! All versions that are kept: the newest as it is served, and from each the way back to the one before. The newest changes are as
//! they were encoded; older ones are packed together and compressed, because much of them is alike.
//!
//! A history is immutable and shares what it holds with the one before, so readers need no lock, and to record a version costs as
//! much as has changed.

use super::{
    change::{self, Change, State},
    moment::{AtError, Moment},
};
use crate::push::REMEMBERED;
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use imbl::Vector;
use karst_xds::Resources;
use prost::Message;
use std::{
    io::{self, Read, Write},
    sync::Arc,
    time::Duration,
};

/// Changes older than this are forgotten at the next one.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// All that is kept takes no more than this, in bytes; then the oldest of it is forgotten. It is a day of a mesh of 10,000 pods in
/// which each pod changes 25 times (`tests::a_day_of_a_large_mesh_fits`).
const MAX_BYTES: usize = 64 << 20;
/// Changes are packed when they have this many bytes: twice what deflate looks back at, and about a millisecond of work.
const PACK: usize = 64 << 10;
/// What a change, or a pack, takes beside its bytes: its fields, the counts of its `Arc`, its place in the list, and what the
/// allocator needs for each of the two blocks.
const OVERHEAD: usize = 128;

/// What is kept at most.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    age: Duration,
    bytes: usize,
    pack: usize,
}

/// The versions.
#[derive(Clone)]
pub struct History {
    bounds: Bounds,
    newest: Arc<Resources>,
    /// When the newest came in force. None: there is none yet.
    since: Option<Moment>,
    /// The earliest moment that can be told.
    oldest: Moment,
    /// The newest changes.
    open: Vector<Arc<Encoded>>,
    /// Changes before these.
    packs: Vector<Arc<Pack>>,
    /// How many changes the packs have.
    packed: usize,
    open_bytes: usize,
    pack_bytes: usize,
}

/// A change.
struct Encoded {
    ended: Moment,
    /// It, with its length before it.
    bytes: Box<[u8]>,
}

/// Changes, compressed.
struct Pack {
    /// When the last of them was.
    ended: Moment,
    /// How many there are.
    changes: usize,
    deflated: Box<[u8]>,
}

/// The configuration of a moment.
#[derive(Debug, PartialEq)]
pub struct Past {
    /// Number of the version.
    pub version: u64,
    /// When it came in force.
    pub since: Moment,
    /// Type, name and message of what proxies were told, without keys. By type and name.
    pub resources: Vec<(&'static str, String, Arc<[u8]>)>,
}

/// Why the configuration of a moment cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// It is not kept.
    #[error(transparent)]
    At(#[from] AtError),
    /// What is kept cannot be unpacked.
    #[error("the versions that are kept cannot be unpacked: {0}; this is a fault of the controller's")]
    Unpack(#[from] io::Error),
    /// What is kept cannot be read.
    #[error("the versions that are kept cannot be read: {0}; this is a fault of the controller's")]
    Decode(#[from] prost::DecodeError),
}

impl Default for History {
    fn default() -> Self {
        Self::new(Bounds { age: KEEP, bytes: MAX_BYTES, pack: PACK })
    }
}

impl History {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            newest: Arc::default(),
            since: None,
            oldest: Moment::default(),
            open: Vector::new(),
            packs: Vector::new(),
            packed: 0,
            open_bytes: 0,
            pack_bytes: 0,
        }
    }

    /// With one more version, which is in force from now on.
    #[must_use]
    pub fn record(&self, newest: Arc<Resources>, now: Moment) -> Self {
        let mut next = self.clone();
        next.newest = newest;
        let Some(since) = self.since else {
            (next.since, next.oldest) = (Some(now), now);
            return next;
        };
        // The time of day may go back; versions follow each other.
        let now = now.max(since);
        if let Some(change) = Change::between(&self.newest, &next.newest, now) {
            next.since = Some(now);
            next.push(&change);
            next.forget(now);
        }
        next
    }

    fn push(&mut self, change: &Change) {
        let encoded = Encoded { ended: change.ended(), bytes: change.encode_length_delimited_to_vec().into() };
        self.open_bytes += encoded.cost();
        self.open.push_back(Arc::new(encoded));
        if self.open_bytes < self.bounds.pack {
            return;
        }
        match Pack::of(&self.open) {
            Ok(pack) => {
                (self.packed, self.pack_bytes) = (self.packed + pack.changes, self.pack_bytes + pack.cost());
                self.packs.push_back(Arc::new(pack));
                (self.open, self.open_bytes) = (Vector::new(), 0);
            }
            // They stay as they are, and take more room.
            Err(error) => tracing::warn!(%error, "older versions of the configuration cannot be compressed"),
        }
    }

    /// Forgets what is too old, or too much.
    fn forget(&mut self, now: Moment) {
        let too_old = now.before(self.bounds.age);
        while let Some(ended) = self.packs.front().map(|pack| pack.ended).or(self.open.front().map(|one| one.ended)) {
            if self.bytes() <= self.bounds.bytes && ended > too_old {
                return;
            }
            if let Some(pack) = self.packs.pop_front() {
                (self.packed, self.pack_bytes) = (self.packed - pack.changes, self.pack_bytes - pack.cost());
            } else if let Some(one) = self.open.pop_front() {
                self.open_bytes -= one.cost();
            }
            // What came in force then is still told.
            self.oldest = ended;
        }
    }

    /// The configuration of a moment.
    ///
    /// # Errors
    /// It is not kept, or cannot be read.
    pub fn at(&self, at: Moment) -> Result<Past, PastError> {
        if at < self.oldest || self.since.is_none() {
            return Err(AtError::NotKept { at, oldest: self.oldest }.into());
        }
        let (mut state, mut version, mut since) = (change::state(&self.newest), self.newest.version, self.oldest);
        for change in self.back() {
            let change = change?;
            if change.ended() <= at {
                since = change.ended();
                break;
            }
            version = change.version;
            change.undo(&mut state);
        }
        Ok(Past { version, since, resources: resources(state) })
    }

    /// The changes, the newest first. Packs are opened as they are come to.
    fn back(&self) -> impl Iterator<Item = Result<Change, PastError>> {
        let open = self.open.iter().rev();
        let open = open.map(|one| Change::decode_length_delimited(&*one.bytes).map_err(PastError::from));
        let packed = self.packs.iter().rev().flat_map(|pack| match pack.changes() {
            Ok(changes) => changes.into_iter().rev().map(Ok).collect::<Vec<_>>(),
            Err(error) => vec![Err(error)],
        });
        open.chain(packed)
    }

    /// The earliest moment that can be told; of a history without a version it is now.
    pub fn oldest(&self, now: Moment) -> Moment {
        if self.since.is_some() { self.oldest } else { now }
    }

    /// When the newest version came in force.
    pub fn since(&self) -> Option<Moment> {
        self.since
    }

    /// How many versions can be told, the newest among them.
    pub fn versions(&self) -> usize {
        self.packed + self.open.len() + usize::from(self.since.is_some())
    }

    /// What the older versions take, in bytes. (The newest is there anyway: it is served.)
    pub fn bytes(&self) -> usize {
        self.open_bytes + self.pack_bytes
    }

    /// What they take at most, in bytes.
    pub fn most_bytes(&self) -> usize {
        self.bounds.bytes
    }
}

fn resources(state: State) -> Vec<(&'static str, String, Arc<[u8]>)> {
    let named = |((kind, name), bytes): ((u32, String), Arc<[u8]>)| {
        let remembered = REMEMBERED.get(usize::try_from(kind).ok()?)?;
        Some((remembered.type_url, name, bytes))
    };
    state.into_iter().filter_map(named).collect()
}

impl Encoded {
    fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }
}

impl Pack {
    /// These changes, which are not none.
    fn of(changes: &Vector<Arc<Encoded>>) -> io::Result<Self> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        for one in changes {
            encoder.write_all(&one.bytes)?;
        }
        let ended = changes.last().map(|one| one.ended).unwrap_or_default();
        Ok(Self { ended, changes: changes.len(), deflated: encoder.finish()?.into() })
    }

    /// They, in their order.
    fn changes(&self) -> Result<Vec<Change>, PastError> {
        let mut bytes = vec![];
        DeflateDecoder::new(&*self.deflated).read_to_end(&mut bytes)?;
        let mut rest = &*bytes;
        let mut changes = Vec::with_capacity(self.changes);
        while !rest.is_empty() {
            changes.push(Change::decode_length_delimited(&mut rest)?);
        }
        Ok(changes)
    }

    fn cost(&self) -> usize {
        self.deflated.len() + OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;
    use karst_api::{ADDRESS_TYPE, BACKEND_TYPE, ROUTES_TYPE, workload as pb};
    use karst_xds::Entry;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    /// What decides nothing here, and differs from world to world.
    const TYPES: [&str; 3] = [ADDRESS_TYPE, ROUTES_TYPE, BACKEND_TYPE];

    fn moment(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn bounds(age: u64, bytes: usize, pack: usize) -> Bounds {
        Bounds { age: Duration::from_millis(age), bytes, pack }
    }

    /// A few random changes: resources that come, become others, and go; now and then nothing changes.
    fn changed(old: &Resources, random: &mut StdRng) -> Resources {
        let mut types = old.types.clone();
        for _ in 0..random.random_range(0..6) {
            let set = types.entry(TYPES[random.random_range(0..TYPES.len())]).or_default();
            let name = format!("ns/{}", random.random_range(0..20));
            if random.random_bool(0.3) {
                set.remove(&name);
            } else {
                let bytes = vec![random.random_range(0..4u8); random.random_range(0..200)];
                set.insert(name, Entry::new(bytes, vec![]));
            }
        }
        Resources::new(types, old.version + 1)
    }

    /// The naive copy.
    fn copied(resources: &Resources) -> Vec<(&'static str, String, Arc<[u8]>)> {
        super::resources(change::state(resources))
    }

    #[test]
    fn any_moment_is_told_as_it_was() {
        for seed in 0..24 {
            let mut random = StdRng::seed_from_u64(seed);
            // From one pack for each change to none at all.
            let pack = [1, 1000, 10_000, usize::MAX][random.random_range(0..4usize)];
            let mut history = History::new(bounds(u64::MAX, usize::MAX, pack));
            let (mut now, mut newest, mut copies) = (10_000u64, Resources::default(), vec![]);
            for _ in 0..random.random_range(1..60) {
                // Several at one moment, and a time of day that goes back.
                now = (now + random.random_range(0..50u64)) - random.random_range(0..10u64);
                newest = changed(&newest, &mut random);
                history = history.record(Arc::new(newest.clone()), moment(now));
                let since = history.since().unwrap();
                copies.push((since, copied(&newest), newest.version));
            }
            assert_eq!(history.oldest(moment(0)), copies[0].0, "{seed}");
            let first = copies[0].0.millis();
            let around = copies.iter().flat_map(|(since, ..)| [since.millis() - 1, since.millis(), since.millis() + 1]);
            for at in around.filter(|at| *at >= first) {
                let past = history.at(moment(at)).unwrap();
                let (since, copy, _) = copies.iter().rev().find(|(since, ..)| since.millis() <= at).unwrap();
                assert_eq!((past.since, &past.resources), (*since, copy), "{seed} at {at}");
                // Versions that differ in nothing are one.
                let named = copies.iter().find(|(.., version)| *version == past.version).unwrap();
                assert_eq!(named.1, *copy, "{seed} at {at}");
            }
        }
    }

    #[test]
    fn no_more_than_the_bound_is_kept() {
        for seed in 0..30 {
            let mut random = StdRng::seed_from_u64(seed);
            let (most, pack) = (random.random_range(0..8000usize), random.random_range(1..2000usize));
            let age = random.random_range(1..3000u64);
            let mut history = History::new(bounds(age, most, pack));
            let (mut newest, mut copies) = (Resources::default(), vec![]);
            for step in 1..200 {
                let now = moment(step * 10);
                newest = changed(&newest, &mut random);
                history = history.record(Arc::new(newest.clone()), now);
                copies.push((now, copied(&newest)));
                assert!(history.bytes() <= most, "{seed}: {} of {most}", history.bytes());
                let open: usize = history.open.iter().map(|one| one.cost()).sum();
                let packs: usize = history.packs.iter().map(|pack| pack.cost()).sum();
                assert_eq!(history.bytes(), open + packs, "{seed}: what is counted is what is there");
            }
            assert_eq!(history.versions(), history.back().count() + 1, "{seed}");
            let oldest = history.oldest(moment(0));
            assert!(history.at(oldest.before(Duration::from_millis(1))).is_err(), "{seed}");
            for (at, copy) in copies.iter().filter(|(at, _)| *at >= oldest) {
                assert_eq!(history.at(*at).unwrap().resources, *copy, "{seed} at {at}: the rest is as it was");
            }
        }
    }

    #[test]
    fn what_is_too_old_is_forgotten_and_named() {
        let mut history = History::new(bounds(1000, usize::MAX, usize::MAX));
        assert!(matches!(history.at(moment(5)), Err(PastError::At(AtError::NotKept { .. }))), "nothing is known yet");
        assert_eq!((history.oldest(moment(7)), history.versions(), history.bytes()), (moment(7), 0, 0));
        let version = |number: u8| {
            let set = [("ns/web".to_string(), Entry::new(vec![number], vec![]))].into_iter().collect();
            Arc::new(Resources::new([(ROUTES_TYPE, set)].into(), number.into()))
        };
        for (number, at) in [(1, 100), (2, 500), (3, 1200), (4, 1600)] {
            history = history.record(version(number), moment(at));
        }
        // What ended at 500 is more than a second ago; the version that then began is still told.
        assert_eq!(history.oldest(moment(0)), moment(500));
        let told = |at| history.at(moment(at)).map(|past| (past.version, past.since.millis()));
        assert_eq!(
            [told(500), told(1199), told(1200), told(1600), told(9000)].map(Result::unwrap),
            [(2, 500), (2, 500), (3, 1200), (4, 1600), (4, 1600)]
        );
        let error = told(499).unwrap_err().to_string();
        assert!(error.contains("1970-01-01T00:00:00.500000Z") && error.ends_with("[KARST-0803]"), "{error}");
    }

    /// Pods come, are ready, change and go, one after the other, each in a version of its own: what one of these costs, and so how
    /// many fit.
    #[test]
    fn a_day_of_a_large_mesh_fits() {
        const CHANGES: usize = 2500;
        let mut random = StdRng::seed_from_u64(1);
        let mut pod = |healthy: bool| {
            let name = format!("web-7d9f8c6b5-{:05x}", random.random_range(0..0x10_0000));
            let ports =
                pb::PortList { ports: vec![pb::Port { service_port: 80, target_port: 8080, ..Default::default() }] };
            let uid = format!("Kubernetes//Pod/shop/{name}");
            let workload = pb::Workload {
                uid: uid.clone(),
                name,
                namespace: "shop".into(),
                addresses: vec![random.random::<[u8; 4]>().to_vec().into()],
                service_account: "web".into(),
                node: format!("worker-{}", random.random_range(0..200)),
                services: [("shop/web.shop.svc.cluster.local".to_string(), ports)].into(),
                workload_name: "web".into(),
                canonical_name: "web".into(),
                canonical_revision: "v1".into(),
                cluster_id: "Kubernetes".into(),
                status: i32::from(!healthy),
                ..Default::default()
            };
            let address = pb::Address { r#type: Some(pb::address::Type::Workload(workload)) };
            (uid, Entry::new(address.encode_to_vec(), vec![]))
        };
        let mut history = History::default().record(Arc::default(), moment(0));
        let mut newest = Resources::default();
        for step in 0..CHANGES {
            let (uid, entry) = pod(step % 2 == 0);
            let set = newest.types.entry(ADDRESS_TYPE).or_default();
            // In three of four something was there before: a pod comes, and then is ready, about to end, and gone.
            let gone = set.keys().next().filter(|_| step % 4 != 0).cloned();
            gone.iter().for_each(|gone| drop(set.remove(gone)));
            set.insert(uid, entry);
            newest.version += 1;
            history = history.record(Arc::new(newest.clone()), moment(step as u64 + 1));
        }
        assert_eq!(history.versions(), CHANGES + 1);
        let each = history.pack_bytes / history.packed;
        assert!(each * 250_000 <= MAX_BYTES, "{each} bytes for each change");
    }
}
