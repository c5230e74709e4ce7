//! The host's side of the guest agent's port. The guest is not trusted: its lines are bounded, its
//! answers are matched by id and otherwise dropped, and nothing waits for it without a limit.

use super::lines::next_line;
use photon_base::{Error, Result};
use photon_rt::{
    net::UnixStream,
    time::{Duration, sleep, timeout},
};
use serde::Deserialize;
use serde_json::json;
use std::{collections::HashMap, path::Path, sync::Arc};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    sync::{Mutex, mpsc, oneshot, watch},
};

/// Longest line accepted from a guest.
const LINE_MAX: usize = 16 << 10;
/// Most requests under way.
const IN_FLIGHT_MAX: usize = 16;
/// How long a guest may take to answer; under TCG on a loaded host it needs some tenths of a second.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What a guest tells about itself. Untrusted text.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Info {
    /// Its host name.
    pub hostname: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Its kernel's release.
    pub kernel: String,
}

#[derive(Deserialize)]
struct Line {
    event: Option<String>,
    id: Option<u64>,
    #[serde(default)]
    ok: bool,
    #[serde(default)]
    ready: bool,
    #[serde(default)]
    error: String,
    #[serde(flatten)]
    info: Info,
}

struct Call {
    op: &'static str,
    answer: oneshot::Sender<Result<Info>>,
}

/// A guest's agent. Clones are the same agent.
#[derive(Clone, Debug)]
pub struct Agent {
    calls: mpsc::Sender<Call>,
    inbox: Arc<Mutex<mpsc::Receiver<Call>>>,
    ready: Arc<watch::Sender<bool>>,
}

impl Default for Agent {
    fn default() -> Self {
        let (calls, inbox) = mpsc::channel(IN_FLIGHT_MAX);
        Agent { calls, inbox: Arc::new(Mutex::new(inbox)), ready: Arc::new(watch::Sender::new(false)) }
    }
}

impl Agent {
    /// True once the guest has announced that its network is up (again after every restart of it).
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Facts about the guest.
    pub async fn info(&self) -> Result<Info> {
        self.call("info").await
    }

    /// Asks the guest to power off. Returns when it has agreed, not when it is off.
    pub async fn shutdown(&self) -> Result<()> {
        self.call("shutdown").await.map(drop)
    }

    /// Asks the guest to restart itself.
    pub async fn reboot(&self) -> Result<()> {
        self.call("reboot").await.map(drop)
    }

    /// Only to an agent that has shown itself: what is written to a port that nobody has opened yet
    /// waits there, and would be obeyed when nobody wants it any more.
    async fn call(&self, op: &'static str) -> Result<Info> {
        let gone = || {
            Error::unavailable("the guest agent does not answer")
                .why("no agent in the guest, or the guest is not up")
        };
        if !*self.ready.borrow() {
            return Err(gone());
        }
        timeout(ANSWER_LIMIT, "the guest agent", async {
            let (answer, wait) = oneshot::channel();
            self.calls.send(Call { op, answer }).await.map_err(|_| gone())?;
            wait.await.map_err(|_| gone())?
        })
        .await?
    }

    /// The guest restarts: its agent is gone until it announces itself again.
    pub(super) fn reset(&self) {
        self.ready.send_replace(false);
    }

    /// Serves QEMU's `socket` until `over` becomes true.
    pub(super) async fn serve(&self, socket: &Path, mut over: watch::Receiver<bool>) {
        let mut inbox = self.inbox.lock().await;
        loop {
            tokio::select! {
                _ = over.wait_for(|o| *o) => break,
                () = async {
                    if let Ok(stream) = UnixStream::connect(socket).await {
                        self.session(stream, &mut inbox).await;
                    }
                    sleep(Duration::from_millis(50)).await;
                } => {}
            }
        }
        self.ready.send_replace(false);
    }

    async fn session(&self, stream: UnixStream, inbox: &mut mpsc::Receiver<Call>) {
        let (reader, mut writer) = stream.into_split();
        let (line_tx, mut lines) = mpsc::channel::<Line>(8);
        let read = async move {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            // A line that is too long or not JSON ends the session; a new one starts clean.
            while let Ok(true) = next_line(&mut reader, &mut line, LINE_MAX).await {
                let Ok(parsed) = serde_json::from_slice(&line) else { break };
                if line_tx.send(parsed).await.is_err() {
                    break;
                }
            }
        };
        let mut waiting: HashMap<u64, oneshot::Sender<Result<Info>>> = HashMap::new();
        let mut next_id = photon_rt::entropy::u64() >> 16; // an answer to a session before is not one to this
        let serve = async {
            // The guest announces itself when it sees us come, which it may have missed. Harmless when
            // it is read late.
            let ping = format!("{}\n", json!({"id": next_id, "op": "ping"}));
            if writer.write_all(ping.as_bytes()).await.is_err() {
                return;
            }
            loop {
                tokio::select! {
                    call = inbox.recv() => {
                        let Some(Call { op, answer }) = call else { return };
                        waiting.retain(|_, w| !w.is_closed());
                        if waiting.len() >= IN_FLIGHT_MAX {
                            continue;
                        }
                        next_id += 1;
                        waiting.insert(next_id, answer);
                        if writer.write_all(format!("{}\n", json!({"id": next_id, "op": op})).as_bytes()).await.is_err() {
                            return;
                        }
                    }
                    line = lines.recv() => {
                        let Some(line) = line else { return };
                        if line.event.as_deref() == Some("ready") || (line.ok && line.ready) {
                            self.ready.send_if_modified(|r| !std::mem::replace(r, true));
                        }
                        if let Some(w) = line.id.and_then(|id| waiting.remove(&id)) {
                            let words: String = line.error.chars().take(200).collect();
                            let refused = || Error::unavailable("the guest agent refused").why(words);
                            let _ = w.send(if line.ok { Ok(bounded(line.info)) } else { Err(refused()) });
                        }
                    }
                }
            }
        };
        tokio::select! { () = read => {}, () = serve => {} }
    }
}

fn bounded(mut info: Info) -> Info {
    let cut = |s: &str| s.chars().filter(|c| !c.is_control()).take(253).collect::<String>();
    info.hostname = cut(&info.hostname);
    info.kernel = cut(&info.kernel);
    info.addresses.truncate(64);
    info.addresses.retain(|a| a.parse::<std::net::IpAddr>().is_ok());
    if !info.uptime_seconds.is_finite() {
        info.uptime_seconds = 0.0;
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;

    /// A guest that answers each request with the next text; `ID` stands for the request's id.
    async fn guest(answers: Vec<String>) -> (Agent, photon_rt::task::Tasks, watch::Sender<bool>) {
        let path = std::env::temp_dir().join(format!("photon-agent-{:x}", photon_rt::entropy::u64()));
        let listener = tokio::net::UnixListener::bind(&path).expect("bind");
        let (agent, tasks) = (Agent::default(), photon_rt::task::Tasks::new());
        tasks.spawn("guest", async move {
            let mut answers = answers.into_iter();
            loop {
                let (s, _) = listener.accept().await.expect("accept");
                let (r, mut w) = s.into_split();
                let mut lines = BufReader::new(r).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let request: serde_json::Value = serde_json::from_str(&line).expect("a request");
                    let Some(a) = answers.next() else { std::future::pending().await };
                    let text = a.replace("ID", &request["id"].to_string());
                    if w.write_all(text.as_bytes()).await.is_err() {
                        break;
                    }
                }
            }
        });
        let (over_tx, over) = watch::channel(false);
        let own = agent.clone();
        tasks.spawn("agent", async move {
            own.serve(&path, over).await;
            let _ = photon_rt::fs::remove_file(&path);
        });
        (agent, tasks, over_tx)
    }

    #[tokio::test]
    async fn hostile_guests_are_survived() {
        let (agent, tasks, over) = guest(vec![
            // To the first three connections' pings: no line, no JSON, a line too long.
            "\n".into(),
            "{\"id\":ID,\"ok\":true,\"addresses\":7}\n".into(),
            format!("{{\"x\":\"{}\"}}\n", "y".repeat(LINE_MAX)),
            "{\"event\":\"other\"}\n{\"id\":1,\"ok\":true}\n{\"id\":ID,\"ok\":true,\"ready\":true}\n".into(),
            "{\"id\":ID,\"ok\":true,\"hostname\":\"a\\u001b[2J\",\"addresses\":[\"10.0.0.1\",\"; rm\"],\"uptime_seconds\":1e999}\n"
                .replace("1e999", "1.5"),
            "{\"id\":ID,\"ok\":false,\"error\":\"no\"}\n".into(),
        ])
        .await;
        assert!(agent.info().await.is_err(), "nothing is asked before the agent has shown itself");
        agent.ready().wait_for(|r| *r).await.expect("ready");
        let info = agent.info().await.expect("info");
        assert_eq!((info.hostname.as_str(), info.addresses), ("a[2J", vec!["10.0.0.1".to_string()]));
        assert_eq!(agent.shutdown().await.expect_err("refused").why, "no");
        over.send_replace(true);
        agent.ready().wait_for(|r| !*r).await.expect("gone");
        tasks.shutdown().await;
    }
}
