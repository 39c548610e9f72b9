//! A door for the fuzz targets (tests/fuzz): what users apply, compiled as the product compiles it.

use crate::{
    config::Cli,
    convert::{Mesh, compile},
};
use clap::Parser;
use karst_manifest::{Problem, State, parse};
use prost::Message;
use std::{path::Path, sync::Arc};

/// Manifests, compiled: the messages for layer 7 proxies, as kind and bytes. None: they are no manifests.
pub fn convert(text: &str) -> Option<Vec<(&'static str, Vec<u8>)>> {
    let mesh = Mesh::from(&Cli::try_parse_from(["karst-controller"]).ok()?.config);
    let mut objects: Vec<_> = parse::file(Path::new("f.yaml"), text).ok()?.into_iter().map(Arc::new).collect();
    let compiled =
        |objects: &[Arc<parse::Located>]| compile(&State { objects: objects.to_vec(), ..State::default() }, &mesh);
    objects.sort_by_key(|o| (o.object.kind(), o.object.meta().namespace.clone(), o.object.meta().name.clone()));
    objects.dedup_by_key(|o| (o.object.kind(), o.object.meta().namespace.clone(), o.object.meta().name.clone()));
    let (model, problems) = compiled(&objects);
    // The same again is the same.
    let (other, same) = compiled(&objects);
    assert!(model == other && problems == same);
    let said = |p: &Problem| !p.object.is_empty() && !p.field.is_empty() && !p.message.is_empty();
    assert!(problems.iter().all(said), "{problems:?}");
    let mut out: Vec<(&'static str, Vec<u8>)> = vec![];
    out.extend(model.routes.values().map(|r| ("routes", r.encode_to_vec())));
    out.extend(model.access.values().map(|a| ("access", a.encode_to_vec())));
    out.extend(model.gateways.values().map(|g| ("gateway", g.encode_to_vec())));
    Some(out)
}
