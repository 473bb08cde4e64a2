//! The generator's own figures for Prometheus, while it runs.

use std::net::SocketAddr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use chatctl::runtime::{Tasks, net};
use chatctl::telemetry::{LiveSnapshot, prometheus};
use tokio::sync::watch;

use crate::exit::Failure;

/// Serves `GET /metrics` until the tasks are stopped.
pub(crate) fn serve(address: SocketAddr, shown: watch::Receiver<LiveSnapshot>, tasks: &Tasks) -> Result<(), Failure> {
    let listener = net::listen(address).map_err(|e| Failure::environment(format!("--metrics {address}: {e}")))?;
    let text = move || {
        let text = prometheus::render_load(&shown.borrow());
        async move { ([(CONTENT_TYPE, prometheus::CONTENT_TYPE)], text) }
    };
    let router = Router::new().route("/metrics", get(text));
    tasks.spawn_until_stopped("load.metrics", async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "the generator's figures are not served any more");
        }
    });
    Ok(())
}
