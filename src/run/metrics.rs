//! The generator's own figures for Prometheus, while it runs.

use std::net::SocketAddr;

use crate::runtime::{Tasks, net};
use crate::telemetry::{LiveSnapshot, prometheus};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::sync::watch;

use crate::run::Error;

/// Serves `GET /metrics` until the tasks are stopped.
///
/// # Errors
/// When the address is taken.
pub(super) fn serve(address: SocketAddr, shown: watch::Receiver<LiveSnapshot>, tasks: &Tasks) -> Result<(), Error> {
    let listener = net::listen(address).map_err(|e| Error::environment(e).at(format!("--metrics {address}")))?;
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
