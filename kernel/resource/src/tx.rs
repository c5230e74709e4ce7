//! Changes to objects, gathered and then made in one commit.

use crate::{
    Actor, Draft, FieldChange, Key, KindInfo, Meta, Object, Owner, Raw, Reference, Resource, Store,
    audit::Change, keys, meta,
};
use bytes::Bytes;
use photon_base::{Code, Error, Name, Result, Uid};
use photon_kv::{Check, KvError, Write};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

/// The kind that [`crate::Scope::Project`] refers to.
pub const PROJECT_KIND: &str = "project";

/// A commit in the making: all of it happens, or nothing.
pub struct Tx<'a> {
    store: &'a Store,
    checks: Vec<(Check, Error)>,
    writes: BTreeMap<Bytes, Write>,
    actor: Actor,
    changes: Vec<Change>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(store: &'a Store, actor: Actor) -> Self {
        Tx { store, checks: Vec::new(), writes: BTreeMap::new(), actor, changes: Vec::new() }
    }

    /// Says in the audit records of this commit what led to it.
    pub fn because(&mut self, why: &str) {
        self.actor.because(why);
    }

    /// Adds a condition and the error that its failure means.
    pub fn check(&mut self, check: Check, otherwise: Error) {
        self.checks.push((check, otherwise));
    }

    fn write(&mut self, w: Write) -> Result<()> {
        match self.writes.entry(w.key().clone()) {
            Entry::Vacant(e) => {
                e.insert(w);
                Ok(())
            }
            Entry::Occupied(_) => Err(Error::internal("one commit writes a record twice")),
        }
    }

    fn put_object(&mut self, key: &Key, object: &Raw) -> Result<()> {
        let bytes =
            serde_json::to_vec(object).map_err(|e| Error::internal("an object can't be written").why(e))?;
        if bytes.len() > crate::http::BODY_BYTES_MAX {
            return Err(Error::new(Code::Invalid, format!("{key} would be too large"))
                .why("an object has at most 1 MiB"));
        }
        self.write(Write::Put(key.storage(), bytes.into()))
    }

    /// Takes `item` of `pool` for `holder`; fails with `otherwise` when somebody has it.
    pub fn claim(&mut self, pool: &str, item: &str, holder: Uid, otherwise: Error) -> Result<()> {
        let key = keys::claim_key(pool, item);
        self.check(Check::absent(key.clone()), otherwise);
        self.write(Write::Put(key, holder.to_string().into()))
    }

    /// Gives `item` of `pool` back.
    pub fn release(&mut self, pool: &str, item: &str) -> Result<()> {
        self.write(Write::Delete(keys::claim_key(pool, item)))
    }

    /// Notes for the audit trail that this commit changes `part` of what belongs to an object and is not
    /// in it, as a user's password.
    pub fn note(&mut self, target: &Key, object: Uid, part: &str) {
        self.changes.push(Change::beside(target, object, part));
    }

    /// The changes of wishes so far, field by field.
    pub(crate) fn changes(&self) -> Vec<FieldChange> {
        self.changes.iter().flat_map(|c| c.fields.clone()).collect()
    }

    /// Puts any record of ours that is not an object.
    pub fn put(&mut self, key: Bytes, value: Bytes) -> Result<()> {
        beside_objects(&key)?;
        self.write(Write::Put(key, value))
    }

    /// Removes any record of ours that is not an object.
    pub fn remove(&mut self, key: Bytes) -> Result<()> {
        beside_objects(&key)?;
        self.write(Write::Delete(key))
    }

    /// Makes an object. What it names must exist and stay unchanged until the commit.
    pub async fn create(&mut self, kind: &KindInfo, draft: Draft) -> Result<Raw> {
        let key = Key::new(kind.kind, draft.project.clone(), draft.name.clone());
        meta::check_labels(&draft.labels).map_err(|e| e.within("meta"))?;
        let (spec, references) = (kind.admit)(draft.spec)?;
        let status = (kind.admit_status)(draft.status)?;
        if let Some(project) = &draft.project {
            let pkey = Key::new(PROJECT_KIND, None, project.clone());
            let hint = format!("photon project create {project}");
            self.needs(&pkey, "meta.project").await.map_err(|e| e.hint(hint))?;
        }
        for r in &references {
            self.refer(r, draft.project.as_ref(), &key).await?;
        }
        let object = Raw {
            meta: Meta {
                id: draft.id.unwrap_or_else(photon_rt::entropy::uid),
                name: draft.name,
                project: draft.project,
                labels: draft.labels,
                generation: 1,
                revision: 0,
                created: photon_rt::time::wall(),
                deleting: None,
                finalizers: kind.finalizers.iter().map(ToString::to_string).collect(),
                owner: draft.owner,
            },
            spec,
            status,
        };
        let exists = Error::new(Code::Exists, format!("{key} exists already"));
        self.check(Check::absent(key.storage()), exists);
        self.put_object(&key, &object)?;
        self.changes.extend(Change::between(&key, None, Some(&object)));
        Ok(object)
    }

    /// Notes that `by` names what `r` says, which must exist. Naming it twice is naming it.
    async fn refer(&mut self, r: &Reference, project: Option<&Name>, by: &Key) -> Result<()> {
        let target = self.store.resolve(r, project)?;
        let record = target.referrer(by);
        if !self.writes.contains_key(&record) {
            self.needs(&target, &format!("spec.{}", r.field)).await?;
            self.write(Write::Put(record, Bytes::new()))?;
        }
        Ok(())
    }

    /// The "is named by" records that `by` made with its stored spec. What its kind does not admit any
    /// more must still be able to go: then the records themselves tell.
    async fn referred(&self, kind: &KindInfo, by: &Key, spec: &Value) -> Result<BTreeSet<Bytes>> {
        match (kind.admit)(spec.clone()) {
            Ok((_, references)) => {
                let record = |r| Ok(self.store.resolve(r, by.project.as_ref())?.referrer(by));
                references.iter().map(record).collect()
            }
            Err(_) => self.store.referred_by(by).await,
        }
    }

    /// Requires that `target` exists, is wanted, and does not change before the commit.
    async fn needs(&mut self, target: &Key, field: &str) -> Result<()> {
        match self.store.get_raw(target).await? {
            Some(t) if t.meta.deleting.is_some() => {
                Err(Error::new(Code::Conflict, format!("{target} is being deleted")).within(field))
            }
            Some(t) => {
                self.check(Check::Modified(target.storage(), t.meta.revision), Error::raced(target));
                Ok(())
            }
            None => Err(Error { field: Some(field.to_string()), ..Error::not_found(target) }),
        }
    }

    /// Replaces `old` by `new`, from which it may differ in labels, finalizers, `deleting`, spec (admitted
    /// here) and status. Fails with a conflict when `old` is no longer what is stored. An object that is being deleted
    /// and has no finalizers left is removed, with its "is named by" records. Returns what is stored
    /// after the commit, or none when it is gone.
    pub async fn replace(&mut self, kind: &KindInfo, old: &Raw, mut new: Raw) -> Result<Option<Raw>> {
        let key = Key::new(kind.kind, old.meta.project.clone(), old.meta.name.clone());
        self.check(Check::Modified(key.storage(), old.meta.revision), Error::raced(&key));
        let mut generation = old.meta.generation;
        if new.spec != old.spec {
            meta::check_labels(&new.meta.labels).map_err(|e| e.within("meta"))?;
            let (spec, references) = (kind.admit)(new.spec)?;
            (kind.admit_update)(&old.spec, &spec)?;
            let mut before = self.referred(kind, &key, &old.spec).await?;
            for r in &references {
                let record = self.store.resolve(r, key.project.as_ref())?.referrer(&key);
                if !before.remove(&record) {
                    self.refer(r, key.project.as_ref(), &key).await?;
                }
            }
            for record in before {
                self.write(Write::Delete(record))?;
            }
            generation += u64::from(spec != old.spec);
            new.spec = spec;
        }
        if new.meta.labels != old.meta.labels {
            meta::check_labels(&new.meta.labels).map_err(|e| e.within("meta"))?;
        }
        if new.meta.deleting.is_some() && old.meta.deleting.is_none() {
            generation += 1;
            self.forbid_if_named(kind, &key);
        }
        new.meta = Meta {
            labels: new.meta.labels,
            finalizers: new.meta.finalizers,
            deleting: old.meta.deleting.or(new.meta.deleting),
            generation,
            revision: 0,
            ..old.meta.clone()
        };
        if new.meta.deleting.is_some() && new.meta.finalizers.is_empty() {
            for record in self.referred(kind, &key, &old.spec).await? {
                self.writes.insert(record.clone(), Write::Delete(record)); // `new` may have let it go already
            }
            self.write(Write::Delete(key.storage()))?;
            self.changes.extend(Change::between(&key, Some(old), None));
            return Ok(None);
        }
        if new.status != old.status {
            new.status = (kind.admit_status)(new.status)?;
        }
        self.put_object(&key, &new)?;
        self.changes.extend(Change::between(&key, Some(old), Some(&new)));
        Ok(Some(new))
    }

    /// What others name can't go; a project goes only when empty.
    fn forbid_if_named(&mut self, kind: &KindInfo, key: &Key) {
        let used = Error::new(Code::Conflict, format!("{key} is in use"))
            .hint("delete what uses it first: `photon get all` shows it");
        self.check(Check::Absent(key.referrers()), used);
        if kind.kind == PROJECT_KIND {
            for k in self.store.registry().kinds().iter().filter(|k| k.scope == crate::Scope::Project) {
                let range = keys::kind_range(k.kind, Some(&key.name), k.scope);
                let full = Error::new(Code::Conflict, format!("{key} still has {}", k.plural))
                    .hint(format!("photon {} list --project {}", k.kind, key.name));
                self.check(Check::Absent(range), full);
            }
        }
    }

    /// Asks for the removal of `old`: at once when nobody has to clean up, else when the last
    /// finalizer has run. Asking twice is fine.
    pub async fn delete(&mut self, kind: &KindInfo, old: &Raw) -> Result<Option<Raw>> {
        let mut new = old.clone();
        new.meta.deleting = Some(old.meta.deleting.unwrap_or_else(photon_rt::time::wall));
        self.replace(kind, old, new).await
    }

    /// [`Tx::create`] of a typed child, whose identity follows from its owner and name.
    pub async fn create_child<R: Resource, O: Resource>(
        &mut self,
        owner: &Object<O>,
        name: Name,
        spec: &R,
    ) -> Result<Raw> {
        let kind = self.store.kind_of::<R>()?.clone();
        let id = owner.meta.id.derive(&format!("{}/{name}", R::KIND));
        let owner_ref = Owner { kind: O::KIND.into(), name: owner.meta.name.clone(), id: owner.meta.id };
        let draft = Draft::new(name, spec).project(owner.meta.project.clone()).child_of(owner_ref, id);
        self.create(&kind, draft).await
    }

    /// Replaces a typed object by `change(object)`.
    pub async fn update<R: Resource>(
        &mut self,
        old: &Object<R>,
        change: impl FnOnce(&mut Object<R>),
    ) -> Result<()> {
        let kind = self.store.kind_of::<R>()?.clone();
        let mut new = old.clone();
        change(&mut new);
        self.replace(&kind, &old.raw()?, new.raw()?).await.map(|_| ())
    }

    /// Makes the commit, with an audit record for each change of a wish. Returns its revision.
    pub async fn commit(mut self) -> Result<u64> {
        for change in std::mem::take(&mut self.changes) {
            let (k, v) = change.record(&self.actor, photon_rt::time::wall())?;
            self.write(Write::Put(k, v))?;
        }
        let writes = std::mem::take(&mut self.writes).into_values().collect();
        self.send(writes).await
    }

    /// Tries the conditions and writes nothing.
    pub async fn verify(self) -> Result<()> {
        self.send(Vec::new()).await.map(|_| ())
    }

    async fn send(self, writes: Vec<Write>) -> Result<u64> {
        let (checks, errors): (Vec<Check>, Vec<Error>) = self.checks.into_iter().unzip();
        match self.store.kv().commit(checks, writes).await {
            Ok(c) => Ok(c.revision),
            Err(KvError::CheckFailed(i)) => {
                Err(errors.into_iter().nth(i).unwrap_or_else(|| Error::internal("an unknown check failed")))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// True when the commit would write nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.changes.is_empty()
    }
}

/// Objects change by [`Tx::create`] and [`Tx::replace`] alone, which note what they do.
fn beside_objects(key: &[u8]) -> Result<()> {
    if key.starts_with(keys::RESOURCE_PREFIX.as_bytes()) {
        return Err(Error::internal("an object is written past its rules"));
    }
    Ok(())
}
