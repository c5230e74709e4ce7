//! `photon`: the whole cloud in one program. This crate wires: the command line ([`cli`]), the node with its
//! services ([`node`]), their table ([`services`]), configuration ([`config`]). Decisions live elsewhere.

mod cli;
mod config;
mod node;
mod services;

fn main() -> std::process::ExitCode {
    cli::main()
}
