//! Clocks and waiting. Monotonic time is tokio's, so a runtime with a paused clock is simulated time.

use photon_base::{Code, Error, Result, Timestamp};
use std::future::Future;
pub use std::time::Duration;
pub use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Monotonic now.
pub fn now() -> Instant {
    Instant::now()
}

/// Time since the machine was started, its sleep included. It never jumps, and a process that was stopped
/// or a machine that was suspended finds it advanced. (A hypervisor that stops a guest may stop it too.)
pub fn since_boot() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}

/// Wall-clock now. May jump; never use it to measure.
pub fn wall() -> Timestamp {
    let d = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(d.as_millis().min(u128::from(Timestamp::MAX.0)) as u64)
}

/// Waits for `d`.
pub async fn sleep(d: Duration) {
    tokio::time::sleep(d).await;
}

/// Keeps this thread waiting, which must not be one of the runtime's.
pub fn block_for(d: Duration) {
    #[allow(clippy::disallowed_methods, reason = "this is the door")]
    std::thread::sleep(d);
}

/// Waits until `t`.
pub async fn sleep_until(t: Instant) {
    tokio::time::sleep_until(t).await;
}

/// Ticks at once and then every `period`.
pub fn interval(period: Duration) -> Interval {
    tokio::time::interval(period)
}

/// Runs `f` for at most `limit`; then the error says that `what` timed out.
pub async fn timeout<T>(limit: Duration, what: &str, f: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(limit, f)
        .await
        .map_err(|_| Error::new(Code::Timeout, format!("{what} took longer than {} ms", limit.as_millis())))
}

/// CPU time that this process has used so far, user and system.
pub fn cpu_used() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), t.tv_nsec.unsigned_abs() as u32)
}
