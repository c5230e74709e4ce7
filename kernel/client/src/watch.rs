//! Watches that resume.

use crate::{
    Client,
    sse::{Decoder, SseEvent},
};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use photon_base::{Error, Result};
use photon_rt::time::{Duration, sleep, timeout};
use serde_json::Value;
use std::collections::VecDeque;

/// What happened to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is like this now.
    Put(Value),
    /// It is gone.
    Delete {
        /// Its project.
        project: Option<String>,
        /// Its name.
        name: String,
    },
}

/// Follows a list. A lost connection is made again, perhaps to another front door, from the last revision seen: no
/// gap, no duplicate.
pub struct Watch<'c> {
    client: &'c Client,
    path: String,
    revision: u64,
    body: Option<Incoming>,
    decoder: Decoder,
    /// Changes of a revision that is not complete yet are held back, so that a break within it repeats it whole.
    partial: Vec<Change>,
    ready: VecDeque<Change>,
}

/// A stream that is silent for this long has no server any more.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pauses between tries to connect again.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Tries in a row without a single event.
const TRIES: u32 = 30;

impl Client {
    /// Follows the list at `path` (which may have selectors) from behind `revision`.
    pub fn watch(&self, path: &str, revision: u64) -> Watch<'_> {
        Watch {
            client: self,
            path: path.to_string(),
            revision,
            body: None,
            decoder: Decoder::default(),
            partial: Vec::new(),
            ready: VecDeque::new(),
        }
    }
}

impl Watch<'_> {
    /// The next change. An error is final; after `Code::Gone` list again.
    pub async fn next(&mut self) -> Result<Change> {
        let (mut pause, mut tries) = (Duration::from_millis(50), 0);
        loop {
            if let Some(c) = self.ready.pop_front() {
                return Ok(c);
            }
            let at = self.client.at();
            match self.more().await {
                Ok(()) => (pause, tries) = (Duration::from_millis(50), 0),
                Err(e) if e.is_retryable() && tries < TRIES => {
                    tracing::debug!(error = %e, "the watch broke; resuming");
                    self.client.leave_for(at, &e);
                    (self.body, self.decoder) = (None, Decoder::default());
                    self.partial.clear();
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    tries += 1;
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn more(&mut self) -> Result<()> {
        let body = match &mut self.body {
            Some(b) => b,
            None => {
                let sep = if self.path.contains('?') { '&' } else { '?' };
                let path = format!("{}{sep}watch=true&revision={}", self.path, self.revision);
                let r = self.client.send(Method::GET, &path, &[], &[]).await?;
                if !r.status().is_success() {
                    let status = r.status().as_u16();
                    let body = r.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                    return Err(crate::connection::from_problem(status, &body));
                }
                self.body.insert(r.into_body())
            }
        };
        let broke = |e: &dyn std::fmt::Display| Error::unavailable("the watch broke off").why(e);
        // The server says something at least every 15 s.
        let frame = timeout(SILENCE_MAX, "the watch", body.frame()).await?;
        let frame = frame.ok_or_else(|| broke(&"end of stream"))?.map_err(|e| broke(&e))?;
        if let Ok(data) = frame.into_data() {
            for e in self.decoder.push(&data)? {
                self.take(e)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, e: SseEvent) -> Result<()> {
        let v: Value =
            serde_json::from_str(&e.data).map_err(|e| Error::internal("the watch sent no JSON").why(e))?;
        if e.name == "error" {
            return Err(crate::connection::from_problem(500, e.data.as_bytes()));
        }
        let revision = v["revision"].as_u64().unwrap_or_default();
        // A revision is complete when the next one starts, or with its marked last event.
        let change = match v["type"].as_str() {
            Some("put") => Some(Change::Put(v["object"].clone())),
            Some("delete") => Some(Change::Delete {
                project: v["project"].as_str().map(ToString::to_string),
                name: v["name"].as_str().unwrap_or_default().to_string(),
            }),
            _ => None,
        };
        self.partial.extend(change);
        if v["last"].as_bool().unwrap_or(true) {
            self.ready.extend(self.partial.drain(..));
            self.revision = self.revision.max(revision);
        }
        Ok(())
    }
}
