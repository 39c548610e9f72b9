//! Where the access log goes besides the proxy's output, compiled.

use crate::{
    spans::rules::{Collector, TracingError},
    telemetry::{
        expression::{ExpressionError, evaluate, program},
        stream_info::StreamInfo,
    },
};
use cel::{Program, Value};
use karst_api::route::{self as ir, CollectorProtocol};
use std::sync::Arc;

/// A collector of the log.
pub struct Export {
    pub collector: Arc<Collector>,
    /// The name of the log.
    pub name: Arc<str>,
    /// Records only where this is true.
    filter: Option<Program>,
}

/// Why the log cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("there is no collector")]
    NoCollector,
    #[error(transparent)]
    Collector(#[from] TracingError),
    #[error("Zipkin takes no logs")]
    Zipkin,
    #[error(transparent)]
    Filter(#[from] ExpressionError),
}

impl Export {
    /// Compiles.
    ///
    /// # Errors
    /// What cannot be sent to, or by.
    pub fn new(said: &ir::LogExport) -> Result<Self, ExportError> {
        let collector = Collector::new(said.collector.as_ref().ok_or(ExportError::NoCollector)?)?;
        if collector.protocol == CollectorProtocol::Zipkin {
            return Err(ExportError::Zipkin);
        }
        let filter = if said.filter.is_empty() { None } else { Some(program(&said.filter)?) };
        Ok(Self { collector: Arc::new(collector), name: said.name.as_str().into(), filter })
    }

    /// Is there to be a record?
    pub fn takes(&self, info: &StreamInfo, sent: u64) -> bool {
        self.filter.as_ref().is_none_or(|f| matches!(evaluate(f, info, sent), Some(Value::Bool(true))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]
    use super::*;

    #[test]
    fn what_cannot_be_sent_is_refused() {
        let collector = || ir::Collector { service: "ns/c".into(), port: 4317, ..Default::default() };
        let export = |change: fn(&mut ir::LogExport)| {
            let mut said = ir::LogExport { collector: Some(collector()), ..Default::default() };
            change(&mut said);
            Export::new(&said).map(|export| export.collector.port).map_err(|e| e.to_string())
        };
        assert_eq!(export(|_| {}), Ok(4317));
        assert_eq!(export(|said| said.collector = None), Err("there is no collector".into()));
        assert_eq!(export(|said| said.collector.as_mut().unwrap().port = 0), Err("collector: port 0".into()));
        let zipkin = |said: &mut ir::LogExport| {
            said.collector.as_mut().unwrap().set_protocol(CollectorProtocol::Zipkin);
        };
        assert_eq!(export(zipkin), Err("Zipkin takes no logs".into()));
        assert!(export(|said| said.filter = "response.code ==".into()).is_err());
    }
}
