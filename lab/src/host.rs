//! What a cloud leaves on its host.

use std::{
    collections::BTreeSet,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

static HOST: Mutex<()> = Mutex::new(());

/// Held by an experiment that compares what is on the host before and after: two of them at once would
/// see each other.
pub fn alone() -> MutexGuard<'static, ()> {
    HOST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lines(program: &str, args: &[&str]) -> BTreeSet<String> {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; run ./dev setup"));
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .map(|l| l.trim().to_string())
        .filter(|l| !l.is_empty())
        .collect()
}

/// Namespaces, links and firewall tables of PhotonCloud on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces(pub BTreeSet<String>);

impl Traces {
    pub fn now() -> Traces {
        let mut all = BTreeSet::new();
        for l in lines("ip", &["netns", "list"]) {
            if let Some(name) = l.split_whitespace().next().filter(|n| n.starts_with("photon-")) {
                all.insert(format!("netns {name}"));
            }
        }
        for l in lines("ip", &["-o", "link"]) {
            if let Some(name) = l.split(": ").nth(1).filter(|n| n.starts_with("ph")) {
                all.insert(format!("link {}", name.split('@').next().unwrap_or(name)));
            }
        }
        Traces(all)
    }

    /// What is here now and was not then.
    pub fn since(then: &Traces) -> BTreeSet<String> {
        Traces::now().0.difference(&then.0).cloned().collect()
    }
}
