//! Local ordered storage below a replicated store.
