//! The maps that are pinned: opening them, and writing to them.

use crate::Error;
use aya::maps::{HashMap, Map, MapData, MapError};
use std::{collections::BTreeMap, path::Path};

/// A pinned map, as the kind that `of` says.
///
/// # Errors
/// If it is not pinned there, or is of another kind.
pub(crate) fn open<M: TryFrom<Map, Error = MapError>>(
    path: &Path,
    of: impl FnOnce(MapData) -> Map,
) -> Result<M, Error> {
    let map =
        MapData::from_pin(path).map_err(Error::kernel(format!("cannot open {}", path.display()), "bpffs", "4.4"))?;
    of(map).try_into().map_err(|e| Error::Pod(format!("{}: {e}", path.display())))
}

/// Makes a pinned map hold just these entries: what is new is there before what is old goes.
pub(crate) fn replace<K: aya::Pod + Ord>(path: &Path, all: BTreeMap<K, u32>) -> Result<(), Error> {
    let mut map: HashMap<MapData, K, u32> = open(path, Map::HashMap)?;
    let there: BTreeMap<K, u32> = map.iter().filter_map(Result::ok).collect();
    for (k, v) in all.iter().filter(|(k, v)| there.get(k) != Some(v)) {
        if let Err(e) = map.insert(k, v, 0) {
            // Connections to what is not in the map go by ztunnel, and come back: slower, and right (`OWN_FLOWS`).
            tracing::warn!(map = %path.display(), keys = all.len(), error = %e, "the pod has more addresses than are followed");
            break;
        }
    }
    for k in there.keys().filter(|k| !all.contains_key(k)) {
        let _ = map.remove(k);
    }
    Ok(())
}
