//! The mapping itself: embed both catalogs, retrieve, rerank.

use super::catalog::{Catalog, Control};
use crate::terminal::bar;
use futures::{StreamExt as _, TryStreamExt as _};
use nexus_engine::{EmbedItem, EngineError, Models, Reranker, Retriever};
use nexus_storage::Vector;
use nexus_vectors::{Rows, Threads, top_k};
use std::time::Duration;

/// Texts in one call. Enough to fill batches, few enough for the bar to move.
const EMBED_ITEMS: usize = 32;

/// Calls under way at once, so that the device never waits for the next.
const CALLS_IN_FLIGHT: usize = 4;

/// A target that matches a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Match {
    /// The target's position in its catalog.
    pub(super) target: usize,
    /// Cosine similarity of the embeddings.
    pub(super) similarity: f32,
    /// The reranker's score.
    pub(super) score: f32,
}

/// The `k` best matches of each source control, best first, out of its `candidates` nearest.
pub(super) async fn compute(
    models: &Models,
    source: &Catalog,
    target: &Catalog,
    k: usize,
    candidates: usize,
) -> Result<Vec<Vec<Match>>, String> {
    let retriever = models.retriever.get().map_err(|_| "the retriever went away".to_owned())?;
    let reranker = models.reranker.get().map_err(|_| "the reranker went away".to_owned())?;
    let targets = embed(&*retriever, &target.controls, "embedding targets").await?;
    let sources = embed(&*retriever, &source.controls, "embedding sources").await?;

    let progress = bar("reranking", sources.len() as u64, "{msg} [{bar:30}] {pos} of {len}, {eta} left");
    let dimensions = targets.first().map_or(0, |vector| vector.len());
    let matrix: Vec<f32> = targets.iter().flat_map(|vector| vector.iter().copied()).collect();
    let rows = Rows::new(&matrix, dimensions).map_err(|error| error.to_string())?;
    let target_texts = &target.controls.iter().map(Control::full_text).collect::<Vec<_>>();
    let result = futures::stream::iter(sources.iter().zip(&source.controls))
        .map(|(vector, control)| {
            let (reranker, progress) = (&*reranker, &progress);
            async move {
                let nearest = nearest(vector, rows, candidates.max(k))?;
                let matches = rank(reranker, control.full_text(), target_texts, nearest, k).await?;
                progress.inc(1);
                Ok(matches)
            }
        })
        .buffered(CALLS_IN_FLIGHT)
        .try_collect()
        .await;
    progress.finish_and_clear();
    result
}

async fn embed(retriever: &dyn Retriever, controls: &[Control], label: &'static str) -> Result<Vec<Vector>, String> {
    let progress = bar(label, controls.len() as u64, "{msg} [{bar:30}] {pos} of {len}, {eta} left");
    let result: Result<Vec<_>, EngineError> = futures::stream::iter(controls.chunks(EMBED_ITEMS))
        .map(async |chunk: &[Control]| {
            let items: Vec<EmbedItem> = chunk
                .iter()
                .map(|control| EmbedItem { text: control.full_text(), instruction: None, dimensions: None })
                .collect();
            let embeddings = patiently(|| retriever.embed(items.clone())).await?;
            progress.inc(chunk.len() as u64);
            Ok(embeddings)
        })
        .buffered(CALLS_IN_FLIGHT)
        .try_collect()
        .await;
    progress.finish_and_clear();
    let embeddings = result.map_err(|error| format!("{label}: {error}"))?;
    Ok(embeddings.into_iter().flatten().map(|embedding| embedding.vector).collect())
}

/// Positions and similarities of the nearest targets.
fn nearest(source: &[f32], rows: Rows<'_>, k: usize) -> Result<Vec<(usize, f32)>, String> {
    let best = top_k(source, rows, k, Threads::Pool).map_err(|error| error.to_string())?;
    Ok(best.into_iter().map(|scored| (scored.index, scored.similarity)).collect())
}

async fn rank(
    reranker: &dyn Reranker,
    source: String,
    target_texts: &[String],
    nearest: Vec<(usize, f32)>,
    k: usize,
) -> Result<Vec<Match>, String> {
    let texts: Vec<String> = nearest.iter().filter_map(|(target, _)| target_texts.get(*target)).cloned().collect();
    let scores = patiently(|| reranker.score(source.clone(), texts.clone()))
        .await
        .map_err(|error| format!("reranking: {error}"))?;
    let mut matches: Vec<Match> = nearest
        .into_iter()
        .zip(scores)
        .map(|((target, similarity), score)| Match { target, similarity, score })
        .collect();
    // Stable: equal scores stay in the order of similarity.
    matches.sort_by(|a, b| b.score.total_cmp(&a.score));
    matches.truncate(k);
    Ok(matches)
}

/// Calls again while the queue is full: nobody but this command fills it.
async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, EngineError>>,
{
    loop {
        match call().await {
            Err(EngineError::Overloaded { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            other => return other,
        }
    }
}
