//! Doors for the fuzz targets (tests/fuzz) and the differential tests (tests/differential): what users apply, compiled as the
//! product compiles it.

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

/// A controller that has some manifests, for the differential tests (tests/differential).
pub struct Controller {
    mesh: Mesh,
    objects: Vec<Arc<parse::Located>>,
}

/// Type, name and bytes.
pub type Resource = (&'static str, String, Vec<u8>);

impl Controller {
    /// With these manifests, and all options by default.
    ///
    /// # Errors
    /// They are none.
    pub fn new(manifests: &str) -> anyhow::Result<Self> {
        let config = Cli::try_parse_from(["karst-controller"])?.config;
        let objects = parse::file(Path::new("f.yaml"), manifests).map_err(|e| anyhow::anyhow!("{e:?}"))?;
        Ok(Self { mesh: Mesh::from(&config), objects: objects.into_iter().map(Arc::new).collect() })
    }

    /// What proxies are told when these objects of the API server are there besides, the policies in dry run among it. As where
    /// they are watched (crates/kube), what cannot be read is what stands for it.
    pub fn told(&self, objects: &[serde_json::Value]) -> Vec<Resource> {
        let read = |v: &serde_json::Value| {
            let kind = v["kind"].as_str().unwrap_or_default();
            let object =
                parse::value(kind, v.clone()).ok().or_else(|| karst_manifest::closed::closed(kind, v.clone()))?;
            Some(Arc::new(parse::Located { object, file: "f.yaml".into(), line: 1 }))
        };
        let objects = self.objects.iter().cloned().chain(objects.iter().filter_map(read)).collect();
        let (model, _) = compile(&State { objects, ..State::default() }, &self.mesh);
        let all = crate::push::resources(&model, 0, None);
        let of = |(type_url, set): (&'static str, karst_xds::Set)| {
            set.into_iter().map(move |(name, entry)| (type_url, name, entry.bytes.to_vec())).collect::<Vec<_>>()
        };
        let mut out: Vec<Resource> = all.types.into_iter().flat_map(of).collect();
        let dry_runs = model.policies.iter().filter(|(_, p)| p.dry_run);
        out.extend(dry_runs.map(|(key, p)| {
            (karst_api::AUTHORIZATION_TYPE, key.clone(), karst_api::convert::policy_to_wire(p).encode_to_vec())
        }));
        out.retain(|(type_url, ..)| type_url.starts_with("type.googleapis.com/"));
        out
    }
}
