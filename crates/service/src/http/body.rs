//! Getting at the body of a request: its type, its coding, its size, its bytes.

use super::budget::{Exhausted, Share};
use super::coding::Coding;
use super::error::{ApiError, Problem, Rejection};
use super::keys::Client;
use super::{App, admission};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper::body::Body as _;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// Work on more bytes than this moves off the threads that serve sockets: it would take longer than a millisecond.
pub(super) const INLINE_BYTES_MAX: usize = 64 << 10;

/// What is set aside for a body at once. A client's word for its length is good for no more than this.
const RESERVE_BYTES_MAX: usize = 16 << 20;

/// How much of a refused body is read, and for how long, so that the client gets to read the refusal: it would see a
/// reset connection if its bytes were left lying.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// What a body is declared to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediaType {
    /// JSON, or nothing said: the original framework takes a body without a type for JSON, too.
    Json,
    /// Bytes of a form that the endpoint knows.
    Binary,
}

/// A body on its way: its bytes as they come, decoded, and no more of them than allowed.
pub(super) struct IncomingBody {
    stream: BoxStream<'static, io::Result<Bytes>>,
    coding: Coding,
    bytes_max: usize,
    /// Decoded bytes so far.
    bytes: usize,
    client: Option<Arc<str>>,
}

/// Opens the body of a request, which may have at most `bytes_max` bytes when it is decoded, and be bytes instead of
/// JSON where `binary` says so. Returns also the length that it is announced with.
pub(super) fn open(
    request: Request,
    bytes_max: usize,
    binary: bool,
) -> Result<(MediaType, Option<usize>, IncomingBody), ApiError> {
    let client = Client::of(request.extensions());
    let (parts, body) = request.into_parts();
    let length = content_length(&parts.headers);
    let checked = media_type(&parts.headers, binary).and_then(|media_type| {
        let coding = Coding::of(&parts.headers)?;
        if length.is_some_and(|length| length > bytes_max as u64) {
            return Err(too_large(bytes_max));
        }
        Ok((media_type, coding))
    });
    let (media_type, coding, refusal) = match checked {
        Ok((media_type, coding)) => (media_type, coding, None),
        Err(error) => (MediaType::Json, Coding::Identity, Some(error)),
    };
    let body = IncomingBody { stream: coding.decode(body), coding, bytes_max, bytes: 0, client };
    match refusal {
        Some(error) => Err(body.refuse(error)),
        None => {
            let length = length.filter(|_| coding == Coding::Identity);
            Ok((media_type, length.and_then(|length| usize::try_from(length).ok()), body))
        }
    }
}

/// Gives up the body of a request that nothing was read of.
pub(super) fn decline(request: Request, error: ApiError) -> ApiError {
    let body = request.into_body();
    if body.is_end_stream() {
        return error;
    }
    let coding = Coding::Identity;
    IncomingBody { stream: coding.decode(body), coding, bytes_max: 0, bytes: 0, client: None }.refuse(error)
}

impl IncomingBody {
    /// A part of the memory for bodies, for whoever sent this one.
    pub(super) fn share(&self, app: &App) -> Share {
        app.bodies.share(self.client.clone())
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let Some(chunk) = self.stream.next().await else { return Ok(None) };
        let chunk = chunk.map_err(|error| {
            let what = self.coding.failure();
            ApiError::refused(StatusCode::BAD_REQUEST, format!("{what}: {error}"))
        })?;
        self.bytes += chunk.len();
        if self.bytes > self.bytes_max { Err(too_large(self.bytes_max)) } else { Ok(Some(chunk)) }
    }

    /// Gives the body up with `error`, and reads on beside the response, within bounds.
    pub(super) fn refuse(mut self, error: ApiError) -> ApiError {
        tokio::spawn(tokio::time::timeout(DRAIN_TIME_MAX, async move {
            let mut left = DRAIN_BYTES_MAX;
            while let Some(Ok(chunk)) = self.stream.next().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    break;
                }
                // Decoding alone never waits.
                tokio::task::yield_now().await;
            }
        }));
        error
    }
}

/// The bytes of a body, and their part of the memory for bodies, which others get when this is dropped.
#[derive(Debug)]
pub(super) struct HeldBytes {
    bytes: Bytes,
    _share: Share,
}

impl Deref for HeldBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The bytes of a JSON body of at most `bytes_max`.
pub(super) async fn read_json(app: &App, request: Request, bytes_max: usize) -> Result<HeldBytes, ApiError> {
    let (_, length, mut body) = open(request, bytes_max, false)?;
    let length = length.unwrap_or(0);
    // Before it is sent, where it is known that it will not fit.
    if !app.bodies.has(length) {
        return Err(body.refuse(no_room(Exhausted::All)));
    }
    let mut share = body.share(app);
    let mut bytes = BytesMut::with_capacity(length.min(RESERVE_BYTES_MAX));
    loop {
        let chunk = match body.next().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(error) => return Err(body.refuse(error)),
        };
        if let Err(exhausted) = share.resize(bytes.len() + chunk.len()) {
            return Err(body.refuse(no_room(exhausted)));
        }
        bytes.extend_from_slice(&chunk);
    }
    if bytes.is_empty() {
        return Err(ApiError::problem(Problem::no_body()));
    }
    Ok(HeldBytes { bytes: bytes.freeze(), _share: share })
}

/// Runs `work` over `bytes` bytes: here if it is quick, else on a thread that may be blocked.
pub(super) async fn off_runtime<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if bytes <= INLINE_BYTES_MAX {
        return Ok(work());
    }
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.map_err(|error| {
        tracing::error!(%error, "work on a body did not finish");
        ApiError::internal()
    })
}

fn media_type(headers: &HeaderMap, binary: bool) -> Result<MediaType, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(MediaType::Json) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/").unwrap_or_default();
    if subtype == "json" || subtype.ends_with("+json") {
        return Ok(MediaType::Json);
    }
    if binary && subtype == "octet-stream" {
        return Ok(MediaType::Binary);
    }
    let or = if binary { ", or application/octet-stream for a safetensors file" } else { "" };
    Err(ApiError::refused(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        format!("Unsupported Media Type: the body must be application/json{or}"),
    ))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn no_room(exhausted: Exhausted) -> ApiError {
    admission::refusal(exhausted, Rejection::Bytes, "bytes of request bodies")
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("Payload Too Large: the body may have at most {bytes_max} bytes"),
    )
}
