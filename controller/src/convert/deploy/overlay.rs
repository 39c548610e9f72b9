//! The overlays of a Gateway (`spec.infrastructure.parametersRef`): those of its class and its own, and what its own may not change.
//! Pure.

use crate::convert::{
    deploy::privilege,
    objects::{
        Objects,
        parameters::{Parameters, ParametersError, merge},
    },
};
use karst_manifest::kinds::Gateway;
use serde_json::Value;

/// Why nothing can be deployed for a Gateway with its parameters.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub(crate) enum DeployError {
    #[error("kind {kind:?} of group {group:?} is not supported: use a ConfigMap [KARST-0310]")]
    UnsupportedKind { kind: String, group: String },
    #[error("ConfigMap {namespace}/{name} not found [KARST-0503]")]
    NotFound { namespace: String, name: String },
    #[error("{0}")]
    Parameters(#[from] ParametersError),
    #[error(
        "{from}: data.{key}: {what} grants a privilege, which parameters may not do: remove it, or set privilegedGatewayParameters in the chart istiod [KARST-0709]"
    )]
    Privilege { from: String, key: &'static str, what: String },
    #[error("metadata.{0} is not a map [KARST-0708]")]
    NoMap(&'static str),
}

/// The overlays of a Gateway; those of its class come first.
#[derive(Debug)]
pub(crate) struct Overlays<'a> {
    class: Option<&'a Parameters>,
    own: Option<Parameters>,
    /// May its own give rights?
    privileged: bool,
}

impl<'a> Overlays<'a> {
    /// Those of a Gateway.
    ///
    /// # Errors
    /// Why they cannot be used.
    pub(crate) fn of(objects: &'a Objects<'_>, gateway: &Gateway) -> Result<Self, DeployError> {
        let class = objects.class_parameters.get(gateway.spec.gateway_class_name.as_str());
        let class = class.map(Result::as_ref).transpose().map_err(ParametersError::clone)?;
        let mut own = None;
        if let Some(reference) = &gateway.spec.infrastructure.parameters_ref {
            if !matches!(reference.group.as_str(), "" | "core") || reference.kind != "ConfigMap" {
                return Err(DeployError::UnsupportedKind {
                    kind: reference.kind.clone(),
                    group: reference.group.clone(),
                });
            }
            let ns = gateway.metadata.namespace.as_str();
            let found = objects.config_maps.get(&(ns, reference.name.as_str()));
            let c =
                found.ok_or_else(|| DeployError::NotFound { namespace: ns.into(), name: reference.name.clone() })?;
            own = Some(Parameters::read(c, format!("ConfigMap {ns}/{}", reference.name))?);
        }
        Ok(Self { class, own, privileged: objects.mesh.privileged_parameters })
    }

    /// Are there some of its own?
    pub(crate) fn has_own(&self) -> bool {
        self.own.is_some()
    }

    /// Is there one with this key?
    pub(crate) fn has(&self, key: &str) -> bool {
        self.class.into_iter().chain(&self.own).any(|p| p.overlays.contains_key(key))
    }

    /// Changes an object of this kind.
    ///
    /// # Errors
    /// What its own ConfigMap may not change.
    pub(crate) fn apply(&self, kind: &str, object: &mut Value) -> Result<(), DeployError> {
        if let Some((_, overlay)) = self.class.and_then(|p| p.of_kind(kind)) {
            merge(object, overlay.0.clone(), &[]);
        }
        let Some((own, (key, overlay))) = self.own.as_ref().and_then(|p| Some((p, p.of_kind(kind)?))) else {
            return Ok(());
        };
        let before = privilege::of(kind, object);
        merge(object, overlay.0.clone(), &[]);
        match privilege::of(kind, object).difference(&before).next() {
            Some(what) if !self.privileged => {
                Err(DeployError::Privilege { from: own.from.clone(), key, what: what.clone() })
            }
            _ => Ok(()),
        }
    }
}
