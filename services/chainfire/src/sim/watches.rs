//! Watches of the simulation. Each follows one member, and goes on at another when it likes, from where it was.
//! What it is told is compared with what happened.

use super::model::{Event, Model};
use crate::{
    Scope, Span,
    follow::{Follower, Found, Interest},
    machine::Shared,
    model::Changes,
};
use bytes::Bytes;
use photon_rt::entropy::Rng;
use std::sync::Arc;

pub struct Watch {
    span: Span,
    /// First revision that it was not told of.
    next: i64,
    /// The life of a member that it is connected to.
    at: Option<(u64, Follower)>,
}

/// What watches did, in all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub events: u64,
    pub moves: u64,
    /// Times that one began behind what the member had in memory.
    pub history: u64,
    pub compacted: u64,
}

pub fn some(rng: &mut Rng) -> Vec<Watch> {
    let spans = [("k3", ""), ("k5", ""), ("k", "l"), ("k4", "k7"), ("\0", "\0"), ("u", "v")];
    let watch = |(start, end): (&str, &str)| Watch {
        span: Span::of(&Bytes::copy_from_slice(start.as_bytes()), &Bytes::copy_from_slice(end.as_bytes())),
        next: 1 + rng.below(3) as i64,
        at: None,
    };
    spans.map(watch).into()
}

fn plain(list: &[Changes]) -> Vec<(i64, Vec<Event>)> {
    let one = |c: &Changes| {
        let mut events: Vec<Event> =
            c.changes.iter().map(|c| (c.kv.key.clone(), c.put.then(|| c.kv.value.clone()))).collect();
        events.sort();
        (c.revision, events)
    };
    list.iter().map(one).collect()
}

impl Watch {
    /// Whether it is connected to this life of a member.
    pub fn is_at(&self, life: u64) -> bool {
        self.at.as_ref().is_some_and(|(at, _)| *at == life)
    }

    /// What it has to be told from `next` up to a revision.
    fn due(&self, model: &Model, to: i64) -> Vec<(i64, Vec<Event>)> {
        let mine = |events: &Vec<Event>| -> Vec<Event> {
            events.iter().filter(|(k, _)| self.span.contains(k)).cloned().collect()
        };
        let all = model.events.range(self.next..=to.max(self.next - 1));
        all.map(|(r, e)| (*r, mine(e))).filter(|(_, e)| !e.is_empty()).collect()
    }

    /// Takes some steps at a member.
    pub async fn step(
        &mut self,
        life: u64,
        shared: &Arc<Shared>,
        model: &Model,
        rng: &mut Rng,
        counts: &mut Counts,
    ) -> Result<(), String> {
        if !self.is_at(life) {
            let interest = Interest {
                scope: Scope::Operator,
                span: self.span.clone(),
                no_put: false,
                no_delete: false,
                prev_kv: rng.percent(50),
            };
            counts.moves += 1;
            counts.history += u64::from(shared.hub.read(self.next).is_none());
            self.at = Some((life, Follower::of(shared.clone(), interest, self.next)));
        }
        let mut out = Vec::new();
        let (_, follower) = self.at.as_mut().expect("just made");
        for _ in 0..1 + rng.below(4) {
            follower.step(&mut out).await;
        }
        let seen = follower.seen();
        for (_, found) in out {
            match found {
                Found::Changes(list, _) => {
                    let told = plain(&list);
                    let Some((last, _)) = told.last() else { continue };
                    let (last, due) = (*last, self.due(model, *last));
                    if told != due {
                        return Err(format!(
                            "a watch of {:?} from {} was told {told:?}, due was {due:?}",
                            self.span, self.next
                        ));
                    }
                    counts.events += told.iter().map(|(_, e)| e.len() as u64).sum::<u64>();
                    self.next = last + 1;
                }
                Found::Gone(gone) => {
                    if gone.0 > model.compacted || self.next >= gone.0 {
                        return Err(format!(
                            "a watch from {} was sent to {}, compacted is {}",
                            self.next, gone.0, model.compacted
                        ));
                    }
                    counts.compacted += 1;
                    (self.next, self.at) = (gone.0, None);
                    return Ok(());
                }
                Found::Failed(e) => return Err(format!("a watch failed: {e}")),
            }
        }
        if let Some(seen) = seen.filter(|s| *s >= self.next) {
            let missed = self.due(model, seen);
            if !missed.is_empty() {
                return Err(format!("progress of {seen} overtook {missed:?} at a watch of {:?}", self.span));
            }
            self.next = seen + 1;
        }
        Ok(())
    }
}
