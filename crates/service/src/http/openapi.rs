//! The specification: collected from the endpoints' own declarations, served, and checked in as `openapi.json`.

use super::{admin, embed, error, health, metrics, rerank, retrieve, status, targets};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

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
    // Only refusals name it, and those of a derived list of responses are not collected.
    components(schemas(error::ValidationErrors)),
    modifiers(&Tokens),
    // A key, or nothing where the service has none.
    security((), ("api_key" = [])),
    tags(
        (name = "controls", description = "The work: embed, retrieve, rerank."),
        (name = "targets", description = "Resident target sets: sent once, named by many retrieve requests."),
        (name = "service", description = "How the service is."),
    ),
)]
struct Api;

/// What is sent as `Authorization: Bearer`.
struct Tokens;

impl Modify for Tokens {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = |description: &str| {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build();
            SecurityScheme::Http(scheme)
        };
        let components = openapi.components.get_or_insert_default();
        components
            .add_security_scheme("api_key", bearer("An API key, where the service asks for one (NEXUS_API_KEYS)."));
        components.add_security_scheme("admin_token", bearer("The value of NEXUS_ADMIN_TOKEN."));
    }
}

/// The specification as JSON, with a newline at its end.
pub fn document() -> String {
    // Serialization of a tree of strings and numbers into memory has nothing that can fail.
    let mut json = Api::openapi().to_pretty_json().unwrap_or_default();
    json.push('\n');
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// What `$ref` names, anywhere below `value`.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            Value::Object(fields) => fields.iter().for_each(|(key, field)| match field {
                Value::String(place) if key == "$ref" => found.push(place),
                other => references(other, found),
            }),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document: Value = serde_json::from_str(&document()).expect("JSON");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.contains(&"#/components/schemas/ValidationErrors"));
        for place in found {
            let pointer = place.strip_prefix('#').expect("a place in this document");
            assert!(document.pointer(pointer).is_some(), "{place}");
        }
    }
}
