//! Planted bugs: each must be caught by the simulator, or a clean run of it means nothing.
//!
//! Outside this crate's own tests [`on`] is a constant `false` and the code behind it is removed.

/// A mistake that a transactional store could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A region takes commands for keys and versions of its range that it no longer has.
    EpochUnchecked,
    /// A prewrite does not look for newer commits.
    ConflictUnchecked,
    /// Reads pass by all locks.
    LocksIgnored,
    /// A commit below what a reader was promised is taken.
    PushIgnored,
    /// Rolling back leaves no trace for late prewrites.
    NoTrace,
    /// A derived commit takes no notice of reads.
    FloorLost,
    /// Reads do not wait for derived commits under way.
    PendingIgnored,
    /// A new leader derives timestamps at once, without a fresh one.
    GateOpenAtOnce,
    /// A region that took another one in keeps its gate.
    GateKeptInMerge,
    /// A derived commit is taken in a term that it was not derived for.
    TermUnchecked,
    /// A lock whose transaction lives is rolled back.
    ResolvedTooEarly,
    /// An asynchronous transaction is committed by its primary alone, though other keys are not locked.
    AsyncByPrimaryAlone,
    /// Success is told before the primary is committed.
    ToldTooEarly,
    /// What a serializable transaction read is not looked at again.
    ReadsUnchecked,
    /// Only keys are looked at again, not ranges.
    PhantomsUnchecked,
    /// Collecting history removes the version that is in force at the safe point.
    CollectsTooMuch,
    /// An oracle gives timestamps after its lease.
    DeposedGives,
    /// An oracle's record is taken over before its lease surely is over.
    TakenTooEarly,
    /// A new oracle begins at its own clock, not behind the last window.
    WindowForgotten,
    /// A lease is counted from when its record was known to be written.
    LeaseFromAnswer,
}

#[cfg(test)]
thread_local! {
    /// The one that is planted on this thread.
    pub(crate) static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// True when `bug` is planted.
#[inline(always)]
pub(crate) fn on(bug: Bug) -> bool {
    #[cfg(test)]
    return PLANTED.get() == Some(bug);
    #[cfg(not(test))]
    {
        let _ = bug;
        false
    }
}
