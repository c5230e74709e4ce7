//! Integration tests of NightLight: the engine against a slow evaluator written from the documentation, and against a
//! real Prometheus fed with the same samples; the engine over the
//! store; the door with foreign clients; scraping beside a real Prometheus.

mod door;
mod hostile;
mod language;
mod natives;
mod otlp;
mod prometheus;
mod random;
mod reference;
mod rules;
mod scrape;
mod store;
mod target;
