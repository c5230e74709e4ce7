//! FlareDB's messages and service, generated from `proto/` (see `tests/it/codegen.rs`). What regions are told are
//! the messages of [`crate::model::command`].

#[allow(missing_docs, clippy::all, clippy::disallowed_methods, clippy::redundant_clone, clippy::unwrap_used)]
mod generated {
    include!("../gen/flaredb.v1.rs");
}

pub use generated::*;
