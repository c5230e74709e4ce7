//! Files with a durability promise: the trait, the real disk and the simulated one.
