//! Field-level difference of two JSON values, for dry runs and audit.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// Where, as in `spec.cpus`.
    pub field: String,
    /// Before; none when the field is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// After; none when the field goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

/// Every field whose value differs between `old` and `new`, below `at`. Arrays are compared whole.
pub fn diff(at: &str, old: &Value, new: &Value) -> Vec<FieldChange> {
    let mut out = Vec::new();
    walk(at, Some(old), Some(new), &mut out);
    out
}

fn walk(at: &str, old: Option<&Value>, new: Option<&Value>, out: &mut Vec<FieldChange>) {
    match (old, new) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let below = |k: &str| if at.is_empty() { k.to_string() } else { format!("{at}.{k}") };
            for (k, v) in a {
                walk(&below(k), Some(v), b.get(k), out);
            }
            for (k, v) in b.iter().filter(|(k, _)| !a.contains_key(*k)) {
                walk(&below(k), None, Some(v), out);
            }
        }
        (a, b) if a == b => {}
        (None | Some(Value::Null), None | Some(Value::Null)) => {}
        (a, b) => out.push(FieldChange { field: at.to_string(), old: a.cloned(), new: b.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_each_field_once() {
        let d = diff(
            "spec",
            &json!({"a": 1, "b": {"c": [1], "x": 0}, "gone": true}),
            &json!({"a": 1, "b": {"c": [2], "x": 0}, "new": 1}),
        );
        let fields: Vec<&str> = d.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, ["spec.b.c", "spec.gone", "spec.new"]);
        assert!(diff("", &json!({"a": null}), &json!({})).is_empty());
    }
}
