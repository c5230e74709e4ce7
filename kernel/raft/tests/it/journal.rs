use bytes::Bytes;
use photon_raft::{Command, Machine, MachineError, Position, snapshot::Chunks};
use std::sync::{Arc, Mutex};

/// Remembers all commands; what was checkpointed survives a restart.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<JournalState>>);

#[derive(Clone, Default)]
struct JournalState {
    at: Position,
    commands: Vec<Bytes>,
    durable: Option<Box<JournalState>>,
}

impl Journal {
    pub fn commands(&self) -> Vec<Bytes> {
        self.0.lock().unwrap().commands.clone()
    }

    /// Pretends to be elsewhere.
    pub fn set_position(&self, at: Position) {
        self.0.lock().unwrap().at = at;
    }

    /// What a crash leaves.
    pub fn after_crash(&self) -> Journal {
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

    fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
        let s = self.0.lock().unwrap();
        let chunks: Vec<_> = s.commands.iter().cloned().map(Ok).collect();
        Ok((s.at, Box::new(chunks.into_iter())))
    }

    fn restore(
        &mut self,
        at: Position,
        chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError> {
        let commands = chunks.collect::<Result<Vec<_>, _>>()?;
        let mut s = self.0.lock().unwrap();
        *s = JournalState { at, commands, durable: None };
        s.durable = Some(Box::new(s.clone()));
        Ok(())
    }
}
