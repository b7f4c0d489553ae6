//! `/api/v1/rerank`: candidates, read together with the source, best first.

use super::error::{ApiError, BodyRefusals, ModelRefusals, Step};
use super::observe::Timing;
use super::validate::{Fields, Problems};
use super::{App, body, revision};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use nexus_engine::Reranker;
use nexus_engine::Role;
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// A source and its candidates.
#[derive(Debug, ToSchema)]
#[schema(example = json!({
    "source_text": "MFA is enabled for the root user",
    "candidates": [
        { "control_id": "AC-7", "text": "Multi-factor authentication is required for all users." },
        { "control_id": "SC-2", "text": "Data at rest is encrypted." },
    ],
    "top_n": 1,
}))]
#[allow(dead_code, reason = "the schema of what `parse` reads")]
pub(super) struct RerankRequest {
    /// The text that candidates are compared with: not only white space.
    #[schema(min_length = 1, pattern = r"\S")]
    source_text: String,
    /// The candidates; there may be none.
    candidates: Vec<RerankCandidate>,
    /// Return only this many of the best. All if absent.
    #[schema(minimum = 1)]
    top_n: Option<usize>,
}

/// One candidate.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "the schema of what `parse` reads")]
pub(super) struct RerankCandidate {
    /// The caller's name of the control; comes back as it is.
    control_id: String,
    /// The control's text: not only white space. What is beyond the model's window is cut off.
    #[schema(min_length = 1, pattern = r"\S")]
    text: String,
}

/// Candidates in their new order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RerankResponse {
    /// Best first; equal scores in the order of the request.
    rankings: Vec<Ranking>,
}

/// One candidate's place.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Ranking {
    /// The caller's name of the control.
    #[schema(example = "AC-7")]
    control_id: String,
    /// How well it matches the source, from 0 to 1: the sigmoid of the model's logit.
    #[schema(example = 0.93)]
    score: f32,
}

/// Scores candidates against a source text, best first.
#[utoipa::path(
    post,
    path = "/api/v1/rerank",
    tag = "controls",
    operation_id = "rerank",
    params(Timing),
    request_body = RerankRequest,
    responses(
        (
            status = 200,
            description = "The candidates, best first.",
            body = RerankResponse,
            headers(("x-nexus-model-revision" = String, description = "Which revision of the model answered.")),
        ),
        BodyRefusals,
        ModelRefusals,
    ),
)]
pub(super) async fn rerank(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let bytes = body::read_json(&app, request, app.limits.text_body_bytes_max).await?;
    let candidates_max = app.limits.batch_items_max;
    let Parsed { source, ids, texts, top_n } =
        body::off_runtime(bytes.len(), move || parse(&bytes, candidates_max)).await??;
    let reranker = app.reranker()?;
    let scores = if texts.is_empty() { Vec::new() } else { score(&*reranker, source, texts).await? };
    if scores.len() != ids.len() {
        tracing::error!(asked = ids.len(), got = scores.len(), "the reranker lost count");
        return Err(ApiError::internal());
    }
    let scored = Instant::now();
    let mut rankings: Vec<Ranking> =
        ids.into_iter().zip(scores).map(|(control_id, score)| Ranking { control_id, score }).collect();
    // Stable: equal scores stay in the order of the request.
    rankings.sort_by(|a, b| b.score.total_cmp(&a.score));
    rankings.truncate(top_n.unwrap_or(usize::MAX));
    let response = Json(RerankResponse { rankings }).into_response();
    app.monitor.serialized(Role::Reranker, scored.elapsed());
    Ok(revision::mark(response, &reranker.info().revision))
}

async fn score(reranker: &dyn Reranker, source: String, texts: Vec<String>) -> Result<Vec<f32>, ApiError> {
    let place = |field, index| match index {
        Some(index) => vec![Step::Key(field), Step::Index(index), Step::Key("text")],
        None => vec![Step::Key(field)],
    };
    reranker.score(source, texts).await.map_err(|error| ApiError::of_engine(error, place))
}

pub(super) struct Parsed {
    pub(super) source: String,
    pub(super) ids: Vec<String>,
    pub(super) texts: Vec<String>,
    pub(super) top_n: Option<usize>,
}

pub(super) fn parse(bytes: &[u8], candidates_max: usize) -> Result<Parsed, ApiError> {
    let mut problems = Problems::default();
    let mut body = Fields::of_body(bytes)?;
    let source = body.text("source_text", &mut problems);
    let (ids, texts) = body
        .list("candidates", candidates_max, &mut problems)
        .into_iter()
        .enumerate()
        .map(|(index, value)| {
            let mut fields = Fields::of_item(value, "candidates", index, &mut problems);
            (fields.string("control_id", &mut problems), fields.text("text", &mut problems))
        })
        .unzip();
    let top_n = body.optional_positive("top_n", &mut problems);
    problems.finish(Parsed { source, ids, texts, top_n })
}
