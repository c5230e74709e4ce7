//! One incarnation while photon looks after it: the task that owns its QMP connection, notices its
//! end and writes that down.
//!
//! Invariant: `exit.json` is written before anything is told about an end, and by this task alone.

use super::{
    agent::Agent,
    args::file,
    command::Command,
    console::Console,
    launch::Launch,
    process::{self, Process},
    qmp::Qmp,
    record::{Cause, Exit, Records, Started},
};
use photon_base::{Error, Result, Timestamp, Uid};
use photon_rt::{
    task::{Tasks, blocking},
    time::{Duration, sleep, timeout, wall},
};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{broadcast, watch};

/// What is so about an incarnation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Nothing of it is on this host, or it was recorded and never started.
    Absent,
    /// Its QEMU lives.
    Running(Running),
    /// It has ended and will not run again.
    Exited(Exit),
}

/// A living QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its process id.
    pub pid: u32,
    /// When it was started.
    pub since: Timestamp,
    /// QEMU's own word: `running`, `paused`, `io-error`, …; `starting` until QEMU has answered.
    pub status: String,
    /// The guest agent has announced that the guest's network is up.
    pub ready: bool,
}

impl Running {
    /// The guest's CPUs are stopped.
    pub fn paused(&self) -> bool {
        self.status == "paused"
    }
}

#[derive(Clone, Debug)]
pub(super) enum State {
    /// Recorded, not started.
    New,
    Alive {
        started: Started,
        status: String,
    },
    Ended(Exit),
    /// QEMU ended before it answered once; its last words.
    Failed(String),
}

pub(super) struct Vm {
    pub launch: Launch,
    pub dir: PathBuf,
    pub state: watch::Sender<State>,
    pub console: Console,
    pub agent: Agent,
    pub process: Mutex<Option<Arc<Process>>>,
    pub qmp: Mutex<Option<Qmp>>,
    /// Somebody asked for the end, so a death is not a crash.
    pub stopping: AtomicBool,
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner) // an Option: never half set
}

/// A guest waits for its console so long, and then begins without.
const CONSOLE_WAIT: Duration = Duration::from_secs(5);

/// How often QEMU's log is looked at.
const LOG_PERIOD: Duration = Duration::from_secs(30);

/// How a QMP session ended.
enum Session {
    GuestOff,
    Broken,
}

impl Vm {
    pub fn new(launch: Launch, records: &Records, state: State) -> Arc<Vm> {
        let dir = records.dir(launch.id);
        Arc::new(Vm {
            console: Console::open(&dir),
            dir,
            launch,
            state: watch::Sender::new(state),
            agent: Agent::default(),
            process: Mutex::new(None),
            qmp: Mutex::new(None),
            stopping: AtomicBool::new(false),
        })
    }

    pub fn observed(&self) -> Observed {
        match &*self.state.borrow() {
            State::New | State::Failed(_) => Observed::Absent,
            State::Ended(exit) => Observed::Exited(*exit),
            State::Alive { started, status } => Observed::Running(Running {
                pid: started.pid,
                since: started.at,
                status: status.clone(),
                ready: *self.agent.ready().borrow(),
            }),
        }
    }

    pub fn process(&self) -> Option<Arc<Process>> {
        lock(&self.process).clone()
    }

    /// Sends a command to the living QEMU.
    pub async fn command(&self, command: Command) -> Result<()> {
        let qmp = lock(&self.qmp).clone();
        let qmp = qmp.ok_or_else(|| {
            Error::unavailable(format!("VM {} was not told to {}", self.launch.name, command.wire().0))
                .why("its QEMU does not answer (any more)")
        })?;
        qmp.call(command).await?;
        if let Ok(now) = qmp.status().await {
            self.set_status(&now.status);
        }
        Ok(())
    }

    fn set_status(&self, now: &str) {
        self.state.send_if_modified(|s| match s {
            State::Alive { status, .. } if status != now => {
                now.clone_into(status);
                true
            }
            _ => false,
        });
    }

    /// Looks after `process` until it has ended; starts the tasks that serve its sockets. `fresh`: this
    /// photon has just started it, so an end before the first answer is a failed start.
    pub fn supervise(
        self: &Arc<Self>,
        process: Process,
        started: Started,
        fresh: bool,
        records: Records,
        tasks: &Tasks,
        changes: broadcast::Sender<Uid>,
    ) {
        let process = Arc::new(process);
        *lock(&self.process) = Some(process.clone());
        self.stopping.store(false, Ordering::SeqCst);
        self.state.send_replace(State::Alive { started, status: "starting".into() });
        let (over_tx, over) = watch::channel(false);
        let (vm, end) = (self.clone(), over.clone());
        tasks.spawn("console", async move { vm.console.serve(&vm.dir.join(file::SERIAL), end).await });
        let (vm, tx, mut end) = (self.clone(), changes.clone(), over.clone());
        tasks.spawn("agent-watch", async move {
            let mut ready = vm.agent.ready();
            loop {
                tokio::select! {
                    _ = end.wait_for(|o| *o) => return,
                    changed = ready.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let _ = tx.send(vm.launch.id);
                    }
                }
            }
        });
        let (vm, end) = (self.clone(), over);
        tasks.spawn("agent", async move { vm.agent.serve(&vm.dir.join(file::AGENT), end).await });
        let (vm, own) = (self.clone(), tasks.clone());
        tasks.spawn("vm", async move {
            let mut met = !fresh;
            let mut guest_off = false;
            loop {
                let step = tokio::select! {
                    end = process.wait() => {
                        if end.is_err() {
                            sleep(Duration::from_millis(100)).await; // out of descriptors: look by hand
                        }
                        if process.alive() { continue } else { break }
                    }
                    step = vm.session(&own, &mut met, &changes) => step,
                };
                match step {
                    Session::Broken => sleep(Duration::from_millis(10)).await,
                    Session::GuestOff => {
                        guest_off = true;
                        // First the record: QEMU's death right after must not look like a crash.
                        vm.conclude(Cause::GuestShutdown, None, &records).await;
                        let _ = vm.command(Command::Quit).await;
                        if timeout(Duration::from_secs(3), "QEMU's end", process.wait()).await.is_err() {
                            process.kill();
                        }
                    }
                }
            }
            lock(&vm.qmp).take();
            let status = process.reap();
            lock(&vm.process).take();
            over_tx.send_replace(true);
            let cause = match () {
                () if guest_off => Cause::GuestShutdown,
                () if vm.stopping.load(Ordering::SeqCst) => Cause::Stopped,
                () => Cause::Crash,
            };
            if met {
                let exit = vm.conclude(cause, status, &records).await;
                vm.state.send_replace(State::Ended(exit));
            } else {
                let _ = records.unset_started(vm.launch.id);
                vm.state.send_replace(State::Failed(process::log_tail(&vm.dir)));
            }
            let _ = changes.send(vm.launch.id);
        });
    }

    /// Writes down how it ended; what was written first stays.
    async fn conclude(&self, cause: Cause, status: Option<i32>, records: &Records) -> Exit {
        let exit = Exit { cause, status, at: wall() };
        let (id, records) = (self.launch.id, records.clone());
        match blocking(move || records.set_exit(id, exit)).await {
            Ok(first) => first,
            Err(error) => {
                // The folder may be going away under us (remove), or the disk is full: the process
                // table still tells the next photon that it has ended.
                tracing::warn!(vm = %self.launch.vm, %error, "the end of a VM could not be recorded");
                exit
            }
        }
    }

    /// One QMP connection, from its start to its end.
    async fn session(&self, tasks: &Tasks, met: &mut bool, changes: &broadcast::Sender<Uid>) -> Session {
        let Ok((qmp, mut events)) = Qmp::connect(&self.dir.join(file::QMP), tasks).await else {
            return Session::Broken;
        };
        *met = true;
        *lock(&self.qmp) = Some(qmp.clone());
        loop {
            // Asked anew at the start and after every event that may have changed it: the answer is the
            // truth also after a time in which nobody listened.
            match qmp.status().await {
                Ok(s) if s.status == "shutdown" => return Session::GuestOff,
                // Not begun yet; perhaps left so by a photon that died.
                Ok(s) if s.status == "prelaunch" => {
                    self.console.heard(CONSOLE_WAIT).await;
                    match qmp.call(Command::Cont).await {
                        Ok(_) => continue,
                        Err(_) => break,
                    }
                }
                Ok(s) => self.set_status(&s.status),
                Err(_) => break,
            }
            process::trim_log(&self.dir);
            let _ = changes.send(self.launch.id);
            loop {
                // QEMU's log is looked at now and then also while nothing happens.
                let Ok(event) = timeout(LOG_PERIOD, "an event", events.recv()).await else {
                    process::trim_log(&self.dir);
                    continue;
                };
                match event.as_ref().map(|e| e.name.as_str()) {
                    None => {
                        lock(&self.qmp).take();
                        return Session::Broken;
                    }
                    Some("RESET") => self.agent.reset(),
                    Some("SHUTDOWN" | "STOP" | "RESUME" | "SUSPEND" | "WAKEUP") => break,
                    Some(_) => {}
                }
            }
        }
        lock(&self.qmp).take();
        Session::Broken
    }
}
