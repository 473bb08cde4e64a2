//! Liveness, readiness and metrics. Readiness asks every engine and names the one that does not answer; liveness asks
//! nobody, so that an engine's outage never restarts servers.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{ApiServer, App};
use crate::backends::registry::Role;
use crate::runtime::clock;
use crate::server::peer::{Answer, Call};
use crate::telemetry::prometheus;

/// How long an answer stands: probes of many balancers cost one look.
const FRESH: Duration = Duration::from_millis(500);

/// How long an engine may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The last look at the engines, and when it was.
pub(super) type Readiness = Mutex<Option<(u64, BTreeMap<&'static str, String>)>>;

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    engines: BTreeMap<&'static str, String>,
}

pub(super) async fn live() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "live" }))
}

pub(super) async fn ready(server: App) -> Response {
    let engines = engines(&server).await;
    let all_well = engines.values().all(|state| state == "ok") && !server.deps.tasks.is_stopped();
    let status = if all_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { status: if all_well { "ready" } else { "not ready" }, engines })).into_response()
}

async fn engines(server: &ApiServer) -> BTreeMap<&'static str, String> {
    let now = clock::now_us();
    let last = server.readiness.lock().expect("no panic while held").clone();
    if let Some((at, engines)) = last
        && now - at < FRESH.as_micros() as u64
    {
        return engines;
    }
    let engines = server.deps.backends.probe(PROBE_TIMEOUT).await;
    *server.readiness.lock().expect("no panic while held") = Some((now, engines.clone()));
    engines
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
