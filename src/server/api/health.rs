//! Liveness, readiness and metrics.

use std::sync::Mutex;
use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::App;
use crate::backends::registry::Role;
use crate::runtime::clock;
use crate::server::cluster::peer::{Answer, Call};
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

/// How long a rendered page stands: who asks for many gets the same one.
const PAGE_TTL: Duration = Duration::from_millis(50);

/// The page that was rendered last, and when, on [`clock::now_us`].
pub(super) type MetricsPage = Mutex<Option<(u64, Bytes)>>;

pub(super) async fn metrics(server: App) -> Response {
    let page = {
        let mut last = server.metrics_page.lock().expect("no panic while held");
        let now_us = clock::now_us();
        match &*last {
            Some((at_us, page)) if now_us.saturating_sub(*at_us) < PAGE_TTL.as_micros() as u64 => page.clone(),
            _ => {
                let page = Bytes::from(prometheus::render(&server.deps.registry.all()));
                *last = Some((now_us, page.clone()));
                page
            }
        }
    };
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], page).into_response()
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
