//! Copies of the built-in models in folders of their own, and revisions of them.

use crate::support::root;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::{fs, os::unix::fs::symlink};
use tempfile::TempDir;

/// A folder of models as an operator keeps it: each revision in a folder of its own, and links to those that serve.
pub(crate) struct Models {
    folder: TempDir,
}

/// Settings that serve a [`Models`].
pub(crate) type Env<'a> = [(&'static str, &'a str); 3];

impl Models {
    /// Both models as the binary carries them: `embedder-1`, `reranker-1`.
    pub(crate) fn new() -> Self {
        let models = Self { folder: tempfile::tempdir().expect("a folder") };
        for name in ["embedder", "reranker"] {
            copy(&root().join("models").join(name), &models.folder(name, 1));
            models.link(name, 1);
        }
        models
    }

    pub(crate) fn env(&self) -> Env<'_> {
        let place = self.folder.path().to_str().expect("UTF-8");
        [("MODEL_BUCKET", place), ("RETRIEVER_MODEL_PATH", "embedder"), ("RERANKER_MODEL_PATH", "reranker")]
    }

    pub(crate) fn folder(&self, name: &str, number: usize) -> PathBuf {
        self.folder.path().join(format!("{name}-{number}"))
    }

    /// Revision `number`, a copy of the first for the caller to change.
    pub(crate) fn revise(&self, name: &str, number: usize) -> PathBuf {
        let folder = self.folder(name, number);
        copy(&self.folder(name, 1), &folder);
        folder
    }

    /// Revision `number` takes the model's name, in one step.
    pub(crate) fn link(&self, name: &str, number: usize) {
        let next = self.folder.path().join(format!("{name}.next"));
        symlink(format!("{name}-{number}"), &next).expect("a link");
        fs::rename(next, self.folder.path().join(name)).expect("it takes the old one's name");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// Changes the sign of every number in one tensor, which is in bf16.
pub(crate) fn negate(folder: &Path, tensor: &str) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("weights");
    // The length of the header, the header, and then what it describes.
    let (length, rest) = bytes.split_at_mut(8);
    let length = u64::from_le_bytes((&*length).try_into().expect("8 bytes")) as usize;
    let (header, data) = rest.split_at_mut(length);
    let header: Value = serde_json::from_slice(header).expect("JSON");
    assert_eq!(header[tensor]["dtype"], "BF16", "{tensor}");
    let offset = |at: usize| header[tensor]["data_offsets"][at].as_u64().expect("a number") as usize;
    data[offset(0)..offset(1)].iter_mut().skip(1).step_by(2).for_each(|high| *high ^= 0x80);
    fs::write(path, bytes).expect("written");
}

/// A sound embedder of 8 dimensions, beside the tokenizer that is there.
pub(crate) fn shrink(folder: &Path) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    let vocabulary = config["vocab_size"].as_u64().expect("a number") as usize;
    for (key, value) in [
        ("hidden_size", json!(8)),
        ("intermediate_size", json!(8)),
        ("head_dim", json!(4)),
        ("num_attention_heads", json!(2)),
        ("num_key_value_heads", json!(2)),
        ("num_hidden_layers", json!(1)),
        ("layer_types", json!(["full_attention"])),
    ] {
        config[key] = value;
    }
    fs::write(path, config.to_string()).expect("written");

    let layer = |name: &str| format!("layers.0.{name}.weight");
    let mut tensors =
        vec![("embed_tokens.weight".to_owned(), vec![vocabulary, 8]), ("norm.weight".to_owned(), vec![8])];
    for name in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((layer(name), vec![8]));
    }
    for name in ["self_attn.q_norm", "self_attn.k_norm"] {
        tensors.push((layer(name), vec![4]));
    }
    let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|name| format!("self_attn.{name}"));
    let mlp = ["gate_proj", "up_proj", "down_proj"].map(|name| format!("mlp.{name}"));
    tensors.extend(attention.iter().chain(&mlp).map(|name| (layer(name), vec![8, 8])));
    let (mut header, mut data) = (json!({}), Vec::new());
    for (name, shape) in tensors {
        let begin = data.len();
        let values = 0..shape.iter().product();
        data.extend(values.flat_map(|i: usize| (((i * 37 + begin) % 101) as f32 / 50.0 - 0.99).to_le_bytes()));
        header[name] = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] });
    }
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(data);
    fs::write(folder.join("model.safetensors"), file).expect("written");
}
