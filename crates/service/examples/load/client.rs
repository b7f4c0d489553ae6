//! Requests over kept-alive connections, and over HTTP/2.
//!
//! Deliberately absent: retries, other than of a request that never left. A client that hides failures measures nothing.

use axum::body::{Body, Bytes, to_bytes};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;

/// Ends a request that nothing else ends; far beyond any bar.
const PATIENCE: Duration = Duration::from_secs(150);

/// Connections of a pool, at most; an open loop needs as many as there are requests in flight.
const CONNECTIONS_MAX: usize = 8_000;

const ANSWER_BYTES_MAX: usize = 64 << 20;

/// An answer, whatever it says.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) retry_after: bool,
    pub(crate) body: Bytes,
}

/// No answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There was no connection to be had.
    Connect,
    /// The connection ended before the answer did.
    Broken,
    /// More than [`PATIENCE`].
    Patience,
    /// The generator has no more connections: a figure with many of these is none.
    NoConnection,
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: String,
    /// For `X-Request-Timeout-Ms`.
    pub(crate) timeout: Option<Duration>,
    /// For `Authorization`.
    pub(crate) key: Option<String>,
}

impl Ask {
    pub(crate) fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.to_owned(), body: String::new(), timeout: None, key: None }
    }

    pub(crate) fn post(path: &str, body: String) -> Self {
        Self { method: Method::POST, body, ..Self::get(path) }
    }

    pub(crate) fn embed(text: &str) -> Self {
        Self::post("/api/v1/embed", crate::texts::embed_body(text))
    }

    pub(crate) fn within(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    fn request(&self, uri: String) -> Request<Body> {
        let mut request = Request::builder().method(self.method.clone()).uri(uri).header(HOST, "load");
        if !self.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(timeout) = self.timeout {
            request = request.header("x-request-timeout-ms", timeout.as_millis().to_string());
        }
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.body(Body::from(self.body.clone())).expect("a request of known parts")
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Reply, Failure> {
    let status = response.status().as_u16();
    let retry_after = response.headers().contains_key(RETRY_AFTER);
    let body = to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await.map_err(|_| Failure::Broken)?;
    Ok(Reply { status, retry_after, body })
}

async fn patiently<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(Failure::Patience))
}

type Sender = http1::SendRequest<Body>;

/// Connections over HTTP/1.1 that are used again.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    idle: Mutex<Vec<Sender>>,
    /// How many there are. Shared with the connections themselves, which must not hold the pool: it holds them.
    open: Arc<AtomicUsize>,
    /// Whether connections are used again.
    keep: bool,
}

impl Pool {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self::of(address, true)
    }

    /// With a new connection for each request.
    pub(crate) fn without_keep_alive(address: SocketAddr) -> Self {
        Self::of(address, false)
    }

    fn of(address: SocketAddr, keep: bool) -> Self {
        Self(Arc::new(Inner { address, idle: Mutex::default(), open: Arc::default(), keep }))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Reply, Failure> {
        self.ask(&Ask::get(path)).await
    }

    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Reply, Failure> {
        patiently(async {
            loop {
                let (mut sender, used) = match self.idle().await {
                    Some(sender) => (sender, true),
                    None => (self.connect().await?, false),
                };
                match sender.try_send_request(ask.request(ask.path.clone())).await {
                    Ok(response) => {
                        let reply = read(response).await?;
                        self.give_back(sender);
                        return Ok(reply);
                    }
                    // It closed while nobody used it, and nothing was sent.
                    Err(error) if used && error.message().is_some() => {}
                    Err(_) => return Err(Failure::Broken),
                }
            }
        })
        .await
    }

    async fn idle(&self) -> Option<Sender> {
        loop {
            let mut sender = self.lock().pop()?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.0.idle.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn give_back(&self, sender: Sender) {
        if self.0.keep && !sender.is_closed() {
            self.lock().push(sender);
        }
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let place = Place::take(&self.0.open)?;
        let stream = TcpStream::connect(self.0.address).await.map_err(|_| Failure::Connect)?;
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Broken)?;
        tokio::spawn(async move {
            let _ = connection.await;
            drop(place);
        });
        Ok(sender)
    }
}

/// One of the pool's connections, until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Result<Self, Failure> {
        let place = Self(Arc::clone(open));
        match open.fetch_add(1, Ordering::Relaxed) {
            open if open < CONNECTIONS_MAX => Ok(place),
            _ => Err(Failure::NoConnection),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection over HTTP/2, by all who have a clone.
#[derive(Clone, Debug)]
pub(crate) struct Http2(http2::SendRequest<Body>);

impl Http2 {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await.map_err(|_| Failure::Connect)?;
        let _ = stream.set_nodelay(true);
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|_| Failure::Broken)?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Reply, Failure> {
        let mut sender = self.0.clone();
        patiently(async {
            let request = ask.request(format!("http://load{}", ask.path));
            read(sender.send_request(request).await.map_err(|_| Failure::Broken)?).await
        })
        .await
    }
}
