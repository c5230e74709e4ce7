//! foca's side: what goes in is filtered first, what comes out is turned into packets, deadlines and a new
//! life.

use super::{Core, Due, Now};
use crate::{
    counters::Counters,
    id::Id,
    peer::Liveness,
    wire::{KIND_TURN_UNDEAD, Malformed, News, SWIM, Stamp, Swim, from_member, to_member},
};
use foca::{BroadcastHandler, Invalidates, Notification, Runtime, Timer};
use photon_base::Name;
use photon_rt::entropy::Rng;
use std::{convert::Infallible, time::Duration};

/// Rounds of foca's output that lead to more of it. Three are the most that happens.
const SETTLE_MAX: usize = 8;

/// foca draws from our seeded stream.
pub(super) struct Draw(pub Rng);

impl rand_core::TryRng for Draw {
    type Error = Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((self.0.next_u64() >> 32) as u32)
    }
    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.0.next_u64())
    }
    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(8) {
            let n = chunk.len();
            chunk.copy_from_slice(&self.0.next_u64().to_le_bytes()[..n]);
        }
        Ok(())
    }
}

/// Facts on their way. [`Core::on_swim`] lets only news through, so whatever comes here goes on.
pub(super) struct Items;

pub(super) struct ItemKey {
    name: Name,
    stamp: Stamp,
}

impl Invalidates for ItemKey {
    fn invalidates(&self, other: &Self) -> bool {
        self.name == other.name && self.stamp >= other.stamp
    }
}

impl BroadcastHandler<Id> for Items {
    type Key = ItemKey;
    type Error = Malformed;
    fn receive_item(&mut self, item: &[u8], _: Option<&Id>) -> Result<Option<ItemKey>, Malformed> {
        News::decode(item).map(|n| Some(ItemKey { name: n.name, stamp: n.stamp }))
    }
}

/// What foca wants done.
#[derive(Default)]
pub(super) struct Out {
    send: Vec<(Id, Vec<u8>)>,
    later: Vec<(Timer<Id>, Duration)>,
    dead: bool,
}

impl Out {
    /// True when foca has said that this life is over, and that is not yet dealt with.
    pub(super) fn is_dead(&self) -> bool {
        self.dead
    }
}

impl Runtime<Id> for Out {
    fn notify(&mut self, n: Notification<'_, Id>) {
        self.dead |= matches!(n, Notification::Defunct);
    }
    fn send_to(&mut self, to: Id, data: &[u8]) {
        let mut plain = Vec::with_capacity(data.len() + 1);
        plain.push(SWIM);
        plain.extend_from_slice(data);
        self.send.push((to, plain));
    }
    fn submit_after(&mut self, event: Timer<Id>, after: Duration) {
        self.later.push((event, after));
    }
}

impl Core {
    pub(super) fn on_swim(&mut self, now: Now, src: &Id, swim: Swim) {
        if !self.believes(src) {
            return self.verdict(now, src, 0);
        }
        let mut members = Vec::with_capacity(swim.members.len());
        for m in swim.members {
            let (incarnation, state) = from_member(&m);
            if m.id().key == self.me.key {
                self.about_me(m.id(), incarnation, state, src);
            } else if m.id() == src && state == Liveness::Down {
                // Who says of itself that it is down goes.
                members.push(to_member(src.clone(), incarnation, Liveness::Left));
            } else if self.admits(m.id(), members.len()) {
                members.push(m);
            } else {
                Counters::inc(&self.counters.refused_total);
            }
        }
        // The members come first: facts may be those of a node that this packet makes known.
        let head = Swim { header: swim.header, members, news: Vec::new() };
        self.feed(&head);
        self.settle(now);
        let mut news = swim.news;
        news.retain(|n| {
            let key = Id::new(n.name.clone(), 0, self.me.addr).key;
            self.learn(key, n.stamp, &n.facts)
        });
        for n in news {
            let done = self.foca.add_broadcast(&n.encode()).map(|_| ());
            self.log(done);
        }
    }

    fn feed(&mut self, swim: &Swim) {
        let Ok(bytes) = swim.encode() else { return };
        let done = self.foca.handle_data(&bytes, &mut self.swim);
        self.log(done);
    }

    /// True unless `src` is known to be down, gone, or followed by a later life.
    pub(super) fn believes(&self, src: &Id) -> bool {
        match self.table.get(&src.key) {
            None => true,
            Some(k) if k.id == *src => k.state.is_up(),
            Some(k) => src.beats(&k.id),
        }
    }

    /// Does what foca wants until it wants nothing more, then mirrors its members.
    pub(super) fn settle(&mut self, now: Now) {
        for _ in 0..SETTLE_MAX {
            let Out { send, later, dead } = std::mem::take(&mut self.swim);
            if send.is_empty() && later.is_empty() && !dead {
                break;
            }
            for (timer, after) in later {
                self.at(now.mono + after, Due::Swim(timer));
            }
            self.reconcile(now);
            for (to, plain) in send {
                if plain.get(1) == Some(&KIND_TURN_UNDEAD) {
                    self.verdict(now, &to, 0);
                } else {
                    self.out.push((to.addr, plain));
                }
            }
            if dead {
                self.died(now);
            }
        }
        self.reconcile(now);
    }
}
