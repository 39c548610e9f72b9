//! Writing to the maps that are pinned.

use crate::Error;
use aya::maps::{HashMap, Map, MapData, MapError};
use std::{collections::BTreeMap, path::Path};

/// Makes a pinned map hold just these entries: what is new is there before what is old goes.
pub(crate) fn replace<K: aya::Pod + Ord>(path: &Path, all: BTreeMap<K, u32>) -> Result<(), Error> {
    let bad = |e: MapError| Error::Pod(format!("{}: {e}", path.display()));
    let map =
        MapData::from_pin(path).map_err(Error::kernel(format!("cannot open {}", path.display()), "bpffs", "4.4"))?;
    let mut map: HashMap<MapData, K, u32> = Map::HashMap(map).try_into().map_err(bad)?;
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
