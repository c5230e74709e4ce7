//! TBD

pub mod control;
pub mod engine;
