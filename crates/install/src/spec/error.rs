//! What can be wrong with an IstioOperator or with `--set`.

use crate::{chart::ChartError, documents::YamlError};

/// Why there is no installation to speak of.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// No profile of that name.
    #[error("there is no profile {name:?}{}; profiles: {known}", did_you_mean(.nearest.as_deref()))]
    Profile {
        /// What was asked for.
        name: String,
        /// What may have been meant.
        nearest: Option<String>,
        /// All there are.
        known: String,
    },
    /// A file that is not what it has to be.
    #[error("{file}: {error}")]
    File {
        /// The file, as it was given.
        file: String,
        /// Why.
        error: YamlError,
    },
    /// A document of another kind.
    #[error(
        "{file}: kind {kind:?} is not IstioOperator (apiVersion install.istio.io/v1alpha1); values of charts go under spec.values"
    )]
    Kind {
        /// The file.
        file: String,
        /// What it is.
        kind: String,
    },
    /// A key that nobody reads.
    #[error("{at}: there is no such key{}{}", did_you_mean(.nearest.as_deref()), .hint)]
    Key {
        /// Its path.
        at: String,
        /// What may have been meant.
        nearest: Option<String>,
        /// What to do instead; empty, or a sentence after a semicolon.
        hint: String,
    },
    /// A value that is not what is wanted there.
    #[error("{at}: {wanted}, not {got}")]
    Value {
        /// Its path.
        at: String,
        /// What it has to be.
        wanted: &'static str,
        /// What it is.
        got: String,
    },
    /// `--set` in another form.
    #[error("--set {text}: {fault}; write it as --set values.pilot.replicaCount=2")]
    Set {
        /// As it was given.
        text: String,
        /// What is wrong.
        fault: &'static str,
    },
    /// The charts refuse it.
    #[error("{component}: {error}")]
    Chart {
        /// The component that it is for.
        component: String,
        /// Why.
        error: Box<ChartError>,
    },
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |name| format!("; did you mean {name}?"))
}
