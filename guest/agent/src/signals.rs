//! What busybox' `halt`, `poweroff` and `reboot` tell the first process (signals, as to any init).

#![allow(unsafe_code)]

use crate::boot;
use rustix::system::RebootCommand;

/// Blocks the signals in this thread, and so in those started after it; call before any other thread
/// starts. Children get an empty mask from the standard library. Then waits for the signals in a
/// thread of its own.
pub fn obey() {
    // SAFETY: sigset_t is plain data and sigemptyset makes it valid; each call gets valid pointers.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM, libc::SIGINT] {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: both pointers are to live values of the right type.
            if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
                match signal {
                    libc::SIGTERM | libc::SIGINT => boot::halt(RebootCommand::Restart),
                    _ => boot::halt(RebootCommand::PowerOff),
                }
            }
        }
    });
}
