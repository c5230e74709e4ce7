//! Transactions as their client runs them.
//!
//! The coordinator is asynchronous code over [`World`], its only door: no clock, no sockets, no tasks of its
//! own. On a real network it runs on tokio; in [`crate::sim`] on a virtual clock, where a seed replays it.
//!
//! Rooms: [`txn`] (a transaction from its first read to its commit), `resolve` (locks of others that are in
//! the way: the dead are buried, the living pushed or waited for), `route` (keys to regions, again and again),
//! [`deadlock`] (who waits for whom), [`gc`] (collecting history), [`raw`] (keys with one version).
//!
//! **The primary decides.** Whoever ends a transaction, its own coordinator or somebody who met its locks,
//! first commits or rolls back the primary and takes what that answers for the truth, and only then touches
//! other keys. So no two of them can end it differently.

pub mod deadlock;
pub mod gc;
pub mod raw;
pub(crate) mod resolve;
mod route;
pub mod txn;

pub use txn::{Abort, Isolation, Options, Txn};

use crate::{
    Refusal,
    key::{self, Mode, Span},
    model::{
        Answer, Descriptor, Op,
        read::{self, Page, Query, RawValue, ReadRange, Snapshot},
    },
    refusal::Outcome,
    time::Ts,
};
use bytes::Bytes;
use photon_kv::engine::View;
use std::{future::Future, pin::Pin};

/// What a region's leader is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// To do something, through its log.
    Do(Op),
    /// For a key in a snapshot.
    Get(Bytes, Snapshot),
    /// For rows in a snapshot.
    Scan(Query, Snapshot),
    /// Whether what a transaction read at `since` is still so at the snapshot.
    Unchanged {
        /// What it read.
        range: ReadRange,
        /// The transaction, and when it read.
        start: Ts,
        /// When it wants to commit, and whom it may pass by.
        at: Snapshot,
    },
    /// For the newest value of a raw key.
    RawGet(Bytes),
    /// For raw rows as they are now.
    RawScan(Query),
}

impl Request {
    /// The keys that it reads, and when if not as they are now.
    pub fn reads(&self) -> Option<(Span, Option<Ts>)> {
        match self {
            Request::Do(_) => None,
            Request::Get(key, s) => Some((ReadRange::key(key).0, Some(s.at))),
            Request::Scan(q, s) => Some((q.span.clone(), Some(s.at))),
            Request::Unchanged { range, at, .. } => Some((range.0.clone(), Some(at.at))),
            Request::RawGet(key) => Some((ReadRange::key(key).0, None)),
            Request::RawScan(q) => Some((q.span.clone(), None)),
        }
    }

    /// Answers a read from one state.
    pub fn read(&self, view: &dyn View) -> Outcome<Response> {
        match self {
            Request::Do(_) => Err(Refusal::Malformed("no read".into())),
            Request::Get(key, s) => read::get(view, key, s).map(Response::Value),
            Request::Scan(q, s) => read::scan(view, q, s).map(Response::Page),
            Request::Unchanged { range, start, at } => {
                read::unchanged(view, range, *start, at).map(|()| Response::Done(Answer::Done))
            }
            Request::RawGet(key) => {
                key::check(Mode::Raw, key)?;
                let value = read::raw_get(view, key)?;
                Ok(Response::Value(value.map(|RawValue { value, version }| (value, version))))
            }
            Request::RawScan(q) => read::raw_scan(view, q).map(Response::Page),
        }
    }
}

/// What it answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// It was done.
    Done(Answer),
    /// A value, and its commit or, of a raw key, its version.
    Value(Option<(Bytes, Ts)>),
    /// Rows.
    Page(Page),
}

/// A future that runs by itself.
pub type Background = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Everything outside the coordinator.
pub trait World: Clone + Send + Sync + 'static {
    /// A fresh timestamp.
    fn timestamp(&self) -> impl Future<Output = Outcome<Ts>> + Send;

    /// The region of a key, as far as is known.
    fn locate(&self, key: &Bytes) -> impl Future<Output = Outcome<Descriptor>> + Send;

    /// The region of the last keys before `end`; of the last there are when it is empty.
    fn locate_below(&self, end: &Bytes) -> impl Future<Output = Outcome<Descriptor>> + Send;

    /// A region was not what it was thought to be: looks anew when it is asked next.
    fn forget(&self, region: &Descriptor);

    /// Asks a region's leader. [`crate::Refusal::Unknown`] when no answer came.
    fn ask(&self, region: &Descriptor, request: Request) -> impl Future<Output = Outcome<Response>> + Send;

    /// Lets time pass.
    fn sleep(&self, ms: u64) -> impl Future<Output = ()> + Send;

    /// A random number below `n`.
    fn draw(&self, n: u64) -> u64;

    /// Lets something go on while nobody waits for it. It may be lost with this client.
    fn background(&self, task: Background);

    /// Transaction `waiter` is about to wait for `holder`. [`crate::Refusal::Deadlock`] if that closes a circle.
    fn waits(&self, waiter: Ts, holder: Ts) -> impl Future<Output = Outcome<()>> + Send;

    /// It waits no more.
    fn waited(&self, waiter: Ts);
}
