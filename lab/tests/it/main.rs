//! Experiments on whole clouds, and the laws of the house.
#![allow(clippy::disallowed_methods, reason = "the lab drives programs from outside, as a user does")]

mod chainfire;
mod client;
mod coordinator;
mod etcd;
mod flaredb;
mod images;
mod import;
mod input;
mod laws;
mod lifecycle;
mod nightlight;
mod nodes;
mod people;
mod storm;
mod tour;
