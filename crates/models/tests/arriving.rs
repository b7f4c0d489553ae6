//! Models whose files are on their way: what is waited for, when, and what comes of a file that never arrives.

#![forbid(unsafe_code)]

use nexus_compute::{PackedBatch, reference::Reference};
use nexus_models::{LoadError, LoadOptions, LoadedEmbedder, ModelFiles, WaitForFile, load_embedder};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

const SHARDED: &str = "qwen3-sharded-f16";
const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const THIRD: &str = "model-00003-of-00003.safetensors";

/// All files of a model, and a folder that they are brought to.
struct Transfer {
    from: TempDir,
    to: TempDir,
    /// What was waited for, in order.
    waited: Mutex<Vec<String>>,
    /// Bytes of weights that were prepared.
    prepared: Mutex<(u64, u64)>,
}

impl Transfer {
    fn new(case: &str) -> Arc<Self> {
        let from = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for entry in std::fs::read_dir(golden.join(case)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, from.path().join(path.file_name().unwrap())).unwrap();
        }
        // A tokenizer cut to the vocabulary of the tiny model.
        let read = |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
        let rows = read(from.path().join("config.json"))["vocab_size"].as_u64().unwrap();
        let mut tokenizer = read(golden.join("tokenizers/qwen.tokenizer.json"));
        tokenizer["model"]["merges"] = json!([]);
        tokenizer["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < rows);
        std::fs::write(from.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        Arc::new(Self { from, to: tempfile::tempdir().unwrap(), waited: Mutex::default(), prepared: Mutex::default() })
    }

    fn names(&self) -> Vec<String> {
        std::fs::read_dir(self.from.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Brings each file when it is waited for, after `before` was asked.
    fn files(
        self: &Arc<Self>,
        before: impl Fn(&Self, &str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<ModelFiles, LoadError> {
        let transfer = self.clone();
        let wait: WaitForFile = Arc::new(move |name: &str| {
            transfer.waited.lock().unwrap().push(name.to_owned());
            before(&transfer, name)?;
            std::fs::copy(transfer.from.path().join(name), transfer.to.path().join(name))?;
            Ok(())
        });
        ModelFiles::arriving(self.to.path(), self.names().iter().map(String::as_str), &wait)
    }

    fn load(&self, files: &ModelFiles) -> Result<LoadedEmbedder, LoadError> {
        let progress = |done, total| *self.prepared.lock().unwrap() = (done, total);
        load_embedder(
            &Arc::new(Reference),
            files,
            LoadOptions { window_limit_tokens: 0, progress: &progress, packed_weights: None },
        )
    }

    fn weights_waited_for(&self) -> Vec<String> {
        self.waited.lock().unwrap().iter().filter(|name| name.ends_with(".safetensors")).cloned().collect()
    }
}

fn answer(embedder: &LoadedEmbedder) -> Vec<f32> {
    embedder.model.forward(&PackedBatch::new(&[&[5, 6, 7, 0]]).unwrap()).unwrap()
}

#[test]
fn one_shard_is_prepared_before_the_next_is_there() {
    let transfer = Transfer::new(SHARDED);
    let files = transfer
        .files(|transfer, name| {
            if name == SECOND {
                let (done, total) = *transfer.prepared.lock().unwrap();
                assert!(done > 0 && done < total, "{done} of {total}");
                assert!(!transfer.to.path().join(SECOND).exists());
            }
            Ok(())
        })
        .unwrap();
    // What is small is here already, and nothing else.
    assert!(transfer.weights_waited_for().is_empty());
    assert!(files.get("config.json").is_some() && files.get(FIRST).is_none());
    assert!(files.names().any(|name| name == SECOND));
    let arrived = transfer.load(&files).unwrap();
    assert_eq!(transfer.weights_waited_for(), [FIRST, SECOND, THIRD]);
    let (done, total) = *transfer.prepared.lock().unwrap();
    assert_eq!(done, total);

    let complete = ModelFiles::open(transfer.from.path()).unwrap();
    assert_eq!(answer(&arrived), answer(&transfer.load(&complete).unwrap()));
}

#[test]
fn a_model_of_one_file_is_waited_for_once() {
    let transfer = Transfer::new("qwen3-gqa-f32");
    let files = transfer.files(|_, _| Ok(())).unwrap();
    let arrived = transfer.load(&files).unwrap();
    assert_eq!(transfer.weights_waited_for(), ["model.safetensors"]);
    let complete = ModelFiles::open(transfer.from.path()).unwrap();
    assert_eq!(answer(&arrived), answer(&transfer.load(&complete).unwrap()));
}

#[test]
fn a_file_that_never_arrives_is_named_with_the_reason() {
    for (missing, at_once) in [("tokenizer.json", true), (SECOND, false)] {
        let transfer = Transfer::new(SHARDED);
        let files =
            transfer.files(move |_, name| if name == missing { Err("the link is down".into()) } else { Ok(()) });
        assert_eq!(files.is_err(), at_once);
        let error = files.and_then(|files| transfer.load(&files).map(drop)).unwrap_err().to_string();
        let place = transfer.to.path().join(missing);
        assert_eq!(error, format!("{} did not arrive: the link is down", place.display()));
    }
}

#[test]
fn what_takes_all_headers_is_still_found() {
    // A tensor in its shard that the index looks for in the other one.
    let transfer = Transfer::new(SHARDED);
    let path = transfer.from.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let (name, _) =
        index["weight_map"].as_object().unwrap().iter().find(|(_, shard)| **shard == SECOND).expect("a tensor");
    let name = name.clone();
    index["weight_map"][&name] = json!(FIRST);
    std::fs::write(&path, index.to_string()).unwrap();
    let error = transfer.load(&transfer.files(|_, _| Ok(())).unwrap()).map(drop).unwrap_err();
    assert!(matches!(&error, LoadError::MissingTensor { tensor, .. } if *tensor == name), "{error}");

    // A copy of a shard under another name: every tensor of it is there twice.
    let transfer = Transfer::new(SHARDED);
    let copy = "model-copy.safetensors";
    std::fs::copy(transfer.from.path().join(SECOND), transfer.from.path().join(copy)).unwrap();
    let path = transfer.from.path().join("model.safetensors.index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["weight_map"][&name] = json!(copy);
    std::fs::write(&path, index.to_string()).unwrap();
    let error = transfer.load(&transfer.files(|_, _| Ok(())).unwrap()).map(drop).unwrap_err();
    assert!(error.to_string().contains("is in more than one shard"), "{error}");
}
