//! What can go wrong with a hub, and what people read of it.

use super::{HubName, HubOptions};
use crate::error_chain;
use crate::model_store::ModelStoreError;
use hf_hub::api::tokio::ApiError;
use reqwest_of_hf_hub::{Response, StatusCode};
use std::io;

/// What went wrong, as far as it decides what to do.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No such repository, or none that is shown to who asks.
    NoRepository,
    /// The repository has no such revision.
    NoRevision,
    /// The repository is known, and closed to who asks.
    Closed,
    /// The token is not taken.
    BadToken,
    /// The repository is not a model.
    NoFile(&'static str),
    /// Nobody answers, or not in time, or with an error that passes.
    Passing(String),
    /// The hub or its servers do something that makes no sense.
    Broken(String),
    /// This machine's disk.
    Disk(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl Trouble {
    /// Whether the same request may succeed later without anybody's doing.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Passing(_))
    }

    /// A request that got no complete answer.
    pub(super) fn of_request(error: reqwest_of_hf_hub::Error) -> Self {
        let senseless = error.is_builder() || error.is_redirect();
        // Addresses of files may hold a signature, which opens them to whoever reads the log.
        let text = error_chain(&error.without_url());
        if senseless { Self::Broken(text) } else { Self::Passing(text) }
    }

    /// An error of `hf-hub`.
    pub(super) fn of_api(error: ApiError) -> Self {
        match error {
            ApiError::RequestError(error) => match error.status() {
                Some(status) => Self::of_code(status, None),
                None => Self::of_request(error),
            },
            ApiError::IoError(error) => Self::Disk(error),
            error => Self::Broken(error_chain(&error)),
        }
    }

    /// An answer that is not one of success. The hub says more precisely than by status what it means.
    pub(super) fn of_status(response: Response) -> Result<Response, Self> {
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        Err(Self::of_code(response.status(), code))
    }

    fn of_code(status: StatusCode, code: Option<&str>) -> Self {
        match (status.as_u16(), code) {
            (_, Some("RepoNotFound")) => Self::NoRepository,
            (_, Some("RevisionNotFound")) => Self::NoRevision,
            (_, Some("GatedRepo")) | (403 | 451, _) => Self::Closed,
            (401, _) => Self::BadToken,
            (404, Some("EntryNotFound")) => Self::Broken("a file is listed and not there".to_owned()),
            (404, _) => Self::NoRepository,
            (408 | 425 | 429 | 500.., _) => Self::Passing(format!("the answer is {status}")),
            _ => Self::Broken(format!("the answer is {status}")),
        }
    }

    /// For people: what, where, what to do.
    pub(super) fn explain(self, name: &HubName, options: &HubOptions) -> ModelStoreError {
        let HubOptions { endpoint, token, .. } = options;
        let (place, page) = (name.to_string(), format!("{endpoint}/{}", name.repository()));
        match self {
            // Without a token, the hub tells nobody whether a repository is private or none at all.
            Self::NoRepository | Self::BadToken if token.is_none() => ModelStoreError::NotFound {
                place,
                advice: "check owner and name; a private repository is shown only with a token that may read it \
                         (HF_TOKEN)"
                    .to_owned(),
            },
            Self::NoRepository => ModelStoreError::NotFound {
                place,
                advice: "check owner and name; if it is private, the token (HF_TOKEN) may not read it".to_owned(),
            },
            Self::NoRevision => {
                ModelStoreError::NotFound { place, advice: format!("{page} has no such branch, tag or commit") }
            }
            Self::BadToken => ModelStoreError::Denied {
                place,
                advice: "the hub does not take the token: check HF_TOKEN, or unset it for public repositories"
                    .to_owned(),
            },
            Self::Closed => ModelStoreError::Denied {
                place,
                advice: format!("ask for access on {page}, and set HF_TOKEN to a token of the account that has it"),
            },
            Self::NoFile(file) => ModelStoreError::NotAModel { place, file },
            Self::Passing(what) => other(
                place,
                format!("{endpoint}: {what}; without a network, MODEL_BUCKET can name a folder that has the model"),
            ),
            Self::Broken(what) => other(place, format!("{endpoint}: {what}")),
            Self::Disk(error) => {
                let what = format!("cannot write {}: {error}", options.folder.display());
                ModelStoreError::Io { place, source: io::Error::new(error.kind(), what) }
            }
        }
    }
}

/// An error without a variant of its own.
pub(super) fn other(place: String, what: String) -> ModelStoreError {
    ModelStoreError::Io { place, source: io::Error::other(what) }
}

impl ModelStoreError {
    /// The message with its causes, in one line.
    pub(super) fn with_causes(&self) -> String {
        error_chain(self)
    }
}
