//! What happens around every request: an id, a log line, a time limit, and a net under panics.

use super::budget::Share;
use super::connections::Connection;
use super::error::{ApiError, Refusal, Rejection};
use super::held::{Holds, holding};
use super::keys::Client;
use super::{App, admin};
use crate::monitor::{Answered, Failed, now_ms};
use crate::traces::continue_trace;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
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

/// Around all but CORS.
pub(super) async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let in_flight = app.lifecycle.enter();
    let connection = request.extensions().get::<Arc<Connection>>().cloned();
    let busy = connection.as_ref().map(Connection::enter);
    let id = request_id(&request);
    let http1 = request.version() < Version::HTTP_2;
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
        client = tracing::field::Empty,
        trace = tracing::field::Empty,
    );
    if let Some(trace) = continue_trace(&span, request.headers()) {
        span.record("trace", trace);
    }
    let end = End::new(&request, &app, span.clone());
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
    // Work for it is not begun once its time is over, and not taken on where it would come too late.
    let answer = nexus_engine::within(end.started + time_max, AssertUnwindSafe(answer).catch_unwind());
    let mut response = match tokio::time::timeout(time_max, answer).instrument(span).await {
        Ok(Ok(response)) => response,
        // The panic hook has logged it.
        Ok(Err(_)) => ApiError::internal().into_response(),
        Err(_) => {
            let ms = time_max.as_millis();
            ApiError::rejected(Rejection::Timeout, format!("no answer within {ms} ms")).into_response()
        }
    };

    let refusal = response.extensions_mut().remove::<Refusal>();
    let rejection = refusal.as_ref().and_then(|refusal| refusal.rejection);
    if let Some(rejection) = rejection
        && app.monitor.rejected(rejection)
    {
        let reason = rejection.name();
        tracing::warn!(reason, "requests are refused; the next such line comes in 10 s at the earliest");
    }
    if !probe && is_told(response.status()) {
        let detail = refusal.map_or_else(|| response.status().to_string(), |refusal| refusal.detail.to_string());
        let client = Client::of(response.extensions());
        app.monitor.failed(end.failed(&id, client, response.status(), detail));
    }
    response.headers_mut().insert(REQUEST_ID, id);
    if http1 && app.lifecycle.is_stopping() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if !probe {
        app.lifecycle.answered(response.status().as_u16());
    }
    end.answered(response.status(), rejection.is_some());
    drop(in_flight);
    let mut holds = Holds::new(response.extensions_mut().remove::<Arc<Share>>(), busy);
    if let Some(connection) = connection.filter(|_| !http1) {
        holds.for_at_most(app.limits.request_timeout, connection);
    }
    response.map(|body| holding(body, holds))
}

/// Whether operators look for it: errors of the service's, and clients that ask too much.
fn is_told(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
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
    app: Arc<App>,
    span: Span,
    method: Method,
    path: String,
    /// The pattern of the route.
    endpoint: Option<MatchedPath>,
    probe: bool,
    answered: bool,
}

/// What is counted where a client left: nginx's status for it, which nobody is sent.
const CLIENT_LEFT: u16 = 499;

/// What requests are counted as that no route is for.
const OTHER: &str = "other";

impl End {
    fn new(request: &Request, app: &Arc<App>, span: Span) -> Self {
        let path = request.uri().path();
        Self {
            started: Instant::now(),
            app: Arc::clone(app),
            span,
            method: request.method().clone(),
            path: path.to_owned(),
            endpoint: request.extensions().get::<MatchedPath>().cloned(),
            // They are asked for every few seconds, by load balancers and by who looks on.
            probe: matches!(path, "/health" | "/ready" | "/metrics" | "/status"),
            answered: false,
        }
    }

    fn failed(&self, id: &HeaderValue, client: Option<Arc<str>>, status: StatusCode, detail: String) -> Failed {
        Failed {
            at_ms: now_ms(),
            request_id: id.to_str().unwrap_or_default().to_owned(),
            client,
            method: self.method.to_string(),
            path: self.path.clone(),
            status: status.as_u16(),
            detail,
        }
    }

    fn count(&self, status: u16) {
        self.app.monitor.answered(Answered {
            endpoint: self.endpoint.as_ref().map_or(OTHER, MatchedPath::as_str),
            method: self.method.as_str(),
            status,
            took: self.started.elapsed(),
            probe: self.probe,
        });
    }

    fn answered(mut self, status: StatusCode, rejected: bool) {
        self.answered = true;
        let (status, ms) = (status.as_u16(), self.elapsed_ms());
        self.count(status);
        self.span.in_scope(|| {
            // Where there is too much to do, a line for each refusal would be more of it.
            if self.probe || rejected {
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
            self.count(CLIENT_LEFT);
            self.span.in_scope(|| tracing::info!(ms = self.elapsed_ms(), "the client left"));
        }
    }
}
