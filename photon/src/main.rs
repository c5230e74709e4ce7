//! `photon`: the whole cloud in one program. This crate wires: the command line ([`cli`]), the node with its
//! services ([`node`]), their table ([`services`]), configuration ([`config`]). Decisions live elsewhere.

mod cli;
mod config;
mod node;
mod services;

/// A store under load makes and drops many small things on many threads: with the system's allocator a quarter
/// of its time went there (docs/benchmarks.md is measured with this one).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
