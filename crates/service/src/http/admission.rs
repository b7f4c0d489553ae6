//! How many requests are worked on at once: what is beyond is refused at once, rather than kept waiting for longer and longer.
//!
//! Three things are bounded, by one rule: requests (here), bytes of their bodies (`body`, `ingest`), and tokens that wait for a
//! device (the engine's queue). Past a bound the answer is 503 with `Retry-After`. Where clients have names, one that holds its
//! part of any of them is told so by 429, and the others do not notice it ([`super::budget`], and the queue).
//!
//! Probes, metrics and documentation are outside: an operator looks at them when there is too much to do.

use super::App;
use super::body;
use super::budget::Exhausted;
use super::error::{ApiError, Rejection};
use super::keys::Client;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

/// Around the endpoints that work.
pub(super) async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let client = Client::of(request.extensions());
    let mut place = app.requests.share(client);
    if let Err(exhausted) = place.resize(1) {
        let error = refusal(exhausted, Rejection::Requests, "requests");
        return body::decline(request, error).into_response();
    }
    let mut response = next.run(request).await;
    // Until the response is read.
    response.extensions_mut().insert(Arc::new(place));
    response
}

/// 429 for who holds too much, 503 where all is held.
pub(super) fn refusal(exhausted: Exhausted, of_all: Rejection, what: &str) -> ApiError {
    match exhausted {
        Exhausted::All => ApiError::rejected(of_all, format!("there are too many {what} in flight; try again")),
        Exhausted::Client => {
            ApiError::rejected(Rejection::Client, format!("this client has too many {what} in flight; try again"))
        }
    }
}
