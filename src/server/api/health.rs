//! Liveness, readiness and metrics.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::App;
use crate::backends::registry::Role;
use crate::server::peer::{Answer, Call};
use crate::telemetry::prometheus;

pub(super) async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "live" }))
}

pub(super) async fn ready(server: App) -> Response {
    let report = server.readiness.look(&server.deps.backends).await;
    let is_ready = report.is_ready() && !server.deps.tasks.is_stopped();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

pub(super) async fn metrics(server: App) -> Response {
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], prometheus::render(&server.deps.registry.all()))
        .into_response()
}

/// The figures of every live server, asked over peer links. A server that does not answer is left out.
pub(super) async fn cluster_metrics(server: App) -> Response {
    let here = server.deps.registry.all();
    let mut texts = vec![prometheus::render(&here)];
    let elsewhere: Vec<_> = Role::ALL
        .into_iter()
        .flat_map(|role| server.cluster.servers(role).to_vec())
        .filter(|entry| here.iter().all(|m| m.server() != entry.name.as_str()))
        .collect();
    let asked = elsewhere.iter().map(|entry| server.peers.call(entry, &Call::Metrics));
    for answer in futures_util::future::join_all(asked).await {
        if let Ok(Answer::Metrics(text)) = answer {
            texts.push(text);
        }
    }
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], prometheus::merge(&texts)).into_response()
}
