//! The engine against the real QEMU and the real guest image, under TCG where KVM does not work.

mod engine;
mod image;
mod schema;
mod support;
mod tap;
