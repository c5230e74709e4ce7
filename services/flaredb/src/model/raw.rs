//! Raw keys: one version, conditions and writes in one entry.

use super::{Answer, Changes, command::*, layout::*, read::raw_get};
use crate::{Refusal, refusal::Outcome};
use photon_kv::engine::View;

/// Writes if all conditions hold. `version` is what the writes are marked with.
pub(super) fn commit(view: &dyn View, r: &RawCommit, version: u64, out: &mut Changes) -> Outcome<Answer> {
    for (index, c) in r.checks.iter().enumerate() {
        let now = raw_get(view, &c.key)?;
        let holds = match &c.want {
            Some(Want::Present(p)) => now.is_some() == *p,
            Some(Want::Version(v)) => now.as_ref().map_or(0, |n| n.version) == *v,
            Some(Want::Value(v)) => now.as_ref().is_some_and(|n| n.value == *v),
            None => false,
        };
        if !holds {
            let (version, value) = now.map_or((0, None), |n| (n.version, Some(n.value)));
            return Err(Refusal::CheckFailed { index, version, value });
        }
    }
    for w in &r.writes {
        match &w.value {
            Some(v) => out.put(RAW, w.key.clone(), [&version.to_be_bytes()[..], v].concat()),
            None => out.remove(RAW, w.key.clone()),
        }
    }
    Ok(Answer::Written(version))
}
