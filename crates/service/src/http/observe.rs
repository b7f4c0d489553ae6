//! What happens around every request: an id, a log line, a time limit, and a net under panics.

use super::error::ApiError;
use super::{App, admin};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tracing::{Instrument as _, Span};
use utoipa::IntoParams;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const REQUEST_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Ids of clients beyond this length are replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The outermost layer.
pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let in_flight = app.lifecycle.enter();
    let id = request_id(&request);
    let http1 = request.version() < Version::HTTP_2;
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
        client = tracing::field::Empty,
    );
    let end = End::new(&request, span.clone());
    let probe = end.probe;
    let is_reload = app.admin.is_some() && request.uri().path() == admin::PATH;
    let bound = if is_reload { admin::TIME_MAX } else { app.limits.request_timeout };
    let asked = timeout_asked(&request);
    let time_max = asked.as_ref().map_or(bound, |&asked| asked.unwrap_or(bound).min(bound));

    let answer = async {
        match asked {
            Ok(_) => next.run(request).await,
            Err(refusal) => refusal.into_response(),
        }
    };
    let answer = AssertUnwindSafe(answer).catch_unwind();
    let mut response = match tokio::time::timeout(time_max, answer).instrument(span).await {
        Ok(Ok(response)) => response,
        // The panic hook has logged it.
        Ok(Err(_)) => ApiError::internal().into_response(),
        Err(_) => {
            let ms = time_max.as_millis();
            ApiError::refused(StatusCode::GATEWAY_TIMEOUT, format!("no answer within {ms} ms")).into_response()
        }
    };

    response.headers_mut().insert(REQUEST_ID, id);
    if http1 && app.lifecycle.is_stopping() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if !probe {
        app.lifecycle.answered(response.status().as_u16());
    }
    end.answered(response.status());
    drop(in_flight);
    response
}

/// How long a request may take.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "for the specification")]
pub(super) struct Timing {
    /// Milliseconds for this request, fewer than the service gives it; beyond them the answer is 504.
    #[param(rename = "X-Request-Timeout-Ms", minimum = 1, value_type = usize, required = false)]
    timeout_ms: Option<u64>,
}

/// The time that the client gives the request, if it says so. It shortens the service's own, and never lengthens it.
fn timeout_asked(request: &Request) -> Result<Option<Duration>, ApiError> {
    let Some(value) = request.headers().get(REQUEST_TIMEOUT_MS) else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|value| value.trim().parse::<u64>().ok()).filter(|&ms| ms > 0);
    match ms {
        Some(ms) => Ok(Some(Duration::from_millis(ms))),
        None => Err(ApiError::refused(
            StatusCode::BAD_REQUEST,
            "X-Request-Timeout-Ms: expected a whole number of milliseconds, at least 1",
        )),
    }
}

/// The client's id if it is sane, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static COUNT: AtomicU64 = AtomicU64::new(0);

    if let Some(id) = request.headers().get(REQUEST_ID)
        && !id.is_empty()
        && id.len() <= REQUEST_ID_BYTES_MAX
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    // Unique within the process by the count, and among processes by the seed. It need not be unpredictable.
    let id = format!("{:016x}{:08x}", *SEED, COUNT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("-"))
}

/// Logs how a request ended, even when the client left and the future was dropped.
struct End {
    started: Instant,
    span: Span,
    probe: bool,
    answered: bool,
}

impl End {
    fn new(request: &Request, span: Span) -> Self {
        // Load balancers ask every few seconds.
        let probe = matches!(request.uri().path(), "/health" | "/ready");
        Self { started: Instant::now(), span, probe, answered: false }
    }

    fn answered(mut self, status: StatusCode) {
        self.answered = true;
        let (status, ms) = (status.as_u16(), self.elapsed_ms());
        self.span.in_scope(|| {
            if self.probe {
                tracing::debug!(status, ms, "answered");
            } else {
                tracing::info!(status, ms, "answered");
            }
        });
    }

    fn elapsed_ms(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.answered {
            self.span.in_scope(|| tracing::info!(ms = self.elapsed_ms(), "the client left"));
        }
    }
}
