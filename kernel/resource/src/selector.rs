//! Label and field selectors of lists and watches.

use crate::Raw;
use photon_base::{Error, Name, Result};
use serde_json::Value;

/// Conditions joined by commas: `app=web,tier!=db,labelled`; for fields `status.phase=running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Condition>,
    fields: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    key: String,
    want: Want,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Want {
    Equal(String),
    NotEqual(String),
    Present,
}

const CONDITIONS_MAX: usize = 32;

fn parse(text: &str, name: &str) -> Result<Vec<Condition>> {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
    if parts.len() > CONDITIONS_MAX || text.len() > 4096 {
        return Err(Error::invalid(name, format!("more than {CONDITIONS_MAX} conditions")));
    }
    let mut out = Vec::with_capacity(parts.len());
    for p in parts {
        let (key, want) = if let Some((k, v)) = p.split_once("!=") {
            (k, Want::NotEqual(v.trim().into()))
        } else if let Some((k, v)) = p.split_once('=') {
            (k, Want::Equal(v.trim_start_matches('=').trim().into()))
        } else {
            (p, Want::Present)
        };
        if key.trim().is_empty() {
            return Err(Error::invalid(name, format!("{p:?} names nothing"))
                .hint("write key=value, key!=value or key"));
        }
        out.push(Condition { key: key.trim().into(), want });
    }
    Ok(out)
}

impl Condition {
    fn holds(&self, value: Option<&str>) -> bool {
        match &self.want {
            Want::Equal(w) => value == Some(w),
            Want::NotEqual(w) => value != Some(w),
            Want::Present => value.is_some(),
        }
    }
}

impl Selector {
    /// Reads both selectors; empty text selects everything.
    pub fn parse(labels: &str, fields: &str) -> Result<Selector> {
        Ok(Selector { labels: parse(labels, "labels")?, fields: parse(fields, "fields")? })
    }

    /// True when nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// False when no object of this name can meet the conditions.
    pub fn may_match(&self, project: Option<&Name>, name: &Name) -> bool {
        self.fields.iter().all(|c| match c.key.as_str() {
            "meta.name" => c.holds(Some(name.as_str())),
            "meta.project" => c.holds(project.map(Name::as_str)),
            _ => true,
        })
    }

    /// True when the object meets every condition.
    pub fn matches(&self, o: &Raw) -> bool {
        self.labels.iter().all(|c| c.holds(o.meta.labels.get(&c.key).map(String::as_str)))
            && self.fields.iter().all(|c| {
                let found = field(o, &c.key);
                c.holds(found.as_deref())
            })
    }
}

fn field(o: &Raw, path: &str) -> Option<String> {
    let (root, rest) = path.split_once('.').unwrap_or((path, ""));
    let mut at: &Value = match root {
        "spec" => &o.spec,
        "status" => &o.status,
        "meta" if rest == "name" => return Some(o.meta.name.to_string()),
        "meta" if rest == "project" => return o.meta.project.as_ref().map(ToString::to_string),
        _ => return None,
    };
    for step in rest.split('.').filter(|s| !s.is_empty()) {
        at = at.get(step)?;
    }
    match at {
        Value::String(s) => Some(s.clone()),
        Value::Null => None,
        v => Some(v.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_hold_or_not() {
        let o: Raw = serde_json::from_value(json!({
            "meta": {"id": "00000000000000000000000000000001", "name": "a", "labels": {"app": "web"}, "generation": 1,
                     "created": "2026-01-01T00:00:00Z"},
            "spec": {"cpus": 2}, "status": {"phase": "running"}
        })).expect("object");
        let check = |l: &str, f: &str| Selector::parse(l, f).expect("selector").matches(&o);
        assert!(check("", "") && check("app=web", "") && check("app", "status.phase=running,spec.cpus=2"));
        assert!(check("tier!=db", "meta.name=a"));
        assert!(!check("app=db", "") && !check("tier", "") && !check("", "status.phase!=running"));
        assert!(Selector::parse("=x", "").is_err());
    }
}
