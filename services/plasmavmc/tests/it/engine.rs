//! The life of a VM: start, console, agent, stop, crash, re-adoption, fencing, orphans.

use crate::support::{Host, LONG, running, see, tiny, until};
use bytes::Bytes;
use photon_base::{Code, Uid};
use photon_rt::time::{Duration, now, timeout};
use plasmavmc::engine::{Cause, Observed, Stop};

fn exited(o: &Observed) -> bool {
    matches!(o, Observed::Exited(_))
}

fn cause(o: &Observed) -> Cause {
    match o {
        Observed::Exited(e) => e.cause,
        other => panic!("not exited: {other:?}"),
    }
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_is_adopted_and_shuts_down() {
    let mut host = Host::new().await;
    let launch = tiny(Uid(0xa1), 1);
    let t = now();
    let first = running(&host.hv().ensure_running(&launch).await.expect("running"));
    println!("spawn to QMP: {:?}", t.elapsed());
    let console = host.hv().console(launch.id).expect("console");
    see(&console, "a login:", 1).await;
    println!("spawn to login: {:?}", t.elapsed());
    let agent = host.hv().agent(launch.id).expect("agent");
    timeout(LONG, "the agent", agent.ready().wait_for(|r| *r)).await.expect("in time").expect("ready");
    println!("spawn to agent ready: {:?}", t.elapsed());
    let info = agent.info().await.expect("info");
    assert_eq!((info.hostname.as_str(), info.addresses), ("a", vec!["10.20.0.5".to_string()]));

    // The same again changes nothing.
    let again = running(&host.hv().ensure_running(&launch).await.expect("running"));
    assert_eq!(again.pid, first.pid);

    // Log in, and see the answer of a shell.
    console.write(Bytes::from_static(b"root\n")).await.expect("typed");
    see(&console, "root@a:", 1).await;
    console
        .write(Bytes::from_static(b"echo $((6*7))-$(cat /etc/resolv.conf | grep -c photon)\n"))
        .await
        .expect("typed");
    see(&console, "42-1", 1).await;

    // Another photon finds it, with the console's past.
    drop((console, agent));
    let t = now();
    host.restart().await;
    println!("re-adoption: {:?}", t.elapsed());
    let adopted = running(&host.hv().observe(launch.id));
    assert_eq!((adopted.pid, adopted.since), (first.pid, first.since));
    let adopted = until(&host.hv(), launch.id, "QMP again", |o| running(o).status == "running").await;
    println!("re-adoption to QMP: {:?}", t.elapsed());
    assert_eq!(running(&adopted).pid, first.pid);
    let console = host.hv().console(launch.id).expect("console");
    see(&console, "42-1", 1).await;
    until(&host.hv(), launch.id, "agent again", |o| running(o).ready).await;
    console.write(Bytes::from_static(b"echo adop''ted\n")).await.expect("typed");
    see(&console, "adopted", 1).await;

    // Paused, it says so; twice is once.
    host.hv().pause(launch.id).await.expect("paused");
    host.hv().pause(launch.id).await.expect("paused twice");
    assert!(running(&host.hv().observe(launch.id)).paused());
    host.hv().resume(launch.id).await.expect("resumed");
    assert!(!running(&host.hv().observe(launch.id)).paused());

    let t = now();
    let stop = Stop::Graceful { limit: LONG };
    let end = host.hv().ensure_stopped(launch.id, stop).await.expect("stopped");
    println!("graceful stop: {:?}", t.elapsed());
    assert_eq!(cause(&end), Cause::GuestShutdown);
    assert_eq!(host.hv().ensure_stopped(launch.id, stop).await, Ok(end.clone()), "twice is once");
    assert_eq!(host.hv().ensure_running(&launch).await, Ok(end.clone()), "an incarnation runs once");
    host.restart().await;
    assert_eq!(host.hv().observe(launch.id), end);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_boots_again_and_a_guest_that_powers_off_meanwhile_is_not_a_crash() {
    let mut host = Host::new().await;
    let launch = tiny(Uid(0xb1), 1);
    host.hv().ensure_running(&launch).await.expect("running");
    let console = host.hv().console(launch.id).expect("console");
    see(&console, "a login:", 1).await;
    let pid = running(&host.hv().observe(launch.id)).pid;
    host.hv().reset(launch.id).await.expect("reset");
    see(&console, "a login:", 2).await;
    assert_eq!(running(&host.hv().observe(launch.id)).pid, pid, "the same incarnation");

    // While no photon looks, the guest powers itself off.
    console.write(Bytes::from_static(b"root\n")).await.expect("typed");
    see(&console, "root@a:", 1).await;
    console.write(Bytes::from_static(b"sleep 1; poweroff\n")).await.expect("typed");
    see(&console, "sleep 1; poweroff", 1).await;
    drop(console);
    host.close().await;
    // QEMU stays, paused by its own shutdown; nobody can be asked but QEMU, so this time is given to it.
    photon_rt::time::sleep(Duration::from_secs(3)).await;
    host.restart().await;
    let end = until(&host.hv(), launch.id, "the end", exited).await;
    assert_eq!(cause(&end), Cause::GuestShutdown);
    assert!(!photon_rt::process::exists(pid), "QEMU is gone");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deaths_are_crashes_and_epochs_fence() {
    let mut host = Host::new().await;
    let first = tiny(Uid(0xc1), 1);
    let pid = running(&host.hv().ensure_running(&first).await.expect("running")).pid;
    let mut changes = host.hv().changes();
    kill(pid);
    let end = until(&host.hv(), first.id, "the crash", exited).await;
    assert_eq!(cause(&end), Cause::Crash);
    let Observed::Exited(exit) = end else { panic!() };
    assert_eq!(exit.status, Some(-9), "our own child: its status is known");
    assert_eq!(timeout(LONG, "a change", changes.recv()).await.expect("in time"), Ok(first.id));

    // The next incarnation, killed while no photon runs.
    let second = tiny(Uid(0xc1), 2);
    let pid = running(&host.hv().ensure_running(&second).await.expect("running")).pid;
    host.close().await;
    kill(pid);
    host.restart().await;
    // It may take the kernel a moment to end it.
    assert_eq!(cause(&until(&host.hv(), second.id, "the crash", exited).await), Cause::Crash);

    // A greater epoch ends the smaller one, which can never start again, also not after a restart.
    let third = tiny(Uid(0xc1), 3);
    let old = running(&host.hv().ensure_running(&third).await.expect("running")).pid;
    let fourth = tiny(Uid(0xc1), 4);
    host.hv().ensure_running(&fourth).await.expect("running");
    assert_eq!(cause(&host.hv().observe(third.id)), Cause::Stopped);
    assert!(!photon_rt::process::exists(old));
    host.hv().remove(third.id).await.expect("removed");
    host.restart().await;
    assert_eq!(host.hv().ensure_running(&third).await.expect_err("fenced").code, Code::Conflict);
    let mut twin = fourth.clone();
    twin.id = Uid(77);
    assert_eq!(host.hv().ensure_running(&twin).await.expect_err("two of one epoch").code, Code::Conflict);
    assert_eq!(host.hv().observe(twin.id), Observed::Absent);

    let end = host.hv().ensure_stopped(fourth.id, Stop::Hard).await.expect("stopped");
    assert_eq!(cause(&end), Cause::Stopped);
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_found_by_their_arguments_and_failed_starts_leave_nothing() {
    let mut host = Host::new().await;
    let lost = tiny(Uid(0xd1), 1);
    let pid = running(&host.hv().ensure_running(&lost).await.expect("running")).pid;
    host.close().await;
    photon_rt::fs::remove_dir_all(host.dir.join("vm").join(lost.id.to_string()))
        .expect("its records are lost");
    host.restart().await;
    let list = host.hv().list().await.expect("list");
    assert_eq!(list.len(), 1);
    assert!(list[0].launch.is_none() && list[0].id == lost.id, "{list:?}");
    host.hv().remove(lost.id).await.expect("removed");
    host.hv().remove(lost.id).await.expect("twice");
    assert!(!photon_rt::process::exists(pid));

    // A second photon on the same folder is refused.
    let other = plasmavmc::engine::Hypervisor::new(&host.dir, host.tasks.clone()).await;
    assert_eq!(other.expect_err("in use").code, Code::Conflict);

    // Killed right after the start, before the process was recorded.
    let half = tiny(Uid(0xd2), 1);
    let pid = running(&host.hv().ensure_running(&half).await.expect("running")).pid;
    host.close().await;
    photon_rt::fs::remove_file(host.dir.join("vm").join(half.id.to_string()).join("process.json"))
        .expect("removed");
    host.restart().await;
    assert_eq!(running(&host.hv().ensure_running(&half).await.expect("adopted")).pid, pid);
    assert_eq!(host.hv().list().await.expect("list").len(), 1);

    // QEMU refuses: its own words come back, nothing runs, the same call may be tried again.
    let mut bad = tiny(Uid(0xd3), 1);
    if let plasmavmc::engine::Boot::Kernel { vmlinux, .. } = &mut bad.boot {
        *vmlinux = "/nonexistent/vmlinux".into();
    }
    for _ in 0..2 {
        let e = host.hv().ensure_running(&bad).await.expect_err("refused");
        assert!(e.why.contains("/nonexistent/vmlinux"), "{e}");
        assert_eq!(host.hv().observe(bad.id), Observed::Absent);
    }
    assert_eq!(
        host.hv().list().await.expect("list").iter().filter(|l| l.observed != Observed::Absent).count(),
        1
    );
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_right_after_the_start_waits_for_the_agent() {
    let host = Host::new().await;
    let launch = tiny(Uid(0xe1), 1);
    host.hv().ensure_running(&launch).await.expect("running");
    let end = host.hv().ensure_stopped(launch.id, Stop::Graceful { limit: LONG }).await.expect("stopped");
    assert_eq!(cause(&end), Cause::GuestShutdown);
    // A guest that does not want to is ended when the limit is over.
    let deaf = tiny(Uid(0xe2), 1);
    host.hv().ensure_running(&deaf).await.expect("running");
    let stop = Stop::Graceful { limit: Duration::from_millis(300) };
    assert_eq!(cause(&host.hv().ensure_stopped(deaf.id, stop).await.expect("stopped")), Cause::Stopped);
    host.finish().await;
}
