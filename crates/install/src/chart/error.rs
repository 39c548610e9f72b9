//! What can be wrong with a chart or with the values for it.

use crate::{documents::YamlError, template::TemplateError};
use std::path::PathBuf;

/// Why a chart cannot be read or rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// The folder of charts cannot be read.
    #[error("cannot read {path}: {error}; --manifests names a folder that has the charts (base, istiod, cni, ...)")]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// No chart of this name.
    #[error("there is no chart {name:?}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A file of the chart is not what it has to be.
    #[error("chart {chart}, {file}: {error}")]
    File {
        /// The chart.
        chart: String,
        /// The file.
        file: String,
        /// Why.
        error: YamlError,
    },
    /// A template fails.
    #[error("chart {chart}: {error}")]
    Template {
        /// The chart.
        chart: String,
        /// Where and what.
        error: TemplateError,
    },
    /// What a template gives is no object.
    #[error("chart {chart}, {file}: what it renders is no object of Kubernetes: {error}")]
    Rendered {
        /// The chart.
        chart: String,
        /// The template.
        file: String,
        /// Why.
        error: String,
    },
    /// The values are not what the chart's schema says.
    #[error("chart {chart}: values that it does not take:\n{}", list(.faults))]
    Values {
        /// The chart.
        chart: String,
        /// Path and fault of each.
        faults: Vec<super::schema::SchemaFault>,
    },
    /// A dependency that is not beside the chart.
    #[error("chart {chart} depends on {dependency}, which is not beside it")]
    Dependency {
        /// The chart.
        chart: String,
        /// What it needs.
        dependency: String,
    },
}

fn list(faults: &[super::schema::SchemaFault]) -> String {
    faults.iter().map(|fault| format!("- {fault}")).collect::<Vec<_>>().join("\n")
}
