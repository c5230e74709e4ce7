//! Planted bugs: each must be caught by the simulator, or a clean run of it means nothing.
//!
//! Outside this crate's own unit tests [`Bugs::on`] is a constant `false` and the code behind it is
//! removed.

/// A mistake that gossip could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Every life of a node has the same generation.
    GenerationKept,
    /// A node whose clock went back does not outbid its own former life.
    FormerLifeWins,
    /// A node does not answer that it is suspected.
    SuspicionNotRefuted,
    /// The seal does not depend on the cluster's key.
    ForeignAccepted,
    /// A node that hears nobody, or stood still, judges others like any other.
    DeafJudges,
    /// A node that comes back spreads what it made up while it was cut off.
    StaleRumours,
    /// Nodes that are Down are never asked again.
    DownNotAsked,
    /// Nodes do not compare what they know: only rumours spread it.
    NotCompared,
    /// Two nodes with one name outbid each other for ever.
    RivalsOutbid,
}

/// Which bug is switched on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bugs {
    #[cfg(test)]
    pub(crate) planted: Option<Bug>,
}

impl Bugs {
    /// True when `bug` is planted.
    #[inline(always)]
    pub(crate) fn on(self, bug: Bug) -> bool {
        #[cfg(test)]
        return self.planted == Some(bug);
        #[cfg(not(test))]
        {
            let _ = bug;
            false
        }
    }
}
