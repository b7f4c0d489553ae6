//! Which web pages may ask from a browser (CORS: <https://fetch.spec.whatwg.org/#http-cors-protocol>). None by default: a browser
//! then keeps answers from pages of other origins, and asks before requests with JSON.
//!
//! Keys come in a header that a page has to set by itself; cookies have no part in it, so credentials are never allowed.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use std::time::Duration;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may remember what it was told.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Origins that may ask.
#[derive(Clone, Debug, Default)]
pub enum Origins {
    /// None.
    #[default]
    None,
    /// Any.
    Any,
    /// These, such as `https://console.example.com`.
    These(Vec<HeaderValue>),
}

impl Origins {
    /// `routes`, which those origins may ask.
    pub(super) fn allow(&self, routes: Router) -> Router {
        let origins = match self {
            Self::None => return routes,
            Self::Any => AllowOrigin::any(),
            Self::These(list) => AllowOrigin::list(list.iter().cloned()),
        };
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers([
                header::AUTHORIZATION,
                header::CONTENT_TYPE,
                header::CONTENT_ENCODING,
                HeaderName::from_static("x-request-id"),
                HeaderName::from_static("x-request-timeout-ms"),
                HeaderName::from_static("traceparent"),
            ])
            .expose_headers([
                HeaderName::from_static("x-request-id"),
                HeaderName::from_static("x-nexus-model-revision"),
                header::RETRY_AFTER,
            ])
            .max_age(REMEMBERED);
        routes.layer(layer)
    }
}
