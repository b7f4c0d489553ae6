//! What a model in a bucket consists of: the objects that a model needs, by one listing.
//!
//! The bucket's keys are data: a name is taken only if it is one that a model has, so that no key can name a place
//! outside the model's folder. Weights in other formats, training states and other folders are left where they are.

use super::client::Client;
use super::explain::Fault;
use crate::ModelStoreError;
use sha2::{Digest as _, Sha256};

/// The file that makes a folder a model.
const CONFIG: &str = "config.json";
const WEIGHTS: &str = ".safetensors";
/// The one file of a sub-folder that a model needs, and its folder.
const POOLING: &str = "1_Pooling/config.json";
const POOLING_FOLDER: &str = "1_Pooling/";

/// An object of a model, as it was when it was listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Object {
    /// Name in the model's folder: `config.json`, `1_Pooling/config.json`.
    pub(super) name: String,
    /// Name in the bucket.
    pub(super) key: String,
    /// The content's identity, with the quotes that HTTP wants.
    pub(super) etag: String,
    /// Bytes.
    pub(super) size: u64,
}

impl Object {
    /// The object's name on this machine's disk: of another content, another name.
    pub(super) fn digest(&self) -> String {
        hex_digest(&[&self.name, &self.size.to_string(), &self.etag])
    }

    /// Whether it is of the files that make a model large.
    pub(super) fn is_weights(&self) -> bool {
        self.name.ends_with(WEIGHTS)
    }
}

/// A model's objects, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) objects: Vec<Object>,
}

impl Listing {
    /// Bytes of all objects.
    pub(super) fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size).sum()
    }

    /// The revision's name on this machine's disk.
    pub(super) fn digest(&self) -> String {
        hex_digest(&self.objects.iter().map(Object::digest).collect::<Vec<_>>())
    }
}

/// Lists the model under `prefix`, which is empty or ends with a slash.
pub(super) async fn list(client: &Client, prefix: &str) -> Result<Listing, Fault> {
    let found = client.list(prefix).await?;
    let mut objects = wanted(prefix, found.objects.iter());
    let place = client.url(prefix);
    if found.objects.is_empty() && found.folders.is_empty() {
        let advice = "nothing has such a key; check the address, to which MODEL_BUCKET and the model's path \
                      (RETRIEVER_MODEL_PATH, RERANKER_MODEL_PATH) are joined"
            .to_owned();
        return Err(ModelStoreError::NotFound { place, advice }.into());
    }
    if found.folders.iter().any(|folder| folder.strip_prefix(prefix) == Some(POOLING_FOLDER)) {
        let pooling = client.list(&format!("{prefix}{POOLING_FOLDER}")).await?;
        objects.extend(wanted(prefix, pooling.objects.iter()));
    }
    if !objects.iter().any(|object| object.name == CONFIG) {
        return Err(ModelStoreError::NotAModel { place, file: CONFIG }.into());
    }
    if !objects.iter().any(|object| object.name.ends_with(WEIGHTS)) {
        return Err(ModelStoreError::NotAModel { place, file: "*.safetensors" }.into());
    }
    objects.sort();
    Ok(Listing { objects })
}

fn wanted<'a>(prefix: &str, found: impl Iterator<Item = &'a Object>) -> Vec<Object> {
    found
        .filter_map(|object| {
            let name = object.key.strip_prefix(prefix)?;
            is_wanted(name).then(|| Object { name: name.to_owned(), ..object.clone() })
        })
        .collect()
}

/// Whether a model needs the file of this name. Names that could leave the folder, or hide in it, are no model's.
fn is_wanted(name: &str) -> bool {
    let plain = !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']) && !name.contains(char::is_control);
    let short = name.len() <= 200;
    let state = name == "trainer_state.json";
    name == POOLING || (plain && short && !state && (name.ends_with(".json") || name.ends_with(WEIGHTS)))
}

/// SHA-256 over texts and their lengths, as far as a name on disk needs it.
pub(super) fn hex_digest(texts: &[impl AsRef<str>]) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.as_ref().len() as u64).to_le_bytes());
        hash.update(text.as_ref());
    }
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_model_needs_and_nothing_that_leaves_its_folder() {
        for name in ["config.json", "model-00001-of-00004.safetensors", "a.index.json", "1_Pooling/config.json"] {
            assert!(is_wanted(name), "{name}");
        }
        for name in [
            "",
            "/",
            "..",
            "../config.json",
            "/etc/config.json",
            "a/../b.json",
            "..\\config.json",
            "c:config.json",
            ".hidden.json",
            "a\nb.json",
            "a\0.json",
            "onnx/config.json",
            "onnx/model.safetensors",
            "1_Pooling/../config.json",
            "1_Pooling//config.json",
            "2_Dense/model.safetensors",
            "pytorch_model.bin",
            "model.gguf",
            "optimizer.pt",
            "trainer_state.json",
            "README.md",
        ] {
            assert!(!is_wanted(name), "{name:?}");
        }
    }

    #[test]
    fn digests_tell_names_sizes_and_contents_apart() {
        let object =
            |name: &str, etag: &str, size| Object { name: name.into(), key: "k".into(), etag: etag.into(), size };
        let all =
            [object("a", "e", 1), object("a", "f", 1), object("a", "e", 2), object("b", "e", 1), object("ae", "", 1)];
        let digests: std::collections::BTreeSet<String> = all.iter().map(Object::digest).collect();
        assert_eq!(digests.len(), all.len());
        let revisions = [vec![0], vec![1], vec![0, 3]]
            .map(|picked| Listing { objects: picked.into_iter().map(|i: usize| all[i].clone()).collect() }.digest());
        assert!(revisions[0] != revisions[1] && revisions[0] != revisions[2]);
        assert_eq!(revisions[0].len(), 32);
    }
}
