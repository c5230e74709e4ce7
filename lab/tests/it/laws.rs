//! The laws of the house (ARCHITECTURE.md) that a machine can check.

use photon_lab::cloud::root;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Kernel crates in order: each may import only those before it.
const KERNEL: [&str; 11] = [
    "photon-base",
    "photon-rt",
    "photon-kv",
    "photon-raft",
    "photon-auth",
    "photon-gossip",
    "photon-etcd",
    "photon-resource",
    "photon-reconcile",
    "photon-serve",
    "photon-client",
];
const SERVICES: [&str; 8] =
    ["chainfire", "flaredb", "iam", "prismnet", "flashdns", "nodes", "plasmavmc", "nightlight"];

fn metadata() -> Value {
    let out = Command::new("cargo")
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo metadata");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("json")
}

/// Each crate of ours with the crates that it imports (not for tests).
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let m = metadata();
    let mut all = BTreeMap::new();
    for p in m["packages"].as_array().expect("packages") {
        let deps = p["dependencies"].as_array().expect("dependencies");
        let names =
            deps.iter().filter(|d| d["kind"] != "dev").map(|d| d["name"].as_str().expect("name").to_string());
        all.insert(p["name"].as_str().expect("name").to_string(), names.collect());
    }
    all
}

/// Files that git knows, or would if they were added.
fn files(suffix: &str) -> Vec<PathBuf> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git ls-files");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().filter(|l| l.ends_with(suffix)).map(|l| root().join(l)).filter(|p| p.exists()).collect()
}

fn read(p: &Path) -> String {
    fs::read_to_string(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()))
}

#[test]
fn laws_imports_point_down() {
    let all = imports();
    let ours: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    for (name, deps) in &all {
        let name = name.as_str();
        let inner: BTreeSet<&str> = deps.iter().map(String::as_str).filter(|d| ours.contains(d)).collect();
        let allowed: BTreeSet<&str> = if let Some(i) = KERNEL.iter().position(|k| *k == name) {
            KERNEL[..i].iter().copied().collect()
        } else if name == "photon-api" {
            KERNEL.iter().copied().collect()
        } else if SERVICES.contains(&name) {
            KERNEL.iter().copied().chain(["photon-api"]).collect()
        } else {
            // The binary wires everything; the lab, the bench and the guest stand outside.
            continue;
        };
        let wrong: Vec<_> = inner.difference(&allowed).collect();
        assert!(
            wrong.is_empty(),
            "{name} must not import {wrong:?}: see ARCHITECTURE.md, who may import whom"
        );
    }
    for k in KERNEL.iter().chain(&SERVICES) {
        assert!(all.contains_key(*k), "{k} is in the law but not in the workspace");
    }
}

#[test]
fn laws_one_integration_test_binary_a_crate() {
    for p in metadata()["packages"].as_array().expect("packages") {
        let tests: Vec<&Value> =
            p["targets"].as_array().expect("targets").iter().filter(|t| t["kind"][0] == "test").collect();
        assert!(tests.len() <= 1, "{} has {} integration-test binaries", p["name"], tests.len());
        for t in tests {
            assert_eq!(t["name"], "it", "the test binary of {} is tests/it/main.rs", p["name"]);
        }
    }
}

#[test]
fn laws_files_are_short_or_say_why() {
    let mut long = Vec::new();
    for f in files(".rs") {
        let text = read(&f);
        let generated = text.starts_with("// This file is @generated");
        if text.lines().count() > 800 && !generated && !text.contains("\n//! Long because") {
            long.push(format!("{} ({} lines)", f.display(), text.lines().count()));
        }
    }
    assert!(long.is_empty(), "split by meaning, or say `//! Long because …`: {long:#?}");
}

/// Rooms that need `unsafe`, each with the reason.
const UNSAFE: [(&str, &str); 4] = [
    ("services/plasmavmc/src/engine/process.rs", "descriptors given to a child between fork and exec"),
    ("services/plasmavmc/src/engine/tap.rs", "ioctl TUNSETIFF"),
    ("services/prismnet/tests/it/guest.rs", "a TAP device played as a guest"),
    ("guest/agent/src", "the first process of a guest: mount, reboot, waitpid"),
];

#[test]
fn laws_unsafe_only_where_listed() {
    let word = ["uns", "afe"].concat();
    for f in files(".rs") {
        let rel = f.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
        let listed = UNSAFE.iter().any(|(p, _)| rel.starts_with(p));
        let uses = read(&f).lines().any(|l| {
            let code = l.split("//").next().unwrap_or_default();
            code.contains(&format!("{word} {{"))
                || code.contains(&format!("{word} fn"))
                || code.contains(&format!("{word} impl"))
        });
        assert!(!uses || listed, "{rel} uses {word}: list it in laws.rs with its reason, or do without");
    }
}

#[test]
fn laws_every_dependency_has_its_row() {
    let text = read(&root().join("docs/dependencies.md"));
    let all = imports();
    let mut lacking = BTreeSet::new();
    for p in metadata()["packages"].as_array().expect("packages") {
        for d in p["dependencies"].as_array().expect("dependencies") {
            let name = d["name"].as_str().expect("name");
            if !all.contains_key(name) && !text.contains(&format!("| `{name}` |")) {
                lacking.insert(name.to_string());
            }
        }
    }
    assert!(lacking.is_empty(), "docs/dependencies.md has no row for {lacking:?}");
}

#[test]
fn laws_the_lock_file_is_small_and_free_of_cpp() {
    let lock = read(&root().join("Cargo.lock"));
    let names: Vec<&str> =
        lock.lines().filter_map(|l| l.strip_prefix("name = \"")).map(|n| n.trim_end_matches('"')).collect();
    assert!(names.len() <= 450, "{} locked packages, at most 450", names.len());
    for banned in ["cxx", "link-cplusplus", "librocksdb-sys", "openssl-sys", "openraft"] {
        assert!(!names.contains(&banned), "{banned} is in Cargo.lock");
    }
}

#[test]
fn laws_no_unfinished_business() {
    let marks =
        [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["todo", "!("].concat(), ["#[ign", "ore"].concat()];
    for f in files(".rs") {
        let text = read(&f);
        for m in &marks {
            assert!(!text.contains(m.as_str()), "{} has {m}", f.display());
        }
    }
}

/// What a reconciler writes passes the fence of the lease that it runs under.
#[test]
fn laws_reconcilers_write_through_their_context() {
    for f in files(".rs") {
        let path = f.to_string_lossy().into_owned();
        if path.contains("/control/") || path.contains("/agent/") {
            assert!(!read(&f).contains("cx.store().begin()"), "{path}: write through cx.begin()");
        }
    }
}

#[test]
fn laws_decisions_and_rooms_are_written_down() {
    for f in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "docs/dependencies.md",
        "docs/benchmarks.md",
    ] {
        assert!(root().join(f).exists(), "{f} is missing");
    }
    let architecture = read(&root().join("ARCHITECTURE.md"));
    for name in KERNEL.iter().chain(&SERVICES) {
        let folder = name.trim_start_matches("photon-");
        assert!(architecture.contains(folder), "ARCHITECTURE.md does not say where {name} is");
    }
}
