//! Snapshots in the simulator: made chunk by chunk while commands are applied, carried piece by piece over
//! connections that break, with kills in the middle, by the code that real nodes use.

use super::{
    Workload,
    cluster::{Cluster, Event},
    node::GROUP,
};
use crate::{
    Position, codec,
    core::Input,
    snapshot::{Chunks, Made, Maker, Next, Outcome, Refusal, piece_sum},
};
use bytes::Bytes;
use std::sync::Arc;

/// So short that a snapshot of the simulated machine is many.
const PIECE: usize = 50;
/// Whoever hears nothing for so long gives up. Virtual milliseconds.
const SILENCE_MS: u64 = 1500;

/// A snapshot on its way, on the sender's side.
pub(super) struct Sending {
    to: usize,
    made: Arc<Made>,
    /// Where the next piece begins; none while the receiver has not answered.
    at: Option<u64>,
    /// Rises with everything that happens.
    life: u64,
}

/// What travels on a connection.
#[derive(Clone)]
pub(super) enum Parcel {
    Announce(Bytes),
    GoOn(u64),
    Piece { id: u64, at: u64, bytes: Bytes, sum: u32 },
    End(Outcome),
}

impl<W: Workload> Cluster<W> {
    /// The machine's snapshot is begun.
    pub(super) fn begin_snapshot(&mut self, node: usize, at: Position, chunks: Chunks) -> Input {
        let n = &mut self.nodes[node];
        let live = n.live.as_mut().expect("it works");
        match Maker::begin(Arc::new(n.disk.clone()), GROUP, at, chunks) {
            Ok(maker) => {
                live.making.push_back(maker);
                let epoch = n.epoch;
                self.plan(1, Event::Make { node, epoch });
                Input::SnapshotBegun { group: GROUP, position: at }
            }
            Err(_) => Input::Snapshot { group: GROUP, made: None },
        }
    }

    /// The next chunk is written.
    pub(super) fn make(&mut self, node: usize, epoch: u64) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let wait = n.paused_until.saturating_sub(now);
        let Some(live) = n.live.as_mut().filter(|_| n.epoch == epoch) else { return };
        if wait > 0 {
            self.plan(wait, Event::Make { node, epoch });
            return;
        }
        let Some(maker) = live.making.front_mut() else { return };
        let made = match maker.step() {
            Ok(Some(_)) => {
                let after = self.rng.below(12);
                self.plan(after, Event::Make { node, epoch });
                return;
            }
            Ok(None) => live.making.pop_front().expect("just seen").finish().ok(),
            Err(_) => None,
        };
        if made.is_none() {
            live.making.pop_front();
        }
        live.inbox.push(Input::Snapshot { group: GROUP, made: made.map(Arc::new) });
        self.report.made += 1;
        self.plan_turn(node, 0);
    }

    /// The driver wants a snapshot carried.
    pub(super) fn send_snapshot(&mut self, from: usize, to: usize, message: Bytes, made: Arc<Made>) {
        self.connections += 1;
        let line = self.connections;
        let Some(live) = &mut self.nodes[from].live else { return };
        live.sending.insert(line, Sending { to, made, at: None, life: 0 });
        self.post(from, to, line, Parcel::Announce(message));
        self.wait_for(from, line, 0);
    }

    fn wait_for(&mut self, node: usize, line: u64, life: u64) {
        let epoch = self.nodes[node].epoch;
        self.plan(SILENCE_MS, Event::Silence { node, epoch, line, life });
    }

    pub(super) fn silence(&mut self, node: usize, epoch: u64, line: u64, life: u64) {
        let n = &self.nodes[node];
        let sending = n.live.as_ref().filter(|_| n.epoch == epoch).and_then(|l| l.sending.get(&line));
        match sending.map(|s| s.life) {
            Some(now) if now == life => self.sent(node, line, Outcome::Broken),
            Some(now) => self.wait_for(node, line, now),
            None => {}
        }
    }

    /// Puts a parcel on a connection: in order, unless it is doubled; lost, it breaks the order, which the
    /// receiver must notice.
    fn post(&mut self, from: usize, to: usize, line: u64, parcel: Parcel) {
        let Some(delays) = self.delays(from, to) else { return };
        for (i, delay) in delays.into_iter().enumerate() {
            let last = self.lines.entry((line, from)).or_insert(0);
            let at = if i == 0 { (self.now + delay).max(*last) } else { self.now + delay };
            *last = at.max(*last);
            self.plan(at - self.now, Event::Parcel { from, to, line, parcel: parcel.clone() });
        }
    }

    /// The next piece leaves.
    pub(super) fn pump(&mut self, node: usize, epoch: u64, line: u64) {
        let now = self.now;
        let n = &mut self.nodes[node];
        let wait = n.paused_until.saturating_sub(now);
        let Some(live) = n.live.as_mut().filter(|_| n.epoch == epoch) else { return };
        let Some(s) = live.sending.get_mut(&line) else { return };
        let Some(at) = s.at.filter(|at| *at < s.made.descriptor().size) else { return };
        if wait > 0 {
            self.plan(wait, Event::Pump { node, epoch, line });
            return;
        }
        let Ok(bytes) = s.made.read(at, PIECE) else {
            self.sent(node, line, Outcome::Broken);
            return;
        };
        s.at = Some(at + bytes.len() as u64);
        s.life += 1;
        let (to, id) = (s.to, s.made.descriptor().id);
        let parcel = Parcel::Piece { id, at, sum: piece_sum(&bytes), bytes };
        self.post(node, to, line, parcel);
        let after = 1 + self.rng.below(4);
        self.plan(after, Event::Pump { node, epoch, line });
    }

    /// Something arrives on a connection.
    pub(super) fn parcel(&mut self, from: usize, to: usize, line: u64, parcel: Parcel) -> Result<(), String> {
        let wait = self.nodes[to].paused_until.saturating_sub(self.now);
        if self.nodes[to].live.is_none() {
            return Ok(());
        }
        if wait > 0 {
            self.plan(wait, Event::Parcel { from, to, line, parcel });
            return Ok(());
        }
        if self.faulty() && self.rng.percent(2) {
            return Ok(()); // the connection breaks
        }
        if self.faulty() && self.rng.percent(1) {
            // In the middle of it.
            let (victim, power) = (if self.rng.percent(70) { to } else { from }, self.rng.percent(50));
            self.kill(victim, power);
            return Ok(());
        }
        match parcel {
            Parcel::GoOn(at) => {
                let n = &mut self.nodes[to];
                let epoch = n.epoch;
                if let Some(s) =
                    n.live.as_mut().and_then(|l| l.sending.get_mut(&line)).filter(|s| s.at.is_none())
                {
                    (s.at, s.life) = (Some(at), s.life + 1);
                    self.plan(0, Event::Pump { node: to, epoch, line });
                }
                Ok(())
            }
            Parcel::End(outcome) => {
                self.sent(to, line, outcome);
                Ok(())
            }
            taken => self.take(from, to, line, taken),
        }
    }

    /// A receiver's answer to what was sent to it.
    fn take(&mut self, from: usize, to: usize, line: u64, parcel: Parcel) -> Result<(), String> {
        let (sender, status) =
            (self.nodes[from].id, self.nodes[to].live.as_ref().and_then(|l| l.core.status(GROUP)));
        let Some(live) = &mut self.nodes[to].live else { return Ok(()) };
        let answer = match parcel {
            Parcel::Announce(message) => {
                let message = codec::decode_message(message).map_err(|e| format!("an announcement: {e}"))?;
                live.receiver.announce(sender, GROUP, message, status).map(|next| match next {
                    Next::From { id, at, size } => {
                        live.taking.insert(line, (id, size));
                        self.report.resumed += u64::from(at > 0);
                        Some(Parcel::GoOn(at))
                    }
                    Next::Nothing => Some(Parcel::End(Outcome::Sent)),
                })
            }
            Parcel::Piece { id, at, bytes, sum } => {
                // After a refusal the connection is closed.
                let Some((_, size)) = live.taking.get(&line).copied() else { return Ok(()) };
                self.report.pieces += 1;
                live.receiver.piece(GROUP, id, at, &bytes, sum).and_then(|have| {
                    if have < size {
                        return Ok(None);
                    }
                    let message = live.receiver.finish(GROUP, id)?;
                    live.inbox.push(Input::Message { group: GROUP, message });
                    Ok(Some(Parcel::End(Outcome::Sent)))
                })
            }
            Parcel::GoOn(_) | Parcel::End(_) => Ok(None),
        };
        let answer = answer.unwrap_or_else(|e| {
            live.taking.remove(&line);
            let damaged = matches!(e, Refusal::Damaged(_));
            Some(Parcel::End(if damaged { Outcome::Damaged } else { Outcome::Broken }))
        });
        if matches!(answer, Some(Parcel::End(Outcome::Damaged))) {
            // The simulated network and disks flip no bits.
            return Err(format!("{} received a snapshot that is not the one announced", self.nodes[to].id));
        }
        self.plan_turn(to, 0);
        if let Some(answer) = answer {
            self.post(to, from, line, answer);
        }
        Ok(())
    }

    fn sent(&mut self, node: usize, line: u64, outcome: Outcome) {
        let to = match self.nodes[node].live.as_mut().and_then(|l| l.sending.remove(&line)) {
            Some(s) => {
                let (to, id) = (self.nodes[s.to].id, s.made.descriptor().id);
                if let Some(live) = &mut self.nodes[node].live {
                    live.inbox.push(Input::SnapshotSent { group: GROUP, to, id, outcome });
                }
                to
            }
            None => return,
        };
        let id = self.nodes[node].id;
        self.note(format!("{id}: the snapshot for {to} is {outcome:?}"));
        self.plan_turn(node, 0);
    }
}
