//! A small case out of a large one: parts are left out for as long as it still fails.

use serde_json::Value;

/// The smallest that was found.
pub fn shrink(mut policies: Vec<Value>, fails: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    loop {
        let smaller = without_one(&Value::Array(policies.clone()));
        let next = smaller.into_iter().filter_map(|v| v.as_array().cloned()).find(|p| fails(p));
        match next {
            Some(p) => policies = p,
            None => return policies,
        }
    }
}

/// The same without one part, the largest parts first. (What names an object stays.)
fn without_one(v: &Value) -> Vec<Value> {
    let mut out = vec![];
    match v {
        Value::Array(all) => {
            for i in 0..all.len() {
                let mut less = all.clone();
                less.remove(i);
                out.push(Value::Array(less));
            }
            for (i, inner) in all.iter().enumerate() {
                for smaller in without_one(inner) {
                    let mut less = all.clone();
                    less[i] = smaller;
                    out.push(Value::Array(less));
                }
            }
        }
        Value::Object(all) => {
            let named = ["apiVersion", "kind", "name", "namespace", "metadata", "key", "spec"];
            for key in all.keys().filter(|k| !named.contains(&k.as_str())) {
                let mut less = all.clone();
                less.remove(key);
                out.push(Value::Object(less));
            }
            for (key, inner) in all {
                for smaller in without_one(inner) {
                    let mut less = all.clone();
                    less.insert(key.clone(), smaller);
                    out.push(Value::Object(less));
                }
            }
        }
        _ => {}
    }
    out
}
