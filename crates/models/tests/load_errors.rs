//! Model folders that are wrong: each gives an error that names file and tensor or key, and nothing panics.

#![forbid(unsafe_code)]

use nexus_compute::reference::Reference;
use nexus_models::{LoadOptions, ModelFiles, load_embedder, load_reranker};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

/// A tensor of a safetensors file: name, dtype, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A copy of a golden model with a tokenizer whose ids fit it.
struct Folder(TempDir);

impl Folder {
    fn new(case: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for entry in std::fs::read_dir(golden.join(case)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let this = Self(folder);
        let kind = if case.starts_with("qwen3") { "qwen" } else { "modernbert" };
        std::fs::copy(golden.join(format!("tokenizers/{kind}.tokenizer.json")), this.path("tokenizer.json")).unwrap();
        // The golden tokenizers know more tokens than the golden models: keep the letters, drop the merges.
        let config: Value = serde_json::from_slice(&std::fs::read(this.path("config.json")).unwrap()).unwrap();
        let rows = config["vocab_size"].as_u64().unwrap();
        this.edit_json("tokenizer.json", |json| {
            json["model"]["merges"] = json!([]);
            json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < rows);
        });
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap();
        edit(&mut json);
        std::fs::write(self.path(name), json.to_string()).unwrap();
    }

    /// Rewrites a safetensors file with tensors changed by `edit`.
    fn edit_tensors(&self, name: &str, edit: impl FnOnce(&mut Vec<Tensor>)) {
        let bytes = std::fs::read(self.path(name)).unwrap();
        let mut tensors: Vec<_> = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            .collect();
        edit(&mut tensors);
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        std::fs::write(self.path(name), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn load(&self) -> Result<(), String> {
        self.load_within(64)
    }

    fn load_within(&self, window_limit_tokens: usize) -> Result<(), String> {
        let backend = Arc::new(Reference);
        let files = ModelFiles::open(self.0.path()).map_err(|e| e.to_string())?;
        let options = LoadOptions { window_limit_tokens, progress: &|_, _| (), packed_weights: None };
        let config = String::from_utf8_lossy(files.get("config.json").unwrap_or_default()).into_owned();
        if config.contains("modernbert") {
            load_reranker(&backend, &files, options).map(drop)
        } else {
            load_embedder(&backend, &files, options).map(drop)
        }
        .map_err(|e| e.to_string())
    }

    #[track_caller]
    fn refuses(&self, parts: &[&str]) {
        let error = self.load().expect_err("a broken folder was loaded");
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }
}

const QWEN: &str = "qwen3-gqa-f32";
const SHARDED: &str = "qwen3-sharded-f16";
const BERT: &str = "modernbert-cls-w16-f32";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn the_untouched_folders_load() {
    for case in [QWEN, SHARDED, BERT, "modernbert-biases-f32", "qwen3-bias-f32"] {
        Folder::new(case).load().unwrap();
    }
}

#[test]
fn missing_files() {
    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        let folder = Folder::new(QWEN);
        std::fs::remove_file(folder.path(name)).unwrap();
        folder.refuses(&[name, &folder.0.path().display().to_string()]);
    }
    let gone = Folder::new(QWEN);
    let path = gone.0.path().to_owned();
    std::fs::remove_dir_all(&path).unwrap();
    gone.refuses(&["can not read", &path.display().to_string()]);
}

#[test]
fn damaged_files() {
    for name in ["config.json", "tokenizer.json", WEIGHTS] {
        for content in [&b""[..], b"{", b"[]", b"\xff\xfe\x00", &[0xff; 64], b"null"] {
            let folder = Folder::new(QWEN);
            std::fs::write(folder.path(name), content).unwrap();
            folder.refuses(&[name]);
        }
    }
}

#[test]
fn truncated_weights() {
    let folder = Folder::new(QWEN);
    let bytes = std::fs::read(folder.path(WEIGHTS)).unwrap();
    for length in [1, 7, 8, 9, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(folder.path(WEIGHTS), &bytes[..length]).unwrap();
        folder.refuses(&[WEIGHTS]);
    }
    std::fs::write(folder.path(WEIGHTS), [bytes.as_slice(), b"more"].concat()).unwrap();
    folder.refuses(&[WEIGHTS]);
}

#[test]
fn missing_tensors() {
    let tensors = [
        (QWEN, "embed_tokens.weight"),
        (QWEN, "norm.weight"),
        (QWEN, "layers.1.self_attn.q_norm.weight"),
        (QWEN, "layers.0.mlp.up_proj.weight"),
        (BERT, "model.layers.1.attn_norm.weight"),
        (BERT, "model.embeddings.norm.weight"),
        (BERT, "head.dense.weight"),
        (BERT, "classifier.bias"),
    ];
    for (case, tensor) in tensors {
        let folder = Folder::new(case);
        folder.edit_tensors(WEIGHTS, |tensors| tensors.retain(|(name, ..)| name != tensor));
        folder.refuses(&[WEIGHTS, tensor, "missing"]);
    }
}

#[test]
fn tensors_of_another_shape_or_type() {
    let change = |case: &str, tensor: &str, edit: fn(&mut Tensor)| {
        let folder = Folder::new(case);
        folder.edit_tensors(WEIGHTS, |tensors| {
            edit(tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap());
        });
        folder
    };
    let tensor = "layers.0.mlp.down_proj.weight";
    let narrower = change(QWEN, tensor, |(_, _, shape, data)| {
        shape[1] -= 1;
        data.truncate(shape[0] * shape[1] * 4);
    });
    narrower.refuses(&[WEIGHTS, tensor, "shape", "configuration asks for"]);
    let flat = change(BERT, "head.dense.weight", |(_, _, shape, _)| *shape = vec![shape[0] * shape[1]]);
    flat.refuses(&[WEIGHTS, "head.dense.weight", "shape"]);
    let integers = change(QWEN, tensor, |(_, dtype, ..)| *dtype = Dtype::I32);
    integers.refuses(&[WEIGHTS, tensor, "I32"]);
}

#[test]
fn tensors_without_a_place() {
    let extra = |case: &str, tensor: &str| {
        let folder = Folder::new(case);
        folder.edit_tensors(WEIGHTS, |tensors| {
            tensors.push((tensor.to_owned(), Dtype::F32, vec![2], vec![0; 8]));
        });
        folder
    };
    extra(QWEN, "layers.0.self_attn.q_proj.bias").refuses(&[WEIGHTS, "layers.0.self_attn.q_proj.bias", "no place"]);
    extra(QWEN, "layers.99.mlp.up_proj.weight").refuses(&[WEIGHTS, "layers.99"]);
    extra(BERT, "model.layers.0.attn_norm.weight").refuses(&[WEIGHTS, "model.layers.0.attn_norm.weight"]);
    extra(QWEN, "lm_head.weight").load().unwrap();
}

#[test]
fn a_broken_index() {
    let folder = Folder::new(SHARDED);
    std::fs::write(folder.path(INDEX), b"{\"weight_map\": 3}").unwrap();
    folder.refuses(&[INDEX]);

    let folder = Folder::new(SHARDED);
    folder.edit_json(INDEX, |json| json["weight_map"]["model.norm.weight"] = json!("model-00009-of-00003.safetensors"));
    folder.refuses(&["model-00009-of-00003.safetensors"]);

    let folder = Folder::new(SHARDED);
    folder.edit_json(INDEX, |json| json["weight_map"]["model.norm.weight"] = json!("../../etc/passwd"));
    folder.refuses(&["../../etc/passwd"]);

    // A tensor that the index looks for in the wrong shard.
    let folder = Folder::new(SHARDED);
    folder.edit_json(INDEX, |json| {
        let map = json["weight_map"].as_object_mut().unwrap();
        let file = map["model.norm.weight"].clone();
        let other = map.values().find(|v| **v != file).unwrap().clone();
        map["model.norm.weight"] = other;
    });
    folder.refuses(&["model.norm.weight", "missing"]);

    let folder = Folder::new(SHARDED);
    std::fs::remove_file(folder.path("model-00002-of-00003.safetensors")).unwrap();
    folder.refuses(&["model-00002-of-00003.safetensors"]);
}

#[test]
fn configurations_that_are_not_computed() {
    let edits: [(&str, &str, Value); 17] = [
        (QWEN, "head_dim", json!(10_000_000)),
        (BERT, "hidden_size", json!(10_000_000)),
        (QWEN, "rope_parameters", json!({"full_attention": "x"})),
        (QWEN, "hidden_act", json!("gelu")),
        (QWEN, "use_sliding_window", json!(true)),
        (QWEN, "rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        (QWEN, "model_type", json!("llama")),
        (QWEN, "num_key_value_heads", json!(3)),
        (QWEN, "hidden_size", json!("64")),
        (QWEN, "num_hidden_layers", json!(0)),
        (QWEN, "num_hidden_layers", json!(-1)),
        (QWEN, "rms_norm_eps", json!(0)),
        (QWEN, "vocab_size", json!(1e30)),
        (BERT, "hidden_activation", json!("gelu_new")),
        (BERT, "classifier_pooling", json!("max")),
        (BERT, "id2label", json!({"0": "NO", "1": "YES"})),
        (BERT, "layer_types", json!(["full_attention"])),
    ];
    for (case, key, value) in edits {
        let shown = match key {
            // What is wrong with a size shows at the first tensor that has another.
            "head_dim" | "hidden_size" if value == 10_000_000 => "shape",
            "rope_parameters" => "full_attention",
            "id2label" => "labels",
            "rope_scaling" => "yarn",
            _ => key,
        };
        let folder = Folder::new(case);
        folder.edit_json("config.json", |json| json[key] = value);
        folder.refuses(&[if shown == "shape" { WEIGHTS } else { "config.json" }, shown]);
    }
}

#[test]
fn sizes_without_end() {
    // No window bounds the positions, and no tensor contradicts them.
    let folder = Folder::new(QWEN);
    folder.edit_json("config.json", |json| json["max_position_embeddings"] = json!(10_000_000));
    let error = folder.load_within(0).unwrap_err();
    assert!(error.contains("rotary table") && error.contains("10000000 positions"), "{error}");
}

#[test]
fn windows_without_room() {
    let error = Folder::new(BERT).load_within(3).unwrap_err();
    assert!(error.contains("tokenizer.json") && error.contains("no room for two texts"), "{error}");
    Folder::new(BERT).load_within(5).unwrap();
    let error = Folder::new(QWEN).load_within(1).unwrap_err();
    assert!(error.contains("tokenizer.json") && error.contains("no room"), "{error}");
}

#[test]
fn pooling_that_is_not_one_of_three() {
    let with = |pooling: Value| {
        let folder = Folder::new(QWEN);
        std::fs::create_dir(folder.path("1_Pooling")).unwrap();
        std::fs::write(folder.path("1_Pooling/config.json"), pooling.to_string()).unwrap();
        folder
    };
    for key in ["pooling_mode_lasttoken", "pooling_mode_cls_token", "pooling_mode_mean_tokens"] {
        with(json!({ key: true })).load().unwrap();
    }
    with(json!({})).refuses(&["1_Pooling/config.json", "exactly one"]);
    with(json!({"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": true})).refuses(&["exactly one"]);
    with(json!({"pooling_mode_lasttoken": 1})).refuses(&["pooling_mode_lasttoken is 1"]);
}
