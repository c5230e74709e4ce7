//! The checked-in gRPC code equals what the .proto files give. `PHOTON_REGENERATE=1 cargo test -p
//! photon-etcd codegen` writes it anew.

use std::path::Path;

const FILES: [&str; 3] = ["rpc.proto", "v3lock.proto", "v3election.proto"];

#[test]
fn generated_code_is_current() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto = here.join("proto");
    let files = protox::compile(FILES, [&proto]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("temp dir");
    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds(files)
        .expect("code is generated");
    let mut compiler = protox::Compiler::new([&proto]).expect("compiler");
    compiler.include_imports(true).open_files(FILES).expect("the .proto files compile");
    let kept = here.join("src/gen/descriptors.bin");
    let fresh = compiler.encode_file_descriptor_set();
    let write = std::env::var_os("PHOTON_REGENERATE").is_some();
    if write {
        photon_rt::fs::write_atomic(&kept, &fresh, 0o644).expect("write");
    }
    let kept = photon_rt::fs::read(&kept).unwrap_or_default();
    assert!(kept == fresh, "descriptors.bin is stale: PHOTON_REGENERATE=1 cargo test -p photon-etcd codegen");
    for name in ["etcdserverpb.rs", "mvccpb.rs", "authpb.rs", "v3lockpb.rs", "v3electionpb.rs"] {
        let fresh = photon_rt::fs::read_text(&out.path().join(name), 1 << 20).expect("generated file");
        // The generator has no setting for this.
        let fresh = fresh.replace("tonic_prost::ProstCodec", "crate::codec::SmallCodec");
        let kept = here.join("src/gen").join(name);
        if write {
            photon_rt::fs::write_atomic(&kept, fresh.as_bytes(), 0o644).expect("write");
        }
        let kept = photon_rt::fs::read_text(&kept, 1 << 20).unwrap_or_default();
        assert!(kept == fresh, "{name} is stale: PHOTON_REGENERATE=1 cargo test -p photon-etcd codegen");
    }
}
