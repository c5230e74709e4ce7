//! `/health` in the shape that clients and load balancers rely on.

use axum::{Json, Router, response::IntoResponse, routing::get};
use serde_json::{Map, Value};
use std::sync::Arc;

/// What a service says of itself: `status` is `healthy` or why not; other fields follow.
pub type Report = Arc<dyn Fn() -> (bool, Map<String, Value>) + Send + Sync>;

/// `GET /health` (and `/ready`, which is the same promise): 200 when healthy, else 503.
pub fn routes(report: Report) -> Router {
    let handler = move || {
        let (healthy, fields) = report();
        async move {
            let mut body = Map::new();
            body.insert("status".into(), if healthy { "healthy" } else { "unhealthy" }.into());
            body.extend(fields);
            let code = if healthy { http::StatusCode::OK } else { http::StatusCode::SERVICE_UNAVAILABLE };
            (code, Json(Value::Object(body))).into_response()
        }
    };
    Router::new().route("/health", get(handler.clone())).route("/ready", get(handler))
}
