//! A whole cluster in one thread, from one seed: real cores and seals on a virtual clock and a bad network.
//!
//! While faults go on, nodes are killed, restarted (some at another address, some with a clock that went
//! back a year), paused, told other facts, made deaf or mute; links are cut in one direction; the network
//! splits; packets are lost, delayed, doubled, flipped, and replayed much later; a foreign cluster knocks
//! on every door. All the time a judge ([`judge`]) compares what each node sees with what is so.

mod faults;
mod judge;
mod tests;

use crate::{
    bug::Bugs,
    core::{Core, Now, Start, Timings},
    counters::Counters,
    peer::{Facts, Seen},
    seal::{GossipKey, Seal},
};
use judge::Judge;
use photon_base::{Name, Timestamp};
use photon_rt::entropy::Rng;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

/// 2026-01-01 in milliseconds.
const WALL: u64 = 1_767_225_600_000;
/// Packets that a paused process's socket keeps.
const SOCKET_MAX: usize = 128;

/// Shape of a run. Times in virtual milliseconds.
#[derive(Clone, Debug)]
struct SimConfig {
    nodes: usize,
    /// Percent of packets lost, always.
    loss: u64,
    /// Mean time between faults; 0: none.
    fault_every: u64,
    /// Only pauses as faults.
    only_pauses: bool,
    foreign: usize,
    /// Packets come back much later, at any node.
    replays: bool,
    bugs: Bugs,
}

struct Process {
    core: Core,
    seal: Seal,
    view: BTreeMap<Name, Seen>,
    counters: Arc<Counters>,
}

struct Host {
    name: Name,
    addr: SocketAddr,
    process: Option<Process>,
    facts: Facts,
    foreign: bool,
    paused_until: u64,
    deaf_until: u64,
    mute_until: u64,
    restart_at: u64,
    wall_offset: i64,
    inbox: VecDeque<Vec<u8>>,
    /// Nothing was wrong with this host since.
    well_since: u64,
    sent: u64,
    moves: u16,
}

struct World {
    config: SimConfig,
    rng: Rng,
    now: u64,
    hosts: Vec<Host>,
    at: BTreeMap<SocketAddr, usize>,
    wires: BTreeMap<(u64, u64), (SocketAddr, Vec<u8>)>,
    packets: u64,
    captured: Vec<Vec<u8>>,
    /// Directed pairs that are cut, and until when.
    cuts: BTreeMap<(usize, usize), u64>,
    /// One side of a split network, and until when.
    split: Option<(BTreeSet<usize>, u64)>,
    /// Nothing was wrong with the whole network since.
    whole_since: u64,
    next_fault: u64,
    judge: Judge,
}

fn name(i: usize) -> Name {
    format!("node-{i}").parse().unwrap()
}

fn address(i: usize, moves: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (i / 250) as u8, (i % 250 + 1) as u8], 2381 + moves))
}

fn facts(text: String) -> Facts {
    Facts::from([("api".to_string(), text), ("version".to_string(), "1.0.0".to_string())])
}

impl World {
    /// All hosts are started within two seconds; each knows the first and the last.
    fn new(config: SimConfig, seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let all = config.nodes + config.foreign;
        let hosts = (0..all).map(|i| Host {
            name: if i < config.nodes { name(i) } else { format!("foreign-{i}").parse().unwrap() },
            addr: address(i, 0),
            process: None,
            facts: facts(format!("https://{i}:0")),
            foreign: i >= config.nodes,
            paused_until: 0,
            deaf_until: 0,
            mute_until: 0,
            restart_at: 1 + rng.below(2_000),
            wall_offset: rng.below(600_000) as i64 - 300_000,
            inbox: VecDeque::new(),
            well_since: 0,
            sent: 0,
            moves: 0,
        });
        let hosts: Vec<Host> = hosts.collect();
        World {
            at: hosts.iter().enumerate().map(|(i, h)| (h.addr, i)).collect(),
            judge: Judge::new(config.nodes),
            next_fault: if config.fault_every > 0 { 30_000 } else { u64::MAX },
            config,
            rng,
            now: 0,
            hosts,
            wires: BTreeMap::new(),
            packets: 0,
            captured: Vec::new(),
            cuts: BTreeMap::new(),
            split: None,
            whole_since: 0,
        }
    }

    fn clock(&self, i: usize) -> Now {
        let wall = (WALL + self.now).saturating_add_signed(self.hosts[i].wall_offset);
        Now { mono: Duration::from_millis(self.now), wall: Timestamp(wall) }
    }

    fn seeds(&self, i: usize) -> Vec<SocketAddr> {
        let last = self.config.nodes - 1;
        let mut seeds = vec![self.hosts[0].addr, self.hosts[last].addr];
        // Each cluster has addresses of the other: they were reused.
        seeds
            .extend(self.hosts.iter().filter(|h| h.foreign != self.hosts[i].foreign).map(|h| h.addr).take(3));
        seeds.extend(self.hosts.iter().filter(|h| h.foreign && self.hosts[i].foreign).map(|h| h.addr));
        seeds
    }

    fn start(&mut self, i: usize) {
        let (now, seed) = (self.clock(i), self.rng.next_u64());
        let mut process = [0; 16];
        process[..8].copy_from_slice(&self.rng.next_u64().to_be_bytes());
        let seeds = self.seeds(i);
        let bugs = self.config.bugs;
        let h = &mut self.hosts[i];
        h.restart_at = u64::MAX;
        h.well_since = self.now;
        let start = Start {
            name: h.name.clone(),
            addr: h.addr,
            facts: h.facts.clone(),
            seeds,
            timings: Timings::default(),
            bugs,
        };
        let counters = Arc::new(Counters::default());
        let core = Core::new(start, now, seed, counters.clone());
        let key = GossipKey::new([if h.foreign { 2 } else { 1 }; 32]);
        let seal = Seal::new(&key, process, bugs);
        h.process = Some(Process { core, seal, view: BTreeMap::new(), counters });
        self.flush(i);
    }

    /// SIGKILL.
    fn kill(&mut self, i: usize) {
        let h = &mut self.hosts[i];
        h.process = None;
        h.inbox.clear();
        h.paused_until = 0;
        h.restart_at = u64::MAX;
        h.well_since = self.now;
    }

    fn cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains_key(&(from, to))
            || self.hosts[from].mute_until > self.now
            || self.hosts[to].deaf_until > self.now
            || self.split.as_ref().is_some_and(|(side, _)| side.contains(&from) != side.contains(&to))
    }

    fn put(&mut self, to: SocketAddr, packet: Vec<u8>) {
        let slow = if self.rng.percent(1) { self.rng.below(400) } else { 0 };
        self.packets += 1;
        self.wires.insert((self.now + 1 + self.rng.below(20) + slow, self.packets), (to, packet));
    }

    fn flush(&mut self, i: usize) {
        let Some(p) = self.hosts[i].process.as_mut() else { return };
        let out: Vec<(SocketAddr, Vec<u8>)> = p
            .core
            .take()
            .into_iter()
            .map(|(to, plain)| (to, p.seal.seal(&plain).expect("it fits")))
            .collect();
        if let Some(view) = p.core.view_if_changed() {
            p.view = view;
        }
        for (to, packet) in out {
            self.hosts[i].sent += packet.len() as u64;
            let arrives = self.at.get(&to).is_some_and(|t| !self.cut(i, *t));
            if self.rng.percent(1) && self.captured.len() < 400 {
                self.captured.push(packet.clone());
            }
            if self.config.replays && self.rng.percent(1) && !self.captured.is_empty() {
                let n = self.rng.below(self.captured.len() as u64) as usize;
                let old = self.captured[n].clone();
                let target = self.hosts[self.rng.below(self.hosts.len() as u64) as usize].addr;
                self.put(target, old);
            }
            if !arrives || self.rng.percent(self.config.loss) {
                continue;
            }
            if self.rng.percent(1) {
                self.put(to, packet.clone());
            }
            let mut packet = packet;
            if self.rng.below(300) == 0 {
                let n = self.rng.below(packet.len() as u64) as usize;
                packet[n] ^= 1 << self.rng.below(8);
            }
            self.put(to, packet);
        }
    }

    fn deliver(&mut self, i: usize, mut packet: Vec<u8>) {
        let now = self.clock(i);
        let h = &mut self.hosts[i];
        if h.paused_until > self.now {
            if h.inbox.len() < SOCKET_MAX {
                h.inbox.push_back(packet);
            }
            return;
        }
        let Some(p) = h.process.as_mut() else { return };
        if let Some(opened) = p.seal.open(&mut packet) {
            p.core.packet(now, opened.counter, opened.plain);
        }
        self.flush(i);
    }

    fn deadline(h: &Host) -> u64 {
        let Some(p) = &h.process else { return h.restart_at };
        (p.core.deadline().as_micros().div_ceil(1000) as u64).max(h.paused_until)
    }

    /// Goes on until `until`. An error is a broken promise.
    fn run(&mut self, until: u64) -> Result<(), String> {
        while self.now < until {
            let wire = self.wires.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            let host = self.hosts.iter().map(Self::deadline).min().unwrap_or(u64::MAX);
            let next = wire.min(host).min(self.next_fault).min(self.judge.next).max(self.now);
            self.now = next.min(until);
            if self.now < next {
                break;
            }
            self.heal_what_is_over();
            if self.next_fault <= self.now {
                self.fault();
            }
            while let Some(entry) = self.wires.first_entry().filter(|e| e.key().0 <= self.now) {
                let (to, packet) = entry.remove();
                if let Some(i) = self.at.get(&to).copied() {
                    self.deliver(i, packet);
                }
            }
            for i in 0..self.hosts.len() {
                if Self::deadline(&self.hosts[i]) > self.now {
                    continue;
                }
                let now = self.clock(i);
                match self.hosts[i].process.as_mut() {
                    None => self.start(i),
                    Some(p) => {
                        p.core.tick(now);
                        self.flush(i);
                        // After a pause deadlines come first, the worse order for the accused.
                        while let Some(packet) = self.hosts[i].inbox.pop_front() {
                            self.deliver(i, packet);
                        }
                    }
                }
            }
            if self.judge.next <= self.now {
                judge::look(self)?;
            }
        }
        Ok(())
    }

    fn running(&self) -> Vec<usize> {
        (0..self.config.nodes).filter(|i| self.hosts[*i].process.is_some()).collect()
    }
}
