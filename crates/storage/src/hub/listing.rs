//! The files of a repository, and which of them a model needs.

use super::name::{HubName, is_commit};
use super::trouble::Trouble;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use hf_hub::api::tokio::Api;
use hf_hub::{Repo, RepoType};
use serde::Deserialize;
use std::time::Duration;

const CONFIG: &str = "config.json";
const POOLING: &str = "1_Pooling/config.json";
/// Tokenizers of large vocabularies have 30 MB; anything more in JSON is no part of a model.
const JSON_BYTES_MAX: u64 = 128 << 20;
/// Files whose size is asked for at once, of a hub that does not list sizes.
const ASKED_AT_ONCE: usize = 4;

/// What is fetched of a repository.
#[derive(Debug)]
pub(super) struct Listing {
    /// `owner/name`
    pub(super) repository: String,
    /// The full hash that the revision stands for.
    pub(super) commit: String,
    /// What a model needs, in the hub's order.
    pub(super) files: Vec<Wanted>,
}

impl Listing {
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// A file to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Its path in the repository.
    pub(super) name: String,
    /// What names its content: the SHA-256 of a large file, git's hash of a small one.
    pub(super) etag: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// SHA-256 of its content in hexadecimal, where the hub tells it.
    pub(super) sha256: Option<String>,
}

/// The hub's answer, as far as it is used.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

/// Asks the hub what the repository has at the revision.
pub(super) async fn get(api: &Api, name: &HubName, timeout: Duration) -> Result<Listing, Trouble> {
    let repo = Repo::with_revision(name.repository().to_owned(), RepoType::Model, name.revision().to_owned());
    let request = api.repo(repo).info_request().query(&[("blobs", "true")]).timeout(timeout);
    let response = request.send().await.map_err(Trouble::of_request)?;
    let response = Trouble::of_status(response)?;
    let answer = response.bytes().await.map_err(Trouble::of_request)?;
    let info: Info = serde_json::from_slice(&answer)
        .map_err(|error| Trouble::Broken(format!("the answer is not that of a model hub: {error}")))?;
    if !is_commit(&info.sha) {
        return Err(Trouble::Broken(format!("the hub's answer has {:?} for a commit", info.sha)));
    }
    let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
    if !names.contains(&CONFIG) {
        return Err(Trouble::NoFile(CONFIG));
    }
    if !names.iter().any(|name| is_weights(name)) {
        return Err(Trouble::NoFile("*.safetensors"));
    }
    let needed = needed(&names);
    let pinned = api.repo(Repo::with_revision(name.repository().to_owned(), RepoType::Model, info.sha.clone()));
    let mut asked: Vec<BoxFuture<'_, Result<Wanted, Trouble>>> = Vec::new();
    for sibling in info.siblings.iter().filter(|sibling| needed.contains(&sibling.rfilename.as_str())) {
        asked.push(wanted(api, pinned.url(&sibling.rfilename), sibling, timeout).boxed());
    }
    let files: Vec<Wanted> = stream::iter(asked).buffered(ASKED_AT_ONCE).try_collect().await?;
    let files = files.into_iter().filter(|file| !file.name.ends_with(".json") || file.size <= JSON_BYTES_MAX).collect();
    Ok(Listing { repository: name.repository().to_owned(), commit: info.sha.to_ascii_lowercase(), files })
}

/// The names that a model needs: weights, configuration, tokenizer, pooling. Where some weights are called `model...`,
/// others are the same in another form.
fn needed<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let usual = names.iter().any(|name| is_weights(name) && name.starts_with("model"));
    let is_needed = |name: &&str| {
        let weights = is_weights(name) && (name.starts_with("model") || !usual);
        weights || **name == *POOLING || (is_plain(name) && name.ends_with(".json"))
    };
    names.iter().copied().filter(is_needed).collect()
}

fn is_weights(name: &str) -> bool {
    is_plain(name) && name.ends_with(".safetensors")
}

/// A name that is part of a path and of an address as it is, and leads into no folder.
fn is_plain(name: &str) -> bool {
    !name.starts_with('.') && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

async fn wanted(api: &Api, url: String, sibling: &Sibling, timeout: Duration) -> Result<Wanted, Trouble> {
    let name = sibling.rfilename.clone();
    let wanted = match sibling {
        Sibling { lfs: Some(lfs), .. } => {
            let sha256 = lfs.sha256.to_ascii_lowercase();
            Wanted { name, etag: sha256.clone(), size: lfs.size, sha256: Some(sha256) }
        }
        Sibling { size: Some(size), blob_id: Some(id), .. } => {
            Wanted { name, etag: id.clone(), size: *size, sha256: None }
        }
        // Mirrors do not all list sizes; the file's own address tells.
        _ => {
            let metadata = tokio::time::timeout(timeout, api.metadata(&url));
            let metadata = metadata.await.map_err(|_| Trouble::Passing("no answer in time".to_owned()))?;
            let metadata = metadata.map_err(Trouble::of_api)?;
            let etag = metadata.etag().trim_start_matches("W/").to_owned();
            let sha256 = Some(etag.clone()).filter(|etag| etag.len() == 64);
            Wanted { name, etag, size: metadata.size() as u64, sha256 }
        }
    };
    if !is_plain(&wanted.etag) || wanted.etag.is_empty() {
        return Err(Trouble::Broken(format!(
            "the hub's answer names the content of {} {:?}",
            wanted.name, wanted.etag
        )));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_model_needs() {
        let names = [
            ".gitattributes",
            "README.md",
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "merges.txt",
            "1_Pooling/config.json",
            "onnx/config.json",
            "onnx/model.safetensors",
            "../../escape.json",
            ".hidden.json",
        ];
        let expected = [
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "1_Pooling/config.json",
        ];
        assert_eq!(needed(&names), expected);
        assert_eq!(needed(&["a.safetensors", "b.safetensors"]), ["a.safetensors", "b.safetensors"]);
    }
}
