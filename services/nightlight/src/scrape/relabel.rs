//! Relabelling: how targets and series get, change and lose labels, and themselves (Prometheus' `relabel_configs`).

use crate::labels::{Labels, Str, anchored};
use md5::{Digest, Md5};
use regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What a rule does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "they are Prometheus' names")]
pub enum Action {
    #[default]
    Replace,
    Keep,
    Drop,
    KeepEqual,
    DropEqual,
    HashMod,
    LabelMap,
    LabelDrop,
    LabelKeep,
    Lowercase,
    Uppercase,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    source_labels: Vec<String>,
    separator: Option<String>,
    #[serde(default)]
    target_label: String,
    regex: Option<String>,
    #[serde(default)]
    modulus: u64,
    replacement: Option<String>,
    #[serde(default)]
    action: Action,
}

/// One rule.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub struct Rule {
    source_labels: Vec<String>,
    separator: String,
    target_label: String,
    regex: Regex,
    modulus: u64,
    replacement: String,
    action: Action,
}

impl PartialEq for Rule {
    fn eq(&self, o: &Self) -> bool {
        let key = |r: &Self| {
            let labels = (r.source_labels.clone(), r.separator.clone(), r.target_label.clone());
            (labels, r.regex.as_str().to_string(), r.modulus, r.replacement.clone(), r.action)
        };
        key(self) == key(o)
    }
}

impl TryFrom<Written> for Rule {
    type Error = String;

    fn try_from(w: Written) -> Result<Self, String> {
        use Action::*;
        let name = format!("{:?}", w.action).to_lowercase();
        if w.modulus == 0 && w.action == HashMod {
            return Err("relabel configuration for hashmod requires non-zero modulus".into());
        }
        let needs_target =
            matches!(w.action, Replace | HashMod | Lowercase | Uppercase | KeepEqual | DropEqual);
        if needs_target && w.target_label.is_empty() {
            return Err(format!("relabel configuration for {name} action requires 'target_label' value"));
        }
        let plain = w.regex.is_none() && w.modulus == 0 && w.replacement.is_none();
        if matches!(w.action, KeepEqual | DropEqual) && (!plain || w.separator.is_some()) {
            return Err(format!(
                "{name} action requires only 'source_labels' and `target_label`, and no other fields"
            ));
        }
        let no_labels = w.source_labels.is_empty() && w.target_label.is_empty();
        let only_regex = no_labels && w.modulus == 0 && w.replacement.is_none() && w.separator.is_none();
        if matches!(w.action, LabelDrop | LabelKeep) && !only_regex {
            return Err(format!("{name} action requires only 'regex', and no other fields"));
        }
        Ok(Rule {
            regex: anchored(w.regex.as_deref().unwrap_or("(.*)"))?,
            source_labels: w.source_labels,
            separator: w.separator.unwrap_or_else(|| ";".into()),
            target_label: w.target_label,
            modulus: w.modulus,
            replacement: w.replacement.unwrap_or_else(|| "$1".into()),
            action: w.action,
        })
    }
}

/// Labels while they are changed.
pub type Building = BTreeMap<String, String>;

fn set(all: &mut Building, name: String, value: String) {
    if value.is_empty() {
        all.remove(&name);
    } else {
        all.insert(name, value);
    }
}

/// Applies rules in their order; false: it is dropped.
pub fn apply(rules: &[Rule], all: &mut Building) -> bool {
    rules.iter().all(|r| r.apply(all))
}

impl Rule {
    fn apply(&self, all: &mut Building) -> bool {
        let get = |name: &str| all.get(name).map_or("", String::as_str);
        let values: Vec<&str> = self.source_labels.iter().map(|n| get(n)).collect();
        let value = values.join(&self.separator);
        match self.action {
            Action::Keep => return self.regex.is_match(&value),
            Action::Drop => return !self.regex.is_match(&value),
            Action::KeepEqual => return get(&self.target_label) == value,
            Action::DropEqual => return get(&self.target_label) != value,
            Action::Lowercase => set(all, self.target_label.clone(), value.to_lowercase()),
            Action::Uppercase => set(all, self.target_label.clone(), value.to_uppercase()),
            Action::HashMod => {
                let hash = Md5::digest(value.as_bytes());
                let mut last = [0; 8];
                last.copy_from_slice(&hash[8..]);
                let n = u64::from_be_bytes(last) % self.modulus.max(1);
                set(all, self.target_label.clone(), n.to_string());
            }
            Action::Replace => {
                if let Some(found) = self.regex.captures(&value) {
                    let (mut target, mut text) = (String::new(), String::new());
                    found.expand(&self.target_label, &mut target);
                    found.expand(&self.replacement, &mut text);
                    if !target.is_empty() {
                        set(all, target, text);
                    }
                }
            }
            Action::LabelMap => {
                let mut more = Vec::new();
                for (name, value) in &*all {
                    if let Some(found) = self.regex.captures(name) {
                        let mut target = String::new();
                        found.expand(&self.replacement, &mut target);
                        more.push((target, value.clone()));
                    }
                }
                for (name, value) in more.into_iter().filter(|(n, _)| !n.is_empty()) {
                    set(all, name, value);
                }
            }
            Action::LabelDrop => all.retain(|n, _| !self.regex.is_match(n)),
            Action::LabelKeep => all.retain(|n, _| self.regex.is_match(n)),
        }
        true
    }
}

/// A finished set.
pub fn labels(all: &Building) -> Labels {
    Labels::new(all.iter().map(|(n, v)| (Str::from(n.as_str()), Str::from(v.as_str()))))
}

/// A set to be changed.
pub fn building(labels: &Labels) -> Building {
    labels.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules as YAML, labels before, labels after (nothing: dropped). Most are Prometheus' own cases.
    #[test]
    fn every_action_does_as_prometheus_does() {
        let l = |text: &str| -> Building {
            text.split(' ')
                .filter(|t| !t.is_empty())
                .filter_map(|t| t.split_once('='))
                .map(|(a, b)| (a.into(), b.into()))
                .collect()
        };
        for (rules, before, after) in [
            (
                "[{source_labels: [a], target_label: d, separator: ;, regex: 'f(.*)', replacement: 'ch${1}-ch${1}'}]",
                "a=foo b=bar c=baz",
                Some("a=foo b=bar c=baz d=choo-choo"),
            ),
            (
                "[{source_labels: [a, b], target_label: a, separator: ;, regex: 'f(.*);(.*)r', replacement: 'b${1}${2}m'}, {source_labels: [c, a], regex: '(b).*b(.*)ba(.*)', target_label: d, separator: '#', replacement: '$1$2$2$3'}]",
                "a=foo b=bar c=baz",
                Some("a=boobam b=bar c=baz d=boooom"),
            ),
            (
                "[{source_labels: [a], regex: '.*o.*', action: drop}, {source_labels: [a], target_label: d}]",
                "a=foo",
                None,
            ),
            ("[{source_labels: [a], regex: no-match, action: drop}]", "a=foo", Some("a=foo")),
            ("[{source_labels: [a], regex: 'f|o', action: drop}]", "a=foo", Some("a=foo")),
            ("[{source_labels: [a], regex: no-match, action: keep}]", "a=foo", None),
            ("[{source_labels: [a], regex: 'f.*', action: keep}]", "a=foo", Some("a=foo")),
            ("[{target_label: b, replacement: xyz}]", "a=boo", Some("a=boo b=xyz")),
            (
                "[{source_labels: [c], target_label: d, separator: ;, action: hashmod, modulus: 1000}]",
                "a=foo b=bar c=baz",
                Some("a=foo b=bar c=baz d=976"),
            ),
            (
                "[{source_labels: [a], regex: '(.*)', target_label: b, replacement: ''}]",
                "a=x b=y",
                Some("a=x"),
            ),
            (
                "[{action: labelmap, regex: '__meta_(my.*)', replacement: '${1}'}]",
                "__meta_my_bar=aaa __meta_my_baz=bbb __meta_other=ccc",
                Some("__meta_my_bar=aaa __meta_my_baz=bbb __meta_other=ccc my_bar=aaa my_baz=bbb"),
            ),
            ("[{action: labeldrop, regex: 'b.*'}]", "a=1 b1=2 b2=3", Some("a=1")),
            ("[{action: labelkeep, regex: 'b.*'}]", "a=1 b1=2 b2=3", Some("b1=2 b2=3")),
            (
                "[{action: lowercase, source_labels: [a], target_label: b}, {action: uppercase, source_labels: [a], target_label: c}]",
                "a=bAr",
                Some("a=bAr b=bar c=BAR"),
            ),
            (
                "[{action: keepequal, source_labels: [__port], target_label: port}]",
                "__port=1 port=1",
                Some("__port=1 port=1"),
            ),
            ("[{action: keepequal, source_labels: [__port], target_label: port}]", "__port=1 port=2", None),
            ("[{action: dropequal, source_labels: [__port], target_label: port}]", "__port=1 port=1", None),
            (
                "[{source_labels: [a], regex: 'some-([^-]+)-(.*)', target_label: '${1}', replacement: '${2}'}]",
                "a=some-name-value",
                Some("a=some-name-value name=value"),
            ),
        ] {
            let rules: Vec<Rule> = serde_yaml_ng::from_str(rules).unwrap_or_else(|e| panic!("{rules}: {e}"));
            let mut all = l(before);
            let kept = apply(&rules, &mut all);
            assert_eq!(kept.then_some(all), after.map(l), "{rules:?}");
        }
    }

    #[test]
    fn rules_without_meaning_are_refused() {
        for (rule, why) in [
            ("{action: hashmod, target_label: x}", "non-zero modulus"),
            ("{source_labels: [a]}", "requires 'target_label'"),
            ("{action: labeldrop, regex: x, source_labels: [a]}", "requires only 'regex'"),
            ("{action: labelmap, regx: x}", "unknown field `regx`"),
            ("{action: keepequal, source_labels: [a], target_label: b, regex: x}", "no other fields"),
            ("{regex: '(', target_label: x}", "error parsing regexp"),
        ] {
            let e = serde_yaml_ng::from_str::<Rule>(rule).expect_err(rule).to_string();
            assert!(e.contains(why), "{rule}: {e}");
        }
    }
}
