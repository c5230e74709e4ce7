//! FlareDB in a cloud. It has one home so far: the node that began it. The others say so at their port, since a
//! store of their own would be another one that only looks like it.

use super::Paths;
use ::flaredb::{
    Node,
    wire::{Door, FlareDb},
};
use axum::{Router, http::StatusCode};
use bytes::Bytes;
use photon_auth::Gate;
use photon_base::{Error, Name, Result};
use photon_kv::{Check, Kv, ReadAt, Write};
use photon_resource::http::problem;
use photon_rt::{fs, task::Tasks};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Which node is its home, and the number of the store there: `NODE NUMBER`.
const HOME: &[u8] = b"/photon.internal/flaredb/home";

/// The FlareDB of this cloud, as this node has it.
pub enum FlareStore {
    /// Here.
    Here(FlareDb),
    /// On another node.
    At(String),
    /// Here, but its data are gone or damaged: why.
    Lost(String),
}

impl FlareStore {
    /// Opens it, or finds out where it is. The first node that asks becomes its home.
    pub async fn open(
        paths: &Paths,
        me: &Name,
        kv: &Arc<dyn Kv>,
        gate: &Gate,
        tasks: &Tasks,
    ) -> Result<FlareStore> {
        let dir = paths.service("flaredb");
        let mark = dir.join("number");
        let own = fs::read_text(&mark, 64).ok();
        let number = own.clone().unwrap_or_else(|| photon_rt::entropy::uid().to_string());
        let mine = format!("{me} {number}");
        let read = async || kv.get(HOME, ReadAt::Latest).await.map_err(Error::from);
        if read().await?.is_none() {
            // Marked first: a claim without its store would be one that was lost.
            fs::private_dir(&dir)?;
            fs::write_atomic(&mark, number.as_bytes(), 0o600)?;
            let put = Write::Put(Bytes::from_static(HOME), mine.clone().into());
            if let Err(e) = kv.commit(vec![Check::absent(HOME)], vec![put]).await {
                tracing::info!(error = %e, "another node may have been faster");
            }
        }
        let home =
            read().await?.ok_or_else(|| Error::unavailable("where FlareDB is cannot be written down"))?;
        let home = String::from_utf8_lossy(&home.value).into_owned();
        if home != mine {
            let (node, _) = home.split_once(' ').unwrap_or((&home, ""));
            if node != me.as_str() {
                return Ok(FlareStore::At(node.to_string()));
            }
            let why = format!("the store that began on this node is not in {}", dir.display());
            tracing::error!(why, "FlareDB does not run");
            return Ok(FlareStore::Lost(why));
        }
        let node = match Node::open(&dir).await {
            Ok(node) => node,
            // Everything else on this node goes on without it.
            Err(e) => {
                tracing::error!(error = %e, "FlareDB does not run");
                return Ok(FlareStore::Lost(e.to_string()));
            }
        };
        Ok(FlareStore::Here(FlareDb::new(node, Door::Guarded(gate.clone()), me.to_string(), tasks)))
    }

    /// Whether it is well, and what it tells.
    pub fn health(&self, chainfire: bool) -> (bool, Map<String, Value>) {
        let (well, mut m) = match self {
            FlareStore::Here(db) => db.health(),
            FlareStore::At(node) => (true, Map::from_iter([("home".to_string(), node.clone().into())])),
            FlareStore::Lost(why) => (false, Map::from_iter([("reason".to_string(), why.clone().into())])),
        };
        m.insert("chainfire".into(), if chainfire { "connected" } else { "away" }.into());
        (well, m)
    }

    /// What its port answers beside `pages`.
    pub fn router(&self, pages: Router) -> Router {
        let away =
            |e: Error| pages.clone().fallback(async move || (StatusCode::SERVICE_UNAVAILABLE, problem(&e)));
        match self {
            FlareStore::Here(_) => pages,
            FlareStore::At(node) => away(
                Error::unavailable(format!("this cloud's FlareDB runs on node {node}"))
                    .hint("photon node list shows where that is: --endpoint https://HOST:2479"),
            ),
            FlareStore::Lost(why) => away(
                Error::unavailable("this cloud's FlareDB does not run: its data are gone or damaged")
                    .why(why)
                    .hint("put its folder back; or to begin anew, as the operator: etcdctl del /photon.internal/flaredb/home"),
            ),
        }
    }

    /// What its listener asks first.
    pub fn direct(&self) -> Option<photon_serve::listen::Direct> {
        match self {
            FlareStore::Here(db) => Some(db.direct()),
            _ => None,
        }
    }

    /// Ends it in order, when nobody asks any more.
    pub async fn shutdown(&self) {
        if let FlareStore::Here(db) = self {
            db.node().shutdown().await;
        }
    }
}
