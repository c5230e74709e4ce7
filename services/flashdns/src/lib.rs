//! TBD

pub mod model;
pub mod wire;
