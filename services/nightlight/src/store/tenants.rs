//! Stores of several tenants, a folder each, so that none can read or fill another's files.

use super::{Options, Store, StoreError, lock};
use photon_rt::disk::RealDisk;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// Most characters of a tenant's name.
const NAME_MAX: usize = 150;

/// Opens stores as they are asked for.
pub struct Tenants {
    dir: PathBuf,
    options: Options,
    most: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    stores: HashMap<String, (u64, Arc<Store>)>,
    /// Rises with each use: the smallest was used longest ago.
    clock: u64,
}

impl Tenants {
    /// Tenants below `dir`, at most so many of them open at a time.
    pub fn new(dir: &Path, options: Options, most: usize) -> Self {
        Tenants { dir: dir.to_path_buf(), options, most: most.max(1), open: Mutex::default() }
    }

    /// The store of a tenant, made if there is none. When too many are open the one that was used longest ago and that
    /// nobody holds is closed. Blocking.
    pub fn store(&self, tenant: &str) -> Result<Arc<Store>, StoreError> {
        check(tenant)?;
        let mut open = lock(&self.open);
        open.clock += 1;
        let now = open.clock;
        if let Some((used, store)) = open.stores.get_mut(tenant) {
            *used = now;
            return Ok(store.clone());
        }
        if open.stores.len() >= self.most {
            let idle = open.stores.iter().filter(|(_, (_, s))| Arc::strong_count(s) == 1);
            let Some(oldest) = idle.min_by_key(|(_, (used, _))| *used).map(|(n, _)| n.clone()) else {
                return Err(StoreError::TooLarge(format!(
                    "{} tenants are in use, at most {} can be: try again later",
                    open.stores.len(),
                    self.most
                )));
            };
            open.stores.remove(&oldest);
        }
        let dir = self.dir.join(tenant);
        let disk = RealDisk::open(&dir)
            .map_err(|e| StoreError::Disk { what: format!("open tenant {tenant}"), why: e.to_string() })?;
        let store = Arc::new(Store::open(Arc::new(disk), self.options)?);
        open.stores.insert(tenant.to_string(), (now, store.clone()));
        Ok(store)
    }

    /// Those that are open, by name.
    pub fn open(&self) -> Vec<(String, Arc<Store>)> {
        let open = lock(&self.open);
        let mut out: Vec<_> = open.stores.iter().map(|(n, (_, s))| (n.clone(), s.clone())).collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out
    }
}

/// Letters, digits and `!-_.*'()`, and no name of a folder above: what Mimir and its like take.
fn check(tenant: &str) -> Result<(), StoreError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "!-_.*'()".contains(c);
    if tenant.is_empty()
        || tenant.len() > NAME_MAX
        || tenant == "."
        || tenant == ".."
        || !tenant.chars().all(good)
    {
        return Err(StoreError::TooLarge(format!(
            "a tenant's name has 1 to {NAME_MAX} letters, digits and characters of !-_.*'(), not {tenant:?}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{labels::Labels, store::Arrival};

    #[test]
    fn tenants_are_apart_and_few_are_open() {
        let dir = tempfile::tempdir().expect("folder");
        let all = Tenants::new(dir.path(), Options::default(), 2);
        let put = |tenant: &str, v: f64| {
            let a = Arrival { labels: Labels::of(&[("__name__", "m")]), samples: vec![(1, v)] };
            all.store(tenant).and_then(|s| s.append(vec![a]))
        };
        for (i, t) in ["a", "b", "c", "a"].iter().enumerate() {
            let done = put(t, 1.0).expect("append");
            assert_eq!(done.stored, 1, "{i}");
        }
        assert_eq!(all.open().len(), 2);
        let names = |s: &Arc<Store>| s.series(&[], 0, 10).len();
        assert_eq!(names(&all.store("b").expect("b")), 1);
        let (a, c) = (all.store("a").expect("a"), all.store("c").expect("c"));
        assert!(all.store("b").is_err_and(|e| e.to_string().contains("2 tenants are in use")));
        drop((a, c));
        assert!(all.store("d").is_ok_and(|s| s.series(&[], 0, 10).is_empty()));
        for bad in ["", "..", "a/b", "ä", &"x".repeat(151)] {
            assert!(all.store(bad).is_err(), "{bad}");
        }
    }
}
