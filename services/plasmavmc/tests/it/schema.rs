//! Everything that we say to QEMU is in the schema of the installed QEMU.

use crate::support::{Host, tiny};
use photon_base::Uid;
use plasmavmc::engine::{Accel, Command, Qmp};
use serde_json::Value;
use std::collections::HashMap;

#[tokio::test(flavor = "multi_thread")]
async fn every_command_and_argument_exists() {
    let host = Host::new().await;
    let launch = tiny(Uid(1), 1);
    host.hv().ensure_running(&launch).await.expect("running");
    // QEMU serves one QMP client at a time: this one waits until the hypervisor is gone.
    let socket = host.dir.join("vm").join(launch.id.to_string()).join("qmp");
    let mut host = host;
    host.close().await;
    let tasks = photon_rt::task::Tasks::new();
    let (qmp, _events) = Qmp::connect(&socket, &tasks).await.expect("connected");
    let schema = qmp.call(Command::Schema).await.expect("schema");
    let all = schema.as_array().expect("a list");
    let by_name: HashMap<&str, &Value> = all.iter().map(|e| (e["name"].as_str().unwrap_or(""), e)).collect();
    for command in Command::samples() {
        let (name, arguments) = command.wire();
        let entry = by_name.get(name).unwrap_or_else(|| panic!("QEMU has no command {name}"));
        assert_eq!(entry["meta-type"], "command");
        let members =
            by_name[entry["arg-type"].as_str().expect("a type")]["members"].as_array().expect("members");
        for key in arguments.as_object().expect("an object").keys() {
            assert!(members.iter().any(|m| m["name"] == key.as_str()), "{name} has no argument {key}");
        }
        for m in members.iter().filter(|m| m.get("default").is_none()) {
            assert!(
                arguments.get(m["name"].as_str().expect("a name")).is_some(),
                "{name} needs {}",
                m["name"]
            );
        }
    }
    for event in ["SHUTDOWN", "STOP", "RESUME", "RESET"] {
        assert_eq!(by_name[event]["meta-type"], "event");
    }
    tasks.shutdown().await;
    host.restart().await;
    host.finish().await;
}

#[tokio::test]
async fn the_accelerator_probe_tells_truth() {
    let dir = std::env::temp_dir();
    // TCG always works: so the probe's guest is sound, and a "no" for KVM means KVM.
    assert!(plasmavmc::engine::works(plasmavmc::engine::QEMU, Accel::Tcg, &dir).await.expect("probe"));
    let host = Host::new().await;
    let chosen = host.hv().accel().await;
    println!("accelerator of this host: {chosen:?}");
    host.finish().await;
}
