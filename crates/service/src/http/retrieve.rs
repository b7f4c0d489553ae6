//! `/api/v1/retrieve`: the nearest of the vectors that the request brings along. Needs no model.

use super::error::{ApiError, BodyRefusals, Problem, Step};
use super::{App, body};
use axum::Json;
use axum::extract::{Request, State};
use nexus_vectors::{RetrieveRequest, Rows, Threads, TopKError};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// How many candidates are returned if the request does not say.
const TOP_K_DEFAULT: usize = 50;

/// Above this many bytes, the work may spread over all cores. Small bodies are done before another thread is awake.
const SPREAD_BYTES_MIN: usize = 1 << 20;

/// A source vector and the vectors to compare it with. They need not be normalized; all are of one length, none is
/// zero, and all numbers are finite.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "source_embedding": [0.6, 0.8],
    "target_embeddings": [[0.8, 0.6], [-0.6, 0.8]],
    "target_ids": ["AC-7", "SC-2"],
    "top_k": 1,
}))]
#[allow(dead_code, reason = "the schema of what `nexus_vectors::parse_retrieve` reads")]
pub(super) struct RetrieveBody {
    /// The vector to find neighbours of.
    source_embedding: Vec<f32>,
    /// The vectors to choose from; there may be none.
    target_embeddings: Vec<Vec<f32>>,
    /// Names of the targets, one each. Without them, a target's name is its position.
    target_ids: Option<Vec<String>>,
    /// How many to return at most.
    #[schema(minimum = 1, default = 50)]
    top_k: Option<usize>,
}

/// The nearest targets.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RetrieveResponse {
    /// Best first; equal similarities in the order of the request.
    candidates: Vec<Candidate>,
}

/// One target.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Candidate {
    /// The target's name, or its position (`"0"`) where the request gave no names.
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
    request_body = RetrieveBody,
    responses(
        (status = 200, description = "The nearest targets, best first.", body = RetrieveResponse),
        BodyRefusals,
    ),
)]
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<RetrieveResponse>, ApiError> {
    let bytes = body::read_json(&app, request, app.limits.body_bytes_max).await?;
    let candidates = body::off_runtime(bytes.len(), move || {
        let threads = if bytes.len() < SPREAD_BYTES_MIN { Threads::Caller } else { Threads::Pool };
        let request = nexus_vectors::parse_retrieve(&bytes, &nexus_vectors::Limits::default())?;
        // The text is several times as large as the numbers in it.
        drop(bytes);
        nearest(request, threads)
    })
    .await??;
    Ok(Json(RetrieveResponse { candidates }))
}

fn nearest(request: RetrieveRequest, threads: Threads) -> Result<Vec<Candidate>, ApiError> {
    let RetrieveRequest { source, targets, dim, target_ids, top_k, .. } = request;
    let rows = Rows::new(&targets, dim).map_err(|error| {
        tracing::error!(%error, "the parser gave targets of the wrong shape");
        ApiError::internal()
    })?;
    let best = nexus_vectors::top_k(&source, rows, top_k.unwrap_or(TOP_K_DEFAULT), threads).map_err(refusal)?;
    let mut ids = target_ids.unwrap_or_default();
    Ok(best
        .into_iter()
        .map(|scored| Candidate {
            // Each position comes at most once, so that its name can be taken.
            control_id: ids.get_mut(scored.index).map_or_else(|| scored.index.to_string(), std::mem::take),
            similarity: scored.similarity,
        })
        .collect())
}

/// What the parser has not refused already, in the same form.
fn refusal(error: TopKError) -> ApiError {
    const SOURCE: &str = "source_embedding";
    const TARGETS: &str = "target_embeddings";
    let (kind, path) = match error {
        TopKError::Dimensions { .. } => ("value_error", vec![Step::Key(TARGETS)]),
        TopKError::Shape(_) => ("value_error", vec![Step::Key(SOURCE)]),
        TopKError::ZeroSource { .. } => ("value_error", vec![Step::Key(SOURCE)]),
        TopKError::NonFiniteSource { component, .. } => ("finite_number", vec![Step::Key(SOURCE), Step::Index(component)]),
        TopKError::ZeroRow { row } => ("value_error", vec![Step::Key(TARGETS), Step::Index(row)]),
        TopKError::NonFiniteRow { row, component } => {
            ("finite_number", vec![Step::Key(TARGETS), Step::Index(row), Step::Index(component)])
        }
    };
    let loc = [Step::Key("body")].into_iter().chain(path).collect();
    ApiError::problem(Problem::new(kind, loc, error.to_string()))
}
