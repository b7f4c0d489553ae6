//! Getting at the body of a request: its type, its size, its bytes.

use super::App;
use super::budget::{Budget, Share};
use super::error::{ApiError, Problem};
use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use std::ops::Deref;
use std::time::Duration;

/// Work on more bytes than this moves off the threads that serve sockets: it would take longer than a millisecond.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// What is set aside for a body at once. A client's word for its length is good for no more than this.
const RESERVE_BYTES_MAX: usize = 16 << 20;

/// How much of a refused body is read, and for how long, so that the client gets to read the refusal: it would see a
/// reset connection if its bytes were left lying.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// After how long to ask again when there is no memory left for bodies: most are read and parsed within a second.
const BUDGET_RETRY_AFTER_S: u64 = 1;

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
    let (parts, body) = request.into_parts();
    if let Err(error) = check_media_type(&parts.headers).and_then(|()| check_coding(&parts.headers)) {
        drain(body.into_data_stream());
        return Err(error);
    }
    let length = content_length(&parts.headers);
    if length.is_some_and(|length| length > bytes_max as u64) {
        drain(body.into_data_stream());
        return Err(too_large(bytes_max));
    }
    let length = length.map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
    // Before it is sent, where it is known that it will not fit.
    if length > app.bodies.free() {
        drain(body.into_data_stream());
        return Err(no_room());
    }
    let held = collect(body, bytes_max, length.min(RESERVE_BYTES_MAX), &app.bodies).await?;
    if held.is_empty() {
        return Err(ApiError::problem(Problem::no_body()));
    }
    Ok(held)
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

/// JSON, or nothing said: the original framework takes a body without a type for JSON, too.
fn check_media_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let subtype = essence.strip_prefix("application/").unwrap_or_default();
    if subtype == "json" || subtype.ends_with("+json") {
        Ok(())
    } else {
        Err(ApiError::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Unsupported Media Type: the body must be application/json",
        ))
    }
}

/// Compressed bodies are not read by this version; taking one for JSON would blame its bytes.
fn check_coding(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(coding) if !coding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(ApiError::refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "Unsupported Media Type: the body must not be compressed (Content-Encoding)",
        )),
        _ => Ok(()),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn collect(body: Body, bytes_max: usize, reserve: usize, budget: &Budget) -> Result<HeldBytes, ApiError> {
    let mut share = budget.share();
    let mut stream = body.into_data_stream();
    let mut bytes = BytesMut::with_capacity(reserve);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk
            .map_err(|error| ApiError::refused(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")))?;
        if bytes.len() + chunk.len() > bytes_max {
            drain(stream);
            return Err(too_large(bytes_max));
        }
        if !share.grow(chunk.len()) {
            drain(stream);
            return Err(no_room());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(HeldBytes { bytes: bytes.freeze(), _share: share })
}

/// Reads on beside the response, within bounds.
fn drain(mut stream: BodyDataStream) {
    tokio::spawn(tokio::time::timeout(DRAIN_TIME_MAX, async move {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(chunk)) = stream.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    }));
}

fn no_room() -> ApiError {
    ApiError::unavailable("the memory for request bodies is taken; try again", BUDGET_RETRY_AFTER_S)
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::refused(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("Payload Too Large: the body may have at most {bytes_max} bytes"),
    )
}
