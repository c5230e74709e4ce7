//! The first process of the tiny guest and its agent: one small static binary.
//!
//! As `/init` it mounts the kernel's file systems ([`boot`]), loads the virtio modules named in
//! `/etc/modules` in that order, starts busybox's DHCP client and a login on the serial line, reaps
//! what dies, and answers the host on the virtio-serial port `photon.agent.0` ([`port`], protocol in
//! [`protocol`]). It runs inside the guest, so nothing here goes through `photon-rt`: there is no
//! simulation of a guest, only the real one.
//!
//! Invariants: never exits (the kernel would panic); a request is at most [`protocol::LINE_MAX`]
//! bytes and is answered by one line; nothing the host sends makes it panic.

#![allow(clippy::disallowed_methods, reason = "inside the guest there is no photon-rt")]

mod boot;
mod port;
mod protocol;
mod signals;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// What the threads share.
#[derive(Debug, Default)]
pub struct State {
    /// The DHCP client has configured the network, or has given up for now.
    ready: bool,
}

fn main() {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        eprintln!("photon-guest-agent is the first process of a guest; it does nothing elsewhere");
        std::process::exit(2);
    }
    signals::obey();
    boot::mounts();
    boot::modules();
    let state = Arc::new(Mutex::new(State::default()));
    let shared = state.clone();
    // Without its thread the guest still boots and has a console; the host sees a silent agent.
    let _ = std::thread::Builder::new().name("agent".into()).spawn(move || port::serve(&shared));
    let mut network = boot::network();
    if network.is_none() {
        announce(&state);
    }
    let mut login = network.is_none().then(boot::login).flatten();
    loop {
        let Some(dead) = boot::reap() else {
            // No child at all, or an interrupted wait: try again without spinning.
            std::thread::sleep(Duration::from_millis(200));
            if login.is_none() && network.is_none() {
                login = boot::login();
            }
            continue;
        };
        if network == Some(dead) {
            // udhcpc's first process ends when it has a lease (or went on trying in the background),
            // so that the login prompt shows the name that DHCP gave.
            network = None;
            announce(&state);
            login = boot::login();
        } else if login == Some(dead) {
            login = boot::login();
        }
    }
}

fn announce(state: &Mutex<State>) {
    if let Ok(mut s) = state.lock() {
        s.ready = true;
    }
}
