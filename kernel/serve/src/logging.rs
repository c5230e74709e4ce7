//! Logs: events are nouns with fields, on standard error.

use tracing_subscriber::EnvFilter;

/// Starts logging at `level` (a `tracing` filter such as `info` or `photon=debug`), as JSON lines if
/// asked. A second call changes nothing.
pub fn start(level: &str, json: bool) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let base =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true);
    let _ = if json { base.json().try_init() } else { base.with_ansi(false).try_init() };
}
