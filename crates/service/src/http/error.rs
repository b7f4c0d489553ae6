//! The one error type of the endpoints, in the shape that clients of the original framework (FastAPI with pydantic 2)
//! know: 422 lists what is wrong and where; everything else is one sentence.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nexus_engine::{EngineError, ModelState, Role};
use nexus_vectors::{BodyError, ErrorKind, Loc};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use utoipa::{IntoResponses, ToSchema};

/// After how long to ask again while a model loads.
const LOADING_RETRY_AFTER_S: u64 = 2;

/// After how long to ask again when there is too much to do: most requests are over within a second.
const REJECTED_RETRY_AFTER_S: u64 = 1;

/// Which bound a request was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// Of requests in flight.
    Requests,
    /// Of tokens that wait.
    Tokens,
    /// Of bytes of bodies.
    Bytes,
    /// Of what one client may hold.
    Client,
    /// Of time.
    Timeout,
}

impl Rejection {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Requests, Self::Tokens, Self::Bytes, Self::Client, Self::Timeout];

    /// `requests`, `tokens`, `bytes`, `client` or `timeout`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Bytes => "bytes",
            Self::Client => "client",
            Self::Timeout => "timeout",
        }
    }
}

/// What a refusal says, for whoever looks at responses on their way out.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) detail: Arc<str>,
    pub(super) rejection: Option<Rejection>,
}

/// Why a request was not answered with what it asked for.
#[derive(Debug)]
pub(super) enum ApiError {
    /// 422: something in the body is wrong.
    Invalid(Vec<Problem>),
    /// Any other status, with a sentence for people.
    Refused {
        /// The status.
        status: StatusCode,
        /// The sentence.
        detail: String,
        /// When to try again, where that makes sense.
        retry_after_s: Option<u64>,
        /// The bound, where it was for one.
        rejection: Option<Rejection>,
    },
}

/// One step on the way from the body to the place of a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Step {
    /// A key of an object.
    Key(&'static str),
    /// A position in a list; for malformed JSON, in the body.
    Index(usize),
}

/// One thing wrong in a body.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Problem {
    /// Pydantic's name for it.
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// Where it is, from `body`.
    pub(super) loc: Vec<Step>,
    /// What it is, for people.
    pub(super) msg: String,
    /// What was found there, where that is short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input: Option<Value>,
    /// What the message is made of, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ctx: Option<Value>,
}

impl Problem {
    /// A problem without input or context.
    pub(super) fn new(kind: &'static str, loc: Vec<Step>, msg: impl Into<String>) -> Self {
        Self { kind, loc, msg: msg.into(), input: None, ctx: None }
    }

    /// There is no body, or nothing but `null` in it.
    pub(super) fn no_body() -> Self {
        Self::new("missing", vec![Step::Key("body")], "Field required")
    }

    /// A body that is no JSON from the character at `at` on, as the framework has it.
    pub(super) fn json_invalid(at: usize, error: &str) -> Self {
        Self {
            // Always this, so that nothing of a broken body is sent back.
            input: Some(json!({})),
            ..Self::new("json_invalid", vec![Step::Key("body"), Step::Index(at)], "JSON decode error")
        }
        .with_ctx(json!({ "error": error }))
    }

    /// Quotes what was found, if it is a scalar and short: a body is not sent back in its errors.
    #[must_use]
    pub(super) fn with_input(mut self, input: &Value) -> Self {
        const INPUT_BYTES_MAX: usize = 200;
        let quotable = match input {
            Value::String(s) => s.len() <= INPUT_BYTES_MAX,
            Value::Array(_) | Value::Object(_) => false,
            Value::Null | Value::Bool(_) | Value::Number(_) => true,
        };
        self.input = quotable.then(|| input.clone());
        self
    }

    /// Adds what programs may want to know.
    #[must_use]
    pub(super) fn with_ctx(mut self, ctx: Value) -> Self {
        self.ctx = Some(ctx);
        self
    }
}

impl ApiError {
    /// 422 with one problem.
    pub(super) fn problem(problem: Problem) -> Self {
        Self::Invalid(vec![problem])
    }

    /// A status with a sentence.
    pub(super) fn refused(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::Refused { status, detail: detail.into(), retry_after_s: None, rejection: None }
    }

    /// 503 with when to try again.
    pub(super) fn unavailable(detail: impl Into<String>, retry_after_s: u64) -> Self {
        Self::Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            detail: detail.into(),
            retry_after_s: Some(retry_after_s),
            rejection: None,
        }
    }

    /// There is too much to do: 429 where it is the client's own doing, 504 where it took too long, else 503.
    pub(super) fn rejected(rejection: Rejection, detail: impl Into<String>) -> Self {
        let retry_after_s = (rejection != Rejection::Timeout).then_some(REJECTED_RETRY_AFTER_S);
        Self::rejected_until(rejection, detail, retry_after_s)
    }

    /// The same, where it is known when to try again.
    fn rejected_until(rejection: Rejection, detail: impl Into<String>, retry_after_s: Option<u64>) -> Self {
        let status = match rejection {
            Rejection::Client => StatusCode::TOO_MANY_REQUESTS,
            Rejection::Timeout => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::Refused { status, detail: detail.into(), retry_after_s, rejection: Some(rejection) }
    }

    /// 500 that says no more than that. The log has the reason.
    pub(super) fn internal() -> Self {
        Self::refused(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
    }

    /// 503: the model that the request needs is not there.
    pub(super) fn not_ready(role: Role, state: ModelState) -> Self {
        let name = role.name();
        match state {
            ModelState::Failed { reason } => {
                Self::refused(StatusCode::SERVICE_UNAVAILABLE, format!("the {name} failed to load: {reason}"))
            }
            ModelState::Loading { stage, bytes_done, bytes_total: bytes_total @ 1.. } => Self::unavailable(
                format!("the {name} is loading: {stage}, {bytes_done} of {bytes_total} bytes"),
                LOADING_RETRY_AFTER_S,
            ),
            ModelState::Loading { stage, .. } => {
                Self::unavailable(format!("the {name} is loading: {stage}"), LOADING_RETRY_AFTER_S)
            }
            // Became ready between the two looks.
            ModelState::Ready => Self::unavailable(format!("the {name} is loading"), 1),
        }
    }

    /// What the engine says, where `place` tells the way from the body to a field of the item at a position.
    pub(super) fn of_engine(error: EngineError, place: impl FnOnce(&'static str, Option<usize>) -> Vec<Step>) -> Self {
        match error {
            EngineError::Invalid { field, index, message } => {
                let loc = std::iter::once(Step::Key("body")).chain(place(field, index)).collect();
                Self::problem(Problem::new("value_error", loc, message))
            }
            EngineError::Overloaded { by_client, retry_after_s } => {
                let rejection = if by_client { Rejection::Client } else { Rejection::Tokens };
                Self::rejected_until(rejection, error.to_string(), Some(retry_after_s))
            }
            EngineError::Expired => Self::rejected(Rejection::Timeout, error.to_string()),
            EngineError::ShuttingDown | EngineError::Device(_) => Self::unavailable(error.to_string(), 1),
            EngineError::Model(_) => {
                tracing::error!(%error, "the model failed");
                Self::refused(StatusCode::INTERNAL_SERVER_ERROR, format!("the model failed: {error}"))
            }
        }
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let loc: Vec<Step> = error
            .loc
            .into_iter()
            .map(|step| match step {
                Loc::Key(key) => Step::Key(key),
                Loc::Index(index) => Step::Index(index),
            })
            .collect();
        Self::problem(match (error.kind, loc.as_slice()) {
            (ErrorKind::JsonInvalid, [_, Step::Index(at)]) => Problem::json_invalid(*at, &error.msg),
            (ErrorKind::GreaterThanEqual, _) => {
                Problem::new(error.kind.as_str(), loc, error.msg).with_ctx(json!({ "ge": 1 }))
            }
            _ => Problem::new(error.kind.as_str(), loc, error.msg),
        })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            Self::Invalid(detail) => (StatusCode::UNPROCESSABLE_ENTITY, Json(Problems { detail })).into_response(),
            Self::Refused { status, detail, retry_after_s, rejection } => {
                let refusal = Refusal { detail: detail.as_str().into(), rejection };
                let mut response = (status, Json(ErrorDetail { detail })).into_response();
                response.extensions_mut().insert(refusal);
                if let Some(seconds) = retry_after_s {
                    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                response
            }
        }
    }
}

#[derive(Serialize)]
struct Problems {
    detail: Vec<Problem>,
}

/// How any request with a body may be refused.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "for the specification")]
pub(super) enum BodyRefusals {
    /// The body can not be decoded, or a header makes no sense.
    #[response(status = 400)]
    Malformed(ErrorDetail),
    /// The service asks for API keys, and none came with the request, or a wrong one.
    #[response(status = 401, headers(("WWW-Authenticate" = String, description = "`Bearer`")))]
    Unauthorized(ErrorDetail),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(ErrorDetail),
    /// The body is declared as something other than JSON.
    #[response(status = 415)]
    NotJson(ErrorDetail),
    /// Something in the body is wrong.
    #[response(status = 422)]
    Invalid(ValidationErrors),
    /// The client, which has an API key, has too much in flight already.
    #[response(status = 429, headers(("Retry-After" = u64, description = "Seconds until another try makes sense.")))]
    TooMany(ErrorDetail),
    /// The service or a model failed.
    #[response(status = 500)]
    Failed(ErrorDetail),
    /// There is too much to do.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds until another try makes sense.")))]
    Busy(ErrorDetail),
    /// The request took too long.
    #[response(status = 504)]
    TimedOut(ErrorDetail),
}

/// How a request that needs a model may be refused, too.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "for the specification")]
pub(super) enum ModelRefusals {
    /// The model is not loaded, or there is too much to do.
    #[response(status = 503, headers(("Retry-After" = u64, description = "Seconds until another try makes sense.")))]
    Unavailable(ErrorDetail),
}

/// An error other than a wrong body.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({ "detail": "the retriever is loading: reading weights" }))]
pub(super) struct ErrorDetail {
    /// What went wrong, for people.
    detail: String,
}

/// What is wrong with a body.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "detail": [{ "type": "missing", "loc": ["body", "text"], "msg": "Field required" }]
}))]
#[allow(dead_code, reason = "the schema of what `Problem` serializes to")]
pub(super) struct ValidationErrors {
    /// One entry for each problem found; at most 100.
    detail: Vec<ValidationError>,
}

/// One thing wrong in a body.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "the schema of what `Problem` serializes to")]
pub(super) struct ValidationError {
    /// Kind of problem, by pydantic's names: `missing`, `string_type`, `json_invalid`.
    #[schema(rename = "type")]
    kind: String,
    /// The way to the place, from `body`: keys, and positions in lists. For malformed JSON, the position in the body.
    loc: Vec<LocStep>,
    /// What is wrong, for people.
    msg: String,
    /// What was found there, where that is short.
    #[schema(value_type = Option<Value>)]
    input: Option<Value>,
    /// What the message is made of, for programs.
    #[schema(value_type = Option<Object>)]
    ctx: Option<Value>,
}

/// A key or a position.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the schema of what `Step` serializes to")]
pub(super) enum LocStep {
    /// A key of an object.
    Key(String),
    /// A position in a list.
    Index(u64),
}
