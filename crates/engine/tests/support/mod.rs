//! Tiny models as sources, and what tests ask of an engine.

use nexus_engine::{Digests, EmbedItem, Engine, ModelSource, ModelState, OpenedModel, Role};
use nexus_models::ModelFiles;
use nexus_storage::digest_bytes;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A golden model beside a tokenizer cut to its vocabulary.
pub(crate) fn model(case: &str, tokenizer: &str) -> TempDir {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden");
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(case).join(name), folder.path().join(name)).unwrap();
    }
    let read = |path: PathBuf| -> serde_json::Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let rows = read(folder.path().join("config.json"))["vocab_size"].as_u64().unwrap();
    let mut json = read(golden.join(format!("tokenizers/{tokenizer}.tokenizer.json")));
    json["model"]["merges"] = serde_json::json!([]);
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < rows);
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    folder
}

/// A model folder, whose digests are those of what is in it.
pub(crate) fn source(folder: PathBuf) -> ModelSource {
    ModelSource {
        name: folder.display().to_string(),
        open: Arc::new(move |_| {
            let files = ModelFiles::open(&folder)?;
            let digest = |wanted: &dyn Fn(&str) -> bool| {
                let content = |name| files.get(name).map(|bytes| (name, bytes));
                digest_bytes(&files.names().filter(|name| wanted(name)).filter_map(content).collect::<Vec<_>>())
            };
            let digests = Digests {
                model: digest(&|name| name != "tokenizer.json"),
                tokenizer: digest(&|name| name == "tokenizer.json"),
            };
            Ok(OpenedModel { files, digests: Box::new(move || Ok(digests)), arrival: None })
        }),
    }
}

pub(crate) fn wait(engine: &Engine, role: Role) -> ModelState {
    let started = Instant::now();
    loop {
        let status = engine.models().status().into_iter().find(|s| s.role == role).unwrap();
        match status.state {
            ModelState::Loading { .. } if started.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            state => return state,
        }
    }
}

pub(crate) fn item(text: &str) -> EmbedItem {
    EmbedItem { text: text.into(), instruction: None, dimensions: None }
}
