//! `/openapi.json`, and `/docs`: Swagger UI (Apache-2.0), unpacked into the binary by the build script. Its licence,
//! its NOTICE, and the notices of what is bundled in its script are served beside it, as the licences ask.
//!
//! Nothing is loaded from another host, and the policy sent along lets the browser enforce that.

use super::App;
use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use std::sync::{Arc, LazyLock};

const PAGE: &str = include_str!("docs/index.html");
const START: &str = include_str!("docs/start.js");
const SCRIPT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js"));
const STYLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css"));
const ICON: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/favicon-32x32.png"));
const LICENCE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/LICENSE"));
const BUNDLED: &[u8] = include_bytes!("docs/swagger-ui-bundle.js.LICENSE.txt");
const NOTICE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/NOTICE"));

const TEXT: &str = "text/plain; charset=utf-8";

/// Swagger UI sets styles inline and carries its pictures as `data:`.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; \
                      base-uri 'none'; frame-ancestors 'none'";

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/openapi.json", get(async || asset("application/json", specification().as_bytes())))
        .route("/docs", get(page))
        .route("/docs/", get(async || Redirect::permanent("/docs")))
        .route("/docs/start.js", get(async || asset("text/javascript; charset=utf-8", START.as_bytes())))
        .route("/docs/swagger-ui-bundle.js", get(async || asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/docs/swagger-ui.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/docs/favicon.png", get(async || asset("image/png", ICON)))
        .route("/docs/LICENSE", get(async || asset(TEXT, LICENCE)))
        .route("/docs/NOTICE", get(async || asset(TEXT, NOTICE)))
        // The script's first line names it.
        .route("/docs/swagger-ui-bundle.js.LICENSE.txt", get(async || asset(TEXT, BUNDLED)))
}

async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], asset("text/html; charset=utf-8", PAGE.as_bytes()))
}

fn asset(media_type: &'static str, bytes: &'static [u8]) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, media_type), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], bytes)
}

fn specification() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(super::openapi::document);
    &DOCUMENT
}
