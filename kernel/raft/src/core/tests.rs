use super::*;
use crate::{Change, codec, log::LogConfig};
use bytes::Bytes;
use photon_rt::{disk::SimDisk, time::Duration};
use raft::eraftpb::{Message, MessageType};
use std::sync::Arc;

const ME: NodeId = NodeId(1);

fn core(disk: &SimDisk, config: CoreConfig) -> Core {
    let log_config = LogConfig { segment_bytes: 64 << 10, ..LogConfig::default() };
    Core::new(config, Log::open(Arc::new(disk.clone()), log_config).expect("open"))
}

fn turn(core: &mut Core, inputs: Vec<Input>) -> Vec<Output> {
    let mut out = Vec::new();
    core.turn(Duration::ZERO, inputs, &mut |o| out.push(o)).expect("turn");
    out
}

fn attach(core: &mut Core, id: u64, members: &[NodeId]) -> Vec<Output> {
    let mut out = Vec::new();
    core.attach(GroupId(id), members, Position::default(), &mut |o| out.push(o)).expect("attach");
    out
}

fn propose(group: u64, proposal: u64, size: usize) -> Input {
    Input::Propose { group: GroupId(group), proposal, data: Bytes::from(vec![1; size]) }
}

#[test]
fn a_turn_over_many_groups_is_one_sync() {
    let disk = SimDisk::new(1);
    let mut core = core(&disk, CoreConfig::new(ME));
    for id in 1..=50 {
        attach(&mut core, id, &[ME]);
        assert_eq!(
            core.status(GroupId(id)).expect("there").role,
            Role::Leader,
            "a group of one leads at once"
        );
    }
    assert!(!core.needs_ticks());
    let before = core.with_log(Log::syncs);
    let inputs = (0..500).map(|i| propose(1 + i % 50, i, 10)).collect();
    let out = turn(&mut core, inputs);
    assert_eq!(core.with_log(Log::syncs), before + 1);
    let answered: usize = out
        .iter()
        .map(|o| match o {
            Output::Apply { commands, .. } => commands.iter().filter(|c| c.proposal.is_some()).count(),
            _ => 0,
        })
        .sum();
    assert_eq!(answered, 500);
}

#[test]
fn nothing_is_handed_out_when_the_sync_fails() {
    let disk = SimDisk::new(1);
    let mut core = core(&disk, CoreConfig::new(ME));
    attach(&mut core, 1, &[ME]);
    disk.fail_syncs(1);
    let mut out = Vec::new();
    core.turn(Duration::ZERO, vec![propose(1, 7, 10)], &mut |o| out.push(o)).expect_err("the sync fails");
    assert!(out.is_empty(), "{out:?}");
    core.turn(Duration::ZERO, vec![propose(1, 8, 10)], &mut |o| out.push(o)).expect_err("for good");
    assert!(out.is_empty(), "{out:?}");
}

#[test]
fn a_slow_machine_is_not_flooded() {
    let disk = SimDisk::new(1);
    let config = CoreConfig { max_applying_bytes: 1000, max_message_bytes: 500, ..CoreConfig::new(ME) };
    let mut core = core(&disk, config);
    attach(&mut core, 1, &[ME]);
    let mut out = turn(&mut core, (0..100).map(|i| propose(1, i, 100)).collect());
    let mut next = 0;
    for _ in 0..1000 {
        let mut under_way = 0;
        let mut done = Vec::new();
        for o in out.drain(..) {
            if let Output::Apply { group, commands, position, bytes } = o {
                for c in commands {
                    assert_eq!(c.proposal, Some(next), "in order, none lost");
                    next += 1;
                }
                under_way += bytes;
                done.push(Input::Applied { group, position, bytes });
            }
        }
        assert!(under_way <= 1600, "{under_way} bytes at once");
        if done.is_empty() {
            break;
        }
        out = turn(&mut core, done);
    }
    assert_eq!(next, 100);
    assert!(!core.is_backlogged());
}

#[test]
fn a_read_waits_for_what_was_committed_before_it() {
    let disk = SimDisk::new(1);
    let mut core = core(&disk, CoreConfig::new(ME));
    attach(&mut core, 1, &[ME]);
    let mut out = turn(&mut core, vec![propose(1, 1, 10)]);
    out.extend(turn(&mut core, vec![Input::Read { group: GroupId(1), read: 2 }]));
    let order: Vec<&str> = out
        .iter()
        .filter_map(|o| match o {
            Output::Apply { .. } => Some("apply"),
            Output::ReadReady { read: 2, .. } => Some("read"),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["apply", "read"], "{out:?}");
}

#[test]
fn without_a_quorum_everything_ends_in_time() {
    let disk = SimDisk::new(1);
    let mut core = core(&disk, CoreConfig::new(ME));
    attach(&mut core, 1, &[ME, NodeId(2), NodeId(3)]);
    let refused = |out: &[Output], n: u64| {
        out.iter().any(|o| match o {
            Output::Failed { proposal, error: ProposeError::NotLeader { leader: None }, .. } => {
                *proposal == n
            }
            _ => false,
        })
    };
    let out = turn(&mut core, vec![propose(1, 1, 10), Input::Read { group: GroupId(1), read: 2 }]);
    assert!(!refused(&out, 1), "an election may be under way");
    let out: Vec<Output> = (0..25).flat_map(|_| turn(&mut core, vec![Input::Tick])).collect();
    assert!(refused(&out, 1) && refused(&out, 2), "two election timeouts are enough: {out:?}");
    let out = turn(&mut core, vec![propose(1, 4, 10)]);
    assert!(refused(&out, 4), "nobody else has to find out anew: {out:?}");
    assert_ne!(core.status(GroupId(1)).expect("there").role, Role::Leader);
    assert_eq!(core.status(GroupId(1)).expect("there").term, 1, "pre-votes do not raise the term");
    let out = turn(&mut core, vec![propose(9, 3, 1)]);
    assert!(matches!(out[..], [Output::Failed { proposal: 3, .. }]), "no such group");
}

#[test]
fn an_idle_group_frees_old_segments_for_a_busy_one() {
    let disk = SimDisk::new(1);
    let config = CoreConfig { checkpoint_bytes: 32 << 10, ..CoreConfig::new(ME) };
    let mut core = core(&disk, config);
    let mut attached = attach(&mut core, 1, &[ME]);
    attached.extend(attach(&mut core, 2, &[ME]));
    let mut at = [Position::default(); 3];
    for i in 0..3000 {
        let mut out = turn(&mut core, vec![propose(1, i, 500)]);
        out.append(&mut attached);
        while !out.is_empty() {
            let mut inputs = Vec::new();
            for o in out.drain(..) {
                match o {
                    Output::Apply { group, position, bytes, .. } => {
                        at[group.0 as usize] = position;
                        inputs.push(Input::Applied { group, position, bytes });
                    }
                    Output::Checkpoint { group } => {
                        let position = at[group.0 as usize];
                        inputs.push(Input::Checkpointed { group, position, machine: position });
                    }
                    _ => {}
                }
            }
            if inputs.is_empty() {
                break;
            }
            out = turn(&mut core, inputs);
        }
    }
    let (segments, bytes) = core.with_log(|l| (l.segments(), l.bytes()));
    assert!(segments <= 5, "{segments} segments of {bytes} bytes are left");
}

fn notices(out: &[Output]) -> Vec<(NodeId, codec::Notice)> {
    let notice = |o: &Output| match o {
        Output::Send { to, message, .. } if codec::is_notice(message) => {
            Some((*to, codec::decode_notice(message.clone()).expect("ours").2))
        }
        _ => None,
    };
    out.iter().filter_map(notice).collect()
}

fn change(change: Change) -> Input {
    Input::Change { group: GroupId(1), proposal: 99, changes: vec![change] }
}

#[test]
fn who_was_removed_is_told_and_nobody_else() {
    let disk = SimDisk::new(1);
    let mut core = core(&disk, CoreConfig::new(ME));
    let mut position = Position::default();
    let mut turn = |core: &mut Core, input: Input| {
        let out = turn(core, vec![input]);
        for o in &out {
            if let Output::Apply { position: at, .. } = o {
                position = *at;
            }
        }
        core.turn(Duration::ZERO, [Input::Applied { group: GroupId(1), position, bytes: 0 }], &mut |_| {})
            .expect("turn");
        out
    };
    attach(&mut core, 1, &[ME]);
    turn(&mut core, propose(1, 1, 10));
    let two = NodeId(2);
    turn(&mut core, change(Change::Learner(two)));
    let joined = core.status(GroupId(1)).expect("there").commit;
    let ask = |commit| Input::Notice { group: GroupId(1), from: two, notice: codec::Notice::Ask { commit } };
    assert_eq!(notices(&turn(&mut core, ask(joined))), [], "a member");
    turn(&mut core, change(Change::Remove(two)));
    let as_of = core.status(GroupId(1)).expect("there").commit;
    assert_eq!(notices(&turn(&mut core, ask(joined))), [(two, codec::Notice::Removed { as_of })]);
    assert_eq!(notices(&turn(&mut core, ask(as_of))), [], "who knows as much as this node knows itself");
    // It is told, too, when it campaigns, and gets no vote.
    let mut vote = Message { from: 2, to: 1, term: 99, commit: joined, index: 99, ..Message::default() };
    vote.set_msg_type(MessageType::MsgRequestVote);
    let out = turn(&mut core, Input::Message { group: GroupId(1), message: vote });
    assert_eq!(notices(&out), [(two, codec::Notice::Removed { as_of })]);
    assert_eq!(core.status(GroupId(1)).expect("there").role, Role::Leader, "and does not disturb");
}

#[test]
fn who_was_removed_asks_and_then_keeps_quiet() {
    let disk = SimDisk::new(1);
    let mut core = core(&disk, CoreConfig::new(ME));
    attach(&mut core, 1, &[ME, NodeId(2), NodeId(3)]);
    let mut asked = Vec::new();
    for _ in 0..50 {
        asked.extend(notices(&turn(&mut core, vec![Input::Tick])));
    }
    let ask = codec::Notice::Ask { commit: 1 };
    assert_eq!(asked, [(NodeId(2), ask), (NodeId(3), ask)].repeat(2), "at 20 and 40");
    let told = |from, as_of| Input::Notice {
        group: GroupId(1),
        from: NodeId(from),
        notice: codec::Notice::Removed { as_of },
    };
    turn(&mut core, vec![told(9, 100), told(2, 1)]);
    assert!(!core.status(GroupId(1)).expect("there").removed, "a stranger, and old news");
    turn(&mut core, vec![told(2, 2)]);
    assert!(core.status(GroupId(1)).expect("there").removed);
    for _ in 0..100 {
        let out = turn(&mut core, vec![Input::Tick]);
        assert!(!out.iter().any(|o| matches!(o, Output::Send { .. })), "{out:?}");
    }
    let out = turn(&mut core, vec![propose(1, 5, 10)]);
    let refused =
        |o: &Output| matches!(o, Output::Failed { proposal: 5, error: ProposeError::NotLeader { .. }, .. });
    assert!(out.iter().any(refused), "{out:?}");
}

#[test]
fn the_heir_is_told_until_it_leads() {
    let disks: Vec<SimDisk> = (0..2).map(SimDisk::new).collect();
    let members = [ME, NodeId(2)];
    let mut both: Vec<Core> =
        (0..2).map(|i| core(&disks[i], CoreConfig::new(NodeId(i as u64 + 1)))).collect();
    for core in &mut both {
        attach(core, 1, &members);
    }
    // Carries messages until there are none, but for the first `lost` that ask for an election.
    let mut lost = 0;
    let mut carry = |both: &mut Vec<Core>, first: usize, input: Input, mut lose: usize| {
        let mut to_do = std::collections::VecDeque::from([(first, input)]);
        while let Some((to, input)) = to_do.pop_front() {
            for o in turn(&mut both[to], vec![input]) {
                match o {
                    Output::Send { to, message, .. } if !codec::is_notice(&message) => {
                        let group = GroupId(1);
                        let message = codec::decode_message(message).expect("ours");
                        if message.get_msg_type() == MessageType::MsgTimeoutNow && lose > 0 {
                            (lose, lost) = (lose - 1, lost + 1);
                            continue;
                        }
                        to_do.push_back((to.0 as usize - 1, Input::Message { group, message }));
                    }
                    Output::Apply { group, position, bytes, .. } => {
                        to_do.push_back((to, Input::Applied { group, position, bytes }));
                    }
                    _ => {}
                }
            }
        }
    };
    let leads = |both: &[Core], i: usize| both[i].status(GroupId(1)).expect("there").role == Role::Leader;
    while !leads(&both, 0) {
        carry(&mut both, 0, Input::Tick, 0);
    }
    carry(&mut both, 0, Input::Transfer { group: GroupId(1), to: NodeId(2) }, 1);
    assert!(leads(&both, 0), "it has not heard of it");
    carry(&mut both, 0, Input::Tick, 0);
    assert!(leads(&both, 1) && lost == 1);
}
