//! All QEMUs of one host: started, found again, stopped, forgotten.

use super::{
    accel,
    agent::Agent,
    args,
    command::Command,
    console::Console,
    launch::{Accel, Launch, NicBackend},
    process::{self, Process},
    record::{Cause, Exit, Records, Started},
    tap,
    vm::{Observed, State, Vm},
};
use photon_base::{Code, Error, Result, Uid};
use photon_rt::{
    task::{Tasks, blocking},
    time::{Duration, sleep, timeout, wall},
};
use std::{
    collections::BTreeMap,
    fs::File,
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};
use tokio::sync::{OnceCell, OwnedMutexGuard, broadcast};

/// Name of the program.
pub const QEMU: &str = "qemu-system-x86_64";
/// How long a QEMU may take to answer for the first time; 0.1–0.3 s on an idle host.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a QEMU may take to die of SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest may think about its power button before it is pressed again.
const PRESS_AGAIN: Duration = Duration::from_secs(10);
/// Locks by VM: operations on one VM wait for each other.
const STRIPES: usize = 64;

/// How to stop a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Ask the guest (its agent, or else the power button); after the limit, hard.
    Graceful {
        /// How long the guest may take.
        limit: Duration,
    },
    /// At once, like a power cut.
    Hard,
}

/// An incarnation found on this host.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The incarnation.
    pub id: Uid,
    /// What it was asked to be. None: an orphan, a process or folder whose record is gone or damaged;
    /// nothing can be done with it but [`Hypervisor::remove`].
    pub launch: Option<Launch>,
    /// What is so.
    pub observed: Observed,
}

struct Inner {
    records: Records,
    tasks: Tasks,
    vms: Mutex<BTreeMap<Uid, Arc<Vm>>>,
    stripes: Vec<Arc<tokio::sync::Mutex<()>>>,
    changes: broadcast::Sender<Uid>,
    accel: OnceCell<Accel>,
    _lock: File,
}

/// The QEMUs of this host. Clones are the same hypervisor; dropping it leaves every VM running.
#[derive(Clone)]
pub struct Hypervisor(Arc<Inner>);

impl std::fmt::Debug for Hypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hypervisor({})", self.0.records.root().display())
    }
}

impl Hypervisor {
    /// Opens the run folder and adopts what runs: every incarnation is observable on return.
    pub async fn new(run_dir: &Path, tasks: Tasks) -> Result<Hypervisor> {
        let run_dir = run_dir.to_path_buf();
        let (records, lock) = blocking(move || -> Result<(Records, File)> {
            let records = Records::open(&run_dir)?;
            let path = records.root().join("lock");
            let lock = photon_rt::fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(|e| Error::internal(format!("cannot open {}", path.display())).why(e))?;
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|e| {
                Error::new(Code::Conflict, format!("{} is in use", records.root().display()))
                    .why(e)
                    .hint("another photon runs: photon status")
            })?;
            Ok((records, lock))
        })
        .await?;
        let stripes = (0..STRIPES).map(|_| Arc::default()).collect();
        let changes = broadcast::Sender::new(1024);
        let inner = Inner {
            records,
            tasks,
            vms: Mutex::default(),
            stripes,
            changes,
            accel: OnceCell::new(),
            _lock: lock,
        };
        let this = Hypervisor(Arc::new(inner));
        this.adopt().await?;
        Ok(this)
    }

    async fn adopt(&self) -> Result<()> {
        let records = self.0.records.clone();
        let found = blocking(move || -> Result<_> {
            let vm_dir = records.incarnations_dir();
            let mut living: BTreeMap<Uid, Process> = Process::scan(&vm_dir).into_iter().collect();
            let mut found = Vec::new();
            for id in records.incarnations()? {
                match Self::recall(&records, id, living.remove(&id)) {
                    Ok(Some(one)) => found.push(one),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(incarnation = %id, %error, "left as an orphan"),
                }
            }
            Ok(found)
        })
        .await?;
        for (vm, process) in found {
            self.vms().insert(vm.launch.id, vm.clone());
            if let Some((process, started)) = process {
                tracing::info!(vm = %vm.launch.vm, name = vm.launch.name, pid = process.pid, "adopted");
                let (records, changes) = (self.0.records.clone(), self.0.changes.clone());
                vm.supervise(process, started, false, records, &self.0.tasks, changes);
            }
        }
        Ok(())
    }

    /// One incarnation from its records and the process table.
    #[expect(clippy::type_complexity, reason = "one private caller")]
    fn recall(
        records: &Records,
        id: Uid,
        process: Option<Process>,
    ) -> Result<Option<(Arc<Vm>, Option<(Process, Started)>)>> {
        let Some(launch) = records.launch(id)? else {
            if process.is_none() {
                records.remove(id)?; // photon died between making the folder and writing into it
            }
            return Ok(None);
        };
        let (started, exit) = (records.started(id)?, records.exit(id)?);
        let process = match process {
            // A process of ours that is not the one recorded was started right before photon died.
            Some(p) => {
                let at = started.filter(|s| s.pid == p.pid && s.ticks == p.ticks).map_or_else(wall, |s| s.at);
                let now = Started { pid: p.pid, ticks: p.ticks, at };
                if started != Some(now) {
                    records.set_started(id, now)?;
                }
                Some((p, now))
            }
            None => None,
        };
        let state = match (exit, &process, started) {
            // With an exit on record and a process still there, the process is finished off by its task.
            (_, Some((_, started)), _) => State::Alive { started: *started, status: "starting".into() },
            (Some(exit), None, _) => State::Ended(exit),
            (None, None, Some(_)) => {
                let exit = Exit { cause: Cause::Crash, status: None, at: wall() };
                State::Ended(records.set_exit(id, exit)?)
            }
            (None, None, None) => State::New,
        };
        Ok(Some((Vm::new(launch, records, state), process)))
    }

    fn vms(&self) -> std::sync::MutexGuard<'_, BTreeMap<Uid, Arc<Vm>>> {
        self.0.vms.lock().unwrap_or_else(PoisonError::into_inner) // single inserts and removes
    }

    fn vm(&self, id: Uid) -> Option<Arc<Vm>> {
        self.vms().get(&id).cloned()
    }

    fn known(&self, id: Uid) -> Result<Arc<Vm>> {
        self.vm(id).ok_or_else(|| Error::not_found(format!("incarnation {id} on this host")))
    }

    async fn lock(&self, vm: Uid) -> OwnedMutexGuard<()> {
        let i = (vm.derive("lock").0 % STRIPES as u128) as usize;
        self.0.stripes[i].clone().lock_owned().await
    }

    /// The incarnation whose state has changed, whenever one has. A receiver that lags asks
    /// [`Hypervisor::list`].
    pub fn changes(&self) -> broadcast::Receiver<Uid> {
        self.0.changes.subscribe()
    }

    /// The accelerator of this host, probed at the first call.
    pub async fn accel(&self) -> Accel {
        *self.0.accel.get_or_init(|| accel::choose(QEMU, self.0.records.root())).await
    }

    /// What is so about an incarnation, from memory.
    pub fn observe(&self, id: Uid) -> Observed {
        self.vm(id).map_or(Observed::Absent, |vm| vm.observed())
    }

    /// Everything of ours on this host, orphans included.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let records = self.0.records.clone();
        let (folders, processes) = blocking(move || -> Result<_> {
            let processes = Process::scan(&records.incarnations_dir());
            Ok((records.incarnations()?, processes))
        })
        .await?;
        let mut all: BTreeMap<Uid, Listed> = BTreeMap::new();
        let orphans = processes.iter().map(|(id, _)| *id).chain(folders);
        for id in orphans {
            let vm = self.vm(id);
            let observed = vm.as_ref().map_or(Observed::Absent, |vm| vm.observed());
            all.insert(id, Listed { id, launch: vm.map(|vm| vm.launch.clone()), observed });
        }
        Ok(all.into_values().collect())
    }

    /// Makes `launch` run, unless this incarnation has run before: then it says how it is. Accepts the
    /// launch's epoch for its VM durably first, and refuses it when a greater one was accepted; older
    /// incarnations of the VM on this host are ended hard.
    pub async fn ensure_running(&self, launch: &Launch) -> Result<Observed> {
        launch.check()?;
        let (this, launch) = (self.clone(), launch.clone());
        // A task of its own: a caller that goes away must not leave a start half done.
        let task = self.0.tasks.spawn("ensure-running", async move { this.start(launch).await });
        match task.await {
            Ok(Some(done)) => done,
            Ok(None) => Err(Error::unavailable("photon is stopping")),
            Err(e) => Err(Error::internal("a VM was not started").why(e)),
        }
    }

    async fn start(&self, launch: Launch) -> Result<Observed> {
        let _guard = self.lock(launch.vm).await;
        let (records, vm, epoch) = (self.0.records.clone(), launch.vm, launch.epoch);
        blocking(move || records.accept_epoch(vm, epoch)).await?;
        let others: Vec<Arc<Vm>> = self
            .vms()
            .values()
            .filter(|o| o.launch.vm == launch.vm && o.launch.id != launch.id)
            .cloned()
            .collect();
        for other in others {
            if other.launch.epoch == launch.epoch {
                return Err(Error::new(Code::Conflict, format!("epoch {epoch} has two incarnations"))
                    .why(format!("{} was accepted before {}", other.launch.id, launch.id)));
            }
            self.end(&other).await?;
        }
        let vm = match self.vm(launch.id) {
            Some(vm) => vm,
            None => {
                let records = self.0.records.clone();
                let vm = blocking(move || -> Result<_> {
                    records.set_launch(&launch)?;
                    Ok(Vm::new(launch, &records, State::New))
                })
                .await?;
                self.vms().insert(vm.launch.id, vm.clone());
                vm
            }
        };
        if matches!(*vm.state.borrow(), State::New | State::Failed(_)) {
            self.spawn(&vm).await?;
        }
        // Also one that was started by a caller before and has not answered yet.
        let mut state = vm.state.subscribe();
        let up = |s: &State| !matches!(s, State::Alive { status, .. } if status == "starting");
        let settled = timeout(START_LIMIT, "the start of QEMU", state.wait_for(up)).await.map(|r| r.is_ok());
        let state = vm.state.borrow().clone();
        match (settled, state) {
            (Err(e), _) => Err(e),
            (_, State::Failed(words)) => {
                Err(Error::unavailable(format!("VM {} was not started", vm.launch.name)).why(words))
            }
            _ => Ok(vm.observed()),
        }
    }

    async fn spawn(&self, vm: &Arc<Vm>) -> Result<()> {
        let (records, launch, dir) = (self.0.records.clone(), vm.launch.clone(), vm.dir.clone());
        let (process, started) = blocking(move || -> Result<(Process, Started)> {
            let mut taps = Vec::new();
            for nic in &launch.nics {
                if let NicBackend::Tap { ifname, netns } = &nic.backend {
                    taps.push(tap::open(netns, ifname)?);
                }
            }
            let fds: Vec<i32> = taps.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
            let args = args::args(&launch, &dir, &fds);
            let process = process::spawn(QEMU, &args, &dir, &taps)?;
            let started = Started { pid: process.pid, ticks: process.ticks, at: wall() };
            // Without this record the process is still found by its arguments.
            records.set_started(launch.id, started)?;
            Ok((process, started))
        })
        .await?;
        let (records, changes) = (self.0.records.clone(), self.0.changes.clone());
        vm.supervise(process, started, true, records, &self.0.tasks, changes);
        Ok(())
    }

    /// Makes sure that the incarnation does not run; its records stay, so that its end can be seen.
    pub async fn ensure_stopped(&self, id: Uid, how: Stop) -> Result<Observed> {
        let Some(vm) = self.vm(id) else { return Ok(Observed::Absent) };
        let _guard = self.lock(vm.launch.vm).await;
        if let (Stop::Graceful { limit }, Observed::Running(_)) = (how, vm.observed()) {
            let _ = timeout(limit, "the guest's shutdown", self.ask_to_stop(&vm)).await;
        }
        self.end(&vm).await?;
        Ok(vm.observed())
    }

    /// Asks a guest to power off until it has: its agent, as soon as that is there, else by the power
    /// button, which a guest that is still starting does not notice.
    async fn ask_to_stop(&self, vm: &Vm) {
        // A paused guest cannot answer.
        let _ = vm.command(Command::Cont).await;
        let mut state = vm.state.subscribe();
        let mut ready = vm.agent.ready();
        loop {
            let agreed = vm.agent.shutdown().await.is_ok();
            if !agreed {
                let _ = vm.command(Command::Powerdown).await;
            }
            tokio::select! {
                _ = state.wait_for(|s| !matches!(s, State::Alive { .. })) => return,
                Ok(_) = ready.wait_for(|r| *r), if !agreed => {}
                () = sleep(PRESS_AGAIN) => {}
            }
        }
    }

    /// Ends a VM hard and waits until it has ended.
    async fn end(&self, vm: &Vm) -> Result<()> {
        let Some(process) = vm.process() else { return Ok(()) };
        vm.stopping.store(true, Ordering::SeqCst);
        // Not by QMP: `quit` closes images in good order, which a guest cannot count on anyway, and it
        // depends on a main loop that may hang. What was flushed by the guest is safe either way.
        process.kill();
        let mut state = vm.state.subscribe();
        let ended = state.wait_for(|s| !matches!(s, State::Alive { .. }));
        timeout(KILL_LIMIT, "the end of QEMU", ended)
            .await?
            .map(drop)
            .map_err(|_| Error::unavailable("the VM is not looked after any more"))
    }

    /// Presses the reset button.
    pub async fn reset(&self, id: Uid) -> Result<()> {
        let vm = self.known(id)?;
        let _guard = self.lock(vm.launch.vm).await;
        vm.command(Command::Reset).await
    }

    /// Freezes the guest. Nothing happens when it is frozen already.
    pub async fn pause(&self, id: Uid) -> Result<()> {
        let vm = self.known(id)?;
        let _guard = self.lock(vm.launch.vm).await;
        vm.command(Command::Stop).await
    }

    /// Lets a frozen guest go on.
    pub async fn resume(&self, id: Uid) -> Result<()> {
        let vm = self.known(id)?;
        let _guard = self.lock(vm.launch.vm).await;
        vm.command(Command::Cont).await
    }

    /// Ends the incarnation hard and forgets everything about it, orphans included. The VM's epoch
    /// stays, so that a late order for an older incarnation is still refused.
    pub async fn remove(&self, id: Uid) -> Result<()> {
        let vm = self.vm(id);
        let _guard = self.lock(vm.as_ref().map_or(id, |vm| vm.launch.vm)).await;
        if let Some(vm) = &vm {
            self.end(vm).await?;
        }
        let records = self.0.records.clone();
        let strays = blocking(move || -> Result<Vec<Process>> {
            let vm_dir = records.incarnations_dir();
            let all = Process::scan(&vm_dir);
            let strays: Vec<Process> = all.into_iter().filter(|(of, _)| *of == id).map(|(_, p)| p).collect();
            for p in &strays {
                p.kill();
            }
            Ok(strays)
        })
        .await?;
        for p in strays {
            timeout(KILL_LIMIT, "the end of an orphaned QEMU", p.wait()).await??;
            p.reap();
        }
        // The console may still be writing its last bytes into the folder.
        for attempt in 0.. {
            let records = self.0.records.clone();
            match blocking(move || records.remove(id)).await {
                Err(e) if attempt == 9 => return Err(e),
                Err(_) => sleep(Duration::from_millis(20)).await,
                Ok(()) => break,
            }
        }
        self.vms().remove(&id);
        let _ = self.0.changes.send(id);
        Ok(())
    }

    /// Forgets the greatest epoch of a VM that will never be asked for again.
    pub async fn forget(&self, vm: Uid) -> Result<()> {
        let _guard = self.lock(vm).await;
        let records = self.0.records.clone();
        blocking(move || records.forget_epoch(vm)).await
    }

    /// The incarnation's console; also of one that has ended.
    pub fn console(&self, id: Uid) -> Result<Console> {
        Ok(self.known(id)?.console.clone())
    }

    /// The incarnation's guest agent.
    pub fn agent(&self, id: Uid) -> Result<Agent> {
        Ok(self.known(id)?.agent.clone())
    }
}
