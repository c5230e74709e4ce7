//! NightLight: metrics that Prometheus' users know how to ask for.
//!
//! - [`labels`]: what identifies a series and what selects it.
//! - [`histogram`]: native histograms, their arithmetic and what can be told of their observations.
//! - [`promql`]: the language of Prometheus 3, text to tree and back, with Prometheus' words for what is wrong.
//! - [`engine`]: a tree and a [`engine::Storage`] in, a value with remarks out. Pure.
//! - [`store`]: samples on disk: log, head, blocks. Its only way to the disk is `photon_rt::disk`.
//! - [`expose`]: what processes tell of themselves, read and written. Pure.
//! - [`scrape`]: which targets there are, asking them, what follows from the answers.
//! - [`rules`]: what is recorded and what is told: groups, templates, tests of rules, telling Alertmanagers.
//! - [`wire`]: Prometheus' HTTP API, remote write and OTLP, over the store, the scraper and the rules.
//!
//! The rooms meet only as `engine::run` over a `store::Store`, and `Store::append`.
//!
//! Invariants: nothing acknowledged is lost; every value comes back bit for bit; a query reads and holds no more than
//! its limits; no text and no bytes from outside make any of this panic.

pub mod engine;
pub mod expose;
pub mod histogram;
pub mod labels;
pub mod promql;
pub mod rules;
pub mod scrape;
pub mod store;
pub mod wire;
