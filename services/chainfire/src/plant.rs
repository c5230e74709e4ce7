//! Bugs that can be planted, so that the lab proves its checks: what nobody notices is not checked. Only in
//! builds with debug assertions, by `PHOTON_PLANT=NAME`; a release build has none of this.

/// A bug of this layer. The log's own are in `photon_raft`'s `bug.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// A linearizable read is answered like a serializable one.
    StaleRead,
    /// A watch that needs compacted history goes on behind it, without a word.
    WatchGap,
    /// A watch that needs what is no longer in memory (after a restart) begins at the present.
    WatchForgets,
    /// A lease that has ended is still kept alive.
    LeaseResurrected,
    /// A new leader gives leases a second.
    LeaseShort,
    /// Lock and Campaign answer before it is one's turn.
    LockUnfair,
    /// A state that was replaced keeps the changes in memory that led to the one before.
    RingKept,
    /// The position in the log is written in a batch of its own.
    PositionApart,
    /// Snapshots go without leases.
    LeasesNotCarried,
}

/// Whether it is planted.
#[cfg(not(debug_assertions))]
pub(crate) const fn planted(_: Plant) -> bool {
    false
}

/// Whether it is planted.
#[cfg(debug_assertions)]
pub(crate) fn planted(bug: Plant) -> bool {
    static NAME: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("PHOTON_PLANT").ok());
    #[cfg(test)]
    if HERE.get() == Some(bug) {
        return true;
    }
    NAME.as_deref().is_some_and(|name| name == format!("{bug:?}"))
}

#[cfg(test)]
thread_local! {
    static HERE: std::cell::Cell<Option<Plant>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread meanwhile.
#[cfg(test)]
pub(crate) fn with_planted<T>(bug: Plant, f: impl FnOnce() -> T) -> T {
    HERE.set(Some(bug));
    let out = f();
    HERE.set(None);
    out
}
