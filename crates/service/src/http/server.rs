//! From a listening socket to the router, and an orderly end.
//!
//! Deliberately absent: TLS, limits on the number of connections.

use crate::shutdown::Lifecycle;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt as _;

/// Time for a request's headers. It runs while a kept-alive connection waits for its next request, too, so it has to be
/// longer than the 60 s for which load balancers keep theirs.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const HTTP2_PING_EVERY: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait when no connection can be accepted, as when the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The part of the time for shutdown that is left for what comes after the requests: the cache is written.
const AFTER_REQUESTS: u32 = 10;

/// Serves until `stop` completes, then lets requests in flight finish. Returns when `shutdown_timeout` ends; it returns
/// itself at least a tenth of that time before.
///
/// While there are requests in flight, new ones are still taken, so that load balancers can see on `/ready` what is
/// coming and clients are not turned away; their connections close after the response.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    lifecycle: Lifecycle,
    stop: impl Future<Output = ()>,
    shutdown_timeout: Duration,
) -> Instant {
    let graceful = GracefulShutdown::new();
    // Tells connections that have not sent anything that no one listens any more.
    let (listening, closing) = watch::channel(());
    tokio::select! {
        () = accept(&listener, &router, &graceful, &closing) => {}
        () = stop => {}
    }
    lifecycle.stop();
    let deadline = Instant::now() + shutdown_timeout;
    tokio::select! {
        () = accept(&listener, &router, &graceful, &closing) => {}
        () = lifecycle.idle() => {}
        // Under steady load there is no idle moment. Half of the time is for the requests that come last.
        () = tokio::time::sleep(shutdown_timeout / 2) => {}
    }
    drop(listener);
    drop(listening);
    if tokio::time::timeout_at(deadline - shutdown_timeout / AFTER_REQUESTS, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight when the time for shutdown was over");
    }
    deadline
}

/// Never returns.
async fn accept(listener: &TcpListener, router: &Router, graceful: &GracefulShutdown, closing: &watch::Receiver<()>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connection(stream, router.clone(), graceful, closing.clone()),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "can not accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn connection(stream: TcpStream, router: Router, graceful: &GracefulShutdown, mut closing: watch::Receiver<()>) {
    // Without it, small responses may wait for an acknowledgement. An error means that the client is gone already.
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_EVERY)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    let service = TowerToHyperService::new(
        router.map_request(|request: hyper::Request<Incoming>| -> Request { request.map(Body::new) }),
    );
    let watcher = graceful.watcher();
    tokio::spawn(async move {
        // The time for headers begins with the first byte; a client that never sends one would stay for ever.
        tokio::select! {
            Ok(()) = stream.readable() => {}
            _ = closing.changed() => return,
            () = tokio::time::sleep(HEADER_TIMEOUT) => return,
        }
        // Nothing in this service takes over a connection (WebSockets), so upgrades are not offered.
        let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
    });
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
