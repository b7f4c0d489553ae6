//! From a listening socket to the router, and an orderly end.
//!
//! What a client can hold is bounded: connections (module `connections`), the time for a request's head, for TLS and for the
//! socket to take what is sent; buffers, header lists, and streams of a connection.
//!
//! Deliberately absent: how many requests are worked on, and for how long (`admission`, `observe`).

use super::connections::{Connection, Connections, Place};
use super::tls::Tls;
use crate::shutdown::Lifecycle;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt as _;

/// Time for a request's headers. It runs while a kept-alive connection waits for its next request, too, so it has to be
/// longer than the 60 s for which load balancers keep theirs.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);

/// Time without a request, whatever else goes on: hyper has no limit for the first bytes of HTTP/2, nor for what comes between its
/// requests. A little longer than the one for headers, which ends connections in a better way.
const IDLE_TIME_MAX: Duration = Duration::from_secs(80);

/// Time for a TLS handshake, from its first byte.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take none of the bytes that are sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What is read of a connection before it is worked on; the head of a request has to fit in.
const READ_BUFFER_BYTES_MAX: usize = 128 << 10;

/// Streams of an HTTP/2 connection that are open at once.
const HTTP2_STREAMS_MAX: u32 = 128;

/// Bytes of names and values in the head of a request over HTTP/2.
const HTTP2_HEADER_BYTES_MAX: u32 = 64 << 10;

/// How often an HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const HTTP2_PING_EVERY: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long to wait when no connection can be accepted, as when the process has run out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The part of the time for shutdown that is left for what comes after the requests: the cache is written.
const AFTER_REQUESTS: u32 = 10;

/// What connections come over.
#[derive(Debug)]
pub struct Transport {
    /// The connections that are open.
    pub connections: Connections,
    /// How they are encrypted, if they are.
    pub tls: Option<Arc<Tls>>,
}

/// Serves until `stop` completes, then lets requests in flight finish. Returns when `shutdown_timeout` ends; it returns
/// itself at least a tenth of that time before.
///
/// While there are requests in flight, new ones are still taken, so that load balancers can see on `/ready` what is
/// coming and clients are not turned away; their connections close after the response.
pub async fn serve(
    listener: TcpListener,
    transport: Transport,
    router: Router,
    lifecycle: Lifecycle,
    stop: impl Future<Output = ()>,
    shutdown_timeout: Duration,
) -> Instant {
    let graceful = GracefulShutdown::new();
    // Tells connections that have not sent anything that no one listens any more.
    let (listening, closing) = watch::channel(());
    let server = Server { transport, router, graceful: &graceful, closing };
    tokio::select! {
        () = server.accept(&listener) => {}
        () = stop => {}
    }
    lifecycle.stop();
    let deadline = Instant::now() + shutdown_timeout;
    tokio::select! {
        () = server.accept(&listener) => {}
        () = lifecycle.idle() => {}
        // Under steady load there is no idle moment. Half of the time is for the requests that come last.
        () = tokio::time::sleep(shutdown_timeout / 2) => {}
    }
    drop((listener, listening, server));
    if tokio::time::timeout_at(deadline - shutdown_timeout / AFTER_REQUESTS, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight when the time for shutdown was over");
    }
    deadline
}

struct Server<'a> {
    transport: Transport,
    router: Router,
    graceful: &'a GracefulShutdown,
    closing: watch::Receiver<()>,
}

impl Server<'_> {
    /// Never returns.
    async fn accept(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => match self.transport.connections.admit() {
                    Some(place) => self.connection(stream, place),
                    // The client sees the end of the connection, and may try elsewhere.
                    None => drop(stream),
                },
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "can not accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection(&self, stream: TcpStream, place: Place) {
        let (router, watcher, tls) = (self.router.clone(), self.graceful.watcher(), self.transport.tls.clone());
        let closing = self.closing.clone();
        tokio::spawn(async move {
            let connection = Arc::clone(place.connection());
            tokio::select! {
                () = run(stream, &connection, router, watcher, tls, closing) => {}
                () = connection.closed() => {}
                () = connection.idle_for(IDLE_TIME_MAX) => {}
            }
            drop(place);
        });
    }
}

/// Serves a connection to its end.
async fn run(
    stream: TcpStream,
    connection: &Arc<Connection>,
    router: Router,
    watcher: Watcher,
    tls: Option<Arc<Tls>>,
    mut closing: watch::Receiver<()>,
) {
    // Without it, small responses may wait for an acknowledgement. An error means that the client is gone already.
    let _ = stream.set_nodelay(true);
    // The time for headers begins with the first byte; a client that never sends one would stay for ever.
    tokio::select! {
        Ok(()) = stream.readable() => {}
        _ = closing.changed() => return,
        () = tokio::time::sleep(HEADER_TIMEOUT) => return,
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let stream = Box::pin(stream);
    let Some(tls) = tls else { return speak(stream, connection, router, watcher).await };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => speak(stream, connection, router, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "a connection without TLS, or with other than is offered"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// HTTP, in the version that the client speaks.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    connection: &Arc<Connection>,
    router: Router,
    watcher: Watcher,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(READ_BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(HTTP2_HEADER_BYTES_MAX)
        .keep_alive_interval(HTTP2_PING_EVERY)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    let connection = Arc::clone(connection);
    let service = TowerToHyperService::new(router.map_request(move |request: hyper::Request<Incoming>| -> Request {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&connection));
        request
    }));
    // Nothing in this service takes over a connection (WebSockets), so upgrades are not offered.
    let served = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection ended early");
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
