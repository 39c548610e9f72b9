//! Rules of policies as one line: of ztunnel's dump, and as an AuthorizationPolicy writes them.

use serde_json::Value;

/// A rule that everything matches.
const ANYTHING: &str = "anything";

/// A rule as ztunnel has it: clauses of which all must match, each of alternatives.
pub fn of_dump(rule: &Value) -> String {
    let clauses = rule.as_array().map(Vec::as_slice).unwrap_or_default();
    let clause = |clause: &Value| {
        let matches = clause.as_array().map(Vec::as_slice).unwrap_or_default();
        alternatives(matches.iter().map(fields).collect())
    };
    all_of(clauses.iter().map(clause).collect())
}

/// A rule as an AuthorizationPolicy has it.
pub fn of_object(rule: &Value) -> String {
    let list = |name: &str| rule.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let inner = |name: &str, field: &str| {
        alternatives(list(name).iter().filter_map(|one| one.get(field)).map(fields).collect())
    };
    let mut parts = vec![inner("from", "source"), inner("to", "operation")];
    for condition in list("when") {
        let key = condition.get("key").and_then(Value::as_str).unwrap_or_default();
        for (field, sign) in [("values", "="), ("notValues", "!=")] {
            if let Some(values) = condition.get(field) {
                parts.push(format!("{key}{sign}{}", value(values)));
            }
        }
    }
    all_of(parts)
}

fn alternatives(all: Vec<String>) -> String {
    match all.as_slice() {
        [one] => one.clone(),
        several => {
            let text = several.join(" or ");
            if text.is_empty() { text } else { format!("({text})") }
        }
    }
}

fn all_of(mut parts: Vec<String>) -> String {
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() { ANYTHING.into() } else { parts.join(" and ") }
}

/// `principals=a,b ports=80`; a field that begins with `not` is `!=`.
fn fields(object: &Value) -> String {
    let one = |(name, inner): (&String, &Value)| match name.strip_prefix("not") {
        Some(rest) if rest.starts_with(char::is_uppercase) => {
            let mut letters = rest.chars();
            let first: String = letters.next().into_iter().flat_map(char::to_lowercase).collect();
            format!("{first}{}!={}", letters.as_str(), value(inner))
        }
        _ => format!("{name}={}", value(inner)),
    };
    object.as_object().into_iter().flatten().map(one).collect::<Vec<_>>().join(" ")
}

fn value(inner: &Value) -> String {
    match inner {
        Value::Array(all) => all.iter().map(value).collect::<Vec<_>>().join(","),
        Value::String(text) if text == "Presence" => "*".into(),
        Value::String(text) => text.clone(),
        Value::Object(parts) => match parts.iter().next() {
            Some((how, Value::String(text))) if parts.len() == 1 => match how.as_str() {
                "Prefix" => format!("{text}*"),
                "Suffix" => format!("*{text}"),
                _ => text.clone(),
            },
            _ => parts.values().map(value).collect::<Vec<_>>().join("/"),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_of_a_dump_are_read() {
        let rule = json!([
            [{ "principals": [{ "Exact": "cluster.local/ns/a/sa/b" }, { "Suffix": "/sa/c" }] }, { "notNamespaces": [{ "Prefix": "x" }] }],
            [{ "destinationPorts": [80, 81] }],
        ]);
        let expected = "(principals=cluster.local/ns/a/sa/b,*/sa/c or namespaces!=x*) and destinationPorts=80,81";
        assert_eq!((of_dump(&rule).as_str(), of_dump(&json!([])).as_str()), (expected, ANYTHING));
        let account = json!([[{ "serviceAccounts": [{ "namespace": "a", "serviceAccount": "b" }] }]]);
        assert_eq!(of_dump(&account), "serviceAccounts=a/b");
    }

    #[test]
    fn rules_of_an_object_are_read() {
        let rule = json!({
            "from": [{ "source": { "principals": ["p"] } }, { "source": { "notIpBlocks": ["10.0.0.0/8"] } }],
            "to": [{ "operation": { "methods": ["GET"], "paths": ["/a*"] } }],
            "when": [{ "key": "request.headers[x]", "values": ["1"], "notValues": ["2"] }],
        });
        let expected = "(principals=p or ipBlocks!=10.0.0.0/8) and methods=GET paths=/a* and request.headers[x]=1 and request.headers[x]!=2";
        assert_eq!((of_object(&rule).as_str(), of_object(&json!({})).as_str()), (expected, ANYTHING));
    }
}
