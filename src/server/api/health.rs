//! Liveness, readiness and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::{ApiServer, App};
use crate::backends::registry::Role;
use crate::protocol::ErrorCode;
use crate::server::cluster::peer::{Answer, Call};
use crate::server::http::status::Failure;
use crate::telemetry::prometheus;

pub(super) async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "live" }))
}

pub(super) async fn ready(server: App) -> Response {
    let report = server.readiness.check(&server.deps.backends).await;
    let is_ready = report.is_ready() && !server.deps.tasks.is_stopped();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

fn page(page: Option<Bytes>) -> Response {
    match page {
        Some(page) => ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], page).into_response(),
        None => Failure::retry_later(ErrorCode::Unavailable, "this server stops", 1_000).into_response(),
    }
}

pub(super) async fn metrics(server: App) -> Response {
    page(Some(server.metrics_page.get(|| prometheus::render(&server.deps.registry.all()))))
}

/// The figures of every live server, asked over peer links at most once in a second, whoever asks how often. A server that
/// does not answer is left out.
pub(super) async fn cluster_metrics(State(server): App) -> Response {
    let asking = Arc::clone(&server);
    page(server.cluster_page.get(&server.deps.tasks, move || gather(asking)).await)
}

async fn gather(server: Arc<ApiServer>) -> String {
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
    prometheus::merge(&texts)
}
