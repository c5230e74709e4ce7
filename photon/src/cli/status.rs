//! `photon status`.

use super::{Format, Global, output};
use crate::node::running_pid;
use http_body_util::BodyExt;
use photon_base::{Code, Error, Result};
use serde_json::{Value, json};

/// Prints every service; succeeds only when all are ready.
pub async fn status(global: &Global) -> Result<()> {
    let pid = running_pid(&global.data_dir());
    let client = global.client().await?;
    // An unhealthy cloud answers 503 with the same body: the details are what people need then.
    let answer = client.send(http::Method::GET, "/health", &[], &[]).await?;
    let body = http_body_util::Limited::new(answer.into_body(), 1 << 20).collect().await;
    let body = body.map_err(|e| Error::unavailable("the answer broke off").why(e))?.to_bytes();
    let health: Value =
        serde_json::from_slice(&body).map_err(|e| Error::internal("the health report is not JSON").why(e))?;
    let healthy = health["status"] == "healthy";
    match global.output {
        Format::Table | Format::Name => {
            let rows: Vec<Value> = health["services"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, s)| {
                    let mut details = s.clone();
                    if let Some(m) = details.as_object_mut() {
                        m.remove("status");
                    }
                    let text = details
                        .as_object()
                        .into_iter()
                        .flatten()
                        .map(|(k, v)| format!("{k}={v}"))
                        .collect::<Vec<_>>();
                    json!({ "name": name, "status": s["status"], "details": text.join(" ") })
                })
                .collect();
            output::line(&format!(
                "node {} at {}{}\n",
                health["node"].as_str().unwrap_or_default(),
                client.endpoint(),
                pid.map(|p| format!(", process {p}")).unwrap_or_default()
            ));
            output::table(&[("SERVICE", "/name"), ("STATUS", "/status"), ("DETAILS", "/details")], &rows);
        }
        f => output::value(f, &health),
    }
    if healthy {
        Ok(())
    } else {
        Err(Error::new(Code::Unavailable, "not every service is ready").hint("photon status -o yaml"))
    }
}
