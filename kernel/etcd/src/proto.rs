//! etcd's messages and services, generated from `proto/` (see `tests/it/codegen.rs`). Names and numbers are etcd's.

#[allow(missing_docs, clippy::all, clippy::disallowed_methods, clippy::redundant_clone, clippy::unwrap_used)]
mod generated {
    pub mod mvccpb {
        include!("gen/mvccpb.rs");
    }
    pub mod etcdserverpb {
        include!("gen/etcdserverpb.rs");
    }
    pub mod authpb {
        include!("gen/authpb.rs");
    }
    pub mod v3lockpb {
        include!("gen/v3lockpb.rs");
    }
    pub mod v3electionpb {
        include!("gen/v3electionpb.rs");
    }
}

pub use generated::{authpb, etcdserverpb, mvccpb, v3electionpb, v3lockpb};

/// The same as a protobuf `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!("gen/descriptors.bin");
