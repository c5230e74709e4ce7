//! NightLight.
pub mod engine;
pub mod labels;
pub mod promql;
pub mod store;
