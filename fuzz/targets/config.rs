//! `config.json`: one family takes it or none, what is told of memory grows with the batch, and what loads beside real
//! weights runs.

#![forbid(unsafe_code)]
#![no_main]

mod folder;

use libfuzzer_sys::fuzz_target;
use nexus_compute::PackedBatch;
use nexus_compute::reference::Reference;
use nexus_models::{
    LoadOptions, ModelFiles, PackedModel, embedder_memory, load_embedder, load_reranker, reranker_memory,
};
use serde_json::{Value, json};
use std::sync::{Arc, Once};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/models/tests/golden");
/// Rows of the golden models' tables.
const VOCABULARY: u64 = 128;

fuzz_target!(|data: &[u8]| {
    let Some((&form, config)) = data.split_first() else { return };
    let (folder, case, kind) =
        if form % 2 == 0 { ("e", "qwen3-mha-bf16", "qwen") } else { ("r", "modernbert-cls-w128-f32", "modernbert") };
    static START: [Once; 2] = [const { Once::new() }; 2];
    START[usize::from(form % 2)].call_once(|| {
        std::fs::create_dir_all(folder::folder().join(folder)).expect("a folder");
        let read = |from: String| std::fs::read(from).expect("a file of the repository");
        let mut tokenizer: Value =
            serde_json::from_slice(&read(format!("{GOLDEN}/tokenizers/{kind}.tokenizer.json"))).expect("JSON");
        // It knows more tokens than the golden models: the letters stay, without merges.
        tokenizer["model"]["merges"] = json!([]);
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().expect("a vocabulary");
        vocabulary.retain(|_, id| id.as_u64().is_some_and(|id| id < VOCABULARY));
        folder::write(&format!("{folder}/tokenizer.json"), tokenizer.to_string().as_bytes());
        folder::write(&format!("{folder}/model.safetensors"), &read(format!("{GOLDEN}/{case}/model.safetensors")));
    });
    folder::write(&format!("{folder}/config.json"), config);
    let files = ModelFiles::open(&folder::folder().join(folder)).expect("the files are there");

    let embedder = |tokens| embedder_memory(&files, tokens, 4);
    let reranker = |tokens| reranker_memory(&files, tokens, 4);
    let (e, r) = (embedder(64), reranker(64));
    assert!(e.is_err() || r.is_err(), "a model of both families");
    for (small, large) in [(e, embedder(8192)), (r, reranker(8192))] {
        let (Ok(small), Ok(large)) = (small, large) else { continue };
        assert!(small.workspace_bytes > 0 && small.workspace_bytes < large.workspace_bytes);
        assert_eq!(small.weights_bytes, large.weights_bytes);
    }

    let options = LoadOptions { window_limit_tokens: 32, progress: &|_, _| {}, packed_weights: None };
    let backend = Arc::new(Reference);
    if let Ok(loaded) = load_embedder(&backend, &files, options) {
        run(&*loaded.model);
    }
    if let Ok(loaded) = load_reranker(&backend, &files, options) {
        assert_eq!(loaded.model.output_columns(), 1);
        run(&*loaded.model);
    }
});

fn run(model: &dyn PackedModel) {
    let batch = PackedBatch::new(&[vec![1, 2, 3], vec![4]]).expect("two sequences");
    let rows = model.forward(&batch).expect("the reference computes whatever was loaded");
    assert_eq!(rows.len(), 2 * model.output_columns());
}
