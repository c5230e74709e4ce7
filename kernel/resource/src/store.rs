//! Objects on an ordered key-value store.

use crate::{
    Actor, Draft, Key, KindInfo, Object, Raw, Reference, Registry, Resource, Scope, Selector, Tx, keys,
};
use bytes::Bytes;
use photon_auth::Authorized;
use photon_base::{Cursor, Error, Name, Result};
use photon_kv::{Direction, Kv, ReadAt, Versioned};
use serde::Serialize;
use std::{collections::BTreeSet, sync::Arc};

/// Where objects live, as seen by one part of the cloud. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    kv: Arc<dyn Kv>,
    registry: Arc<Registry>,
    actor: &'static str,
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// One project; none for all.
    pub project: Option<Name>,
    /// Conditions.
    pub selector: Selector,
    /// Most items of the page, 1–1000; 0 means 100.
    pub limit: u32,
    /// Where to go on.
    pub cursor: Option<Cursor>,
}

/// A page of a list. All pages of one list show one revision.
#[derive(Clone, Debug)]
pub struct ListPage {
    /// Objects in the order of their keys.
    pub items: Vec<Raw>,
    /// Revision shown; watch from the next one.
    pub revision: u64,
    /// Where the list goes on; none at its end.
    pub next: Option<Cursor>,
}

/// Most items of a page.
pub const PAGE_MAX: u32 = 1000;
/// Objects of a page stop here, in bytes as stored: a page may be short.
const PAGE_BYTES: usize = 8 << 20;
/// Objects read at a time.
const STEP: u32 = 100;
/// Most objects looked at for one page of a filtered list.
const SCANNED_MAX: usize = 10_000;

/// Decodes a stored object; its revision comes from the store's own mark.
pub(crate) fn decode(v: &Versioned) -> Result<Raw> {
    let mut o: Raw = serde_json::from_slice(&v.value).map_err(|e| {
        Error::internal(format!("the record {} is damaged", String::from_utf8_lossy(&v.key))).why(e)
    })?;
    o.meta.revision = v.modified;
    Ok(o)
}

impl Store {
    /// Objects of `registry`'s kinds on `kv`. Who changes them counts as `service/photon` until
    /// [`Store::acting_as`] tells.
    pub fn new(kv: Arc<dyn Kv>, registry: Arc<Registry>) -> Store {
        Store { kv, registry, actor: "photon" }
    }

    /// The same store in the hands of a part of the cloud: the audit trail calls it `service/NAME`.
    pub fn acting_as(&self, name: &'static str) -> Store {
        Store { actor: name, ..self.clone() }
    }

    /// The key-value store below.
    pub fn kv(&self) -> &Arc<dyn Kv> {
        &self.kv
    }

    /// The kinds.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The erased form of a type; fails when the program does not declare it.
    pub fn kind_of<R: Resource>(&self) -> Result<&KindInfo> {
        self.registry
            .kind(R::KIND)
            .ok_or_else(|| Error::internal(format!("kind {} is not registered", R::KIND)))
    }

    /// The object that `reference`, made in `project`, names.
    pub(crate) fn resolve(&self, reference: &Reference, project: Option<&Name>) -> Result<Key> {
        let kind = self
            .registry
            .kind(reference.kind)
            .ok_or_else(|| Error::internal(format!("kind {} is not registered", reference.kind)))?;
        let project = match kind.scope {
            Scope::Project => project.cloned(),
            Scope::Cluster => None,
        };
        Ok(Key::new(kind.kind, project, reference.name.clone()))
    }

    /// One object, as of now.
    pub async fn get_raw(&self, key: &Key) -> Result<Option<Raw>> {
        self.kv.get(&key.storage(), ReadAt::Latest).await?.map(|v| decode(&v)).transpose()
    }

    /// One typed object, as of now.
    pub async fn get<R: Resource>(&self, project: Option<&Name>, name: &Name) -> Result<Option<Object<R>>> {
        let key = Key::new(self.kind_of::<R>()?.kind, project.cloned(), name.clone());
        self.get_raw(&key).await?.map(|o| o.typed()).transpose()
    }

    /// A page of a kind.
    pub async fn list(&self, kind: &KindInfo, query: &ListQuery) -> Result<ListPage> {
        let limit = if query.limit == 0 { 100 } else { query.limit.min(PAGE_MAX) };
        let mut range = keys::kind_range(kind.kind, query.project.as_ref(), kind.scope);
        let mut at = ReadAt::Latest;
        if let Some(c) = &query.cursor {
            if !range.contains(&c.after) {
                return Err(Error::invalid("cursor", "not a cursor of this list")
                    .hint("start again without a cursor"));
            }
            at = ReadAt::Revision(c.revision);
            range = range.behind(&c.after);
        }
        let mut items = Vec::new();
        let (mut scanned, mut bytes) = (0, 0);
        loop {
            let left = limit - items.len() as u32;
            let step = if query.selector.is_empty() { STEP.min(left) } else { STEP };
            let page = self.kv.scan(range.clone(), at, step, Direction::Forward).await?;
            at = ReadAt::Revision(page.revision);
            let mut last = None;
            let count = page.items.len();
            for (i, v) in page.items.iter().enumerate() {
                scanned += 1;
                last = Some(v.key.clone());
                let o = decode(v)?;
                if query.selector.matches(&o) {
                    items.push(o);
                    bytes += v.value.len();
                }
                if items.len() == limit as usize || bytes >= PAGE_BYTES {
                    let more = page.more || i + 1 < count;
                    let next = more.then(|| Cursor { revision: page.revision, after: v.key.to_vec() });
                    return Ok(ListPage { items, revision: page.revision, next });
                }
            }
            match last {
                Some(key) if page.more => {
                    if scanned >= SCANNED_MAX {
                        let next = Some(Cursor { revision: page.revision, after: key.to_vec() });
                        return Ok(ListPage { items, revision: page.revision, next });
                    }
                    range = range.behind(&key);
                }
                _ => return Ok(ListPage { items, revision: page.revision, next: None }),
            }
        }
    }

    /// Every object of a typed kind, in one project or everywhere.
    pub async fn list_all<R: Resource>(&self, project: Option<&Name>) -> Result<Vec<Object<R>>> {
        let kind = self.kind_of::<R>()?;
        let mut query = ListQuery { project: project.cloned(), limit: PAGE_MAX, ..ListQuery::default() };
        let mut out = Vec::new();
        loop {
            let page = self.list(kind, &query).await?;
            for o in &page.items {
                out.push(o.typed()?);
            }
            match page.next {
                Some(c) => query.cursor = Some(c),
                None => return Ok(out),
            }
        }
    }

    /// Every "is named by" record that `by` has made, found by looking through all there are: slow, for
    /// when its spec does not tell.
    pub(crate) async fn referred_by(&self, by: &Key) -> Result<BTreeSet<Bytes>> {
        let mut found = BTreeSet::new();
        let mut range = keys::all_referrers();
        loop {
            let page = self.kv.scan(range.clone(), ReadAt::Latest, PAGE_MAX, Direction::Forward).await?;
            let own = page.items.iter().filter(|v| by.made(&v.key));
            found.extend(own.map(|v| v.key.clone()));
            match page.items.last() {
                Some(last) if page.more => range = range.behind(&last.key),
                _ => return Ok(found),
            }
        }
    }

    /// Makes one object, in a commit of its own.
    pub async fn create(&self, kind: &str, draft: Draft) -> Result<Raw> {
        let unknown = || Error::internal(format!("kind {kind} is not registered"));
        let kind = self.registry.kind(kind).ok_or_else(unknown)?;
        let mut tx = self.begin();
        let mut made = tx.create(kind, draft).await?;
        made.meta.revision = tx.commit().await?;
        Ok(made)
    }

    /// [`Store::create`] of a `NAME` or a `PROJECT/NAME`.
    pub async fn make(&self, kind: &str, at: &str, spec: &impl Serialize) -> Result<Raw> {
        let (project, name) = match at.split_once('/') {
            Some((p, n)) => (Some(p.parse()?), n),
            None => (None, at),
        };
        self.create(kind, Draft::new(name.parse()?, spec).project(project)).await
    }

    /// An empty commit to fill, on behalf of the part of the cloud that holds this store.
    pub fn begin(&self) -> Tx<'_> {
        Tx::new(self, Actor::service(self.actor))
    }

    /// An empty commit to fill, on behalf of a caller.
    pub fn begin_for(&self, who: &Authorized) -> Tx<'_> {
        Tx::new(self, Actor::from(who))
    }
}
