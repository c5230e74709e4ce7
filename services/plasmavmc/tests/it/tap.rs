//! A guest on a TAP device in a network namespace. Needs root.

use crate::support::{Host, LONG, running, tiny, until};
use photon_base::{Code, Uid};
use photon_rt::{
    process::run,
    time::{Duration, timeout},
};
use plasmavmc::engine::{NicBackend, Observed, Stop};

async fn tool(program: &str, args: &[&str], stdin: Option<&str>) -> String {
    let out = run(program, args, stdin.map(str::as_bytes), Duration::from_secs(20)).await.expect("tool");
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_on_a_tap_is_reached_also_after_re_adoption() {
    let mut host = Host::new().await;
    let ns = format!("vmtap-{:x}", photon_rt::entropy::u64() & 0xff_ffff);
    let mut launch = tiny(Uid(0xf1), 1);
    launch.nics[0].mtu = 1400;
    launch.nics[0].backend =
        NicBackend::Tap { ifname: "t0".into(), netns: format!("/run/netns/{ns}").into() };

    // Neither a namespace nor a device is made here: what is missing is an error, and nothing runs.
    assert_eq!(host.hv().ensure_running(&launch).await.expect_err("no namespace").code, Code::NotFound);
    tool("ip", &["netns", "add", &ns], None).await;
    assert_eq!(host.hv().ensure_running(&launch).await.expect_err("no device").code, Code::NotFound);
    assert_eq!(host.hv().observe(launch.id), Observed::Absent);
    assert!(!tool("ip", &["-n", &ns, "link"], None).await.contains("t0"));

    let script = "tuntap add t0 mode tap vnet_hdr\naddr add 10.9.0.1/24 dev t0\nlink set t0 up\n";
    tool("ip", &["-n", &ns, "-batch", "-"], Some(script)).await;
    let conf = host.dir.join("udhcpd.conf");
    let leases = host.dir.join("leases");
    photon_rt::fs::write_atomic(&leases, b"", 0o600).expect("leases");
    let text = format!(
        "start 10.9.0.5\nend 10.9.0.5\ninterface t0\nlease_file {}\nauto_time 0\noption subnet 255.255.255.0\noption hostname tapped\n",
        leases.display()
    );
    photon_rt::fs::write_atomic(&conf, text.as_bytes(), 0o600).expect("configuration");
    let tasks = photon_rt::task::Tasks::new();
    let (n, c) = (ns.clone(), conf.display().to_string());
    tasks.spawn("udhcpd", async move {
        let _ = run("ip", &["netns", "exec", &n, "busybox", "udhcpd", "-f", &c], None, LONG * 2).await;
    });
    host.hv().ensure_running(&launch).await.expect("running");
    let agent = host.hv().agent(launch.id).expect("agent");
    timeout(LONG, "the agent", agent.ready().wait_for(|r| *r)).await.expect("in time").expect("ready");
    assert_eq!(agent.info().await.expect("info").addresses, ["10.9.0.5"]);
    // Full packets with every offload that virtio has.
    let ping = ["netns", "exec", &ns, "busybox", "ping", "-c", "1", "-W", "5", "-s", "1300", "10.9.0.5"];
    assert!(tool("ip", &ping, None).await.contains("1 packets received"));

    host.restart().await;
    until(&host.hv(), launch.id, "the agent again", |o| running(o).ready).await;
    assert!(tool("ip", &ping, None).await.contains("1 packets received"), "QEMU kept its descriptor");
    host.hv().ensure_stopped(launch.id, Stop::Hard).await.expect("stopped");
    tasks.shutdown().await;
    host.finish().await;
    tool("ip", &["netns", "del", &ns], None).await;
}
