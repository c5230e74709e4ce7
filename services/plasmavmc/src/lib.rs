//! TBD

pub mod control;
