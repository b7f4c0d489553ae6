//! An engine over real (tiny) models on the reference backend: loading in the background, and what it answers.

#![forbid(unsafe_code)]

mod support;

use futures::{FutureExt, future::BoxFuture};
use nexus_compute::reference::Reference;
use nexus_engine::{Devices, EmbedItem, Engine, EngineError, EngineOptions, ModelSource, ModelState, Role};
use nexus_storage::NoCache;
use std::sync::Arc;
use support::{item, model, source, wait};

const OPTIONS: EngineOptions = EngineOptions { queue_tokens_max: 10_000, text_tokens_max: 32, packed_bytes_min: None };

fn start(retriever: ModelSource, reranker: ModelSource) -> Engine {
    Engine::start(
        || Ok(Devices::new(vec![Arc::new(Reference)], 64)),
        OPTIONS,
        Arc::new(NoCache::new()),
        retriever,
        reranker,
    )
    .unwrap()
}

#[tokio::test]
async fn embeds_and_scores_alone_as_in_a_batch() {
    let (embedder, reranker) = (model("qwen3-gqa-f32", "qwen"), model("modernbert-cls-w16-f32", "modernbert"));
    let engine = start(source(embedder.path().into()), source(reranker.path().into()));
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);
    assert_eq!(wait(&engine, Role::Reranker), ModelState::Ready);
    let retriever = engine.models().retriever.get().unwrap();
    let reranker = engine.models().reranker.get().unwrap();

    let long = "keys ".repeat(100);
    let texts = ["MFA", "Rotate access keys", "a", &long];
    let together = retriever.embed(texts.map(item).into()).await.unwrap();
    for (text, embedding) in texts.iter().zip(&together) {
        let alone = &retriever.embed(vec![item(text)]).await.unwrap()[0];
        assert_eq!(alone.vector.len(), retriever.info().dimensions);
        let norm: f32 = alone.vector.iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5);
        for (a, b) in alone.vector.iter().zip(embedding.vector.iter()) {
            assert!((a - b).abs() < 1e-5, "{text}");
        }
    }
    assert!(retriever.embed(vec![]).await.unwrap().is_empty());

    let candidates = texts.map(String::from);
    let scores = reranker.score("MFA".into(), candidates.clone().into()).await.unwrap();
    for (candidate, score) in candidates.into_iter().zip(&scores) {
        let alone = reranker.score("MFA".into(), vec![candidate]).await.unwrap();
        assert!((alone[0] - score).abs() < 1e-4 && (0.0..=1.0).contains(score));
    }
}

/// Candidates that are worked off in several pieces, some of them longer than the queue.
#[tokio::test]
async fn a_long_list_is_answered_in_its_order_and_its_errors_name_their_places() {
    let (embedder, reranker) = (model("qwen3-gqa-f32", "qwen"), model("modernbert-cls-w16-f32", "modernbert"));
    // A token beyond the embedding table, as published models have them.
    let file = reranker.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let rows = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let odd = serde_json::json!({ "id": rows, "content": "[ODD]", "single_word": false, "lstrip": false, "rstrip": false,
                                  "normalized": false, "special": true });
    tokenizer["added_tokens"].as_array_mut().unwrap().push(odd);
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let engine = start(source(embedder.path().into()), source(reranker.path().into()));
    assert_eq!(wait(&engine, Role::Reranker), ModelState::Ready);
    let reranker = engine.models().reranker.get().unwrap();

    let texts: Vec<String> = (0..700).map(|n| "keys ".repeat(n % 23) + ["MFA", "a"][n % 2]).collect();
    let scores = reranker.score("MFA".into(), texts.clone()).await.unwrap();
    assert_eq!(scores.len(), texts.len());
    for at in [0, 1, 63, 64, 65, 500, 511, 512, 699] {
        let alone = reranker.score("MFA".into(), vec![texts[at].clone()]).await.unwrap()[0];
        assert!((alone - scores[at]).abs() < 1e-5, "at {at}: {alone}, {}", scores[at]);
    }
    assert!(scores[1] != scores[22], "texts differ, and so do scores");

    let mut wrong = texts;
    for at in [600, 130] {
        wrong[at] = "[ODD]".into();
        let refused = reranker.score("MFA".into(), wrong.clone()).await.unwrap_err();
        assert!(
            matches!(refused, EngineError::Invalid { field: "candidates", index: Some(index), .. } if index == at),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn asks_for_what_the_model_has() {
    let embedder = model("qwen3-gqa-f32", "qwen");
    let engine = start(source(embedder.path().into()), source("/nowhere".into()));
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);
    let retriever = engine.models().retriever.get().unwrap();
    let with = |dimensions| vec![EmbedItem { dimensions: Some(dimensions), ..item("MFA") }];
    assert_eq!(retriever.embed(with(8)).await.unwrap()[0].vector.len(), 8);
    let refused = retriever.embed(with(100_000)).await.unwrap_err();
    assert!(matches!(refused, EngineError::Invalid { field: "dimensions", .. }), "{refused:?}");

    // An instruction is part of what is read.
    let instructed = vec![EmbedItem { instruction: Some("find".into()), ..item("MFA") }];
    let (plain, instructed): (BoxFuture<'_, _>, _) =
        (retriever.embed(vec![item("MFA")]).boxed(), retriever.embed(instructed));
    assert_ne!(plain.await.unwrap()[0].vector, instructed.await.unwrap()[0].vector);
}

#[test]
fn one_model_that_fails_leaves_the_other() {
    let embedder = model("qwen3-gqa-f32", "qwen");
    let panics = ModelSource { name: "panics".into(), open: Arc::new(|_| panic!("deliberate")) };
    let engine = start(source(embedder.path().into()), panics);
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);
    let ModelState::Failed { reason } = wait(&engine, Role::Reranker) else { panic!("it loaded") };
    assert!(reason.contains("panicked"), "{reason}");

    let engine = start(source("/nowhere/at/all".into()), source(embedder.path().into()));
    let ModelState::Failed { reason } = wait(&engine, Role::Retriever) else { panic!("it loaded") };
    assert!(reason.contains("/nowhere/at/all"), "{reason}");
    let ModelState::Failed { reason } = wait(&engine, Role::Reranker) else { panic!("it loaded") };
    assert!(reason.contains("model_type is qwen3; supported: modernbert"), "{reason}");
}

#[tokio::test]
async fn closing_refuses_new_work() {
    let embedder = model("qwen3-gqa-f32", "qwen");
    let engine = start(source(embedder.path().into()), source("/nowhere".into()));
    assert_eq!(wait(&engine, Role::Retriever), ModelState::Ready);
    let retriever = engine.models().retriever.get().unwrap();
    engine.close();
    assert_eq!(retriever.embed(vec![item("late")]).await, Err(EngineError::ShuttingDown));
}
