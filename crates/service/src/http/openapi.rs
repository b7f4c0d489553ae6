//! The specification: collected from the endpoints' own declarations, served, and checked in as `openapi.json`.

use super::{admin, embed, health, metrics, rerank, retrieve, status, targets};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Nexus",
        description = "Compliance control mapping: embed a control, find its nearest controls, rerank the candidates.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        embed::single,
        embed::batch,
        retrieve::retrieve,
        rerank::rerank,
        targets::list,
        targets::put,
        targets::get,
        targets::delete,
        health::health,
        health::ready,
        metrics::metrics,
        status::status,
        admin::reload,
    ),
    tags(
        (name = "controls", description = "The work: embed, retrieve, rerank."),
        (name = "targets", description = "Resident target sets: sent once, named by many retrieve requests."),
        (name = "service", description = "How the service is."),
    ),
)]
struct Api;

/// The specification as JSON, with a newline at its end.
pub fn document() -> String {
    // Serialization of a tree of strings and numbers into memory has nothing that can fail.
    let mut json = Api::openapi().to_pretty_json().unwrap_or_default();
    json.push('\n');
    json
}
