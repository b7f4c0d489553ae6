//! The yardstick for cache hits: bytes that never change, through the same server and the same outermost layer as the
//! service's endpoints, log lines included.
//!
//! ```text
//! cargo run --release --example constant_body -- BYTES [PORT]
//! ```
//!
//! Answers `GET /constant` and `POST /constant` with BYTES bytes of `application/json`, the latter after it has read the
//! request's body. Prints `listening on http://127.0.0.1:PORT` as the service does, and ends with a signal.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "where callers read the port")]

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use nexus::http::{self, App, Budget, Connections, Limits, Origins, server};
use nexus::shutdown::{Lifecycle, Signals};
use nexus::telemetry;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let bytes: usize = arguments.next().ok_or("how many bytes?")?.parse()?;
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    telemetry::start(tracing::level_filters::LevelFilter::INFO, None);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(json_of(bytes), port))
}

/// A JSON string of `bytes` bytes, its quotes included; at least the two quotes.
fn json_of(bytes: usize) -> Bytes {
    format!("\"{}\"", "x".repeat(bytes.saturating_sub(2))).into()
}

fn answer(body: &Bytes) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, "application/json")], body.clone())
}

async fn serve(body: Bytes, port: u16) -> Result<(), Box<dyn Error>> {
    let lifecycle = Lifecycle::default();
    let app = App {
        models: Arc::default(),
        lifecycle: lifecycle.clone(),
        limits: Limits {
            body_bytes_max: 1 << 20,
            text_body_bytes_max: 1 << 20,
            batch_items_max: 1,
            request_timeout: Duration::from_secs(120),
        },
        requests: Budget::new(1 << 10),
        bodies: Budget::new(1 << 30),
        connections: Connections::new(1 << 10),
        monitor: Arc::default(),
        queue: None,
        cache: None,
        origins: Origins::default(),
        targets: Arc::default(),
        device_sets: Arc::default(),
        admin: None,
        keys: None,
    };
    let posted = body.clone();
    let route = get(async move || answer(&body)).post(async move |_read: Bytes| answer(&posted));
    let router = http::observed(Router::new().route("/constant", route), Arc::new(app));

    let mut signals = Signals::register()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let stop = async {
        signals.next().await;
    };
    let transport = server::Transport { connections: Connections::new(1 << 10), tls: None };
    server::serve(listener, transport, router, lifecycle, stop, Duration::from_secs(1)).await;
    Ok(())
}
