//! Which revision of a model made an answer: a header of every answer that a model made.

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use nexus_engine::Revision;

const NAME: HeaderName = HeaderName::from_static("x-nexus-model-revision");

/// `response` with the revision in its header.
pub(super) fn mark(mut response: Response, revision: &Revision) -> Response {
    // The digits are shared, not copied. They are ASCII, so that nothing can fail.
    if let Ok(value) = HeaderValue::from_maybe_shared(revision.as_bytes().clone()) {
        response.headers_mut().insert(NAME, value);
    }
    response
}
