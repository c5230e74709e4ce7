//! A client of QEMU's machine protocol: JSON lines over a Unix socket, answers matched by id, events.
//!
//! `qapi` was weighed: it generates thousands of types for the eight commands that we send.
//!
//! Invariants: lines are at most [`LINE_MAX`] bytes and at most [`IN_FLIGHT_MAX`] calls are under way;
//! events beyond [`EVENTS_MAX`] unread ones end the connection (the owner connects again and asks for
//! the status, so nothing is missed silently); when the connection ends, every call fails at once.
//! QEMU serves one QMP connection at a time: an incarnation has exactly one owner of this client.

use super::{command::Command, lines::next_line};
use photon_base::{Code, Error, Result};
use photon_rt::{net::UnixStream, task::Tasks, time::timeout};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::HashMap, path::Path, time::Duration};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    sync::{mpsc, oneshot},
};

/// Longest line accepted; the schema is the longest answer with about 200 KiB.
pub const LINE_MAX: usize = 4 << 20;
/// Most calls under way.
pub const IN_FLIGHT_MAX: usize = 32;
/// Most unread events.
pub const EVENTS_MAX: usize = 256;
/// How long QEMU may take to answer. It answers in milliseconds unless its main loop is blocked.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Something that QEMU tells by itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Event {
    /// As `SHUTDOWN`.
    #[serde(rename = "event")]
    pub name: String,
    /// Its details.
    #[serde(default)]
    pub data: Value,
}

/// What the guest is doing, as `query-status` tells.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// The guest's CPUs run.
    pub running: bool,
    /// As `running`, `paused`, `shutdown`, `prelaunch`, `internal-error`.
    pub status: String,
}

#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Failure>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Failure {
    class: String,
    desc: String,
}

struct Call {
    command: Command,
    answer: oneshot::Sender<Result<Value>>,
}

/// A connection. Clones share it; it ends with the last clone.
#[derive(Clone, Debug)]
pub struct Qmp {
    calls: mpsc::Sender<Call>,
}

fn gone() -> Error {
    Error::unavailable("QEMU's control socket closed")
}

impl Qmp {
    /// Connects, negotiates and starts the connection's task. The receiver ends with the connection.
    pub async fn connect(socket: &Path, tasks: &Tasks) -> Result<(Qmp, mpsc::Receiver<Event>)> {
        let stream = UnixStream::connect(socket).await.map_err(|e| {
            Error::unavailable(format!("QEMU does not answer on {}", socket.display())).why(e)
        })?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        timeout(ANSWER_LIMIT, "QEMU's greeting", async {
            if !next_line(&mut reader, &mut line, LINE_MAX).await? {
                return Err(gone());
            }
            let greeting: Value = serde_json::from_slice(&line)
                .map_err(|e| Error::unavailable("this is not a QMP socket").why(e))?;
            if greeting.get("QMP").is_none() {
                return Err(Error::unavailable("this is not a QMP socket"));
            }
            Ok(())
        })
        .await??;
        let (calls, mut inbox) = mpsc::channel::<Call>(IN_FLIGHT_MAX);
        let (event_tx, events) = mpsc::channel(EVENTS_MAX);
        // The reader owns its half, so that a half-read line is never lost to a cancelled future.
        let (line_tx, mut lines) = mpsc::channel::<Line>(8);
        tasks.spawn("qmp-reader", async move {
            let mut line = Vec::new();
            while let Ok(true) = next_line(&mut reader, &mut line, LINE_MAX).await {
                match serde_json::from_slice(&line) {
                    Ok(parsed) => {
                        if line_tx.send(parsed).await.is_err() {
                            return;
                        }
                    }
                    Err(e) => return tracing::warn!(error = %e, "QEMU sent what is not QMP"),
                }
            }
        });
        tasks.spawn("qmp", async move {
            let mut waiting: HashMap<u64, oneshot::Sender<Result<Value>>> = HashMap::new();
            let mut next_id = 0;
            loop {
                tokio::select! {
                    call = inbox.recv(), if waiting.len() < IN_FLIGHT_MAX => {
                        let Some(Call { command, answer }) = call else { return };
                        next_id += 1;
                        let (name, arguments) = command.wire();
                        let mut text = json!({"execute": name, "arguments": arguments, "id": next_id}).to_string();
                        text.push('\n');
                        waiting.retain(|_, w| !w.is_closed());
                        waiting.insert(next_id, answer);
                        if writer.write_all(text.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                    line = lines.recv() => {
                        let Some(line) = line else { return };
                        if let Some(name) = line.event {
                            // An owner that has dropped its receiver wants no more events, and still
                            // has commands to send; one that reads far too slowly must start anew.
                            let told = event_tx.try_send(Event { name, data: line.data });
                            if matches!(told, Err(mpsc::error::TrySendError::Full(_))) {
                                return;
                            }
                        } else if let Some(w) = line.id.and_then(|id| waiting.remove(&id)) {
                            let _ = w.send(match (line.returned, line.error) {
                                (Some(v), _) => Ok(v),
                                (None, Some(f)) => Err(refusal(&f)),
                                (None, None) => Err(Error::internal("QEMU answered neither result nor error")),
                            });
                        }
                    }
                }
            }
        });
        let qmp = Qmp { calls };
        qmp.call(Command::Capabilities).await?;
        Ok((qmp, events))
    }

    /// Sends `command` and waits for its answer.
    pub async fn call(&self, command: Command) -> Result<Value> {
        let name = command.wire().0;
        timeout(ANSWER_LIMIT, name, async {
            let (answer, wait) = oneshot::channel();
            self.calls.send(Call { command, answer }).await.map_err(|_| gone())?;
            wait.await.map_err(|_| gone())?
        })
        .await?
    }

    /// What the guest is doing.
    pub async fn status(&self) -> Result<Status> {
        serde_json::from_value(self.call(Command::Status).await?)
            .map_err(|e| Error::internal("QEMU's status is not understood").why(e))
    }
}

fn refusal(f: &Failure) -> Error {
    let words: String = f.desc.chars().take(300).collect();
    Error::new(Code::Internal, "QEMU refused the command").why(format!("{}: {words}", f.class))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;

    /// A QEMU that answers each command with the next canned text.
    async fn fake(answers: Vec<String>) -> (Result<(Qmp, mpsc::Receiver<Event>)>, Tasks) {
        let dir = std::env::temp_dir().join(format!("photon-qmp-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir).expect("dir");
        let path = dir.join("s");
        let listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let tasks = Tasks::new();
        tasks.spawn("fake", async move {
            let (s, _) = listener.accept().await.expect("accept");
            let (r, mut w) = s.into_split();
            let mut lines = BufReader::new(r).lines();
            w.write_all(b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\r\n").await.expect("greet");
            for a in answers {
                if lines.next_line().await.ok().flatten().is_none() {
                    return;
                }
                let _ = w.write_all(a.as_bytes()).await;
            }
        });
        let got = Qmp::connect(&path, &tasks).await;
        let _ = photon_rt::fs::remove_dir_all(&dir);
        (got, tasks)
    }

    #[tokio::test]
    async fn answers_events_and_refusals_find_their_way() {
        let (got, _tasks) = fake(vec![
            "{\"return\":{},\"id\":1}\n".into(),
            "{\"event\":\"STOP\",\"timestamp\":{}}\n{\"return\":{},\"id\":99}\n\
             {\"return\":{\"running\":false,\"status\":\"paused\"},\"id\":2}\n"
                .into(),
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"},\"id\":3}\n".into(),
        ])
        .await;
        let (qmp, mut events) = got.expect("connected");
        assert_eq!(qmp.status().await.expect("status").status, "paused");
        assert_eq!(events.recv().await.expect("event").name, "STOP");
        assert!(qmp.call(Command::Cont).await.expect_err("refused").why.contains("no"));
        // The fake is done and closes: calls fail at once, the events end.
        assert_eq!(qmp.call(Command::Stop).await.expect_err("closed").code, Code::Unavailable);
        assert!(events.recv().await.is_none());
    }

    #[tokio::test]
    async fn rubbish_ends_the_connection_without_harm() {
        for bad in [
            "not json\n".to_string(),
            "[1]\n".into(),
            "{\"id\":1}\n".into(),
            format!("{}\n", "x".repeat(LINE_MAX + 1)),
        ] {
            let (got, _tasks) = fake(vec![bad]).await;
            assert!(got.is_err());
        }
    }
}
