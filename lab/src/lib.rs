//! The laboratory: clouds as real processes with folders of their own, driven from outside by their
//! command line and by foreign clients, with faults. What is here knows only what a user knows.
//!
//! Invariants: every cloud of a test has its own data folder and ports; what a test started is gone when
//! it ends, and the test fails if something is left; tests wait for conditions, never for time.

#![allow(clippy::disallowed_methods, reason = "the lab drives programs from outside, as a user does")]
#![allow(missing_docs, reason = "test support")]

pub mod cloud;
pub mod history;
pub mod host;
pub mod hosts;
pub mod promises;
pub mod proxy;
