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
    NAME.as_deref().is_some_and(|name| name == format!("{bug:?}"))
}
