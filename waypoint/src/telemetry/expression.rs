//! Expressions in CEL over Envoy's attributes, as Telemetry has them.

use crate::telemetry::stream_info::StreamInfo;
use cel::{Context, Program, Value};
use karst_api::MAX_EXPRESSION;
use std::collections::HashMap;

/// Longest value of a label or a tag, in bytes; the rest is left out. Clients may decide about it.
const MAX_VALUE: usize = 256;

/// Why an expression cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum ExpressionError {
    /// Longer than any need be.
    #[error("expression of {0} bytes: at most {MAX_EXPRESSION} are allowed")]
    TooLong(usize),
    /// It is no CEL.
    #[error("{0:?}: {1}")]
    Invalid(String, cel::ParseErrors),
}

/// Compiles one.
///
/// # Errors
/// It is no CEL, or too long.
pub fn program(text: &str) -> Result<Program, ExpressionError> {
    if text.len() > MAX_EXPRESSION {
        return Err(ExpressionError::TooLong(text.len()));
    }
    Program::compile(text).map_err(|e| ExpressionError::Invalid(text.into(), e))
}

/// A value as text; empty for one that is no plain one.
pub fn text(value: Value) -> String {
    match value {
        Value::String(s) => s[..s.floor_char_boundary(MAX_VALUE)].to_string(),
        Value::Int(i) => i.to_string(),
        Value::UInt(i) => i.to_string(),
        Value::Float(f) => f.to_string(),
        Value::Bool(b) => b.to_string(),
        _ => String::new(),
    }
}

thread_local! {
    /// With CEL's functions; there are many.
    static FUNCTIONS: Context<'static, 'static> = Context::default();
}

/// The value of an expression. None: it has none (it names a header that is not there, say).
pub fn evaluate(program: &Program, info: &StreamInfo, sent: u64) -> Option<Value> {
    FUNCTIONS.with(|f| {
        let mut scope = f.new_inner_scope();
        for variable in program.references().variables() {
            scope.add_variable_from_value(variable, attributes(variable, info, sent));
        }
        program.execute(&scope).ok()
    })
}

/// One of [`karst_api::ATTRIBUTES`], as Envoy has it.
fn attributes(of: &str, info: &StreamInfo, sent: u64) -> HashMap<String, Value> {
    let mut out: HashMap<String, Value> = HashMap::new();
    let mut text = |k: &str, v: &str| out.insert(k.into(), v.to_string().into());
    let header = |v: &Option<http::HeaderValue>| {
        v.as_ref().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).unwrap_or_default()
    };
    let peer = info.workload.as_ref().map(|(_, a)| *a);
    match of {
        "request" => {
            text("path", info.path());
            text("url_path", info.path().split('?').next().unwrap_or_default());
            text("query", info.path().split_once('?').map_or("", |(_, q)| q));
            text("host", &header(&info.authority));
            text("method", info.method.as_str());
            text("protocol", info.protocol);
            text("useragent", &header(&info.user_agent));
            text("id", &header(&info.request_id));
            out.insert("size".into(), int(info.received.get()));
            let all = info.headers.iter().flat_map(|h| h.iter());
            let mut headers: HashMap<String, String> = HashMap::new();
            for (name, value) in all {
                let value = String::from_utf8_lossy(value.as_bytes());
                let known = headers.entry(name.as_str().into()).or_default();
                if !known.is_empty() {
                    known.push(',');
                }
                known.push_str(&value);
            }
            out.insert("headers".into(), headers.into());
        }
        "response" => {
            out.insert("code".into(), int(u64::from(info.answered)));
            out.insert("size".into(), int(sent));
            out.insert("code_details".into(), info.details.to_string().into());
            if let Some(g) = info.grpc {
                out.insert("grpc_status".into(), int(u64::from(g)));
            }
        }
        "connection" => {
            text("uri_san_peer_certificate", info.principal());
            text("requested_server_name", info.sni.as_deref().unwrap_or_default());
            out.insert("mtls".into(), Value::Bool(info.principal.is_some()));
        }
        "source" => {
            text("address", &info.from.to_string());
            out.insert("port".into(), int(u64::from(info.from.port())));
        }
        "destination" => {
            text("address", &info.to.to_string());
            out.insert("port".into(), int(u64::from(info.to.port())));
        }
        "upstream" => {
            text("address", &peer.map(|p| p.to_string()).unwrap_or_default());
            if let Some(p) = peer {
                out.insert("port".into(), int(u64::from(p.port())));
            }
        }
        _ => {
            text("route_name", &info.route);
            text("cluster_name", &info.cluster());
        }
    }
    out
}

fn int(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}
