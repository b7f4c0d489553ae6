//! What people call a repository: `owner/name[@revision]`.

use crate::model_store::ModelStoreError;
use std::fmt;

/// What stands before a name in settings.
const SCHEME: &str = "hf://";
const REVISION: &str = "main";

/// A repository at a revision: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    repository: String,
    revision: String,
}

impl HubName {
    /// Reads `owner/name[@revision]`, with or without `hf://` before it and a slash after it. No revision means `main`.
    ///
    /// # Errors
    ///
    /// When it has another form. Names become parts of paths and of addresses, so only what can be neither is allowed:
    /// letters, digits, `.`, `_` and `-`, and `/` in revisions.
    pub fn parse(text: &str) -> Result<Self, ModelStoreError> {
        let refuse = || ModelStoreError::NotFound {
            place: format!("{SCHEME}{}", text.strip_prefix(SCHEME).unwrap_or(text)),
            advice: "expected hf://owner/name or hf://owner/name@revision".to_owned(),
        };
        let bare = text.strip_prefix(SCHEME).unwrap_or(text).trim_matches('/');
        let (repository, revision) = bare.split_once('@').unwrap_or((bare, REVISION));
        let (owner, name) = repository.split_once('/').ok_or_else(refuse)?;
        if !is_word(owner) || !is_word(name) || !revision.split('/').all(is_word) {
            return Err(refuse());
        }
        Ok(Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }

    /// `owner/name`
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a full commit hash, whose files never change.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.repository, self.revision)
    }
}

/// Whether `text` is a full commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_revisions() {
        for (text, expected) in [
            ("Qwen/Qwen3-Embedding-0.6B", "hf://Qwen/Qwen3-Embedding-0.6B@main"),
            ("hf://Qwen/Qwen3-Embedding-0.6B/", "hf://Qwen/Qwen3-Embedding-0.6B@main"),
            ("hf://a/b@v1.0", "hf://a/b@v1.0"),
            ("a/b@refs/pr/3", "hf://a/b@refs/pr/3"),
        ] {
            assert_eq!(HubName::parse(text).unwrap().to_string(), expected);
        }
        let commit = HubName::parse("a/b@0123456789abcdef0123456789abcdef01234567").unwrap();
        assert!(commit.is_commit() && !HubName::parse("a/b@0123456").unwrap().is_commit());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in
            ["", "hf://", "a", "a/", "/b", "a/b/c", "a/..", "../b", "a/b@", "a/b@../c", "a/b?c", "a/b@x y", "a/b@/c"]
        {
            let error = HubName::parse(text).unwrap_err().to_string();
            assert!(error.contains("expected hf://owner/name"), "{text}: {error}");
        }
    }
}
