//! The checked-in gRPC code equals what the .proto files give (`PHOTON_REGENERATE=1 cargo test -p flaredb codegen`
//! writes it anew), and the log's own messages, which are written by hand, are what `model.proto` says.

use bytes::Bytes;
use flaredb::model::{Descriptor, command::*};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use std::path::Path;

const FILES: [&str; 2] = ["model.proto", "flaredb.proto"];

#[test]
fn generated_code_is_current() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(FILES, [here.join("proto")]).expect("the .proto files compile");
    let out = tempfile::tempdir().expect("temp dir");
    tonic_prost_build::configure()
        .bytes(".")
        .build_transport(false)
        .extern_path(".flaredb.model.v1.Descriptor", "crate::model::Descriptor")
        .extern_path(".flaredb.model.v1", "crate::model::command")
        .out_dir(out.path())
        .compile_fds(files)
        .expect("code is generated");
    let fresh = photon_rt::fs::read_text(&out.path().join("flaredb.v1.rs"), 1 << 20).expect("generated file");
    let fresh = fresh.replace("tonic_prost::ProstCodec", "photon_etcd::codec::SmallCodec");
    let kept = here.join("src/gen/flaredb.v1.rs");
    if std::env::var_os("PHOTON_REGENERATE").is_some() {
        photon_rt::fs::write_atomic(&kept, fresh.as_bytes(), 0o644).expect("write");
    }
    let kept = photon_rt::fs::read_text(&kept, 1 << 20).unwrap_or_default();
    assert!(kept == fresh, "flaredb.v1.rs is stale: PHOTON_REGENERATE=1 cargo test -p flaredb codegen");
}

fn agrees<M: Message>(pool: &DescriptorPool, name: &str, m: &M) {
    let descriptor = pool.get_message_by_name(&format!("flaredb.model.v1.{name}")).expect("in the file");
    let read = DynamicMessage::decode(descriptor.clone(), &m.encode_to_vec()[..]).expect("it is read");
    assert_eq!(read.unknown_fields().count(), 0, "{name}: {read:?}");
    // Every field of the file was set, so none is missing in the code.
    for f in descriptor.fields() {
        let one_of = f.containing_oneof().is_some_and(|o| o.fields().any(|f| read.has_field(&f)));
        assert!(read.has_field(&f) || one_of, "{name}.{} is only in the file", f.name());
    }
    assert_eq!(read.encode_to_vec(), m.encode_to_vec(), "{name}");
}

#[test]
fn the_log_is_as_its_proto_file_says() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(["model.proto"], [here.join("proto")]).expect("the .proto file compiles");
    let pool = DescriptorPool::from_file_descriptor_set(files).expect("descriptors");
    let b = |s: &'static str| Bytes::from_static(s.as_bytes());
    let keys = vec![b("k"), b("l")];
    let members = vec![1, 300];
    agrees(
        &pool,
        "Descriptor",
        &Descriptor { id: 1, start: b("a"), end: b("b"), version: 2, conf: 3, members },
    );
    let checks: Vec<RawCheck> = [Want::Present(true), Want::Version(7), Want::Value(b("v"))]
        .into_iter()
        .map(|w| RawCheck { key: b("k"), want: Some(w) })
        .collect();
    for c in &checks {
        agrees(&pool, "RawCheck", c);
    }
    let writes = vec![RawWrite { key: b("k"), value: Some(b("v")) }];
    agrees(&pool, "RawWrite", &writes[0]);
    agrees(&pool, "RawCommit", &RawCommit { checks, writes });
    let m = Mutation { kind: Kind::Lock as i32, key: b("k"), value: b("v"), locked: true, absent: true };
    agrees(&pool, "Mutation", &m);
    let reads = vec![ReadSpan { start: b("a"), end: b("b") }];
    agrees(&pool, "ReadSpan", &reads[0]);
    let (start, primary, ttl_ms, for_update) = (4, b("p"), 9, 6);
    let prewrite = Prewrite {
        start,
        primary: primary.clone(),
        ttl_ms,
        mutations: vec![m],
        for_update,
        is_async: true,
        secondaries: keys.clone(),
        one_phase: true,
        reads,
    };
    agrees(&pool, "Prewrite", &prewrite);
    agrees(&pool, "Commit", &Commit { start, commit: 7, keys: keys.clone() });
    agrees(&pool, "Rollback", &Rollback { start, keys: keys.clone() });
    let lock = PessimisticLock { start, primary: primary.clone(), ttl_ms, for_update, keys: keys.clone() };
    agrees(&pool, "PessimisticLock", &lock);
    agrees(&pool, "PessimisticRollback", &PessimisticRollback { start, for_update, keys: keys.clone() });
    let (rollback_missing, force_sync) = (true, true);
    let status =
        CheckStatus { primary: primary.clone(), start, reader: 5, now: 8, rollback_missing, force_sync };
    agrees(&pool, "CheckStatus", &status);
    agrees(&pool, "CheckSecondaries", &CheckSecondaries { start, keys: keys.clone() });
    agrees(&pool, "Resolve", &Resolve { start, commit: 7, keys });
    agrees(&pool, "Heartbeat", &Heartbeat { primary, start, ttl_ms });
    agrees(&pool, "Gc", &Gc { safe_point: 2, from: b("f"), limit: 3 });
}
