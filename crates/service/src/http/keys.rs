//! Asks every request for an API key, where there are any; 401 without a good one.
//!
//! `/health` and `/ready` are for load balancers, which have no keys. The page at `/` has nothing in it; what it shows it asks
//! for, with a key that it is given. `/admin/reload` asks for a token of its own.

use super::error::ApiError;
use super::{App, admin, bearer};
use crate::api_keys::digest_of;
use axum::extract::{Request, State};
use axum::http::{Extensions, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::sync::Arc;

/// Who asks, by the name of the key; with a request that came with one, and its response.
#[derive(Clone, Debug)]
pub(super) struct Client(Arc<str>);

impl Client {
    pub(super) fn of(extensions: &Extensions) -> Option<Arc<str>> {
        extensions.get::<Self>().map(|client| Arc::clone(&client.0))
    }
}

pub(super) async fn ask(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let Some(keys) = &app.keys else { return next.run(request).await };
    if is_open(request.uri().path()) {
        return next.run(request).await;
    }
    let digest = bearer::token(request.headers()).map(digest_of);
    match digest.and_then(|digest| keys.name_of(|other| bearer::same(&digest, other))) {
        Some(name) => {
            tracing::Span::current().record("client", &*name);
            let client = Client(name);
            request.extensions_mut().insert(client.clone());
            let mut response = nexus_engine::on_behalf_of(Arc::clone(&client.0), next.run(request)).await;
            response.extensions_mut().insert(client);
            response
        }
        None => refuse(digest.is_some()),
    }
}

fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/ready" | admin::PATH)
}

fn refuse(given: bool) -> Response {
    let detail = if given {
        "the API key is not one of this service's; ask its operator for one"
    } else {
        "this service asks for an API key: send `Authorization: Bearer` and the key"
    };
    let mut response = ApiError::refused(StatusCode::UNAUTHORIZED, detail).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
