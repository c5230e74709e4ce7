use bytes::Bytes;
use photon_raft::{
    Command, GroupId, Machine, MachineError, NoTransport, NodeId, Position, ProposeError, Role, Store,
    StoreConfig, StoreError,
};
use photon_rt::disk::{Disk, RealDisk, SimDisk};
use std::sync::{Arc, Mutex};

/// Remembers all commands; what was checkpointed survives a restart.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<JournalState>>);

#[derive(Clone, Default)]
struct JournalState {
    at: Position,
    commands: Vec<Bytes>,
    durable: Option<Box<JournalState>>,
}

impl Journal {
    fn commands(&self) -> Vec<Bytes> {
        self.0.lock().unwrap().commands.clone()
    }

    /// What a crash leaves.
    fn after_crash(&self) -> Journal {
        let durable = self.0.lock().unwrap().durable.clone().unwrap_or_default();
        Journal(Arc::new(Mutex::new(JournalState { durable: Some(durable.clone()), ..*durable })))
    }
}

impl Machine for Journal {
    type Reply = usize;

    fn apply(&mut self, commands: &[Command]) -> Result<Vec<usize>, MachineError> {
        let mut s = self.0.lock().unwrap();
        let mut out = Vec::new();
        for c in commands {
            match &c.data[..] {
                b"panic" => panic!("asked for"),
                b"error" => return Err(MachineError("asked for".into())),
                _ => {}
            }
            s.commands.push(c.data.clone());
            s.at = c.position;
            out.push(s.commands.len());
        }
        Ok(out)
    }

    fn applied(&self) -> Position {
        self.0.lock().unwrap().at
    }

    fn checkpoint(&mut self) -> Result<Position, MachineError> {
        let mut s = self.0.lock().unwrap();
        s.durable = Some(Box::new(JournalState { durable: None, ..s.clone() }));
        Ok(s.at)
    }

    fn snapshot(
        &self,
    ) -> Result<(Position, Box<dyn Iterator<Item = Result<Bytes, MachineError>> + Send>), MachineError> {
        Err(MachineError("not in this test".into()))
    }

    fn restore(
        &mut self,
        _at: Position,
        _chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError> {
        Err(MachineError("not in this test".into()))
    }
}

const ME: NodeId = NodeId(1);

fn open(disk: &Arc<dyn Disk>) -> Store {
    Store::open(StoreConfig::new(ME), disk.clone(), NoTransport).expect("open")
}

#[tokio::test]
async fn one_node_on_a_real_disk_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().expect("dir");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).expect("disk"));
    let mut machine = Journal::default();
    let mut expected = 0;
    for round in 0..3 {
        let store = open(&disk);
        let group = store.create_group(GroupId(7), &[ME], machine.clone()).await.expect("group");
        assert_eq!(group.status().role, Role::Leader, "a group of one leads at once");
        group.read_index().await.expect("read");
        assert_eq!(machine.commands().len(), expected, "the log was replayed before the read returned");
        let mut answers = Vec::new();
        for i in 0..50 {
            let group = group.clone();
            let command = Bytes::from(format!("{round}-{i}"));
            answers.push(async move { group.propose(command).await });
        }
        let mut numbers: Vec<usize> =
            futures::future::join_all(answers).await.into_iter().map(|r| r.expect("done")).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (expected + 1..=expected + 50).collect::<Vec<_>>());
        assert_eq!(group.propose(Bytes::new()).await.expect("an empty command is one"), expected + 51);
        expected += 51;
        group.read_index().await.expect("read");
        match round {
            0 => store.shutdown().await,
            _ => drop(store),
        }
        let error = group.propose(Bytes::from_static(b"late")).await.expect_err("stopped");
        assert!(matches!(error, ProposeError::Stopped(_)), "{error}");
        // The dropped store's threads end by themselves; the crashed machine loses its tail.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        machine = machine.after_crash();
    }
}
