//! What several of the tests need of the product.

use karst_manifest::{State, closed, parse};
use serde_json::Value;
use std::sync::Arc;

/// Objects as the controller reads them: one that cannot be read is closed, or, where its kind has no such form, not there.
pub fn state(objects: &[Value]) -> State {
    let read = |v: &Value| {
        let kind = v["kind"].as_str().unwrap_or_default();
        let object = parse::value(kind, v.clone()).ok().or_else(|| closed::closed(kind, v.clone()))?;
        Some(Arc::new(parse::Located { object, file: "world.yaml".into(), line: 1 }))
    };
    State { objects: objects.iter().filter_map(read).collect(), ..State::default() }
}
