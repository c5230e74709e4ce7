//! `--wait`: follow an object until it has come to rest.

use photon_base::{Code, Error, Result};
use photon_client::{Change, Client};
use photon_resource::KindInfo;
use photon_rt::time::{Duration, timeout};
use serde_json::Value;

/// What an object's state means to somebody who waits.
#[derive(Debug, PartialEq)]
pub enum Rest {
    /// It is as wanted.
    Settled,
    /// It failed; why.
    Failed(String),
    /// Not yet; where it is.
    Moving(String),
}

/// Reads it off phase, generation and conditions.
pub fn rest(kind: &KindInfo, o: &Value) -> Rest {
    if kind.settled.is_empty() {
        return Rest::Settled;
    }
    let phase = o["status"]["phase"].as_str().unwrap_or_default();
    let message = obstacle(o).unwrap_or_default();
    let answered = o["status"]["observedGeneration"].as_u64() >= o["meta"]["generation"].as_u64();
    let wanted = o["spec"]["power"].as_str();
    let at_rest = kind.settled.contains(&phase) && wanted.is_none_or(|w| w == phase);
    if answered && at_rest {
        Rest::Settled
    } else if answered && kind.failed.contains(&phase) {
        Rest::Failed(message.to_string())
    } else {
        Rest::Moving(format!("{phase}{}{message}", if message.is_empty() { "" } else { ": " }))
    }
}

/// Waits until the object is as wanted. `seen` is it as last read.
pub async fn settled(
    client: &Client,
    kind: &KindInfo,
    list: &str,
    seen: Value,
    limit: Duration,
) -> Result<Value> {
    let name = seen["meta"]["name"].as_str().unwrap_or_default().to_string();
    let what = format!("{} {name:?}", kind.kind);
    let mut last = String::new();
    let follow = async {
        let mut now = seen;
        let mut watch = client
            .watch(&format!("{list}?fields=meta.name={name}"), now["meta"]["revision"].as_u64().unwrap_or(0));
        loop {
            match rest(kind, &now) {
                Rest::Settled => return Ok(now),
                Rest::Failed(why) => {
                    return Err(Error::new(Code::Internal, format!("{what} failed")).why(why));
                }
                Rest::Moving(at) => last = at,
            }
            match watch.next().await? {
                Change::Put(o) => now = o,
                Change::Delete { name: n, .. } if n == name => {
                    return Err(Error::not_found(&what).why("it was deleted meanwhile"));
                }
                // Another object, of which a server may say that it does not match.
                Change::Delete { .. } => {}
            }
        }
    };
    match timeout(limit, &what, follow).await {
        Ok(r) => r,
        Err(e) => {
            Err(e.why(format!("it is still {last}")).hint(format!("photon {} get {name} -o yaml", kind.kind)))
        }
    }
}

/// Waits until the object is gone.
pub async fn gone(client: &Client, kind: &KindInfo, list: &str, name: &str, limit: Duration) -> Result<()> {
    let mut last = String::new();
    let follow = async {
        let now = client.get(&format!("{list}?fields=meta.name={name}&limit=1")).await?;
        let Some(o) = now["items"].as_array().and_then(|i| i.first()) else { return Ok(()) };
        last = standing(o);
        let mut watch =
            client.watch(&format!("{list}?fields=meta.name={name}"), now["revision"].as_u64().unwrap_or(0));
        loop {
            match watch.next().await? {
                Change::Delete { name: n, .. } if n == name => return Ok(()),
                Change::Delete { .. } => {}
                Change::Put(o) => last = standing(&o),
            }
        }
    };
    match timeout(limit, &format!("deleting {} {name:?}", kind.kind), follow).await {
        Ok(r) => r,
        Err(e) => Err(e.why(format!("it is still {last}"))),
    }
}

/// Where an object is, and what stands in the way.
fn standing(o: &Value) -> String {
    let phase = o["status"]["phase"].as_str().unwrap_or("there");
    obstacle(o).map_or(phase.to_string(), |m| format!("{phase}: {m}"))
}

/// The first condition that does not hold and says why.
fn obstacle(o: &Value) -> Option<&str> {
    let all = o["status"]["conditions"].as_array().into_iter().flatten();
    all.filter(|c| c["status"] == false).filter_map(|c| c["message"].as_str()).find(|m| !m.is_empty())
}
