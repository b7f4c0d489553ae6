//! Models that answer at once, or fail as their input asks them to.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use nexus_engine::{Digests, EmbedItem, Embedding, EngineError, RerankerInfo, RetrieverInfo, Revision};

/// Floats in a vector of the fake.
pub(super) const DIMENSIONS: usize = 4;

/// A revision like any other.
pub(super) fn revision(seed: u8) -> Revision {
    Revision::of(&Digests { model: [seed; 32], tokenizer: [0; 32] }, "last", 16, "f32")
}

/// Embeds a text as its length, the length of its instruction, 0.1, and the dimensions asked for.
pub(super) struct Retriever(RetrieverInfo);

impl Default for Retriever {
    fn default() -> Self {
        let (model, revision) = ("fake".to_owned(), revision(1));
        Self(RetrieverInfo { model, revision, dimensions: DIMENSIONS, window_tokens: 16 })
    }
}

impl nexus_engine::Retriever for Retriever {
    fn info(&self) -> &RetrieverInfo {
        &self.0
    }

    fn embed(&self, items: Vec<EmbedItem>) -> BoxFuture<'_, Result<Vec<Embedding>, EngineError>> {
        async move {
            let mut embeddings = Vec::new();
            for (index, EmbedItem { text, instruction, dimensions }) in items.into_iter().enumerate() {
                fail(&text, "text", Some(index)).await?;
                let dimensions = dimensions.unwrap_or(DIMENSIONS);
                let instruction = instruction.map_or(0, |instruction| instruction.len());
                let full = [text.len() as f32, instruction as f32, 0.1, dimensions as f32];
                embeddings.push(Embedding { vector: full[..dimensions].into(), cache_hit: text == "hit" });
            }
            Ok(embeddings)
        }
        .boxed()
    }
}

/// Scores a text by its first two characters, as hundredths.
pub(super) struct Reranker(RerankerInfo);

impl Default for Reranker {
    fn default() -> Self {
        Self(RerankerInfo { model: "fake".to_owned(), revision: revision(2), window_tokens: 16 })
    }
}

impl nexus_engine::Reranker for Reranker {
    fn info(&self) -> &RerankerInfo {
        &self.0
    }

    fn score(&self, source: String, candidates: Vec<String>) -> BoxFuture<'_, Result<Vec<f32>, EngineError>> {
        async move {
            fail(&source, "source_text", None).await?;
            for (index, text) in candidates.iter().enumerate() {
                fail(text, "candidates", Some(index)).await?;
            }
            Ok(candidates
                .iter()
                .map(|text| text.get(..2).and_then(|t| t.parse().ok()).unwrap_or(0.0) / 100.0)
                .collect())
        }
        .boxed()
    }
}

async fn fail(text: &str, field: &'static str, index: Option<usize>) -> Result<(), EngineError> {
    match text {
        "overloaded" => Err(EngineError::Overloaded { by_client: false, retry_after_s: 7 }),
        "greedy" => Err(EngineError::Overloaded { by_client: true, retry_after_s: 1 }),
        "stopping" => Err(EngineError::ShuttingDown),
        "invalid" => Err(EngineError::Invalid { field, index, message: "not this one".to_owned() }),
        "broken" => Err(EngineError::Model("component 3 is not finite".to_owned())),
        "panic" => panic!("as asked"),
        "hang" => std::future::pending().await,
        _ => Ok(()),
    }
}
