//! TBD

pub mod agent;
pub mod control;
pub mod engine;
