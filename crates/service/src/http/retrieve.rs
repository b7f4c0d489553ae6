//! `/api/v1/retrieve`: the nearest of the vectors that the request brings along, or of a resident set. Needs no model.

use super::budget::Share;
use super::error::{ApiError, BodyRefusals, Problem, Step};
use super::ingest::{LIMITS, Opened, Sink, ingest};
use super::observe::Timing;
use super::{App, body};
use crate::device_sets::DeviceSets;
use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use nexus_storage::TargetSet;
use nexus_vectors::{
    Dtype, Gathered, Head, Outcome, Purpose, Rows, Scored, Sources, Threads, check_candidates, top_k_many,
};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// How many candidates are returned if the request does not say.
const TOP_K_DEFAULT: usize = 50;

/// A source vector and the vectors to compare it with. They need not be normalized; all are of one length, none is
/// zero, and all numbers are finite.
///
/// The same as a safetensors file (`application/octet-stream`): tensors `source_embedding` `[dimensions]` or
/// `source_embeddings` `[sources, dimensions]`, and `target_embeddings` `[targets, dimensions]`, in F32, F16 or BF16;
/// metadata strings `top_k`, `target_ids` (a JSON array) and `targets`.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "source_embedding": [0.6, 0.8],
    "target_embeddings": [[0.8, 0.6], [-0.6, 0.8]],
    "target_ids": ["AC-7", "SC-2"],
    "top_k": 1,
}))]
#[allow(dead_code, reason = "the schema of what `nexus_vectors::BodyParser` reads")]
pub(super) struct RetrieveBody {
    /// The vector to find neighbours of. This or `source_embeddings` is required.
    source_embedding: Option<VectorForm>,
    /// Several vectors to find neighbours of, each for itself; the answer then has `results`, one for each.
    source_embeddings: Option<MatrixForm>,
    /// The vectors to choose from; there may be none. These or `targets` are required. Fastest when they come after the
    /// source.
    target_embeddings: Option<MatrixForm>,
    /// The name of a resident set to choose from.
    targets: Option<String>,
    /// Names of the targets, one each. Without them, a target's name is its position.
    target_ids: Option<Vec<String>>,
    /// Components of each vector. Required where all sources are one string, or all targets are one and
    /// `source_embedding` is absent.
    #[schema(minimum = 1, maximum = 65536)]
    dimensions: Option<usize>,
    /// How many to return at most, for each source.
    #[schema(minimum = 1, default = 50)]
    top_k: Option<usize>,
}

/// A safetensors file.
#[derive(Debug, ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "the schema of what `nexus_vectors::BodyParser` reads")]
pub(super) struct SafetensorsFile(Vec<u8>);

/// A vector: a list of numbers, or its little-endian f32 in base64.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the schema of what `nexus_vectors::BodyParser` reads")]
pub(super) enum VectorForm {
    /// Components.
    Numbers(Vec<f32>),
    /// Little-endian f32 in base64.
    Base64(String),
}

/// Vectors of one length: a list of them, or all of their components one after the other as little-endian f32 in base64.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the schema of what `nexus_vectors::BodyParser` reads")]
pub(super) enum MatrixForm {
    /// One vector each.
    Vectors(Vec<VectorForm>),
    /// All of them.
    Base64(String),
}

/// The nearest targets.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RetrieveResponse {
    /// Best first; equal similarities in the order of the request.
    candidates: Vec<Candidate>,
}

/// The nearest targets of several sources.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RetrieveManyResponse {
    /// One for each of `source_embeddings`, in their order.
    results: Vec<RetrieveResponse>,
}

/// As the request had one source or several.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the schema of what `answer` writes")]
pub(super) enum RetrieveAnswer {
    /// For `source_embedding`.
    One(RetrieveResponse),
    /// For `source_embeddings`.
    Many(RetrieveManyResponse),
}

/// One target.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Candidate {
    /// The target's name, or its position (`"0"`) where there are no names.
    #[schema(example = "0")]
    control_id: String,
    /// Cosine similarity, from -1 to 1.
    #[schema(example = 0.96)]
    similarity: f32,
}

/// Finds the targets most similar to the source, exactly, by cosine.
#[utoipa::path(
    post,
    path = "/api/v1/retrieve",
    tag = "controls",
    operation_id = "retrieve",
    params(Timing),
    request_body(content((RetrieveBody = "application/json"), (SafetensorsFile = "application/octet-stream"))),
    responses(
        (status = 200, description = "The nearest targets, best first.", body = RetrieveAnswer),
        (status = 404, description = "There is no resident set of that name.", body = super::error::ErrorDetail),
        BodyRefusals,
    ),
)]
pub(super) async fn retrieve(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let mut gather = Gather::default();
    let body = Opened::of(&app, request)?;
    let (head, share) = ingest(&app, body, Purpose::Retrieve, &mut gather).await?;
    if let Some(name) = &head.targets {
        let set = app.targets.sets()?.get(name).await?.ok_or_else(|| super::targets::unknown(name))?;
        return in_set(head, set, share, Arc::clone(&app.device_sets)).await;
    }
    let Gather { gathered, held_bytes } = gather;
    let k = head.top_k.unwrap_or(TOP_K_DEFAULT);
    let work = move || {
        // Until the rows are ranked, even if nobody waits for that any more.
        let _share = share;
        let threads = if gathered.is_small() { Threads::Caller } else { Threads::Pool };
        let ranked = gathered.rank(&head, k, &LIMITS, threads)?;
        let ids = head.ids.as_ref();
        Ok(answer(ranked, head.many, |row| ids.and_then(|ids| ids.get(row))))
    };
    body::off_runtime(held_bytes, work).await?
}

/// Rows on their way to a ranking.
#[derive(Default)]
struct Gather {
    gathered: Gathered,
    held_bytes: usize,
}

impl Sink for Gather {
    async fn take(&mut self, outcome: Outcome) -> Result<(), ApiError> {
        self.held_bytes += outcome.bytes();
        self.gathered.take(outcome);
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        self.held_bytes
    }
}

async fn in_set(
    head: Head,
    set: Arc<TargetSet>,
    share: Share,
    on_device: Arc<DeviceSets>,
) -> Result<Response, ApiError> {
    let Head { sources, many, top_k, .. } = head;
    let sources = sources.ok_or_else(ApiError::internal)?;
    let bytes = set.rows().len().saturating_mul(sources.len());
    let work = move || {
        let _share = share;
        let ranked = nearest(&sources, &set, top_k.unwrap_or(TOP_K_DEFAULT), &on_device)?;
        Ok(answer(ranked, many, |row| set.id(row)))
    };
    body::off_runtime(bytes, work).await?
}

fn nearest(
    sources: &Sources,
    set: &Arc<TargetSet>,
    k: usize,
    on_device: &DeviceSets,
) -> Result<Vec<Vec<Scored>>, ApiError> {
    let info = set.info();
    if info.rows == 0 {
        return Ok(vec![Vec::new(); sources.len()]);
    }
    if info.dimensions != sources.dim() {
        let problem = format!(
            "Value error, the vector has {} components, those of target set {:?} have {}",
            sources.dim(),
            info.name,
            info.dimensions
        );
        let loc = vec![Step::Key("body"), Step::Key("source_embedding")];
        return Err(ApiError::problem(Problem::new("value_error", loc, problem)));
    }
    let damaged = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, set = info.name, "a target set can not be scored");
        ApiError::refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("target set {:?} is damaged; put it again", info.name),
        )
    };
    let dtype = Dtype::parse(info.dtype.name()).ok_or_else(ApiError::internal)?;
    let rows = Rows::from_bytes(set.rows(), dtype, info.dimensions).map_err(|error| damaged(&error))?;
    check_candidates(sources.len(), k, info.rows, &LIMITS)?;
    if let Some(ranked) = on_device.nearest(set, sources, k) {
        return Ok(ranked);
    }
    top_k_many(sources, rows, Some(set.norms()), k, Threads::Pool).map_err(|error| damaged(&error))
}

fn answer<'a>(ranked: Vec<Vec<Scored>>, many: bool, id: impl Fn(usize) -> Option<&'a str>) -> Response {
    let candidate = |scored: Scored| Candidate {
        control_id: id(scored.index).map_or_else(|| scored.index.to_string(), str::to_owned),
        similarity: scored.similarity,
    };
    let mut results: Vec<RetrieveResponse> = ranked
        .into_iter()
        .map(|scored| RetrieveResponse { candidates: scored.into_iter().map(candidate).collect() })
        .collect();
    if many {
        return Json(RetrieveManyResponse { results }).into_response();
    }
    match results.pop() {
        Some(one) => Json(one).into_response(),
        None => ApiError::internal().into_response(),
    }
}
